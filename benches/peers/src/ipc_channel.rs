//! ipc-channel: blocking, typed by serde, and its channel of plain bytes.

use std::time::Instant;

use ipc_channel::ipc;

use crate::harness::{median_us, per_op_ns};
use crate::message::{Large, Small, count, large};
use crate::rival::{Place, Rival};

/// Microseconds there and back.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    let (to_rival, at_rival) = ipc::channel::<Small>().expect("a channel");
    let (to_us, at_us) = ipc::channel::<Small>().expect("a channel");
    let _rival = Rival::start(|| {
        while let Ok(message) = at_rival.recv() {
            to_us.send(message).expect("a peer");
        }
    });
    let message = Small::new(1);
    median_us(20_000, || {
        to_rival.send(message).expect("a peer");
        assert_eq!(at_us.recv().expect("a peer"), message);
    })
}

/// Nanoseconds a typed message, one way.
pub(crate) fn small() -> f64 {
    let n = count(64);
    let (sender, receiver) = ipc::channel::<Small>().expect("a channel");
    let _rival = Rival::start(|| {
        for number in 0..=n as u64 {
            sender.send(Small::new(number)).expect("a peer");
        }
    });
    receiver.recv().expect("a peer");
    let started = Instant::now();
    for number in 1..=n as u64 {
        assert_eq!(receiver.recv().expect("a peer").number(), number);
    }
    per_op_ns(started.elapsed(), n)
}

/// Nanoseconds a message of bytes in a typed channel, one way.
pub(crate) fn typed_bytes(len: usize) -> f64 {
    let n = count(len);
    let (sender, receiver) = ipc::channel::<Large>().expect("a channel");
    let _rival = Rival::start(|| {
        for _ in 0..=n {
            sender.send(large(len)).expect("a peer");
        }
    });
    receiver.recv().expect("a peer");
    let started = Instant::now();
    for _ in 0..n {
        assert_eq!(receiver.recv().expect("a peer").len(), len);
    }
    per_op_ns(started.elapsed(), n)
}

/// Nanoseconds a message in the channel that is made for bytes, one way.
pub(crate) fn bytes(len: usize) -> f64 {
    let n = count(len);
    let (sender, receiver) = ipc::bytes_channel().expect("a channel");
    let _rival = Rival::start(|| {
        let message = vec![7; len];
        for _ in 0..=n {
            sender.send(&message).expect("a peer");
        }
    });
    receiver.recv().expect("a peer");
    let started = Instant::now();
    for _ in 0..n {
        assert_eq!(receiver.recv().expect("a peer").len(), len);
    }
    per_op_ns(started.elapsed(), n)
}
