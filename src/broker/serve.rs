//! The broker itself: reads what clients say, lets the deciding files decide, and wakes.
//!
//! A process has one broker, for the objects that it created; it runs in the supervisor's thread and
//! never waits for anybody. Whoever gets a handle gets the broker's *door* with it, the sending end
//! of a socket. To become known, a process makes a link (a socket pair), a mailbox (shared memory)
//! and a bell (an eventfd), and sends one end and copies of the others through the door together with
//! a pidfd of itself. From then on it talks through the link. Answers go into the mailbox and the
//! bell rings: the broker never writes to a socket, so a client that does not read, is stopped, or
//! lets buffers fill up cannot hold anybody up.
//!
//! **Death** is the readable pidfd: then no thread of the process stores any more. What it had sent
//! before lies in the link and is carried out first; a hello that is still in the door brings link
//! and pidfd along, and goes the same way as soon as it is read.
//!
//! **Trust.** A client can spoil the words of the objects that it was given, but not the broker: the
//! memory's size is sealed and checked, indices and numbers are checked, and who says something
//! senseless is not listened to any more. Its death is still noticed and swept.

mod queue;
pub(crate) mod room;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use self::queue::{Doubt, Queue};
use self::room::Room;
use crate::broker::barrier::{self, Barrier};
use crate::broker::bell::Bell;
use crate::broker::gate::{self, Gate};
use crate::broker::layout::{self, Kind};
use crate::broker::mapped::Mapped;
use crate::broker::memory::{Answer, Answers, Memory, Rule, Shared, Ticket};
use crate::broker::message::{self, Message, Place, Says};
use crate::broker::park::{self, Rouse};
use crate::broker::queue::arena::NotMapped;
use crate::broker::queue::keep::{Fds, Keep};
use crate::broker::slot::{self, Wake};
use crate::broker::vigil;
use crate::broker::word;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::futex;
use crate::sys::inode::Inode;
use crate::sys::memfd::Region;
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, Wait};
use crate::sys::timerfd::TimerFd;

/// What a client sends through the door, with its link, mailbox, bell and pidfd.
pub(crate) const HELLO: &[u8] = b"mp broker 1";

/// How many messages of one client are read before the others have their turn.
const MESSAGES_PER_TURN: usize = 64;
/// More than a link, or the door, can hold.
const BACKLOG_MAX: usize = 1 << 14;
/// How many answers wait for a client that does not read them, before it is not listened to any more.
const UNSENT_MAX: usize = 1 << 12;

/// The shortest time that a timer can be set to.
const NOW: Duration = Duration::from_nanos(1);

const DOOR: u64 = 0;
const TIMER: u64 = 1;

/// The objects of this process and their users, in this process and others.
#[derive(Debug)]
pub(crate) struct Broker {
    epoll: Epoll,
    door: OwnedFd,
    timer: TimerFd,
    /// When the timer goes off.
    armed: Option<Duration>,
    start: Instant,
    peers: HashMap<u64, Peer>,
    next_peer: u64,
    objects: HashMap<Inode, Object>,
    deadlines: BTreeSet<(Duration, Inode)>,
    /// What hangs up when the last handle of a queue is gone: for those that can put, and get. They
    /// take their number from the same counter as peers.
    ends: HashMap<u64, (Inode, [OwnedFd; 2])>,
    /// Who wants descriptors of a process that we do not know (yet).
    doubts: Vec<Doubt>,
    ready: Vec<u64>,
    room: Room,
}

/// One client process.
#[derive(Debug)]
struct Peer {
    /// Nothing once it was closed, or is not listened to any more.
    link: Option<OwnedFd>,
    pidfd: Pidfd,
    mailbox: Region,
    bell: Bell,
    /// Its objects by its own numbers, and its number at each of them.
    opened: HashMap<u32, (Inode, u32)>,
    /// Answers that the link has had no room for.
    unsent: VecDeque<(Message, Fds)>,
    /// How many objects it is about to open.
    n_opening: u32,
    /// It is not read until there is room for descriptors.
    is_put_off: bool,
}

