//! What is measured, and what is claimed about it.

mod sync;

use tokio_multiprocess::StartMethod;

use crate::floor::{crowd, exit, fork_server, launch, pool};
use crate::harness::Contender::{self, Here, Python};
use crate::harness::{Claim, Row, Unit};
use crate::ours;

/// Everything that can be measured, by the name that the table shows.
pub(crate) fn contenders() -> Vec<(&'static str, Contender)> {
    [CONTENDERS, sync::CONTENDERS].concat()
}

const CONTENDERS: &[(&str, Contender)] = &[
    ("spawn", Here(ours::launch::by_spawn)),
    ("spawn, in turns", Here(ours::launch::by_spawn_in_turns)),
    (
        "tokio Command, in turns",
        Here(ours::launch::by_tokio_command_in_turns),
    ),
    ("spawn, 1 GiB", Here(ours::launch::by_spawn_with_memory)),
    (
        "spawn, 10,000 files",
        Here(ours::launch::by_spawn_with_files),
    ),
    (
        "spawn, 256 threads",
        Here(ours::launch::by_spawn_with_threads),
    ),
    ("fork", Here(ours::launch::by_fork)),
    ("fork server", Here(ours::launch::by_fork_server)),
    (
        "fork server, 1 GiB",
        Here(ours::launch::by_fork_server_with_memory),
    ),
    (
        "fork server, 10,000 files",
        Here(ours::launch::by_fork_server_with_files),
    ),
    (
        "fork server, 256 threads",
        Here(ours::launch::by_fork_server_with_threads),
    ),
    ("kill and wait", Here(ours::launch::exit)),
    ("256 by spawn", Here(ours::launch::many_by_spawn)),
    (
        "256 by fork server",
        Here(ours::launch::many_by_fork_server),
    ),
    ("map, 1e3", Here(|| ours::pool::map(2, 1_000))),
    ("map, 1e5", Here(|| ours::pool::map(2, 100_000))),
    ("map, 1e6", Here(|| ours::pool::map(2, 1_000_000))),
    ("map, 2 workers", Here(|| ours::pool::map(2, 200_000))),
    ("map, 256 workers", Here(|| ours::pool::map(256, 200_000))),
    (
        "imap_unordered",
        Here(|| ours::pool::imap_unordered(2, 200_000)),
    ),
    ("apply", Here(ours::pool::apply)),
    (
        "spawned worker",
        Here(|| ours::pool::memory(StartMethod::SPAWN)),
    ),
    (
        "forked worker",
        Here(|| ours::pool::memory(StartMethod::FORK_SERVER)),
    ),
    ("queue round trip", Here(ours::queue::round_trip)),
    (
        "queue, 64 B, 1 to 1",
        Here(|| ours::queue::items(1, 1_000_000, 64)),
    ),
    (
        "queue, 64 B, 4 to 4",
        Here(|| ours::queue::items(4, 400_000, 64)),
    ),
    (
        "queue, 1 KiB, 1 to 1",
        Here(|| ours::queue::items(1, 300_000, 1024)),
    ),
    (
        "queue, 64 KiB, 1 to 1",
        Here(|| ours::queue::items(1, 10_000, 65_536)),
    ),
    (
        "queue, 1 MiB, 1 to 1",
        Here(|| ours::queue::items(1, 1_000, 1 << 20)),
    ),
    ("queue, none stays", Here(|| ours::queue::backlog(2))),
    ("queue, half stay", Here(|| ours::queue::backlog(1))),
    ("floor: vfork + exec", Here(launch::by_vfork_exec)),
    (
        "floor: vfork + exec, 10,000 files",
        Here(crowd::vfork_exec_with_files),
    ),
    ("floor: fork", Here(launch::by_fork)),
    ("floor: fork, 1 GiB", Here(crowd::fork_with_memory)),
    (
        "floor: vfork + exec, 1 GiB",
        Here(crowd::vfork_exec_with_memory),
    ),
    (
        "floor: fork server, same duties, 1 GiB",
        Here(crowd::fork_server_with_memory),
    ),
    ("floor: bare fork server", Here(fork_server::bare)),
    (
        "floor: fork server, same duties",
        Here(fork_server::with_duties),
    ),
    ("floor: epoll + waitid", Here(exit::by_epoll)),
    (
        "floor: 256 by vfork + exec",
        Here(launch::many_by_vfork_exec),
    ),
    ("floor: 256 by fork", Here(launch::many_by_fork)),
    (
        "floor: raw tokio, window 512",
        Here(|| pool::tasks(2, 512, 1_000_000)),
    ),
    (
        "floor: raw tokio, 256 workers, window 512",
        Here(|| pool::tasks(256, 512, 200_000)),
    ),
    (
        "floor: raw tokio, window 64",
        Here(|| pool::tasks(2, 64, 200_000)),
    ),
    ("floor: raw tokio round trip", Here(pool::round_trip)),
    ("tokio Command", Here(launch::by_tokio_command)),
    ("tokio Child", Here(exit::by_tokio)),
    ("python: spawn", Python("process spawn 6")),
    ("python: fork", Python("process fork 50")),
    ("python: forkserver", Python("process forkserver 15")),
    ("python: Pool.map, 1e3", Python("map 2 1000")),
    ("python: Pool.map, 1e6", Python("map 2 1000000")),
    ("python: Pool.map, 256 workers", Python("map 256 200000")),
    ("python: imap_unordered", Python("imap_unordered 2 20000")),
    ("python: Pool.apply", Python("apply 1000")),
    ("python: Queue round trip", Python("queue_round_trip 3000")),
    ("python: Queue, 64 B", Python("queue Queue 1 50000 64")),
    (
        "python: SimpleQueue, 64 B",
        Python("queue SimpleQueue 1 50000 64"),
    ),
    (
        "python: Queue, 64 B, 4 to 4",
        Python("queue Queue 4 40000 64"),
    ),
    ("python: Queue, 1 KiB", Python("queue Queue 1 30000 1024")),
    ("python: Queue, 64 KiB", Python("queue Queue 1 5000 65536")),
    ("python: Queue, 1 MiB", Python("queue Queue 1 500 1048576")),
    ("python: spawned worker", Python("pss spawn 16")),
];

