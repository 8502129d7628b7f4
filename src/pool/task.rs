//! The handle of one task.
//!
//! It holds no result and no channel: the pool's table has a slot for the task, and the handle has
//! the slot's key. The result's bytes lie there until the handle is awaited, which is also where
//! they are decoded, as only the handle knows their type.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::core::read_answer;
use super::error::TaskError;
use super::run::Shared;
use super::tasks::{Key, Outcome};

/// A task that was given to a pool, from [`Pool::apply_async`](super::Pool::apply_async).
///
/// Await it for the task's result. The task runs whether or not it is awaited. Dropping the handle
/// cancels a task that no worker has yet; one that runs is left to finish, unless
/// [`kill_on_drop`](Self::kill_on_drop) says otherwise.
///
/// This is Python's `AsyncResult`: `get(timeout)` is [`tokio::time::timeout`] around the handle,
/// `ready` is [`is_finished`](Self::is_finished).
///
/// # Process death
///
/// A worker that dies while it runs the task makes the handle resolve to
/// [`TaskError::WorkerDied`]. A task that had been sent to it and was not started is given to
/// another worker.
///
/// # Panics
///
/// Polling it panics outside of a Tokio runtime that has its I/O driver enabled.
#[must_use = "dropping the handle cancels a task that no worker has yet"]
pub struct Task<R> {
    shared: Arc<Shared>,
    id: u64,
    state: State,
    kill_on_drop: bool,
    result: PhantomData<fn() -> R>,
}

#[derive(Debug)]
enum State {
    /// The pool has it.
    Accepted(Key),
    /// The pool did not take it.
    Refused(TaskError),
    /// The result was handed out.
    Taken,
}

impl<R> Task<R> {
    /// A handle of a task that was counted as one of the pool's users.
    pub(crate) fn new(shared: Arc<Shared>, id: u64, accepted: Result<Key, TaskError>) -> Self {
        Self {
            shared,
            id,
            state: match accepted {
                Ok(key) => State::Accepted(key),
                Err(error) => State::Refused(error),
            },
            kill_on_drop: false,
            result: PhantomData,
        }
    }

    /// The task's number, which no other task of its pool has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether awaiting the handle would not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match self.state {
            State::Accepted(key) => self.shared.look(|core| {
                core.tasks
                    .get_mut(key)
                    .is_none_or(|task| task.outcome.is_some())
            }),
            State::Refused(_) | State::Taken => true,
        }
    }

    /// Stops the task, which then resolves to [`TaskError::Cancelled`], unless it is finished
    /// before that.
    ///
    /// A task that waits for a worker is forgotten. An asynchronous one that runs is dropped at
    /// its next await point. To stop a blocking one, its worker is killed and replaced; so is that
    /// of an asynchronous one that reaches no await point within half a second. The handle resolves
    /// when the work has really stopped.
    pub fn cancel(&self) {
        if let State::Accepted(key) = self.state {
            self.shared
                .step(|core, now, effects| core.cancel(key, now, effects));
        }
    }

    /// Stops the task, as [`cancel`](Self::cancel) does, when it has *run* for `limit`; it then
    /// resolves to [`TaskError::TimedOut`].
    ///
    /// The time in which it waits for a worker does not count. To limit how long *you* wait, put
    /// [`tokio::time::timeout`] around the handle.
    pub fn timeout(self, limit: Duration) -> Self {
        if let State::Accepted(key) = self.state {
            let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            self.shared.step(|core, _, _| core.limit_task(key, limit));
        }
        self
    }

    /// From now on dropping the handle stops the task, as [`cancel`](Self::cancel) does.
    pub fn kill_on_drop(mut self) -> Self {
        self.kill_on_drop = true;
        self
    }
}

impl<R: DeserializeOwned> Future for Task<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let State::Accepted(key) = self.state else {
            return match std::mem::replace(&mut self.state, State::Taken) {
                State::Refused(error) => Poll::Ready(Err(error)),
                _ => panic!("a task was polled after it had been completed"),
            };
        };
        let finished = self.shared.step(|core, _, effects| {
            let task = core.tasks.get_mut(key).expect("a task that is held stays");
            if task.outcome.is_some() {
                return core.tasks.remove(key);
            }
            if !task
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                // An old waker is woken rather than dropped here: it may be the last of its task.
                effects.wake.extend(task.waker.replace(cx.waker().clone()));
            }
            core.attend(effects);
            None
        });
        let Some(task) = finished else {
            return Poll::Pending;
        };
        self.state = State::Taken;
        Poll::Ready(match task.outcome {
            Some(Outcome::Answered(kind, fds)) => read_answer(kind, task.data.as_slice(), fds),
            Some(Outcome::Failed(error)) => Err(*error),
            None => Err(TaskError::Cancelled),
        })
    }
}

impl<R> Drop for Task<R> {
    fn drop(&mut self) {
        let (key, stop) = match self.state {
            State::Accepted(key) => (Some(key), self.kill_on_drop),
            _ => (None, false),
        };
        self.shared.step(|core, now, effects| {
            if let Some(key) = key {
                core.release(key, stop, now, effects);
            }
            core.user_gone();
        });
    }
}

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