#[derive(Debug)]
struct Object {
    mapped: Mapped,
    machine: Machine,
    /// Who uses it: the peer of each client's number.
    members: HashMap<u32, u64>,
    deadline: Option<Duration>,
}

#[derive(Debug)]
enum Machine {
    Gate(Gate),
    Barrier(Barrier),
    Event(Bell),
    Queue(Keep),
}

/// What is to be done about an object.
#[derive(Clone, Copy, Debug)]
enum Request {
    Gate(gate::Request),
    Barrier(barrier::Request),
    Queue(Queue),
}

impl Peer {
    /// What its link is watched for. To one without answers that wait there is always room to write.
    fn interest(&self) -> Interest {
        if self.unsent.is_empty() {
            Interest::Read
        } else {
            Interest::ReadWrite
        }
    }
}

/// The peer broke the protocol.
struct Violation;

impl Broker {
    /// A broker without objects, and its door.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let epoll = Epoll::new()?;
        let (door, outside) = socket::seqpacket_pair()?;
        let timer = TimerFd::new()?;
        epoll.add(&door, DOOR, Interest::Read)?;
        epoll.add(&timer, TIMER, Interest::Read)?;
        let broker = Self {
            epoll,
            door,
            timer,
            armed: None,
            start: Instant::now(),
            peers: HashMap::new(),
            next_peer: 1,
            objects: HashMap::new(),
            deadlines: BTreeSet::new(),
            ends: HashMap::new(),
            doubts: Vec::new(),
            ready: Vec::new(),
            room: Room::default(),
        };
        Ok((broker, outside))
    }

    /// Does all that can be done without waiting. Called when the broker's fd is readable.
    pub(crate) fn turn(&mut self) {
        let mut ready = mem::take(&mut self.ready);
        if let Err(error) = self.epoll.wait(&mut ready, Some(Duration::ZERO)) {
            tracing::error!(%error, "the broker cannot see what is ready");
        }
        if ready.contains(&DOOR) {
            // First: who knocks may be dead already, and is to be swept up after in the same turn.
            self.greet();
            let _ = self.epoll.wait(&mut ready, Some(Duration::ZERO));
        }
        for token in ready.drain(..) {
            match token {
                DOOR => (),
                TIMER => {
                    self.timer.clear();
                    self.armed = None;
                }
                token if self.ends.contains_key(&(token / 2)) => self.end(token),
                token if token & 1 == 0 => {
                    self.flush(token / 2);
                    self.read(token / 2, MESSAGES_PER_TURN);
                }
                token => self.bury(token / 2),
            }
        }
        self.ready = ready;
        self.read_on();
        self.settle_doubts();
        self.pass_time();
    }

    /// Lets clients in who knock at the door.
    fn greet(&mut self) {
        let mut hello = BytesMut::new();
        let mut fds = Vec::new();
        let max = HELLO.len() + 1;
        for _ in 0..BACKLOG_MAX {
            if !self.has_room_for_hello() {
                return;
            }
            let came = socket::recv_with_fds(&self.door, &mut hello, max, &mut fds, Wait::No);
            let is_hello = came.is_ok_and(|came| came.len > 0);
            if is_hello
                && hello.split() == HELLO
                && let Err(error) = self.let_in(mem::take(&mut fds))
            {
                tracing::warn!(%error, "a process could not be let in to the shared objects");
            }
            fds.clear();
            self.room.fill(&self.door);
            if !is_hello {
                return;
            }
        }
    }

    fn let_in(&mut self, fds: Vec<OwnedFd>) -> io::Result<()> {
        let fds: [OwnedFd; 4] = fds
            .try_into()
            .map_err(|_| io::Error::other("its descriptors did not come along"))?;
        let [link, mailbox, bell, pidfd] = fds;
        let mailbox = Region::map_all(mailbox)?;
        let bell = Bell::received(bell)?;
        let pidfd = Pidfd::from(pidfd);
        let id = self.next_peer;
        self.next_peer += 1;
        self.epoll.add(&link, 2 * id, Interest::Read)?;
        if let Err(error) = self.epoll.add(&pidfd, 2 * id + 1, Interest::Read) {
            // The other copies of the link would keep it in the set.
            let _ = self.epoll.remove(&link);
            return Err(error);
        }
        let peer = Peer {
            link: Some(link),
            pidfd,
            mailbox,
            bell,
            opened: HashMap::new(),
            unsent: VecDeque::new(),
            n_opening: 0,
            is_put_off: false,
        };
        self.peers.insert(id, peer);
        Ok(())
    }

    /// Carries out up to `n` messages of a peer.
    fn read(&mut self, id: u64, n: usize) {
        let mut bytes = BytesMut::new();
        let mut fds = Vec::new();
        for _ in 0..n {
            let Some(peer) = self.peers.get(&id) else {
                return;
            };
            let n_opening = peer.n_opening;
            if n_opening > 0 && !self.has_room_for_object(id) {
                return;
            }
            let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else {
                return;
            };
            bytes.clear();
            let max = message::LEN + 1;
            let came = match socket::recv_with_fds(link, &mut bytes, max, &mut fds, Wait::No) {
                Ok(came) if came.len > 0 => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The peer died with something unread; what it sent comes after this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                _ => return self.hang_up(id),
            };
            let message = Message::from_bytes(&bytes);
            if n_opening > 0 {
                self.room.fill(&self.door);
            }
            let mut fds = mem::take(&mut fds);
            if came.fds_lost {
                fds.clear();
            }
            let done = match message {
                // An item's descriptors are lost, of which its reader is told.
                Some(message) if !came.fds_lost || matches!(message.says, Says::Deposit(_)) => {
                    self.on(id, message, fds)
                }
                _ => Err(Violation),
            };
            if done.is_err() {
                tracing::warn!(?message, "a process broke the protocol of shared objects");
                return self.hang_up(id);
            }
        }
    }

    /// Stops listening to a peer. It is forgotten when it uses nothing, else when it dies.
    fn hang_up(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if let Some(link) = peer.link.take() {
            let _ = self.epoll.remove(&link);
        }
        if peer.opened.is_empty() {
            let _ = self.epoll.remove(&peer.pidfd);
            self.peers.remove(&id);
        }
    }

    /// Sweeps up after a dead peer.
    fn bury(&mut self, id: u64) {
        // What it said before it died counts; others may have its link still, and say on and on.
        self.read(id, BACKLOG_MAX);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.is_put_off {
            return self.bury_later(id);
        }
        let opened: Vec<u32> = peer.opened.keys().copied().collect();
        for object in opened {
            self.close(id, object);
        }
        if let Some(peer) = self.peers.remove(&id) {
            let _ = self.epoll.remove(&peer.pidfd);
            if let Some(link) = peer.link {
                let _ = self.epoll.remove(&link);
            }
        }
    }

    fn on(&mut self, id: u64, message: Message, fds: Vec<OwnedFd>) -> Result<(), Violation> {
        let Some(peer) = self.peers.get(&id) else {
            return Ok(());
        };
        match message.says {
            Says::Opening => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.n_opening = peer.n_opening.saturating_add(1);
                }
                return Ok(());
            }
            Says::Open(client) => {
                return self
                    .open(id, message.object, client, fds)
                    .map_err(|_| Violation);
            }
            _ => (),
        }
        let Some(&(inode, client)) = peer.opened.get(&message.object) else {
            return Err(Violation);
        };
        let n_slots = peer.mailbox.len() / 8;
        let ticket = |(slot, turn): Place| {
            if slot as usize >= n_slots {
                return Err(Violation);
            }
            Ok(Ticket { client, slot, turn })
        };
        let request = match message.says {
            Says::Opening | Says::Open(_) => return Err(Violation),
            Says::Close => {
                self.close(id, message.object);
                return Ok(());
            }
            Says::Acquire(place) => Request::Gate(gate::Request::Acquire(ticket(place)?)),
            Says::Poke => Request::Gate(gate::Request::Poke),
            Says::Release(permit) => Request::Gate(gate::Request::Release { client, permit }),
            Says::ReleaseLedger => Request::Gate(gate::Request::ReleaseLedger { client }),
            Says::ForgetLedger => Request::Gate(gate::Request::ForgetLedger { client }),
            Says::Add => Request::Gate(gate::Request::Add),
            Says::Wait(place, condition) => {
                let ticket = ticket(place)?;
                Request::Gate(gate::Request::Wait { ticket, condition })
            }
            Says::Notify(condition, n) => Request::Gate(gate::Request::Notify { condition, n }),
            Says::Cancel(place) => {
                let ticket = ticket(place)?;
                match self.objects.get(&inode).map(|object| &object.machine) {
                    Some(Machine::Barrier(_)) => Request::Barrier(barrier::Request::Cancel(ticket)),
                    _ => Request::Gate(gate::Request::Cancel(ticket)),
                }
            }
            Says::Arrive(place) => Request::Barrier(barrier::Request::Arrive(ticket(place)?)),
            Says::Done(place) => Request::Barrier(barrier::Request::Done(ticket(place)?)),
            Says::Abort => Request::Barrier(barrier::Request::Abort),
            Says::Reset => Request::Barrier(barrier::Request::Reset),
            Says::Ring(client) if self.is_gate(inode) => {
                self.send_bell_of(id, inode, message.object, client);
                self.ring_client(inode, client);
                return Ok(());
            }
            Says::Ring(seat) => {
                self.send_bell(id, inode, message.object, seat);
                Request::Queue(Queue::Ring(seat))
            }
            Says::Patrol => Request::Queue(Queue::Patrol),
            Says::Deposit(_) | Says::Withdraw(..) | Says::Forget(..) => {
                let known = self.about_fds(id, (inode, client), message, fds);
                return if known { Ok(()) } else { Err(Violation) };
            }
            // The broker says these itself.
            Says::BellOf(_) | Says::Parcel(_) => return Err(Violation),
        };
        self.carry_out(inode, request)
    }

    /// A peer begins to use an object under the number `client`.
    fn open(&mut self, id: u64, object: u32, client: u32, fds: Vec<OwnedFd>) -> io::Result<()> {
        let refused = || io::Error::from(io::ErrorKind::InvalidInput);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.n_opening = peer.n_opening.saturating_sub(1);
        }
        let mut fds = fds.into_iter();
        let file = fds.next().ok_or_else(refused)?;
        let inode = Inode::of(&file)?;
        if let Entry::Vacant(place) = self.objects.entry(inode) {
            place.insert(Object::new(&Arc::new(file), &mut fds)?);
        }
        // Not only if it is new: others' links may be read before the creator's.
        self.watch_ends(inode, &mut fds)?;
        let known = self.objects.get_mut(&inode).ok_or_else(refused)?;
        let peer = self.peers.get_mut(&id).ok_or_else(refused)?;
        let is_free = !known.members.contains_key(&client) && !peer.opened.contains_key(&object);
        if !word::is_process(client) || !is_free {
            return Err(refused());
        }
        known.members.insert(client, id);
        peer.opened.insert(object, (inode, client));
        if matches!(known.machine, Machine::Queue(_) | Machine::Gate(_)) {
            // Somebody may have asked to ring it before we knew it, as requests come by many links,
            // while all see at once what it writes into the object's words.
            peer.bell.ring();
        }
        Ok(())
    }

    /// A peer uses an object no more, as it said so or as it is dead.
    fn close(&mut self, id: u64, object: u32) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some((inode, client)) = peer.opened.remove(&object) else {
            return;
        };
        let Some(object) = self.objects.get_mut(&inode) else {
            return;
        };
        let lock = object.mapped.region().word64(layout::LOCK * 8);
        let held = word::owner(lock.load(Ordering::Relaxed)) == client;
        let gone = match &object.machine {
            Machine::Gate(_) => Some(Request::Gate(gate::Request::Gone { client })),
            Machine::Barrier(_) => Some(Request::Barrier(barrier::Request::Gone { client })),
            Machine::Queue(_) => Some(Request::Queue(Queue::Gone(client))),
            Machine::Event(_) if Shared(object.mapped.region()).breaks(Rule::EventDeathRings) => {
                None
            }
            Machine::Event(bell) => {
                // It may have raised the flag and died before it rang.
                bell.ring();
                futex::wake(object.mapped.region().word32(layout::FLAG * 8));
                None
            }
        };
        if let Some(gone) = gone {
            // Of the right kind, so it is no violation.
            let _ = self.carry_out(inode, gone);
        }
        if self.is_gate(inode) {
            self.sweep_sleepers(inode, client, held);
        }
        let Some(object) = self.objects.get_mut(&inode) else {
            return;
        };
        object.members.remove(&client);
        self.give_up_fds(inode, client);
        self.drop_unused(inode);
    }

    /// Forgets an object without users, unless there are handles on their way.
    fn drop_unused(&mut self, inode: Inode) {
        let Some(object) = self.objects.get(&inode) else {
            return;
        };
        let is_kept = matches!(&object.machine, Machine::Queue(keep) if keep.n_ends > 0);
        if object.members.is_empty() && !is_kept {
            // What is to be remembered stands in the words, should somebody open it again.
            if let Some(object) = self.objects.remove(&inode)
                && let Some(deadline) = object.deadline
            {
                self.deadlines.remove(&(deadline, inode));
            }
        }
    }

    fn carry_out(&mut self, inode: Inode, request: Request) -> Result<(), Violation> {
        let Some(object) = self.objects.get_mut(&inode) else {
            return Ok(());
        };
        let now = self.start.elapsed();
        if let Request::Queue(request) = request {
            let (Machine::Queue(keep), Some(arena)) = (&mut object.machine, object.mapped.arena())
            else {
                return Err(Violation);
            };
            let members = &object.members;
            let done = queue::carry_out(arena, members, &self.peers, keep, request, now);
            if let Err(NotMapped) = done {
                tracing::error!("a queue's memory cannot be mapped any more");
            }
            self.set_deadline(inode);
            return Ok(());
        }
        let mut hand = Hand {
            words: Shared(object.mapped.region()),
            members: &object.members,
            peers: &self.peers,
            rung: HashSet::new(),
        };
        let Ok(()) = match (&mut object.machine, request) {
            (Machine::Gate(gate), Request::Gate(request)) => gate.on(request, now, &mut hand),
            (Machine::Barrier(barrier), Request::Barrier(request)) => {
                barrier.on(request, &mut hand)
            }
            _ => return Err(Violation),
        };
        for peer in hand.rung {
            if let Some(peer) = self.peers.get(&peer) {
                peer.bell.ring();
            }
        }
        let region = object.mapped.region();
        if matches!(object.machine, Machine::Gate(_)) {
            let Ok(sleeper) = park::serve(&mut Shared(region), &layout::park(region));
            if let Some(sleeper) = sleeper {
                self.rouse(inode, sleeper);
            }
        }
        self.set_deadline(inode);
        Ok(())
    }

    fn is_gate(&self, inode: Inode) -> bool {
        let object = self.objects.get(&inode);
        object.is_some_and(|object| matches!(object.machine, Machine::Gate(_)))
    }

    /// Wakes whoever sleeps at an object without us.
    fn rouse(&self, inode: Inode, whom: Rouse) {
        match (whom, self.objects.get(&inode)) {
            (Rouse::Process(client), _) => self.ring_client(inode, client),
            // The upper half, on the little-endian machines that the crate supports.
            (Rouse::Thread(word), Some(object)) => {
                futex::wake(object.mapped.region().word32(word * 8 + 4));
            }
            (Rouse::Thread(_), None) => (),
        }
    }

    /// Rings the process that has this number at an object.
    fn ring_client(&self, inode: Inode, client: u32) {
        let object = self.objects.get(&inode);
        let id = object.and_then(|object| object.members.get(&client));
        if let Some(peer) = id.and_then(|id| self.peers.get(id)) {
            peer.bell.ring();
        }
    }

    /// Sweeps up after a dead client among those who sleep without us, and rings whom it may have been
    /// about to ring.
    fn sweep_sleepers(&mut self, inode: Inode, dead: u32, held: bool) {
        let Some(object) = self.objects.get(&inode) else {
            return;
        };
        let region = object.mapped.region();
        let mut words = Shared(region);
        let Ok(sleeper) = park::take_out(&mut words, layout::SLEEPER);
        if let Some(sleeper) = sleeper {
            self.rouse(inode, sleeper);
        }
        if layout::kind_of(region).ok() != Some(Kind::Lock) {
            return;
        }
        let vigils = &layout::VIGIL;
        let Ok(swept) = vigil::sweep(&mut words, vigils, dead, held);
        for whom in swept.roused {
            self.rouse(inode, whom);
        }
        for condition in swept.unheard {
            let notify = gate::Request::Notify { condition, n: 1 };
            let _ = self.carry_out(inode, Request::Gate(notify));
        }
    }

    /// Takes note of when an object wants to be looked at.
    fn set_deadline(&mut self, inode: Inode) {
        let Some(object) = self.objects.get_mut(&inode) else {
            return;
        };
        let deadline = match &object.machine {
            Machine::Gate(gate) => gate.deadline(),
            Machine::Queue(keep) => keep.patrol,
            _ => None,
        };
        if deadline != object.deadline {
            if let Some(old) = object.deadline {
                self.deadlines.remove(&(old, inode));
            }
            object.deadline = deadline;
            self.deadlines
                .extend(deadline.map(|deadline| (deadline, inode)));
        }
    }

    /// Has a turn come at this time at the latest.
    fn arm(&mut self, deadline: Duration) {
        // A timer that goes off too early is set again then, so that most waits, which end before their
        // deadline, cost no call.
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.timer
                .set(deadline.saturating_sub(self.start.elapsed()).max(NOW));
            self.armed = Some(deadline);
        }
    }

    /// Serves the objects whose waiters have waited long, and sets the timer for the next one.
    fn pass_time(&mut self) {
        if self.room.is_short() {
            self.arm(self.start.elapsed() + room::RETRY);
        }
        // Asked once: whoever wants to be served again at once has to wait for the others.
        let now = self.start.elapsed();
        while let Some(&(deadline, inode)) = self.deadlines.first() {
            if deadline > now {
                return self.arm(deadline);
            }
            let time = match self.objects.get(&inode).map(|object| &object.machine) {
                Some(Machine::Queue(_)) => Request::Queue(Queue::Time),
                _ => Request::Gate(gate::Request::Time),
            };
            let _ = self.carry_out(inode, time);
        }
    }
}

