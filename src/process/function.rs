//! A function's identity: where it lies in the program, the same in each of its processes.
//!
//! Parent and child run the same file, so a function is named by its distance from one `static` of
//! the image; address space randomisation moves both alike. (From a static and not from a
//! function: a function that is inlined has no one address.) Two places travel: that of the user's
//! function, and that of the generic code which was compiled for its types and knows how to decode
//! the argument, call it and encode the result. Both sides check that a place lies in executable
//! code of the main image, so no message can make a process jump elsewhere; which function of the
//! program it is, the sender decides, as it decides everything else about its children.
//!
//! This is the one file outside `sys` with unsafe code: it turns an address back into a function.

#![expect(unsafe_code, reason = "turns an address back into a function")]

use std::any::Any;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::ptr;

use futures::FutureExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::panic::take_panic;
use crate::error::{ForeignFunction, Panic};
use crate::sys::image;
use crate::wire::fds::{self, Outgoing};

/// What the distances are measured from.
static ANCHOR: u8 = 0;

/// Where a function lies: its distance from the anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place(u64);

impl Place {
    fn of(address: usize) -> Result<Self, ForeignFunction> {
        if !image::is_code(address) {
            return Err(ForeignFunction);
        }
        Ok(Self(address.wrapping_sub((&raw const ANCHOR).addr()) as u64))
    }

    fn address(self) -> Result<usize, ForeignFunction> {
        let address = (&raw const ANCHOR).addr().wrapping_add(self.0 as usize);
        if image::is_code(address) {
            Ok(address)
        } else {
            Err(ForeignFunction)
        }
    }

    /// For the wire.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// From the wire; [`Function::resolve`] and [`Main::resolve`] check it.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

/// Marks functions that return their result.
#[derive(Debug)]
pub enum Blocking {}

/// Marks functions that return a future of their result.
#[derive(Debug)]
pub enum Async {}

/// What a function returns: a value, or a future of one.
///
/// Implemented for every serialisable value, with the marker [`Blocking`], and for every future of
/// one, with [`Async`]. The compiler finds the marker by itself, so it is never written.
pub trait Outcome<Marker>: Sized {
    /// What is awaited by whoever called the function.
    type Output;

    /// Whether the function is an async one.
    #[doc(hidden)]
    const ASYNC: bool;

    #[doc(hidden)]
    fn finish(self, encoded: &mut Vec<u8>) -> Finished;
}

/// What became of a function's return value.
#[doc(hidden)]
#[expect(
    missing_debug_implementations,
    reason = "holds a future, and is no part of the interface"
)]
pub struct Finished(Ran);

impl<T: Serialize> Outcome<Blocking> for T {
    type Output = T;
    const ASYNC: bool = false;

    fn finish(self, encoded: &mut Vec<u8>) -> Finished {
        Finished(match fds::encode_with_fds(&self, encoded) {
            Ok(outgoing) => Ran::Done(outgoing),
            Err(error) => Ran::Failed(Failure::Encode(error)),
        })
    }
}

impl<F> Outcome<Async> for F
where
    F: Future<Output: Serialize> + 'static,
{
    type Output = F::Output;
    const ASYNC: bool = true;

    fn finish(self, _: &mut Vec<u8>) -> Finished {
        Finished(Ran::Later(Box::pin(async move {
            let value = self.await;
            let mut encoded = Vec::new();
            let outgoing = fds::encode_with_fds(&value, &mut encoded).map_err(Failure::Encode)?;
            Ok((encoded, outgoing))
        })))
    }
}

/// A function of this program, as it is named in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Function {
    entry: Place,
    user: Place,
}

/// Code compiled for one signature: decodes the argument, calls the function at the address `user`,
/// encodes what it returns.
///
/// # Safety
///
/// `user` must be the address of a function of the signature that the entry was compiled for.
type Entry = unsafe fn(user: usize, argument: Argument<'_>, encoded: &mut Vec<u8>) -> Ran;

/// An encoded argument, and the descriptors that it holds.
pub(crate) struct Argument<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fds: Vec<OwnedFd>,
}

