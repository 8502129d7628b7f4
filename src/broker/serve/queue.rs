//! The broker's part in queues: bells, descriptors of items, the end of the last handle, and deaths.
//!
//! Two pipes tell when nobody can put, or nobody can get, any more: each handle, in whatever process
//! or message, keeps the writing end of its pipe open, and the broker has the reading ends. So the
//! kernel counts, and a handle that dies with its process or with a message that nobody receives
//! counts no more.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BACKLOG_MAX, Broker, Machine, Peer, Request, UNSENT_MAX};
use crate::broker::memory::Memory;
use crate::broker::message::{Message, Says};
use crate::broker::queue::arena::{Arena, NotMapped, WithBells};
use crate::broker::queue::keep::{self, Fds, Keep, Wanted};
use crate::broker::queue::wait::Bells;
use crate::broker::queue::{deal, sweep, words};
use crate::broker::slot::Wake;
use crate::sys::epoll::Interest;
use crate::sys::inode::Inode;
use crate::sys::socket::{self, Wait};

/// What is to be done about a queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Queue {
    /// This client is gone.
    Gone(u32),
    /// Ring this seat.
    Ring(u32),
    /// Look after sleepers in a while.
    Patrol,
    /// Look after them now.
    Time,
    /// Nobody can put any more.
    Close,
    /// Nobody can get any more.
    Abandon,
}

/// A wish for descriptors of a process that is not known: gone already, or not read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    inode: Inode,
    key: u64,
    wanted: Wanted,
}

impl Broker {
    /// Watches the ends of a new queue, which only its creator has.
    pub(super) fn watch_ends(
        &mut self,
        inode: Inode,
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<()> {
        let Some(object) = self.objects.get_mut(&inode) else {
            return Ok(());
        };
        if let Machine::Queue(keep) = &mut object.machine
            && keep.n_ends == 0
            && let (Some(put), Some(get)) = (fds.next(), fds.next())
        {
            let end = self.next_peer;
            self.next_peer += 1;
            self.epoll.add(&put, 2 * end, Interest::Read)?;
            self.epoll.add(&get, 2 * end + 1, Interest::Read)?;
            self.ends.insert(end, (inode, [put, get]));
            keep.n_ends = 2;
        }
        Ok(())
    }

    /// Nobody can put into a queue, or nobody can get from it, any more.
    pub(super) fn end(&mut self, token: u64) {
        let Some((inode, pipes)) = self.ends.get(&(token / 2)) else {
            return;
        };
        let inode = *inode;
        // A failure means that this one had hung up before.
        if self.epoll.remove(&pipes[(token & 1) as usize]).is_err() {
            return;
        }
        let is_over = if token & 1 == 0 {
            Queue::Close
        } else {
            Queue::Abandon
        };
        let _ = self.carry_out(inode, Request::Queue(is_over));
        let Some(object) = self.objects.get_mut(&inode) else {
            return;
        };
        if let Machine::Queue(keep) = &mut object.machine {
            keep.n_ends -= 1;
            if keep.n_ends == 0 {
                self.ends.remove(&(token / 2));
                self.drop_unused(inode);
            }
        }
    }

    /// Carries out what a message says about an item's descriptors. False if it is about other
    /// things.
    pub(super) fn about_fds(
        &mut self,
        id: u64,
        (inode, client): (Inode, u32),
        message: Message,
        fds: Vec<OwnedFd>,
    ) -> bool {
        let Some(object) = self.objects.get_mut(&inode) else {
            return false;
        };
        let Machine::Queue(keep) = &mut object.machine else {
            return false;
        };
        match message.says {
            Says::Deposit(number) => {
                let fds = fds.into_iter().map(Arc::new).collect();
                for (wanted, fds) in keep.deposit(keep::key(client, number), fds) {
                    self.send(wanted, fds);
                }
            }
            Says::Withdraw(of, number, ticket) => {
                let wanted = Wanted {
                    peer: id,
                    object: message.object,
                    ticket,
                };
                let key = keep::key(of, number);
                if let Some(fds) = keep.look_up(key) {
                    self.send(wanted, fds);
                } else if keep.has_come(key) {
                    // Whoever forgot them has had the item, and died before it could say so.
                    self.send(wanted, Fds::new());
                } else if object.members.contains_key(&of) {
                    keep.expect(key, wanted);
                } else {
                    self.doubts.push(Doubt { inode, key, wanted });
                }
            }
            Says::Forget(of, number) => keep.forget(keep::key(of, number)),
            _ => return false,
        }
        true
    }

    /// Answers those who want descriptors of a process that was not known when they asked.
    ///
    /// Its item came faster than its hello did. But whatever it had said before it put the item lies
    /// in the door and in its link by now: so who is unknown after all that was read is gone.
    pub(super) fn settle_doubts(&mut self) {
        if self.doubts.is_empty() || self.room.is_short() {
            // What is not read for lack of room may be what makes it known.
            return;
        }
        let doubts = mem::take(&mut self.doubts);
        self.greet();
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        for peer in peers {
            self.read(peer, BACKLOG_MAX);
        }
        for Doubt { inode, key, wanted } in doubts {
            let Some(object) = self.objects.get_mut(&inode) else {
                continue;
            };
            let Machine::Queue(keep) = &mut object.machine else {
                continue;
            };
            if let Some(fds) = keep.look_up(key) {
                self.send(wanted, fds);
            } else if object.members.contains_key(&keep::client_of(key)) && !keep.has_come(key) {
                keep.expect(key, wanted);
            } else {
                self.send(wanted, Fds::new());
            }
        }
        if !self.doubts.is_empty() {
            // For those that came up meanwhile.
            self.arm(Duration::ZERO);
        }
    }

    /// Those who wait for something of a client that is gone get nothing.
    pub(super) fn give_up_fds(&mut self, inode: Inode, client: u32) {
        let Some(object) = self.objects.get_mut(&inode) else {
            return;
        };
        if let Machine::Queue(keep) = &mut object.machine {
            for wanted in keep.gone(client) {
                self.send(wanted, Fds::new());
            }
        }
    }

    fn send(&mut self, wanted: Wanted, fds: Fds) {
        let message = Message {
            object: wanted.object,
            says: Says::Parcel(wanted.ticket),
        };
        self.answer(wanted.peer, message, fds);
    }

    /// Gives out the bell of the process in this seat.
    pub(super) fn send_bell(&mut self, id: u64, inode: Inode, object: u32, seat: u32) {
        let Some(known) = self.objects.get(&inode) else {
            return;
        };
        let Some(mut arena) = known.mapped.arena() else {
            return;
        };
        if seat as usize >= words::SEATS_MAX {
            return;
        }
        let Ok(client) = arena.load(words::owner(seat as usize)) else {
            return;
        };
        self.send_bell_of(id, inode, object, client as u32);
    }

    /// Gives out the bell of the process with this number at an object.
    pub(super) fn send_bell_of(&mut self, id: u64, inode: Inode, object: u32, client: u32) {
        let Some(known) = self.objects.get(&inode) else {
            return;
        };
        let peer = known.members.get(&client);
        let peer = peer.and_then(|id| self.peers.get(id));
        let bell = peer.and_then(|peer| peer.bell.as_fd().try_clone_to_owned().ok());
        if let Some(bell) = bell {
            let says = Says::BellOf(client);
            self.answer(id, Message { object, says }, vec![Arc::new(bell)]);
        }
    }

    /// Sends an answer as soon as there is room for it.
    fn answer(&mut self, id: u64, message: Message, fds: Fds) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.unsent.push_back((message, fds));
            if peer.unsent.len() > UNSENT_MAX {
                tracing::warn!("a process does not read what it asked for");
                peer.unsent.clear();
                return self.hang_up(id);
            }
            self.flush(id);
        }
    }

    /// Sends what the link of a peer has room for.
    pub(super) fn flush(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(link) = &peer.link else { return };
        if peer.unsent.is_empty() {
            return;
        }
        while let Some((message, fds)) = peer.unsent.front() {
            let bytes = message.to_bytes();
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let sent = socket::send_with_fds(link, &[io::IoSlice::new(&bytes)], &fds, Wait::No);
            if sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            // Other errors mean that there is nobody to read it.
            peer.unsent.pop_front();
        }
        let _ = self.epoll.modify(link, 2 * id, peer.interest());
    }
}

