//! Which way processes are started when a builder does not say.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::function::Outcome;
use super::{Process, ProcessBuilder};
use crate::error::StartError;

/// How a process comes to be.
///
/// Both ways are safe with threads and tokio. The third one, a fork of this process itself, is not,
/// and is only to be had by the `unsafe` methods of the builders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StartMethod(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
enum Kind {
    Spawn = 1,
    ForkServer = 2,
}

impl StartMethod {
    /// The program's file is executed again: about 1 ms, and nothing is shared with anybody.
    pub const SPAWN: Self = Self(Kind::Spawn);

    /// A small helper process is copied, about 0.2 ms whatever the size of this one. The default.
    ///
    /// Where a library starts threads in every process before `main`, the helper cannot be copied
    /// safely: processes are spawned then, with one warning through `tracing`, unless this method
    /// was chosen explicitly, which fails.
    pub const FORK_SERVER: Self = Self(Kind::ForkServer);

    pub(super) fn to_byte(self) -> u8 {
        self.0 as u8
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::SPAWN),
            2 => Some(Self::FORK_SERVER),
            _ => None,
        }
    }
}

impl Default for StartMethod {
    fn default() -> Self {
        Self::FORK_SERVER
    }
}

/// The method chosen for this process; 0 is none.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Chooses how processes are started from now on where no builder or context says otherwise.
///
/// Children inherit the choice for their own children. It may be called any number of times.
pub fn set_start_method(method: StartMethod) {
    CHOSEN.store(method.to_byte(), Relaxed);
}

/// How processes are started where no builder or context says otherwise.
#[must_use]
pub fn start_method() -> StartMethod {
    StartMethod::from_byte(CHOSEN.load(Relaxed)).unwrap_or_default()
}

/// In a child: takes over the choice of its parent.
pub(super) fn inherit(method: u8) {
    CHOSEN.store(method, Relaxed);
}

/// A start method to be used in one part of a program, as Python's `get_context`.
///
/// The processes that it starts have the same method as their default.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_multiprocess::{Context, StartMethod};
///
/// let context = Context::new(StartMethod::SPAWN);
/// let process = context.process(|x: u32| x + 1, 41).await?;
/// assert_eq!(process.join().await?, 42);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    method: StartMethod,
}

impl Context {
    /// A context whose processes are started by `method`.
    #[must_use]
    pub fn new(method: StartMethod) -> Self {
        Self { method }
    }

    /// How its processes are started.
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.method
    }

    /// Starts a process that calls `function` with `argument`, as [`Process::start`] does.
    ///
    /// # Errors
    ///
    /// As [`Process::start`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future kills the process if it has been made already.
    pub async fn process<A, O, M>(
        &self,
        function: fn(A) -> O,
        argument: A,
    ) -> Result<Process<O::Output>, StartError>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        O: Outcome<M> + 'static,
        O::Output: DeserializeOwned,
    {
        self.builder().start(function, argument).await
    }

    /// A builder of processes that are started by this context's method.
    pub fn builder(&self) -> ProcessBuilder {
        ProcessBuilder::new().start_method(self.method)
    }
}
