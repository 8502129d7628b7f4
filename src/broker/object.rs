//! A shared object as a process holds it: its memory, its number there, and the way to its broker.
//!
//! The creator makes the memory and shows it to its own broker like any other client. A handle that
//! travels takes along a descriptor of the memory and one of the broker's door (an event also its
//! bell), so whoever gets one, by whatever way, can make itself known: no process needs another one's
//! help for it. An object costs a process one descriptor (an event two), and each broker five for all
//! of its objects together.
//!
//! The number (`me`) is what this process writes into words that it owns. It is taken from a counter
//! in the object, so it is never given twice, and the broker is told of it before it is used. After a
//! fork the child has the memory but must not be its parent, to the broker least of all: the first
//! use notices and takes a number and a link of its own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering::{Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::atomic::{Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::bell::Bell;
use crate::broker::flag;
use crate::broker::layout::{self, Kind, Shape};
use crate::broker::link::{Link, Sleepers};
use crate::broker::mapped::Mapped;
use crate::broker::memory::Shared;
use crate::broker::message::{Place, Says};
use crate::broker::park::{self, Rouse};
use crate::broker::parking::Park;
use crate::broker::queue;
use crate::broker::queue::arena::Arena;
use crate::broker::serve::{Broker, room};
use crate::broker::slot::Wake;
use crate::broker::spin::Spin;
pub(crate) use crate::broker::spin::has_several_cpus;
use crate::broker::vigil;
use crate::broker::waiting::Waiting;
use crate::broker::word::{self, Taken, Tell};
use crate::error::CreatorGone;
use crate::supervisor;
use crate::sys::epoll::Interest;
use crate::sys::inode::Inode;
use crate::sys::memfd::Region;
use crate::sys::{fork_epoch, futex};
use crate::wire::fds;

/// Memory, and what this process is to it.
pub(crate) struct Object {
    mapped: Mapped,
    file: Arc<OwnedFd>,
    kind: Kind,
    /// Of an event.
    bell: Option<Arc<Bell>>,
    /// The process that `me` is true for.
    epoch: AtomicU64,
    me: AtomicU32,
    attached: Mutex<Attached>,
    itself: Weak<Self>,
    /// Where a taker looks for a permit first: beside the last one, as the ones before are taken.
    hint: AtomicUsize,
    park: Park,
    spin: Spin,
}

/// What this process has, so that it has everything once.
static OBJECTS: LazyLock<Mutex<HashMap<Inode, Weak<Object>>>> = LazyLock::new(Mutex::default);

/// How this process reaches the broker about the object.
#[derive(Clone, Debug)]
struct Attached {
    link: Arc<Link>,
    number: u32,
}

impl Object {
    /// Makes an object whose broker is this process'.
    pub(crate) fn create(shape: Shape) -> io::Result<Arc<Self>> {
        let len = shape.len().ok_or(io::ErrorKind::OutOfMemory)?;
        let (region, file) = Region::create(c"mp-object", len)?;
        room::check(&file)?;
        shape.write(&region);
        let bell = matches!(shape, Shape::Event).then(Bell::new).transpose()?;
        let file = Arc::new(file);
        let kind = layout::kind_of(&region)?;
        Self::attach((Mapped::Whole(region), kind), file, bell, own_door()?, &[])
    }

