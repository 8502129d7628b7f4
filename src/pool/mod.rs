//! Pools of worker processes.
//!
//! In reading order: what users see (`Pool` here, `builder`, `task`, `stream`, `stats`, `error`);
//! the decisions (`dispatch`, with `chunk` and `restart`), which know no process, no clock and no
//! value; the state around them (`core`, with `tasks`, `feed`, `line`) and who drives it (`run`,
//! `recipe`); the worker's side (`worker`, `answers`); and what both sides share (`protocol`,
//! `outbox`).
//!
//! A pool is a star: one private socket for each worker, no lock, pipe or queue between them. So a
//! worker can die at any instruction and harm nobody but the task that it was running.

mod answers;
mod builder;
mod cancellable;
mod chunk;
mod core;
mod dispatch;
mod error;
mod feed;
mod line;
mod outbox;
mod protocol;
mod recipe;
mod restart;
mod run;
mod stats;
mod stream;
mod task;
mod tasks;
mod worker;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use futures::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::builder::PoolBuilder;
pub use self::cancellable::StopWith;
use self::core::{Core, Link, Order};
use self::dispatch::Source;
pub use self::error::{PoolError, TaskError};
use self::feed::{Feed, FromIterator, FromStream, check_len};
use self::run::Shared;
pub use self::stats::{PoolStats, RunningTask, WorkerState, WorkerStats};
use self::stream::Flow;
pub use self::stream::Imap;
pub use self::task::Task;
use self::tasks::Key;
use crate::process::Outcome;
use crate::process::function::Function;
use crate::wire::fds::{Outgoing, encode_with_fds};

