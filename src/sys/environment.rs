//! The environment of a process that has one thread yet.
//!
//! A library's constructor may have started a thread of its own before; such a thread must not use
//! the environment, as in any program that sets variables first in its `main`.

use std::env;
use std::ffi::{OsStr, OsString};

/// Removes `name`.
///
/// Only for the first thread of a child before any other exists.
pub(crate) fn remove(name: &str) {
    // SAFETY: the caller is the only Rust thread yet, so nobody reads the environment meanwhile.
    unsafe { env::remove_var(name) }
}

/// Makes `variables` the whole environment.
///
/// Only for the first thread of a child before any other exists.
pub(crate) fn replace(variables: &[(OsString, OsString)]) {
    for (name, _) in env::vars_os() {
        if !variables.iter().any(|(kept, _)| *kept == name) && is_valid(&name) {
            // SAFETY: the caller is the only Rust thread yet, so nobody reads the environment meanwhile.
            unsafe { env::remove_var(name) }
        }
    }
    for (name, value) in variables {
        if is_valid(name) && env::var_os(name).as_ref() != Some(value) {
            // SAFETY: as above; `name` is neither empty nor holds `=` or NUL.
            unsafe { env::set_var(name, value) }
        }
    }
}

fn is_valid(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    !bytes.is_empty() && !bytes.contains(&b'=') && !bytes.contains(&0)
}
