//! Which worker gets which task, and what a death, a cancellation or an end means for each: the
//! pool's decisions, with no process, no clock and no value in sight.
//!
//! What happened goes in as method calls, what to do comes out as [`Action`]s, time is a number.
//! A piece of work is a run of items of one source; a single task is a piece of one item. The
//! table says which items each worker holds, in the order in which it was given them. Each worker
//! numbers its items from 0 on, and starts them in that order.
//!
//! **What a death costs.** A worker counts in shared memory the items it started, and a finished
//! item's result is where the parent can read it before the next one is started. So the table,
//! that count, and the results that came tell apart three kinds of items exactly: finished ones,
//! running ones, which are charged with the death, and those never started, which go elsewhere as
//! if nothing had been.
//!
//! **What lies behind a slow item.** Items that were sent ahead to a worker that turned out to be
//! slow can be taken back: [`Action::Recall`] draws a line in that same count, so that item by
//! item either the worker starts it or the parent has it, never both.

use std::collections::{HashMap, HashSet, VecDeque};

use super::chunk::{Load, Pace};
use super::restart::{self, Budget};

/// A worker's place in the table. It is used again once the worker is gone.
pub(crate) type WorkerId = usize;

/// Where items come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// Tasks submitted one by one.
    Single,
    /// A stream of items; the number is never used again.
    Stream(u64),
}

/// Neighbouring items of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) source: Source,
    /// The first item: the key of a single task, the position in a stream's input.
    pub(crate) first: u64,
    pub(crate) len: u32,
    /// Which function it is, as far as durations go.
    pub(crate) class: u32,
    /// How often these items took a worker down with them.
    pub(crate) attempt: u32,
    /// It was taken back from a slow worker: the others share it.
    pub(crate) shared_out: bool,
}

impl Piece {
    /// Items that nobody has tried to run.
    pub(crate) fn new(source: Source, first: u64, len: u32, class: u32) -> Self {
        Self {
            source,
            first,
            len,
            class,
            attempt: 0,
            shared_out: false,
        }
    }

    /// The items from number `from` on, `len` of them.
    fn part(self, from: u32, len: u32) -> Self {
        Self {
            first: self.first + u64::from(from),
            len,
            ..self
        }
    }
}

/// Why items will have no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// They were running when their worker died.
    Died(WorkerId),
    /// They ran longer than allowed.
    TimedOut,
    /// Somebody stopped them, or the pool was terminated.
    Cancelled,
    /// Workers die faster than they can be replaced.
    GaveUp,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Send these items; the first one has this number in the worker.
    Send {
        worker: WorkerId,
        piece: Piece,
        first_seq: u64,
    },
    /// These items have failed.
    Fail { piece: Piece, why: Verdict },
    /// The single task with this key waits for a worker again.
    Requeued(u64),
    /// Take back what the worker has not started, and say so by [`Dispatch::recalled`].
    Recall(WorkerId),
    /// Ask the worker to drop this asynchronous task.
    Interrupt { worker: WorkerId, seq: u64 },
    /// Tell the worker that it is done.
    Stop(WorkerId),
    /// Kill the worker.
    Kill(WorkerId),
    /// Start a worker for this place.
    Start(WorkerId),
}

/// What is fixed when a pool is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Tasks at once in one worker.
    pub(crate) slots: u32,
    /// How often an item that took its worker down is tried again.
    pub(crate) retries: u32,
    /// Items after which a worker is replaced.
    pub(crate) tasks_per_worker: u64,
    /// How long an item may run, in nanoseconds.
    pub(crate) task_timeout: Option<u64>,
}

/// A worker is replaced after so many items even if nobody asked for it: the count that it shares
/// with the parent has 32 bits.
pub(crate) const TASKS_PER_WORKER_MAX: u64 = 1 << 31;
/// So long may an item run before what lies behind it goes to an idle worker.
const STALL_NS: u64 = 2_000_000;
/// An asynchronous task that was interrupted gets this long to reach an await point.
pub(crate) const GRACE_NS: u64 = 500_000_000;
/// A closing pool waits this long for streams that nobody polls.
pub(crate) const STREAM_PATIENCE_NS: u64 = 3_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Its process is being started.
    Starting,
    /// It takes work.
    Up,
    /// It was told to leave.
    Leaving,
    /// It was killed on purpose.
    Killed,
}

