//! Who plays: the victim, the helpers that do rounds when told, and what they share.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess::Process;
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::shared::RawArray;
use tokio_multiprocess::sync::{
    Barrier, Condition, Event, Lock, LockGuard, Permit, RLock, RLockGuard, Semaphore,
};

use crate::trace::{self, Step, Traced};

/// How long something may take that must come. Many breaches of the rules cost as much each.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(mutants) { 3 } else { 20 });

/// What is done, and interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Take the lock, work inside, give it back.
    Lock,
    /// Take the lock if it is free, and give it back.
    TryLock,
    /// Take the recursive lock twice, work inside, give it back.
    RLock,
    /// Take a permit and give it back.
    Semaphore,
    /// Raise the flag.
    Set,
    /// Wait for the flag.
    Await,
    /// Notify one, holding the lock.
    Notify,
    /// Wait for a notification.
    Wait,
    /// Meet the other party.
    Barrier,
    /// Begin to wait for the lock, and give up.
    CancelLock,
    /// Begin to wait for a permit, and give up.
    CancelSemaphore,
    /// Begin to wait for the flag, and give up.
    CancelAwait,
    /// Begin to wait for a notification, and give up.
    CancelWait,
    /// Come to the barrier, and leave.
    CancelBarrier,
    /// Take the lock, until it is told to give it back.
    TakeLock,
    /// Give it back.
    GiveLock,
    /// The same with the recursive lock.
    TakeRLock,
    /// Give it back.
    GiveRLock,
    /// The same with a permit.
    TakePermit,
    /// Give it back.
    GivePermit,
}

/// The objects that all of them share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) lock: Lock,
    pub(crate) rlock: RLock,
    pub(crate) semaphore: Semaphore,
    pub(crate) event: Event,
    pub(crate) condition: Condition,
    pub(crate) barrier: Barrier,
    pub(crate) cells: RawArray<u64>,
}

/// What somebody has between two rounds.
#[derive(Default)]
pub(crate) struct Held {
    lock: Option<LockGuard>,
    rlock: Option<RLockGuard>,
    permit: Option<Permit>,
}

/// Permits of the semaphore.
pub(crate) const PERMITS: usize = 1;

/// Cells: faults, the victim's end, whether its wait for a notification came to an end; then for each
/// lock who is inside and two numbers that are equal outside it.
const FAULTS: usize = 0;
const DONE: usize = 1;
const WOKEN: usize = 2;
const LOCK_ROOM: usize = 3;
const RLOCK_ROOM: usize = 6;
const N_CELLS: usize = 9;

impl Stage {
    pub(crate) fn new() -> io::Result<Self> {
        let lock = Lock::new()?;
        Ok(Self {
            condition: Condition::new(&lock)?,
            lock,
            rlock: RLock::new()?,
            semaphore: Semaphore::new(PERMITS)?,
            event: Event::new()?,
            barrier: Barrier::new(2)?,
            cells: RawArray::zeroed(N_CELLS)?,
        })
    }

    /// Rounds in which a lock let two in at one time, or hid that somebody had died inside.
    pub(crate) fn faults(&self) -> u64 {
        self.cells.load(FAULTS)
    }

    /// Whether the victim has gone on after its wait for a notification.
    pub(crate) fn was_woken(&self) -> bool {
        self.cells.load(WOKEN) != 0
    }

    /// Whether anybody has anything.
    pub(crate) fn is_taken(&self) -> bool {
        self.lock.is_locked()
            || self.rlock.is_locked()
            || self.semaphore.available_permits() < PERMITS
    }

