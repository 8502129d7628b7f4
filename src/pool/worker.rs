//! A worker's loop: takes runs of items from the pool, calls their functions, answers one by one.
//!
//! Blocking functions run outside any runtime, so that `block_on` in the user's code works. The
//! runtime for asynchronous ones is made at the first of them; from then on the worker waits for
//! its input inside it, so that what the user has spawned goes on. While an asynchronous function
//! runs, the input is read beside it, since it may tell to interrupt it.
//!
//! With several tasks at once everything runs in that runtime, blocking functions on its threads
//! for blocking work.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{AbortHandle, Abortable};
use futures::stream::FuturesUnordered;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

use super::answers::Answers;
use super::outbox::Outbox;
use super::protocol::{self, Busy, Initializer, Orders, RUN_LEN, Run};
use crate::error::Panic;
use crate::process::entry::Child;
use crate::process::function::{Argument, Failure, Function, Later, Place, Ran, Resolved, hook_at};
use crate::sys::async_fd;
use crate::sys::socket::{self, Wait};
use crate::wire::codec;
use crate::wire::fds::Outgoing;
use crate::wire::frame::{Frame, Splitter};

/// How often the worker looks at its size.
const MEMORY_CHECK: Duration = Duration::from_millis(20);

/// The main function of a worker's process.
pub(crate) fn main(child: Child) {
    let gone = [io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe];
    match serve(child) {
        Ok(()) => (),
        // The pool is gone; this process follows in a moment.
        Err(error) if gone.contains(&error.kind()) => (),
        Err(error) => eprintln!("a pool's worker ends: {error}"),
    }
}

fn serve(mut child: Child) -> io::Result<()> {
    let orders: Orders = codec::decode(&child.payload).map_err(io::Error::other)?;
    if child.fds.is_empty() {
        return Err(io::Error::other("the outbox is missing"));
    }
    let file = child.fds.remove(0);
    let outbox = Outbox::map(&file)?;
    drop(file);
    let mut runtime = LazyRuntime::new(&orders);
    if let Some(initializer) = &orders.initializer
        && let Err(panic) = initialize(initializer, &mut child.fds, &mut runtime)
    {
        return child.say_not_ready(&panic);
    }
    child.say_ready()?;
    let control = Arc::new(child.control);
    let answers = Answers::new(outbox, Arc::clone(&control))?;
    let limit = u32::MAX;
    let mut worker = Worker {
        input: Input {
            control,
            splitter: Splitter::new(limit),
            batches: VecDeque::new(),
            interrupted: HashSet::new(),
            stopped: false,
            last: None,
        },
        answers,
        limit: orders.limit as usize,
        memory: orders.memory_limit.map(Memory::new),
    };
    let served = if orders.slots == 1 {
        worker.serve_one_by_one(&mut runtime)
    } else {
        worker.serve_at_once(orders.slots as usize, &mut runtime)
    };
    served?;
    if let Some(place) = orders.finalizer {
        let finalizer = hook_at(Place::from_bytes(place)).map_err(io::Error::other)?;
        // What it says of a panic is on stderr; nobody waits for more.
        let _ = catch_unwind(finalizer);
    }
    runtime.shut_down();
    Ok(())
}

fn initialize(
    initializer: &Initializer,
    fds: &mut Vec<OwnedFd>,
    runtime: &mut LazyRuntime,
) -> Result<(), Panic> {
    let Initializer { function, argument } = initializer;
    let failed = |message: String| Panic {
        message,
        location: String::new(),
        backtrace: String::new(),
    };
    let function = Function::from_bytes(*function);
    let resolved = function
        .resolve()
        .map_err(|error| failed(error.to_string()))?;
    let mut value = Vec::new();
    let argument = Argument {
        bytes: argument,
        fds: mem::take(fds),
    };
    let failure = match resolved.call(argument, &mut value) {
        Ran::Done(_) => return Ok(()),
        Ran::Failed(failure) => failure,
        Ran::Later(future) => {
            let runtime = runtime.get().map_err(|error| failed(error.to_string()))?;
            match runtime.block_on(future) {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            }
        }
    };
    Err(match failure {
        Failure::Panicked(panic) => panic,
        Failure::Decode(error) => failed(format!("its argument cannot be decoded: {error}")),
        // Nobody asks for its value.
        Failure::Encode(_) => return Ok(()),
    })
}

