//! Typed messages between two processes.
//!
//! A pipe has two ends. [`one_way`] gives a [`PipeSender`] and a [`PipeReceiver`];
//! [`AsyncPipe::pair`] gives two ends that both send and receive, and is a pipe each way. Any end
//! can be handed to any process of the program, as an argument, in a result or in a message, and
//! goes on there where it left off.
//!
//! # How it works
//!
//! Each direction is a stream socket of its own, so that the two halves of an end can live in
//! different processes and the end of each is still seen the moment its process dies. Messages
//! are frames; many small ones share a system call. The endpoint holds what is half-way, the
//! futures hold nothing, so dropping them loses nothing.
//!
//! # Waiting for one of several
//!
//! What Python's `multiprocessing.connection.wait` does is [`tokio::select!`] over the `recv` of
//! several pipes, as every `recv` is cancel safe; or, for many, a `select_all` of the receivers,
//! which are streams. See [`docs::waiting`](crate::docs::waiting).
//!
//! [`tokio::select!`]: https://docs.rs/tokio/latest/tokio/macro.select.html

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::{Sink, Stream};
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{RecvError, SendError, SendFailure, TryRecvError};
use crate::sys::socket;
use crate::wire::fds;
use crate::wire::frame::{FDS_PER_FRAME_MAX, Frame, HEADER_LEN, Header};
use crate::wire::link::{Encoded, Inlet, Next, Outlet, Refusal};
use crate::wire::scratch::Scratch;

/// The most bytes of a message, unless another limit is set.
pub const DEFAULT_LIMIT: usize = 64 << 20;

/// What the body of a frame is.
const VALUE: u8 = 1;
const BYTES: u8 = 2;

/// Asked of the kernel for each direction. It grants what `net.core.wmem_max` allows, and messages
/// of a megabyte are twice as fast with 1 MiB as with the default of 208 KiB.
const SEND_BUFFER: usize = 1 << 20;

/// So many bytes are copied rather than sent from where they are, or kept with a buffer that is many
/// times longer.
const COPIED_MAX: usize = 4 << 10;

/// Makes a pipe for one direction.
///
/// This is Python's `Pipe(duplex=False)`, but for the order: the sender comes first, as in tokio.
///
/// # Errors
///
/// The process has no file descriptors left.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_multiprocess::pipe;
///
/// let (tx, rx) = pipe::one_way::<String>()?;
///
/// tx.send("hello".to_owned()).await?;
/// drop(tx);
///
/// assert_eq!(rx.recv().await?, "hello");
/// assert!(rx.recv().await.is_err());
/// # Ok(()) }
/// ```
pub fn one_way<T>() -> io::Result<(PipeSender<T>, PipeReceiver<T>)> {
    let (out, into) = socket::stream_pair()?;
    // A smaller buffer than asked for is slower and no failure.
    let _ = socket::set_send_buffer(&out, SEND_BUFFER);
    let limit = DEFAULT_LIMIT as u32;
    Ok((
        PipeSender::new(Outlet::new(out, limit, Vec::new())),
        PipeReceiver::new(Inlet::new(into, limit, (&[], Vec::new()))),
    ))
}

/// The sending end of a pipe.
///
/// Dropping it closes the pipe behind the last message: what was accepted is still sent, by a
/// thread of the library if the other end does not read at once.
///
/// As a [`Sink`] it batches: `feed` puts messages together until 64 KiB are there or it is
/// flushed.
///
/// # Process death
///
/// A process that dies inside of a message leaves a torn one, and the other end is told so
/// ([`RecvError::Torn`]). Messages that were sent before are received. If the receiving process
/// dies, sending fails with [`SendFailure::Closed`]; what it had not received is lost with it.
pub struct PipeSender<T> {
    outlet: Outlet,
    _messages: PhantomData<fn(T)>,
}

