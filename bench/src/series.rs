//! The values of one thing's rounds.

/// One value a round.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds a round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.0.len()
    }

    /// The middle value; of an even number the lower of the two. `None` before the first round.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }

    /// How far the middle half of the rounds is apart: (third quartile - first) / median. Of four rounds and fewer
    /// these are the largest and the smallest.
    pub fn spread(&self) -> f64 {
        let sorted = self.sorted();
        let Some(median) = self.median().filter(|median| *median != 0.0) else { return 0.0 };
        let quarter = (sorted.len() - 1) / 4;
        (sorted[sorted.len() - 1 - quarter] - sorted[quarter]) / median.abs()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_rounds_when_summed_up_then_median_and_spread_ignore_their_order() {
        let mut series = Series::default();
        assert_eq!((series.median(), series.spread()), (None, 0.0));
        for value in [30.0, 10.0, 20.0] {
            series.push(value);
        }
        assert_eq!((series.median(), series.spread(), series.rounds()), (Some(20.0), 1.0, 3));
        for value in [40.0, 1000.0] {
            series.push(value);
        }
        assert_eq!((series.median(), series.spread()), (Some(30.0), 20.0 / 30.0), "10 and 1000 are left out");
    }
}