/// All claims, rows in order.
pub(crate) fn claims() -> Vec<Claim> {
    let mut claims = Vec::new();

    let mut row = Row::new(
        &mut claims,
        1,
        "start by exec, answer, join",
        Unit::Us,
        "spawn",
    );
    row.must("tokio Command", 1.2, 1.1);
    row.aim("python: spawn", 0.04);
    if cfg!(target_feature = "crt-static") {
        row.aim("floor: vfork + exec", 1.35);
    } else {
        row.show("floor: vfork + exec");
    }

    let work = "the same in turns, child by child";
    let mut row = Row::new(&mut claims, 1, work, Unit::Us, "spawn, in turns");
    row.must("tokio Command, in turns", 1.2, 1.1);

    let mut row = Row::new(
        &mut claims,
        2,
        "start by fork, answer, join",
        Unit::Us,
        "fork",
    );
    row.aim("floor: fork", 1.4);
    row.aim("python: fork", 0.2);

    let work = "start by fork server, answer, join";
    let mut row = Row::new(&mut claims, 3, work, Unit::Us, "fork server");
    row.must("floor: fork server, same duties", 1.3, 1.3);
    row.aim("floor: bare fork server", 1.4);
    row.aim("tokio Command", 0.25);
    row.aim("python: forkserver", 0.02);

    let work = "the same in a large application";
    let mut row = Row::new(&mut claims, 4, work, Unit::Us, "fork server, 1 GiB");
    row.must("fork server", 1.2, 1.2);
    row.show("floor: fork server, same duties, 1 GiB");
    row.aim("floor: fork, 1 GiB", 0.005);
    let mut row = Row::new(&mut claims, 4, work, Unit::Us, "fork server, 10,000 files");
    row.aim("fork server", 1.2);
    let mut row = Row::new(&mut claims, 4, work, Unit::Us, "fork server, 256 threads");
    row.aim("fork server", 1.2);
    let mut row = Row::new(&mut claims, 4, work, Unit::Us, "spawn, 1 GiB");
    row.aim("spawn", 1.15);
    row.show("floor: vfork + exec, 1 GiB");
    let mut row = Row::new(&mut claims, 4, work, Unit::Us, "spawn, 256 threads");
    row.aim("spawn", 1.15);
    let mut row = Row::new(&mut claims, 4, work, Unit::Us, "spawn, 10,000 files");
    row.aim("floor: vfork + exec, 10,000 files", 1.15);

    let work = "hear of the end of a killed child";
    let mut row = Row::new(&mut claims, 5, work, Unit::Us, "kill and wait");
    row.aim("tokio Child", 1.05);
    row.show("floor: epoll + waitid");

    // The goals of this row compare with another library; these are the floors of the same work.
    let work = "256 children up and answering, each";
    let mut row = Row::new(&mut claims, 6, work, Unit::Us, "256 by spawn");
    row.show("floor: 256 by vfork + exec");
    let mut row = Row::new(&mut claims, 6, work, Unit::Us, "256 by fork server");
    row.show("floor: 256 by fork");

    let work = "queue: round trip of 64 bytes";
    let mut row = Row::new(&mut claims, 7, work, Unit::Us, "queue round trip");
    row.must("python: Queue round trip", 1.0, 0.25);

    let work = "queue: an item of 64 bytes";
    let mut row = Row::new(&mut claims, 9, work, Unit::Ns, "queue, 64 B, 1 to 1");
    row.must("python: Queue, 64 B", 0.1, 0.022);
    row.show("python: SimpleQueue, 64 B");
    row.figure(Some(234.0), 70.0);
    let mut row = Row::new(&mut claims, 9, work, Unit::Ns, "queue, 64 B, 4 to 4");
    row.must("python: Queue, 64 B, 4 to 4", 0.1, 0.05);

    let work = "queue: a backlog of 20,000 grows";
    let mut row = Row::new(&mut claims, 9, work, Unit::Ns, "queue, half stay");
    row.show("queue, none stays");
    let work = "queue: an item of 1 KiB";
    let mut row = Row::new(&mut claims, 10, work, Unit::Ns, "queue, 1 KiB, 1 to 1");
    row.aim("python: Queue, 1 KiB", 0.05);

    let work = "queue: an item of 64 KiB";
    let mut row = Row::new(&mut claims, 11, work, Unit::Ns, "queue, 64 KiB, 1 to 1");
    row.aim("python: Queue, 64 KiB", 0.1);

    let work = "queue: an item of 1 MiB";
    let mut row = Row::new(&mut claims, 12, work, Unit::Ns, "queue, 1 MiB, 1 to 1");
    row.must("python: Queue, 1 MiB", 0.1, 0.05);

    let mut row = Row::new(
        &mut claims,
        14,
        "map over 1e6 tiny tasks",
        Unit::Ns,
        "map, 1e6",
    );
    row.must("python: Pool.map, 1e6", 1.0, 0.4);
    row.show("floor: raw tokio, window 512");
    row.figure(None, 40.0);

    let work = "tiny tasks as a stream, one by one";
    let mut row = Row::new(&mut claims, 15, work, Unit::Ns, "imap_unordered");
    row.must("python: imap_unordered", 0.05, 0.033);
    row.aim("floor: raw tokio, window 64", 2.0);

    let mut row = Row::new(
        &mut claims,
        16,
        "one call to an idle pool",
        Unit::Us,
        "apply",
    );
    row.must("floor: raw tokio round trip", 1.3, 1.15);
    row.aim("python: Pool.apply", 0.42);

    let work = "map with many workers";
    let mut row = Row::new(&mut claims, 19, work, Unit::Ns, "map, 256 workers");
    row.aim("map, 2 workers", 1.3);
    row.aim("python: Pool.map, 256 workers", 0.1);
    row.show("floor: raw tokio, 256 workers, window 512");

    let mut row = Row::new(
        &mut claims,
        20,
        "map over few and many tasks",
        Unit::Ns,
        "map, 1e3",
    );
    row.aim("python: Pool.map, 1e3", 0.25);
    let mut row = Row::new(
        &mut claims,
        20,
        "map over few and many tasks",
        Unit::Ns,
        "map, 1e6",
    );
    row.aim("map, 1e5", 1.1);

    let work = "memory of an idle worker";
    let mut row = Row::new(&mut claims, 21, work, Unit::KiB, "spawned worker");
    row.figure(None, 400.0);
    row.aim("python: spawned worker", 0.05);
    let mut row = Row::new(&mut claims, 21, work, Unit::KiB, "forked worker");
    row.show("spawned worker");

    sync::claim(&mut claims);
    claims
}
