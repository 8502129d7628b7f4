//! How many items at once: chunk lengths and windows from measured durations. No I/O, no clock.
//!
//! Two costs pull in opposite directions. Each message costs a system call and often a wake-up,
//! about a thousand times what a tiny function costs, so tiny items travel in long chunks and
//! several chunks are under way. But an item that lies in a worker's socket waits for the items
//! before it, though another worker may be idle, so slow items travel alone.
//!
//! Nothing is assumed of a function that was never measured: its first item travels alone, and
//! chunks grow from what came back. The growth is bounded per step, as the first measurement of a
//! function tells more about page faults than about the function.

/// A chunk holds about this much work, in nanoseconds.
const CHUNK_NS: f64 = 200_000.0;
/// The most items in a chunk.
pub(crate) const CHUNK_ITEMS: u32 = 2048;
/// A chunk is closed when its encoded items have this many bytes.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// How much longer a chunk may be than the longest one that was measured.
const GROWTH: u32 = 8;
/// How much a new measurement counts against what was known.
const NEWS: f64 = 0.3;

/// Work under way in one worker that is worth having there, in nanoseconds.
const WINDOW_NS: f64 = 1_000_000.0;
/// From this duration on an item has at most one other beside it in the worker.
const SHORT_NS: f64 = 100_000.0;
/// From this duration on an item is alone in the worker.
const LONG_NS: f64 = 1_000_000.0;
/// The most chunks or single tasks under way in one worker.
const WINDOW_FLIGHTS: usize = 512;
/// The most items under way in one worker.
const WINDOW_ITEMS: u64 = 4 * CHUNK_ITEMS as u64;

/// What is known of how long the items of one function take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    /// Nanoseconds an item, smoothed; nothing before the first measurement.
    ns: Option<f64>,
    /// The most items that were measured together.
    measured: u32,
}

impl Pace {
    /// A worker has spent `ns` on `items`.
    pub(crate) fn record(&mut self, items: u32, ns: u64) {
        if items == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate needs no 53rd bit")]
        let new = (ns as f64 / f64::from(items)).max(1.0);
        self.ns = Some(match self.ns {
            None => new,
            // Chunks longer than any before tell more: what each chunk costs by itself weighs less.
            Some(_) if items > self.measured => new,
            Some(old) => old + NEWS * (new - old),
        });
        self.measured = self.measured.max(items);
    }

    /// Nanoseconds that one item will take, if anything is known.
    pub(crate) fn ns(&self) -> Option<f64> {
        self.ns
    }

    /// How many items the next chunk should hold.
    pub(crate) fn chunk_len(&self) -> u32 {
        let Some(ns) = self.ns else { return 1 };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the most items"
        )]
        let wanted = (CHUNK_NS / ns).clamp(1.0, f64::from(CHUNK_ITEMS)) as u32;
        wanted.min(self.measured.saturating_mul(GROWTH)).max(1)
    }

    /// How many chunks of `chunk_len` items one worker should have under way.
    pub(crate) fn window(&self) -> u32 {
        match self.ns {
            Some(ns) if ns < SHORT_NS => 4,
            Some(ns) if ns < LONG_NS => 2,
            _ => 1,
        }
    }
}

/// The work that is under way in one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    items: u64,
    ns: f64,
    /// Flights whose duration nobody knows, or that take long.
    heavy: usize,
    /// Flights between short and long.
    middling: usize,
    /// Flights of short items.
    light: usize,
}

impl Load {
    /// `items` of a duration of `ns` each are sent.
    pub(crate) fn add(&mut self, items: u32, ns: Option<f64>) {
        self.items += u64::from(items);
        self.ns += ns.unwrap_or(0.0) * f64::from(items);
        *self.weight(ns) += 1;
    }

    /// `items` of a flight came back; `last` if none of it is left.
    pub(crate) fn remove(&mut self, items: u32, ns: Option<f64>, last: bool) {
        self.items -= u64::from(items);
        self.ns = (self.ns - ns.unwrap_or(0.0) * f64::from(items)).max(0.0);
        if last {
            *self.weight(ns) -= 1;
        }
        if self.items == 0 {
            *self = Self::default();
        }
    }

    fn weight(&mut self, ns: Option<f64>) -> &mut usize {
        match ns {
            Some(ns) if ns < SHORT_NS => &mut self.light,
            Some(ns) if ns < LONG_NS => &mut self.middling,
            _ => &mut self.heavy,
        }
    }

    /// Items under way.
    pub(crate) fn items(&self) -> u64 {
        self.items
    }

    /// Whether work of `ns` an item may join what is under way in a worker that runs `slots` tasks
    /// at once.
    pub(crate) fn has_room(&self, slots: u64, ns: Option<f64>) -> bool {
        if self.items < slots {
            return true;
        }
        let Some(ns) = ns else { return false };
        if self.heavy > 0 || ns >= LONG_NS {
            return false;
        }
        if self.middling > 0 || ns >= SHORT_NS {
            return self.items < 2 * slots;
        }
        self.ns < WINDOW_NS && self.light < WINDOW_FLIGHTS && self.items < WINDOW_ITEMS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_item_of_a_function_travels_alone() {
        let pace = Pace::default();

        assert_eq!((pace.chunk_len(), pace.window()), (1, 1));
    }

    #[test]
    fn chunks_of_tiny_items_grow_to_the_longest_in_a_few_steps() {
        let mut pace = Pace::default();
        let mut lens = Vec::new();
        for _ in 0..6 {
            let len = pace.chunk_len();
            pace.record(len, u64::from(len) * 30);
            lens.push(len);
        }

        assert_eq!(lens, [1, 8, 64, 512, 2048, 2048]);
    }

    #[test]
    fn a_slow_first_call_does_not_keep_chunks_short() {
        let mut pace = Pace::default();
        pace.record(1, 20_000);
        pace.record(8, 400);

        assert_eq!(pace.chunk_len(), 64);
    }

    #[test]
    fn slow_items_travel_alone() {
        let mut pace = Pace::default();
        pace.record(1, 5_000_000);

        assert_eq!((pace.chunk_len(), pace.window()), (1, 1));
    }

    #[test]
    fn a_worker_with_unmeasured_work_gets_nothing_on_top() {
        let mut load = Load::default();
        assert!(load.has_room(1, None));

        load.add(1, None);

        assert!(!load.has_room(1, Some(10.0)));
        assert!(!load.has_room(1, None));
    }

    #[test]
    fn the_window_follows_the_duration() {
        let window = |ns| {
            let mut load = Load::default();
            let mut n = 0;
            while load.has_room(1, Some(ns)) {
                load.add(1, Some(ns));
                n += 1;
            }
            n
        };

        assert_eq!(window(2_000_000.0), 1);
        assert_eq!(window(500_000.0), 2);
        assert_eq!(window(50_000.0), 20);
        assert_eq!(window(100.0), WINDOW_FLIGHTS);
    }

    #[test]
    fn a_load_that_came_back_is_no_load() {
        let mut load = Load::default();
        load.add(3, Some(7.0));
        load.add(1, None);
        load.remove(2, Some(7.0), false);
        load.remove(1, Some(7.0), true);
        load.remove(1, None, true);

        assert_eq!(load, Load::default());
    }
}
