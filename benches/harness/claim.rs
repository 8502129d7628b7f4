//! What is said about a contender of ours, and how it is written down.

/// What a figure counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
    /// 1,024 bytes.
    KiB,
}

/// What we say about ourselves: `ours` costs at most so many times what `against` costs.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    /// The row of the list of goals.
    pub(crate) row: u32,
    /// What is done, in words.
    pub(crate) work: &'static str,
    /// The unit of the figures.
    pub(crate) unit: Unit,
    /// The contender that is ours.
    pub(crate) ours: &'static str,
    /// The contender that it is compared with; without one, the bounds are figures, not ratios.
    pub(crate) against: Option<&'static str>,
    /// The bound that must hold now.
    pub(crate) target: Option<f64>,
    /// The bound to be reached in the end.
    pub(crate) goal: Option<f64>,
}

/// Claims about one of our contenders.
pub(crate) struct Row<'a> {
    claims: &'a mut Vec<Claim>,
    about: Claim,
}

impl<'a> Row<'a> {
    /// About `ours` at `work`, in row `row`.
    pub(crate) fn new(
        claims: &'a mut Vec<Claim>,
        row: u32,
        work: &'static str,
        unit: Unit,
        ours: &'static str,
    ) -> Self {
        let about = Claim {
            row,
            work,
            unit,
            ours,
            against: None,
            target: None,
            goal: None,
        };
        Self { claims, about }
    }

    /// At most `target` times what `against` costs, and in the end at most `goal` times.
    pub(crate) fn must(&mut self, against: &'static str, target: f64, goal: f64) {
        self.push(Some(against), Some(target), Some(goal));
    }

    /// In the end at most `goal` times what `against` costs.
    pub(crate) fn aim(&mut self, against: &'static str, goal: f64) {
        self.push(Some(against), None, Some(goal));
    }

    /// No bound: both figures are worth seeing.
    pub(crate) fn show(&mut self, against: &'static str) {
        self.push(Some(against), None, None);
    }

    /// At most the figure `target`, if there is one, and in the end at most `goal`.
    pub(crate) fn figure(&mut self, target: Option<f64>, goal: f64) {
        self.push(None, target, Some(goal));
    }

    fn push(&mut self, against: Option<&'static str>, target: Option<f64>, goal: Option<f64>) {
        self.claims.push(Claim {
            against,
            target,
            goal,
            ..self.about
        });
    }
}