impl<T: Serialize> PipeSender<T> {
    /// Sends a message, and waits until it has left this process.
    ///
    /// Messages of many tasks never mix: each is sent as a whole, in the order in which their
    /// sending began.
    ///
    /// # Errors
    ///
    /// The other end is gone, the value cannot be serialised or is too long, or this end has been
    /// sent away. The value comes back with the error.
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped while it waits for room has sent nothing. After
    /// that all of the message will be sent, though nobody waits for it.
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = match self.encode(&value) {
            Ok(encoded) => self.outlet.send(encoded).await.map_err(failure),
            Err(failure) => Err(failure),
        };
        sent.map_err(|failure| SendError::new(value, failure))
    }

    /// Accepts a message, which is sent together with those that follow, at the latest by
    /// [`flush`](Self::flush) or when this end is dropped.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped has accepted nothing.
    pub async fn feed(&self, value: T) -> Result<(), SendError<T>> {
        let fed = match self.encode(&value) {
            Ok(encoded) if self.outlet.feed_behind(&encoded) => return Ok(()),
            Ok(encoded) => self.outlet.feed(encoded).await.map_err(failure),
            Err(failure) => Err(failure),
        };
        fed.map_err(|failure| SendError::new(value, failure))
    }

    /// Sends a message if there is room for it now.
    ///
    /// Part of it may still be in this process then, and is sent by a thread of the library's; a
    /// process that leaves at once, without waiting for its peer, may tear it.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendFailure::Full`].
    pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.encode(&value).and_then(|encoded| {
            let sent = self.outlet.try_send(encoded);
            sent.map_err(failure)
        });
        sent.map_err(|failure| SendError::new(value, failure))
    }

    /// Sends a message; the whole thread waits until it has left this process.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.encode(&value).and_then(|encoded| {
            let sent = self.outlet.blocking_send(encoded);
            sent.map_err(failure)
        });
        sent.map_err(|failure| SendError::new(value, failure))
    }

    #[inline]
    fn encode(&self, value: &T) -> Result<Encoded, SendFailure> {
        let mut bytes = self.outlet.buffer();
        let outgoing = fds::encode_with_fds(value, &mut bytes).map_err(SendFailure::Encode)?;
        let len = bytes.len() - HEADER_LEN;
        // What does not fit into one frame with the value goes ahead of it.
        let n_fds = match outgoing.fds().len() {
            0 => 0,
            n_fds => (n_fds - 1) % FDS_PER_FRAME_MAX + 1,
        };
        let header = self.header(VALUE, len)?.with_fds(n_fds).to_bytes();
        bytes[..HEADER_LEN].copy_from_slice(&header);
        Ok(Encoded { bytes, outgoing })
    }
}

impl<T> PipeSender<T> {
    fn new(outlet: Outlet) -> Self {
        Self {
            outlet,
            _messages: PhantomData,
        }
    }

    /// Sends bytes as they are, to be received by [`recv_bytes`](PipeReceiver::recv_bytes). They
    /// are copied into the socket and nowhere else.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped before its first byte was sent has sent nothing.
    /// After that all of the message will be sent, and what is left of it is copied for that.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<(), SendFailure> {
        let header = self.header(BYTES, bytes.len())?;
        let sent = if bytes.len() <= COPIED_MAX {
            self.outlet.send(self.copied(header, bytes)).await
        } else {
            self.outlet.send_slice(header, bytes).await
        };
        sent.map_err(failure)
    }

    /// Sends bytes as they are; the whole thread waits until they have left this process.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_send_bytes(&self, bytes: &[u8]) -> Result<(), SendFailure> {
        let header = self.header(BYTES, bytes.len())?;
        let sent = self.outlet.blocking_send(self.copied(header, bytes));
        sent.map_err(failure)
    }

    fn copied(&self, header: Header, body: &[u8]) -> Encoded {
        let mut bytes = self.outlet.buffer();
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        bytes.extend_from_slice(body);
        Encoded {
            bytes,
            outgoing: fds::Outgoing::default(),
        }
    }

    /// Waits until every message that was accepted has left this process.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** what was accepted will be sent, though nobody waits for it.
    pub async fn flush(&self) -> Result<(), SendFailure> {
        self.outlet.flush().await.map_err(failure)
    }

    /// The most bytes of a message, [`DEFAULT_LIMIT`] at first.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.outlet.limit() as usize
    }

    /// Sets the limit, up to 4 GiB. The other end has its own.
    pub fn set_limit(&self, bytes: usize) {
        self.outlet.set_limit(clamp(bytes));
    }

    fn header(&self, kind: u8, len: usize) -> Result<Header, SendFailure> {
        let limit = self.limit();
        if len > limit {
            return Err(SendFailure::TooLong { len, limit });
        }
        Ok(Header::new(kind, 0, len))
    }
}

