//! A queue as a process holds it: bytes in, bytes out, and all waiting. What is typed stands above.
//!
//! All handles of a process share one [`Core`], and with it one seat among the queue's waiters. Tasks
//! that have to wait first queue up here, at a *turnstile*, in their order; the first of them waits
//! for the whole process. So a wake-up in another process wakes one task.
//!
//! What a task has taken or filled is in the hand of a guard from the same instruction on, so a
//! future that is dropped gives back what it had: a slot that was not put yet, an item that was not
//! got yet, and the wake-up that it has used up.

use std::cell::Cell;
use std::collections::HashMap;
use std::hint;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::broker::memory::Memory;
use crate::broker::message::Says;
use crate::broker::object::{self, Object};
use crate::broker::queue::arena::{Arena, NotMapped, WithBells};
use crate::broker::queue::deal::{self, Dealer};
use crate::broker::queue::keep;
use crate::broker::queue::steps::{self, Got, Put};
use crate::broker::queue::wait::{self, Bells};
use crate::broker::queue::words::{self, For};
use crate::broker::slot::Wake;
use crate::error::CreatorGone;
use crate::sys::inode::Inode;
use crate::sys::{cpu, fork_epoch, futex, socket};
use crate::wire::fds::{self, Outgoing};
use crate::wire::frame::FDS_PER_FRAME_MAX;

/// How long a wait may spin before it sleeps: about what it costs to wake another processor.
const SPIN: Duration = Duration::from_micros(30);
/// Looks between two questions for the time.
const LOOKS: u32 = 16;
/// How much buffer a thread keeps for the next item.
const SCRATCH_MAX: usize = 4 << 20;

/// Why something cannot be done with a queue.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing gets in, or there is nothing and nothing will come.
    Closed,
    /// See [`CreatorGone`].
    CreatorGone,
    /// A value cannot be encoded or decoded.
    Codec(String),
    /// No memory, descriptors or seats.
    System(io::Error),
}

