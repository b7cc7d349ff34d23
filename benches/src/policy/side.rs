//! The side that tracks the writes of a run.

use codewarden::protection::Mode;

/// How writes are learned of, and under which policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// mprotect, one page and one fault at a time: the baseline.
    Plain,
    /// A mode under the adaptive policy, with self-checking entries.
    Adaptive(Mode),
    /// Nothing is tracked; the program removes blocks by hand.
    Off,
}

impl Side {
    /// For tables.
    pub fn name(self) -> String {
        match self {
            Side::Plain => "plain".into(),
            Side::Adaptive(mode) => format!("{mode}, adaptive"),
            Side::Off => "off".into(),
        }
    }

    /// The mode of its region.
    pub fn mode(self) -> Mode {
        match self {
            Side::Plain => Mode::Mprotect,
            Side::Adaptive(mode) => mode,
            Side::Off => Mode::None,
        }
    }
}

/// The sides in the order of the tables, of the modes that are available: the
/// baselines, the others, and off.
pub fn sides(modes: &[Mode]) -> Vec<Side> {
    let adaptive = [Mode::Mprotect, Mode::Sigbus, Mode::Thread, Mode::Deferred];
    let mut sides = vec![Side::Plain];
    sides.extend(adaptive.into_iter().filter(|mode| modes.contains(mode)).map(Side::Adaptive));
    sides.push(Side::Off);
    sides
}
