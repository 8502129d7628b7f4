//! A process' side of one broker: the link and the mailbox.
//!
//! A process has one [`Link`] to each broker whose objects it uses. Requests go out through a socket,
//! answers come into the mailbox, see [`super::serve`].
//!
//! Nothing here waits for the broker but the waits themselves: a message that the socket has no room
//! for (the creator is stopped, or has very much to do) goes into an outbox, which a thread of its own
//! empties. If this process dies with messages in the outbox, the sweep does what they asked for.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::oneshot;

use crate::broker::bell::Bell;
use crate::broker::memory::Answer;
use crate::broker::message::{self, Message, Place, Says};
use crate::broker::outbox::Outbox;
use crate::broker::serve::HELLO;
use crate::broker::slot::{self, Wake};
use crate::supervisor::{self, Watch};
use crate::sys::epoll::Interest;
use crate::sys::eventfd::EventFd;
use crate::sys::inode::Inode;
use crate::sys::memfd::Region;
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, Wait};
use crate::sys::{fork_epoch, futex};

/// How long the outbox waits until it tries again what the kernel has refused for lack of something.
const RETRY: Duration = Duration::from_millis(1);

/// How many waits a process can have under way at one broker. Untouched slots cost no memory.
const SLOTS_MAX: u32 = 1 << 20;

/// This process' connection to a broker.
#[derive(Debug)]
pub(crate) struct Link {
    /// The process that it belongs to; a forked child makes its own.
    epoch: u64,
    door: Arc<OwnedFd>,
    socket: OwnedFd,
    mailbox: Region,
    bell: Bell,
    /// The broker's process has ended.
    gone: AtomicBool,
    slots: Mutex<Slots>,
    next_object: AtomicU32,
    outbox: Mutex<Outbox<(Message, Vec<Arc<OwnedFd>>)>>,
    /// There is something in the outbox, or was and is being sent. Changed under its lock.
    is_behind: AtomicBool,
    /// Bells of other processes, by the number of a queue and theirs at it.
    bells: Mutex<HashMap<(u32, u32), Arc<EventFd>>>,
    /// Who waits for descriptors of an item.
    parcels: Mutex<Parcels>,
    /// Objects that have to know when the broker is gone.
    objects: Mutex<Vec<Weak<dyn Sleepers>>>,
    /// Notice the end of the broker's process: by the link, and by its pidfd, as a copy that the process
    /// made of itself may have its end of the link still.
    watches: Mutex<Vec<Watch>>,
}

/// An object, as far as the end of its creator concerns it.
pub(crate) trait Sleepers: Send + Sync + std::fmt::Debug {
    /// Makes every use of it fail from now on, and has those look again who sleep without a slot.
    fn wake(&self);
}

#[derive(Debug, Default)]
struct Parcels {
    next: u32,
    by_ticket: HashMap<u32, oneshot::Sender<Vec<OwnedFd>>>,
}

/// How many bells of others are kept.
const BELLS_MAX: usize = 32;

#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    /// The first one that was never used.
    fresh: u32,
}

/// The links of this process by the broker's door.
static LINKS: LazyLock<Mutex<Links>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Links {
    epoch: u64,
    by_door: HashMap<Inode, Weak<Link>>,
}

impl Link {
    /// The link to the broker that this door leads to, made if there is none yet.
    pub(crate) fn to(door: Arc<OwnedFd>) -> io::Result<Arc<Self>> {
        let inode = Inode::of(&*door)?;
        let epoch = fork_epoch::current();
        let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
        if links.epoch != epoch {
            // Those of the process that we were forked off.
            *links = Links {
                epoch,
                by_door: HashMap::new(),
            };
        }
        if let Some(link) = links.by_door.get(&inode).and_then(Weak::upgrade) {
            return Ok(link);
        }
        let link = Arc::new(Self::new(door, epoch)?);
        let weak = Arc::downgrade(&link);
        let watched = Weak::clone(&weak);
        let watch = supervisor::watch(&link.socket, Interest::Read, move || {
            if let Some(link) = watched.upgrade() {
                link.receive();
            }
        })?;
        link.keep(watch);
        if let Some(creator) = socket::creator(&*link.door).filter(|pid| *pid != std::process::id())
        {
            link.watch_process(creator)?;
        }
        links.by_door.retain(|_, known| known.strong_count() > 0);
        links.by_door.insert(inode, weak);
        Ok(link)
    }

