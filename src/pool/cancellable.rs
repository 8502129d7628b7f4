//! A task that somebody else's token stops.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;
use serde::de::DeserializeOwned;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::TaskError;
use super::task::Task;

impl<R> Task<R> {
    /// Ties the task to `token`: once that is cancelled, the task is stopped as
    /// [`cancel`](Self::cancel) does, and resolves to [`TaskError::Cancelled`] when the work has
    /// really stopped, or to its result if that came first.
    ///
    /// The token is looked at while the future is polled, and it wakes the future. With
    /// [`kill_on_drop`](Self::kill_on_drop) the task is stopped also when the future is dropped,
    /// so that `token.run_until_cancelled(task)` does much the same, but does not wait for the end.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use tokio_multiprocess::{Pool, TaskError};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let pool = Pool::new(1).await?;
    /// let token = CancellationToken::new();
    /// let task = pool.apply_async(std::thread::sleep, Duration::from_secs(1000));
    /// let task = tokio::spawn(task.stop_with(token.clone()));
    ///
    /// token.cancel();
    ///
    /// assert!(matches!(task.await?, Err(TaskError::Cancelled)));
    /// # Ok(()) }
    /// ```
    pub fn stop_with(self, token: CancellationToken) -> StopWith<R> {
        StopWith {
            task: self,
            cancelled: token.cancelled_owned(),
            is_stopped: false,
        }
    }
}

/// A task that a [`CancellationToken`] stops, from [`Task::stop_with`].
#[pin_project]
#[derive(Debug)]
#[must_use = "dropping the handle cancels a task that no worker has yet"]
pub struct StopWith<R> {
    task: Task<R>,
    #[pin]
    cancelled: WaitForCancellationFutureOwned,
    is_stopped: bool,
}

impl<R: DeserializeOwned> Future for StopWith<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if !*this.is_stopped && this.cancelled.poll(cx).is_ready() {
            *this.is_stopped = true;
            this.task.cancel();
        }
        Pin::new(this.task).poll(cx)
    }
}