impl From<NotMapped> for Trouble {
    fn from(error: NotMapped) -> Self {
        Self::System(error.into())
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<CreatorGone> for Trouble {
    fn from(_: CreatorGone) -> Self {
        Self::CreatorGone
    }
}

/// A queue in this process.
#[derive(Debug)]
pub(super) struct Core {
    object: Arc<Object>,
    limit: u64,
    leases: bool,
    /// The ends that handles keep open, so that a process has each once.
    pub(super) ends: Mutex<[Weak<OwnedFd>; 2]>,
    local: Local,
    /// Those of forked children, and of their children; never freed.
    forked: Mutex<Vec<&'static Local>>,
}

/// What is one process' own; a forked child needs its own.
#[derive(Debug)]
struct Local {
    epoch: u64,
    who: Dealer,
    /// For each [`For`].
    turnstiles: [tokio::sync::Mutex<()>; 3],
    near_slot: AtomicUsize,
    near_seat: AtomicUsize,
    next_deposit: AtomicU32,
    /// The number of the patrol that the broker was last asked for; they begin at 1.
    patrol: AtomicU64,
    /// Whether spinning has paid lately, for items and for room.
    hopes: [Hope; 2],
}

/// How many waits go by without spinning after some that spun in vain.
#[derive(Debug, Default)]
struct Hope {
    /// So many after the next failure.
    penalty: AtomicU32,
    /// So many from now on.
    left: AtomicU32,
}

const PENALTY_MAX: u32 = 64;

/// What this process has, so that it has everything once.
static CORES: LazyLock<Mutex<HashMap<Inode, Weak<Core>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// A buffer for the next item.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's buffer, empty.
fn with_scratch<R>(run: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.take();
    let result = run(&mut scratch);
    if scratch.capacity() <= SCRATCH_MAX {
        scratch.clear();
        SCRATCH.set(scratch);
    }
    result
}

impl Core {
    /// Makes a queue; 0 is no limit.
    pub(super) fn create(
        limit: u64,
        leases: bool,
        ends: [BorrowedFd<'_>; 2],
    ) -> io::Result<Arc<Self>> {
        Self::of(Object::create_queue(limit, leases, ends)?)
    }

    /// The queue behind an object, once a process.
    pub(super) fn of(object: Arc<Object>) -> io::Result<Arc<Self>> {
        let inode = Inode::of(&**object.arena().file())?;
        let mut cores = CORES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(core) = cores.get(&inode).and_then(Weak::upgrade) {
            return Ok(core);
        }
        let mut arena = object.arena();
        let limit = arena.load(words::LIMIT)?;
        let leases = arena.load(words::OPTIONS)? & 1 != 0;
        let local = Local::new(&object)?;
        let core = Arc::new(Self {
            object,
            limit,
            leases,
            ends: Mutex::new([Weak::new(), Weak::new()]),
            local,
            forked: Mutex::default(),
        });
        cores.retain(|_, known| known.strong_count() > 0);
        cores.insert(inode, Arc::downgrade(&core));
        Ok(core)
    }

    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// The most items that can wait; 0 is no limit.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether items can be leased.
    pub(super) fn has_leases(&self) -> bool {
        self.leases
    }

    fn arena(&self) -> &Arena {
        self.object.arena()
    }

    #[inline]
    fn local(&self) -> Result<&Local, Trouble> {
        if self.local.epoch == fork_epoch::current() {
            return Ok(&self.local);
        }
        self.forked_local()
    }

    #[cold]
    fn forked_local(&self) -> Result<&Local, Trouble> {
        let mut forked = self.forked.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = fork_epoch::current();
        if let Some(local) = forked.iter().find(|local| local.epoch == epoch) {
            return Ok(local);
        }
        let local: &'static Local = Box::leak(Box::new(Local::new(&self.object)?));
        forked.push(local);
        Ok(local)
    }

    /// The memory and the bells.
    fn hand<'a>(&'a self, local: &'a Local) -> impl Bells<Stop = NotMapped> + 'a {
        let arena = self.arena();
        let ring = move |seat: usize, wake: Wake| {
            let client = { arena }.load(words::owner(seat))? as u32;
            let (link, number) = self.object.link();
            let is_ours = client == local.who.me;
            let is_rung = match wake {
                Wake::Futex => {
                    arena.rouse(seat);
                    true
                }
                Wake::Bell if is_ours => {
                    link.bell().ring();
                    true
                }
                Wake::Bell => {
                    local.near_seat.store(seat + 1, Relaxed);
                    link.ring(number, client, seat as u32)
                }
            };
            if !is_ours {
                // It may be stopped before it acts on it.
                self.ask_patrol(local)?;
            }
            Ok(is_rung)
        };
        let ask = move || self.ask_patrol(local);
        WithBells { arena, ring, ask }
    }

    /// Asks the broker to patrol, unless it was asked and has not begun since.
    fn ask_patrol(&self, local: &Local) -> Result<(), NotMapped> {
        let next = { self.arena() }.load(words::PATROLS)?.wrapping_add(1);
        if local.patrol.load(Acquire) != next {
            let (link, number) = self.object.link();
            link.say(number, Says::Patrol);
            // Behind it: another thread that sees this may be stopped together with us. What is in the
            // outbox counts: a second request would be behind it.
            local.patrol.store(next, Release);
        }
        Ok(())
    }

    /// How many items are in the queue.
    pub(super) fn len(&self) -> usize {
        steps::count(&mut self.arena()).unwrap_or(0)
    }

    /// Whether nothing gets in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.object.is_orphan() || steps::is_closed(&mut self.arena()).unwrap_or(true)
    }

    /// Lets nothing in any more.
    pub(super) fn close(&self) {
        let Ok(local) = self.local() else { return };
        let mut hand = self.hand(local);
        // Fails only where memory that is in use could not be mapped.
        let _ = deal::close(&mut hand, local.who);
    }

    /// An item that this process has got is done with. False if there is none.
    pub(super) fn done(&self) -> Result<bool, Trouble> {
        self.check()?;
        let local = self.local()?;
        let mut hand = self.hand(local);
        Ok(deal::done(&mut hand, local.who)?)
    }

    /// Waits until every item is done with.
    pub(super) async fn join(self: &Arc<Self>) -> Result<(), Trouble> {
        self.wait_for(For::Done, || {
            Ok(steps::is_done(&mut self.arena())?.then_some(()))
        })
        .await
    }

    /// The same with the thread asleep.
    pub(super) fn join_blocking(self: &Arc<Self>) -> Result<(), Trouble> {
        self.wait_blocking_for(For::Done, || {
            Ok(steps::is_done(&mut self.arena())?.then_some(()))
        })
    }

    /// Whether the creator is there.
    #[inline]
    pub(super) fn check(&self) -> Result<(), Trouble> {
        self.object.me()?;
        Ok(())
    }

    /// Whether there is room now, or nothing gets in: a snapshot.
    pub(super) fn has_room(&self) -> bool {
        steps::has_room(&mut self.arena()).unwrap_or(true)
    }

    /// Tells the broker that nobody wants the descriptors of an item any more, which leaves.
    fn forget_fds(&self, slot: usize) {
        // It fails only where memory that was used cannot be mapped any more.
        if let Ok(key) = { self.arena() }.load(words::key(slot)) {
            self.object
                .say(Says::Forget((key >> 32) as u32, key as u32));
        }
    }

    /// Encodes a value into a slot of the queue that nobody else sees.
    pub(super) fn fill<T: Serialize + ?Sized>(
        self: &Arc<Self>,
        value: &T,
    ) -> Result<Filled, Trouble> {
        self.check()?;
        with_scratch(|bytes| {
            let outgoing = fds::encode_with_fds(value, bytes).map_err(Trouble::Codec)?;
            self.fill_bytes(bytes, outgoing)
        })
    }

    fn fill_bytes(self: &Arc<Self>, bytes: &[u8], outgoing: Outgoing) -> Result<Filled, Trouble> {
        let local = self.local()?;
        let mut arena = self.arena();
        let near = local.near_slot.load(Relaxed);
        let too_many = || Trouble::System(io::ErrorKind::OutOfMemory.into());
        let slot = steps::claim(&mut arena, local.who.me, near)?.ok_or_else(too_many)?;
        local.near_slot.store(slot + 1, Relaxed);
        let mut filled = Filled {
            core: Arc::clone(self),
            epoch: local.epoch,
            slot: Some(slot),
            deposit: None,
            outgoing: None,
        };
        if bytes.len() > words::INLINE_MAX {
            let n_blocks = bytes.len().div_ceil(words::BLOCK_LEN);
            if !steps::claim_blocks(&mut arena, slot, n_blocks)? {
                return Err(too_many());
            }
        }
        arena.write(slot, bytes)?;
        let mut n_fds = 0;
        if !outgoing.is_empty() {
            let (fds, rest) = outgoing.into_parts();
            n_fds = fds.len() as u64;
            if fds.len() > FDS_PER_FRAME_MAX {
                let most = FDS_PER_FRAME_MAX;
                return Err(Trouble::Codec(format!(
                    "an item of a queue holds more than {most} file descriptors"
                )));
            }
            filled.outgoing = Some(rest);
            if n_fds > 0 {
                let number = local.next_deposit.fetch_add(1, Relaxed);
                filled.deposit = Some((local.who.me, number));
                arena.store(words::key(slot), keep::key(local.who.me, number))?;
                let (link, object) = self.object.link();
                link.say_with(object, Says::Deposit(number), fds);
            }
        }
        arena.store(words::len(slot), n_fds << 48 | bytes.len() as u64)?;
        Ok(filled)
    }

    /// Puts what was filled if there is room. False if there is none.
    #[inline]
    pub(super) fn try_put(&self, filled: &mut Filled) -> Result<bool, Trouble> {
        self.check()?;
        let Some(slot) = filled.slot else {
            return Ok(true);
        };
        let local = self.local()?;
        let near = local.near_seat.load(Relaxed);
        let put = deal::put(&mut self.hand(local), local.who, slot, near)?;
        match put {
            Put::Done => (),
            Put::Full => return Ok(false),
            Put::Closed => return Err(Trouble::Closed),
        }
        filled.slot = None;
        if let Some(outgoing) = filled.outgoing.take() {
            let _ = outgoing.commit();
        }
        note_cpu(self.arena(), words::PUT_CPU);
        Ok(true)
    }

    /// Puts what was filled as soon as there is room.
    pub(super) async fn put(&self, filled: &mut Filled) -> Result<(), Trouble> {
        if self.try_put(filled)? {
            return Ok(());
        }
        self.wait_for(For::Room, || Ok(self.try_put(filled)?.then_some(())))
            .await
    }

    /// The same with the thread asleep.
    pub(super) fn put_blocking(&self, filled: &mut Filled) -> Result<(), Trouble> {
        self.wait_blocking_for(For::Room, || Ok(self.try_put(filled)?.then_some(())))
    }

    /// Takes the first item, if there is one.
    #[inline]
    pub(super) fn try_take(self: &Arc<Self>) -> Result<Option<Taken>, Trouble> {
        self.check()?;
        let local = self.local()?;
        let mut hand = self.hand(local);
        let near = local.near_seat.load(Relaxed);
        let slot = match deal::take(&mut hand, local.who, near)? {
            Got::Slot(slot) => slot,
            Got::Empty => return Ok(None),
            Got::Closed => return Err(Trouble::Closed),
        };
        let taken = Taken {
            core: Arc::clone(self),
            epoch: local.epoch,
            slot: Some(slot),
        };
        note_cpu(self.arena(), words::GET_CPU);
        Ok(Some(taken))
    }

    /// Takes the first item as soon as there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Taken, Trouble> {
        if let Some(taken) = self.try_take()? {
            return Ok(taken);
        }
        self.wait_for(For::Item, || self.try_take()).await
    }

    /// The same with the thread asleep.
    pub(super) fn take_blocking(self: &Arc<Self>) -> Result<Taken, Trouble> {
        self.wait_blocking_for(For::Item, || self.try_take())
    }

    /// Asks `look` until it finds something.
    async fn wait_for<R>(
        &self,
        what: For,
        mut look: impl FnMut() -> Result<Option<R>, Trouble>,
    ) -> Result<R, Trouble> {
        let local = self.local()?;
        if self.hopes(local, what) {
            let until = Instant::now() + SPIN;
            while Instant::now() < until {
                for _ in 0..LOOKS {
                    if let Some(found) = look()? {
                        local.hope(what);
                        return Ok(found);
                    }
                    hint::spin_loop();
                }
                tokio::task::yield_now().await;
            }
            local.despair(what);
        }
        let _first = local.turnstiles[what as usize].lock().await;
        let mut waiter = Waiter::new(self, local, what, Wake::Bell)?;
        let (link, _) = self.object.link();
        link.bell().listen(|| waiter.look(&mut look)).await
    }

    /// Asks `look` until it finds something; the thread sleeps meanwhile.
    fn wait_blocking_for<R>(
        &self,
        what: For,
        mut look: impl FnMut() -> Result<Option<R>, Trouble>,
    ) -> Result<R, Trouble> {
        if let Some(found) = look()? {
            return Ok(found);
        }
        let local = self.local()?;
        if self.hopes(local, what) {
            let until = Instant::now() + SPIN;
            while Instant::now() < until {
                for _ in 0..LOOKS {
                    if let Some(found) = look()? {
                        local.hope(what);
                        return Ok(found);
                    }
                    hint::spin_loop();
                }
            }
            local.despair(what);
        }
        let _first = local.turnstiles[what as usize].blocking_lock();
        let mut waiter = Waiter::new(self, local, what, Wake::Futex)?;
        let word = self.arena().futex(local.who.seat);
        loop {
            let seen = word.load(SeqCst);
            if let Some(found) = waiter.look(&mut look) {
                return found;
            }
            futex::wait(word, seen);
        }
    }

    /// Whether it may pay to spin: the other side ran on another processor, and it has paid lately.
    fn hopes(&self, local: &Local, what: For) -> bool {
        let other = match what {
            For::Item => words::PUT_CPU,
            For::Room => words::GET_CPU,
            For::Done => return false,
        };
        if !object::has_several_cpus() {
            return false;
        }
        let last = { self.arena() }.load(other).unwrap_or(0);
        let here = cpu::current().map_or(0, |cpu| cpu as u64 + 1);
        last != 0 && last != here && local.is_hopeful(what)
    }
}

/// Says on which processor one side runs, if that has changed.
#[inline]
fn note_cpu(mut arena: &Arena, word: usize) {
    let here = cpu::current().map_or(0, |cpu| cpu as u64 + 1);
    if arena.load(word) != Ok(here) {
        let _ = arena.store(word, here);
    }
}

impl Local {
    fn new(object: &Object) -> io::Result<Self> {
        let me = object.me().map_err(io::Error::other)?;
        if me > words::CLIENT_MAX {
            return Err(io::Error::other(
                "16 million processes have used this queue",
            ));
        }
        let seat = wait::sit_down(&mut object.arena(), me)?.ok_or_else(|| {
            let most = words::SEATS_MAX;
            io::Error::other(format!("{most} processes use this queue already"))
        })?;
        Ok(Self {
            epoch: fork_epoch::current(),
            who: Dealer { me, seat },
            turnstiles: Default::default(),
            near_slot: AtomicUsize::new(0),
            near_seat: AtomicUsize::new(0),
            next_deposit: AtomicU32::new(1),
            patrol: AtomicU64::new(0),
            hopes: Default::default(),
        })
    }

