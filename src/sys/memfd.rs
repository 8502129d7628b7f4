//! Memory that several processes see, see [memfd_create(2)](https://man7.org/linux/man-pages/man2/memfd_create.2.html).
//!
//! The file's size is sealed before anybody maps it: a peer that shrank it would make a reader die
//! of `SIGBUS`. A receiver checks the seals and the size before it maps what it was given.

use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use bytemuck::Pod;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::resource::{Resource, getrlimit};

use crate::sys::pieces;

/// Shared memory, mapped for reading and writing until it is dropped.
#[derive(Debug)]
pub(crate) struct Region {
    /// Start of the mapping: page-aligned, valid for `len` bytes, unmapped only by `drop`.
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Region {}
// SAFETY: its memory is reached through atomics, and by byte copies whose callers take turns.
unsafe impl Sync for Region {}

impl Region {
    /// Makes a file of `len` zero bytes that can neither shrink nor grow, and maps it.
    pub(crate) fn create(name: &CStr, len: NonZeroUsize) -> io::Result<(Self, OwnedFd)> {
        let file = Self::create_sparse(name, len)?;
        Ok((Self::map_unchecked(&file, len)?, file))
    }

    /// Makes a file like [`create`](Self::create), of which only the parts are mapped that are asked
    /// for. Pages of it that nobody touches take no memory.
    pub(crate) fn create_sparse(name: &CStr, len: NonZeroUsize) -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(name, flags)?;
        let size = i64::try_from(len.get()).map_err(io::Error::other)?;
        // Beyond this limit the kernel does not only refuse: it sends a signal that ends the process.
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        if len.get() as u64 > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        nix::unistd::ftruncate(&file, size)?;
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(size_seals() | SealFlag::F_SEAL_SEAL),
        )?;
        Ok(file)
    }

    /// Maps `len` bytes from `offset` on, a multiple of the page size, of a file that may come from
    /// another process.
    ///
    /// Fails with [`io::ErrorKind::InvalidData`] when the file is shorter or could shrink.
    pub(crate) fn map_part(file: impl AsFd, offset: usize, len: NonZeroUsize) -> io::Result<Self> {
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| not_ours("is not a memfd"))?;
        if !SealFlag::from_bits_retain(seals).contains(size_seals()) {
            return Err(not_ours("has no seals on its size"));
        }
        let size = nix::sys::stat::fstat(&file)?.st_size;
        let end = offset.checked_add(len.get());
        let fits = end.and_then(|end| i64::try_from(end).ok());
        if fits.is_none_or(|end| end > size) {
            return Err(not_ours("is too short"));
        }
        Self::map_at(&file, offset, len)
    }

    /// Maps a file that came from another process.
    ///
    /// Fails with [`io::ErrorKind::InvalidData`] when it is not of `len` bytes or could shrink.
    pub(crate) fn map(file: impl AsFd, len: NonZeroUsize) -> io::Result<Self> {
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| not_ours("is not a memfd"))?;
        if !SealFlag::from_bits_retain(seals).contains(size_seals()) {
            return Err(not_ours("has no seals on its size"));
        }
        let size = nix::sys::stat::fstat(&file)?.st_size;
        if u64::try_from(size) != Ok(len.get() as u64) {
            return Err(not_ours("has the wrong size"));
        }
        Self::map_unchecked(&file, len)
    }

    /// Maps the whole of a file that came from another process, whatever its size.
    ///
    /// Fails with [`io::ErrorKind::InvalidData`] when it is empty or could shrink.
    pub(crate) fn map_all(file: impl AsFd) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(&file)?.st_size;
        let len = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        Self::map(file, len.ok_or_else(|| not_ours("is empty"))?)
    }

    fn map_unchecked(file: impl AsFd, len: NonZeroUsize) -> io::Result<Self> {
        Self::map_at(file, 0, len)
    }

    fn map_at(file: impl AsFd, offset: usize, len: NonZeroUsize) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: no address is asked for, so no other mapping is replaced.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    /// Leaves the mapping out of what a child of this process inherits.
    pub(crate) fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the advice concerns this mapping alone, and nothing in this process.
        let advised =
            unsafe { madvise(self.base.cast(), self.len.get(), MmapAdvise::MADV_DONTFORK) };
        Ok(advised?)
    }

    /// Bytes in the file, of which a region may be a part.
    pub(crate) fn file_len(file: impl AsFd) -> io::Result<u64> {
        let size = nix::sys::stat::fstat(&file)?.st_size;
        u64::try_from(size).map_err(io::Error::other)
    }

    /// Bytes in the region.
    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    /// The aligned word at `offset`.
    #[inline]
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        let word = self.place(offset, 8, 8).cast::<u64>();
        // SAFETY:
        // - aligned and inside the mapping, as `place` asserts;
        // - live: only `drop` unmaps, no reference outlives `self`, and the size is sealed;
        // - initialised: a memfd starts as zeros, and every bit pattern is a `u64`;
        // - no data race: callers keep the places of words and of byte copies apart.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }

    /// The aligned half word at `offset`.
    #[inline]
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        let word = self.place(offset, 4, 4).cast::<u32>();
        // SAFETY: as in `word64`; every bit pattern is a `u32`.
        unsafe { AtomicU32::from_ptr(word.as_ptr()) }
    }

    /// The half of a half word at `offset`, aligned.
    pub(crate) fn word16(&self, offset: usize) -> &AtomicU16 {
        let word = self.place(offset, 2, 2).cast::<u16>();
        // SAFETY: as in `word64`; every bit pattern is a `u16`.
        unsafe { AtomicU16::from_ptr(word.as_ptr()) }
    }

    /// The byte at `offset`.
    pub(crate) fn word8(&self, offset: usize) -> &AtomicU8 {
        let word = self.place(offset, 1, 1);
        // SAFETY: as in `word64`; every bit pattern is a `u8`.
        unsafe { AtomicU8::from_ptr(word.as_ptr()) }
    }

    /// The address of `len` plain values at `offset`, for whoever answers for the access.
    pub(crate) fn address<T: Pod>(&self, offset: usize, len: usize) -> *mut T {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.expect("so many values do not fit into memory");
        self.place(offset, bytes, align_of::<T>()).cast().as_ptr()
    }

    /// Reads `len` plain values at `offset`, whose turn the caller has: it holds the lock that all
    /// processes take before they touch these bytes, for as long as it uses the slice.
    pub(crate) fn values<T: Pod>(&self, offset: usize, len: usize) -> &[T] {
        let values = self.address::<T>(offset, len);
        // SAFETY:
        // - inside the mapping and aligned, as `address` asserts; live as long as `self`;
        // - initialised: a memfd starts as zeros, and every bit pattern is a `Pod`;
        // - nobody writes meanwhile: the caller has the turn, and all who write take it first.
        unsafe { std::slice::from_raw_parts(values, len) }
    }

    /// As [`values`](Self::values), for writing. `turn` is what gives the turn, borrowed as long as
    /// the slice lives, so that it gives out one slice at a time.
    pub(crate) fn values_mut<'a, T: Pod, Turn: ?Sized>(
        &'a self,
        offset: usize,
        len: usize,
        _turn: &'a mut Turn,
    ) -> &'a mut [T] {
        let values = self.address::<T>(offset, len);
        // SAFETY: as in `values`; and no other slice of these bytes is alive, as each is borrowed
        // from the one turn that there is.
        unsafe { std::slice::from_raw_parts_mut(values, len) }
    }

    /// Copies `bytes` to `offset`. Nobody may read there until a word says so.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let mut offset = offset;
        for piece in bytes.chunks(pieces::LEN) {
            let place = self.place(offset, piece.len(), 1);
            // SAFETY: `place` asserts that the range lies inside the mapping, which is writable and
            // overlaps no Rust object.
            unsafe { place.copy_from_nonoverlapping(NonNull::from(piece).cast(), piece.len()) };
            offset += piece.len();
        }
    }

    /// Appends the `len` bytes at `offset` to `bytes`. A hostile writer can make them any bytes.
    pub(crate) fn read(&self, offset: usize, len: usize, bytes: &mut Vec<u8>) {
        bytes.reserve(len);
        let mut done = 0;
        while done < len {
            let n = (len - done).min(pieces::LEN);
            let place = self.place(offset + done, n, 1);
            let end = NonNull::from(bytes.spare_capacity_mut()).cast::<u8>();
            // SAFETY: `place` asserts that the range lies inside the mapping, and `reserve` made
            // room for `len` bytes behind what was the end of `bytes`, of which `done` are used.
            unsafe { place.copy_to_nonoverlapping(end, n) };
            // SAFETY: the capacity is there, and the bytes have just been written.
            unsafe { bytes.set_len(bytes.len() + n) };
            done += n;
        }
    }

    /// The address of `len` bytes at `offset`.
    #[inline]
    fn place(&self, offset: usize, len: usize, align: usize) -> NonNull<u8> {
        let end = offset.checked_add(len);
        let inside = end.is_some_and(|end| end <= self.len.get());
        if !inside || !offset.is_multiple_of(align) {
            no_such_place(offset, len, align);
        }
        // SAFETY: `offset` is inside the mapping, as was just looked at.
        unsafe { self.base.byte_add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of one mapping, and references into it borrow `self`.
        let result = unsafe { munmap(self.base.cast(), self.len.get()) };
        debug_assert!(
            result.is_ok(),
            "a mapping could not be unmapped: {result:?}"
        );
    }
}

#[cold]
fn no_such_place(offset: usize, len: usize, align: usize) -> ! {
    panic!("{offset}+{len} is past the end of the shared memory, or no multiple of {align}");
}

fn size_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

fn not_ours(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("shared memory {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

    #[test]
    fn two_mappings_of_one_file_show_the_same_bytes() {
        let (here, file) = Region::create(c"test", PAGE).unwrap();
        let there = Region::map(file.as_fd(), PAGE).unwrap();

        here.word64(8).store(7, Relaxed);
        here.write(100, b"hello");

        let mut bytes = Vec::new();
        there.read(100, 5, &mut bytes);
        assert_eq!(
            (there.word64(8).load(Relaxed), bytes.as_slice()),
            (7, b"hello".as_slice())
        );
    }

    #[test]
    fn a_file_that_could_shrink_is_refused() {
        let file = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, 4096).unwrap();

        let refused = Region::map(&file, PAGE).unwrap_err();

        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let (_here, file) = Region::create(c"test", PAGE).unwrap();

        let refused = Region::map(&file, NonZeroUsize::new(8192).unwrap()).unwrap_err();

        assert_eq!(refused.to_string(), "shared memory has the wrong size");
    }
}
