//! Queues between processes: any number of producers and consumers, in any number of processes.
//!
//! An item goes through shared memory; a system call is made only to wake somebody who sleeps. No
//! process has to wait for a dead or a stopped one, at whatever instruction it was killed or stopped:
//! see `src/broker/queue` for how and why.
//!
//! Other files: a queue as a process holds it (`core`), the two halves (`ends`), how a queue is made
//! (`builder`), items that come back if they are not done with (`lease`), the stream (`stream`).

mod builder;
mod core;
mod ends;
mod lease;
mod stream;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::builder::QueueBuilder;
use self::core::{Core, Taken, Trouble};
pub use self::ends::{QueueReceiver, QueueSender};
pub use self::lease::Lease;
pub use self::stream::QueueStream;
use crate::broker::layout::Kind;
use crate::broker::object::{self, Object};
use crate::error::{CreatorGone, GetError, PutError, TaskDoneError};
use crate::wire::fds;

/// A queue that tasks in many processes put items into and get items from.
///
/// Each item is got once. Items of one producer come out in the order in which they were put;
/// between producers there is no order. A handle is cheap to clone, and travels to other processes
/// as an argument or inside a message, queues of queues included; the sender keeps its own.
///
/// This is Python's `multiprocessing.Queue`, `JoinableQueue` and `SimpleQueue` in one, with some
/// differences. `put` completes when the item *is* in the queue, so an item that cannot be
/// serialised fails there and comes back, nothing is lost at exit, and there is no thread to be
/// joined. [`len`](Self::len) is exact at the moment it is taken. And a queue ends: when the last
/// handle that could put is gone and everything has been got, `get` fails with
/// [`GetError::Closed`], also when the producers were killed. A whole `AsyncQueue` can put and
/// get; to give away one ability only, [`split`](Self::split) it. What counts are handles in
/// processes and handles in messages that nobody has received yet. A child by fork has copies of all
/// handles that its parent had, used or not, so [`close`](Self::close) a queue whose end such a child
/// is to find.
///
/// An item may have any size that memory allows; large ones are copied into the queue's memory once
/// and out of it once, and that memory is used again and again.
///
/// # Limits
///
/// - 512 processes can use a queue at one time. Each of them maps some 17 MiB of its memory at first,
///   which costs only what is used.
/// - An item that comes back, from a lease or from a consumer that gave up, comes before all others,
///   so also out of the order in which it was put.
/// - A closed queue ends when no consumer has an item in hand that may come back. So a lease that is
///   kept, or a consumer that is stopped while it gets an item, holds up the end, and
///   [`join`](Self::join) as well.
/// - Tasks of one process wait in their order. A `get` or `put` that was polled and is neither polled
///   again nor dropped may hold up the others of its process, as it does with any fair lock.
/// - That the last consumer is gone takes a moment to be noticed: a `put` right after it may still
///   succeed.
/// - An item holds at most 253 descriptors. They are kept by the process that made the queue until
///   the item has been got; [`try_get`](Self::try_get) waits for its answer.
///
/// # Process death
///
/// A process that is killed, at whatever instruction, blocks nobody and tears nothing. An item that
/// it was putting is in the queue whole, or not at all. An item that it had got is lost with it; one
/// that it was about to get goes back. To have what it had got as well, make the queue with
/// [leases](QueueBuilder::leases).
///
/// A process that is *stopped* stops nobody else; what it was about to tell somebody who sleeps, the
/// queue's creator tells some 20 ms later. While the creator itself is stopped, the others go on, but
/// two of them that have never woken each other are not introduced, so that one of these may sleep
/// until the creator goes on; and descriptors of items are not handed out.
///
/// When the process that created the queue has ended, everything fails with `CreatorGone`.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::{AsyncQueue, GetError, Process, QueueSender};
///
/// async fn produce(queue: QueueSender<String>) {
///     queue.put("hello".to_owned()).await.unwrap();
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, receiver) = AsyncQueue::bounded(16)?.split();
/// let mut child = Process::start(produce, sender).await?;
///
/// assert_eq!(receiver.get().await?, "hello");
/// assert!(matches!(receiver.get().await, Err(GetError::Closed)));
/// child.join().await?;
/// # Ok(()) }
/// ```
pub struct AsyncQueue<T> {
    core: Arc<Core>,
    put_end: Arc<OwnedFd>,
    get_end: Arc<OwnedFd>,
    item: PhantomData<fn(T) -> T>,
}

