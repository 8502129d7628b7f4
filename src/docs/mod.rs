//! Longer texts: how things work, and what to expect when they go wrong.

#[doc = include_str!("start_methods.md")]
pub mod start_methods {}

#[doc = include_str!("values.md")]
pub mod values {}

#[doc = include_str!("waiting.md")]
pub mod waiting {}
