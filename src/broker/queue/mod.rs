//! The queue between processes: its memory, the steps of its users, and its sweep.
//!
//! Everything that happens in the ordinary way happens in shared memory, between producers and
//! consumers alone: see [`steps`] for items, [`wait`] for sleepers, and [`deal`] for both together.
//! The broker is asked for three things only: the bell of a process that one has never woken before,
//! the descriptors that items carry, and the repair after a death ([`sweep`]).
//!
//! The exhaustive search through all orders of steps, kills, stops and cancellations is `search`.

pub(crate) mod arena;
pub(crate) mod deal;
pub(crate) mod keep;
#[cfg(test)]
mod search;
pub(crate) mod steps;
pub(crate) mod sweep;
pub(crate) mod wait;
pub(crate) mod words;
