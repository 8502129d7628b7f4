//! The supervisor: the one OS thread that creates processes, owns their pidfds and reaps them.
//!
//! It is a thread and not a task, since it has to work while every tokio thread is blocked and
//! after every runtime was dropped, and since `PR_SET_PDEATHSIG` follows the *thread* that created
//! a process: a child made by one of tokio's blocking threads would die when that thread has been
//! idle for ten seconds. It starts at the first use and never ends.
//!
//! All state is in one table under a mutex that is never held during a wait or a callback. So any
//! thread can add a child without waking the supervisor: it inserts the record and adds the
//! descriptors to the epoll set by itself. Which callbacks a child has is a [`Listener`] of the
//! layer above.
//!
//! Other files: what a child's record does when its descriptors are ready (`child`), what runs
//! when (`timer`), descriptors of the layers above (`watch`), who kills when this process is gone
//! (`guardian`), stderr (`stderr`).

mod child;
mod guardian;
mod stderr;
mod timer;
mod watch;

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::AsFd as _;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use self::child::{
    Announcement, BORN, Birth, Cause, Control, End, Listener, NOT_BORN, NewChild, Next,
};
use self::child::{Child, Part};
pub(crate) use self::guardian::{Entry, List};
use self::stderr::Forward;
use self::timer::{TimerId, Timers};
pub(crate) use self::watch::{Watch, watch, watch_with_deaths};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::eventfd::EventFd;
use crate::sys::pidfd::{self, Ended, Reap};
use crate::sys::rlimit::{self, CpuMask};
use crate::sys::timerfd::TimerFd;
use crate::sys::{fork_epoch, inherited_fds, signal, tasks};

/// A job for the supervisor's thread.
type Job = Box<dyn FnOnce() + Send>;

/// The supervisor of this process.
pub(crate) struct Supervisor {
    epoll: Epoll,
    /// Wakes the thread for what is in the table's inbox.
    doorbell: EventFd,
    /// Wakes the thread for the first timer. Whoever sets an earlier one sets it, without a wake-up.
    alarm: TimerFd,
    table: Mutex<Table>,
    watched: watch::Watched,
    next_id: AtomicU64,
    thread_id: AtomicU32,
    affinity: OnceLock<CpuMask>,
    pub(crate) guardian: guardian::Guardian,
    forward: Mutex<Forward>,
}

#[derive(Default)]
struct Table {
    children: HashMap<u64, Child>,
    inbox: Vec<Job>,
    timers: Timers,
}

/// The epoll token of the doorbell; children have ids above 0.
const DOORBELL: u64 = 0;
/// The epoll token of the alarm; the part of no child.
const ALARM: u64 = 2;
/// The epoll token of our own stderr while it takes no more; the part of no child.
const STDERR: u64 = 1;

/// A forked child begins with none, and with no thread to run it, whatever its parent has: so it
/// stands beside the process that it belongs to, in case the application forks by itself.
static SUPERVISOR: RwLock<Option<(u64, &'static Supervisor)>> = RwLock::new(None);

/// The supervisor of this process, started if need be.
pub(crate) fn get() -> io::Result<&'static Supervisor> {
    if let Some(supervisor) = running() {
        return Ok(supervisor);
    }
    let mut place = SUPERVISOR.write().unwrap_or_else(PoisonError::into_inner);
    let epoch = fork_epoch::current();
    if let Some((known, supervisor)) = *place
        && known == epoch
    {
        return Ok(supervisor);
    }
    // Never freed: its thread never ends.
    let supervisor: &'static _ = Box::leak(Box::new(Supervisor::new()?));
    let name = "mp-supervisor".to_owned();
    thread::Builder::new()
        .name(name)
        .spawn(move || supervisor.run())?;
    *place = Some((epoch, supervisor));
    Ok(supervisor)
}

/// The supervisor, if one has been started.
pub(crate) fn running() -> Option<&'static Supervisor> {
    let place = SUPERVISOR.read().unwrap_or_else(PoisonError::into_inner);
    place
        .filter(|(epoch, _)| *epoch == fork_epoch::current())
        .map(|(_, supervisor)| supervisor)
}

