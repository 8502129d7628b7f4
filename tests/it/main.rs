//! The tests of the public face, in one binary so that everything links once: one file a module.

mod pool;
mod tidy;
