//! Pipes and queues of this library beside those of others, in one run.
//!
//! Run with `cargo run --release` in this folder, or `cargo run --release -- 9 12` for some rows.

#![allow(
    unsafe_code,
    reason = "a floor is system calls with nothing around them"
)]

#[path = "../../harness/mod.rs"]
#[allow(dead_code, reason = "the library's own table uses more of it")]
mod harness;
#[path = "../../floor/kernel.rs"]
#[allow(dead_code, reason = "the library's own floors use more of it")]
mod kernel;

mod claims;
mod iceoryx2;
mod ipc_channel;
mod message;
mod ours;
mod queue;
mod raw;
mod remoc;
mod rival;
mod tokio_unix_ipc;

use std::process::ExitCode;

fn main() -> ExitCode {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/pipes.py");
    harness::main(claims::CONTENDERS, &claims::claims(), script)
}
