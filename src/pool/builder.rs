//! How a pool is set up and started.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Pool;
use super::core::Core;
use super::dispatch::{Dispatch, Rules};
use super::error::PoolError;
use super::line::Line;
use super::protocol::{Initializer, Orders};
use super::recipe::{Method, Recipe};
use super::run::Shared;
use crate::error::StartError;
use crate::process::function::{Function, place_of_hook};
use crate::process::start::Attributes;
use crate::process::start::fork::OtherThreads;
use crate::process::{Context, Limits, Outcome, StartMethod, cpu_count};
use crate::wire::codec;
use crate::wire::fds::encode_with_fds;

/// The longest argument or result, unless it is set.
const MESSAGE_MAX: u32 = 64 << 20;

/// Sets up a [`Pool`], from [`Pool::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct PoolBuilder {
    processes: Option<usize>,
    name: String,
    method: Method,
    attributes: Attributes,
    initializer: Option<Result<Prepared, StartError>>,
    finalizer: Option<fn()>,
    tasks_per_child: Option<u64>,
    memory_per_child: Option<u64>,
    task_timeout: Option<Duration>,
    retries: u32,
    concurrency: usize,
    message_size: u32,
}

impl PoolBuilder {
    pub(crate) fn new() -> Self {
        Self {
            processes: None,
            name: "PoolWorker".to_owned(),
            method: Method::Usual(None),
            attributes: Attributes::default(),
            initializer: None,
            finalizer: None,
            tasks_per_child: None,
            memory_per_child: None,
            task_timeout: None,
            retries: 0,
            concurrency: 1,
            message_size: MESSAGE_MAX,
        }
    }

    /// How many workers there are; by default as many as [`cpu_count`] says.
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Some(processes);
        self
    }

    /// How workers are started; by default as [`set_start_method`](crate::set_start_method) says.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Method::Usual(Some(method));
        self
    }

    /// Has workers be copies of this process, as it is when each of them is started.
    ///
    /// A copy is refused, with [`StartError::MultiThreaded`], while the process has threads other
    /// than the one that asks for it and the library's own; so each worker, replacements included,
    /// must be started by a program that has only one, with a runtime of the current-thread flavour.
    ///
    /// # Safety
    ///
    /// As for [`ProcessBuilder::fork`](crate::ProcessBuilder::fork), for each worker at whatever
    /// time it is started.
    #[expect(
        unsafe_code,
        reason = "a promise of the caller's; nothing unsafe is done here"
    )]
    pub unsafe fn fork(mut self) -> Self {
        self.method = Method::Fork(OtherThreads::Refuse);
        self
    }

    /// Has workers be copies of this process, whatever threads it has.
    ///
    /// # Safety
    ///
    /// As for [`ProcessBuilder::fork_multithreaded`](crate::ProcessBuilder::fork_multithreaded),
    /// for each worker at whatever time it is started.
    #[expect(
        unsafe_code,
        reason = "a promise of the caller's; nothing unsafe is done here"
    )]
    pub unsafe fn fork_multithreaded(mut self) -> Self {
        self.method = Method::Fork(OtherThreads::Accept);
        self
    }

    /// What workers are called: this and a number. The default is `PoolWorker`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Has each worker call `f(arg)` before its first task, replacements included.
    ///
    /// What it returns is dropped. If it panics, the worker does not start:
    /// [`build`](Self::build) fails with [`StartError::Initializer`].
    pub fn initializer<A, O, M>(mut self, f: fn(A) -> O, arg: A) -> Self
    where
        A: Serialize + DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
    {
        self.initializer = Some(encode_initializer(f, &arg));
        self
    }

    /// Has each worker that leaves by itself call `f` at its end: when the pool is closed or made
    /// smaller, or the worker is replaced. A worker that is killed does not come to it.
    pub fn finalizer(mut self, f: fn()) -> Self {
        self.finalizer = Some(f);
        self
    }

    /// Replaces each worker after this many tasks; an item of a stream is a task.
    pub fn max_tasks_per_child(mut self, tasks: u64) -> Self {
        self.tasks_per_child = Some(tasks);
        self
    }

    /// Replaces each worker that occupies more memory than this, as soon as it has finished what
    /// it holds. It is looked at between tasks.
    pub fn max_memory_per_child(mut self, bytes: u64) -> Self {
        self.memory_per_child = Some(bytes);
        self
    }

    /// Stops each task that runs longer than this: it fails with
    /// [`TaskError::TimedOut`](super::TaskError::TimedOut) and its worker is replaced.
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.task_timeout = Some(limit);
        self
    }

    /// How often a task that took its worker down with it is tried again; by default never, as a
    /// task may have done half its work.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// How many tasks one worker runs at once; by default one. Asynchronous ones share the
    /// worker's runtime, blocking ones get threads. All that run share the worker's death.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks;
        self
    }

    /// The longest argument or result in bytes, encoded; by default 64 MiB.
    pub fn max_message_size(mut self, bytes: u32) -> Self {
        self.message_size = bytes;
        self
    }

    /// Limits what each worker may use of the machine.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.attributes.limits = limits;
        self
    }

    /// Sets a variable in the workers' environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.attributes
            .environment
            .set(name.as_ref(), value.as_ref());
        self
    }

    /// Removes a variable from the workers' environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.attributes.environment.remove(name.as_ref());
        self
    }

    /// Clears the workers' environment, but for what is set after this.
    pub fn env_clear(mut self) -> Self {
        self.attributes.environment.clear();
        self
    }

    /// Starts the workers and waits until all are ready.
    ///
    /// # Errors
    ///
    /// A setting is zero that must not be; or a worker cannot be started, or its initializer
    /// fails. The other workers are stopped then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropping the future stops the workers that were started.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime that has its I/O driver enabled.
    pub async fn build(self) -> Result<Pool, PoolError> {
        let n_workers = self.processes.unwrap_or_else(cpu_count);
        if n_workers == 0 {
            return Err(PoolError::NoProcesses);
        }
        for (value, name) in [
            (self.tasks_per_child, "max_tasks_per_child"),
            (Some(self.concurrency as u64), "concurrency"),
            (Some(u64::from(self.message_size)), "max_message_size"),
        ] {
            if value == Some(0) {
                return Err(PoolError::Zero(name));
            }
        }
        let rules = Rules {
            slots: u32::try_from(self.concurrency).unwrap_or(u32::MAX),
            retries: self.retries,
            tasks_per_worker: self.tasks_per_child.unwrap_or(u64::MAX),
            task_timeout: self
                .task_timeout
                .map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)),
        };
        let recipe = Arc::new(self.into_recipe()?);
        let lines = start_all(&recipe, n_workers).await?;
        Ok(Pool::from_shared(assemble(rules, recipe, lines)))
    }

    fn into_recipe(self) -> Result<Recipe, StartError> {
        let (initializer, fds) = self.initializer.transpose()?.unzip();
        let orders = Orders {
            slots: u32::try_from(self.concurrency).unwrap_or(u32::MAX),
            limit: self.message_size,
            memory_limit: self.memory_per_child,
            initializer,
            finalizer: match self.finalizer {
                Some(finalizer) => Some(place_of_hook(finalizer)?.to_bytes()),
                None => None,
            },
        };
        let mut encoded = Vec::new();
        codec::encode(&orders, &mut encoded).map_err(StartError::Encode)?;
        Ok(Recipe {
            name: self.name,
            method: self.method,
            attributes: Arc::new(self.attributes),
            orders: encoded.into(),
            fds: fds.unwrap_or_default(),
            limit: self.message_size,
        })
    }
}

