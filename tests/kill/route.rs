//! In which order the instructions of an operation are visited.

/// In coarse steps first and finer and finer ones then, so that a campaign whose time ends has seen a
/// bit of everything. How many instructions there are turns out on the way.
pub(crate) struct Route {
    step: u64,
    finest: u64,
    coarsest: u64,
    at: u64,
    end: u64,
}

impl Route {
    /// Every `stride`-th instruction in the end.
    pub(crate) fn new(stride: u64) -> Self {
        let coarsest = stride * 64;
        Self {
            step: coarsest,
            finest: stride,
            coarsest,
            at: 0,
            end: u64::MAX,
        }
    }

    /// The operation had ended before instruction `at`.
    pub(crate) fn ends_before(&mut self, at: u64) {
        self.end = self.end.min(at);
    }
}

impl Iterator for Route {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.at >= self.end {
            if self.step == self.finest {
                return None;
            }
            self.step /= 2;
            self.at = self.step;
        }
        let here = self.at;
        // Every other one was visited by the coarser steps before.
        self.at += self.step * if self.step == self.coarsest { 1 } else { 2 };
        Some(here)
    }
}
