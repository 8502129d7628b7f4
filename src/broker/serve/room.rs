//! Room for descriptors that come with messages, also when the process is at its limit of open files.
//!
//! A descriptor that comes when the table is full is lost, and what its message was about with it. So
//! the broker keeps a few to spare. A client says that it is about to open an object before it sends
//! the descriptors; the broker then gives up as many of its own as that may bring, and gets new ones
//! afterwards. When there are none to be had, the link, or the door, is not read until there are: its
//! client waits, and nobody else does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Broker, DOOR};
use crate::sys::epoll::Interest;

/// How many descriptors come with a hello, which is more than with an object.
const NEEDED: usize = 4;
/// How many are kept: so a few more objects can be opened at the limit.
const SPARE: usize = 2 * NEEDED;

/// How often the broker looks whether there is room again.
pub(super) const RETRY: Duration = Duration::from_millis(10);

/// Descriptors to spare, and who waits for some.
#[derive(Debug, Default)]
pub(super) struct Room {
    spare: Vec<OwnedFd>,
    is_door_put_off: bool,
    peers: Vec<u64>,
}

impl Room {
    /// Gets descriptors to spare, as far as there are any, as copies of one that there is.
    pub(super) fn fill(&mut self, of: &OwnedFd) {
        while self.spare.len() < SPARE
            && let Ok(copy) = of.try_clone()
        {
            self.spare.push(copy);
        }
    }

    /// Makes room for the descriptors of one message. False if there is none.
    fn make(&mut self, of: &OwnedFd) -> bool {
        self.fill(of);
        let is_enough = self.spare.len() >= NEEDED;
        if is_enough {
            self.spare.truncate(self.spare.len() - NEEDED);
        }
        is_enough
    }

    /// Whether somebody is not read for lack of room.
    pub(super) fn is_short(&self) -> bool {
        self.is_door_put_off || !self.peers.is_empty()
    }
}

/// Asserts that there is room for what the broker of this process will need for one more object.
pub(crate) fn check(of: &OwnedFd) -> io::Result<()> {
    let copies: io::Result<Vec<OwnedFd>> = (0..NEEDED).map(|_| of.try_clone()).collect();
    copies.map(drop)
}

impl Broker {
    /// Makes room for a hello, or puts the door off.
    pub(super) fn has_room_for_hello(&mut self) -> bool {
        let has_room = self.room.make(&self.door);
        if !has_room && !self.room.is_door_put_off {
            self.room.is_door_put_off = self.epoll.remove(&self.door).is_ok();
        }
        has_room
    }

    /// Makes room for an object, or puts the link of its client off.
    pub(super) fn has_room_for_object(&mut self, id: u64) -> bool {
        let has_room = self.room.make(&self.door);
        let Some(peer) = self.peers.get_mut(&id) else {
            return has_room;
        };
        if has_room {
            peer.is_put_off = false;
        } else if !peer.is_put_off {
            tracing::warn!("no descriptors are left for the objects of another process: it waits");
            self.put_off(id);
        }
        has_room
    }

    /// Does not read a peer until there is room.
    pub(super) fn put_off(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.is_put_off = true;
        if let Some(link) = &peer.link {
            let _ = self.epoll.remove(link);
        }
        self.room.peers.push(id);
    }

    /// Reads on whom it has put off, if there is room again.
    pub(super) fn read_on(&mut self) {
        if !self.room.is_short() {
            return;
        }
        self.room.fill(&self.door);
        if self.room.spare.len() < NEEDED {
            return;
        }
        if self.room.is_door_put_off {
            self.room.is_door_put_off = self.epoll.add(&self.door, DOOR, Interest::Read).is_err();
        }
        for id in std::mem::take(&mut self.room.peers) {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            peer.is_put_off = false;
            if let Some(link) = &peer.link {
                let _ = self.epoll.add(link, 2 * id, peer.interest());
            }
            // A failure means that it is there still, as the process was alive.
            let _ = self.epoll.add(&peer.pidfd, 2 * id + 1, Interest::Read);
        }
    }

    /// Leaves a dead peer until what it has said can be read.
    pub(super) fn bury_later(&mut self, id: u64) {
        if let Some(peer) = self.peers.get(&id) {
            let _ = self.epoll.remove(peer.pidfd.as_fd());
        }
    }
}
