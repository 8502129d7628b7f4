//! What holds for a pipe between a process and its child, whichever way the child was started.
//!
//! Each function here is a test that is told the way. `super` runs them for the two safe methods,
//! and the fork's own program for the third. Nobody here has a runtime.

use std::fs::File;
use std::io::{Read, Seek, Write};

use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::pipe::{self, PipeReceiver, PipeSender};
use tokio_multiprocess::{AsyncPipe, RecvError, SendFailure};

use crate::process::suite::By;
use crate::soon;

type Echo = AsyncPipe<Vec<u8>, Vec<u8>>;

pub(crate) async fn messages_of_every_length_go_there_and_back(by: By) {
    fn echo((pipe, n_messages): (Echo, usize)) {
        for _ in 0..n_messages {
            pipe.blocking_send(pipe.blocking_recv().unwrap()).unwrap();
            let bytes = pipe.blocking_recv_bytes().unwrap();
            pipe.blocking_send_bytes(&bytes).unwrap();
        }
    }
    let (here, there) = Echo::pair().unwrap();
    let lengths = [0, 1, 63, 1000, 1025, 4096, 8193, 70_000, 300_000];
    let child = by.start(echo, (there, lengths.len())).await;
    for len in lengths {
        let message: Vec<u8> = (0..len).map(|i| i as u8).collect();
        here.blocking_send(message.clone()).unwrap();
        assert!(here.blocking_recv().unwrap() == message, "value of {len}");
        let bytes = message.repeat(8);
        here.blocking_send_bytes(&bytes).unwrap();
        assert!(
            here.blocking_recv_bytes().unwrap() == bytes,
            "bytes of {len}"
        );
    }
    assert!(matches!(here.blocking_recv(), Err(RecvError::Closed)));
    soon(child.join()).await.unwrap();
}

pub(crate) async fn the_end_of_a_child_is_the_end_of_its_pipe(by: By) {
    fn say((rx, tx): (PipeReceiver<u8>, PipeSender<u8>)) -> u8 {
        tx.blocking_send(1).unwrap();
        rx.blocking_recv().unwrap()
    }
    let (to_child, in_child) = pipe::one_way().unwrap();
    let (from_child, here) = pipe::one_way().unwrap();
    let child = by.start(say, (in_child, from_child)).await;
    assert_eq!(here.blocking_recv().unwrap(), 1);
    to_child.blocking_send(2).unwrap();
    assert!(matches!(here.blocking_recv(), Err(RecvError::Closed)));
    assert_eq!(soon(child.join()).await.unwrap(), 2);
    let refused = to_child.blocking_send(3).unwrap_err();
    assert!(matches!(refused.failure, SendFailure::Closed));
    assert_eq!(refused.into_inner(), 3);
}

/// For the safe ways only: a forked child has inherited the end that its parent closes.
#[allow(dead_code, reason = "see above")]
pub(crate) async fn what_a_parent_has_sent_before_it_closed_its_end_arrives(by: By) {
    fn count(rx: PipeReceiver<Vec<u8>>) -> (u32, bool) {
        let mut n_messages = 0;
        loop {
            match rx.blocking_recv() {
                Ok(_) => n_messages += 1,
                Err(error) => return (n_messages, matches!(error, RecvError::Closed)),
            }
        }
    }
    let (tx, rx) = pipe::one_way().unwrap();
    tx.blocking_send(b"before".to_vec()).unwrap();
    let child = by.start(count, rx).await;
    tx.blocking_send(b"after".to_vec()).unwrap();
    drop(tx);
    assert_eq!(soon(child.join()).await.unwrap(), (2, true));
}

pub(crate) async fn a_child_that_is_killed_leaves_whole_messages_in_order(by: By) {
    fn count(tx: PipeSender<(u64, Vec<u8>)>) {
        for number in 0.. {
            let message = (number, vec![number as u8; 3000]);
            tx.blocking_send(message).unwrap();
        }
    }
    let (tx, rx) = pipe::one_way().unwrap();
    let child = by.start(count, tx).await;
    let mut received = 0;
    loop {
        match rx.blocking_recv() {
            Ok((number, bytes)) => {
                assert_eq!(number, received);
                assert!(bytes == [number as u8; 3000]);
                received += 1;
            }
            Err(RecvError::Closed | RecvError::Torn) => break,
            Err(error) => panic!("{error}"),
        }
        if received == 100 {
            child.kill().unwrap();
        }
    }
    assert!(received >= 100);
    soon(child.wait()).await;
}

pub(crate) async fn an_end_in_a_message_works_where_it_arrives_and_comes_back(by: By) {
    type End = PipeReceiver<u32>;
    fn add((orders, tx): (PipeReceiver<End>, PipeSender<u32>)) -> End {
        let end = orders.blocking_recv().unwrap();
        let sum = (0..3).map(|_| end.blocking_recv().unwrap()).sum();
        tx.blocking_send(sum).unwrap();
        end
    }
    let (orders, in_child) = pipe::one_way().unwrap();
    let (from_child, sums) = pipe::one_way().unwrap();
    let child = by.start(add, (in_child, from_child)).await;
    let (numbers, end) = pipe::one_way().unwrap();
    numbers.blocking_send(1).unwrap();
    orders.blocking_send(end).unwrap();
    numbers.blocking_send(2).unwrap();
    numbers.blocking_send(3).unwrap();
    assert_eq!(sums.blocking_recv().unwrap(), 6);
    numbers.blocking_send(4).unwrap();
    let end = soon(child.join()).await.unwrap();
    assert_eq!(end.blocking_recv().unwrap(), 4);
    drop(numbers);
    assert!(matches!(end.blocking_recv(), Err(RecvError::Closed)));
}

pub(crate) async fn files_travel_in_messages_in_any_number(by: By) {
    fn write((rx, tx): (PipeReceiver<Fd<File>>, PipeSender<Vec<Fd<File>>>)) {
        let mut file = rx.blocking_recv().unwrap();
        file.write_all(b"from the child").unwrap();
        // More than one system call takes.
        for n_files in [0, 1, 300] {
            let files = (0..n_files).map(|_| Fd(file.try_clone().unwrap()));
            tx.blocking_send(files.collect()).unwrap();
        }
    }
    let (to_child, in_child) = pipe::one_way().unwrap();
    let (from_child, here) = pipe::one_way().unwrap();
    let child = by.start(write, (in_child, from_child)).await;
    let memory = nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    to_child
        .blocking_send(Fd(File::from(memory.unwrap())))
        .unwrap();
    for n_files in [0, 1, 300] {
        let files = here.blocking_recv().unwrap();
        assert_eq!(files.len(), n_files);
        if let Some(Fd(mut file)) = files.into_iter().next_back() {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "from the child");
        }
    }
    soon(child.join()).await.unwrap();
}
