//! Two measurements taken in turn, and the wanted relation of the two.

use std::fmt::Write;

use crate::spread::Spread;

/// The wanted relation of the first to the second, by the medians.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Aim {
    /// At most so many times the second.
    AtMost(f64),
    /// The same, or at most so many of its unit.
    AtMostOr(f64, f64),
    /// The same within the noise: the spreads overlap.
    Same,
    /// Nothing is wanted: the numbers are only shown.
    Told,
}

/// Two things.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The first.
    pub what: String,
    /// The second: a floor, as a rule.
    pub beside: String,
    /// The unit of the samples.
    pub unit: &'static str,
    /// One sample of the first and one of the second for each round.
    pub samples: Vec<(f64, f64)>,
    /// The wanted relation.
    pub aim: Aim,
}

impl Pair {
    fn spreads(&self) -> (Spread, Spread) {
        let (first, second): (Vec<f64>, Vec<f64>) = self.samples.iter().copied().unzip();
        (Spread::of(&first), Spread::of(&second))
    }

    /// The medians' ratio.
    fn ratio(&self) -> f64 {
        let (first, second) = self.spreads();
        first.median_ns / second.median_ns
    }

    /// Whether the aim is met, and the aim in words; `None` without an aim.
    fn verdict(&self) -> Option<(bool, String)> {
        let (first, second) = self.spreads();
        let ratio = self.ratio();
        Some(match self.aim {
            Aim::AtMost(most) => (ratio <= most, format!("at most {most}")),
            Aim::AtMostOr(most, bare) => {
                (ratio <= most || first.median_ns <= bare, format!("at most {most}, or {bare} {}", self.unit))
            }
            Aim::Same => {
                (first.p10_ns <= second.p90_ns && second.p10_ns <= first.p90_ns, "the same within noise".into())
            }
            Aim::Told => return None,
        })
    }
}

/// All of them.
pub fn markdown(pairs: &[Pair]) -> String {
    let mut table = String::from("| what | | beside | | ratio |\n|---|---:|---|---:|---:|\n");
    for pair in pairs {
        let ((first, second), unit) = (pair.spreads(), pair.unit);
        let shown = |spread: Spread| {
            format!("{:.2} ({:.2}–{:.2}) {unit}", spread.median_ns, spread.p10_ns, spread.p90_ns).trim_end().to_owned()
        };
        let (what, beside, ratio) = (&pair.what, &pair.beside, pair.ratio());
        let _ = writeln!(table, "| {what} | {} | {beside} | {} | {ratio:.2} |", shown(first), shown(second));
    }
    table
}

/// One line for each pair with an aim.
pub fn against_wanted(pairs: &[Pair]) -> String {
    let mut text = String::new();
    for pair in pairs {
        let Some((holds, wanted)) = pair.verdict() else { continue };
        let holds = if holds { "holds" } else { "MISSED" };
        let _ = writeln!(text, "- {holds}: {}: {:.2} times {} (wanted {wanted})", pair.what, pair.ratio(), pair.beside);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(samples: &[(f64, f64)], aim: Aim) -> bool {
        let (what, beside) = (String::new(), String::new());
        let pair = Pair { what, beside, unit: "ns", samples: samples.to_vec(), aim };
        pair.verdict().is_none_or(|(holds, _)| holds)
    }

    #[test]
    fn what_is_wanted_can_be_missed() {
        let samples = [(26.0, 20.0), (25.0, 20.0), (27.0, 20.0)];
        assert!(verdict(&samples, Aim::AtMost(1.3)) && !verdict(&samples, Aim::AtMost(1.2)));
        assert!(verdict(&samples, Aim::AtMostOr(1.2, 30.0)) && !verdict(&samples, Aim::AtMostOr(1.2, 3.0)));
        assert!(!verdict(&samples, Aim::Same) && verdict(&[(19.0, 20.0), (21.0, 20.0)], Aim::Same));
    }
}
