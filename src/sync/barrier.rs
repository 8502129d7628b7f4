//! The barrier: the broker counts who has arrived, and lets a full generation go on.
//!
//! See [`crate::broker::barrier`] for the rules of passing and breaking.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::barrier::BROKEN;
use crate::broker::layout;
use crate::broker::layout::{BARRIER, Kind, Shape};
use crate::broker::memory::{Answer, Memory};
use crate::broker::message::Says;
use crate::broker::object::{self, Object};
use crate::broker::slot::Wake;
use crate::broker::waiting::Waiting;
use crate::error::{BrokenBarrier, CreatorGone};
use crate::process::function::{Argument, Function, Ran};

/// A point where a fixed number of parties wait for each other, again and again.
///
/// This is Python's `multiprocessing.Barrier`: a party that gives up (its future is dropped, or the
/// timeout passes) breaks the barrier for all, until it is [reset](Self::reset).
///
/// # Process death
///
/// A party that dies while it waits breaks the barrier. One that dies before it arrives is simply
/// not there: for that there is the [timeout](BarrierBuilder::timeout).
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::sync::Barrier;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let start = Barrier::new(2)?;
/// let (one, other) = tokio::join!(start.wait(), start.wait());
/// assert_ne!(one?.is_leader(), other?.is_leader());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Barrier {
    object: Arc<Object>,
    action: Option<Function>,
    timeout: Option<Duration>,
}

/// Makes a [`Barrier`] with an action or a timeout.
#[derive(Clone, Debug)]
#[must_use = "nothing is made before `build`"]
pub struct BarrierBuilder {
    parties: usize,
    action: Option<fn(())>,
    timeout: Option<Duration>,
}

/// What a party learns that has passed a [`Barrier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BarrierWaitResult {
    index: u32,
}

impl BarrierWaitResult {
    /// A number from 0 on that no other party of this generation has.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// Whether this is number 0: the last to arrive, which has run the action if there is one.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.index == 0
    }
}

impl Barrier {
    /// Makes a barrier for so many parties. This process looks after it.
    ///
    /// # Errors
    ///
    /// Fails for no parties or more than four billion, and when the system has no memory or
    /// descriptors left.
    pub fn new(parties: usize) -> io::Result<Self> {
        Self::builder(parties).build()
    }

    /// Makes a barrier with an action or a timeout.
    pub fn builder(parties: usize) -> BarrierBuilder {
        BarrierBuilder {
            parties,
            action: None,
            timeout: None,
        }
    }

    /// Waits until all parties have arrived.
    ///
    /// # Errors
    ///
    /// Fails with [`BrokenBarrier::Broken`] when a party gives up, the timeout passes or the barrier is
    /// aborted or reset before all have arrived, or if it was broken before.
    ///
    /// # Panics
    ///
    /// With the panic of the action, in the party that ran it; the others find the barrier broken.
    /// When it has to wait outside a tokio runtime with I/O enabled, or with a timeout in one without
    /// time.
    ///
    /// # Cancel safety
    ///
    /// **Not cancel safe:** dropping the future breaks the barrier, as a party that is awaited by the
    /// others has left.
    pub async fn wait(&self) -> Result<BarrierWaitResult, BrokenBarrier> {
        let mut waiting = self.object.ask(Wake::Bell, Says::Arrive)?;
        let answer = match self.timeout {
            None => waiting.answer_of_barrier().await?,
            Some(timeout) => {
                match tokio::time::timeout(timeout, waiting.answer_of_barrier()).await {
                    Ok(answer) => answer?,
                    // Dropping the wait breaks it.
                    Err(_) => return Err(BrokenBarrier::Broken),
                }
            }
        };
        match answer {
            Answer::Lead => passed(self.lead(waiting, Wake::Bell).answer().await?),
            answer => passed(answer),
        }
    }

    /// Like [`wait`](Self::wait), but puts the thread to sleep; the timeout does not count. For code
    /// outside a runtime.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// With the panic of the action, in the party that ran it.
    pub fn blocking_wait(&self) -> Result<BarrierWaitResult, BrokenBarrier> {
        let mut waiting = self.object.ask(Wake::Futex, Says::Arrive)?;
        match waiting.answer_of_barrier_blocking()? {
            Answer::Lead => passed(self.lead(waiting, Wake::Futex).answer_blocking()?),
            answer => passed(answer),
        }
    }