impl<T> AsyncQueue<T> {
    /// Makes a queue for at most `capacity` items. This process looks after it. There is no queue
    /// without room, at which both sides would meet.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left, or with
    /// [`io::ErrorKind::InvalidInput`] for a capacity of 0.
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        let capacity = NonZeroUsize::new(capacity).ok_or(io::ErrorKind::InvalidInput)?;
        Self::builder().capacity(capacity).build()
    }

    /// Makes a queue that only the memory limits. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn unbounded() -> io::Result<Self> {
        Self::builder().build()
    }

    /// Makes a queue with more to choose: leases.
    #[must_use]
    pub fn builder() -> QueueBuilder<T> {
        QueueBuilder::new()
    }

    fn create(limit: u64, leases: bool) -> io::Result<Self> {
        let (put_watch, put_end) = io::pipe()?;
        let (get_watch, get_end) = io::pipe()?;
        let core = Core::create(limit, leases, [put_watch.as_fd(), get_watch.as_fd()])?;
        Ok(Self::new(core, put_end.into(), get_end.into()))
    }

    fn new(core: Arc<Core>, put_end: OwnedFd, get_end: OwnedFd) -> Self {
        let (put_end, get_end) = (keep(&core, PUT, put_end), keep(&core, GET, get_end));
        Self {
            core,
            put_end,
            get_end,
            item: PhantomData,
        }
    }

    /// The half that can put and the half that can get.
    #[must_use]
    pub fn split(self) -> (QueueSender<T>, QueueReceiver<T>) {
        (self.sender(), self.receiver())
    }

    /// A handle that can only put.
    #[must_use]
    pub fn sender(&self) -> QueueSender<T> {
        QueueSender::new(Arc::clone(&self.core), Arc::clone(&self.put_end))
    }

    /// A handle that can only get.
    #[must_use]
    pub fn receiver(&self) -> QueueReceiver<T> {
        QueueReceiver::new(Arc::clone(&self.core), Arc::clone(&self.get_end))
    }

    /// How many items are in the queue at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.core.len()
    }

    /// Whether nothing is in the queue at this moment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room at this moment.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.capacity().is_some_and(|most| self.len() >= most.get())
    }

    /// How many items there is room for; nothing for a queue that only the memory limits.
    #[must_use]
    pub fn capacity(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.core.limit() as usize)
    }

    /// Lets nothing in any more, from whatever process. What is in the queue can still be got.
    ///
    /// Closing it twice is the same as once.
    pub fn close(&self) {
        self.core.close();
    }

    /// Whether nothing gets in any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Reports that an item that was got is done with, for [`join`](Self::join).
    ///
    /// # Errors
    ///
    /// [`TaskDoneError::TooMany`] when every item that was got has been reported already.
    ///
    /// # Process death
    ///
    /// What a dead process had got and not reported counts as done: nobody else would report it.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        task_done(&self.core)
    }

    /// Waits until every item that was put has been got and reported as done.
    ///
    /// When nobody can get any more, what is left is dropped with its descriptors. That counts as done
    /// then, as does what was got and not reported: nobody else would report it.
    ///
    /// # Errors
    ///
    /// Fails with [`CreatorGone`] when the process that made the queue has ended.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a dropped wait changes nothing.
    pub async fn join(&self) -> Result<(), CreatorGone> {
        self.core.join().await.map_err(|_| CreatorGone)
    }

    /// The same with the thread asleep.
    ///
    /// # Errors
    ///
    /// As for [`join`](Self::join).
    ///
    /// # Panics
    ///
    /// When called from asynchronous code.
    pub fn blocking_join(&self) -> Result<(), CreatorGone> {
        self.core.join_blocking().map_err(|_| CreatorGone)
    }
}

impl<T: Serialize> AsyncQueue<T> {
    /// Puts an item into the queue, waiting until there is room.
    ///
    /// # Errors
    ///
    /// The item comes back: [`PutError::Closed`] when the queue was closed or nobody can get any
    /// more, [`PutError::Encode`] when the item cannot be serialised, [`PutError::CreatorGone`] when
    /// the process that made the queue has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** the item of a dropped future was not put. To keep it, make it a clone.
    ///
    /// # Process death
    ///
    /// The item of a process that is killed meanwhile is in the queue whole, or not at all.
    pub async fn put(&self, item: T) -> Result<(), PutError<T>> {
        put(&self.core, item).await
    }

