//! One step at a time: a function of a protocol is run again with what its earlier steps found, and
//! stopped after the next one. So an exhaustive search lets other processes step in between any two,
//! and the functions are the real ones.

/// What the steps of a function have found so far.
#[derive(Debug)]
pub(super) struct Turn {
    log: Vec<u64>,
    at: usize,
    fresh: bool,
    depth: u64,
}

/// The next step belongs to a later turn, or the client sleeps.
#[derive(Debug)]
pub(super) struct Stopped;

/// Outcomes of parts stand in the log with how deep the part lies, beginning with 1, as far from all
/// words as can be.
const OUTCOME_MAX: u64 = (1 << DEPTH_SHIFT) - 1;
const DEPTH_SHIFT: u32 = 16;

/// Whether a function whose turns have found this is between two of its parts, or has not begun.
pub(super) fn is_between_parts(log: &[u64]) -> bool {
    log.iter()
        .all(|found| (u64::MAX - found) >> DEPTH_SHIFT == 1)
}

impl Turn {
    /// A turn of a function whose earlier turns have found this.
    pub(super) fn new(log: Vec<u64>) -> Self {
        Self {
            log,
            at: 0,
            fresh: false,
            depth: 1,
        }
    }

    /// What is to be known in the next turn.
    pub(super) fn into_log(self) -> Vec<u64> {
        self.log
    }

    /// What the step here found, if it was taken before.
    pub(super) fn known(&mut self) -> Result<Option<u64>, Stopped> {
        match self.log.get(self.at) {
            Some(&found) => {
                self.at += 1;
                Ok(Some(found))
            }
            None if self.fresh => Err(Stopped),
            None => Ok(None),
        }
    }

    /// What this turn's step, which is being taken, has found.
    pub(super) fn found(&mut self, result: u64) {
        self.log.push(result);
        self.at += 1;
    }

    /// The next step would be another turn's.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// This turn takes its step.
    pub(super) fn takes_step(&mut self) {
        self.fresh = true;
    }

    /// All steps that were known have been taken again.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.log.len()
    }

    /// The place of the next step, for [`forget`](Self::forget).
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// Forgets all steps from this place on.
    pub(super) fn forget(&mut self, place: usize) {
        self.log.truncate(place);
        self.at = place;
    }

    /// A part begins here. What it came to, if it was finished before.
    pub(super) fn begin_part(&mut self) -> Option<u64> {
        let found = self.log.get(self.at).map_or(0, |found| u64::MAX - found);
        if found >> DEPTH_SHIFT == self.depth {
            self.at += 1;
            return Some(found & OUTCOME_MAX);
        }
        self.depth += 1;
        None
    }

    /// The part is finished that began at this place: only what it came to matters.
    pub(super) fn end_part(&mut self, place: usize, outcome: u64) {
        assert!(outcome <= OUTCOME_MAX, "an outcome is a small number");
        self.depth -= 1;
        self.forget(place);
        self.found(u64::MAX - (self.depth << DEPTH_SHIFT | outcome));
    }
}

/// A model's words, on which a function takes one step a turn.
pub(super) trait Steps: Sized {
    fn turn(&mut self) -> &mut Turn;
    fn read(&self, word: usize) -> u64;
    fn write(&mut self, word: usize, value: u64);

    /// Takes this turn's step, or tells what it found when it was taken.
    fn step(&mut self, act: impl FnOnce(&mut Self) -> u64) -> Result<u64, Stopped> {
        if let Some(known) = self.turn().known()? {
            return Ok(known);
        }
        self.turn().takes_step();
        let result = act(self);
        self.turn().found(result);
        Ok(result)
    }

    /// Replaces `old` by `new`, or tells what stood there instead.
    fn exchange(&mut self, word: usize, old: u64, new: u64) -> Result<Result<u64, u64>, Stopped> {
        let seen = self.step(|this| {
            let seen = this.read(word);
            if seen == old {
                this.write(word, new);
            }
            seen
        })?;
        Ok(if seen == old { Ok(seen) } else { Err(seen) })
    }
}
