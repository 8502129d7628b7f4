//! How a pool's workers are made.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use super::line::Line;
use super::outbox::Outbox;
use super::worker;
use crate::error::StartError;
use crate::process::entry::Child;
use crate::process::start::fork::{self, OtherThreads};
use crate::process::start::{Attributes, Launch, Launched, What, launch};
use crate::process::{StartMethod, next_child};

/// What all workers of a pool have in common.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// The worker's own number is added to it.
    pub(crate) name: String,
    pub(crate) method: Method,
    pub(crate) attributes: Arc<Attributes>,
    /// The encoded [`Orders`](super::protocol::Orders).
    pub(crate) orders: Bytes,
    /// Descriptors that the initializer's argument holds.
    pub(crate) fds: Vec<Arc<OwnedFd>>,
    /// The longest frame of a worker.
    pub(crate) limit: u32,
}

impl Recipe {
    /// Starts a worker and waits until its initializer has run.
    pub(crate) async fn start(&self) -> Result<Line, StartError> {
        let path = next_child();
        let (outbox, file) = Outbox::create().map_err(StartError::os("make shared memory"))?;
        let mut fds = vec![Arc::new(file)];
        fds.extend(self.fds.iter().cloned());
        let method = match self.method {
            Method::Usual(method) => method,
            Method::Fork(other_threads) => {
                let launched = self.fork(path, fds, other_threads).await?;
                return Ok(line(launched, outbox));
            }
        };
        let launched = launch(Launch {
            name: format!("{}-{path}", self.name),
            path,
            method,
            what: What::Worker,
            main: worker::main,
            payload: self.orders.clone(),
            fds,
            frame_limit: self.limit,
            attributes: Arc::clone(&self.attributes),
        })
        .await?;
        Ok(line(launched, outbox))
    }

    async fn fork(
        &self,
        path: String,
        fds: Vec<Arc<OwnedFd>>,
        other_threads: OtherThreads,
    ) -> Result<Launched, StartError> {
        let name = (format!("{}-{path}", self.name), path);
        let orders = self.orders.clone();
        let copies = fds.iter().map(|fd| fd.try_clone());
        let copies = copies.collect::<Result<Vec<_>, _>>();
        let copies = copies.map_err(StartError::os("copy a file descriptor"))?;
        let main = move |child: Child| {
            worker::main(Child {
                payload: orders,
                fds: copies,
                ..child
            });
        };
        let (what, limit) = (What::Worker, self.limit);
        let forked = fork::fork(name, &self.attributes, what, limit, other_threads, main)?;
        forked.wait().await
    }

    /// A start that can be polled in several places, and goes on in any of them.
    pub(crate) fn begin(self: &Arc<Self>) -> Birth {
        let recipe = Arc::clone(self);
        let start = async move { Born(Arc::new(Mutex::new(Some(recipe.start().await)))) };
        Birth(start.boxed().shared())
    }
}

fn line(launched: Launched, outbox: Outbox) -> Line {
    Line::new(launched, outbox).expect("a worker's socket is handed over")
}

/// How processes come to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    /// By this method, or the default one.
    Usual(Option<StartMethod>),
    /// As copies of this process.
    Fork(OtherThreads),
}

/// A start that is under way.
#[derive(Clone)]
pub(crate) struct Birth(Shared<BoxFuture<'static, Born>>);

impl fmt::Debug for Birth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Birth")
    }
}

impl IntoFuture for Birth {
    type Output = Born;
    type IntoFuture = Shared<BoxFuture<'static, Born>>;

    fn into_future(self) -> Self::IntoFuture {
        self.0
    }
}

/// What a start has brought, for whoever takes it first.
#[derive(Clone, Debug)]
pub(crate) struct Born(Arc<Mutex<Option<Result<Line, StartError>>>>);

impl Born {
    pub(crate) fn take(&self) -> Option<Result<Line, StartError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