    pub(crate) fn perform(&self, act: Act, held: &mut Held) {
        match act {
            Act::Lock => drop(self.take_lock()),
            Act::TryLock => {
                if let Ok(guard) = self.lock.try_lock_ref() {
                    self.work_inside(LOCK_ROOM, guard.recovered());
                }
            }
            Act::RLock => drop(self.take_rlock()),
            Act::Semaphore => drop(self.semaphore.blocking_acquire()),
            Act::Set => self.event.set(),
            Act::Await => drop(self.event.blocking_wait()),
            Act::Notify => {
                let _guard = self.take_lock();
                self.condition.notify_one();
            }
            Act::Wait => {
                let waited = self.condition.blocking_wait(self.take_lock());
                let guard = waited.expect("the creator lives");
                self.work_inside(LOCK_ROOM, guard.recovered());
                self.cells.store(WOKEN, 1);
            }
            Act::Barrier => drop(self.barrier.blocking_wait()),
            Act::CancelLock => drop(give_up(self.lock.lock())),
            Act::CancelSemaphore => drop(give_up(self.semaphore.acquire())),
            Act::CancelAwait => drop(give_up(self.event.wait())),
            Act::CancelWait => {
                if give_up(self.condition.wait(self.take_lock())).is_ready() {
                    self.cells.store(WOKEN, 1);
                }
            }
            Act::CancelBarrier => drop(give_up(self.barrier.wait())),
            Act::TakeLock => {
                held.lock = Some(self.take_lock());
                self.enter(LOCK_ROOM, true);
            }
            Act::GiveLock => {
                self.enter(LOCK_ROOM, false);
                held.lock = None;
            }
            Act::TakeRLock => held.rlock = Some(self.take_rlock().0),
            Act::GiveRLock => held.rlock = None,
            Act::TakePermit => held.permit = self.semaphore.blocking_acquire().ok(),
            Act::GivePermit => held.permit = None,
        }
    }

    fn take_lock(&self) -> LockGuard {
        let guard = self.lock.blocking_lock().expect("the creator lives");
        self.work_inside(LOCK_ROOM, guard.recovered());
        guard
    }

    fn take_rlock(&self) -> (RLockGuard, RLockGuard) {
        let guard = self.rlock.blocking_lock().expect("the creator lives");
        let again = guard.again();
        self.work_inside(RLOCK_ROOM, guard.recovered());
        (guard, again)
    }

    /// Puts right what somebody left who died inside the lock.
    pub(crate) fn recover(&self) {
        self.recover_room(LOCK_ROOM);
    }

    fn recover_room(&self, room: usize) {
        self.cells.store(room, 0);
        self.cells.store(room + 2, self.cells.load(room + 1));
    }

    /// Stays inside for a while, or leaves: nobody else comes in meanwhile.
    fn enter(&self, room: usize, inside: bool) {
        let was_inside = self.cells.update(room, |_| inside.into()) != 0;
        if was_inside == inside {
            self.cells.update(FAULTS, |n| n + 1);
        }
    }

    fn work_inside(&self, room: usize, recovered: bool) {
        let cells = &self.cells;
        if recovered {
            self.recover_room(room);
        }
        let alone = cells.update(room, |_| 1) == 0;
        if !alone || cells.load(room + 1) != cells.load(room + 2) {
            cells.update(FAULTS, |n| n + 1);
        }
        cells.update(room + 1, |n| n + 1);
        cells.update(room + 2, |n| n + 1);
        cells.store(room, 0);
    }
}

