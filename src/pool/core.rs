//! The pool's state: the table of decisions, the tasks and streams behind it, the lines to the
//! workers. Everything under one lock, nothing in it waits.
//!
//! A method changes the state, carries out what the table decides, and leaves in [`Effects`] what
//! must happen after the lock is released: waking tasks, starting processes, setting a timer.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use tokio::runtime::{self, Handle};
use tokio::task::AbortHandle;

use super::dispatch::{Action, Dispatch, Piece, Source, Verdict, WorkerId};
use super::error::TaskError;
use super::line::{Inbox, Line, Post, Tail};
use super::protocol::{self, Busy, RUN_LEN, Run, is_answer, slice_of_items};
use super::recipe::{Birth, Recipe};
use super::tasks::{Data, Key, Outcome, Tasks};
use crate::process::function::Function;
use crate::wire::codec;
use crate::wire::fds::decode_with_fds;
use crate::wire::frame::{HEADER_LEN, MORE_FDS};

/// Functions whose durations are kept apart. Beyond that number all share one estimate, which is
/// never measured, so that nothing is sent ahead for them.
const CLASSES_MAX: usize = 1024;

/// The state of a pool.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) dispatch: Dispatch,
    pub(crate) links: Vec<Link>,
    pub(crate) tasks: Tasks,
    streams: HashMap<u64, Stream>,
    next_stream: u64,
    classes: HashMap<Function, u32>,
    /// Pools, tasks and streams that are held.
    pub(crate) users: usize,
    pub(crate) drivers: Vec<Driver>,
    /// Changes when there is something new to be driven.
    version: u64,
    /// Waiting for the workers' end, or for a change of size.
    watchers: Vec<Waker>,
    actions: VecDeque<Action>,
    scratch: Vec<Action>,
    dirty: Vec<WorkerId>,
    /// When the timer that is set goes off.
    pub(crate) timer: Option<u64>,
    /// Of the worker whose end is being dealt with.
    obituary: Option<TaskError>,
    /// The last end of a worker that had not finished anything.
    pub(crate) last_failure: String,
    finished: u64,
    next_token: u64,
    next_task: u64,
    recipe: Arc<Recipe>,
    /// The longest frame that a worker may send.
    limit: u32,
}

/// A place for a worker.
#[derive(Debug)]
pub(crate) enum Link {
    Empty,
    Starting {
        /// Names this start: one that was given up is told by an older token.
        token: u64,
        /// The start, which goes on wherever it is polled.
        birth: Birth,
        /// The runtimes that poll it.
        driven_by: Vec<runtime::Id>,
        pollers: Vec<AbortHandle>,
    },
    Up(Up),
}

/// A worker that is there.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) line: Arc<Line>,
    pub(crate) post: Post,
    /// The runtimes that read from it.
    driven_by: Vec<runtime::Id>,
    pub(crate) born_at: u64,
    pub(crate) busy_ns: u64,
}

/// A runtime that reads from the workers.
#[derive(Debug)]
pub(crate) struct Driver {
    id: runtime::Id,
    pub(crate) handle: Handle,
    /// The `version` up to which everything is driven by it.
    seen: u64,
}

/// A stream of items and results.
#[derive(Debug)]
struct Stream {
    function: Function,
    is_async: bool,
    /// What was taken from the input and is not finished, in the order of the input.
    chunks: VecDeque<Chunk>,
    /// Results that the consumer has not taken.
    ready: VecDeque<Segment>,
    waker: Option<Waker>,
}

/// Encoded items that travel together.
#[derive(Debug)]
pub(crate) struct Chunk {
    first: u64,
    len: u32,
    /// Items that are not finished.
    left: u32,
    items: Bytes,
    /// Descriptors that the last item holds.
    fds: Vec<Arc<OwnedFd>>,
}

impl Chunk {
    /// Items from the place `first` of the input on.
    pub(crate) fn new(first: u64, len: u32, items: Bytes, fds: Vec<Arc<OwnedFd>>) -> Self {
        Self {
            first,
            len,
            left: len,
            items,
            fds,
        }
    }
}

/// Results of neighbouring items.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The first item's place in the input.
    pub(crate) first: u64,
    pub(crate) len: u32,
    pub(crate) results: Results,
}

/// What became of the items of a segment.
#[derive(Debug)]
pub(crate) enum Results {
    /// The workers' answers: one frame an item. Of several none has descriptors.
    Frames(Bytes, Vec<OwnedFd>),
    /// All have failed alike.
    Failed(TaskError),
}

