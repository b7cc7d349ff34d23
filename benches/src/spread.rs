//! Medians and the spread of samples.

use std::fmt;

/// The spread of many samples, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A tenth of the samples is below.
    pub p10_ns: f64,
    /// Half of them is.
    pub median_ns: f64,
    /// A tenth is above.
    pub p90_ns: f64,
}

impl Spread {
    /// The spread of `samples`.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn of(samples: &[f64]) -> Self {
        assert!(!samples.is_empty(), "a spread needs samples");
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self { p10_ns: at(0.1), median_ns: at(0.5), p90_ns: at(0.9) }
    }

    /// The spread of the differences of samples that were taken in pairs.
    pub fn of_differences(more: &[f64], less: &[f64]) -> Self {
        Self::of(&more.iter().zip(less).map(|(more, less)| more - less).collect::<Vec<_>>())
    }
}

impl fmt::Display for Spread {
    /// `median (p10–p90)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median_ns.abs() < 100.0 { 1 } else { 0 };
        write!(f, "{:.digits$} ({:.digits$}–{:.digits$})", self.median_ns, self.p10_ns, self.p90_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_row() {
        let samples: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(Spread::of(&samples), Spread { p10_ns: 10.0, median_ns: 50.0, p90_ns: 90.0 });
        let shifted: Vec<f64> = samples.iter().map(|sample| sample + 7.0).collect();
        assert_eq!(Spread::of_differences(&shifted, &samples), Spread { p10_ns: 7.0, median_ns: 7.0, p90_ns: 7.0 });
    }
}