    /// Spinning has paid.
    fn hope(&self, what: For) {
        self.hopes[what as usize].penalty.store(0, Relaxed);
    }

    /// Spinning was in vain.
    fn despair(&self, what: For) {
        let hope = &self.hopes[what as usize];
        let penalty = hope.penalty.load(Relaxed);
        hope.left.store(penalty, Relaxed);
        hope.penalty
            .store((2 * penalty + 1).min(PENALTY_MAX), Relaxed);
    }

    /// Whether this wait should spin, as far as experience tells.
    fn is_hopeful(&self, what: For) -> bool {
        let left = &self.hopes[what as usize].left;
        match left.load(Relaxed) {
            0 => true,
            n => {
                left.store(n - 1, Relaxed);
                false
            }
        }
    }
}

/// A wait of this process.
struct Waiter<'a> {
    core: &'a Core,
    local: &'a Local,
    what: For,
    wake: Wake,
    /// It looks before it sleeps; always, but in tests.
    looks: bool,
}

impl<'a> Waiter<'a> {
    fn new(core: &'a Core, local: &'a Local, what: For, wake: Wake) -> Result<Self, Trouble> {
        let looks = deal::begin_wait(&mut core.hand(local), local.who.seat, what, wake)?;
        Ok(Self {
            core,
            local,
            what,
            wake,
            looks,
        })
    }

