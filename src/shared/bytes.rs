//! Bytes that are written once: a memfd sealed against every change, mapped read-only by each.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::sealed::Sealed;
use crate::wire::fds;

/// Bytes that many processes read and none can change.
///
/// They are copied once, when this is made. To send them costs a descriptor, whatever their number,
/// and the receiver reads them where they are. Making it costs more than sending some kilobytes
/// through a queue; it pays for what is large and read by several.
///
/// # Process death
///
/// Nobody can change the bytes, and they are there as long as anybody has a handle.
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::Process;
/// use tokio_multiprocess::shared::SharedBytes;
///
/// fn count_zeros(table: SharedBytes) -> usize {
///     table.iter().filter(|byte| **byte == 0).count()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let table = SharedBytes::new(&[0, 1, 0, 1])?;
/// let child = Process::start(count_zeros, table.clone()).await?;
/// assert_eq!(child.join().await?, 2);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SharedBytes {
    bytes: Arc<Sealed>,
    file: Arc<OwnedFd>,
}

impl SharedBytes {
    /// Copies the bytes to where other processes can read them.
    ///
    /// # Errors
    ///
    /// Fails when the system has no memory or descriptors left.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        let (bytes, file) = Sealed::create(bytes)?;
        Ok(Self {
            bytes: Arc::new(bytes),
            file: Arc::new(file),
        })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.bytes()
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes")
            .field("len", &self.len())
            .finish()
    }
}

impl Serialize for SharedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let file = fds::list(Arc::clone(&self.file), None).map_err(S::Error::custom)?;
        file.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let file = fds::take(u32::deserialize(deserializer)?).map_err(D::Error::custom)?;
        let bytes = Sealed::map(&file).map_err(D::Error::custom)?;
        Ok(Self {
            bytes: Arc::new(bytes),
            file: Arc::new(file),
        })
    }
}
