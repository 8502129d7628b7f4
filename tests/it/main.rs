//! The tests of the public face, in one binary so that everything links once: one file a module.

use std::time::Duration;

/// Runs each test of the caller's `suite` by the two safe methods.
macro_rules! by_both_safe_ways {
    ($($test:ident)*) => {
        mod spawn {
            $(#[tokio::test]
            async fn $test() {
                super::suite::$test(super::By::Spawn).await;
            })*
        }

        mod fork_server {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::suite::$test(super::By::ForkServer).await;
            })*
        }
    };
}

mod alone;
mod death;
mod fds;
mod leaks;
mod pipe;
mod pool;
mod process;
mod queue;
mod shared;
mod sync;
mod tidy;

/// The only clock of the tests: fails what does not come, and never passes by waiting.
async fn soon<F: Future>(future: F) -> F::Output {
    if tokio::runtime::Handle::try_current().is_err() {
        // In a child, for which its parent has the clock.
        return future.await;
    }
    let in_time = tokio::time::timeout(Duration::from_secs(30), future);
    in_time.await.expect("it should have come long ago")
}