    /// Looks; nothing when it is time to sleep.
    fn look<R>(
        &mut self,
        look: &mut impl FnMut() -> Result<Option<R>, Trouble>,
    ) -> Option<Result<R, Trouble>> {
        if !mem::replace(&mut self.looks, true) {
            return None;
        }
        self.look_twice(look).transpose()
    }

    fn look_twice<R>(
        &self,
        look: &mut impl FnMut() -> Result<Option<R>, Trouble>,
    ) -> Result<Option<R>, Trouble> {
        self.core.check()?;
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        let mut arena = self.core.arena();
        wait::again(&mut arena, self.local.who.seat, self.what, self.wake)?;
        look()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.local.epoch != fork_epoch::current() {
            return;
        }
        let mut hand = self.core.hand(self.local);
        let _ = deal::end_wait(&mut hand, self.local.who.seat, self.what);
    }
}

/// A slot that is filled and not put yet; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Filled {
    core: Arc<Core>,
    epoch: u64,
    slot: Option<usize>,
    /// Under which number the broker has its descriptors.
    deposit: Option<(u32, u32)>,
    /// What moves with it.
    outgoing: Option<Outgoing>,
}

impl Drop for Filled {
    fn drop(&mut self) {
        if self.epoch != fork_epoch::current() {
            return;
        }
        if let Some(slot) = self.slot {
            let _ = steps::unclaim(&mut self.core.arena(), slot);
            if let Some((client, number)) = self.deposit {
                self.core.object.say(Says::Forget(client, number));
            }
        }
    }
}