impl AsFd for Broker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Object {
    /// The object in `file`, with what else it needs out of `fds`.
    fn new(file: &Arc<OwnedFd>, fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<Self> {
        let (mapped, kind) = Mapped::open(file)?;
        let region = mapped.region();
        let machine = match kind {
            Kind::Lock | Kind::Semaphore => {
                let ledger = layout::ledger(region);
                Machine::Gate(Gate::new(layout::gate(region, kind), ledger))
            }
            Kind::Barrier => {
                let state = region
                    .word64(layout::BARRIER.state * 8)
                    .load(Ordering::Relaxed);
                let parties = layout::size(region);
                let has_action = layout::has_action(region);
                Machine::Barrier(Barrier::new(layout::BARRIER, parties, has_action, state))
            }
            Kind::Event => {
                let bell = fds.next().ok_or(io::ErrorKind::InvalidInput)?;
                Machine::Event(Bell::received(bell)?)
            }
            Kind::Queue => Machine::Queue(Keep::default()),
        };
        Ok(Self {
            mapped,
            machine,
            members: HashMap::new(),
            deadline: None,
        })
    }
}

/// An object's words and its users' mailboxes, in the hand of a deciding file.
struct Hand<'a> {
    words: Shared<'a>,
    members: &'a HashMap<u32, u64>,
    peers: &'a HashMap<u64, Peer>,
    /// Whose bells are to be rung when the request is carried out.
    rung: HashSet<u64>,
}

