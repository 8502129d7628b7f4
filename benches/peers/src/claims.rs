//! What is measured, and what is claimed about it.

use crate::harness::Contender::{self, Here, Python};
use crate::harness::{Claim, Row, Unit};
use crate::rival::Place::{Anywhere, OneCore};
use crate::{iceoryx2, ipc_channel, ours, queue, raw, remoc, tokio_unix_ipc};

const K64: usize = 64 << 10;
const M1: usize = 1 << 20;
const M64: usize = 64 << 20;

/// Everything that can be measured, by the name that the table shows.
pub(crate) const CONTENDERS: &[(&str, Contender)] = &[
    ("round trip", Here(|| ours::round_trip(OneCore))),
    ("round trip, two cores", Here(|| ours::round_trip(Anywhere))),
    ("fed, 64 B", Here(ours::small)),
    ("fed, 1 KiB", Here(|| ours::typed_bytes(1024))),
    ("bytes, 64 KiB", Here(|| us(ours::bytes(K64)))),
    ("bytes, 1 MiB", Here(|| us(ours::bytes(M1)))),
    ("bytes, 64 MiB", Here(|| us(ours::bytes(M64)))),
    ("floor: raw READABLE", Here(|| raw::round_trip(OneCore))),
    (
        "floor: raw READABLE, two cores",
        Here(|| raw::round_trip(Anywhere)),
    ),
    (
        "tokio UnixStream",
        Here(|| raw::round_trip_unix_stream(OneCore)),
    ),
    (
        "tokio UnixStream, two cores",
        Here(|| raw::round_trip_unix_stream(Anywhere)),
    ),
    (
        "floor: UnixStream in 64 KiB, 64 B",
        Here(|| raw::one_way(64)),
    ),
    (
        "floor: UnixStream in 64 KiB, 1 KiB",
        Here(|| raw::one_way(1024)),
    ),
    ("floor: UnixStream, 64 KiB", Here(|| us(raw::one_way(K64)))),
    ("floor: UnixStream, 1 MiB", Here(|| us(raw::one_way(M1)))),
    ("floor: UnixStream, 64 MiB", Here(|| us(raw::one_way(M64)))),
    ("ipc-channel", Here(|| ipc_channel::round_trip(OneCore))),
    (
        "ipc-channel, two cores",
        Here(|| ipc_channel::round_trip(Anywhere)),
    ),
    ("ipc-channel, 64 B", Here(ipc_channel::small)),
    (
        "ipc-channel, 1 KiB",
        Here(|| ipc_channel::typed_bytes(1024)),
    ),
    (
        "ipc-channel bytes, 64 KiB",
        Here(|| us(ipc_channel::bytes(K64))),
    ),
    (
        "ipc-channel bytes, 1 MiB",
        Here(|| us(ipc_channel::bytes(M1))),
    ),
    (
        "ipc-channel bytes, 64 MiB",
        Here(|| us(ipc_channel::bytes(M64))),
    ),
    (
        "tokio-unix-ipc",
        Here(|| tokio_unix_ipc::round_trip(OneCore)),
    ),
    (
        "tokio-unix-ipc, two cores",
        Here(|| tokio_unix_ipc::round_trip(Anywhere)),
    ),
    ("tokio-unix-ipc, 64 B", Here(tokio_unix_ipc::small)),
    (
        "tokio-unix-ipc, 1 KiB",
        Here(|| tokio_unix_ipc::typed_bytes(1024)),
    ),
    (
        "tokio-unix-ipc raw, 64 KiB",
        Here(|| us(tokio_unix_ipc::raw(K64))),
    ),
    (
        "tokio-unix-ipc raw, 1 MiB",
        Here(|| us(tokio_unix_ipc::raw(M1))),
    ),
    (
        "tokio-unix-ipc raw, 64 MiB",
        Here(|| us(tokio_unix_ipc::raw(M64))),
    ),
    ("remoc", Here(|| remoc::round_trip(OneCore))),
    ("remoc, two cores", Here(|| remoc::round_trip(Anywhere))),
    ("remoc, 64 B", Here(remoc::small)),
    ("remoc, 1 KiB", Here(|| remoc::bytes(1024))),
    ("remoc, 64 KiB", Here(|| us(remoc::bytes(K64)))),
    ("remoc, 1 MiB", Here(|| us(remoc::bytes(M1)))),
    (
        "iceoryx2 polling, two cores",
        Here(|| iceoryx2::round_trip(Anywhere)),
    ),
    ("iceoryx2 polling, 64 B", Here(|| iceoryx2::one_way(64))),
    ("iceoryx2 polling, 1 KiB", Here(|| iceoryx2::one_way(1024))),
    (
        "iceoryx2 polling, 64 KiB",
        Here(|| us(iceoryx2::one_way(K64))),
    ),
    (
        "iceoryx2 polling, 1 MiB",
        Here(|| us(iceoryx2::one_way(M1))),
    ),
    ("queue round trip", Here(|| queue::round_trip(OneCore))),
    (
        "queue round trip, two cores",
        Here(|| queue::round_trip(Anywhere)),
    ),
    ("queue, 64 B", Here(queue::small)),
    ("queue, 1 KiB", Here(|| queue::text(1024))),
    ("queue, 64 KiB", Here(|| us(queue::text(K64)))),
    ("queue, 1 MiB", Here(|| us(queue::text(M1)))),
    ("python: Queue", Python("queue_round_trip Queue one_core")),
    (
        "python: Queue, two cores",
        Python("queue_round_trip Queue anywhere"),
    ),
    (
        "python: SimpleQueue",
        Python("queue_round_trip SimpleQueue one_core"),
    ),
    (
        "python: SimpleQueue, two cores",
        Python("queue_round_trip SimpleQueue anywhere"),
    ),
    ("python: Queue, 64 B", Python("queue Queue 64 100000 ns")),
    (
        "python: SimpleQueue, 64 B",
        Python("queue SimpleQueue 64 100000 ns"),
    ),
    ("python: Queue, 1 KiB", Python("queue Queue 1024 50000 ns")),
    ("python: Queue, 64 KiB", Python("queue Queue 65536 5000 us")),
    ("python: Queue, 1 MiB", Python("queue Queue 1048576 500 us")),
    ("python: Pipe", Python("round_trip one_core")),
    ("python: Pipe, two cores", Python("round_trip anywhere")),
    ("python: Pipe, 64 B", Python("one_way 64 200000 ns")),
    ("python: Pipe, 1 KiB", Python("one_way 1024 100000 ns")),
    ("python: Pipe, 64 KiB", Python("one_way 65536 10000 us")),
    ("python: Pipe, 1 MiB", Python("one_way 1048576 1000 us")),
    ("python: Pipe, 64 MiB", Python("one_way 67108864 20 us")),
];

