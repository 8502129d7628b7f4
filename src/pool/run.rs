//! Who does the pool's work: no thread and no runtime of its own, but whoever is there.
//!
//! A caller submits and sends under the lock. For each worker and each runtime in which something
//! waits for the pool there is one reader, a task of that runtime, which takes in what the worker
//! sends and sees its end. Any of them can take in everything: the first one to be run does. A
//! reader that is dropped with its runtime says so, and everybody who waits is woken, to have the
//! next runtime read. Times are kept by the supervisor's timers, which need no runtime at all.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{self, Handle};

use super::core::{Core, Effects, Link};
use super::dispatch::WorkerId;
use super::error::TaskError;
use super::line::{Line, Read};
use super::recipe::{Birth, Recipe};
use crate::process::start::Conclusion;
use crate::supervisor;
use crate::sys::async_fd;

/// A pool's state and how its workers are made.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Mutex<Core>,
    pub(crate) recipe: Arc<Recipe>,
    /// The zero of the pool's clock.
    epoch: Instant,
}

impl Shared {
    pub(crate) fn new(core: Core, recipe: Arc<Recipe>) -> Self {
        Self {
            core: Mutex::new(core),
            recipe,
            epoch: Instant::now(),
        }
    }

    /// The pool's clock.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then does what follows from it.
    pub(crate) fn step<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Core, u64, &mut Effects) -> T,
    ) -> T {
        let now = self.now();
        let mut effects = Effects::default();
        let mut core = self.core();
        let value = change(&mut core, now, &mut effects);
        core.carry_out(now, &mut effects);
        drop(core);
        self.follow(effects, now);
        value
    }

    /// Looks at the state, or changes what has no consequences.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&mut Core) -> T) -> T {
        at(&mut self.core())
    }

    fn follow(self: &Arc<Self>, effects: Effects, now: u64) {
        let Effects {
            wake,
            start,
            drive,
            abort,
            timer,
        } = effects;
        for (id, token, birth, handle) in start {
            self.start_worker(id, token, birth, &handle);
        }
        for (id, line, handle) in drive {
            self.start_reader(id, line, &handle);
        }
        abort.iter().for_each(tokio::task::AbortHandle::abort);
        if let Some(at) = timer {
            self.set_timer(at, now);
        }
        // Last: what is woken may run at once.
        for waker in wake {
            waker.wake();
        }
    }

    fn set_timer(self: &Arc<Self>, at: u64, now: u64) {
        let shared = Arc::downgrade(self);
        let delay = Duration::from_nanos(at.saturating_sub(now));
        let tick = move || {
            if let Some(shared) = Weak::upgrade(&shared) {
                shared.step(|core, now, _| {
                    if core.timer.is_some_and(|timer| timer <= now.max(at)) {
                        core.timer = None;
                    }
                    core.decide(|dispatch, out| dispatch.tick(now, out));
                });
            }
        };
        // Without a supervisor there is no worker, and nothing to be timed.
        let _ = supervisor::after(delay, tick);
    }

    // Workers come and go.

    fn start_worker(self: &Arc<Self>, id: WorkerId, token: u64, birth: Birth, handle: &Handle) {
        let start = Start {
            shared: Arc::clone(self),
            id,
            token,
            runtime: handle.id(),
            is_over: false,
        };
        let task = handle.spawn(start.run(birth));
        self.look(|core| core.start_polled(id, token, task.abort_handle()));
    }

    fn start_reader(self: &Arc<Self>, id: WorkerId, line: Arc<Line>, handle: &Handle) {
        let context = handle.enter();
        let readable = async_fd::watch_shared(Arc::clone(&line.control), Interest::READABLE);
        drop(context);
        let reader = Reader {
            shared: Arc::clone(self),
            id,
            line,
            runtime: handle.id(),
            is_over: false,
        };
        if let Ok(readable) = readable {
            drop(handle.spawn(reader.run(readable)));
        }
    }

    /// Takes in what a worker has sent.
    fn read(self: &Arc<Self>, id: WorkerId, line: &Arc<Line>) -> Read {
        let limit = self.recipe.limit;
        let mut inbox = line.inbox();
        if inbox.is_closed {
            return Read::End;
        }
        let read = inbox.read(line, limit);
        let violation = self.step(|core, now, effects| {
            let ours =
                matches!(core.links.get(id), Some(Link::Up(up)) if Arc::ptr_eq(&up.line, line));
            if !ours {
                inbox.is_closed = true;
                return None;
            }
            core.take_in(id, &mut inbox, now, effects).err()
        });
        if let Some(what) = violation {
            inbox.is_closed = true;
            let _ = line.violation.set(what);
            return Read::End;
        }
        read
    }

    /// A worker has ended: takes in what it has left, and then it is gone.
    fn bury(self: &Arc<Self>, id: WorkerId, line: &Arc<Line>, conclusion: &Conclusion) {
        // What is in the socket comes first, then what the worker had not sent.
        while !matches!(self.read(id, line), Read::All | Read::End) {}
        let mut inbox = line.inbox();
        self.step(|core, now, effects| {
            let ours =
                matches!(core.links.get(id), Some(Link::Up(up)) if Arc::ptr_eq(&up.line, line));
            if !ours {
                return;
            }
            if !inbox.is_closed {
                match line.outbox.rest(inbox.received) {
                    Ok(rest) => {
                        inbox.add(&rest);
                        if let Err(what) = core.take_in(id, &mut inbox, now, effects) {
                            let _ = line.violation.set(what);
                        }
                    }
                    Err(error) => drop(line.violation.set(error.to_string())),
                }
                inbox.is_closed = true;
            }
            let started = line.outbox.started(core.dispatch.n_sent(id));
            let violation = line.violation.get().or(conclusion.violation.as_ref());
            let obituary = match violation {
                Some(what) => TaskError::ProtocolViolation {
                    pid: line.pid,
                    what: what.clone(),
                },
                None => TaskError::WorkerDied {
                    pid: line.pid,
                    status: conclusion.status,
                    stderr_tail: conclusion.stderr_tail.clone(),
                },
            };
            core.link_down(id, started, obituary, now, effects);
        });
    }
}