    /// Notices the end of the broker's process also if a copy that it made of itself has its end of
    /// the link, or of the door, still.
    fn watch_process(self: &Arc<Self>, pid: u32) -> io::Result<()> {
        let Some(pidfd) = Pidfd::of_living(pid)? else {
            self.end();
            return Ok(());
        };
        let link = Arc::downgrade(self);
        let watch = supervisor::watch(&pidfd, Interest::Read, move || {
            if let Some(link) = link.upgrade() {
                // What it said before it ended counts.
                link.receive();
                link.end();
            }
        })?;
        self.keep(watch);
        Ok(())
    }

    fn new(door: Arc<OwnedFd>, epoch: u64) -> io::Result<Self> {
        let (socket, theirs) = socket::seqpacket_pair()?;
        let len = (SLOTS_MAX as usize * 8).try_into();
        let len = len.map_err(io::Error::other)?;
        let (mailbox, file) = Region::create(c"mp-mailbox", len)?;
        let bell = Bell::new()?;
        let pidfd = Pidfd::open(std::process::id())?;
        let fds = [theirs.as_fd(), file.as_fd(), bell.as_fd(), pidfd.as_fd()];
        let hello = [io::IoSlice::new(HELLO)];
        // EPIPE: the broker's process is gone, which the watch will find out as well, since nobody
        // keeps the other end of the link.
        let sent = socket::send_with_fds(&*door, &hello, &fds, Wait::Yes);
        let gone = match sent {
            Ok(_) => false,
            Err(error) if is_end(&error) => true,
            Err(error) => return Err(error),
        };
        Ok(Self {
            epoch,
            door,
            socket,
            mailbox,
            bell,
            gone: AtomicBool::new(gone),
            slots: Mutex::default(),
            next_object: AtomicU32::new(1),
            outbox: Mutex::default(),
            bells: Mutex::default(),
            parcels: Mutex::default(),
            is_behind: AtomicBool::new(false),
            objects: Mutex::default(),
            watches: Mutex::default(),
        })
    }

    /// The way to this broker, for handles that travel on.
    pub(crate) fn door(&self) -> &Arc<OwnedFd> {
        &self.door
    }

    /// Whether it belongs to this process, and not to one that this was forked off.
    pub(crate) fn is_ours(&self) -> bool {
        self.epoch == fork_epoch::current()
    }