/// Processes that run tasks.
///
/// A task is a function of this program and its argument: any `fn`, `async fn` or closure that
/// captures nothing. A worker runs one task at a time, or several, see
/// [`concurrency`](PoolBuilder::concurrency). Tasks that fail, panic, crash or take their worker
/// with them are errors of their own and of nobody else.
///
/// A `Pool` is a handle; a clone is the same pool. When the last handle is dropped, and no [`Task`]
/// or [`Imap`] of the pool is held either, the workers are killed. To have them finish first,
/// [`close`](Self::close) the pool.
///
/// This is Python's `multiprocessing.Pool` but for these things. Tasks that a crash took down fail
/// instead of waiting for ever. `imap` takes its input as it needs it. Chunks are chosen by what
/// tasks really cost. There are no callbacks: a [`Task`] is a future.
///
/// A pool has no thread and no runtime of its own, and may be used from several runtimes, at once
/// and one after the other.
///
/// # Examples
///
/// ```
/// use futures::TryStreamExt;
/// use tokio_multiprocess::Pool;
///
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::new(2).await?;
///
/// assert_eq!(pool.apply(square, 7).await?, 49);
/// assert_eq!(pool.map(square, 0..5).await?, [0, 1, 4, 9, 16]);
///
/// let mut sum = 0;
/// let mut squares = pool.imap_unordered(square, 0..1000);
/// while let Some(square) = squares.try_next().await? {
///     sum += square;
/// }
/// assert_eq!(sum, (0..1000).map(square).sum());
///
/// pool.close().await?;
/// # Ok(()) }
/// ```
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts a pool of `processes` workers.
    ///
    /// # Errors
    ///
    /// There are to be none, or one cannot be started.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropping the future stops the workers that were started.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime that has its I/O driver enabled.
    pub async fn new(processes: usize) -> Result<Self, PoolError> {
        Self::builder().processes(processes).build().await
    }

    /// Sets up a pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }

    /// Runs `f(arg)` in a worker.
    ///
    /// # Errors
    ///
    /// The task has no result, see [`TaskError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropping the future cancels a task that no worker has yet; one that runs is
    /// left to finish, and nobody else is affected.
    pub async fn apply<A, O, M>(&self, f: fn(A) -> O, arg: A) -> Result<O::Output, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
    {
        self.apply_async(f, arg).await
    }

    /// Has a worker run `f(arg)`, and returns the handle of the task.
    ///
    /// The task starts now, also if the handle is never awaited. What it holds until then is its
    /// encoded argument and a slot of the pool's table.
    pub fn apply_async<A, O, M>(&self, f: fn(A) -> O, arg: A) -> Task<O::Output>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
    {
        let prepared = Function::of(f)
            .map_err(TaskError::from)
            .and_then(|function| Ok((function, encode(&arg, self.shared.recipe.limit as usize)?)));
        drop(arg);
        let (id, accepted) = self.shared.step(|core, now, effects| {
            core.users += 1;
            let (function, argument) = match (core.refusal(), prepared) {
                (Some(error), _) | (None, Err(error)) => return (core.new_task_id(), Err(error)),
                (None, Ok(prepared)) => prepared,
            };
            // The pool has it now, with all that its argument moves.
            let argument = (argument.0, argument.1.commit());
            let (key, id) = core.submit(function, O::ASYNC, argument, now);
            core.attend_if_possible(effects);
            (id, Ok(key))
        });
        Task::new(Arc::clone(&self.shared), id, accepted)
    }

    /// Runs `f` on all items; the results are in the order of the items.
    ///
    /// All items are run, then the first error in the order of the items is returned, as Python
    /// does. To stop at an error, use [`try_map`](Self::try_map). Items are taken from the
    /// iterator as workers need them.
    ///
    /// # Errors
    ///
    /// A task has no result, see [`TaskError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropping the future cancels what no worker has started; what runs is left to
    /// finish.
    ///
    /// # Panics
    ///
    /// Panics when the iterator does.
    pub async fn map<A, O, M, I>(
        &self,
        f: fn(A) -> O,
        items: I,
    ) -> Result<Vec<O::Output>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let flow = self.flow(f, FromIterator(items.into_iter()), Order::OfInput, None);
        collect(flow, Errors::AtTheEnd).await
    }

    /// Runs `f` on all items as [`map`](Self::map) does, with chunks of `chunk_size` items.
    ///
    /// `map` and the streams choose the length of their chunks by what the items cost; this is for
    /// items that cost what no measurement tells.
    ///
    /// # Errors
    ///
    /// A task has no result, see [`TaskError`]; or `chunk_size` is zero.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as `map` is.
    ///
    /// # Panics
    ///
    /// Panics when the iterator does.
    pub async fn map_chunked<A, O, M, I>(
        &self,
        f: fn(A) -> O,
        items: I,
        chunk_size: usize,
    ) -> Result<Vec<O::Output>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        if chunk_size == 0 {
            return Err(TaskError::ChunkSize);
        }
        let chunk_size = u32::try_from(chunk_size).unwrap_or(u32::MAX);
        let feed = FromIterator(items.into_iter());
        collect(
            self.flow(f, feed, Order::OfInput, Some(chunk_size)),
            Errors::AtTheEnd,
        )
        .await
    }

    /// Runs `f` on all items until one fails; the results are in the order of the items.
    ///
    /// # Errors
    ///
    /// A task has no result, see [`TaskError`]. Items that no worker has started by then are not
    /// run.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`map`](Self::map) is.
    ///
    /// # Panics
    ///
    /// Panics when the iterator does.
    pub async fn try_map<A, O, M, I>(
        &self,
        f: fn(A) -> O,
        items: I,
    ) -> Result<Vec<O::Output>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let flow = self.flow(f, FromIterator(items.into_iter()), Order::OfInput, None);
        collect(flow, Errors::AtOnce).await
    }

    /// Runs `f` on the items of a stream as [`map`](Self::map) does.
    ///
    /// # Errors
    ///
    /// A task has no result, see [`TaskError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as `map` is.
    ///
    /// # Panics
    ///
    /// Panics when the stream does.
    pub async fn map_stream<A, O, M, S>(
        &self,
        f: fn(A) -> O,
        items: S,
    ) -> Result<Vec<O::Output>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
        S: Stream<Item = A>,
    {
        let flow = self.flow(f, FromStream(Box::pin(items)), Order::OfInput, None);
        collect(flow, Errors::AtTheEnd).await
    }

    /// Runs `f` on all items; the results come as a stream, in the order of the items.
    pub fn imap<A, O, M, I>(&self, f: fn(A) -> O, items: I) -> Imap<O::Output>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        I: IntoIterator<Item = A>,
        I::IntoIter: Send + 'static,
    {
        let feed = Box::new(FromIterator(items.into_iter()));
        Imap::new(self.flow(f, feed as Box<dyn Feed + Send>, Order::OfInput, None))
    }

    /// Runs `f` on all items; the results come as a stream, each as soon as it is there.
    pub fn imap_unordered<A, O, M, I>(&self, f: fn(A) -> O, items: I) -> Imap<O::Output>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        I: IntoIterator<Item = A>,
        I::IntoIter: Send + 'static,
    {
        let feed = Box::new(FromIterator(items.into_iter()));
        Imap::new(self.flow(f, feed as Box<dyn Feed + Send>, Order::OfCompletion, None))
    }

    /// Runs `f` on the items of a stream; the results come in the order of the items.
    pub fn imap_stream<A, O, M, S>(&self, f: fn(A) -> O, items: S) -> Imap<O::Output>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        S: Stream<Item = A> + Send + 'static,
    {
        let feed = Box::new(FromStream(Box::pin(items)));
        Imap::new(self.flow(f, feed as Box<dyn Feed + Send>, Order::OfInput, None))
    }

    /// Runs `f` on the items of a stream; the results come each as soon as it is there.
    pub fn imap_unordered_stream<A, O, M, S>(&self, f: fn(A) -> O, items: S) -> Imap<O::Output>
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        S: Stream<Item = A> + Send + 'static,
    {
        let feed = Box::new(FromStream(Box::pin(items)));
        Imap::new(self.flow(f, feed as Box<dyn Feed + Send>, Order::OfCompletion, None))
    }

    fn flow<A, O, M, F>(
        &self,
        f: fn(A) -> O,
        feed: F,
        order: Order,
        chunk_size: Option<u32>,
    ) -> Flow<F>
    where
        A: DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
        F: Feed,
    {
        self.shared.look(|core| core.users += 1);
        let shared = Arc::clone(&self.shared);
        Flow::new(shared, Function::of(f), O::ASYNC, feed, order, chunk_size)
    }

    /// Ends the pool when its work is done: no new tasks, those that were accepted and streams that
    /// were begun are finished, then the workers leave.
    ///
    /// Returns when the workers are gone. Later calls wait for the same end.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the pool stays closed: dropping the future ends only the waiting.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime that has its I/O driver enabled.
    pub async fn close(&self) -> Result<(), PoolError> {
        self.shared
            .step(|core, now, _| core.decide(|dispatch, out| dispatch.close(now, out)));
        self.gone().await;
        Ok(())
    }

    /// Ends the pool at once: workers are killed, what has no result is
    /// [`Cancelled`](TaskError::Cancelled).
    ///
    /// Returns when the workers are gone.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the pool stays terminated: dropping the future ends only the waiting.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime that has its I/O driver enabled.
    pub async fn terminate(&self) -> Result<(), PoolError> {
        self.shared
            .step(|core, _, _| core.decide(dispatch::Dispatch::terminate));
        self.gone().await;
        Ok(())
    }

    async fn gone(&self) {
        self.wait_until(|core| core.dispatch.is_over()).await;
    }

    async fn wait_until(&self, is_so: impl Fn(&Core) -> bool) {
        poll_fn(|cx| {
            self.shared.step(|core, _, effects| {
                if is_so(core) {
                    return Poll::Ready(());
                }
                core.watch(cx.waker());
                core.attend(effects);
                Poll::Pending
            })
        })
        .await;
    }

    /// Changes the number of workers.
    ///
    /// New ones are started at once; surplus ones finish what they hold and leave, idle ones first.
    /// Returns when as many are ready, or as few are left.
    ///
    /// # Errors
    ///
    /// There are to be none, or the pool is closed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the size is changed: dropping the future ends only the waiting.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime that has its I/O driver enabled.
    pub async fn resize(&self, processes: usize) -> Result<(), PoolError> {
        if processes == 0 {
            return Err(PoolError::NoProcesses);
        }
        let is_open = self.shared.step(|core, now, _| {
            core.decide(|dispatch, out| dispatch.resize(processes, now, out));
            core.dispatch.is_open()
        });
        if !is_open {
            return Err(PoolError::Closed);
        }
        self.wait_until(|core| {
            let dispatch = &core.dispatch;
            let is_there = |id: &usize| !dispatch.is_leaving(*id) && !dispatch.is_starting(*id);
            let (n_there, n_all) = (
                dispatch.ids().filter(is_there).count(),
                dispatch.ids().count(),
            );
            // Another call may have changed it again.
            dispatch.target() != processes
                || !dispatch.is_open()
                || (n_there, n_all) == (processes, processes)
        })
        .await;
        if self.shared.look(|core| core.dispatch.is_open()) {
            Ok(())
        } else {
            Err(PoolError::Closed)
        }
    }

    /// What the pool is doing at this moment.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let now = self.shared.now();
        let mut stats = self.shared.look(|core| PoolStats {
            workers: core
                .dispatch
                .ids()
                .collect::<Vec<_>>()
                .into_iter()
                .map(|id| worker_stats(core, id, now))
                .collect(),
            queued: core.dispatch.n_queued(),
            finished: core.n_finished(),
            restarts: core.dispatch.n_restarts(),
        });
        // Files are read without the lock.
        for worker in &mut stats.workers {
            worker.resident_bytes = worker
                .pid
                .and_then(|pid| stats::resident_bytes(&pid.to_string()));
        }
        stats
    }
}