/// Begins to wait for something, and gives up.
fn give_up<F: Future>(wait: F) -> Poll<F::Output> {
    let mut wait = pin!(wait);
    wait.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// A process that does what it is told, round by round.
pub(crate) struct Helper {
    process: Process<()>,
    stat: String,
    orders: PipeWriter,
    reports: PipeReader,
    /// Rounds that it has not reported yet.
    n_pending: usize,
}

type HelperArgument = (Stage, Fd<PipeReader>, Fd<PipeWriter>);

fn help((stage, Fd(mut orders), Fd(mut reports)): HelperArgument) {
    let _ = reports.write_all(&trace::own_tid().to_le_bytes());
    let mut held = Held::default();
    let mut order = [0];
    while orders.read_exact(&mut order).is_ok() {
        stage.perform(ROUNDS[usize::from(order[0])], &mut held);
        let _ = reports.write_all(&[0]);
    }
}

/// What a helper can be told.
const ROUNDS: [Act; 15] = [
    Act::Lock,
    Act::TryLock,
    Act::RLock,
    Act::Semaphore,
    Act::Set,
    Act::Await,
    Act::Notify,
    Act::Wait,
    Act::Barrier,
    Act::TakeLock,
    Act::GiveLock,
    Act::TakeRLock,
    Act::GiveRLock,
    Act::TakePermit,
    Act::GivePermit,
];

impl Helper {
    pub(crate) fn start(runtime: &Runtime, stage: &Stage) -> io::Result<Self> {
        let (read_orders, orders) = io::pipe()?;
        let (mut reports, write_reports) = io::pipe()?;
        let argument = (stage.clone(), Fd(read_orders), Fd(write_reports));
        let process = runtime.block_on(Process::start(help, argument));
        let process = process.map_err(io::Error::other)?;
        let mut tid = [0; 4];
        reports.read_exact(&mut tid)?;
        let tid = i32::from_le_bytes(tid);
        Ok(Self {
            stat: format!("/proc/{}/task/{tid}/stat", process.pid()),
            process,
            orders,
            reports,
            n_pending: 0,
        })
    }

    /// Has it do one more round, and comes back when it has, or sleeps in the middle of it.
    pub(crate) fn tell(&mut self, act: Act) -> io::Result<()> {
        let order = ROUNDS.iter().position(|known| *known == act);
        let order = order.ok_or(io::ErrorKind::InvalidInput)?;
        self.orders.write_all(&[order as u8])?;
        self.n_pending += 1;
        let start = Instant::now();
        while !self.finishes(Duration::ZERO) && start.elapsed() < Duration::from_millis(50) {
            if is_asleep(&self.stat) {
                break;
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Whether it finishes all its rounds in time.
    pub(crate) fn finishes(&mut self, within: Duration) -> bool {
        while self.n_pending > 0 {
            if !can_read(&self.reports, within) || self.reports.read_exact(&mut [0]).is_err() {
                return false;
            }
            self.n_pending -= 1;
        }
        true
    }

    pub(crate) fn kill(&self) {
        let _ = self.process.kill();
    }
}

/// Whether a thread sleeps, by what the kernel says about it.
fn is_asleep(stat: &str) -> bool {
    fs::read_to_string(stat).is_ok_and(|stat| stat.contains(") S "))
}

/// Whether something can be read within this time.
fn can_read(pipe: &PipeReader, within: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, within).is_ok_and(|ready| ready > 0)
}

/// A process that performs one act, instruction by instruction.
pub(crate) struct Victim {
    process: Process<()>,
    stat: String,
    thread: Option<Traced>,
    stage: Stage,
    /// It sleeps, and that has been counted as an instruction.
    sleeps: bool,
    _go: PipeWriter,
}

/// How far a victim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    /// As far as it should.
    There,
    /// It sleeps before, until somebody wakes it.
    Sleeps,
    /// The act was over before.
    Over,
}

type VictimArgument = (Stage, Act, Fd<PipeReader>, Fd<PipeWriter>);

fn suffer((stage, act, Fd(mut go), Fd(mut report)): VictimArgument) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    warm_up();
    trace::outlive_traps();
    let _ = report.write_all(&trace::own_tid().to_le_bytes());
    let mut order = [0];
    if go.read_exact(&mut order).is_err() {
        return;
    }
    stage.perform(act, &mut Held::default());
    stage.cells.store(DONE, 1);
    // Lives on until it is killed.
    let _ = go.read_exact(&mut order);
}

/// Waits once for something else, so that what a process looks up only once (how many processors
/// there are, for one) is no part of the act.
fn warm_up() {
    if let Ok(lock) = Lock::new()
        && let Ok(_guard) = lock.try_lock()
    {
        drop(give_up(lock.lock()));
    }
}

impl Victim {
    /// A victim that stands before the first instruction of its act.
    pub(crate) fn start(runtime: &Runtime, stage: &Stage, act: Act) -> io::Result<Self> {
        stage.cells.store(DONE, 0);
        stage.cells.store(WOKEN, 0);
        let (read_go, mut go) = io::pipe()?;
        let (mut report, write_report) = io::pipe()?;
        let argument = (stage.clone(), act, Fd(read_go), Fd(write_report));
        let process = runtime.block_on(Process::start(suffer, argument));
        let process = process.map_err(io::Error::other)?;
        let mut tid = [0; 4];
        report.read_exact(&mut tid)?;
        let tid = i32::from_le_bytes(tid);
        let thread = Traced::seize(process.pid(), tid)?;
        go.write_all(&[0])?;
        Ok(Self {
            stat: format!("/proc/{}/task/{tid}/stat", process.pid()),
            process,
            thread: Some(thread),
            stage: stage.clone(),
            sleeps: false,
            _go: go,
        })
    }

    /// Goes on by `left` instructions of our own code, and takes them off it; a sleep counts as one.
    pub(crate) fn advance(&mut self, left: &mut u64) -> Advance {
        let Some(thread) = &self.thread else {
            return Advance::Over;
        };
        while *left > 0 {
            if self.stage.cells.load(DONE) != 0 {
                return Advance::Over;
            }
            match thread.step() {
                Step::Ended => return Advance::Over,
                Step::Sleeps if self.sleeps => return Advance::Sleeps,
                Step::Sleeps => {
                    self.sleeps = true;
                    *left -= 1;
                }
                Step::Done => {
                    self.sleeps = false;
                    *left -= u64::from(thread.is_in_own_code());
                }
            }
        }
        if self.stage.cells.load(DONE) == 0 {
            Advance::There
        } else {
            Advance::Over
        }
    }

    /// Whether it sleeps in the middle of its act.
    pub(crate) fn sleeps(&self) -> bool {
        self.sleeps
    }

    /// What of its doings others can see, as a number that changes with it.
    pub(crate) fn trail(&self) -> u64 {
        self.thread.as_ref().map_or(0, Traced::trail)
    }

    /// What the kernel says about where it stands.
    pub(crate) fn whereabouts(&self) -> String {
        let place = self.stat.trim_end_matches("stat");
        let said = ["stat", "wchan", "syscall"].map(|file| {
            let said = fs::read_to_string(format!("{place}{file}")).unwrap_or_default();
            said.split_whitespace()
                .take(6)
                .collect::<Vec<_>>()
                .join(" ")
        });
        said.join("; ")
    }

    /// Whether it comes to the end of its act.
    pub(crate) fn finishes(&self, within: Duration) -> bool {
        let start = Instant::now();
        while self.stage.cells.load(DONE) == 0 {
            if start.elapsed() > within {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Comes back when it sleeps in the middle of its act, or is through; it was let go before.
    pub(crate) fn settle(&self, act: Act) {
        let start = Instant::now();
        // A notification is for those only who wait, and it may sleep for other reasons before; one
        // that leaves the barrier has to be gone.
        let matters = matches!(act, Act::Wait | Act::CancelBarrier);
        let waits = |within| matters && start.elapsed() < within;
        while self.stage.cells.load(DONE) == 0 {
            let is_there = match self.stage.condition.n_waiting() {
                0 if waits(PATIENCE) => false,
                0 => is_asleep(&self.stat) || start.elapsed() > Duration::from_millis(50),
                _ => true,
            };
            if is_there {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Lets it run on; it stays alive after its act.
    pub(crate) fn let_go(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.let_go();
        }
    }

    pub(crate) fn kill(&mut self) {
        match self.thread.take() {
            Some(thread) => thread.kill(self.process.pid()),
            None => drop(self.process.kill()),
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}
