//! A constructor that only sets a value.

#![no_std]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

static VALUE: AtomicU64 = AtomicU64::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = construct;

extern "C" fn construct() {
    VALUE.fetch_add(42, Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn late_rs() -> u64 {
    VALUE.load(Relaxed)
}
