//! The tests of the public face, in one binary so that everything links once: one file a module.

use std::time::Duration;

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