/// The receiving end of a pipe, and a stream of its messages.
///
/// As a [`Stream`] it ends where the pipe is closed. After an error that would come again the
/// stream ends as well.
///
/// # Process death
///
/// If the sending process dies, what it has sent is received and then [`RecvError::Closed`], or
/// [`RecvError::Torn`] if it died inside of a message. A pipe is closed when the last copy of its
/// sending end is closed: an end that was sent away and not received yet counts.
pub struct PipeReceiver<T> {
    inlet: Arc<Inlet>,
    /// The stream has ended.
    is_done: bool,
    _messages: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> PipeReceiver<T> {
    /// Waits for the next message.
    ///
    /// Several tasks may wait; each message goes to one of them. They take turns, and whose turn it is
    /// must be polled: a future that was begun and is kept without being polled, as when a `select!`
    /// over `&mut recv` has taken another branch, holds the others up until it is polled or dropped.
    ///
    /// # Errors
    ///
    /// The pipe is closed or torn, the message is no `T` or too long, or this end has been sent
    /// away.
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped has taken nothing from the pipe.
    pub async fn recv(&self) -> Result<T, RecvError> {
        let mut body = Scratch::new();
        if let Some(kind) = self.inlet.copy_at_hand(&mut body) {
            return decode(kind, &body, Vec::new());
        }
        match self.inlet.next(&mut body).await? {
            Next::Copied(kind) => decode(kind, &body, Vec::new()),
            Next::Whole(frame) => value(frame),
        }
    }

    /// Takes the next message if it is there.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`TryRecvError::Empty`], also while a task waits for the
    /// message.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let frame = self.inlet.try_next()?.ok_or(TryRecvError::Empty)?;
        Ok(value(frame)?)
    }

    /// Waits for the next message with the whole thread.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_recv(&self) -> Result<T, RecvError> {
        value(self.inlet.blocking_next()?)
    }
}

impl<T> PipeReceiver<T> {
    fn new(inlet: Inlet) -> Self {
        Self {
            inlet: Arc::new(inlet),
            is_done: false,
            _messages: PhantomData,
        }
    }

    /// Waits for the next message, which must have been sent by
    /// [`send_bytes`](PipeSender::send_bytes). Many bytes come without being copied on the way.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped has taken nothing from the pipe.
    pub async fn recv_bytes(&self) -> Result<Bytes, RecvError> {
        let mut body = Scratch::new();
        match self.inlet.next(&mut body).await? {
            Next::Copied(kind) => is_raw(kind).map(|()| Bytes::copy_from_slice(&body)),
            Next::Whole(frame) => raw(frame),
        }
    }

    /// Takes the next bytes if they are there.
    ///
    /// # Errors
    ///
    /// As [`try_recv`](Self::try_recv).
    pub fn try_recv_bytes(&self) -> Result<Bytes, TryRecvError> {
        let frame = self.inlet.try_next()?.ok_or(TryRecvError::Empty)?;
        Ok(raw(frame)?)
    }

    /// Waits for the next bytes with the whole thread.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_recv_bytes(&self) -> Result<Bytes, RecvError> {
        raw(self.inlet.blocking_next()?)
    }

    /// Waits until receiving would not wait: a whole message is there, or the end.
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** it takes nothing from the pipe at all.
    pub async fn readable(&self) {
        self.inlet.ready().await;
    }

    /// The most bytes of a message, [`DEFAULT_LIMIT`] at first.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.inlet.limit() as usize
    }

    /// Sets the limit, up to 4 GiB. It is checked before anything is reserved for the message.
    pub fn set_limit(&self, bytes: usize) {
        self.inlet.set_limit(clamp(bytes));
    }
}