    /// Makes a queue whose broker is this process'. The broker gets `ends`, pipes that hang up when
    /// nobody can put or get any more.
    pub(crate) fn create_queue(
        limit: u64,
        leases: bool,
        ends: [BorrowedFd<'_>; 2],
    ) -> io::Result<Arc<Self>> {
        let file = Arc::new(Arena::create()?);
        room::check(&file)?;
        let arena = Arena::open(Arc::clone(&file))?;
        queue::steps::create(&mut &arena, limit, leases)?;
        layout::mark_queue(arena.near());
        let mapped = (Mapped::Queue(Box::new(arena)), Kind::Queue);
        Self::attach(mapped, file, None, own_door()?, &ends)
    }

    /// Takes part in an object that came from another process.
    fn receive(file: OwnedFd, bell: Option<OwnedFd>, door: OwnedFd) -> io::Result<Arc<Self>> {
        let file = Arc::new(file);
        let mapped = Mapped::open(&file)?;
        let bell = bell.map(Bell::received).transpose()?;
        Self::attach(mapped, file, bell, Arc::new(door), &[])
    }

    fn attach(
        (mapped, kind): (Mapped, Kind),
        file: Arc<OwnedFd>,
        bell: Option<Bell>,
        door: Arc<OwnedFd>,
        ends: &[BorrowedFd<'_>],
    ) -> io::Result<Arc<Self>> {
        let inode = Inode::of(&*file)?;
        let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = objects.get(&inode).and_then(Weak::upgrade) {
            // It has come before: both handles are one client, so a guard of one is a guard of both.
            return Ok(object);
        }
        let link = Link::to(door)?;
        let bell = bell.map(Arc::new);
        let (number, me) = introduce(mapped.region(), &file, bell.as_deref(), &link, ends)?;
        let object = Arc::new_cyclic(|itself| Self {
            itself: Weak::clone(itself),
            // Different processes begin at different places.
            hint: AtomicUsize::new(me as usize),
            park: Park::default(),
            spin: Spin::default(),
            mapped,
            file,
            kind,
            bell,
            epoch: AtomicU64::new(fork_epoch::current()),
            me: AtomicU32::new(me),
            attached: Mutex::new(Attached {
                link: Arc::clone(&link),
                number,
            }),
        });
        link.also_wake(&object);
        objects.retain(|_, known| known.strong_count() > 0);
        objects.insert(inode, Arc::downgrade(&object));
        Ok(object)
    }

    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its memory.
    #[inline]
    pub(crate) fn region(&self) -> &Region {
        self.mapped.region()
    }

    /// A queue's memory.
    pub(crate) fn arena(&self) -> &Arena {
        self.mapped.arena().expect("a queue has an arena")
    }

    /// Its words.
    #[inline]
    pub(crate) fn words(&self) -> Shared<'_> {
        Shared(self.region())
    }

    /// This process' number.
    #[inline]
    pub(crate) fn me(&self) -> Result<u32, CreatorGone> {
        if self.epoch.load(Acquire) == fork_epoch::current() {
            return Ok(self.me.load(Relaxed));
        }
        self.attach_again()
    }

    /// In a forked child: becomes a client of its own. Also comes here when the creator is gone.
    #[cold]
    fn attach_again(&self) -> Result<u32, CreatorGone> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = fork_epoch::current();
        if attached.link.is_ours() && attached.link.is_gone() {
            return Err(CreatorGone);
        }
        if self.epoch.load(Acquire) != epoch {
            let door = Arc::clone(attached.link.door());
            let link = Link::to(door).map_err(|_| CreatorGone)?;
            let introduced = introduce(self.region(), &self.file, self.bell.as_deref(), &link, &[]);
            let (number, me) = introduced.map_err(|_| CreatorGone)?;
            let old = std::mem::replace(&mut *attached, Attached { link, number });
            // Its parent's: dropping it would undo what the parent does with shared descriptions.
            std::mem::forget(old);
            self.park.forget();
            self.me.store(me, Relaxed);
            // Release: whoever sees the epoch sees the number.
            self.epoch.store(epoch, Release);
            // Behind it, so that the end of the creator is not overwritten.
            if let Some(itself) = self.itself.upgrade() {
                attached.link.also_wake(&itself);
            }
        }
        Ok(self.me.load(Relaxed))
    }

    fn attached(&self) -> Attached {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.clone()
    }

    /// Whether the creator has ended, as far as is known.
    pub(crate) fn is_orphan(&self) -> bool {
        self.attached().link.has_ended()
    }

    /// Takes a free permit, if there is one.
    #[inline]
    pub(crate) fn take(&self) -> Result<Option<Taken>, CreatorGone> {
        let me = self.me()?;
        let permits = layout::permits(self.region());
        if permits.is_empty() {
            return Ok(None);
        }
        let mut first = self.hint.load(Relaxed);
        if first >= permits.len() {
            first %= permits.len();
        }
        let start = permits.start;
        if self.take_plain(start + first, me) {
            self.hint.store(first + 1, Relaxed);
            return Ok(Some(Taken {
                word: start + first,
                recovered: false,
            }));
        }
        let Ok(taken) = word::take(&mut self.words(), permits, first, me);
        if let Some(taken) = taken {
            self.hint.store(taken.word - start + 1, Relaxed);
        }
        Ok(taken)
    }

    /// Takes the permit of a word if it is free and there is nothing else to be said about it.
    #[inline]
    pub(crate) fn take_plain(&self, word: usize, me: u32) -> bool {
        let word = self.region().word64(word * 8);
        // Builds that break rules go the long way, where the rules stand.
        !cfg!(mutants)
            && word
                .compare_exchange(0, me.into(), Acquire, Relaxed)
                .is_ok()
    }