    /// Puts an item if there is room now.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`PutError::Full`].
    pub fn try_put(&self, item: T) -> Result<(), PutError<T>> {
        try_put(&self.core, item)
    }

    /// Puts an item, with the thread asleep until there is room.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Panics
    ///
    /// When called from asynchronous code.
    pub fn blocking_put(&self, item: T) -> Result<(), PutError<T>> {
        blocking_put(&self.core, item)
    }
}

impl<T: DeserializeOwned> AsyncQueue<T> {
    /// Gets the first item, waiting until there is one.
    ///
    /// # Errors
    ///
    /// [`GetError::Closed`] when there is nothing and nothing will come: this handle can put, so that
    /// is so only after [`close`](Self::close). [`GetError::Decode`] when an item came that is not a
    /// `T`; it is gone, and counts as done. [`GetError::System`] when this process has no room for the
    /// item's descriptors; it was put back. [`GetError::CreatorGone`] when the process that made the queue has ended.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a dropped future takes no item along.
    ///
    /// # Process death
    ///
    /// An item that a killed process was about to get goes back; one that it had got is lost.
    pub async fn get(&self) -> Result<T, GetError> {
        get(&self.core).await
    }

    /// Gets the first item if there is one now.
    ///
    /// For an item with descriptors it asks the process that made the queue, and blocks the thread
    /// until that has answered.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and [`GetError::Empty`].
    pub fn try_get(&self) -> Result<T, GetError> {
        try_get(&self.core)
    }

    /// Gets the first item, with the thread asleep until there is one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    ///
    /// # Panics
    ///
    /// When called from asynchronous code.
    pub fn blocking_get(&self) -> Result<T, GetError> {
        blocking_get(&self.core)
    }

    /// Gets the first item with a lease: if the guard is dropped, or this process dies, before the
    /// item was reported as done, somebody else gets it.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and [`GetError::NoLeases`] for a queue that was made without.
    ///
    /// # Panics
    ///
    /// When it has to wait outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a dropped future takes no item along.
    pub async fn get_leased(&self) -> Result<Lease<T>, GetError> {
        get_leased(&self.core).await
    }

    /// The items as a stream. It counts as a handle that can get, not as one that can put.
    pub fn into_stream(self) -> QueueStream<T>
    where
        T: Send + 'static,
    {
        self.split().1.into_stream()
    }
}

impl<T> Clone for AsyncQueue<T> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
            put_end: Arc::clone(&self.put_end),
            get_end: Arc::clone(&self.get_end),
            item: PhantomData,
        }
    }
}

impl<T> fmt::Debug for AsyncQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe("AsyncQueue", &self.core, f)
    }
}

impl<T> Serialize for AsyncQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (put, get) = (
            End(Arc::clone(&self.put_end)),
            End(Arc::clone(&self.get_end)),
        );
        (Shared(self.core.object()), put, get).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for AsyncQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Received(object), put, get) =
            <(Received, ReceivedEnd, ReceivedEnd)>::deserialize(deserializer)?;
        let core = Core::of(object).map_err(D::Error::custom)?;
        Ok(Self::new(core, put.0, get.0))
    }
}

async fn put<T: Serialize>(core: &Arc<Core>, item: T) -> Result<(), PutError<T>> {
    match core.fill(&item) {
        Ok(mut filled) => match core.put(&mut filled).await {
            Ok(()) => Ok(()),
            Err(trouble) => Err(put_error(item, trouble)),
        },
        Err(trouble) => Err(put_error(item, trouble)),
    }
}

fn try_put<T: Serialize>(core: &Arc<Core>, item: T) -> Result<(), PutError<T>> {
    if !core.has_room() {
        // Also if nobody will ever make room.
        return Err(match core.check() {
            Ok(()) => PutError::Full(item),
            Err(trouble) => put_error(item, trouble),
        });
    }
    let put = core
        .fill(&item)
        .and_then(|mut filled| core.try_put(&mut filled));
    match put {
        Ok(true) => Ok(()),
        Ok(false) => Err(PutError::Full(item)),
        Err(trouble) => Err(put_error(item, trouble)),
    }
}