/// One end of a pipe that both sends and receives: `S` goes out, `R` comes in.
///
/// This is Python's `Pipe()`. It is a [`PipeSender`] and a [`PipeReceiver`] in one, and
/// [`split`](Self::split) gives the two.
///
/// # Process death
///
/// See [`PipeSender`] and [`PipeReceiver`].
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_multiprocess::AsyncPipe;
///
/// let (here, there) = AsyncPipe::<String, usize>::pair()?;
/// let answers = tokio::spawn(async move {
///     while let Ok(text) = there.recv().await {
///         there.send(text.len()).await?;
///     }
///     Ok::<_, tokio_multiprocess::SendError<usize>>(())
/// });
///
/// here.send("hello".to_owned()).await?;
/// assert_eq!(here.recv().await?, 5);
///
/// drop(here);
/// answers.await??;
/// # Ok(()) }
/// ```
pub struct AsyncPipe<S, R> {
    sender: PipeSender<S>,
    receiver: PipeReceiver<R>,
}

impl<S, R> AsyncPipe<S, R> {
    /// Makes a pipe.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left; each end takes two.
    pub fn pair() -> io::Result<(Self, AsyncPipe<R, S>)> {
        let (sender, there) = one_way()?;
        let (back, receiver) = one_way()?;
        let other = AsyncPipe {
            sender: back,
            receiver: there,
        };
        Ok((Self { sender, receiver }, other))
    }

    /// The two halves, which may go to different tasks and different processes.
    #[must_use]
    pub fn split(self) -> (PipeSender<S>, PipeReceiver<R>) {
        (self.sender, self.receiver)
    }

    /// Sends bytes as they are: see [`PipeSender::send_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** as there.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<(), SendFailure> {
        self.sender.send_bytes(bytes).await
    }

    /// Sends bytes as they are: see [`PipeSender::blocking_send_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_send_bytes(&self, bytes: &[u8]) -> Result<(), SendFailure> {
        self.sender.blocking_send_bytes(bytes)
    }

    /// Waits until every message that was accepted has left this process.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** what was accepted will be sent, though nobody waits for it.
    pub async fn flush(&self) -> Result<(), SendFailure> {
        self.sender.flush().await
    }

    /// Waits for the next bytes: see [`PipeReceiver::recv_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped has taken nothing from the pipe.
    pub async fn recv_bytes(&self) -> Result<Bytes, RecvError> {
        self.receiver.recv_bytes().await
    }

    /// Takes the next bytes if they are there.
    ///
    /// # Errors
    ///
    /// As [`PipeReceiver::try_recv`].
    pub fn try_recv_bytes(&self) -> Result<Bytes, TryRecvError> {
        self.receiver.try_recv_bytes()
    }

    /// Waits for the next bytes with the whole thread.
    ///
    /// # Errors
    ///
    /// As [`PipeReceiver::recv`].
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_recv_bytes(&self) -> Result<Bytes, RecvError> {
        self.receiver.blocking_recv_bytes()
    }

    /// Waits until receiving would not wait: a whole message is there, or the end.
    ///
    /// # Panics
    ///
    /// It has to wait, and there is no runtime, or one without I/O.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** it takes nothing from the pipe at all.
    pub async fn readable(&self) {
        self.receiver.readable().await;
    }

    /// Sets the limit of messages in both directions: see [`PipeSender::set_limit`] and
    /// [`PipeReceiver::set_limit`].
    pub fn set_limit(&self, bytes: usize) {
        self.sender.set_limit(bytes);
        self.receiver.set_limit(bytes);
    }
}

impl<S: Serialize, R> AsyncPipe<S, R> {
    /// Sends a message: see [`PipeSender::send`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped while it waits for room has sent nothing. After
    /// that all of the message will be sent, though nobody waits for it.
    pub async fn send(&self, value: S) -> Result<(), SendError<S>> {
        self.sender.send(value).await
    }

    /// Accepts a message, to be sent with others: see [`PipeSender::feed`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped has accepted nothing.
    pub async fn feed(&self, value: S) -> Result<(), SendError<S>> {
        self.sender.feed(value).await
    }

    /// Sends a message if there is room for it now.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendFailure::Full`].
    pub fn try_send(&self, value: S) -> Result<(), SendError<S>> {
        self.sender.try_send(value)
    }

