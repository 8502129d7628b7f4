//! Which copy of the process this is, see `MADV_WIPEONFORK` in
//! [madvise(2)](https://man7.org/linux/man-pages/man2/madvise.2.html).
//!
//! The kernel gives a forked child zeros for a page that was marked so. Comparing a number in that
//! page notices every fork, also one by raw `clone` that no handler sees, and costs one load, where
//! `getpid` is a system call and a cached one is wrong after exactly such a `clone`.

use std::num::NonZeroUsize;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU64};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

const PAGE_LEN: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A number that is never 0, the same in a process as long as it lives, and another one in a process
/// forked off it.
#[inline]
pub(crate) fn current() -> u64 {
    // An address of our own and no `OnceLock`, which would be a look more on every fast path.
    let place = PLACE.load(Acquire);
    if place.is_null() {
        return begin();
    }
    // SAFETY: only `begin` stores it: aligned to a page, readable and writable, and never unmapped.
    let epoch = unsafe { AtomicU64::from_ptr(place) };
    match epoch.load(Acquire) {
        0 => begin(),
        known => known,
    }
}

static PLACE: AtomicPtr<u64> = AtomicPtr::new(ptr::null_mut());

/// First use in this process: takes the next number, which no process that it was forked off has.
#[cold]
fn begin() -> u64 {
    static PAGE: OnceLock<&'static AtomicU64> = OnceLock::new();
    static USED: AtomicU64 = AtomicU64::new(0);
    let epoch = PAGE.get_or_init(wiped_page);
    PLACE.store(epoch.as_ptr(), Release);
    let next = USED.fetch_add(1, Relaxed) + 1;
    match epoch.compare_exchange(0, next, AcqRel, Acquire) {
        Ok(_) => next,
        Err(known) => known,
    }
}

/// A page of zeros that a forked child finds as zeros again. It is never given back.
#[cold]
fn wiped_page() -> &'static AtomicU64 {
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, so no other mapping is replaced.
    let page = unsafe { mmap_anonymous(None, PAGE_LEN, access, MapFlags::MAP_PRIVATE) };
    let page = page.expect("a page can be mapped");
    // SAFETY: the page has just been mapped, and wiping it changes no Rust object: it is read as an
    // atomic only.
    let marked = unsafe { madvise(page, PAGE_LEN.get(), MmapAdvise::MADV_WIPEONFORK) };
    marked.expect("Linux 4.14 and later know MADV_WIPEONFORK");
    // SAFETY: aligned to a page, readable and writable, zeros are a value, and never unmapped.
    unsafe { AtomicU64::from_ptr(page.cast::<u64>().as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stays_the_same_in_one_process() {
        let first = current();

        assert_ne!(first, 0);
        assert_eq!(current(), first);
    }
}