    /// Whether the broker's process has ended.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        // Relaxed: the news may come at any time, so it orders nothing.
        self.gone.load(Relaxed)
    }

    /// The same for somebody who sleeps next unless it is so.
    pub(crate) fn has_ended(&self) -> bool {
        // Pairs with the one in `end`.
        fence(SeqCst);
        self.is_gone()
    }

    /// A number for an object that is about to be opened.
    pub(crate) fn next_object(&self) -> u32 {
        self.next_object.fetch_add(1, Relaxed)
    }

    /// Tells the broker of an object. Unlike other messages this one is not put off: once a word
    /// names us, the broker has to know.
    pub(crate) fn open(&self, object: u32, client: u32, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let opening = Message {
            object,
            says: Says::Opening,
        };
        let open = Message {
            object,
            says: Says::Open(client),
        };
        let bytes = open.to_bytes();
        let bytes = [io::IoSlice::new(&bytes)];
        let sent = socket::send_bytes(&self.socket, &opening.to_bytes(), Wait::Yes)
            .and_then(|_| socket::send_with_fds(&self.socket, &bytes, fds, Wait::Yes));
        match sent {
            // The creator is gone: the object says so at its first use.
            Err(error) if is_end(&error) => {
                self.end();
                Ok(())
            }
            sent => sent.map(drop),
        }
    }

    /// Sends a message, at the latest when there is room. True if that was at once: then the broker gets
    /// it whatever becomes of this process.
    pub(crate) fn say(self: &Arc<Self>, object: u32, says: Says) -> bool {
        self.say_with(object, says, Vec::new())
    }

    /// The same with descriptors.
    pub(crate) fn say_with(
        self: &Arc<Self>,
        object: u32,
        says: Says,
        fds: Vec<Arc<OwnedFd>>,
    ) -> bool {
        let message = Message { object, says };
        // What this thread has said before is sent, or is in the outbox and seen to be.
        if !self.is_behind.load(Acquire) && self.send(message, &fds, Wait::No) {
            return true;
        }
        let mut outbox = self.outbox();
        self.is_behind.store(true, Release);
        let is_ours = outbox.put((message, fds));
        drop(outbox);
        if !is_ours {
            return false;
        }
        let link = Arc::clone(self);
        let name = "mp-outbox".to_owned();
        let started = thread::Builder::new()
            .name(name)
            .spawn(move || link.flush());
        if started.is_err() {
            // No thread to be had: wait here, which is late but not wrong.
            self.flush();
        }
        false
    }

    /// Empties the outbox; ends when it is empty.
    fn flush(&self) {
        loop {
            let mut outbox = self.outbox();
            let Some((message, fds)) = outbox.next() else {
                // Behind the last one, so that what is said now cannot overtake it.
                self.is_behind.store(false, Release);
                return;
            };
            drop(outbox);
            while !self.send(message, &fds, Wait::Yes) {
                thread::sleep(RETRY);
            }
        }
    }

    /// False if it cannot be sent now: the socket has no room, or the kernel has none for it, such as for
    /// more descriptors on their way.
    fn send(&self, message: Message, fds: &[Arc<OwnedFd>], wait: Wait) -> bool {
        let bytes = message.to_bytes();
        let sent = if fds.is_empty() {
            socket::send_bytes(&self.socket, &bytes, wait)
        } else {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            socket::send_with_fds(&self.socket, &[io::IoSlice::new(&bytes)], &fds, wait)
        };
        match sent {
            Ok(_) => true,
            Err(error) if is_end(&error) => {
                // There is nobody to be told any more.
                self.end();
                true
            }
            Err(_) => false,
        }
    }

    /// Reads what the broker has answered, or that its process has ended.
    fn receive(&self) {
        let mut bytes = BytesMut::new();
        let mut fds = Vec::new();
        loop {
            bytes.clear();
            let max = message::LEN + 1;
            match socket::recv_with_fds(&self.socket, &mut bytes, max, &mut fds, Wait::No) {
                Ok(came) if came.fds_lost => {
                    fds.clear();
                    self.lose(Message::from_bytes(&bytes));
                }
                Ok(came) if came.len > 0 => {
                    let fds = std::mem::take(&mut fds);
                    if let Some(message) = Message::from_bytes(&bytes) {
                        self.on(message, fds);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The broker died with something of ours unread; what it sent comes after this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (),
                _ => return self.end(),
            }
        }
    }

    /// This process had no room for the descriptors: whoever waits for them finds his ticket gone.
    fn lose(&self, message: Option<Message>) {
        if let Some(Says::Parcel(ticket)) = message.map(|message| message.says) {
            self.parcels().by_ticket.remove(&ticket);
        }
    }

    fn on(&self, message: Message, mut fds: Vec<OwnedFd>) {
        match message.says {
            Says::BellOf(client) => {
                let bell = fds.pop().map(EventFd::received);
                let Some(Ok(bell)) = bell else { return };
                let mut bells = self.bells();
                if bells.len() >= BELLS_MAX
                    && let Some(any) = bells.keys().next().copied()
                {
                    bells.remove(&any);
                }
                bells.insert((message.object, client), Arc::new(bell));
            }
            Says::Parcel(ticket) => {
                let waiting = self.parcels().by_ticket.remove(&ticket);
                if let Some(waiting) = waiting {
                    // A failure means that nobody waits any more.
                    let _ = waiting.send(fds);
                }
            }
            _ => (),
        }
    }

    /// Rings the process that is `client` at a queue and has this seat there. False if it will be rung
    /// only if this process lives on.
    pub(crate) fn ring(self: &Arc<Self>, object: u32, client: u32, seat: u32) -> bool {
        let bell = self.bells().get(&(object, client)).cloned();
        if let Some(bell) = bell {
            bell.raise();
            return true;
        }
        let ring = Message {
            object,
            says: Says::Ring(seat),
        };
        // While the broker's process is stopped there may be many who ring.
        let waits =
            self.is_behind.load(Acquire) && self.outbox().contains(|(message, _)| *message == ring);
        !waits && self.say(object, ring.says)
    }

    /// A queue is not used any more.
    pub(crate) fn forget_bells(&self, object: u32) {
        self.bells().retain(|(of, _), _| *of != object);
    }

    /// A ticket for descriptors that the broker will send; none come if its process ends.
    pub(crate) fn expect_parcel(&self) -> (u32, oneshot::Receiver<Vec<OwnedFd>>) {
        let (sender, receiver) = oneshot::channel();
        let mut parcels = self.parcels();
        parcels.next = parcels.next.wrapping_add(1);
        let ticket = parcels.next;
        parcels.by_ticket.insert(ticket, sender);
        if self.is_gone() {
            parcels.by_ticket.clear();
        }
        (ticket, receiver)
    }

    fn bells(&self) -> MutexGuard<'_, HashMap<(u32, u32), Arc<EventFd>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a watch until the end, which may have come: what has ended is ready for ever.
    fn keep(&self, watch: Watch) {
        self.watches().push(watch);
        if self.is_gone() {
            self.watches().clear();
        }
    }

    fn watches(&self) -> MutexGuard<'_, Vec<Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parcels(&self) -> MutexGuard<'_, Parcels> {
        self.parcels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `object` told when the broker's process has ended, now if it has.
    pub(crate) fn also_wake(&self, object: &Arc<impl Sleepers + 'static>) {
        let weak = Arc::downgrade(object);
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        if objects.len() == objects.capacity() {
            objects.retain(|known| known.strong_count() > 0);
        }
        objects.push(weak);
        drop(objects);
        // Either `end` finds it in the list, or we find here what `end` had noted before it looked.
        if self.is_gone() {
            object.wake();
            self.bell.ring();
        }
    }

    /// The broker's process has ended: everybody who waits is told.
    fn end(&self) {
        // Release: pairs with nothing but itself; the fence and the bell order what has to be ordered.
        if self.gone.swap(true, Release) {
            return;
        }
        // Pairs with the one in `has_ended`: whoever is about to sleep sees that we are gone, or its
        // word shows us that it sleeps.
        fence(SeqCst);
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<_> = objects.iter().filter_map(Weak::upgrade).collect();
        drop(objects);
        for object in known {
            object.wake();
        }
        self.parcels().by_ticket.clear();
        let used = self.slots().fresh;
        for slot in 0..used {
            slot::rouse(self.mailbox.word64(slot as usize * 8));
            futex::wake(self.mailbox.word32(slot as usize * 8));
        }
        // Last: whoever is woken by it has to find the end wherever it looks.
        self.bell.ring();
        // An ended process' pidfd is readable for ever.
        self.watches().clear();
    }

    /// Takes a slot and makes it wait, for a request that the caller is about to send.
    pub(crate) fn begin(&self, wake: Wake) -> Place {
        let slot = self.take_slot();
        let word = self.slot(slot);
        // The turn counts on from what the slot's last user left.
        let turn = ((word.load(Relaxed) >> 32) as u32).wrapping_add(1);
        slot::begin(word, turn, wake);
        (slot, turn)
    }

    /// Begins another wait, in the slot of one that has its answer.
    pub(crate) fn begin_again(&self, (slot, turn): Place, wake: Wake) -> Place {
        let turn = turn.wrapping_add(1);
        slot::begin(self.slot(slot), turn, wake);
        (slot, turn)
    }

    /// Ends a wait and gives its slot back: the answer if it came, else none will come any more.
    pub(crate) fn finish(&self, (slot, _): Place) -> Option<Answer> {
        let answer = slot::end(self.slot(slot));
        self.slots().free.push(slot);
        answer
    }

    /// The answer to a wait, if it has come.
    pub(crate) fn answer_of(&self, (slot, _): Place) -> Option<Answer> {
        slot::answer_of(self.slot(slot))
    }

    /// Tells whether a wait is over, to those who ring for others as well.
    pub(crate) fn is_due(self: &Arc<Self>, place: Place) -> impl Fn() -> bool + use<> {
        let link = Arc::clone(self);
        move || link.answer_of(place).is_some() || link.is_gone()
    }

    /// What rings when an answer comes for a wait with [`Wake::Bell`].
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Sleeps until an answer may have come for a wait with [`Wake::Futex`], so long at most if there is
    /// a limit.
    pub(crate) fn sleep(&self, (slot, _): Place, most: Option<Duration>) {
        let word = self.mailbox.word32(slot as usize * 8);
        futex::wait_for(word, slot::asleep(), most);
    }

    fn slot(&self, slot: u32) -> &AtomicU64 {
        self.mailbox.word64(slot as usize * 8)
    }

    fn take_slot(&self) -> u32 {
        let mut slots = self.slots();
        slots.free.pop().unwrap_or_else(|| {
            let slot = slots.fresh;
            assert!(slot < SLOTS_MAX, "more than a million waits at one time");
            slots.fresh += 1;
            slot
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox<(Message, Vec<Arc<OwnedFd>>)>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::serve::Broker;

    #[test]
    fn nothing_is_watched_of_a_broker_that_is_gone() {
        let (broker, door) = Broker::new().unwrap();
        drop(broker);

        let link = Link::to(Arc::new(door)).unwrap();

        assert!(link.is_gone());
        assert!(link.watches().is_empty());
    }
}