/// Carries out a request about a queue.
pub(super) fn carry_out(
    arena: &Arena,
    members: &HashMap<u32, u64>,
    peers: &HashMap<u64, Peer>,
    keep: &mut Keep,
    request: Queue,
    now: Duration,
) -> Result<(), NotMapped> {
    let begun = Instant::now();
    let is_asked = Cell::new(false);
    let ask = || {
        is_asked.set(true);
        Ok(())
    };
    let ring = |seat: usize, wake: Wake| {
        is_asked.set(true);
        if wake == Wake::Futex {
            arena.rouse(seat);
            return Ok(true);
        }
        let client = { arena }.load(words::owner(seat))? as u32;
        let peer = members.get(&client).and_then(|id| peers.get(id));
        if let Some(peer) = peer {
            peer.bell.ring();
        }
        Ok(true)
    };
    let mut memory = WithBells { arena, ring, ask };
    let done = see_to(&mut memory, keep, request);
    if is_asked.get() || matches!(request, Queue::Patrol) {
        keep.n_patrols = keep::N_PATROLS;
    }
    if keep.n_patrols > 0 {
        // From the end of this one, if it was one.
        keep.patrol
            .get_or_insert_with(|| now + begun.elapsed() + keep::PATIENCE);
    }
    done
}

fn see_to<M: Bells>(memory: &mut M, keep: &mut Keep, request: Queue) -> Result<(), M::Stop> {
    match request {
        Queue::Gone(client) => {
            let mut keys = Vec::new();
            sweep::sweep(memory, client, &mut keys)?;
            keys.into_iter().for_each(|key| keep.forget(key));
        }
        Queue::Ring(seat) => {
            if (seat as usize) < words::SEATS_MAX {
                memory.ring(seat as usize, Wake::Bell)?;
            }
        }
        Queue::Patrol => (),
        Queue::Time => {
            keep.patrol = None;
            keep.n_patrols = keep.n_patrols.saturating_sub(1);
            if sweep::patrol(memory)? {
                keep.n_patrols = keep.n_patrols.max(1);
            }
        }
        Queue::Close => deal::shut(memory)?,
        Queue::Abandon => {
            keep.abandon();
            deal::abandon(memory)?;
        }
    }
    Ok(())
}