fn worker_stats(core: &mut Core, id: usize, now: u64) -> WorkerStats {
    let (tasks_done, n_held, since) = core.dispatch.progress(id);
    let state = if core.dispatch.is_starting(id) {
        WorkerState::Starting
    } else if core.dispatch.is_leaving(id) {
        WorkerState::Leaving
    } else if n_held > 0 {
        WorkerState::Busy
    } else {
        WorkerState::Idle
    };
    let piece = core.dispatch.current(id);
    let running = piece.map(|piece| RunningTask {
        id: match piece.source {
            Source::Single => core
                .tasks
                .get_mut(Key::from_u64(piece.first))
                .map(|task| task.id),
            Source::Stream(_) => None,
        },
        since: Duration::from_nanos(now.saturating_sub(since)),
    });
    let (pid, busy_ns, born_at) = match core.links.get(id) {
        Some(Link::Up(up)) => (Some(up.line.pid), up.busy_ns, up.born_at),
        _ => (None, 0, now),
    };
    let alive_ns = now.saturating_sub(born_at);
    WorkerStats {
        pid,
        state,
        running,
        tasks_done,
        resident_bytes: None,
        working: Duration::from_nanos(busy_ns.min(alive_ns)),
        waiting: Duration::from_nanos(alive_ns.saturating_sub(busy_ns)),
    }
}

