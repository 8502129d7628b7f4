//! Shown to work in a doctest and in a unit test.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tokio_multiprocess::Process;
//!
//! let child = Process::start(programs::square, 5).await?;
//! assert_eq!(child.join().await?, 25);
//! # Ok(()) }
//! ```

use tokio::runtime::Builder;
use tokio_multiprocess::Process;

pub fn square(x: u64) -> u64 {
    x * x
}

/// For programs whose `main` is their own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// What a program that wants nothing special does.
pub async fn start_one() {
    let child = Process::start(square, 6).await.unwrap();
    assert_eq!(child.join().await.unwrap(), 36);
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn a_unit_test_starts_a_process() {
        super::start_one().await;
    }
}