/// An item that is taken and not got yet; put back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    core: Arc<Core>,
    epoch: u64,
    slot: Option<usize>,
}

impl Taken {
    /// How many bytes the item has, and how many descriptors belong to it.
    fn len(&self, slot: usize) -> Result<(usize, usize), Trouble> {
        let word = { self.core.arena() }.load(words::len(slot))?;
        Ok(((word & 0xffff_ffff_ffff) as usize, words::n_fds(word)))
    }

    /// Asks the broker for the item's descriptors, if it has any.
    fn ask(&self) -> Result<Option<tokio::sync::oneshot::Receiver<Vec<OwnedFd>>>, Trouble> {
        let Some(slot) = self.slot else {
            return Ok(None);
        };
        if self.len(slot)?.1 == 0 {
            return Ok(None);
        }
        let key = { self.core.arena() }.load(words::key(slot))?;
        let (link, object) = self.core.object.link();
        let (ticket, parcel) = link.expect_parcel();
        link.say(
            object,
            Says::Withdraw((key >> 32) as u32, key as u32, ticket),
        );
        Ok(Some(parcel))
    }

    /// The item's descriptors.
    pub(super) async fn fds(&self) -> Result<Vec<OwnedFd>, Trouble> {
        match self.ask()? {
            None => Ok(Vec::new()),
            Some(parcel) => self.unpack(parcel.await.ok()),
        }
    }