/// In which order a stream's results come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    OfInput,
    OfCompletion,
}

/// What a stream should do about its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Take a chunk of so many items.
    Items(u32),
    /// Wait: enough is under way.
    Later,
    /// The pool takes no more.
    Never,
}

/// What is to be done without the lock.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) wake: Vec<Waker>,
    pub(crate) start: Vec<(WorkerId, u64, Birth, Handle)>,
    pub(crate) drive: Vec<(WorkerId, Arc<Line>, Handle)>,
    pub(crate) abort: Vec<AbortHandle>,
    /// Set a timer for this time.
    pub(crate) timer: Option<u64>,
}

impl Core {
    pub(crate) fn new(dispatch: Dispatch, recipe: Arc<Recipe>) -> Self {
        let mut core = Self {
            dispatch,
            links: Vec::new(),
            tasks: Tasks::default(),
            streams: HashMap::new(),
            next_stream: 0,
            classes: HashMap::new(),
            users: 0,
            drivers: Vec::new(),
            version: 1,
            watchers: Vec::new(),
            actions: VecDeque::new(),
            scratch: Vec::new(),
            dirty: Vec::new(),
            timer: None,
            obituary: None,
            last_failure: String::new(),
            finished: 0,
            next_token: 0,
            next_task: 0,
            limit: recipe.limit,
            recipe,
        };
        core.dispatch.new_class();
        core
    }

    /// The class of a function: a number for what is known of its durations.
    pub(crate) fn class_of(&mut self, function: Function) -> u32 {
        if let Some(class) = self.classes.get(&function) {
            return *class;
        }
        if self.classes.len() >= CLASSES_MAX {
            return 0;
        }
        let class = self.dispatch.new_class();
        self.classes.insert(function, class);
        class
    }

    /// Why the pool takes no work, if it does not.
    pub(crate) fn refusal(&self) -> Option<TaskError> {
        if self.dispatch.is_broken() {
            Some(TaskError::Restarts(self.last_failure.clone()))
        } else if self.dispatch.is_open() {
            None
        } else {
            Some(TaskError::PoolClosed)
        }
    }

    // Single tasks.

    /// Takes a task that the pool is open for.
    pub(crate) fn submit(
        &mut self,
        function: Function,
        is_async: bool,
        argument: (Vec<u8>, Vec<Arc<OwnedFd>>),
        now: u64,
    ) -> (Key, u64) {
        let class = self.class_of(function);
        let id = self.new_task_id();
        let key = self.tasks.insert(id, function, is_async, argument);
        let piece = Piece::new(Source::Single, key.to_u64(), 1, class);
        self.dispatch.submit(piece, now, &mut self.scratch);
        (key, id)
    }

    /// A number that no other task of the pool has.
    pub(crate) fn new_task_id(&mut self) -> u64 {
        self.next_task += 1;
        self.next_task
    }