/// The runtime, from its first use on.
struct LazyRuntime {
    n_blocking: usize,
    runtime: Option<Runtime>,
}

impl LazyRuntime {
    fn new(orders: &Orders) -> Self {
        Self {
            n_blocking: (orders.slots as usize).max(512),
            runtime: None,
        }
    }

    fn get(&mut self) -> io::Result<&Runtime> {
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(self.n_blocking)
                .build()?,
        };
        Ok(self.runtime.insert(runtime))
    }

    fn shut_down(self) {
        if let Some(runtime) = self.runtime {
            // Dropping it would wait for what the user's code left on blocking threads.
            runtime.shutdown_background();
        }
    }
}

/// Items of one function.
struct Batch {
    run: Run,
    function: Result<Resolved, String>,
    /// Number of the next item.
    seq: u64,
    items: Bytes,
    /// Where the next item begins.
    at: usize,
    left: u32,
    /// Descriptors that the last item holds.
    fds: Vec<OwnedFd>,
}

/// One item.
struct Item {
    seq: u64,
    /// Where its argument lies in the batch.
    argument: Range<usize>,
    fds: Vec<OwnedFd>,
}

impl Batch {
    /// The next item.
    fn next(&mut self) -> io::Result<Option<Item>> {
        if self.left == 0 {
            return Ok(None);
        }
        let rest = &self.items[self.at..];
        let len = rest.first_chunk().map(|len| u32::from_le_bytes(*len));
        let len = len.map_or(usize::MAX, |len| len as usize);
        if len > rest.len().saturating_sub(4) {
            return Err(malformed());
        }
        let start = self.at + 4;
        self.at = start + len;
        self.left -= 1;
        self.seq += 1;
        let fds = if self.left == 0 {
            mem::take(&mut self.fds)
        } else {
            Vec::new()
        };
        Ok(Some(Item {
            seq: self.seq - 1,
            argument: start..self.at,
            fds,
        }))
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed run")
}

/// What comes from the pool.
struct Input {
    control: Arc<OwnedFd>,
    splitter: Splitter,
    batches: VecDeque<Batch>,
    /// Numbers of tasks that are to be dropped.
    interrupted: HashSet<u64>,
    /// Nothing more will come.
    stopped: bool,
    /// The function of the last batch: most often that of the next one, too.
    last: Option<(Function, Resolved)>,
}

impl Input {
    /// Reads what is there; without anything it waits, or says so.
    fn read(&mut self, wait: Wait) -> io::Result<()> {
        let (buffer, room) = self.splitter.room();
        let mut fds = Vec::new();
        let received = socket::recv_with_fds(&*self.control, buffer, room, &mut fds, wait)?;
        if received.len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the pool is gone",
            ));
        }
        self.splitter.add_fds(fds, received.fds_lost);
        while let Some(frame) = self.splitter.next_frame().map_err(io::Error::other)? {
            self.take(frame)?;
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> io::Result<()> {
        let Frame { header, body, fds } = frame;
        match header.kind {
            protocol::RUN => {
                let run = body.first_chunk::<RUN_LEN>().map(Run::from_bytes);
                let run = run.ok_or_else(malformed)?;
                let batch = Batch {
                    run,
                    function: self.resolve(run.function),
                    seq: header.aux,
                    items: body,
                    at: RUN_LEN,
                    left: run.n_items,
                    fds,
                };
                self.batches.push_back(batch);
            }
            protocol::INTERRUPT => drop(self.interrupted.insert(header.aux)),
            protocol::STOP => self.stopped = true,
            _ => return Err(malformed()),
        }
        Ok(())
    }

    fn resolve(&mut self, function: Function) -> Result<Resolved, String> {
        match self.last {
            Some((last, resolved)) if last == function => Ok(resolved),
            _ => {
                let resolved = function.resolve().map_err(|error| error.to_string())?;
                self.last = Some((function, resolved));
                Ok(resolved)
            }
        }
    }

    /// Reads what is there once the runtime says that there is something.
    fn poll_read(
        &mut self,
        readable: &AsyncFd<Arc<OwnedFd>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(readable.poll_read_ready(cx))?;
            match self.read(Wait::No) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                result => return Poll::Ready(result),
            }
        }
    }
}

