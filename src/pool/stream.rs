//! Streams of results: the input is pulled as workers need it, results come out one by one.
//!
//! All is driven by whoever polls. A poll takes the results that have come, as segments of several
//! answers each, then takes as much of the input as the pool has a use for; what it cannot send at
//! once waits in the pool as a reserve, so that a worker that becomes free need not wait for the
//! next poll. Results that nobody takes count against what is pulled: the memory is bounded,
//! whatever the length of the input.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::FusedStream;
use serde::de::DeserializeOwned;

use super::core::{Chunk, Demand, Order, Results, Segment, read_answer};
use super::error::TaskError;
use super::feed::{Feed, Filled, Filling};
use super::line::frame_at;
use super::run::Shared;
use crate::error::ForeignFunction;
use crate::process::function::Function;
use crate::wire::frame::HEADER_LEN;

/// The results of a stream of tasks, from [`Pool::imap`](super::Pool::imap) and its siblings.
///
/// It starts at the first poll. From then on it takes as much of its input as keeps the workers
/// busy, and a little more; results that are not taken yet hold it back, so it works with an input
/// without end. A task that fails is an item like the others, and the stream goes on after it.
///
/// A live stream keeps the pool's workers, even when the pool's last handle is gone. Dropping it
/// cancels what no worker has started; what runs is left to finish.
///
/// A pool that is being closed finishes the streams that were begun. It does not wait for ever: a
/// stream that nobody polls for three seconds, while the pool has nothing else to do, is given up
/// and ends with [`TaskError::PoolClosed`].
///
/// # Process death
///
/// An item that was running when its worker died comes out as [`TaskError::WorkerDied`]; others
/// that the worker held are run elsewhere.
///
/// # Panics
///
/// Polling it panics outside of a Tokio runtime that has its I/O driver enabled. A panic of the
/// input goes on in whoever polls, after the results of the items before it.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Imap<R> {
    flow: Flow<Box<dyn Feed + Send>>,
    result: PhantomData<fn() -> R>,
}

impl<R> Imap<R> {
    pub(crate) fn new(flow: Flow<Box<dyn Feed + Send>>) -> Self {
        Self {
            flow,
            result: PhantomData,
        }
    }
}

impl<R: DeserializeOwned> Stream for Imap<R> {
    type Item = Result<R, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.flow.poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.flow.at_least(), None)
    }
}

impl<R: DeserializeOwned> FusedStream for Imap<R> {
    fn is_terminated(&self) -> bool {
        matches!(self.flow.state, State::Over)
    }
}

impl<R> fmt::Debug for Imap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap")
            .field("pulled", &self.flow.n_pulled)
            .field("delivered", &self.flow.n_delivered)
            .finish_non_exhaustive()
    }
}

/// A stream, whatever its input and its results are.
pub(crate) struct Flow<F> {
    shared: Arc<Shared>,
    /// Nothing once there are no more items.
    feed: Option<F>,
    order: Order,
    function: Result<Function, ForeignFunction>,
    is_async: bool,
    /// The user's choice.
    chunk_size: Option<u32>,
    state: State,
    class: u32,
    /// Results as they came.
    arrived: VecDeque<Segment>,
    /// Results that wait for their turn, by the first item's place.
    held: BTreeMap<u64, Segment>,
    /// The segment that results are taken from.
    reading: Option<Reading>,
    /// Items taken from the input.
    n_pulled: u64,
    /// Results handed out.
    n_delivered: u64,
    /// What the input said when it panicked.
    panic: Option<Box<dyn Any + Send>>,
    /// Why the rest of the input is not run.
    refusal: Option<TaskError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fresh,
    Open(u64),
    Over,
}

/// A segment that is being read.
enum Reading {
    Frames {
        bytes: Bytes,
        /// Where the next frame begins.
        at: usize,
        fds: Vec<OwnedFd>,
        left: u32,
    },
    Failed {
        error: TaskError,
        left: u32,
    },
}

impl<F: Feed> Flow<F> {
    /// A stream that was counted as one of the pool's users.
    pub(crate) fn new(
        shared: Arc<Shared>,
        function: Result<Function, ForeignFunction>,
        is_async: bool,
        feed: F,
        order: Order,
        chunk_size: Option<u32>,
    ) -> Self {
        Self {
            shared,
            feed: Some(feed),
            order,
            function,
            is_async,
            chunk_size,
            state: State::Fresh,
            class: 0,
            arrived: VecDeque::new(),
            held: BTreeMap::new(),
            reading: None,
            n_pulled: 0,
            n_delivered: 0,
            panic: None,
            refusal: None,
        }
    }

    /// The fewest results that will come.
    pub(crate) fn at_least(&self) -> usize {
        let open = usize::try_from(self.n_pulled - self.n_delivered).unwrap_or(usize::MAX);
        self.feed
            .as_ref()
            .map_or(0, Feed::at_least)
            .saturating_add(open)
    }