    /// Gives a permit's word back; it was taken by this process.
    #[inline]
    pub(crate) fn give(&self, word: usize) {
        // Also when the broker does not listen to us any more: others look at the word as well.
        let me = self
            .me()
            .unwrap_or_else(|CreatorGone| self.me.load(Relaxed));
        let region = self.region();
        let plain = region.word64(word * 8);
        // The common case by itself: no flags, nobody sleeps. SeqCst: see `park`. Builds that break
        // rules go the long way, where the rules stand.
        let done = !cfg!(mutants)
            && plain
                .compare_exchange(me.into(), 0, SeqCst, Relaxed)
                .is_ok();
        if !done || self.has_sleeper() {
            self.give_slowly(word, me, done);
        }
    }

    #[cold]
    fn give_slowly(&self, word: usize, me: u32, done: bool) {
        let mut tell = Tell::Nothing;
        if !done {
            let Ok(told) = word::give(&mut self.words(), word, me);
            tell = told;
        }
        self.tell(tell, word);
    }

    /// Gives back a word whose user has not seen it: the mark of a dead owner stays in it.
    #[cold]
    pub(crate) fn give_unseen(&self, word: usize) {
        let Ok(me) = self.me() else { return };
        let Ok(tell) = word::give_unseen(&mut self.words(), word, me);
        self.tell(tell, word);
    }

    #[inline]
    fn has_sleeper(&self) -> bool {
        let Ok(has_sleeper) = park::has_sleeper(&mut self.words(), layout::SLEEPER);
        has_sleeper
    }

    fn rouse(&self, whom: Rouse) {
        match whom {
            Rouse::Process(client) => self.ring(client),
            Rouse::Thread(word) => self.rouse_thread(word),
        }
    }

    fn rouse_thread(&self, word: usize) {
        // The upper half, on the little-endian machines that the crate supports.
        futex::wake(self.region().word32(word * 8 + 4));
    }

    /// Rings the process with this number, directly if its bell is known.
    fn ring(&self, client: u32) {
        let Attached { link, number } = self.attached();
        if self.me() == Ok(client) {
            link.bell().ring();
        } else {
            link.ring(number, client, client);
        }
    }

    /// Wakes somebody who then wants the lock: a process when that is given back, if we have it.
    pub(crate) fn rouse_with_lock(&self, whom: Rouse) {
        if let (Rouse::Process(client), Ok(me)) = (whom, self.me()) {
            let mut words = self.words();
            let Ok(is_put_off) =
                park::put_off(&mut words, layout::SLEEPER, layout::LOCK, me, client);
            if is_put_off {
                return;
            }
        }
        self.rouse(whom);
    }

    /// What is known of the one of this process that is parked.
    pub(crate) fn park(&self) -> &Park {
        &self.park
    }

    /// Looks for a few microseconds.
    pub(crate) fn spin<T, E>(
        &self,
        look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        self.spin.until(look)
    }

    /// The word of the permit that the broker answers with, if there is such a one.
    pub(crate) fn permit(&self, index: u32) -> Option<usize> {
        layout::permits(self.region()).nth(index as usize)
    }

    /// Gives back a permit of a semaphore, which is where the next taker looks first.
    pub(crate) fn give_permit(&self, word: usize) {
        self.give(word);
        let start = layout::permits(self.region()).start;
        self.hint.store(word - start, Relaxed);
    }

    /// Passes on what a change of a word makes necessary.
    #[inline]
    pub(crate) fn tell(&self, tell: Tell, word: usize) {
        // Also when the broker hands the permit to somebody else: then it is time to queue.
        let Ok(sleeper) = park::given(&mut self.words(), layout::SLEEPER);
        if let Some(sleeper) = sleeper {
            self.rouse(sleeper);
        }
        match tell {
            Tell::Nothing => (),
            Tell::Poke => self.say(Says::Poke),
            Tell::Release => {
                self.say(Says::Release(
                    (word - layout::permits(self.region()).start) as u32,
                ));
            }
        }
    }

    /// Tells the broker.
    #[cold]
    pub(crate) fn say(&self, says: Says) {
        if self.me().is_err() {
            return;
        }
        let attached = self.attached();
        attached.link.say(attached.number, says);
    }

    /// Asks the broker for something to wait for.
    #[cold]
    pub(crate) fn ask(
        self: &Arc<Self>,
        wake: Wake,
        says: impl FnOnce(Place) -> Says,
    ) -> Result<Waiting, CreatorGone> {
        // A forked child first becomes a client of its own.
        self.me()?;
        let Attached { link, number } = self.attached();
        let place = link.begin(wake);
        link.say(number, says(place));
        Ok(Waiting::new(Arc::clone(self), link, place))
    }

    /// The link to the broker, and the object's number there.
    pub(crate) fn link(&self) -> (Arc<Link>, u32) {
        let Attached { link, number } = self.attached();
        (link, number)
    }

    /// The bell of an event.
    pub(crate) fn bell(&self) -> &Bell {
        self.bell.as_deref().expect("an event has a bell")
    }
}