struct Worker {
    input: Input,
    answers: Answers,
    /// The longest answer.
    limit: usize,
    memory: Option<Memory>,
}

impl Worker {
    // One task at a time.

    fn serve_one_by_one(&mut self, runtime: &mut LazyRuntime) -> io::Result<()> {
        let mut readable = None;
        loop {
            while let Some(batch) = self.input.batches.pop_front() {
                self.run_batch(batch, runtime, &mut readable)?;
            }
            self.check_memory()?;
            self.answers.flush()?;
            if self.input.stopped {
                return Ok(());
            }
            match &readable {
                None => self.input.read(Wait::Yes)?,
                Some(readable) => {
                    let input = &mut self.input;
                    runtime
                        .get()?
                        .block_on(poll_fn(|cx| input.poll_read(readable, cx)))?;
                }
            }
        }
    }

    fn run_batch(
        &mut self,
        mut batch: Batch,
        runtime: &mut LazyRuntime,
        readable: &mut Option<AsyncFd<Arc<OwnedFd>>>,
    ) -> io::Result<()> {
        let begun = Instant::now();
        let mut n_run = 0;
        while let Some(item) = batch.next()? {
            if !self.answers.start_next() {
                continue;
            }
            n_run += 1;
            let argument = Argument {
                bytes: &batch.items[item.argument],
                fds: item.fds,
            };
            let function = &batch.function;
            if batch.run.is_async {
                let task = start_async(function, argument);
                self.run_async(item.seq, task, runtime, readable)?;
            } else {
                let limit = self.limit;
                self.answers.push(item.seq, |frame| {
                    answer_now(function, argument, limit, frame)
                })?;
            }
        }
        if !self.input.interrupted.is_empty() {
            self.input.interrupted.retain(|seq| *seq >= batch.seq);
        }
        let busy = Busy {
            class: batch.run.class,
            items: n_run,
            ns: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
        };
        self.report(busy)
    }

    fn report(&mut self, busy: Busy) -> io::Result<()> {
        if busy.items == 0 {
            return Ok(());
        }
        self.answers.push(0, |frame| {
            frame.extend_from_slice(&busy.to_bytes());
            (protocol::BUSY, Outgoing::default())
        })
    }