fn blocking_put<T: Serialize>(core: &Arc<Core>, item: T) -> Result<(), PutError<T>> {
    let put = core
        .fill(&item)
        .and_then(|mut filled| core.put_blocking(&mut filled));
    put.map_err(|trouble| put_error(item, trouble))
}

fn put_error<T>(item: T, trouble: Trouble) -> PutError<T> {
    match trouble {
        Trouble::Closed => PutError::Closed(item),
        Trouble::CreatorGone => PutError::CreatorGone(item),
        Trouble::Codec(why) => PutError::Encode(item, why),
        Trouble::System(error) => PutError::System(item, error),
    }
}

async fn get<T: DeserializeOwned>(core: &Arc<Core>) -> Result<T, GetError> {
    let taken = core.take().await?;
    let fds = taken.fds().await?;
    Ok(taken.get(|bytes| fds::decode_with_fds(bytes, fds))?)
}

fn try_get<T: DeserializeOwned>(core: &Arc<Core>) -> Result<T, GetError> {
    let taken = core.try_take()?.ok_or(GetError::Empty)?;
    let fds = taken.fds_blocking()?;
    Ok(taken.get(|bytes| fds::decode_with_fds(bytes, fds))?)
}

fn blocking_get<T: DeserializeOwned>(core: &Arc<Core>) -> Result<T, GetError> {
    let taken = core.take_blocking()?;
    let fds = taken.fds_blocking()?;
    Ok(taken.get(|bytes| fds::decode_with_fds(bytes, fds))?)
}

async fn get_leased<T: DeserializeOwned>(core: &Arc<Core>) -> Result<Lease<T>, GetError> {
    if !core.has_leases() {
        return Err(GetError::NoLeases);
    }
    lease_of(core.take().await?).await
}

async fn lease_of<T: DeserializeOwned>(taken: Taken) -> Result<Lease<T>, GetError> {
    let fds = taken.fds().await?;
    let (item, leased) = taken.lease(|bytes| fds::decode_with_fds(bytes, fds))?;
    Ok(Lease::new(item, leased))
}

fn task_done(core: &Core) -> Result<(), TaskDoneError> {
    match core.done() {
        Ok(true) => Ok(()),
        Ok(false) => Err(TaskDoneError::TooMany),
        Err(_) => Err(CreatorGone.into()),
    }
}

impl From<Trouble> for GetError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Closed => Self::Closed,
            Trouble::CreatorGone => Self::CreatorGone(CreatorGone),
            Trouble::Codec(why) => Self::Decode(why),
            Trouble::System(error) => Self::System(error),
        }
    }
}

fn describe(name: &str, core: &Core, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_struct(name)
        .field("len", &core.len())
        .field("is_closed", &core.is_closed())
        .finish_non_exhaustive()
}

const PUT: usize = 0;
const GET: usize = 1;

/// The end that this process has already, if it has one, so that many handles cost no more than one.
fn keep(core: &Core, which: usize, end: OwnedFd) -> Arc<OwnedFd> {
    let mut ends = core.ends.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = ends[which].upgrade() {
        return known;
    }
    let end = Arc::new(end);
    ends[which] = Arc::downgrade(&end);
    end
}

/// A queue's object in a message.
struct Shared<'a>(&'a Object);

impl Serialize for Shared<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object::serialize(self.0, serializer)
    }
}

struct Received(Arc<Object>);

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::deserialize(deserializer, Kind::Queue).map(Self)
    }
}

/// What keeps a queue open, in a message.
struct End(Arc<OwnedFd>);

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fds::serialize_shared(Arc::clone(&self.0), serializer)
    }
}

struct ReceivedEnd(OwnedFd);

impl<'de> Deserialize<'de> for ReceivedEnd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fds::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn the_end_comes_when_nobody_has_an_item_that_may_come_back() {
        let queue = AsyncQueue::unbounded().unwrap();
        queue.try_put(1).unwrap();
        queue.close();
        let taken = queue.core.try_take().unwrap();

        assert!(matches!(queue.try_get(), Err(GetError::Empty)));
        let mut waits = Box::pin(queue.get());
        assert!(poll!(waits.as_mut()).is_pending());
        drop(taken);

        assert_eq!(waits.await.unwrap(), 1);
        assert!(matches!(queue.get().await, Err(GetError::Closed)));
    }
}