    /// The same with the thread asleep, for the moment that the broker needs to answer.
    pub(super) fn fds_blocking(&self) -> Result<Vec<OwnedFd>, Trouble> {
        match self.ask()? {
            None => Ok(Vec::new()),
            Some(parcel) => self.unpack(futures::executor::block_on(parcel).ok()),
        }
    }

    /// What came, unless it was lost on its way from the broker to us: then the item is put back.
    fn unpack(&self, parcel: Option<Vec<OwnedFd>>) -> Result<Vec<OwnedFd>, Trouble> {
        match parcel {
            None if self.core.object.is_orphan() => Err(Trouble::CreatorGone),
            None => Err(Trouble::System(socket::no_room())),
            Some(fds) => Ok(fds),
        }
    }

    /// Gets the item: from here on it is the caller's, who owes that it is done with.
    pub(super) fn get<R>(
        mut self,
        decode: impl FnOnce(&[u8]) -> Result<R, String>,
    ) -> Result<R, Trouble> {
        with_scratch(|bytes| {
            let is_whole = self.read(bytes)?;
            let local = self.core.local()?;
            if let Some(slot) = self.slot.take() {
                let core = &self.core;
                let let_go = || core.forget_fds(slot);
                deal::leave(&mut core.hand(local), local.who, slot, let_go)?;
            }
            let mut unseen = Unseen(Some(&self.core));
            let value = decode_whole(is_whole, bytes, decode)?;
            unseen.0 = None;
            Ok(value)
        })
    }

    /// Reads the item and keeps it for others, should this process not get done with it.
    pub(super) fn lease<R>(
        self,
        decode: impl FnOnce(&[u8]) -> Result<R, String>,
    ) -> Result<(R, Leased), Trouble> {
        with_scratch(|bytes| {
            let is_whole = self.read(bytes)?;
            let local = self.core.local()?;
            if let Some(slot) = self.slot {
                steps::lease(&mut self.core.arena(), local.who.me, slot)?;
            }
            let mut unseen = UnseenLease(Some(Leased(self)));
            let value = decode_whole(is_whole, bytes, decode)?;
            let leased = unseen.0.take().ok_or(Trouble::Closed)?;
            Ok((value, leased))
        })
    }

    /// False if somebody has scribbled over the item.
    fn read(&self, bytes: &mut Vec<u8>) -> Result<bool, Trouble> {
        let Some(slot) = self.slot else {
            return Ok(true);
        };
        let (len, _) = self.len(slot)?;
        Ok(self.core.arena().read(slot, len, bytes)?)
    }
}

fn decode_whole<R>(
    is_whole: bool,
    bytes: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<R, String>,
) -> Result<R, Trouble> {
    if !is_whole {
        let scribbled = "somebody has scribbled over the queue's memory";
        return Err(Trouble::Codec(scribbled.to_owned()));
    }
    decode(bytes).map_err(Trouble::Codec)
}

/// An item that was got and not decoded yet. If that fails or panics, it is done with, as nobody has
/// got anything that he could report.
struct Unseen<'a>(Option<&'a Core>);

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            let _ = core.done();
        }
    }
}

/// The same for a lease: what one cannot decode would be so for the next one as well.
struct UnseenLease(Option<Leased>);

impl Drop for UnseenLease {
    fn drop(&mut self) {
        if let Some(leased) = self.0.take() {
            let _ = leased.done();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.epoch != fork_epoch::current() {
            return;
        }
        let (Some(slot), Ok(local)) = (self.slot, self.core.local()) else {
            return;
        };
        let mut hand = self.core.hand(local);
        let _ = deal::put_back(&mut hand, local.who, slot, local.who.seat + 1);
    }
}

/// An item that this process has got and that is put back if it is not done with.
#[derive(Debug)]
pub(super) struct Leased(Taken);

impl Leased {
    /// The item is done with.
    pub(super) fn done(mut self) -> Result<(), Trouble> {
        if self.0.epoch != fork_epoch::current() {
            return Ok(());
        }
        let local = self.0.core.local()?;
        let Some(slot) = self.0.slot.take() else {
            return Ok(());
        };
        let core = &self.0.core;
        let let_go = || core.forget_fds(slot);
        Ok(deal::settle_lease(
            &mut core.hand(local),
            local.who,
            slot,
            let_go,
        )?)
    }
}
