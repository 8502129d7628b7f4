//! Looking again and again for a moment, before going to sleep.
//!
//! To be woken on another processor costs ten times what it costs to hand something over to who is
//! awake. So whoever has to wait looks first, for about a hundred microseconds; and if that was in vain,
//! only for five or ten, and as long as before every now and then, to find out whether the others have
//! become quicker. How long a pause is differs from processor to processor, by a factor of ten: what is
//! said here was measured on an AMD EPYC.

use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::cpu;

/// Looks of a short wait, with pauses of 1, 2, 4 ... [`PAUSES_MAX`] between: five to ten microseconds.
const SHORT: u32 = 8;
/// Looks of a long one, about a hundred microseconds: as long as it takes to be woken, and to answer to it.
const LONG: u32 = 120;
const PAUSES_MAX: u32 = 32;
/// How often others go first on one processor, and how soon it has to be over to be worth it.
const YIELDS: u32 = 3;
const YIELDS_PAY: Duration = Duration::from_micros(100);
/// Which part of the waits is long when they are in vain.
const TRIES_AFTER: u32 = 16;

/// How it went at one object, in this process.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    /// Waits in vain since one was not.
    in_vain: AtomicU32,
}

impl Spin {
    /// Looks until there is something, or for a while.
    #[cold]
    pub(crate) fn until<T, E>(
        &self,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        // Relaxed, here and below: a guess, of which nothing depends but time.
        let in_vain = self.in_vain.load(Relaxed);
        let is_long = in_vain.is_multiple_of(TRIES_AFTER);
        if !has_several_cpus() {
            return if is_long {
                self.step_aside(look)
            } else {
                self.note(in_vain)
            };
        }
        let looks = if is_long { LONG } else { SHORT };
        let mut pauses = 1;
        for _ in 0..looks {
            (0..pauses).for_each(|_| hint::spin_loop());
            pauses = (pauses * 2).min(PAUSES_MAX);
            if let Some(found) = look()? {
                self.in_vain.store(0, Relaxed);
                return Ok(Some(found));
            }
        }
        self.note(in_vain)
    }

    fn note<T, E>(&self, in_vain: u32) -> Result<Option<T>, E> {
        self.in_vain.store(in_vain.wrapping_add(1), Relaxed);
        Ok(None)
    }

    /// On one processor: lets those run who may be about to bring it, which is cheaper than to be put
    /// to sleep and woken by them.
    fn step_aside<T, E>(
        &self,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let mut found = None;
        let start = Instant::now();
        for _ in 0..YIELDS {
            thread::yield_now();
            found = look()?;
            if found.is_some() {
                break;
            }
        }
        // Others who have much to do are no reason to wait for our turn again.
        let paid = found.is_some() && start.elapsed() < YIELDS_PAY;
        let in_vain = if paid { 0 } else { 1 };
        self.in_vain.store(in_vain, Relaxed);
        Ok(found)
    }
}

/// Whether spinning can pay: another processor may be giving back what we want.
pub(crate) fn has_several_cpus() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(cpu::has_others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_in_vain_get_short() {
        let spin = Spin::default();
        let mut looks = Vec::new();
        for _ in 0..TRIES_AFTER + 1 {
            let mut n = 0;
            let found = spin.until(|| {
                n += 1;
                Ok::<Option<()>, ()>(None)
            });
            assert_eq!(found, Ok(None));
            looks.push(n);
        }

        if has_several_cpus() {
            assert_eq!((looks[0], looks[1], looks[16]), (LONG, SHORT, LONG));
        }
    }
}
