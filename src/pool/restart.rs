//! Whether, and how soon, a dead worker is replaced. No I/O, no clock: time comes in.
//!
//! A worker that finished something was worth its start, so its replacement is started at once. A
//! worker that died before it finished anything may be one of an endless row, as happens when an
//! initializer fails or a library is missing: such deaths are counted. The first few are replaced
//! at once, the next ones after growing delays, and too many within the period break the pool. Any
//! task that finishes forgets them all.

use std::collections::VecDeque;

/// What to do about a dead worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start a replacement at this time, in nanoseconds of the pool's clock.
    At(u64),
    /// No replacement will help.
    GiveUp,
}

/// How many fruitless workers a pool endures.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// Fruitless deaths within `period_ns` that break the pool.
    limit: usize,
    period_ns: u64,
    /// When they happened, oldest first.
    deaths: VecDeque<u64>,
}

/// The default: this many fruitless deaths ...
pub(crate) const LIMIT: usize = 10;
/// ... within this time.
pub(crate) const PERIOD_NS: u64 = 5_000_000_000;
/// So many fruitless deaths are replaced without delay.
const FREE: usize = 3;
/// The delay after that; it doubles with each further death.
const DELAY_NS: u64 = 10_000_000;

impl Budget {
    pub(crate) fn new(limit: usize, period_ns: u64) -> Self {
        Self {
            limit,
            period_ns,
            deaths: VecDeque::new(),
        }
    }

    /// A task was finished.
    pub(crate) fn succeeded(&mut self) {
        self.deaths.clear();
    }

    /// A worker died at `now` before it had finished anything, or could not be started.
    pub(crate) fn failed(&mut self, now: u64) -> Verdict {
        while self
            .deaths
            .front()
            .is_some_and(|&at| at + self.period_ns <= now)
        {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let n = self.deaths.len();
        if n >= self.limit {
            return Verdict::GiveUp;
        }
        let Some(step) = n.checked_sub(FREE + 1) else {
            return Verdict::At(now);
        };
        // The last delay before the limit stays well below the period, so that a steady row of
        // deaths cannot thin itself out until it is endless.
        let delay = DELAY_NS.saturating_mul(1 << step.min(20));
        Verdict::At(now + delay.min(self.period_ns / 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_first_fruitless_deaths_are_replaced_at_once_and_then_later_and_later() {
        let mut budget = Budget::new(10, PERIOD_NS);

        let verdicts: Vec<_> = (0..6).map(|_| budget.failed(7)).collect();

        let at = [0, 0, 0, 10 * MS, 20 * MS, 40 * MS];
        assert_eq!(verdicts, at.map(|delay| Verdict::At(7 + delay)));
    }

    #[test]
    fn a_steady_row_of_fruitless_deaths_ends() {
        let mut budget = Budget::new(LIMIT, PERIOD_NS);
        let mut now = 0;
        let mut n = 1;
        while let Verdict::At(next) = budget.failed(now) {
            // Each start takes a while, too.
            now = next + 50 * MS;
            n += 1;
        }

        assert_eq!(n, LIMIT);
    }

    #[test]
    fn a_success_forgets_all_deaths() {
        let mut budget = Budget::new(3, PERIOD_NS);
        budget.failed(0);
        budget.failed(0);
        budget.succeeded();

        assert_eq!(budget.failed(0), Verdict::At(0));
    }

    #[test]
    fn deaths_long_ago_do_not_count() {
        let mut budget = Budget::new(2, PERIOD_NS);
        budget.failed(0);

        assert_eq!(budget.failed(PERIOD_NS), Verdict::At(PERIOD_NS));
    }
}
