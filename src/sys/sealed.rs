//! Bytes that nobody can change any more: a memfd with all seals, mapped for reading.
//!
//! The kernel refuses the seal against writing while a writable mapping is alive, so the bytes are
//! written by [write(2)](https://man7.org/linux/man-pages/man2/write.2.html) first.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A mapping of bytes that no process can change.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// Start of the mapping; nothing for no bytes, which cannot be mapped.
    base: Option<NonNull<u8>>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Sealed {}
// SAFETY: nobody writes to it.
unsafe impl Sync for Sealed {}

impl Sealed {
    /// A file with these bytes, sealed, and its mapping.
    pub(crate) fn create(bytes: &[u8]) -> io::Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"mp-bytes", flags)?);
        file.write_all(bytes)?;
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL),
        )?;
        let file = OwnedFd::from(file);
        Ok((Self::map(&file)?, file))
    }

    /// Maps a file that came from another process, if it can neither change nor shrink.
    pub(crate) fn map(file: impl AsFd) -> io::Result<Self> {
        let not_ours = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let has = fcntl(&file, FcntlArg::F_GET_SEALS)
            .map_err(|_| not_ours("shared bytes came as something that is no memfd"))?;
        if !SealFlag::from_bits_retain(has).contains(seals()) {
            return Err(not_ours("shared bytes could still be changed"));
        }
        let size = nix::sys::stat::fstat(&file)?.st_size;
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let Some(size) = NonZeroUsize::new(len) else {
            return Ok(Self { base: None, len });
        };
        let (access, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: no address is asked for, so no other mapping is replaced.
        let base = unsafe { mmap(None, size, access, flags, file, 0) }?;
        Ok(Self {
            base: Some(base.cast()),
            len,
        })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(base) = self.base else { return &[] };
        // SAFETY: the mapping is `len` bytes long and alive as long as `self`; the seals keep it
        // from shrinking and from being written, by anybody.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), self.len) }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        if let Some(base) = self.base {
            // SAFETY: `base` and `len` are those of one mapping, and slices of it borrow `self`.
            let result = unsafe { munmap(base.cast(), self.len) };
            debug_assert!(
                result.is_ok(),
                "a mapping could not be unmapped: {result:?}"
            );
        }
    }
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd::Region;

    #[test]
    fn sealed_bytes_are_there_for_whoever_maps_them() {
        for bytes in [b"".as_slice(), b"some bytes"] {
            let (here, file) = Sealed::create(bytes).unwrap();
            let there = Sealed::map(&file).unwrap();

            assert_eq!((here.bytes(), there.bytes()), (bytes, bytes));
        }
    }

    #[test]
    fn a_file_that_could_still_be_written_is_refused() {
        let (_region, file) = Region::create(c"test", NonZeroUsize::MIN).unwrap();

        let refused = Sealed::map(&file).unwrap_err();

        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
