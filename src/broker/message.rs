//! What clients say to a broker, and the few answers that come as messages: fixed-layout, each of
//! them one packet.
//!
//! A link is a `SOCK_SEQPACKET` socket, so a message arrives whole or not at all, and a killed
//! process' last message is either there or was never sent.

/// Bytes of a message.
pub(crate) const LEN: usize = 20;

/// A message of a client. `object` is the number that the client gave the object when it opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Which object.
    pub(crate) object: u32,
    /// What about it.
    pub(crate) says: Says,
}

/// Where the sender waits: slot and turn in its mailbox.
pub(crate) type Place = (u32, u32);

/// What a client says about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// It is about to send `Open`, with descriptors that the broker needs room for.
    Opening,
    /// It will use the object, whose memory comes along, under this number in the words.
    Open(u32),
    /// It has dropped the object.
    Close,
    /// See [`super::gate::Request`] for these.
    Acquire(Place),
    Poke,
    Release(u32),
    ReleaseLedger,
    ForgetLedger,
    Add,
    Wait(Place, u32),
    Notify(u32, u32),
    Cancel(Place),
    /// See [`super::barrier::Request`] for these.
    Arrive(Place),
    Done(Place),
    Abort,
    Reset,
    /// Ring the process in this seat of a queue, and give out its bell for the next time.
    Ring(u32),
    /// Look after the sleepers of a queue in a while: somebody was woken.
    Patrol,
    /// The descriptors that come along belong to an item of a queue, under this number of mine.
    Deposit(u32),
    /// Send me the descriptors that this client deposited under this number; the ticket is the third.
    Withdraw(u32, u32, u32),
    /// Nobody wants those any more.
    Forget(u32, u32),
    /// The broker's answer to `Ring`: the bell of this client comes along.
    BellOf(u32),
    /// The broker's answer to `Withdraw`: what belongs to the ticket comes along.
    Parcel(u32),
}

impl Message {
    /// For the wire.
    pub(crate) fn to_bytes(self) -> [u8; LEN] {
        let (kind, a, b, c) = match self.says {
            Says::Open(client) => (1, client, 0, 0),
            Says::Close => (2, 0, 0, 0),
            Says::Acquire((slot, turn)) => (3, slot, turn, 0),
            Says::Poke => (4, 0, 0, 0),
            Says::Release(permit) => (5, permit, 0, 0),
            Says::ReleaseLedger => (6, 0, 0, 0),
            Says::Add => (7, 0, 0, 0),
            Says::Wait((slot, turn), condition) => (8, slot, turn, condition),
            Says::Notify(condition, n) => (9, condition, n, 0),
            Says::Cancel((slot, turn)) => (10, slot, turn, 0),
            Says::Arrive((slot, turn)) => (11, slot, turn, 0),
            Says::Done((slot, turn)) => (12, slot, turn, 0),
            Says::Abort => (13, 0, 0, 0),
            Says::Reset => (14, 0, 0, 0),
            Says::ForgetLedger => (15, 0, 0, 0),
            Says::Ring(seat) => (16, seat, 0, 0),
            Says::Patrol => (17, 0, 0, 0),
            Says::Deposit(number) => (18, number, 0, 0),
            Says::Withdraw(client, number, ticket) => (19, client, number, ticket),
            Says::Forget(client, number) => (20, client, number, 0),
            Says::BellOf(client) => (21, client, 0, 0),
            Says::Parcel(ticket) => (22, ticket, 0, 0),
            Says::Opening => (23, 0, 0, 0),
        };
        let mut bytes = [0; LEN];
        for (place, number) in bytes.chunks_exact_mut(4).zip([kind, self.object, a, b, c]) {
            place.copy_from_slice(&u32::to_le_bytes(number));
        }
        bytes
    }

    /// From the wire; nothing for bytes that are no message.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let number = |i: usize| {
            let [a, b, c, d] = [
                bytes[4 * i],
                bytes[4 * i + 1],
                bytes[4 * i + 2],
                bytes[4 * i + 3],
            ];
            u32::from_le_bytes([a, b, c, d])
        };
        let [a, b, c] = [number(2), number(3), number(4)];
        let says = match number(0) {
            1 => Says::Open(a),
            2 => Says::Close,
            3 => Says::Acquire((a, b)),
            4 => Says::Poke,
            5 => Says::Release(a),
            6 => Says::ReleaseLedger,
            7 => Says::Add,
            8 => Says::Wait((a, b), c),
            9 => Says::Notify(a, b),
            10 => Says::Cancel((a, b)),
            11 => Says::Arrive((a, b)),
            12 => Says::Done((a, b)),
            13 => Says::Abort,
            14 => Says::Reset,
            15 => Says::ForgetLedger,
            16 => Says::Ring(a),
            17 => Says::Patrol,
            18 => Says::Deposit(a),
            19 => Says::Withdraw(a, b, c),
            20 => Says::Forget(a, b),
            21 => Says::BellOf(a),
            22 => Says::Parcel(a),
            23 => Says::Opening,
            _ => return None,
        };
        Some(Self {
            object: number(1),
            says,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let place = (3, 7);
        let all = [
            Says::Open(9),
            Says::Close,
            Says::Acquire(place),
            Says::Poke,
            Says::Release(5),
            Says::ReleaseLedger,
            Says::Add,
            Says::Wait(place, 2),
            Says::Notify(2, u32::MAX),
            Says::Cancel(place),
            Says::Arrive(place),
            Says::Done(place),
            Says::Abort,
            Says::Reset,
            Says::ForgetLedger,
            Says::Ring(511),
            Says::Patrol,
            Says::Deposit(8),
            Says::Withdraw(2, 3, 4),
            Says::Forget(2, 3),
            Says::BellOf(6),
            Says::Parcel(7),
            Says::Opening,
        ];
        for says in all {
            let message = Message { object: 4, says };

            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
    }

    #[test]
    fn bytes_that_are_no_message_are_nothing() {
        assert_eq!(Message::from_bytes(&[0; LEN]), None);
        assert_eq!(Message::from_bytes(&[1; LEN + 1]), None);
    }
}