/// All claims, rows in order. The bounds are what sockets can do; shared memory goes further.
pub(crate) fn claims() -> Vec<Claim> {
    let mut claims = Vec::new();

    let work = "64 B there and back, one core";
    let mut row = Row::new(&mut claims, 7, work, Unit::Us, "round trip");
    row.must("floor: raw READABLE", 1.25, 1.15);
    row.aim("tokio UnixStream", 0.92);
    row.aim("tokio-unix-ipc", 0.6);
    row.show("ipc-channel");
    row.show("remoc");
    row.show("python: Pipe");

    let work = "64 B there and back, two cores";
    let mut row = Row::new(&mut claims, 8, work, Unit::Us, "round trip, two cores");
    row.must("floor: raw READABLE, two cores", 1.25, 1.05);
    row.show("tokio UnixStream, two cores");
    row.show("tokio-unix-ipc, two cores");
    row.show("ipc-channel, two cores");
    row.show("remoc, two cores");
    row.show("iceoryx2 polling, two cores");
    row.show("python: Pipe, two cores");

    let mut row = Row::new(&mut claims, 9, "64 B one way", Unit::Ns, "fed, 64 B");
    row.figure(Some(100.0), 70.0);
    row.show("floor: UnixStream in 64 KiB, 64 B");
    row.aim("iceoryx2 polling, 64 B", 1.0 / 3.0);
    row.aim("ipc-channel, 64 B", 1.0 / 12.0);
    row.show("tokio-unix-ipc, 64 B");
    row.show("remoc, 64 B");
    row.aim("python: Pipe, 64 B", 1.0 / 20.0);

    let mut row = Row::new(&mut claims, 10, "1 KiB one way", Unit::Ns, "fed, 1 KiB");
    row.aim("floor: UnixStream in 64 KiB, 1 KiB", 1.3);
    row.aim("ipc-channel, 1 KiB", 1.0 / 6.0);
    row.show("tokio-unix-ipc, 1 KiB");
    row.show("remoc, 1 KiB");
    row.show("iceoryx2 polling, 1 KiB");
    row.show("python: Pipe, 1 KiB");

    let mut row = Row::new(&mut claims, 11, "64 KiB one way", Unit::Us, "bytes, 64 KiB");
    row.must("ipc-channel bytes, 64 KiB", 1.0, 1.0);
    row.must("tokio-unix-ipc raw, 64 KiB", 1.0, 1.0);
    row.aim("floor: UnixStream, 64 KiB", 1.0);
    row.show("remoc, 64 KiB");
    row.show("iceoryx2 polling, 64 KiB");
    row.show("python: Pipe, 64 KiB");

    let mut row = Row::new(&mut claims, 12, "1 MiB one way", Unit::Us, "bytes, 1 MiB");
    row.must("ipc-channel bytes, 1 MiB", 1.0, 1.0);
    row.must("tokio-unix-ipc raw, 1 MiB", 1.0, 1.0 / 1.5);
    row.show("floor: UnixStream, 1 MiB");
    row.show("remoc, 1 MiB");
    row.show("iceoryx2 polling, 1 MiB");
    row.show("python: Pipe, 1 MiB");

    let mut row = Row::new(&mut claims, 13, "64 MiB one way", Unit::Us, "bytes, 64 MiB");
    row.aim("ipc-channel bytes, 64 MiB", 0.5);
    row.aim("tokio-unix-ipc raw, 64 MiB", 0.5);
    row.show("floor: UnixStream, 64 MiB");
    row.show("python: Pipe, 64 MiB");

    queues(&mut claims);
    claims
}