impl Pool {
    fn from_shared(shared: Arc<Shared>) -> Self {
        shared.look(|core| core.users += 1);
        Self { shared }
    }
}

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::from_shared(Arc::clone(&self.shared))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.step(|core, _, _| core.user_gone());
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.shared.recipe.name)
            .finish_non_exhaustive()
    }
}

fn encode<A: Serialize>(value: &A, limit: usize) -> Result<(Vec<u8>, Outgoing), TaskError> {
    let mut bytes = Vec::new();
    let encoded = encode_with_fds(value, &mut bytes);
    match encoded.and_then(|outgoing| check_len(bytes.len(), limit).map(|_| outgoing)) {
        Ok(outgoing) => Ok((bytes, outgoing)),
        Err(error) => Err(TaskError::Encode(format!(
            "the argument cannot be encoded: {error}"
        ))),
    }
}

/// When an error ends a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errors {
    AtOnce,
    AtTheEnd,
}

async fn collect<R: DeserializeOwned, F: Feed>(
    mut flow: Flow<F>,
    errors: Errors,
) -> Result<Vec<R>, TaskError> {
    /// A lower bound of an iterator is believed as far as this.
    const BELIEVED: usize = 1 << 16;
    let mut values = Vec::with_capacity(flow.at_least().min(BELIEVED));
    let mut first_error = None;
    poll_fn(|cx| {
        loop {
            match ready!(flow.poll_next::<R>(cx)) {
                Some(Ok(value)) if first_error.is_none() => values.push(value),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    first_error.get_or_insert(error);
                    if errors == Errors::AtOnce {
                        return Poll::Ready(());
                    }
                }
                None => return Poll::Ready(()),
            }
        }
    })
    .await;
    first_error.map_or(Ok(values), Err)
}