/// Tells the broker of an object; its number on the link, and ours at the object.
fn introduce(
    region: &Region,
    file: &OwnedFd,
    bell: Option<&Bell>,
    link: &Link,
    ends: &[BorrowedFd<'_>],
) -> io::Result<(u32, u32)> {
    let number = link.next_object();
    let me = layout::next_client(region)?;
    let mut fds = vec![file.as_fd()];
    fds.extend(bell.map(AsFd::as_fd));
    fds.extend(ends);
    link.open(number, me, &fds)?;
    Ok((number, me))
}

impl Sleepers for Object {
    fn wake(&self) {
        // No process' number: from here on every use looks why, and finds the creator gone.
        self.epoch.store(0, Release);
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        if matches!(self.kind, Kind::Lock | Kind::Semaphore) {
            // A bell that is to be rung is rung by the link.
            let me = self.me.load(Relaxed);
            let mut words = self.words();
            let Ok(sleeper) = park::take_out_client(&mut words, layout::SLEEPER, me);
            if let Some(Rouse::Thread(word)) = sleeper {
                self.rouse_thread(word);
            }
            if self.kind == Kind::Lock {
                let Ok(()) = vigil::rouse(&mut words, &layout::VIGIL, me, |whom| {
                    if let Rouse::Thread(word) = whom {
                        self.rouse_thread(word);
                    }
                });
            }
        }
        if self.kind == Kind::Event {
            let Ok(()) = flag::rouse(&mut self.words(), layout::FLAG);
            futex::wake(self.region().word32(layout::FLAG * 8));
        }
        if let Some(arena) = self.mapped.arena() {
            arena.rouse_all_of(self.me.load(Relaxed));
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let attached = self.attached();
        if attached.link.is_ours() {
            attached.link.forget_bells(attached.number);
            attached.link.say(attached.number, Says::Close);
        } else {
            // A forked child that never used it.
            std::mem::forget(attached);
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The door of this process' broker, which is started if need be.
fn own_door() -> io::Result<Arc<OwnedFd>> {
    /// By process, as a forked child has a broker of its own for what it creates.
    static DOORS: Mutex<Vec<(u64, Arc<OwnedFd>)>> = Mutex::new(Vec::new());
    let mut doors = DOORS.lock().unwrap_or_else(PoisonError::into_inner);
    let epoch = fork_epoch::current();
    if let Some((_, door)) = doors.iter().find(|(known, _)| *known == epoch) {
        return Ok(Arc::clone(door));
    }
    let (mut broker, door) = Broker::new()?;
    let readable = broker.as_fd().try_clone_to_owned()?;
    let watch = supervisor::watch_with_deaths(&readable, Interest::Read, move || {
        // A fault of the broker must not end the thread that everything in this process relies on.
        if panic::catch_unwind(AssertUnwindSafe(|| broker.turn())).is_err() {
            tracing::error!("the broker of this process' shared objects has panicked; it goes on");
        }
    })?;
    // The broker lives as long as the process: objects of dropped handles may be in use elsewhere.
    std::mem::forget(watch);
    let door = Arc::new(door);
    doors.push((epoch, Arc::clone(&door)));
    Ok(door)
}

/// An object in a message: its kind and its descriptors. Both sides share it afterwards.
pub(crate) fn serialize<S: Serializer>(object: &Object, serializer: S) -> Result<S::Ok, S::Error> {
    // In a forked child the link may be the parent's still; the door is good in both.
    let door = Arc::clone(object.attached().link.door());
    let list = |fd| fds::list(fd, None).map_err(S::Error::custom);
    let file = list(Arc::clone(&object.file))?;
    let door = list(door)?;
    let bell = match &object.bell {
        Some(bell) => {
            let copy = bell
                .as_fd()
                .try_clone_to_owned()
                .map_err(S::Error::custom)?;
            Some(list(Arc::new(copy))?)
        }
        None => None,
    };
    (file, door, bell).serialize(serializer)
}

/// Reads an object of this kind.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
    kind: Kind,
) -> Result<Arc<Object>, D::Error> {
    let (file, door, bell) = <(u32, u32, Option<u32>)>::deserialize(deserializer)?;
    let take = |place| fds::take(place).map_err(D::Error::custom);
    let (file, door) = (take(file)?, take(door)?);
    let bell = bell.map(take).transpose()?;
    if bell.is_some() != (kind == Kind::Event) {
        return Err(D::Error::custom(
            "a shared object came with the wrong descriptors",
        ));
    }
    let object = Object::receive(file, bell, door).map_err(D::Error::custom)?;
    if object.kind() != kind {
        return Err(D::Error::custom(
            "a shared object is of another kind than expected",
        ));
    }
    Ok(object)
}