impl Memory for Hand<'_> {
    type Stop = Infallible;

    fn load(&mut self, word: usize) -> Result<u64, Infallible> {
        self.words.load(word)
    }

    fn replace(
        &mut self,
        word: usize,
        old: u64,
        new: u64,
        order: Ordering,
    ) -> Result<Result<u64, u64>, Infallible> {
        self.words.replace(word, old, new, order)
    }

    fn set_bits(&mut self, word: usize, bits: u64) -> Result<u64, Infallible> {
        self.words.set_bits(word, bits)
    }

    fn clear_bits(&mut self, word: usize, bits: u64) -> Result<u64, Infallible> {
        self.words.clear_bits(word, bits)
    }

    fn store(&mut self, word: usize, value: u64) -> Result<(), Infallible> {
        self.words.store(word, value)
    }

    fn breaks(&self, rule: Rule) -> bool {
        self.words.breaks(rule)
    }
}

impl Answers for Hand<'_> {
    fn answer(&mut self, ticket: Ticket, answer: Answer) -> Result<bool, Infallible> {
        let Some((id, peer)) = self
            .members
            .get(&ticket.client)
            .and_then(|id| Some((*id, self.peers.get(id)?)))
        else {
            return Ok(false);
        };
        // In range: checked when the ticket came.
        let at = ticket.slot as usize * 8;
        match slot::answer(peer.mailbox.word64(at), ticket.turn, answer) {
            None => return Ok(false),
            Some(Wake::Bell) => drop(self.rung.insert(id)),
            // The lower half comes first on the little-endian machines that the crate supports.
            Some(Wake::Futex) => futex::wake(peer.mailbox.word32(at)),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::layout::Shape;
    use crate::sys::eventfd::EventFd;

    /// A client as its broker sees it.
    struct Client {
        link: OwnedFd,
        bell: EventFd,
    }

    impl Client {
        fn knock(door: &OwnedFd) -> Self {
            let (link, theirs) = socket::seqpacket_pair().unwrap();
            let (_, mailbox) = Region::create(c"mp-mailbox", 4096.try_into().unwrap()).unwrap();
            let bell = EventFd::new().unwrap();
            let pidfd = Pidfd::open(std::process::id()).unwrap();
            let fds = [theirs.as_fd(), mailbox.as_fd(), bell.as_fd(), pidfd.as_fd()];
            socket::send_with_fds(door, &[io::IoSlice::new(HELLO)], &fds, Wait::Yes).unwrap();
            Self { link, bell }
        }

        fn say(&self, says: Says, fds: &[BorrowedFd<'_>]) {
            let bytes = Message { object: 1, says }.to_bytes();
            let bytes = [io::IoSlice::new(&bytes)];
            socket::send_with_fds(&self.link, &bytes, fds, Wait::Yes).unwrap();
        }
    }

    fn is_readable(fd: &impl AsFd) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll.add(fd, 0, Interest::Read).unwrap();
        let mut ready = Vec::new();
        epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        !ready.is_empty()
    }

    fn turn(broker: &mut Broker) {
        while is_readable(broker) {
            broker.turn();
        }
    }

    #[test]
    fn a_ring_for_a_client_that_is_not_known_yet_is_not_lost() {
        for shape in [
            Shape::Lock { data: 0 },
            Shape::Semaphore {
                permits: 2,
                bounded: false,
            },
        ] {
            let (mut broker, door) = Broker::new().unwrap();
            let (region, file) = Region::create(c"mp-object", shape.len().unwrap()).unwrap();
            shape.write(&region);
            let ringer = Client::knock(&door);
            turn(&mut broker);
            ringer.say(Says::Open(1), &[file.as_fd()]);
            ringer.say(Says::Ring(2), &[]);
            turn(&mut broker);

            let rung = Client::knock(&door);
            rung.say(Says::Open(2), &[file.as_fd()]);
            turn(&mut broker);

            assert!(is_readable(&rung.bell), "{shape:?}");
        }
    }

    #[test]
    fn a_client_that_was_put_off_for_lack_of_room_leaves_the_broker_quiet_again() {
        let (mut broker, door) = Broker::new().unwrap();
        let _client = Client::knock(&door);
        turn(&mut broker);
        let peers: Vec<u64> = broker.peers.keys().copied().collect();

        broker.put_off(peers[0]);
        broker.read_on();
        (0..3).for_each(|_| broker.turn());

        assert!(!is_readable(&broker));
    }
}