    /// Sends a message; the whole thread waits until it has left this process.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_send(&self, value: S) -> Result<(), SendError<S>> {
        self.sender.blocking_send(value)
    }
}

impl<S, R: DeserializeOwned> AsyncPipe<S, R> {
    /// Waits for the next message: see [`PipeReceiver::recv`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// **Cancel safe:** a future that is dropped has taken nothing from the pipe.
    pub async fn recv(&self) -> Result<R, RecvError> {
        self.receiver.recv().await
    }

    /// Takes the next message if it is there: see [`PipeReceiver::try_recv`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_recv(&self) -> Result<R, TryRecvError> {
        self.receiver.try_recv()
    }

    /// Waits for the next message with the whole thread.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// The thread drives a runtime.
    pub fn blocking_recv(&self) -> Result<R, RecvError> {
        self.receiver.blocking_recv()
    }
}

fn clamp(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn failure(refusal: Refusal) -> SendFailure {
    match refusal {
        Refusal::Closed => SendFailure::Closed,
        Refusal::Moved => SendFailure::Moved,
        Refusal::Full => SendFailure::Full,
        Refusal::Os(error) => SendFailure::Io(error),
    }
}

fn value<T: DeserializeOwned>(frame: Frame) -> Result<T, RecvError> {
    decode(frame.header.kind, &frame.body, frame.fds)
}

#[inline]
fn decode<T: DeserializeOwned>(kind: u8, body: &[u8], fds: Vec<OwnedFd>) -> Result<T, RecvError> {
    match kind {
        VALUE => fds::decode_with_fds(body, fds).map_err(RecvError::Decode),
        BYTES => Err(RecvError::Decode("it was sent by `send_bytes`".to_owned())),
        kind => Err(RecvError::Protocol(format!("a frame of the kind {kind}"))),
    }
}

fn raw(frame: Frame) -> Result<Bytes, RecvError> {
    is_raw(frame.header.kind)?;
    Ok(match frame.body.len() {
        // Lest a few bytes keep a large buffer.
        ..=COPIED_MAX => Bytes::copy_from_slice(&frame.body),
        _ => frame.body,
    })
}

fn is_raw(kind: u8) -> Result<(), RecvError> {
    match kind {
        BYTES => Ok(()),
        VALUE => Err(RecvError::Decode(
            "it is a value, and was not sent by `send_bytes`".to_owned(),
        )),
        kind => Err(RecvError::Protocol(format!("a frame of the kind {kind}"))),
    }
}

impl<T: Serialize> Sink<T> for PipeSender<T> {
    type Error = SendFailure;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        self.outlet.poll_room(cx).map_err(failure)
    }

    fn start_send(self: Pin<&mut Self>, value: T) -> Result<(), SendFailure> {
        let encoded = self.encode(&value)?;
        self.outlet.start_send(encoded).map_err(failure)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        self.outlet.poll_flush(cx).map_err(failure)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        ready!(self.outlet.poll_flush(cx)).map_err(failure)?;
        self.outlet.close();
        Poll::Ready(Ok(()))
    }
}

impl<T: DeserializeOwned> Stream for PipeReceiver<T> {
    type Item = Result<T, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        let received = ready!(self.inlet.poll_next(cx)).and_then(value);
        if let Err(error) = &received {
            self.is_done = error.is_lasting();
        }
        Poll::Ready(match received {
            Err(RecvError::Closed) => None,
            received => Some(received),
        })
    }
}

impl<S: Serialize, R> Sink<S> for AsyncPipe<S, R> {
    type Error = SendFailure;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        Pin::new(&mut self.sender).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, value: S) -> Result<(), SendFailure> {
        Pin::new(&mut self.sender).start_send(value)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        Pin::new(&mut self.sender).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        Pin::new(&mut self.sender).poll_close(cx)
    }
}

impl<S, R: DeserializeOwned> Stream for AsyncPipe<S, R> {
    type Item = Result<R, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.receiver).poll_next(cx)
    }
}

/// A sending end in a message: its socket, its limit, and what it has still to send, each part with
/// the descriptors of its first byte.
type SenderParts = (u32, u32, Vec<(Raw, Vec<u32>)>);