impl Context {
    /// A builder of pools whose workers are started by this context's method.
    pub fn pool(&self) -> PoolBuilder {
        PoolBuilder::new().start_method(self.start_method())
    }
}

/// An initializer, and the descriptors that its argument holds.
type Prepared = (Initializer, Vec<Arc<OwnedFd>>);

fn encode_initializer<A, O, M>(f: fn(A) -> O, arg: &A) -> Result<Prepared, StartError>
where
    A: Serialize + DeserializeOwned + 'static,
    O: Outcome<M> + 'static,
{
    let function = Function::of(f)?.to_bytes();
    let mut argument = Vec::new();
    let outgoing = encode_with_fds(arg, &mut argument).map_err(StartError::Encode)?;
    let initializer = Initializer { function, argument };
    Ok((initializer, outgoing.commit()))
}

/// Workers that are stopped unless all of them come to be.
struct Crew(Vec<Line>);

impl Drop for Crew {
    fn drop(&mut self) {
        self.0.iter().for_each(Line::kill);
    }
}

async fn start_all(recipe: &Recipe, n_workers: usize) -> Result<Vec<Line>, StartError> {
    let mut starts: FuturesUnordered<_> = (0..n_workers).map(|_| recipe.start()).collect();
    let mut crew = Crew(Vec::with_capacity(n_workers));
    while let Some(started) = starts.next().await {
        match started {
            Ok(line) => crew.0.push(line),
            Err(error) => {
                // Starts that are under way end with their futures.
                drop(starts);
                crew.0.iter().for_each(Line::kill);
                for line in &crew.0 {
                    line.exit.wait().await;
                }
                return Err(error);
            }
        }
    }
    Ok(std::mem::take(&mut crew.0))
}

fn assemble(rules: Rules, recipe: Arc<Recipe>, lines: Vec<Line>) -> Arc<Shared> {
    let mut dispatch = Dispatch::new(rules, lines.len());
    // All places are taken before the first worker is up, or more would be started.
    let ids: Vec<_> = lines.iter().map(|_| dispatch.reserve()).collect();
    let core = Core::new(dispatch, Arc::clone(&recipe));
    let shared = Arc::new(Shared::new(core, recipe));
    shared.step(|core, now, effects| {
        for (id, line) in ids.into_iter().zip(lines) {
            core.link_up(id, Arc::new(line), now, effects);
        }
        core.attend(effects);
    });
    shared
}