#[derive(Clone, Debug)]
struct Flight {
    /// What is not finished of it.
    piece: Piece,
    /// The number of the first unfinished item.
    seq: u64,
    /// The estimate it was counted with.
    ns: Option<f64>,
    sent_at: u64,
    timeout: Option<u64>,
    /// Somebody decided that it shall not finish.
    verdict: Option<Verdict>,
    /// Kill the worker if the item is still there at this time.
    kill_at: Option<u64>,
    /// Nobody will ask for it: it is not worth a second start.
    abandoned: bool,
}

impl Flight {
    /// Ends the first item when it has run for too long; it runs since `since` or later.
    fn check_time(&mut self, since: u64, now: u64) {
        let Some(timeout) = self.timeout else { return };
        if self.verdict.is_none() && self.sent_at.max(since).saturating_add(timeout) <= now {
            self.verdict = Some(Verdict::TimedOut);
            self.kill_at = Some(now);
        }
    }
}

#[derive(Clone, Debug)]
struct Worker {
    state: State,
    flights: VecDeque<Flight>,
    load: Load,
    /// The number of the next item.
    next_seq: u64,
    /// Items that it finished.
    done: u64,
    /// It gets no more work.
    retired: bool,
    /// Its current item turned out to be slow: nothing is sent on top until it moves on.
    stalled: bool,
    /// When the parent saw it move on.
    moved_at: u64,
    /// The earliest `kill_at` of its flights, or earlier.
    kill_at: Option<u64>,
}

impl Worker {
    fn is_serving(&self) -> bool {
        matches!(self.state, State::Starting | State::Up) && !self.retired
    }

    fn position(&self, seq: u64) -> Option<usize> {
        let idx = self
            .flights
            .partition_point(|flight| flight.seq <= seq)
            .checked_sub(1)?;
        let flight = &self.flights[idx];
        (seq - flight.seq < u64::from(flight.piece.len)).then_some(idx)
    }
}

#[derive(Clone, Debug)]
struct Stream {
    queue: VecDeque<Piece>,
    /// When its consumer last asked for something.
    polled_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Open,
    /// What was accepted is finished, then the workers leave.
    Closing,
    /// Nothing is done any more.
    Ended,
}

/// The table of a pool's workers and work.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    rules: Rules,
    phase: Phase,
    broken: bool,
    /// Workers that should be there.
    target: usize,
    workers: Vec<Option<Worker>>,
    singles: VecDeque<Piece>,
    /// Keys in `singles` whose tasks nobody wants any more.
    unwanted: HashSet<u64>,
    streams: HashMap<u64, Stream>,
    /// Sources that have something queued, in the order of their turns.
    turns: VecDeque<Source>,
    /// The piece whose turn it is finds no room, so nothing else needs to look for any.
    blocked: bool,
    paces: Vec<Pace>,
    budget: Budget,
    /// No worker is started before this time.
    start_at: u64,
    n_restarts: u64,
}

impl Dispatch {
    pub(crate) fn new(rules: Rules, target: usize) -> Self {
        let tasks_per_worker = rules.tasks_per_worker.min(TASKS_PER_WORKER_MAX);
        Self {
            rules: Rules {
                tasks_per_worker,
                ..rules
            },
            phase: Phase::Open,
            broken: false,
            target,
            workers: Vec::new(),
            singles: VecDeque::new(),
            unwanted: HashSet::new(),
            streams: HashMap::new(),
            turns: VecDeque::new(),
            blocked: false,
            paces: Vec::new(),
            budget: Budget::new(restart::LIMIT, restart::PERIOD_NS),
            start_at: 0,
            n_restarts: 0,
        }
    }

    // What the user does.

    /// A new class of functions, whose durations are unknown.
    pub(crate) fn new_class(&mut self) -> u32 {
        self.paces.push(Pace::default());
        u32::try_from(self.paces.len() - 1).expect("the shell keeps few classes")
    }

    /// What is known of a class.
    pub(crate) fn pace(&self, class: u32) -> Pace {
        self.paces[class as usize]
    }

    /// Opens a stream, to which pieces can be submitted from now on.
    pub(crate) fn open_stream(&mut self, id: u64, now: u64) {
        let stream = Stream {
            queue: VecDeque::new(),
            polled_at: now,
        };
        self.streams.insert(id, stream);
    }

