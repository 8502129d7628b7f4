//! What a child takes over from this process, whichever way it comes to be.
//!
//! `exec` hands down the environment, the working directory, limits and masks as they are. A fork
//! server's child has those of the moment when the server was started, so the start's first message
//! carries what has changed since, and the child puts it right before any user code runs.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::entry::MARKER;
use super::limits::Limits;
use crate::sys::rlimit::{self, CpuMask};
use crate::sys::{child_setup, environment};

/// The message to the child.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inheritance {
    pub(crate) name: String,
    /// The numbers that lead from the main process to this one, `1:2`.
    pub(crate) path: String,
    pub(crate) parent_pid: u32,
    pub(crate) parent_name: String,
    /// The start method that the child's own children have if none is chosen.
    pub(crate) start_method: u8,
    /// The whole environment, if it is not the one that the child has.
    pub(crate) environment: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    pub(crate) umask: Option<u32>,
    /// Limits that are not the ones that the child has, and those the builder asks for.
    pub(crate) limits: Vec<(u8, u64, u64)>,
    pub(crate) affinity: Option<CpuMask>,
    pub(crate) no_new_privileges: bool,
    /// Whether a working directory comes along, before the standard three descriptors.
    pub(crate) has_directory: bool,
}

impl Inheritance {
    /// Makes this process, a child with one thread, what the message says. Returns how large the
    /// stack of the user's thread is to be.
    pub(crate) fn take_over(&self, fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<usize> {
        let mut next = || {
            fds.next()
                .ok_or_else(|| io::Error::other("a descriptor is missing"))
        };
        if self.has_directory {
            child_setup::go_to_directory(next()?)?;
        }
        for number in 0..=2 {
            child_setup::replace_standard(number, next()?)?;
        }
        if let Some(variables) = &self.environment {
            let variables: Vec<_> = variables
                .iter()
                .map(|(name, value)| {
                    (
                        OsString::from_vec(name.clone()),
                        OsString::from_vec(value.clone()),
                    )
                })
                .collect();
            environment::replace(&variables);
        }
        if let Some(mask) = self.umask {
            rlimit::set_umask(mask);
        }
        for &(resource, soft, hard) in &self.limits {
            rlimit::set_limit(resource.into(), (soft, hard))?;
        }
        if let Some(mask) = &self.affinity {
            // The CPUs may have gone since; the kernel then keeps what it has.
            let _ = rlimit::set_affinity(mask);
        }
        if self.no_new_privileges {
            child_setup::no_new_privileges()?;
        }
        Ok(rlimit::stack_size())
    }

    /// Adds what the builder asks for.
    pub(crate) fn add_limits(&mut self, limits: &Limits) {
        self.limits.extend(limits.values());
        self.no_new_privileges |= limits.forbids_new_privileges();
    }
}

/// The state of this process that a fork server was started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    environment: Vec<(OsString, OsString)>,
    /// Device and inode of the working directory.
    directory: Option<(u64, u64)>,
    umask: Option<u32>,
    limits: Option<rlimit::Limits>,
}

impl Snapshot {
    /// The present state.
    pub(crate) fn take() -> Self {
        Self {
            environment: environment_now(),
            directory: directory_now(),
            umask: rlimit::umask().ok(),
            limits: rlimit::limits().ok(),
        }
    }

    /// Notes in `inheritance` what has changed since; returns the working directory if it has.
    ///
    /// `environment` is what the builder makes of this process' environment.
    pub(crate) fn changes(
        &self,
        environment: Vec<(OsString, OsString)>,
        inheritance: &mut Inheritance,
    ) -> io::Result<Option<OwnedFd>> {
        if environment != self.environment {
            inheritance.environment = Some(to_bytes(environment));
        }
        let umask = rlimit::umask().ok();
        if umask != self.umask {
            inheritance.umask = umask;
        }
        let limits = rlimit::limits().ok();
        for (i, (now, then)) in limits
            .iter()
            .flatten()
            .zip(self.limits.iter().flatten())
            .enumerate()
        {
            if now != then {
                inheritance.limits.push((i as u8, now.0, now.1));
            }
        }
        if directory_now() == self.directory {
            return Ok(None);
        }
        child_setup::working_directory().map(Some)
    }
}

/// The environment of this process.
pub(crate) fn environment_now() -> Vec<(OsString, OsString)> {
    env::vars_os()
        .filter(|(name, _)| name.as_bytes() != MARKER.as_bytes())
        .collect()
}

/// For the message.
pub(super) fn to_bytes(environment: Vec<(OsString, OsString)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    environment
        .into_iter()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect()
}

fn directory_now() -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(".").ok()?;
    Some((metadata.dev(), metadata.ino()))
}