unsafe fn entry<A, O, M>(user: usize, argument: Argument<'_>, encoded: &mut Vec<u8>) -> Ran
where
    A: DeserializeOwned + 'static,
    O: Outcome<M> + 'static,
{
    let user = ptr::with_exposed_provenance::<()>(user);
    // SAFETY: the caller says that there is a function of this type.
    let user: fn(A) -> O = unsafe { std::mem::transmute::<*const (), fn(A) -> O>(user) };
    let Argument { bytes, fds } = argument;
    if !O::ASYNC {
        return match fds::decode_with_fds(bytes, fds) {
            Ok(argument) => user(argument).finish(encoded).0,
            Err(error) => Ran::Failed(Failure::Decode(error)),
        };
    }
    // Decoded inside the future: tokio's sockets can only be made in a runtime.
    let bytes = bytes.to_vec();
    Ran::Later(Box::pin(async move {
        let argument = fds::decode_with_fds(&bytes, fds).map_err(Failure::Decode)?;
        drop(bytes);
        let mut encoded = Vec::new();
        match user(argument).finish(&mut encoded).0 {
            Ran::Later(future) => future.await,
            Ran::Done(outgoing) => Ok((encoded, outgoing)),
            Ran::Failed(failure) => Err(failure),
        }
    }))
}

impl Function {
    /// Bytes on the wire.
    pub(crate) const LEN: usize = 16;

    /// Names `function`, if it belongs to the main image.
    pub(crate) fn of<A, O, M>(function: fn(A) -> O) -> Result<Self, ForeignFunction>
    where
        A: DeserializeOwned + 'static,
        O: Outcome<M> + 'static,
    {
        let entry: Entry = entry::<A, O, M>;
        let entry = Place::of((entry as *const ()).expose_provenance())?;
        let user = Place::of((function as *const ()).expose_provenance())?;
        Ok(Self { entry, user })
    }

    /// For the wire.
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.entry.to_bytes());
        bytes[8..].copy_from_slice(&self.user.to_bytes());
        bytes
    }

    /// From the wire; [`Function::resolve`] checks it.
    pub(crate) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [e0, e1, e2, e3, e4, e5, e6, e7, user @ ..] = bytes;
        let entry = Place::from_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
        Self {
            entry,
            user: Place::from_bytes(user),
        }
    }

    /// Finds the function in this process, if both places are code of the main image.
    pub(crate) fn resolve(self) -> Result<Resolved, ForeignFunction> {
        let entry = ptr::with_exposed_provenance::<()>(self.entry.address()?);
        let user = self.user.address()?;
        // SAFETY: the place is executable code of this very image, and `Function::of` in another
        // process of it, the only maker of such pairs, has taken it from an `Entry`.
        let entry = unsafe { std::mem::transmute::<*const (), Entry>(entry) };
        Ok(Resolved { entry, user })
    }
}

/// A function that can be called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolved {
    entry: Entry,
    user: usize,
}

/// What an async function's call comes to: the encoded result and its descriptors.
pub(crate) type Later = Pin<Box<dyn Future<Output = Result<(Vec<u8>, Outgoing), Failure>>>>;

/// What became of a call.
pub(crate) enum Ran {
    /// The encoded result was appended; these are its descriptors.
    Done(Outgoing),
    /// There is no result, and nothing was appended.
    Failed(Failure),
    /// The function is an async one: its result will be that of this future.
    Later(Later),
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The argument could not be read.
    Decode(String),
    /// The result could not be written.
    Encode(String),
    /// The function, or the code of its argument's or result's type, panicked.
    Panicked(Panic),
}

impl Resolved {
    /// Calls it with an encoded argument; the encoded result is appended to `encoded`.
    pub(crate) fn call(self, argument: Argument<'_>, encoded: &mut Vec<u8>) -> Ran {
        let len = encoded.len();
        // SAFETY: `resolve` got both addresses from a `Function`, in which they belong together.
        let call = AssertUnwindSafe(|| unsafe { (self.entry)(self.user, argument, encoded) });
        let ran = match panic::catch_unwind(call) {
            Ok(Ran::Later(future)) => return Ran::Later(Box::pin(guarded(future))),
            Ok(ran) => ran,
            Err(payload) => Ran::Failed(Failure::panicked(payload)),
        };
        if let Ran::Failed(_) = ran {
            encoded.truncate(len);
        }
        ran
    }
}

async fn guarded(future: Later) -> Result<(Vec<u8>, Outgoing), Failure> {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(result) => result,
        Err(payload) => Err(Failure::panicked(payload)),
    }
}

impl Failure {
    /// What `catch_unwind` caught, with what the panic hook of a child has noted of it.
    pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Self {
        Self::Panicked(take_panic(payload))
    }
}

/// The main function of a child of some kind, one of this library's own.
pub(crate) type Main = fn(super::entry::Child);

/// Names a function that takes and returns nothing.
pub(crate) fn place_of_hook(hook: fn()) -> Result<Place, ForeignFunction> {
    Place::of((hook as *const ()).expose_provenance())
}

/// Finds a function that takes and returns nothing, if the place is code of the main image.
pub(crate) fn hook_at(place: Place) -> Result<fn(), ForeignFunction> {
    let hook = ptr::with_exposed_provenance::<()>(place.address()?);
    // SAFETY: the place is executable code of this very image, and `place_of_hook` in the parent,
    // the only maker of such places, has taken it from such a function.
    Ok(unsafe { std::mem::transmute::<*const (), fn()>(hook) })
}

/// Names a child's main function.
pub(crate) fn place_of_main(main: Main) -> Result<Place, ForeignFunction> {
    Place::of((main as *const ()).expose_provenance())
}

/// Finds a child's main function, if the place is code of the main image.
pub(crate) fn main_at(place: Place) -> Result<Main, ForeignFunction> {
    let main = ptr::with_exposed_provenance::<()>(place.address()?);
    // SAFETY: the place is executable code of this very image, and `place_of_main` in the parent,
    // the only maker of such places, has taken it from a `Main`.
    Ok(unsafe { std::mem::transmute::<*const (), Main>(main) })
}