    /// The consumer of a stream asks for something.
    pub(crate) fn stream_polled(&mut self, id: u64, now: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.polled_at = now;
        }
    }

    /// Pieces of a stream that wait for a worker.
    pub(crate) fn backlog(&self, id: u64) -> usize {
        self.streams.get(&id).map_or(0, |stream| stream.queue.len())
    }

    /// New work. The shell has seen that the pool takes it.
    pub(crate) fn submit(&mut self, piece: Piece, now: u64, out: &mut Vec<Action>) {
        self.enqueue_back(piece);
        self.fill(None, now, out);
    }

    /// Forgets a task that is still queued.
    pub(crate) fn cancel_queued(&mut self, key: u64, now: u64, out: &mut Vec<Action>) {
        self.unwanted.insert(key);
        // Keys that lie deep in the queue must not pile up there.
        if self.unwanted.len() > 64 && self.unwanted.len() > self.singles.len() / 2 {
            let unwanted = std::mem::take(&mut self.unwanted);
            self.singles
                .retain(|piece| !unwanted.contains(&piece.first));
        }
        self.blocked = false;
        self.fill(None, now, out);
        self.settle(now, out);
    }

    /// Nobody will ask for the item that the worker holds under `seq`; it may run to its end.
    pub(crate) fn abandon(&mut self, worker: WorkerId, seq: u64) {
        if let Some(flight) = self.flight_mut(worker, seq) {
            flight.abandoned = true;
        }
    }

    /// Limits how long the item that the worker holds under `seq` may run.
    pub(crate) fn limit(&mut self, worker: WorkerId, seq: u64, timeout: u64) {
        if let Some(flight) = self.flight_mut(worker, seq) {
            flight.timeout = Some(timeout);
        }
    }

    /// Stops the item that the worker holds under `seq`; an asynchronous one is asked to end.
    pub(crate) fn stop_item(
        &mut self,
        worker: WorkerId,
        seq: u64,
        can_interrupt: bool,
        now: u64,
        out: &mut Vec<Action>,
    ) {
        let Some(flight) = self.flight_mut(worker, seq) else {
            return;
        };
        if flight.verdict.is_some() {
            return;
        }
        let kill_at = if can_interrupt { now + GRACE_NS } else { now };
        flight.verdict = Some(Verdict::Cancelled);
        flight.kill_at = Some(kill_at);
        let entry = self.worker_mut(worker);
        entry.kill_at = Some(entry.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        if can_interrupt {
            out.push(Action::Interrupt { worker, seq });
        } else {
            out.push(Action::Recall(worker));
        }
    }

    /// The consumer of a stream is gone, or has all it wants.
    pub(crate) fn close_stream(&mut self, id: u64, now: u64, out: &mut Vec<Action>) {
        self.streams.remove(&id);
        self.turns.retain(|turn| *turn != Source::Stream(id));
        for (worker, entry) in self.workers.iter().enumerate() {
            let Some(entry) = entry else { continue };
            if entry
                .flights
                .iter()
                .any(|flight| flight.piece.source == Source::Stream(id))
            {
                out.push(Action::Recall(worker));
            }
        }
        self.blocked = false;
        self.fill(None, now, out);
        self.settle(now, out);
    }

    /// No new work; what was accepted is finished.
    pub(crate) fn close(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
        }
        self.settle(now, out);
    }

    /// Everything that has no result fails, and the workers are killed.
    pub(crate) fn terminate(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        self.fail_queued(Verdict::Cancelled, out);
        for id in 0..self.workers.len() {
            let Some(worker) = &mut self.workers[id] else {
                continue;
            };
            for flight in worker.flights.drain(..) {
                let why = flight.verdict.unwrap_or(Verdict::Cancelled);
                out.push(Action::Fail {
                    piece: flight.piece,
                    why,
                });
            }
            worker.load = Load::default();
            if worker.state != State::Killed {
                worker.state = State::Killed;
                out.push(Action::Kill(id));
            }
        }
    }

    /// Wants `target` workers from now on.
    pub(crate) fn resize(&mut self, target: usize, now: u64, out: &mut Vec<Action>) {
        self.target = target;
        let serving = self.n_serving();
        let surplus = serving.saturating_sub(target);
        // Those that have least to do leave first.
        let mut ids: Vec<WorkerId> = self
            .ids()
            .filter(|&id| self.worker(id).is_serving())
            .collect();
        ids.sort_by_key(|&id| (self.worker(id).load.items(), std::cmp::Reverse(id)));
        for &id in ids.iter().take(surplus) {
            self.worker_mut(id).retired = true;
        }
        self.settle(now, out);
    }

    // What workers do.

    /// A place for a worker that the shell starts by itself.
    pub(crate) fn reserve(&mut self) -> WorkerId {
        let worker = Worker {
            state: State::Starting,
            flights: VecDeque::new(),
            load: Load::default(),
            next_seq: 0,
            done: 0,
            retired: false,
            stalled: false,
            moved_at: 0,
            kill_at: None,
        };
        if let Some(id) = self.workers.iter().position(Option::is_none) {
            self.workers[id] = Some(worker);
            return id;
        }
        self.workers.push(Some(worker));
        self.workers.len() - 1
    }

    /// A worker is ready.
    pub(crate) fn up(&mut self, id: WorkerId, now: u64, out: &mut Vec<Action>) {
        let worker = self.worker_mut(id);
        if worker.state == State::Starting {
            worker.state = State::Up;
            worker.moved_at = now;
        }
        self.blocked = false;
        self.fill(Some(id), now, out);
        self.settle(now, out);
    }

    /// What the worker's item `seq` is, and how many of its piece come from there on; nothing if
    /// the worker cannot have a result for that number.
    pub(crate) fn expects(&self, id: WorkerId, seq: u64) -> Option<Piece> {
        let worker = self.workers[id].as_ref()?;
        let flight = &worker.flights[worker.position(seq)?];
        // With one task at a time results come in the order of the items.
        if flight.seq != seq || (self.rules.slots == 1 && worker.flights[0].seq != seq) {
            return None;
        }
        Some(flight.piece)
    }

    /// The worker has finished `n` items from `seq` on, which [`expects`](Self::expects) allowed.
    pub(crate) fn finished(&mut self, id: WorkerId, seq: u64, n: u32, now: u64) {
        self.budget.succeeded();
        self.blocked = false;
        let worker = self.worker_mut(id);
        worker.done += u64::from(n);
        worker.moved_at = now;
        worker.stalled = false;
        let idx = worker.position(seq).expect("the shell asked before");
        let flight = &mut worker.flights[idx];
        let last = flight.piece.len == n;
        flight.seq += u64::from(n);
        flight.piece = flight.piece.part(n, flight.piece.len - n);
        // What was decided about an item was decided about the one that ran.
        flight.verdict = None;
        flight.kill_at = None;
        let ns = flight.ns;
        worker.load.remove(n, ns, last);
        if last {
            worker.flights.remove(idx);
        }
    }

    /// Results of a worker were taken in: it may have room.
    pub(crate) fn refill(&mut self, id: WorkerId, now: u64, out: &mut Vec<Action>) {
        self.fill(Some(id), now, out);
        self.settle(now, out);
    }

    /// A worker spent `ns` on `items` of a class.
    pub(crate) fn measured(&mut self, class: u32, items: u32, ns: u64) {
        if let Some(pace) = self.paces.get_mut(class as usize) {
            pace.record(items, ns);
        }
    }

    /// A worker shall be replaced when it has finished what it holds.
    pub(crate) fn retire(&mut self, id: WorkerId, now: u64, out: &mut Vec<Action>) {
        self.worker_mut(id).retired = true;
        self.settle(now, out);
    }

    /// The worker will start nothing beyond `started` of what it was sent until now.
    pub(crate) fn recalled(&mut self, id: WorkerId, started: u64, now: u64, out: &mut Vec<Action>) {
        let Some(worker) = &mut self.workers[id] else {
            return;
        };
        let mut back = Vec::new();
        while let Some(flight) = worker.flights.back_mut() {
            let end = flight.seq + u64::from(flight.piece.len);
            let n = u32::try_from(end.saturating_sub(started.max(flight.seq))).unwrap_or(0);
            if n == 0 {
                break;
            }
            let kept = flight.piece.len - n;
            worker.load.remove(n, flight.ns, kept == 0);
            let mut part = flight.clone();
            part.piece = flight.piece.part(kept, n);
            // A verdict is about the first item.
            part.verdict = flight.verdict.filter(|_| kept == 0);
            back.push(part);
            if kept == 0 {
                worker.flights.pop_back();
            } else {
                flight.piece.len = kept;
                break;
            }
        }
        worker.stalled = !worker.flights.is_empty();
        let doomed = worker
            .flights
            .iter()
            .any(|flight| flight.kill_at.is_some_and(|at| at <= now));
        if doomed {
            self.kill(id, out);
        }
        for mut flight in back {
            flight.piece.shared_out = true;
            self.put_back(flight, out);
        }
        self.blocked = false;
        self.fill(None, now, out);
        self.settle(now, out);
    }

    /// The worker is gone, or could not be started; it had started `started` items, and its
    /// results were all taken in.
    pub(crate) fn died(&mut self, id: WorkerId, started: u64, now: u64, out: &mut Vec<Action>) {
        let worker = self.workers[id].take().expect("a worker dies once");
        for flight in worker.flights.into_iter().rev() {
            let n_running = started
                .saturating_sub(flight.seq)
                .min(u64::from(flight.piece.len));
            let n_running = u32::try_from(n_running).expect("at most the piece's length");
            let n_waiting = flight.piece.len - n_running;
            if n_waiting > 0 {
                let mut waiting = flight.clone();
                waiting.piece = flight.piece.part(n_running, n_waiting);
                // The verdict was about the item that ran, if one did.
                if n_running > 0 {
                    waiting.verdict = None;
                }
                self.put_back(waiting, out);
            }
            if n_running > 0 {
                let piece = flight.piece.part(0, n_running);
                let again = flight.verdict.is_none()
                    && !flight.abandoned
                    && piece.attempt < self.rules.retries;
                if again {
                    let piece = Piece {
                        attempt: piece.attempt + 1,
                        ..piece
                    };
                    self.requeue(piece, out);
                } else {
                    let why = flight.verdict.unwrap_or(Verdict::Died(id));
                    out.push(Action::Fail { piece, why });
                }
            }
        }
        let expected = matches!(worker.state, State::Leaving | State::Killed);
        if !expected && self.phase != Phase::Ended {
            self.n_restarts += 1;
            if worker.done == 0 {
                match self.budget.failed(now) {
                    restart::Verdict::At(at) => self.start_at = self.start_at.max(at),
                    restart::Verdict::GiveUp => self.give_up(out),
                }
            }
        }
        self.blocked = false;
        self.fill(None, now, out);
        self.settle(now, out);
    }

    // Time.

    /// Does what is due at `now`.
    pub(crate) fn tick(&mut self, now: u64, out: &mut Vec<Action>) {
        for id in 0..self.workers.len() {
            let Some(worker) = &mut self.workers[id] else {
                continue;
            };
            if worker.state != State::Up {
                continue;
            }
            let since = if self.rules.slots == 1 {
                worker.moved_at
            } else {
                0
            };
            let n_timed = if self.rules.slots == 1 { 1 } else { usize::MAX };
            for flight in worker.flights.iter_mut().take(n_timed) {
                flight.check_time(since, now);
            }
            worker.kill_at = worker
                .flights
                .iter()
                .filter_map(|flight| flight.kill_at)
                .min();
            if worker.kill_at.is_some_and(|at| at <= now) {
                // Recalling first tells whether the item runs; only then the worker is killed.
                out.push(Action::Recall(id));
            }
        }
        if self.has_idle_worker() {
            for id in self.ids() {
                if self.stalls_at(id).is_some_and(|at| at <= now) {
                    out.push(Action::Recall(id));
                }
            }
        }
        self.settle(now, out);
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        let mut next = None;
        let mut at = |time: u64| next = Some(next.map_or(time, |next: u64| next.min(time)));
        let idle = self.has_idle_worker();
        for id in self.ids() {
            let worker = self.worker(id);
            if worker.state != State::Up {
                continue;
            }
            let since = if self.rules.slots == 1 {
                worker.moved_at
            } else {
                0
            };
            let n_timed = if self.rules.slots == 1 { 1 } else { usize::MAX };
            for flight in worker.flights.iter().take(n_timed) {
                if let (Some(timeout), None) = (flight.timeout, flight.verdict) {
                    at(flight.sent_at.max(since).saturating_add(timeout));
                }
            }
            worker.kill_at.into_iter().for_each(&mut at);
            if let (true, Some(time)) = (idle, self.stalls_at(id)) {
                at(time);
            }
        }
        if self.n_missing() > 0 {
            at(self.start_at);
        }
        if self.phase == Phase::Closing
            && !self.has_work()
            && let Some(polled_at) = self.streams.values().map(|stream| stream.polled_at).max()
        {
            at(polled_at + STREAM_PATIENCE_NS);
        }
        next
    }

    /// When what lies behind the worker's current item should go to others.
    fn stalls_at(&self, id: WorkerId) -> Option<u64> {
        let worker = self.worker(id);
        let waits = worker.state == State::Up
            && !worker.stalled
            && worker.load.items() > u64::from(self.rules.slots);
        waits.then(|| worker.moved_at.max(worker.flights[0].sent_at) + STALL_NS)
    }

    // Questions.

    /// Whether new work is taken.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open && !self.broken
    }

    /// Whether a stream that was opened before may go on.
    pub(crate) fn takes_stream(&self, id: u64) -> bool {
        self.phase != Phase::Ended && !self.broken && self.streams.contains_key(&id)
    }

    /// Whether too many workers died for nothing.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the pool was terminated.
    pub(crate) fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether no worker is left and none will come.
    pub(crate) fn is_over(&self) -> bool {
        (self.phase != Phase::Open || self.broken) && self.workers.iter().all(Option::is_none)
    }

    /// Tasks at once in one worker.
    pub(crate) fn slots(&self) -> usize {
        self.rules.slots as usize
    }

    /// Workers that should be there.
    pub(crate) fn target(&self) -> usize {
        self.target
    }

    /// Workers that died without being asked to.
    pub(crate) fn n_restarts(&self) -> u64 {
        self.n_restarts
    }

    /// Single tasks and pieces of streams that wait for a worker.
    pub(crate) fn n_queued(&self) -> usize {
        let singles = self.singles.len() - self.unwanted.len();
        let items = |stream: &Stream| {
            stream
                .queue
                .iter()
                .map(|piece| piece.len as usize)
                .sum::<usize>()
        };
        singles + self.streams.values().map(items).sum::<usize>()
    }

    /// The items that a worker has finished and those it holds, and since when it is at the
    /// present one.
    pub(crate) fn progress(&self, id: WorkerId) -> (u64, u64, u64) {
        let worker = self.worker(id);
        let since = worker.flights.front().map_or(0, |flight| flight.sent_at);
        (worker.done, worker.load.items(), worker.moved_at.max(since))
    }

    /// The item that a worker is at.
    pub(crate) fn current(&self, id: WorkerId) -> Option<Piece> {
        self.worker(id).flights.front().map(|flight| flight.piece)
    }

    /// Whether a worker gets no more work.
    pub(crate) fn is_leaving(&self, id: WorkerId) -> bool {
        let worker = self.worker(id);
        worker.retired || matches!(worker.state, State::Leaving | State::Killed)
    }

    /// Whether a worker's process is still being started.
    pub(crate) fn is_starting(&self, id: WorkerId) -> bool {
        self.worker(id).state == State::Starting
    }

    /// The places that are taken.
    pub(crate) fn ids(&self) -> impl Iterator<Item = WorkerId> {
        let taken = |(id, worker): (usize, &Option<Worker>)| worker.is_some().then_some(id);
        self.workers.iter().enumerate().filter_map(taken)
    }

    /// The number of items that a worker was sent.
    pub(crate) fn n_sent(&self, id: WorkerId) -> u64 {
        self.workers[id]
            .as_ref()
            .map_or(0, |worker| worker.next_seq)
    }

    // Decisions.

    /// Gives queued pieces to workers that have room, `hint` first.
    fn fill(&mut self, hint: Option<WorkerId>, now: u64, out: &mut Vec<Action>) {
        while !self.blocked {
            let Some(piece) = self.peek() else { return };
            let Some(id) = self.pick(hint, piece) else {
                self.blocked = true;
                return;
            };
            let worker = self.worker(id);
            let mut most = self.rules.tasks_per_worker - worker.next_seq;
            if self.rules.slots > 1 {
                most = 1;
            } else if piece.shared_out {
                let n_idle = self.ids().filter(|&id| self.is_idle(id)).count().max(1);
                most = most.min((piece.len as usize).div_ceil(n_idle) as u64);
            }
            let piece = self.pop(u32::try_from(most).unwrap_or(u32::MAX));
            self.send(id, piece, now, out);
        }
    }

    fn send(&mut self, id: WorkerId, piece: Piece, now: u64, out: &mut Vec<Action>) {
        let ns = self.paces[piece.class as usize].ns();
        let (timeout, quota) = (self.rules.task_timeout, self.rules.tasks_per_worker);
        let worker = self.worker_mut(id);
        let first_seq = worker.next_seq;
        if worker.flights.is_empty() {
            worker.moved_at = now;
        }
        worker.next_seq += u64::from(piece.len);
        worker.retired |= worker.next_seq >= quota;
        worker.load.add(piece.len, ns);
        worker.flights.push_back(Flight {
            piece,
            seq: first_seq,
            ns,
            sent_at: now,
            timeout,
            verdict: None,
            kill_at: None,
            abandoned: false,
        });
        let retired = worker.retired;
        out.push(Action::Send {
            worker: id,
            piece,
            first_seq,
        });
        if retired {
            self.start_missing(now, out);
        }
    }

    /// A worker with room for `piece`: an idle one, else the one with least to do.
    fn pick(&self, hint: Option<WorkerId>, piece: Piece) -> Option<WorkerId> {
        let ns = self.paces[piece.class as usize].ns();
        // A task that took a worker down may do so again: it gets no company.
        let alone = piece.attempt > 0;
        let slots = u64::from(self.rules.slots);
        let fits = |id: WorkerId| {
            let worker = self.worker(id);
            worker.state == State::Up
                && !worker.retired
                && !worker.stalled
                && if alone {
                    worker.load.items() < slots
                } else {
                    worker.load.has_room(slots, ns)
                }
        };
        if let Some(id) = hint
            && self.workers[id].is_some()
            && fits(id)
        {
            return Some(id);
        }
        let mut best: Option<(u64, WorkerId)> = None;
        for id in self.ids() {
            let items = self.worker(id).load.items();
            if best.is_none_or(|(least, _)| items < least) && fits(id) {
                if items == 0 {
                    return Some(id);
                }
                best = Some((items, id));
            }
        }
        best.map(|(_, id)| id)
    }

    /// Brings workers and phase in line with each other.
    fn settle(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.start_missing(now, out);
        let leave = match self.phase {
            Phase::Closing => {
                let unattended =
                    |stream: &Stream| stream.polled_at.saturating_add(STREAM_PATIENCE_NS) <= now;
                !self.has_work() && self.streams.values().all(unattended)
            }
            _ => self.broken,
        };
        for id in 0..self.workers.len() {
            let Some(worker) = &mut self.workers[id] else {
                continue;
            };
            if worker.state == State::Starting && leave {
                worker.state = State::Killed;
                out.push(Action::Kill(id));
            } else if worker.state == State::Up
                && worker.flights.is_empty()
                && (worker.retired || leave)
            {
                worker.state = State::Leaving;
                out.push(Action::Stop(id));
            }
        }
        if leave {
            self.streams.clear();
        }
    }

    fn start_missing(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.start_at > now {
            return;
        }
        for _ in 0..self.n_missing() {
            let id = self.reserve();
            out.push(Action::Start(id));
        }
    }

    fn n_missing(&self) -> usize {
        let wanted = match self.phase {
            Phase::Open => !self.broken,
            Phase::Closing => !self.broken && (!self.turns.is_empty() || !self.streams.is_empty()),
            Phase::Ended => false,
        };
        if wanted {
            self.target.saturating_sub(self.n_serving())
        } else {
            0
        }
    }

    fn n_serving(&self) -> usize {
        self.workers
            .iter()
            .flatten()
            .filter(|worker| worker.is_serving())
            .count()
    }

    fn give_up(&mut self, out: &mut Vec<Action>) {
        self.broken = true;
        self.fail_queued(Verdict::GaveUp, out);
    }

    fn fail_queued(&mut self, why: Verdict, out: &mut Vec<Action>) {
        while self.peek().is_some() {
            let piece = self.pop(u32::MAX);
            out.push(Action::Fail { piece, why });
        }
    }

    fn kill(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        let worker = self.worker_mut(id);
        if worker.state != State::Killed {
            worker.state = State::Killed;
            out.push(Action::Kill(id));
        }
    }

    /// Queues again what a worker held and never started.
    fn put_back(&mut self, flight: Flight, out: &mut Vec<Action>) {
        let mut piece = flight.piece;
        // A verdict is about the first item.
        if let Some(why) = flight.verdict {
            out.push(Action::Fail {
                piece: piece.part(0, 1),
                why,
            });
            piece = piece.part(1, piece.len - 1);
        }
        if piece.len == 0 {
            return;
        }
        if flight.abandoned || self.phase == Phase::Ended {
            let why = Verdict::Cancelled;
            out.push(Action::Fail { piece, why });
        } else if self.broken {
            let why = Verdict::GaveUp;
            out.push(Action::Fail { piece, why });
        } else {
            self.requeue(piece, out);
        }
    }

    fn requeue(&mut self, piece: Piece, out: &mut Vec<Action>) {
        if piece.source == Source::Single {
            out.push(Action::Requeued(piece.first));
        }
        self.enqueue_front(piece);
    }

    // The queues.

    fn enqueue_back(&mut self, piece: Piece) {
        let Some(queue) = self.queue_mut(piece.source) else {
            return;
        };
        queue.push_back(piece);
        if queue.len() == 1 {
            self.turns.push_back(piece.source);
        }
    }

    fn enqueue_front(&mut self, piece: Piece) {
        let Some(queue) = self.queue_mut(piece.source) else {
            return;
        };
        queue.push_front(piece);
        if queue.len() == 1 {
            self.turns.push_front(piece.source);
        }
    }

    /// The piece whose turn it is.
    fn peek(&mut self) -> Option<Piece> {
        loop {
            let source = *self.turns.front()?;
            let front = self
                .queue_mut(source)
                .and_then(|queue| queue.front())
                .copied();
            match front {
                Some(piece)
                    if source == Source::Single
                        && !self.unwanted.is_empty()
                        && self.unwanted.remove(&piece.first) =>
                {
                    self.singles.pop_front();
                }
                Some(piece) => return Some(piece),
                None => {}
            }
            if self.queue_mut(source).is_none_or(|queue| queue.is_empty()) {
                self.turns.pop_front();
            }
        }
    }

    /// Takes up to `most` items of the piece whose turn it is.
    fn pop(&mut self, most: u32) -> Piece {
        let source = self.turns.pop_front().expect("`peek` saw a piece");
        let queue = self
            .queue_mut(source)
            .expect("a source with a turn has a queue");
        let whole = queue.pop_front().expect("a source with a turn has a piece");
        let piece = whole.part(0, whole.len.min(most));
        if piece.len < whole.len {
            queue.push_front(whole.part(piece.len, whole.len - piece.len));
        }
        if !queue.is_empty() {
            self.turns.push_back(source);
        }
        piece
    }

    fn queue_mut(&mut self, source: Source) -> Option<&mut VecDeque<Piece>> {
        match source {
            Source::Single => Some(&mut self.singles),
            Source::Stream(id) => Some(&mut self.streams.get_mut(&id)?.queue),
        }
    }

    // The table.

    fn worker(&self, id: WorkerId) -> &Worker {
        self.workers[id].as_ref().expect("the place is taken")
    }

    fn worker_mut(&mut self, id: WorkerId) -> &mut Worker {
        self.workers[id].as_mut().expect("the place is taken")
    }

    fn flight_mut(&mut self, id: WorkerId, seq: u64) -> Option<&mut Flight> {
        let worker = self.workers[id].as_mut()?;
        let idx = worker.position(seq)?;
        Some(&mut worker.flights[idx])
    }

    fn is_idle(&self, id: WorkerId) -> bool {
        let worker = self.worker(id);
        worker.state == State::Up && !worker.retired && worker.flights.is_empty()
    }

    fn has_idle_worker(&self) -> bool {
        self.turns.is_empty() && self.ids().any(|id| self.is_idle(id))
    }

    fn has_work(&self) -> bool {
        let holds = |worker: &Worker| !worker.flights.is_empty();
        !self.turns.is_empty() || self.workers.iter().flatten().any(holds)
    }
}

#[cfg(test)]
mod tests;