/// The same rows for queues.
fn queues(claims: &mut Vec<Claim>) {
    let work = "queue: 64 B there and back, one core";
    let mut row = Row::new(claims, 7, work, Unit::Us, "queue round trip");
    row.must("python: Queue", 1.0, 0.25);
    row.must("python: SimpleQueue", 1.0, 0.65);
    row.aim("tokio UnixStream", 0.65);
    row.show("ipc-channel");

    let work = "queue: 64 B there and back, two cores";
    let mut row = Row::new(claims, 8, work, Unit::Us, "queue round trip, two cores");
    row.must("python: Queue, two cores", 1.0, 0.15);
    row.must("python: SimpleQueue, two cores", 1.0, 0.15);
    row.aim("ipc-channel, two cores", 0.15);
    row.aim("iceoryx2 polling, two cores", 1.0);

    let work = "queue: 64 B one way";
    let mut row = Row::new(claims, 9, work, Unit::Ns, "queue, 64 B");
    row.must("python: Queue, 64 B", 0.1, 1.0 / 45.0);
    row.must("python: SimpleQueue, 64 B", 0.1, 0.1);
    row.must("iceoryx2 polling, 64 B", 1.0, 1.0 / 3.0);
    row.aim("ipc-channel, 64 B", 1.0 / 12.0);

    let mut row = Row::new(claims, 10, "queue: 1 KiB one way", Unit::Ns, "queue, 1 KiB");
    row.must("python: Queue, 1 KiB", 0.1, 0.05);
    row.aim("ipc-channel, 1 KiB", 1.0 / 6.0);
    row.show("iceoryx2 polling, 1 KiB");

    let mut row = Row::new(
        claims,
        11,
        "queue: 64 KiB one way",
        Unit::Us,
        "queue, 64 KiB",
    );
    row.must("python: Queue, 64 KiB", 0.1, 0.05);
    row.aim("ipc-channel bytes, 64 KiB", 1.0 / 3.0);
    row.show("iceoryx2 polling, 64 KiB");

    let mut row = Row::new(claims, 12, "queue: 1 MiB one way", Unit::Us, "queue, 1 MiB");
    row.must("python: Queue, 1 MiB", 0.1, 0.05);
    row.aim("tokio-unix-ipc raw, 1 MiB", 0.4);
    row.show("ipc-channel bytes, 1 MiB");
    row.show("iceoryx2 polling, 1 MiB");
}

fn us(ns: f64) -> f64 {
    ns / 1000.0
}