    /// A task's handle is dropped.
    pub(crate) fn release(&mut self, key: Key, stop: bool, now: u64, effects: &mut Effects) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.outcome.is_some() {
            self.tasks.remove(key);
            return;
        }
        // A waker may hold what has a lock of its own to take when it is dropped.
        effects.wake.extend(task.waker.take());
        task.abandoned = true;
        let (at, is_async) = (task.at, task.is_async);
        match at {
            None => {
                self.tasks.remove(key);
                self.dispatch
                    .cancel_queued(key.to_u64(), now, &mut self.scratch);
            }
            Some((worker, seq)) => {
                self.dispatch.abandon(worker, seq);
                if stop {
                    self.dispatch
                        .stop_item(worker, seq, is_async, now, &mut self.scratch);
                }
            }
        }
    }

    /// A task is to end, its handle stays.
    pub(crate) fn cancel(&mut self, key: Key, now: u64, effects: &mut Effects) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.outcome.is_some() {
            return;
        }
        let (at, is_async) = (task.at, task.is_async);
        match at {
            None => {
                self.dispatch
                    .cancel_queued(key.to_u64(), now, &mut self.scratch);
                self.end_task(key, Err(TaskError::Cancelled), effects);
            }
            Some((worker, seq)) => {
                self.dispatch
                    .stop_item(worker, seq, is_async, now, &mut self.scratch);
            }
        }
    }

    /// Limits how long a task may run.
    pub(crate) fn limit_task(&mut self, key: Key, timeout: u64) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.timeout = Some(timeout);
        if let Some((worker, seq)) = task.at {
            self.dispatch.limit(worker, seq, timeout);
        }
    }

    fn end_task(
        &mut self,
        key: Key,
        outcome: Result<(u8, Data, Vec<OwnedFd>), TaskError>,
        effects: &mut Effects,
    ) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.abandoned {
            self.tasks.remove(key);
            return;
        }
        task.at = None;
        task.fds = Vec::new();
        match outcome {
            Ok((kind, body, fds)) => {
                task.data = body;
                task.outcome = Some(Outcome::Answered(kind, fds));
            }
            Err(error) => {
                task.data = (&[][..]).into();
                task.outcome = Some(Outcome::Failed(Box::new(error)));
            }
        }
        effects.wake.extend(task.waker.take());
    }

    // Streams.

    /// Opens a stream.
    pub(crate) fn open_stream(&mut self, function: Function, is_async: bool, now: u64) -> u64 {
        self.next_stream += 1;
        let stream = Stream {
            function,
            is_async,
            chunks: VecDeque::new(),
            ready: VecDeque::new(),
            waker: None,
        };
        self.streams.insert(self.next_stream, stream);
        self.dispatch.open_stream(self.next_stream, now);
        self.next_stream
    }

    /// Takes a stream's results, or leaves a waker for when there are some.
    pub(crate) fn take_results(
        &mut self,
        id: u64,
        into: &mut VecDeque<Segment>,
        waker: &Waker,
        now: u64,
        effects: &mut Effects,
    ) {
        self.dispatch.stream_polled(id, now);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        into.append(&mut stream.ready);
        let known = stream
            .waker
            .as_ref()
            .is_some_and(|old| old.will_wake(waker));
        if !known {
            // An old waker is woken rather than dropped here: it may be the last of its task.
            effects.wake.extend(stream.waker.replace(waker.clone()));
        }
    }

    /// How many items a stream should take from its input now, if any; `n_open` were taken and are
    /// not delivered.
    pub(crate) fn demand(
        &self,
        id: u64,
        class: u32,
        chunk_size: Option<u32>,
        n_open: u64,
        order: Order,
    ) -> Demand {
        if !self.dispatch.takes_stream(id) {
            return Demand::Never;
        }
        let pace = self.dispatch.pace(class);
        let len = chunk_size.unwrap_or_else(|| pace.chunk_len());
        let n_runs = self.dispatch.target() * self.dispatch.slots();
        // What one worker has under way and one chunk in reserve; the same again for results that
        // wait for the consumer, and more where they wait for the results before them.
        let spare = if order == Order::OfInput { 4 } else { 2 };
        let credit = n_runs as u64 * u64::from(len) * u64::from(pace.window() + 1) * spare;
        if n_open < credit && self.dispatch.backlog(id) < n_runs {
            Demand::Items(len)
        } else {
            Demand::Later
        }
    }

    /// Takes items of a stream.
    pub(crate) fn submit_chunk(&mut self, id: u64, class: u32, chunk: Chunk, now: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let Chunk { first, len, .. } = chunk;
        stream.chunks.push_back(chunk);
        let piece = Piece::new(Source::Stream(id), first, len, class);
        self.dispatch.submit(piece, now, &mut self.scratch);
    }

    /// The consumer has all it wants.
    pub(crate) fn close_stream(&mut self, id: u64, now: u64) {
        self.streams.remove(&id);
        self.dispatch.close_stream(id, now, &mut self.scratch);
    }

    fn deliver(&mut self, id: u64, segment: Segment, effects: &mut Effects) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let holds = |chunk: &Chunk| {
            (chunk.first..chunk.first + u64::from(chunk.len)).contains(&segment.first)
        };
        if let Some(idx) = stream.chunks.iter().position(holds) {
            let chunk = &mut stream.chunks[idx];
            chunk.left = chunk.left.saturating_sub(segment.len);
            if chunk.left == 0 {
                stream.chunks.remove(idx);
            }
        }
        stream.ready.push_back(segment);
        effects.wake.extend(stream.waker.take());
    }

    // Workers.

    /// Takes in what a worker has sent.
    ///
    /// # Errors
    ///
    /// The worker did what no worker does.
    pub(crate) fn take_in(
        &mut self,
        id: WorkerId,
        inbox: &mut Inbox,
        now: u64,
        effects: &mut Effects,
    ) -> Result<(), String> {
        let result = loop {
            match self.take_frames(id, inbox, now, effects) {
                Ok(true) => (),
                Ok(false) => break Ok(()),
                Err(what) => break Err(what),
            }
        };
        self.dispatch.refill(id, now, &mut self.scratch);
        if result.is_ok() && inbox.has_stray_fds() {
            return Err("it sent descriptors that no frame claims".to_owned());
        }
        result
    }

    /// Takes in a frame, or a row of them; tells whether there was one.
    fn take_frames(
        &mut self,
        id: WorkerId,
        inbox: &mut Inbox,
        now: u64,
        effects: &mut Effects,
    ) -> Result<bool, String> {
        let Some((header, body)) = inbox.peek(self.limit)? else {
            return Ok(false);
        };
        let len = HEADER_LEN + body.len();
        if !is_answer(header.kind) {
            match header.kind {
                protocol::BUSY => {
                    let busy = Busy::from_bytes(body).ok_or("its report has the wrong length")?;
                    self.dispatch.measured(busy.class, busy.items, busy.ns);
                    if let Some(Link::Up(up)) = self.links.get_mut(id) {
                        up.busy_ns = up.busy_ns.saturating_add(busy.ns);
                    }
                }
                protocol::OUTGROWN => self.dispatch.retire(id, now, &mut self.scratch),
                MORE_FDS if body.is_empty() => inbox.n_fds_ahead += usize::from(header.n_fds),
                kind => return Err(format!("it sent a frame of kind {kind}")),
            }
            inbox.skip(len);
            return Ok(true);
        }
        let Some(piece) = self.dispatch.expects(id, header.aux) else {
            if self.dispatch.is_ended() {
                inbox.skip(len);
                return Ok(true);
            }
            return Err(format!(
                "it answered item {}, which it does not have",
                header.aux
            ));
        };
        match piece.source {
            Source::Single => {
                let body = body.into();
                inbox.skip(len);
                let outcome = match inbox.claim(header)? {
                    _ if header.kind == protocol::INTERRUPTED => Err(TaskError::Cancelled),
                    Some(fds) => Ok((header.kind, body, fds)),
                    None => Err(fds_found_no_room()),
                };
                self.end_task(Key::from_u64(piece.first), outcome, effects);
                self.finish(id, header.aux, 1, now);
            }
            Source::Stream(stream) => {
                let (n, len) = inbox.row(header, piece.len, self.limit, is_answer);
                let frames = inbox.split(len);
                let segment = Segment {
                    first: piece.first,
                    len: n,
                    results: match inbox.claim(header)? {
                        Some(fds) => Results::Frames(frames, fds),
                        None => Results::Failed(fds_found_no_room()),
                    },
                };
                self.finish(id, header.aux, n, now);
                self.deliver(stream, segment, effects);
            }
        }
        Ok(true)
    }

    fn finish(&mut self, id: WorkerId, seq: u64, n: u32, now: u64) {
        self.finished += u64::from(n);
        self.dispatch.finished(id, seq, n, now);
    }

    /// A worker is there.
    pub(crate) fn link_up(
        &mut self,
        id: WorkerId,
        line: Arc<Line>,
        now: u64,
        effects: &mut Effects,
    ) {
        self.set_link(
            id,
            Link::Up(Up {
                line,
                post: Post::default(),
                driven_by: Vec::new(),
                born_at: now,
                busy_ns: 0,
            }),
        );
        self.version += 1;
        self.drive_by_all(id, effects);
        self.dispatch.up(id, now, &mut self.scratch);
        effects.wake.append(&mut self.watchers);
    }

    /// A worker is gone, and what it had finished is taken in.
    pub(crate) fn link_down(
        &mut self,
        id: WorkerId,
        started: u64,
        obituary: TaskError,
        now: u64,
        effects: &mut Effects,
    ) {
        self.set_link(id, Link::Empty);
        self.last_failure = match &obituary {
            TaskError::WorkerDied { status, .. } => {
                format!("workers die before they finish a task, the last one by {status}")
            }
            other => other.to_string(),
        };
        self.died(id, started, Some(obituary), now, effects);
    }

    /// A worker could not be started.
    pub(crate) fn start_failed(
        &mut self,
        id: WorkerId,
        why: String,
        now: u64,
        effects: &mut Effects,
    ) {
        self.set_link(id, Link::Empty);
        self.last_failure = why;
        self.died(id, 0, None, now, effects);
    }

    fn died(
        &mut self,
        id: WorkerId,
        started: u64,
        obituary: Option<TaskError>,
        now: u64,
        effects: &mut Effects,
    ) {
        self.dispatch.died(id, started, now, &mut self.scratch);
        self.obituary = obituary;
        self.carry_out(now, effects);
        self.obituary = None;
        effects.wake.append(&mut self.watchers);
    }

    /// Whether the start named by `token` is still wanted.
    pub(crate) fn is_starting(&self, id: WorkerId, token: u64) -> bool {
        matches!(self.links.get(id), Some(Link::Starting { token: present, .. }) if *present == token)
    }

    /// Names a start that is being polled, so that it can be given up.
    pub(crate) fn start_polled(&mut self, id: WorkerId, begun: u64, poller: AbortHandle) {
        match self.links.get_mut(id) {
            Some(Link::Starting { token, pollers, .. }) if *token == begun => pollers.push(poller),
            _ => poller.abort(),
        }
    }

    fn set_link(&mut self, id: WorkerId, link: Link) {
        if self.links.len() <= id {
            self.links.resize_with(id + 1, || Link::Empty);
        }
        self.links[id] = link;
    }

    // Who drives.

    /// Sees to it that the present runtime reads from all workers.
    ///
    /// A runtime is asked to whenever something waits in it: another one that reads as well may
    /// never be run again.
    pub(crate) fn attend(&mut self, effects: &mut Effects) {
        let Ok(handle) = Handle::try_current() else {
            assert!(
                !self.drivers.is_empty(),
                "there is no reactor running, a pool must be used from the context of a Tokio 1.x runtime"
            );
            return;
        };
        let id = handle.id();
        let idx = match self.drivers.iter().position(|driver| driver.id == id) {
            Some(idx) if self.drivers[idx].seen == self.version => return,
            Some(idx) => idx,
            None => {
                self.drivers.push(Driver {
                    id,
                    handle: handle.clone(),
                    seen: 0,
                });
                self.drivers.len() - 1
            }
        };
        self.drivers[idx].seen = self.version;
        for (worker, link) in self.links.iter_mut().enumerate() {
            match link {
                Link::Up(up) if !up.driven_by.contains(&id) => {
                    up.driven_by.push(id);
                    effects
                        .drive
                        .push((worker, Arc::clone(&up.line), handle.clone()));
                }
                Link::Starting {
                    token,
                    birth,
                    driven_by,
                    ..
                } if !driven_by.contains(&id) => {
                    driven_by.push(id);
                    effects
                        .start
                        .push((worker, *token, birth.clone(), handle.clone()));
                }
                _ => {}
            }
        }
    }

    /// Has all runtimes that drive the others drive worker `id` as well.
    fn drive_by_all(&mut self, id: WorkerId, effects: &mut Effects) {
        for driver in &self.drivers {
            match &mut self.links[id] {
                Link::Up(up) if !up.driven_by.contains(&driver.id) => {
                    up.driven_by.push(driver.id);
                    effects
                        .drive
                        .push((id, Arc::clone(&up.line), driver.handle.clone()));
                }
                Link::Starting {
                    token,
                    birth,
                    driven_by,
                    ..
                } if !driven_by.contains(&driver.id) => {
                    driven_by.push(driver.id);
                    effects
                        .start
                        .push((id, *token, birth.clone(), driver.handle.clone()));
                }
                _ => {}
            }
        }
    }

    /// A runtime has dropped a task of ours: it is being shut down.
    pub(crate) fn undriven(&mut self, by: runtime::Id, effects: &mut Effects) {
        for link in &mut self.links {
            match link {
                Link::Up(Up { driven_by, .. }) | Link::Starting { driven_by, .. } => {
                    driven_by.retain(|driver| *driver != by);
                }
                Link::Empty => {}
            }
        }
        let n_drivers = self.drivers.len();
        self.drivers.retain(|driver| driver.id != by);
        if self.drivers.len() < n_drivers {
            self.version += 1;
            self.wake_all(effects);
        }
    }

    /// As [`attend`](Self::attend), or nothing outside of a runtime.
    pub(crate) fn attend_if_possible(&mut self, effects: &mut Effects) {
        if Handle::try_current().is_ok() {
            self.attend(effects);
        }
    }

    /// One who held the pool is gone; the last one takes the workers along.
    pub(crate) fn user_gone(&mut self) {
        self.users -= 1;
        if self.users == 0 {
            self.dispatch.terminate(&mut self.scratch);
        }
    }

    /// Wakes whoever waits for anything.
    pub(crate) fn wake_all(&mut self, effects: &mut Effects) {
        effects.wake.append(&mut self.watchers);
        effects.wake.extend(self.tasks.wakers());
        effects.wake.extend(
            self.streams
                .values_mut()
                .filter_map(|stream| stream.waker.take()),
        );
    }

    /// Wakes `waker` when a worker is there or gone.
    pub(crate) fn watch(&mut self, waker: &Waker) {
        if !self.watchers.iter().any(|known| known.will_wake(waker)) {
            self.watchers.push(waker.clone());
        }
    }

    /// Tasks and items that were finished.
    pub(crate) fn n_finished(&self) -> u64 {
        self.finished
    }

    // Decisions.

    /// What the table decides on by itself, and on behalf of the user.
    pub(crate) fn decide(&mut self, by: impl FnOnce(&mut Dispatch, &mut Vec<Action>)) {
        by(&mut self.dispatch, &mut self.scratch);
    }

    /// Carries out what was decided, and sends what goes out.
    pub(crate) fn carry_out(&mut self, now: u64, effects: &mut Effects) {
        self.take_actions();
        while let Some(action) = self.actions.pop_front() {
            self.carry_out_one(action, now, effects);
            self.take_actions();
        }
        for id in std::mem::take(&mut self.dirty) {
            if let Some(Link::Up(up)) = self.links.get_mut(id) {
                up.post.flush(&up.line);
            }
        }
        let next = self.dispatch.next_tick();
        if let Some(at) = next.filter(|at| self.timer.is_none_or(|timer| *at < timer)) {
            self.timer = Some(at);
            effects.timer = Some(at);
        }
    }

    /// What was decided while another decision was carried out comes before what was decided after
    /// that one.
    fn take_actions(&mut self) {
        for action in self.scratch.drain(..).rev() {
            self.actions.push_front(action);
        }
    }

    fn carry_out_one(&mut self, action: Action, now: u64, effects: &mut Effects) {
        match action {
            Action::Send {
                worker,
                piece,
                first_seq,
            } => self.send(worker, piece, first_seq),
            Action::Fail { piece, why } => self.fail(piece, why, effects),
            Action::Requeued(key) => {
                if let Some(task) = self.tasks.get_mut(Key::from_u64(key)) {
                    task.at = None;
                }
            }
            Action::Recall(id) => {
                let n_sent = self.dispatch.n_sent(id);
                let Some(Link::Up(up)) = self.links.get(id) else {
                    return;
                };
                let started = up.line.outbox.recall(n_sent);
                self.dispatch.recalled(id, started, now, &mut self.scratch);
            }
            Action::Interrupt { worker, seq } => {
                self.post(worker, |post| {
                    post.push((protocol::INTERRUPT, seq), &[], Tail::Small(&[]), &[])
                });
            }
            Action::Stop(id) => {
                self.post(id, |post| {
                    post.push((protocol::STOP, 0), &[], Tail::Small(&[]), &[])
                });
            }
            Action::Kill(id) => self.kill(id, now, effects),
            Action::Start(id) => {
                self.next_token += 1;
                let token = self.next_token;
                let link = Link::Starting {
                    token,
                    birth: self.recipe.begin(),
                    driven_by: Vec::new(),
                    pollers: Vec::new(),
                };
                self.set_link(id, link);
                self.version += 1;
                self.drive_by_all(id, effects);
            }
        }
    }

    fn kill(&mut self, id: WorkerId, now: u64, effects: &mut Effects) {
        match &mut self.links[id] {
            Link::Up(up) => up.line.kill(),
            Link::Starting { pollers, .. } => {
                effects.abort.append(pollers);
                self.set_link(id, Link::Empty);
                self.dispatch.died(id, 0, now, &mut self.scratch);
                effects.wake.append(&mut self.watchers);
            }
            Link::Empty => {}
        }
    }

    fn post(&mut self, id: WorkerId, push: impl FnOnce(&mut Post)) {
        if let Some(Link::Up(up)) = self.links.get_mut(id) {
            push(&mut up.post);
            if self.dirty.last() != Some(&id) {
                self.dirty.push(id);
            }
        }
    }

    fn send(&mut self, id: WorkerId, piece: Piece, first_seq: u64) {
        let Some(Link::Up(up)) = self.links.get_mut(id) else {
            return;
        };
        if self.dirty.last() != Some(&id) {
            self.dirty.push(id);
        }
        let run = |function, is_async| -> [u8; RUN_LEN] {
            let run = Run {
                function,
                class: piece.class,
                n_items: piece.len,
                is_async,
            };
            run.to_bytes()
        };
        match piece.source {
            Source::Single => {
                let key = Key::from_u64(piece.first);
                let task = self
                    .tasks
                    .get_mut(key)
                    .expect("a task stays until it is finished");
                task.at = Some((id, first_seq));
                if let Some(timeout) = task.timeout {
                    self.dispatch.limit(id, first_seq, timeout);
                }
                let argument = task.data.as_slice();
                let len = u32::try_from(argument.len()).expect("checked when it was encoded");
                let run = run(task.function, task.is_async);
                let tail = match task.data.shared() {
                    Some(bytes) => Tail::Shared(bytes),
                    None => Tail::Small(argument),
                };
                let head: [&[u8]; 2] = [&run, &len.to_le_bytes()];
                up.post
                    .push((protocol::RUN, first_seq), &head, tail, &task.fds);
            }
            Source::Stream(stream) => {
                let stream = &self.streams[&stream];
                let holds = |chunk: &&Chunk| {
                    (chunk.first..chunk.first + u64::from(chunk.len)).contains(&piece.first)
                };
                let chunk = stream
                    .chunks
                    .iter()
                    .rev()
                    .find(holds)
                    .expect("a chunk stays until it is finished");
                let from = u32::try_from(piece.first - chunk.first).expect("inside the chunk");
                let items = if piece.len == chunk.len {
                    chunk.items.clone()
                } else {
                    let range = slice_of_items(&chunk.items, from, piece.len);
                    chunk
                        .items
                        .slice(range.expect("the chunk holds what was encoded"))
                };
                let run = run(stream.function, stream.is_async);
                // They are the last item's.
                let fds = if from + piece.len == chunk.len {
                    &chunk.fds[..]
                } else {
                    &[]
                };
                let items = Tail::Shared(items);
                up.post
                    .push((protocol::RUN, first_seq), &[&run], items, fds);
            }
        }
    }

    fn fail(&mut self, piece: Piece, why: Verdict, effects: &mut Effects) {
        let error = match why {
            Verdict::Died(_) => self.obituary.clone().unwrap_or(TaskError::Cancelled),
            Verdict::TimedOut => TaskError::TimedOut,
            Verdict::Cancelled => TaskError::Cancelled,
            Verdict::GaveUp => TaskError::Restarts(self.last_failure.clone()),
        };
        self.finished += u64::from(piece.len);
        match piece.source {
            Source::Single => self.end_task(Key::from_u64(piece.first), Err(error), effects),
            Source::Stream(id) => {
                let segment = Segment {
                    first: piece.first,
                    len: piece.len,
                    results: Results::Failed(error),
                };
                self.deliver(id, segment, effects);
            }
        }
    }
}

fn fds_found_no_room() -> TaskError {
    TaskError::Decode(
        "the result's file descriptors found no room in this process, see RLIMIT_NOFILE".to_owned(),
    )
}

/// What the answer to one item says.
pub(crate) fn read_answer<R: serde::de::DeserializeOwned>(
    kind: u8,
    body: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<R, TaskError> {
    let text = || String::from_utf8_lossy(body);
    Err(match kind {
        protocol::DONE => {
            return decode_with_fds(body, fds).map_err(|error| {
                TaskError::Decode(format!("the result cannot be decoded: {error}"))
            });
        }
        protocol::NOT_DECODED => {
            TaskError::Decode(format!("the argument cannot be decoded: {}", text()))
        }
        protocol::NOT_ENCODED => {
            TaskError::Encode(format!("the result cannot be encoded: {}", text()))
        }
        protocol::INTERRUPTED => TaskError::Cancelled,
        _ => match codec::decode(body) {
            Ok(panic) => TaskError::Panicked(panic),
            Err(error) => TaskError::Decode(format!("the panic cannot be decoded: {error}")),
        },
    })
}
