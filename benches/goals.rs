//! How far from the floor, and from Python: `cargo bench`, or `cargo bench -- 3 14 --rounds 7`.
//!
//! Each line is one claim: our figure, what it is compared with, their ratio, the bound that must
//! hold and the one to be reached in the end. The rows' numbers are those of the list of goals that
//! the library is built to: 1-6 processes, 7-12 queues, 14-16 and 19-20 pools, 21 memory,
//! 22-26 locks and what else is shared.
//!
//! A static build is `RUSTFLAGS="-C target-feature=+crt-static" cargo bench --target
//! x86_64-unknown-linux-gnu`.

#![allow(
    unsafe_code,
    reason = "a floor is system calls with nothing around them"
)]

mod claims;
mod floor;
mod harness;
mod ours;

use std::process::ExitCode;

/// Python's multiprocessing at the same work.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/python/contenders.py");

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(floor::launch::END_AT_ONCE) => ExitCode::SUCCESS,
        Some(floor::exit::SLEEP) => floor::exit::sleep_until_killed(),
        _ => harness::main(&claims::contenders(), &claims::claims(), PYTHON),
    }
}