    pub(crate) fn poll_next<R: DeserializeOwned>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<R, TaskError>>> {
        loop {
            if let Some(result) = self.next_here() {
                return Poll::Ready(Some(result));
            }
            let id = match self.state {
                State::Over => return Poll::Ready(None),
                State::Open(id) => id,
                State::Fresh => match self.open() {
                    Ok(id) => id,
                    Err(error) => {
                        self.state = State::Over;
                        self.feed = None;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            };
            self.exchange(id, cx);
            if self.has_next_here() {
                continue;
            }
            if self.feed.is_some() || self.n_delivered < self.n_pulled {
                return Poll::Pending;
            }
            self.end();
            if let Some(panic) = self.panic.take() {
                resume_unwind(panic);
            }
            return Poll::Ready(self.refusal.take().map(Err));
        }
    }

    /// Starts: the pool gets to know the stream.
    fn open(&mut self) -> Result<u64, TaskError> {
        let function = self.function?;
        let is_async = self.is_async;
        let (id, class) = self.shared.step(|core, now, _| match core.refusal() {
            Some(error) => Err(error),
            None => {
                let class = core.class_of(function);
                Ok((core.open_stream(function, is_async, now), class))
            }
        })?;
        self.state = State::Open(id);
        self.class = class;
        Ok(id)
    }

    /// Takes what has come, and gives what is wanted.
    fn exchange(&mut self, id: u64, cx: &mut Context<'_>) {
        let wants = self.feed.is_some();
        let (class, chunk_size, order) = (self.class, self.chunk_size, self.order);
        let (arrived, n_pulled, n_delivered) = (&mut self.arrived, self.n_pulled, self.n_delivered);
        let mut demand = self.shared.step(|core, now, effects| {
            core.take_results(id, arrived, cx.waker(), now, effects);
            core.attend(effects);
            if wants {
                core.demand(id, class, chunk_size, n_pulled - n_delivered, order)
            } else {
                Demand::Later
            }
        });
        if self.order == Order::OfInput {
            self.held.extend(
                self.arrived
                    .drain(..)
                    .map(|segment| (segment.first, segment)),
            );
        }
        while let Some(feed) = &mut self.feed {
            let max = match demand {
                Demand::Later => return,
                Demand::Items(max) => max,
                Demand::Never => {
                    let shared = &self.shared;
                    self.refusal = shared
                        .look(|core| core.refusal())
                        .or(Some(TaskError::PoolClosed));
                    self.feed = None;
                    return;
                }
            };
            let mut chunk = Filling::new(max, self.shared.recipe.limit as usize);
            let filled = catch_unwind(AssertUnwindSafe(|| feed.fill(&mut chunk, cx)));
            if !matches!(
                filled,
                Ok(Filled::Full | Filled::Pending | Filled::Refused(_))
            ) {
                self.feed = None;
            }
            let Filling {
                items, len, fds, ..
            } = chunk;
            let first = self.n_pulled;
            self.n_pulled += u64::from(len);
            let n_open = self.n_pulled - self.n_delivered;
            demand = self.shared.step(|core, now, _| {
                if len > 0 {
                    let chunk = Chunk::new(first, len, items.into(), fds);
                    core.submit_chunk(id, class, chunk, now);
                }
                core.demand(id, class, chunk_size, n_open, order)
            });
            match filled {
                Ok(Filled::Full | Filled::End) => {}
                Ok(Filled::Pending) => return,
                Ok(Filled::Refused(error)) => {
                    let error = format!("the argument cannot be encoded: {error}");
                    self.fail_one(TaskError::Encode(error));
                }
                Err(panic) => self.panic = Some(panic),
            }
        }
    }

    /// The next item of the input fails here.
    fn fail_one(&mut self, error: TaskError) {
        let segment = Segment {
            first: self.n_pulled,
            len: 1,
            results: Results::Failed(error),
        };
        self.n_pulled += 1;
        match self.order {
            Order::OfInput => drop(self.held.insert(segment.first, segment)),
            Order::OfCompletion => self.arrived.push_back(segment),
        }
    }

    fn has_next_here(&self) -> bool {
        match self.order {
            _ if self.reading.is_some() => true,
            Order::OfCompletion => !self.arrived.is_empty(),
            Order::OfInput => self
                .held
                .first_key_value()
                .is_some_and(|(first, _)| *first == self.n_delivered),
        }
    }

    /// The next result that is here.
    fn next_here<R: DeserializeOwned>(&mut self) -> Option<Result<R, TaskError>> {
        if self.reading.is_none() {
            if !self.has_next_here() {
                return None;
            }
            let segment = match self.order {
                Order::OfCompletion => self.arrived.pop_front()?,
                Order::OfInput => self.held.pop_first()?.1,
            };
            let left = segment.len;
            self.reading = Some(match segment.results {
                Results::Frames(bytes, fds) => Reading::Frames {
                    bytes,
                    at: 0,
                    fds,
                    left,
                },
                Results::Failed(error) => Reading::Failed { error, left },
            });
        }
        // All is counted before a result is decoded: that runs the user's code, which may panic.
        self.n_delivered += 1;
        match self.reading.as_mut()? {
            Reading::Failed { error, left } => {
                *left -= 1;
                let error = error.clone();
                if *left == 0 {
                    self.reading = None;
                }
                Some(Err(error))
            }
            Reading::Frames {
                bytes,
                at,
                fds,
                left,
            } => {
                *left -= 1;
                // The frames were looked at when they came.
                let (header, body) = frame_at(&bytes[*at..], u32::MAX).ok()??;
                *at += HEADER_LEN + body.len();
                let fds = std::mem::take(fds);
                if *left > 0 {
                    return Some(read_answer(header.kind, body, fds));
                }
                let (start, end) = (*at - body.len(), *at);
                let Some(Reading::Frames { bytes, .. }) = self.reading.take() else {
                    return None;
                };
                Some(read_answer(header.kind, &bytes[start..end], fds))
            }
        }
    }

    fn end(&mut self) {
        if let State::Open(id) = std::mem::replace(&mut self.state, State::Over) {
            self.shared.step(|core, now, _| core.close_stream(id, now));
        }
    }
}

impl<F> Drop for Flow<F> {
    fn drop(&mut self) {
        let state = self.state;
        self.shared.step(|core, now, _| {
            if let State::Open(id) = state {
                core.close_stream(id, now);
            }
            core.user_gone();
        });
    }
}