    fn run_async(
        &mut self,
        seq: u64,
        task: Task,
        runtime: &mut LazyRuntime,
        readable: &mut Option<AsyncFd<Arc<OwnedFd>>>,
    ) -> io::Result<()> {
        let runtime = runtime.get()?;
        let readable = match readable {
            Some(readable) => readable,
            None => {
                let _context = runtime.enter();
                let control = Arc::clone(&self.input.control);
                readable.insert(async_fd::watch_shared(control, Interest::READABLE)?)
            }
        };
        let Self { input, answers, .. } = self;
        let mut task = Some(task);
        let end = runtime.block_on(poll_fn(|cx| {
            if input.interrupted.remove(&seq) {
                drop_task(task.take());
                return Poll::Ready(Ok(None));
            }
            let Some(running) = task.as_mut() else {
                return Poll::Pending;
            };
            if let Poll::Ready(result) = running.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(result)));
            }
            // The task sleeps: nothing that is finished waits for it.
            answers.flush()?;
            while let Poll::Ready(result) = input.poll_read(readable, cx) {
                result?;
                if input.interrupted.remove(&seq) {
                    drop_task(task.take());
                    return Poll::Ready(Ok(None));
                }
            }
            Poll::Pending
        }));
        let result: Option<TaskResult> = end.map_err(|error: io::Error| error)?;
        let limit = self.limit;
        self.answers.push(seq, |frame| answer(result, limit, frame))
    }

    // Several tasks at a time.

    fn serve_at_once(&mut self, slots: usize, runtime: &mut LazyRuntime) -> io::Result<()> {
        let runtime = runtime.get()?;
        let control = Arc::clone(&self.input.control);
        let readable = {
            let _context = runtime.enter();
            async_fd::watch_shared(control, Interest::READABLE)?
        };
        let mut running = FuturesUnordered::new();
        let mut handles = HashMap::new();
        runtime.block_on(poll_fn(|cx| {
            loop {
                let mut moved = false;
                if let Poll::Ready(result) = self.input.poll_read(&readable, cx) {
                    result?;
                    moved = true;
                }
                if !self.input.interrupted.is_empty() {
                    self.input
                        .interrupted
                        .retain(|seq| match handles.remove(seq) {
                            Some(handle) => {
                                AbortHandle::abort(&handle);
                                false
                            }
                            None => true,
                        });
                }
                while running.len() < slots {
                    let Some(batch) = self.input.batches.front_mut() else {
                        break;
                    };
                    moved = true;
                    let Some(Item { seq, argument, fds }) = batch.next()? else {
                        self.input.batches.pop_front();
                        continue;
                    };
                    if self.answers.start_next() {
                        let task = if batch.run.is_async {
                            let bytes = &batch.items[argument];
                            start_async(&batch.function, Argument { bytes, fds })
                        } else {
                            let argument = batch.items.slice(argument);
                            start_blocking(batch.function.clone(), argument, fds)
                        };
                        let (handle, registration) = AbortHandle::new_pair();
                        if self.input.interrupted.remove(&seq) {
                            handle.abort();
                        }
                        handles.insert(seq, handle);
                        let mut task = Abortable::new(task, registration);
                        running.push(async move {
                            let result = (&mut task).await.ok();
                            drop_task(task);
                            (seq, result)
                        });
                    }
                }
                while let Poll::Ready(Some((seq, result))) = running.poll_next_unpin(cx) {
                    moved = true;
                    handles.remove(&seq);
                    let limit = self.limit;
                    self.answers
                        .push(seq, |frame| answer(result, limit, frame))?;
                }
                if !moved {
                    break;
                }
            }
            self.check_memory()?;
            self.answers.flush()?;
            let done = self.input.stopped && self.input.batches.is_empty() && running.is_empty();
            if done {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        }))
    }

    fn check_memory(&mut self) -> io::Result<()> {
        if !self.memory.as_mut().is_some_and(Memory::is_outgrown) {
            return Ok(());
        }
        // Once is enough.
        self.memory = None;
        self.answers
            .push(0, |_| (protocol::OUTGROWN, Outgoing::default()))
    }
}

type TaskResult = Result<(Vec<u8>, Outgoing), Failure>;
type Task = Later;

/// Calls a function that returns a future.
fn start_async(function: &Result<Resolved, String>, argument: Argument<'_>) -> Task {
    let mut value = Vec::new();
    let ran = match function {
        Ok(function) => function.call(argument, &mut value),
        Err(error) => Ran::Failed(Failure::Decode(error.clone())),
    };
    match ran {
        Ran::Later(future) => future,
        Ran::Done(outgoing) => Box::pin(async { Ok((value, outgoing)) }),
        Ran::Failed(failure) => Box::pin(async { Err(failure) }),
    }
}

