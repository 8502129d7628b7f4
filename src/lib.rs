//! Python's `multiprocessing`, rethought for tokio.

#![cfg(target_os = "linux")]

#[expect(unsafe_code, reason = "the one place where unsafe code lives")]
mod sys;
mod wire;
