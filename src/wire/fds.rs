//! Handles inside values: descriptors that leave and enter through serde.
//!
//! A descriptor is no data, so it cannot stand among the bytes of a value. Our transports open a
//! *scope* on the thread that encodes; whatever holds a descriptor puts it there while it is
//! serialised, and writes its place in the list instead. The transport sends the list beside the
//! bytes (`SCM_RIGHTS`). The scope around decoding hands the descriptors out again, each place
//! once. Scopes nest, as a `Serialize` implementation may itself send something; the innermost
//! counts. Without a scope there is nobody who would send the descriptor, and both sides fail.
//!
//! What is *shared* is listed and stays usable here. What is *moved*, the end of a pipe, is
//! reserved by its [`Moving`] handle while the value is on its way: [`Outgoing::commit`] ends its
//! life here, and dropping the [`Outgoing`] instead gives it back.
//!
//! Whatever goes wrong, a descriptor has one owner: the list, the value, or the message.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec;
use super::frame::FDS_PER_VALUE_MAX;

/// A handle that leaves this process with the value that holds it.
///
/// While it is on its way every use of it fails. Exactly one of the two methods is called, once.
pub(crate) trait Moving: Send + Sync {
    /// It is gone from here.
    fn commit(&self);
    /// It was not sent after all.
    fn restore(&self);
}

/// The descriptors of an encoded value, and what moves away with them.
#[derive(Default)]
#[must_use = "dropping this takes back what the value moves"]
pub(crate) struct Outgoing(Option<Box<Listed>>);

/// What an [`Outgoing`] holds, if it holds anything.
#[derive(Default)]
struct Listed {
    fds: Vec<Arc<OwnedFd>>,
    moving: Vec<Arc<dyn Moving>>,
}

impl Outgoing {
    /// Whether the value consists of its bytes alone.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The descriptors that are to be sent beside the value.
    pub(crate) fn fds(&self) -> &[Arc<OwnedFd>] {
        self.0.as_ref().map_or(&[], |listed| &listed.fds)
    }

    /// The value is certain to be handed over: what it moves is gone from here.
    pub(crate) fn commit(mut self) -> Vec<Arc<OwnedFd>> {
        let Some(listed) = &mut self.0 else {
            return Vec::new();
        };
        for moving in mem::take(&mut listed.moving) {
            moving.commit();
        }
        mem::take(&mut listed.fds)
    }

    /// The descriptors, and what is to be committed once they are certain to be handed over.
    pub(crate) fn into_parts(mut self) -> (Vec<Arc<OwnedFd>>, Self) {
        let Some(listed) = &mut self.0 else {
            return (Vec::new(), self);
        };
        let fds = mem::take(&mut listed.fds);
        if listed.moving.is_empty() {
            self.0 = None;
        }
        (fds, self)
    }
}

impl Listed {
    fn add(&mut self, fd: Arc<OwnedFd>) -> Result<u32, &'static str> {
        if self.fds.len() == FDS_PER_VALUE_MAX {
            return Err("a value holds more file descriptors than one message can carry");
        }
        self.fds.push(fd);
        Ok((self.fds.len() - 1) as u32)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        for moving in &self.moving {
            moving.restore();
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_moving = self.0.as_ref().map_or(0, |listed| listed.moving.len());
        f.debug_struct("Outgoing")
            .field("fds", &self.fds())
            .field("n_moving", &n_moving)
            .finish()
    }
}

enum Scope {
    Encoding(Box<Listed>),
    Decoding(Vec<Option<OwnedFd>>),
}

/// What the innermost scope of a thread is. Most values hold no descriptor; they cost no more than
/// this mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// There is none.
    Outside,
    /// Nothing was listed yet.
    Encoding,
    /// What was listed is the last of [`SCOPES`].
    Listing,
    /// No descriptor came.
    Decoding,
    /// What came is the last of [`SCOPES`].
    HandingOut,
}