/// Calls a function on one of the runtime's threads for blocking work.
fn start_blocking(function: Result<Resolved, String>, argument: Bytes, fds: Vec<OwnedFd>) -> Task {
    let call = tokio::task::spawn_blocking(move || {
        let mut value = Vec::new();
        let argument = Argument {
            bytes: &argument,
            fds,
        };
        match function.map(|function| function.call(argument, &mut value)) {
            Ok(Ran::Done(outgoing)) => Ok((value, outgoing)),
            Ok(Ran::Failed(failure)) => Err(failure),
            // The pool takes an asynchronous function for one.
            Ok(Ran::Later(_)) => Err(Failure::Encode("the value is a future".to_owned())),
            Err(error) => Err(Failure::Decode(error)),
        }
    });
    Box::pin(async {
        match call.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(payload) => Err(Failure::panicked(payload)),
                Err(error) => Err(Failure::Encode(error.to_string())),
            },
        }
    })
}

fn drop_task<T>(task: T) {
    // A panic while the task is dropped is on stderr; the task has no answer to put it into.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
}

/// Calls a blocking function; appends the answer's body and returns its kind and descriptors.
fn answer_now(
    function: &Result<Resolved, String>,
    argument: Argument<'_>,
    limit: usize,
    frame: &mut Vec<u8>,
) -> (u8, Outgoing) {
    let start = frame.len();
    let failure = match function {
        Ok(function) => match function.call(argument, frame) {
            Ran::Done(outgoing) if frame.len() - start <= limit => {
                return (protocol::DONE, outgoing);
            }
            Ran::Done(_) => too_long(frame.len() - start, limit),
            Ran::Failed(failure) => failure,
            // The pool takes an asynchronous function for one.
            Ran::Later(_) => Failure::Encode("the value is a future".to_owned()),
        },
        Err(error) => Failure::Decode(error.clone()),
    };
    frame.truncate(start);
    explain(failure, limit, frame)
}

/// Appends the body of an answer that is there; nothing means that the task was interrupted.
fn answer(result: Option<TaskResult>, limit: usize, frame: &mut Vec<u8>) -> (u8, Outgoing) {
    let failure = match result {
        None => return (protocol::INTERRUPTED, Outgoing::default()),
        Some(Ok((value, outgoing))) if value.len() <= limit => {
            frame.extend_from_slice(&value);
            return (protocol::DONE, outgoing);
        }
        Some(Ok((value, _))) => too_long(value.len(), limit),
        Some(Err(failure)) => failure,
    };
    explain(failure, limit, frame)
}

fn too_long(len: usize, limit: usize) -> Failure {
    Failure::Encode(format!(
        "it takes {len} bytes, more than the limit of {limit}"
    ))
}

fn explain(failure: Failure, limit: usize, frame: &mut Vec<u8>) -> (u8, Outgoing) {
    let start = frame.len();
    let kind = match failure {
        Failure::Decode(error) => {
            frame.extend_from_slice(error.as_bytes());
            protocol::NOT_DECODED
        }
        Failure::Encode(error) => {
            frame.extend_from_slice(error.as_bytes());
            protocol::NOT_ENCODED
        }
        Failure::Panicked(panic) => match codec::encode(&panic, frame) {
            Ok(()) => protocol::PANICKED,
            Err(error) => {
                frame.extend_from_slice(error.as_bytes());
                protocol::NOT_ENCODED
            }
        },
    };
    if frame.len() - start > limit {
        // A message as long as that is no message.
        frame.truncate(start);
        frame.extend_from_slice(b"the failure's text is too long");
        return (protocol::NOT_ENCODED, Outgoing::default());
    }
    (kind, Outgoing::default())
}

/// Looks whether this process has grown too large.
struct Memory {
    limit: u64,
    checked: Option<Instant>,
}

impl Memory {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            checked: None,
        }
    }

    fn is_outgrown(&mut self) -> bool {
        if self.checked.is_some_and(|at| at.elapsed() < MEMORY_CHECK) {
            return false;
        }
        self.checked = Some(Instant::now());
        super::stats::resident_bytes("self").is_some_and(|bytes| bytes > self.limit)
    }
}