/// A worker's start, as one runtime polls it.
struct Start {
    shared: Arc<Shared>,
    id: WorkerId,
    token: u64,
    runtime: runtime::Id,
    is_over: bool,
}

impl Start {
    async fn run(mut self, birth: Birth) {
        let born = birth.await;
        self.is_over = true;
        // Whoever polled it comes by; the first one takes it.
        let Some(born) = born.take() else { return };
        let (id, token) = (self.id, self.token);
        match born {
            Ok(line) => {
                let line = Arc::new(line);
                let wanted = self.shared.step(|core, now, effects| {
                    let wanted = core.is_starting(id, token);
                    if wanted {
                        core.link_up(id, Arc::clone(&line), now, effects);
                    }
                    wanted
                });
                if !wanted {
                    line.kill();
                }
            }
            Err(error) => self.shared.step(|core, now, effects| {
                if core.is_starting(id, token) {
                    core.start_failed(id, error.to_string(), now, effects);
                }
            }),
        }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        // Given up, or the runtime is being shut down; the latter also ends its readers.
        if !self.is_over {
            let (id, token, runtime) = (self.id, self.token, self.runtime);
            self.shared.step(|core, _, effects| {
                if core.is_starting(id, token) {
                    core.undriven(runtime, effects);
                }
            });
        }
    }
}

/// One runtime's reader of one worker.
struct Reader {
    shared: Arc<Shared>,
    id: WorkerId,
    line: Arc<Line>,
    runtime: runtime::Id,
    is_over: bool,
}

type Readable = AsyncFd<Arc<OwnedFd>>;

impl Reader {
    async fn run(mut self, readable: Readable) {
        let line = Arc::clone(&self.line);
        let mut ended = pin!(line.exit.wait());
        let mut bell = Box::pin(line.bell.notified());
        let mut fd = Some(readable);
        let mut interest = Interest::READABLE;
        let mut has_read_all = false;
        let conclusion = poll_fn(|cx| {
            if let Poll::Ready(conclusion) = ended.as_mut().poll(cx) {
                return Poll::Ready(conclusion);
            }
            while bell.as_mut().poll(cx).is_ready() {
                bell.set(line.bell.notified());
            }
            let wanted = if line.blocked.load(Relaxed) {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            if wanted != interest && !has_read_all {
                // Dropped first: one set takes a descriptor once.
                fd = None;
                fd = async_fd::watch_shared(Arc::clone(&line.control), wanted).ok();
                interest = wanted;
            }
            if let Some(readable) = &fd
                && self.poll(readable, cx) == Read::End
            {
                // It may have closed the socket and live on.
                line.kill();
                has_read_all = true;
                fd = None;
            }
            Poll::Pending
        })
        .await;
        self.is_over = true;
        self.shared.bury(self.id, &self.line, &conclusion);
    }

    /// Reads and sends until the socket is empty, or full.
    fn poll(&self, readable: &Readable, cx: &mut Context<'_>) -> Read {
        if self.line.blocked.load(Relaxed) {
            while let Poll::Ready(Ok(mut guard)) = readable.poll_write_ready(cx) {
                let sent = self
                    .shared
                    .step(|core, _, _| match core.links.get_mut(self.id) {
                        Some(Link::Up(up)) if Arc::ptr_eq(&up.line, &self.line) => {
                            up.post.flush(&up.line)
                        }
                        _ => true,
                    });
                if sent {
                    break;
                }
                guard.clear_ready();
            }
        }
        loop {
            match readable.poll_read_ready(cx) {
                Poll::Pending => return Read::All,
                Poll::Ready(Err(_)) => return Read::End,
                Poll::Ready(Ok(mut guard)) => match self.shared.read(self.id, &self.line) {
                    Read::Some => (),
                    Read::All => guard.clear_ready(),
                    Read::End => return Read::End,
                },
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.is_over {
            let runtime = self.runtime;
            self.shared
                .step(|core, _, effects| core.undriven(runtime, effects));
        }
    }
}
