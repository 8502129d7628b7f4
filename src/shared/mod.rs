//! Memory that tasks of many processes read and write.
//!
//! | type | what it is | how it is reached |
//! |---|---|---|
//! | [`Value`] | one value with a lock of its own | under the lock |
//! | [`Array`] | a fixed number of values with a lock of their own | under the lock |
//! | [`RawValue`], [`RawArray`] | numbers without a lock | by atomic operations |
//! | [`SharedBytes`] | bytes that are written once | as a slice |
//!
//! All of them are handles: a clone, or a copy that travelled to another process, is the same memory.
//! It lies in anonymous files (`memfd`) without a name, whose size is sealed, and is freed with the last
//! handle. A type that may lie in it is [`Pod`]: no pointers, no padding, every bit pattern valid.
//!
//! No safe call here lets two processes write the same plain memory at one time. That holds also for types
//! that read these handles in a way of their own: memory with a lock is refused as memory without one.

mod array;
mod atomic;
mod bytes;
mod raw;
mod value;

pub use bytemuck::Pod;

pub use self::array::{Array, ArrayGuard};
pub use self::atomic::Atomic;
pub use self::bytes::SharedBytes;
pub use self::raw::{RawArray, RawValue};
pub use self::value::{Value, ValueGuard};
