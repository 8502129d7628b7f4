//! What goes through every channel.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// 64 bytes, also for codecs that write small numbers short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Small {
    words: [u64; 8],
}

impl Small {
    /// The message of that number.
    pub(crate) fn new(number: u64) -> Self {
        Self {
            words: [u64::MAX / 2 + number; 8],
        }
    }

    /// The number of the message.
    pub(crate) fn number(self) -> u64 {
        self.words[7] - u64::MAX / 2
    }
}

/// Bytes, as cheap as serde can make them.
pub(crate) type Large = ByteBuf;

/// A large message of `len` bytes.
pub(crate) fn large(len: usize) -> Large {
    ByteBuf::from(vec![7; len])
}

/// How many messages of `len` bytes are sent in one measurement.
pub(crate) fn count(len: usize) -> usize {
    match len {
        0..=64 => 400_000,
        65..=1024 => 200_000,
        1025..=65_536 => 20_000,
        65_537..=1_048_576 => 2_000,
        _ => 24,
    }
}