/// In a forked child, on the thread that was the supervisor's: forgets the parent's supervisor,
/// and closes its descriptors, without dropping what belongs to the parent's runtimes.
pub(crate) fn forget_inherited() {
    let mut place = SUPERVISOR.write().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, inherited)) = place.take() {
        inherited.watched.close_inherited();
        let mut fds = vec![
            inherited.epoll.as_fd(),
            inherited.doorbell.as_fd(),
            inherited.alarm.as_fd(),
            inherited.guardian.file(),
        ];
        let table = inherited.table();
        fds.extend(table.children.values().flat_map(Child::fds));
        inherited_fds::close(&fds);
    }
}

/// Runs `job` on the supervisor's thread once `delay` has passed.
pub(crate) fn after(delay: Duration, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    get()?.at(Instant::now() + delay, Box::new(job));
    Ok(())
}

impl Supervisor {
    fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let doorbell = EventFd::new()?;
        epoll.add(&doorbell, DOORBELL, Interest::Read)?;
        let alarm = TimerFd::new()?;
        epoll.add(&alarm, ALARM, Interest::Read)?;
        Ok(Self {
            epoll,
            doorbell,
            alarm,
            table: Mutex::default(),
            watched: watch::Watched::default(),
            next_id: AtomicU64::new(1),
            thread_id: AtomicU32::new(0),
            affinity: OnceLock::new(),
            guardian: guardian::Guardian::new()?,
            forward: Mutex::default(),
        })
    }

    /// Has `job` run on the supervisor's thread.
    pub(crate) fn post(&self, job: impl FnOnce() + Send + 'static) {
        self.table().inbox.push(Box::new(job));
        self.doorbell.raise();
    }

    /// Takes a child into care: its record is in the table before any of its events is handled.
    pub(crate) fn adopt(&'static self, child: NewChild) -> io::Result<()> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let mut table = self.table();
        let child = match Child::new(id, child, &self.epoll) {
            Ok(child) => child,
            Err(error) => {
                drop(table);
                return Err(error);
            }
        };
        if let Some((deadline, timer)) = child.deadline() {
            let expire = Box::new(move || expire(id));
            self.insert_timer(&mut table, timer, deadline, expire);
        }
        table.children.insert(id, child);
        Ok(())
    }

    /// Has the children killed that nobody wants any more.
    pub(crate) fn kill_unwanted(&'static self) {
        self.post(|| {
            let ids: Vec<u64> = self.table().children.keys().copied().collect();
            for id in ids {
                let Some(mut child) = self.table().children.remove(&id) else {
                    continue;
                };
                child.kill_if_unwanted();
                self.table().children.insert(id, child);
            }
        });
    }

    /// Ends and reaps the child that the helper enters in a place, if it does, and frees the place.
    /// For a child for whose pidfd there is no room, that misbehaved before it was announced, or
    /// whose helper died before it could announce it.
    pub(crate) fn bury(&'static self, group: Entry) {
        /// A helper that has made a child enters it at once; this is a generous at once.
        const ENTERED_WITHIN: Duration = Duration::from_secs(1);
        if group.group().is_some() {
            return self.end_entered(group);
        }
        // Were the place free already, the helper could still enter the child over another one's.
        let later = Instant::now() + ENTERED_WITHIN;
        self.at(later, Box::new(move || self.end_entered(group)));
    }

    /// Ends and reaps the child whose number is in a place, if one is, and frees the place.
    fn end_entered(&'static self, group: Entry) {
        let Some(pid) = group.group() else { return };
        signal::kill_child(pid);
        if pidfd::wait_by_number(pid, Reap::No) == Some(Ended::No) {
            let again = Instant::now() + child::TRACED_PAUSE;
            return self.at(again, Box::new(move || self.end_entered(group)));
        }
        // The zombie pins the number, so it can be nobody else's group.
        signal::kill_group(pid);
        drop(group);
        let _ = pidfd::wait_by_number(pid, Reap::Yes);
    }

    /// The number of the supervisor's thread, once it runs.
    pub(crate) fn thread_id(&self) -> u32 {
        self.thread_id.load(Relaxed)
    }

    /// The CPUs of the supervisor's thread, which what it creates inherits.
    pub(crate) fn affinity(&self) -> Option<&CpuMask> {
        self.affinity.get()
    }

    fn at(&self, time: Instant, job: Job) {
        self.insert_timer(&mut self.table(), timer::next_id(), time, job);
    }

    fn insert_timer(&self, table: &mut Table, id: TimerId, time: Instant, job: Job) {
        if table.timers.insert(id, time, job) {
            self.alarm
                .set(time.saturating_duration_since(Instant::now()));
        }
    }

    /// Takes a timer back. Left alone it would wake an idle supervisor.
    fn remove_timer(&self, id: TimerId) {
        let mut table = self.table();
        let job = table.timers.remove(id);
        if job.is_some() && table.timers.next().is_none() {
            self.alarm.stop();
        }
        drop(table);
        drop(job);
    }

    fn run(&'static self) {
        // The application's signal handlers run on its own threads.
        signal::block_all();
        self.thread_id.store(tasks::current(), Relaxed);
        if let Ok(mask) = rlimit::own_affinity() {
            let _ = self.affinity.set(mask);
        }
        let mut ready = Vec::new();
        let mut rang = false;
        loop {
            self.run_jobs(mem::take(&mut rang));
            if let Err(error) = self.epoll.wait(&mut ready, None) {
                // An epoll set that is open and a buffer that is ours cannot fail; if they do all
                // the same, children must be looked after nevertheless.
                tracing::error!(%error, "the supervisor cannot wait for events");
                thread::sleep(Duration::from_millis(100));
            }
            for &token in &ready {
                match token {
                    DOORBELL => self.doorbell.lower(),
                    ALARM => {
                        self.alarm.clear();
                        rang = true;
                    }
                    STDERR => self.continue_forwarding(),
                    token if token & watch::BIT != 0 => self.watched.ready(token),
                    token => self.handle(token >> Part::BITS, Part::from_token(token)),
                }
            }
        }
    }

    /// Runs what was posted, and the timers whose time has come; sets the alarm for the next one if
    /// it has rung, also for one that was taken back.
    fn run_jobs(&self, mut rang: bool) {
        loop {
            let mut table = self.table();
            let mut jobs = mem::take(&mut table.inbox);
            let due = table.timers.take_due(Instant::now());
            if (mem::take(&mut rang) || !due.is_empty())
                && let Some(next) = table.timers.next()
            {
                self.alarm
                    .set(next.saturating_duration_since(Instant::now()));
            }
            drop(table);
            jobs.extend(due);
            if jobs.is_empty() {
                return;
            }
            for job in jobs {
                // The supervisor must go on whatever a job of a layer above does.
                if panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job of the supervisor panicked");
                }
            }
        }
    }

    /// Handles an event of one child, whose record is out of the table meanwhile.
    fn handle(&'static self, id: u64, part: Part) {
        // Gone: an event that was on its way when the child ended.
        let Some(mut child) = self.table().children.remove(&id) else {
            return;
        };
        if child.ready(part, self) {
            self.table().children.insert(id, child);
        } else {
            if let Some((_, timer)) = child.deadline() {
                self.remove_timer(timer);
            }
        }
    }

    fn continue_forwarding(&'static self) {
        let resumed = self.forward().continue_writing(&self.epoll, STDERR);
        for id in resumed {
            self.handle(id, Part::Stderr);
        }
    }

    fn forward(&self) -> MutexGuard<'_, Forward> {
        self.forward.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time limit of child `id` for its handshake has passed.
fn expire(id: u64) {
    if let Some(supervisor) = running() {
        supervisor.handle(id, Part::Deadline);
    }
}