thread_local! {
    static MARK: Cell<Mark> = const { Cell::new(Mark::Outside) };
    /// The scopes of this thread that hold something, the innermost last.
    static SCOPES: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// An open scope. It is closed also when a value's own code panics.
struct Open {
    outer: Mark,
}

impl Open {
    #[inline]
    fn new(mark: Mark) -> Self {
        Self {
            outer: MARK.replace(mark),
        }
    }

    /// Closes it; what it holds comes back.
    #[inline]
    fn close(self) -> Option<Scope> {
        let outer = self.outer;
        mem::forget(self);
        pop(outer)
    }
}

impl Drop for Open {
    #[inline]
    fn drop(&mut self) {
        // Dropped after the borrow has ended, as its handles may have code of their own.
        drop(pop(self.outer));
    }
}

#[inline]
fn pop(outer: Mark) -> Option<Scope> {
    match MARK.replace(outer) {
        Mark::Listing | Mark::HandingOut => SCOPES.with_borrow_mut(Vec::pop),
        _ => None,
    }
}

/// Appends `value` to `bytes`; its descriptors come back. After an error `bytes` is as it was and
/// nothing has moved.
pub(crate) fn encode_with_fds<T: Serialize + ?Sized>(
    value: &T,
    bytes: &mut Vec<u8>,
) -> Result<Outgoing, String> {
    let open = Open::new(Mark::Encoding);
    let encoded = codec::encode(value, bytes);
    let outgoing = match open.close() {
        Some(Scope::Encoding(listed)) => Outgoing(Some(listed)),
        _ => Outgoing(None),
    };
    encoded.map(|()| outgoing)
}

/// Reads a value that fills `bytes` to the last one and holds every one of `fds`.
///
/// After an error all of them are closed.
pub(crate) fn decode_with_fds<T: DeserializeOwned>(
    bytes: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<T, String> {
    if fds.is_empty() {
        let _open = Open::new(Mark::Decoding);
        return codec::decode(bytes);
    }
    let fds = fds.into_iter().map(Some).collect();
    SCOPES.with_borrow_mut(|scopes| scopes.push(Scope::Decoding(fds)));
    let open = Open::new(Mark::HandingOut);
    let decoded = codec::decode(bytes);
    let n_left = match open.close() {
        Some(Scope::Decoding(left)) => left.iter().flatten().count(),
        _ => 0,
    };
    match n_left {
        0 => decoded,
        n_left => Err(decoded.err().unwrap_or_else(|| {
            format!("{n_left} file descriptors came with a value that does not hold them")
        })),
    }
}

/// Why what holds a descriptor cannot be serialised.
pub(crate) const OUTSIDE: &str = "a file descriptor, or a handle that holds one, travels only in what \
                       tokio-multiprocess sends: arguments, results and messages";

/// Serialises a descriptor that stays open here.
pub(crate) fn serialize_shared<S: Serializer>(
    fd: Arc<OwnedFd>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(list(fd, None).map_err(S::Error::custom)?)
}

/// Serialises a copy of a descriptor that somebody else owns.
pub(crate) fn serialize_copy<S: Serializer>(
    fd: impl AsFd,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    // Asked first: without a scope no descriptor should be used up.
    if !is_encoding() {
        return Err(S::Error::custom(OUTSIDE));
    }
    let copy = fd.as_fd().try_clone_to_owned().map_err(|error| {
        S::Error::custom(format_args!("cannot copy a file descriptor: {error}"))
    })?;
    serialize_shared(Arc::new(copy), serializer)
}

/// Whether what is serialised now is sent by one of our transports.
pub(crate) fn is_encoding() -> bool {
    matches!(MARK.get(), Mark::Encoding | Mark::Listing)
}

/// Lists a descriptor that is to be sent, and what moves with it; its place is to be serialised.
///
/// # Errors
///
/// There is no scope, or too many descriptors; then `moving` is untouched.
pub(crate) fn list(fd: Arc<OwnedFd>, moving: Option<Arc<dyn Moving>>) -> Result<u32, &'static str> {
    if !is_encoding() {
        return Err(OUTSIDE);
    }
    SCOPES.with_borrow_mut(|scopes| {
        if MARK.replace(Mark::Listing) == Mark::Encoding {
            scopes.push(Scope::Encoding(Box::default()));
        }
        let Some(Scope::Encoding(listed)) = scopes.last_mut() else {
            return Err(OUTSIDE);
        };
        let place = listed.add(fd)?;
        listed.moving.extend(moving);
        Ok(place)
    })
}

/// Reads the descriptor that stands here in the value.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OwnedFd, D::Error> {
    take(u32::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Takes the descriptor out of its place in the list.
pub(crate) fn take(place: u32) -> Result<OwnedFd, String> {
    SCOPES.with_borrow_mut(|scopes| {
        let fds = match (MARK.get(), scopes.last_mut()) {
            (Mark::Decoding, _) => &mut Vec::new(),
            (Mark::HandingOut, Some(Scope::Decoding(fds))) => fds,
            _ => return Err(OUTSIDE.to_owned()),
        };
        let n_fds = fds.len();
        let Some(fd) = fds.get_mut(place as usize) else {
            return Err(format!(
                "the value claims file descriptor {place} of {n_fds}"
            ));
        };
        fd.take()
            .ok_or_else(|| format!("the value claims file descriptor {place} twice"))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};
    use std::sync::Mutex;

    use super::*;

    /// A shared descriptor.
    #[derive(Debug)]
    struct Shared(Arc<OwnedFd>);

    impl Serialize for Shared {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serialize_shared(Arc::clone(&self.0), serializer)
        }
    }

    impl<'de> Deserialize<'de> for Shared {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserialize(deserializer).map(|fd| Self(Arc::new(fd)))
        }
    }

    #[derive(Default)]
    struct Fate(Mutex<Vec<&'static str>>);

    impl Moving for Fate {
        fn commit(&self) {
            self.0.lock().unwrap().push("gone");
        }
        fn restore(&self) {
            self.0.lock().unwrap().push("back");
        }
    }

    /// A moved descriptor.
    struct Moved(Arc<OwnedFd>, Arc<Fate>);

    impl Serialize for Moved {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let place = list(Arc::clone(&self.0), Some(Arc::clone(&self.1) as _));
            serializer.serialize_u32(place.map_err(S::Error::custom)?)
        }
    }

    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("it will not"))
        }
    }

    fn end_of_pipe() -> (std::io::PipeReader, Arc<OwnedFd>) {
        let (reader, writer) = pipe().unwrap();
        (reader, Arc::new(writer.into()))
    }

    fn across(outgoing: Outgoing) -> Vec<OwnedFd> {
        let copy = |fd: &Arc<OwnedFd>| fd.try_clone().unwrap();
        outgoing.commit().iter().map(copy).collect()
    }

    fn ends(mut reader: std::io::PipeReader) -> bool {
        matches!(reader.read(&mut [0]), Ok(0))
    }

    #[test]
    fn descriptors_arrive_where_they_stood_in_the_value() {
        let (mut readers, ends): (Vec<_>, Vec<_>) = (0..3).map(|_| end_of_pipe()).unzip();
        let [a, b, c]: [Arc<OwnedFd>; 3] = ends.try_into().unwrap();
        let value = (Some(Shared(a)), vec![Shared(b), Shared(c)]);
        let mut bytes = Vec::new();

        let outgoing = encode_with_fds(&value, &mut bytes).unwrap();
        let (first, rest): (Option<Shared>, Vec<Shared>) =
            decode_with_fds(&bytes, across(outgoing)).unwrap();

        for (mark, end) in (b'a'..).zip(first.into_iter().chain(rest)) {
            let mut file = std::fs::File::from(Arc::into_inner(end.0).unwrap());
            file.write_all(&[mark]).unwrap();
        }
        for (mark, reader) in (b'a'..).zip(&mut readers) {
            let mut read = [0];
            reader.read_exact(&mut read).unwrap();
            assert_eq!(read, [mark]);
        }
    }

    #[test]
    fn a_handle_outside_our_transports_is_an_error_that_says_so() {
        let shared = Shared(end_of_pipe().1);

        let refused = codec::encode(&shared, &mut Vec::new()).unwrap_err();
        assert_eq!(refused, OUTSIDE);

        assert_eq!(codec::decode::<Shared>(&[0; 4]).unwrap_err(), OUTSIDE);
    }

    #[test]
    fn a_value_that_claims_what_did_not_come_is_an_error_and_closes_the_rest() {
        for (len, places, n_fds, says) in [
            (
                1_u64,
                &[0_u32][..],
                0,
                "the value claims file descriptor 0 of 0",
            ),
            (1, &[7], 1, "the value claims file descriptor 7 of 1"),
            (2, &[0, 0], 1, "the value claims file descriptor 0 twice"),
            (
                1,
                &[0],
                2,
                "1 file descriptors came with a value that does not hold them",
            ),
            (
                0,
                &[],
                2,
                "2 file descriptors came with a value that does not hold them",
            ),
            (2, &[0], 2, "at least 4 bytes are missing"),
        ] {
            let places = places.iter().flat_map(|place| place.to_le_bytes());
            let bytes: Vec<u8> = len.to_le_bytes().into_iter().chain(places).collect();
            let (readers, fds): (Vec<_>, Vec<_>) = (0..n_fds)
                .map(|_| pipe().unwrap())
                .map(|(reader, writer)| (reader, OwnedFd::from(writer)))
                .unzip();

            let refused = decode_with_fds::<Vec<Shared>>(&bytes, fds).unwrap_err();

            assert_eq!(refused, says);
            assert!(readers.into_iter().all(ends), "{bytes:?} leaks");
        }
    }

    #[test]
    fn what_moves_is_gone_after_the_hand_over_and_back_without_it() {
        let fate = Arc::new(Fate::default());
        let told = || mem::take(&mut *fate.0.lock().unwrap());
        let moved = || Moved(end_of_pipe().1, Arc::clone(&fate));

        let outgoing = encode_with_fds(&moved(), &mut Vec::new()).unwrap();
        assert!(told().is_empty());
        let _ = outgoing.commit();
        assert_eq!(told(), ["gone"]);

        drop(encode_with_fds(&(moved(), moved()), &mut Vec::new()).unwrap());
        assert_eq!(told(), ["back", "back"]);

        let refused = encode_with_fds(&(moved(), Refuses), &mut Vec::new());
        assert!(refused.is_err());
        assert_eq!(told(), ["back"]);
    }

    #[test]
    fn a_value_that_sends_while_it_is_serialised_keeps_its_own_descriptors() {
        struct Sends(Shared);
        impl Serialize for Sends {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let inner = encode_with_fds(&(Shared(end_of_pipe().1), ()), &mut Vec::new());
                assert_eq!(inner.map_err(S::Error::custom)?.commit().len(), 1);
                let inner = encode_with_fds(&(Shared(end_of_pipe().1), Refuses), &mut Vec::new());
                assert!(inner.is_err());
                self.0.serialize(serializer)
            }
        }
        let value = (Shared(end_of_pipe().1), Sends(Shared(end_of_pipe().1)));
        let mut bytes = Vec::new();

        let outgoing = encode_with_fds(&value, &mut bytes).unwrap();

        assert_eq!(
            (outgoing.commit().len(), bytes),
            (2, vec![0, 0, 0, 0, 1, 0, 0, 0])
        );
    }

    #[test]
    fn a_panic_inside_a_value_leaves_no_scope_open() {
        struct Panics;
        impl Serialize for Panics {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                panic!("on purpose")
            }
        }
        let (reader, writer) = end_of_pipe();

        let caught = std::panic::catch_unwind(|| {
            encode_with_fds(&(Shared(writer), Panics), &mut Vec::new())
        });

        assert!(caught.is_err());
        assert!(!is_encoding());
        assert!(ends(reader));
    }
}
