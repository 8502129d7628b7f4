//! Who plays: the victim, the helpers that do rounds when told, and what they share.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio_multiprocess::Process;
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::shared::RawArray;
use tokio_multiprocess::sync::{Barrier, Condition, Event, Lock, Semaphore};

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
}

/// The objects that all of them share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) lock: Lock,
    pub(crate) semaphore: Semaphore,
    pub(crate) event: Event,
    pub(crate) condition: Condition,
    pub(crate) barrier: Barrier,
    pub(crate) cells: RawArray<u64>,
}

/// Permits of the semaphore.
pub(crate) const PERMITS: usize = 1;

/// Cells: who is inside the lock, two numbers that are equal outside it, faults, the victim's end.
const INSIDE: usize = 0;
const FIRST: usize = 1;
const SECOND: usize = 2;
const FAULTS: usize = 3;
const DONE: usize = 4;
const N_CELLS: usize = 5;

impl Stage {
    pub(crate) fn new() -> io::Result<Self> {
        let lock = Lock::new()?;
        Ok(Self {
            condition: Condition::new(&lock)?,
            lock,
            semaphore: Semaphore::new(PERMITS)?,
            event: Event::new()?,
            barrier: Barrier::new(2)?,
            cells: RawArray::zeroed(N_CELLS)?,
        })
    }

    /// Rounds in which the lock let two in at one time, or hid that somebody had died inside.
    pub(crate) fn faults(&self) -> u64 {
        self.cells.load(FAULTS)
    }

    pub(crate) fn perform(&self, act: Act) {
        match act {
            Act::Lock => {
                let guard = self.lock.blocking_lock().expect("the creator lives");
                self.work_inside(guard.recovered());
            }
            Act::TryLock => {
                if let Ok(guard) = self.lock.try_lock_ref() {
                    self.work_inside(guard.recovered());
                }
            }
            Act::Semaphore => drop(self.semaphore.blocking_acquire()),
            Act::Set => self.event.set(),
            Act::Await => drop(self.event.blocking_wait()),
            Act::Notify => {
                let guard = self.lock.blocking_lock().expect("the creator lives");
                self.work_inside(guard.recovered());
                self.condition.notify_one();
            }
            Act::Wait => {
                let guard = self.lock.blocking_lock().expect("the creator lives");
                self.work_inside(guard.recovered());
                let guard = self
                    .condition
                    .blocking_wait(guard)
                    .expect("the creator lives");
                self.work_inside(guard.recovered());
            }
            Act::Barrier => drop(self.barrier.blocking_wait()),
        }
    }

    /// Puts right what somebody left who died inside the lock.
    pub(crate) fn recover(&self) {
        self.cells.store(INSIDE, 0);
        self.cells.store(SECOND, self.cells.load(FIRST));
    }

    fn work_inside(&self, recovered: bool) {
        let cells = &self.cells;
        if recovered {
            self.recover();
        }
        let alone = cells.update(INSIDE, |_| 1) == 0;
        if !alone || cells.load(FIRST) != cells.load(SECOND) {
            cells.update(FAULTS, |n| n + 1);
        }
        cells.update(FIRST, |n| n + 1);
        cells.update(SECOND, |n| n + 1);
        cells.store(INSIDE, 0);
    }
}

/// A process that does what it is told, round by round.
pub(crate) struct Helper {
    process: Process<()>,
    tid: i32,
    orders: PipeWriter,
    reports: PipeReader,
}

type HelperArgument = (Stage, Fd<PipeReader>, Fd<PipeWriter>);

fn help((stage, Fd(mut orders), Fd(mut reports)): HelperArgument) {
    let _ = reports.write_all(&trace::own_tid().to_le_bytes());
    let mut order = [0];
    while orders.read_exact(&mut order).is_ok() {
        stage.perform(ACTS[usize::from(order[0])]);
        let _ = reports.write_all(&[0]);
    }
}

const ACTS: [Act; 8] = [
    Act::Lock,
    Act::TryLock,
    Act::Semaphore,
    Act::Set,
    Act::Await,
    Act::Notify,
    Act::Wait,
    Act::Barrier,
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
            process,
            tid,
            orders,
            reports,
        })
    }

    /// Has it begin a round.
    pub(crate) fn tell(&mut self, act: Act) -> io::Result<()> {
        let order = ACTS
            .iter()
            .position(|known| *known == act)
            .unwrap_or_default();
        self.orders.write_all(&[order as u8])
    }

    /// Whether it finishes its round in time.
    pub(crate) fn finishes(&mut self, within: Duration) -> bool {
        if !can_read(&self.reports, within) {
            return false;
        }
        self.reports.read_exact(&mut [0]).is_ok()
    }

    /// Comes back when it sleeps in the middle of its round, or has finished it.
    pub(crate) fn settle(&self) {
        let start = Instant::now();
        let stat = format!("/proc/{}/task/{}/stat", self.process.pid(), self.tid);
        while start.elapsed() < Duration::from_millis(50) {
            if can_read(&self.reports, Duration::ZERO) {
                return;
            }
            let sleeps = fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
            if sleeps {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Whether it has finished its round, of which it has not been asked yet.
    pub(crate) fn has_finished(&self) -> bool {
        can_read(&self.reports, Duration::ZERO)
    }

    pub(crate) fn kill(&self) {
        let _ = self.process.kill();
    }
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
    thread: Option<Traced>,
    stage: Stage,
    _go: PipeWriter,
}

type VictimArgument = (Stage, Act, Fd<PipeReader>, Fd<PipeWriter>);

fn suffer((stage, act, Fd(mut go), Fd(mut report)): VictimArgument) {
    let _ = report.write_all(&trace::own_tid().to_le_bytes());
    let mut order = [0];
    if go.read_exact(&mut order).is_err() {
        return;
    }
    stage.perform(act);
    stage.cells.store(DONE, 1);
    // Lives on until it is killed.
    let _ = go.read_exact(&mut order);
}

impl Victim {
    /// A victim that stands before the first instruction of its act.
    pub(crate) fn start(runtime: &Runtime, stage: &Stage, act: Act) -> io::Result<Self> {
        stage.cells.store(DONE, 0);
        let (read_go, mut go) = io::pipe()?;
        let (mut report, write_report) = io::pipe()?;
        let argument = (stage.clone(), act, Fd(read_go), Fd(write_report));
        let process = runtime.block_on(Process::start(suffer, argument));
        let process = process.map_err(io::Error::other)?;
        let mut tid = [0; 4];
        report.read_exact(&mut tid)?;
        let thread = Traced::seize(process.pid(), i32::from_le_bytes(tid))?;
        go.write_all(&[0])?;
        Ok(Self {
            process,
            thread: Some(thread),
            stage: stage.clone(),
            _go: go,
        })
    }

    /// Goes on by `n` instructions of our own code. False when the act is over before, or sleeps.
    pub(crate) fn advance(&mut self, n: u64) -> bool {
        let Some(thread) = &self.thread else {
            return false;
        };
        let mut left = n;
        while left > 0 {
            if self.stage.cells.load(DONE) != 0 || thread.step() != Step::Done {
                return false;
            }
            left -= u64::from(thread.is_in_own_code());
        }
        self.stage.cells.load(DONE) == 0
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