    /// Runs the action, then waits for whether the generation passes: another party may have broken the
    /// barrier meanwhile.
    fn lead(&self, waiting: Waiting, wake: Wake) -> Waiting {
        if let Some(action) = self.action
            && let Err(panic) = run(action)
        {
            // The other parties learn of it before this one unwinds.
            drop(waiting);
            std::panic::resume_unwind(Box::new(panic));
        }
        waiting.has_led(wake)
    }

    /// Breaks the barrier: all who wait and all who come get [`BrokenBarrier::Broken`].
    ///
    /// It is a message to the process that looks after the barrier. Whatever this process does there
    /// next comes after it; but [`is_broken`](Self::is_broken) may say no for a moment more.
    pub fn abort(&self) {
        self.object.say(Says::Abort);
    }

    /// Makes the barrier whole and empty. Who waits gets [`BrokenBarrier::Broken`].
    ///
    /// A [`wait`](Self::wait) of this process that begins after it belongs to the new generation, though
    /// [`is_broken`](Self::is_broken) may say yes for a moment more.
    pub fn reset(&self) {
        self.object.say(Says::Reset);
    }

    /// How many parties have to arrive.
    #[must_use]
    pub fn parties(&self) -> usize {
        layout::size(self.object.region())
    }

    /// How many wait. A snapshot, good for showing.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        let Ok(n_waiting) = self.object.words().load(BARRIER.waiting);
        n_waiting as usize
    }

    /// Whether the barrier is broken. A snapshot, good for showing.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let Ok(state) = self.object.words().load(BARRIER.state);
        state & BROKEN != 0
    }
}

/// What the broker's last answer means for a party.
fn passed(answer: Answer) -> Result<BarrierWaitResult, BrokenBarrier> {
    match answer {
        Answer::Passed(index) => Ok(BarrierWaitResult { index }),
        Answer::Broken => Err(BrokenBarrier::Broken),
        // Only a broker that is not ours answers so.
        _ => Err(CreatorGone.into()),
    }
}

/// Runs the action; its panic as text.
fn run(action: Function) -> Result<(), String> {
    let resolved = action.resolve().map_err(|error| error.to_string())?;
    let nothing = Argument {
        bytes: &[],
        fds: Vec::new(),
    };
    match resolved.call(nothing, &mut Vec::new()) {
        Ran::Failed(failure) => Err(format!("{failure:?}")),
        _ => Ok(()),
    }
}

impl BarrierBuilder {
    /// Has one party of each generation, the last to arrive, call `action` before all pass.
    ///
    /// It is called where that party waits: in [`wait`](Barrier::wait) it blocks the runtime's thread
    /// until it is done. That party has no timeout any more, but those of the others go on.
    pub fn action(self, action: fn(())) -> Self {
        Self {
            action: Some(action),
            ..self
        }
    }

    /// Breaks the barrier when a party has waited so long.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
            ..self
        }
    }

    /// Makes the barrier. This process looks after it.
    ///
    /// # Errors
    ///
    /// As for [`Barrier::new`], and when the action is no function of the program itself.
    pub fn build(self) -> io::Result<Barrier> {
        let parties = u32::try_from(self.parties)
            .ok()
            .filter(|parties| *parties > 0);
        let parties = parties.ok_or_else(|| {
            let what = format!("a barrier cannot have {} parties", self.parties);
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let action = self
            .action
            .map(Function::of)
            .transpose()
            .map_err(io::Error::other)?;
        let has_action = action.is_some();
        let object = Object::create(Shape::Barrier {
            parties,
            has_action,
        })?;
        Ok(Barrier {
            object,
            action,
            timeout: self.timeout,
        })
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("n_waiting", &self.n_waiting())
            .field("is_broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

/// The object in a message.
struct Sent<'a>(&'a Object);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object::serialize(self.0, serializer)
    }
}

struct Received(Arc<Object>);

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::deserialize(deserializer, Kind::Barrier).map(Self)
    }
}

impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let action = self.action.map(Function::to_bytes);
        (Sent(&self.object), action, self.timeout).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Received(object), action, timeout) =
            <(Received, Option<[u8; 16]>, Option<Duration>)>::deserialize(deserializer)?;
        Ok(Self {
            object,
            action: action.map(Function::from_bytes),
            timeout,
        })
    }
}
