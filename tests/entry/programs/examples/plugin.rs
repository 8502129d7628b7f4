//! A library that is loaded at run time, and that has a copy of the crate in it.

use programs::{block_on, square};
use tokio_multiprocess::Process;

/// A function that is in no image but this one.
fn cube(x: u64) -> u64 {
    x * x * x
}

#[unsafe(no_mangle)]
pub fn plugins_function() -> fn(u64) -> u64 {
    cube
}

/// Starts a function of this library with this library's copy of the crate.
#[unsafe(no_mangle)]
pub fn plugins_start() -> String {
    let error = block_on(Process::start(square, 3)).unwrap_err();
    format!("{error:?}")
}
