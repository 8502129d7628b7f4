//! The three ways to start a process, and pools made by each.

use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess::pool::PoolBuilder;
use tokio_multiprocess::{Pool, StartMethod};

/// A way to start a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Spawn,
    ForkServer,
    Fork,
}

impl Method {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Spawn, Self::ForkServer, Self::Fork];

    /// A builder of pools whose workers are started this way.
    pub(crate) fn pool(self) -> PoolBuilder {
        match self {
            Self::Spawn => Pool::builder().start_method(StartMethod::SPAWN),
            Self::ForkServer => Pool::builder().start_method(StartMethod::FORK_SERVER),
            // SAFETY: a case runs in a process of its own, on one thread: nobody else holds a
            // lock, and no worker touches the runtime that it inherits.
            Self::Fork => unsafe { Pool::builder().fork() },
        }
    }

    /// The name by which [`named`](Self::named) finds it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::ForkServer => "fork_server",
            Self::Fork => "fork",
        }
    }

    /// The method of that name.
    pub(crate) fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|method| method.name() == name);
        found.unwrap_or_else(|| panic!("no start method is called {name}"))
    }
}

/// A runtime without threads, so that a process may be copied by fork.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
