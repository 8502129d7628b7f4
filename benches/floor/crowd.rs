//! What a large application has besides children: memory, open files, threads.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::{ptr, thread};

use super::fork_server;
use super::launch::{by_fork_n, by_vfork_exec};

const GIB: usize = 1 << 30;
const FILES: usize = 10_000;
const THREADS: usize = 256;

/// Touches 1 GiB in pages of 4 KiB, and keeps it until the process ends.
pub(crate) fn touch_memory() {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: asks for fresh memory at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(ptr::null_mut(), GIB, protection, flags, -1, 0) };
    assert_ne!(memory, libc::MAP_FAILED, "mmap");
    // SAFETY: only this mapping is advised; huge pages would make it 262,144 page tables fewer.
    unsafe { libc::madvise(memory, GIB, libc::MADV_NOHUGEPAGE) };
    // SAFETY: the mapping is that long, zeroed by the kernel, and known to nobody else.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u8>(), GIB) };
    bytes.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
}

/// Opens ten thousand files that are closed on exec.
pub(crate) fn open_files() -> Vec<OwnedFd> {
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, hard) = nix::sys::resource::getrlimit(limit).expect("the limit of open files");
    nix::sys::resource::setrlimit(limit, hard, hard).expect("as many files as are allowed");
    let null = File::open("/dev/null").expect("/dev/null");
    (0..FILES)
        .map(|_| null.try_clone().expect("a descriptor").into())
        .collect()
}

/// Starts 256 threads that sleep until the process ends.
pub(crate) fn start_threads() {
    for _ in 0..THREADS {
        thread::spawn(|| {
            loop {
                thread::park();
            }
        });
    }
}

/// fork beside 1 GiB.
pub(crate) fn fork_with_memory() -> f64 {
    touch_memory();
    by_fork_n(9)
}

/// vfork and exec beside 1 GiB.
pub(crate) fn vfork_exec_with_memory() -> f64 {
    touch_memory();
    by_vfork_exec()
}

/// vfork and exec beside ten thousand open files.
pub(crate) fn vfork_exec_with_files() -> f64 {
    let _files = open_files();
    by_vfork_exec()
}

/// The dutiful fork server, asked by a process that holds 1 GiB.
pub(crate) fn fork_server_with_memory() -> f64 {
    fork_server::with_duties_beside(touch_memory)
}