/// A receiving end in a message: its socket, its limit, and what it has read ahead, with the
/// descriptors of each frame in it that has any.
type ReceiverParts = (u32, u32, Raw, Vec<Vec<u32>>);

impl<T> Serialize for PipeSender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !fds::is_encoding() {
            return Err(S::Error::custom(fds::OUTSIDE));
        }
        let reserved = self.outlet.reserve().map_err(S::Error::custom)?;
        let place = list_moving::<S>(reserved.socket, reserved.moving)?;
        let mut queued = Vec::new();
        for (bytes, fds) in reserved.queued {
            queued.push((Raw(bytes), list_all::<S>(fds)?));
        }
        let parts: SenderParts = (place, reserved.limit, queued);
        parts.serialize(serializer)
    }
}

impl<T> Serialize for PipeReceiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !fds::is_encoding() {
            return Err(S::Error::custom(fds::OUTSIDE));
        }
        let reserved = self.inlet.reserve().map_err(S::Error::custom)?;
        let place = list_moving::<S>(reserved.socket, Arc::clone(&self.inlet) as _)?;
        let fds = reserved.fds.into_iter().map(list_all::<S>);
        let fds = fds.collect::<Result<_, _>>()?;
        let parts: ReceiverParts = (place, reserved.limit, Raw(reserved.rest), fds);
        parts.serialize(serializer)
    }
}

/// Lists the socket of an end that has been reserved, and from then on its fate is the message's.
fn list_moving<S: Serializer>(
    socket: Arc<OwnedFd>,
    moving: Arc<dyn fds::Moving>,
) -> Result<u32, S::Error> {
    fds::list(socket, Some(Arc::clone(&moving))).map_err(|error| {
        moving.restore();
        S::Error::custom(error)
    })
}

fn list_all<S: Serializer>(fds: Vec<Arc<OwnedFd>>) -> Result<Vec<u32>, S::Error> {
    let places = fds.into_iter().map(|fd| fds::list(fd, None));
    places.collect::<Result<_, _>>().map_err(S::Error::custom)
}

fn take_all<E: serde::de::Error>(places: Vec<u32>) -> Result<Vec<OwnedFd>, E> {
    let fds = places.into_iter().map(fds::take);
    fds.collect::<Result<_, _>>().map_err(E::custom)
}

impl<'de, T> Deserialize<'de> for PipeSender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, limit, parts) = SenderParts::deserialize(deserializer)?;
        let socket = fds::take(place).map_err(D::Error::custom)?;
        let mut queued = Vec::new();
        for (Raw(bytes), places) in parts {
            if bytes.is_empty() {
                return Err(D::Error::custom("nothing carries file descriptors"));
            }
            if places.len() > FDS_PER_FRAME_MAX {
                return Err(D::Error::custom(
                    "one frame has more file descriptors than it can",
                ));
            }
            queued.push((bytes, take_all(places)?));
        }
        Ok(Self::new(Outlet::new(socket, limit, queued)))
    }
}

impl<'de, T> Deserialize<'de> for PipeReceiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, limit, Raw(rest), places) = ReceiverParts::deserialize(deserializer)?;
        let socket = fds::take(place).map_err(D::Error::custom)?;
        let fds = places.into_iter().map(take_all);
        let fds = fds.collect::<Result<_, _>>()?;
        Ok(Self::new(Inlet::new(socket, limit, (&rest, fds))))
    }
}

impl<T, U> Serialize for AsyncPipe<T, U> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.sender, &self.receiver).serialize(serializer)
    }
}

impl<'de, T, U> Deserialize<'de> for AsyncPipe<T, U> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (sender, receiver) = Deserialize::deserialize(deserializer)?;
        Ok(Self { sender, receiver })
    }
}

/// Bytes that are not encoded one by one.
struct Raw(Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Raw, E> {
                Ok(Raw(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

impl<T> fmt::Debug for PipeSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeSender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for PipeReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeReceiver").finish_non_exhaustive()
    }
}

impl<S, R> fmt::Debug for AsyncPipe<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncPipe").finish_non_exhaustive()
    }
}
