//! Pipes: whole messages, in order, whatever happens to those who send and receive them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::{FutureExt, SinkExt, StreamExt};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde::{Deserialize, Serialize};
use tokio_multiprocess::pipe::{self, DEFAULT_LIMIT};
use tokio_multiprocess::{AsyncPipe, RecvError, SendFailure, TryRecvError};

use crate::alone::alone;
use crate::process::suite::By;
use crate::soon;

mod between;
mod rivals;

macro_rules! by_both_safe_ways {
    ($($test:ident)*) => {
        mod spawn {
            $(#[tokio::test]
            async fn $test() {
                super::without_a_runtime(super::between::$test(super::By::Spawn)).await;
            })*
        }

        mod fork_server {
            $(#[tokio::test]
            async fn $test() {
                super::without_a_runtime(super::between::$test(super::By::ForkServer)).await;
            })*
        }
    };
}

by_both_safe_ways! {
    messages_of_every_length_go_there_and_back
    the_end_of_a_child_is_the_end_of_its_pipe
    what_a_parent_has_sent_before_it_closed_its_end_arrives
    a_child_that_is_killed_leaves_whole_messages_in_order
    an_end_in_a_message_works_where_it_arrives_and_comes_back
    files_travel_in_messages_in_any_number
}

/// On a thread that may block.
async fn without_a_runtime(test: impl Future<Output = ()> + Send + 'static) {
    let blocking = tokio::task::spawn_blocking(|| futures::executor::block_on(test));
    soon(blocking).await.unwrap();
}

#[tokio::test]
async fn a_message_arrives_as_it_was() {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Message {
        Nothing,
        Number(i64),
        Words(Vec<String>),
    }
    let (here, there) = AsyncPipe::<Message, Message>::pair().unwrap();
    let messages = [
        Message::Nothing,
        Message::Number(-7),
        Message::Words(vec!["one".to_owned(), String::new()]),
    ];

    for message in &messages {
        here.send(message.clone()).await.unwrap();
        there.send(message.clone()).await.unwrap();
    }

    for message in &messages {
        assert_eq!(&soon(there.recv()).await.unwrap(), message);
        assert_eq!(&soon(here.recv()).await.unwrap(), message);
    }
}

#[tokio::test]
async fn empty_messages_are_messages() {
    let (tx, rx) = pipe::one_way::<()>().unwrap();

    tx.send(()).await.unwrap();
    tx.send_bytes(b"").await.unwrap();
    drop(tx);

    soon(rx.readable()).await;
    soon(rx.readable()).await;
    rx.recv().await.unwrap();
    assert_eq!(rx.recv_bytes().await.unwrap(), "");
    assert!(matches!(rx.recv().await, Err(RecvError::Closed)));
}

#[tokio::test]
async fn messages_are_neither_merged_nor_cut() {
    let (tx, rx) = pipe::one_way::<()>().unwrap();
    let texts = ["", "a", "", "boundary", &"long ".repeat(100_000), ""];
    let expected = texts.map(str::to_owned);

    let sender = tokio::spawn(async move {
        for text in expected {
            tx.send_bytes(text.as_bytes()).await.unwrap();
        }
    });

    for text in texts {
        assert!(soon(rx.recv_bytes()).await.unwrap() == text.as_bytes());
    }
    assert!(matches!(rx.recv_bytes().await, Err(RecvError::Closed)));
    sender.await.unwrap();
}

#[tokio::test]
async fn readable_waits_for_a_whole_message_and_takes_nothing() {
    let (tx, rx) = pipe::one_way::<u8>().unwrap();
    assert!(rx.readable().now_or_never().is_none());

    tx.send(1).await.unwrap();

    for _ in 0..3 {
        soon(rx.readable()).await;
    }
    assert_eq!(rx.recv().await.unwrap(), 1);
    assert!(rx.readable().now_or_never().is_none());
    drop(tx);
    soon(rx.readable()).await;
}

#[tokio::test]
async fn the_end_comes_behind_the_last_message() {
    let (tx, rx) = pipe::one_way::<u8>().unwrap();

    tx.feed(1).await.unwrap();
    tx.send(2).await.unwrap();
    tx.feed(3).await.unwrap();
    drop(tx);

    for expected in 1..=3 {
        assert_eq!(soon(rx.recv()).await.unwrap(), expected);
    }
    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Closed)));
    assert!(matches!(rx.recv().await, Err(RecvError::Closed)));
}

#[tokio::test]
async fn a_sender_whose_receiver_is_gone_gets_its_value_back() {
    let (tx, rx) = pipe::one_way::<String>().unwrap();
    drop(rx);

    let refused = soon(tx.send("value".to_owned())).await.unwrap_err();

    assert!(refused.is_closed());
    assert_eq!(refused.to_string(), "the pipe is closed");
    assert_eq!(refused.into_inner(), "value");
    assert!(matches!(
        tx.send_bytes(b"x").await,
        Err(SendFailure::Closed)
    ));
}

#[tokio::test]
async fn a_sender_that_waits_for_room_learns_that_the_receiver_is_gone() {
    let (tx, rx) = pipe::one_way::<()>().unwrap();
    let sender = tokio::spawn(async move { tx.send_bytes(&vec![0; 10 << 20]).await });

    drop(rx);

    assert!(matches!(
        soon(sender).await.unwrap(),
        Err(SendFailure::Closed)
    ));
}

#[tokio::test]
async fn try_recv_tells_nothing_yet_from_never() {
    let (tx, rx) = pipe::one_way::<u8>().unwrap();
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));

    tx.try_send(1).unwrap();

    assert_eq!(rx.try_recv().unwrap(), 1);
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
    drop(tx);
    assert!(matches!(
        rx.try_recv(),
        Err(TryRecvError::Failed(RecvError::Closed))
    ));
}

#[tokio::test]
async fn a_full_pipe_holds_the_sender_back_and_loses_nothing() {
    let (tx, rx) = pipe::one_way::<u32>().unwrap();
    let mut n_sent = 0;
    while let Ok(()) = tx.try_send(n_sent) {
        n_sent += 1;
    }
    assert!(tx.send(n_sent).now_or_never().is_none());
    assert!(tx.try_send(0).unwrap_err().is_full());

    for expected in 0..n_sent {
        assert_eq!(soon(rx.recv()).await.unwrap(), expected);
    }
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_on_both_sides() {
    let (tx, rx) = pipe::one_way::<Vec<u64>>().unwrap();
    assert_eq!((tx.limit(), rx.limit()), (DEFAULT_LIMIT, DEFAULT_LIMIT));
    tx.set_limit(1000);

    let refused = tx.send(vec![u64::MAX; 1000]).await.unwrap_err();
    assert!(matches!(
        refused.failure,
        SendFailure::TooLong {
            len: 8008,
            limit: 1000
        }
    ));

    tx.set_limit(10_000);
    rx.set_limit(8007);
    tx.send(refused.into_inner()).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(
            soon(rx.recv()).await,
            Err(RecvError::TooLong {
                len: 8008,
                limit: 8007
            })
        ));
    }
    rx.set_limit(8008);
    assert_eq!(soon(rx.recv()).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_value_that_cannot_be_encoded_fails_for_its_sender_alone() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Unsized {
        #[serde(serialize_with = "refuse")]
        number: u8,
    }
    fn refuse<S: serde::Serializer>(number: &u8, s: S) -> Result<S::Ok, S::Error> {
        match number {
            0 => Err(serde::ser::Error::custom("zero is not sent")),
            number => s.serialize_u8(*number),
        }
    }
    let (tx, rx) = pipe::one_way::<Unsized>().unwrap();

    let refused = tx.send(Unsized { number: 0 }).await.unwrap_err();
    tx.send(Unsized { number: 1 }).await.unwrap();

    assert_eq!(
        refused.to_string(),
        "the message cannot be encoded: zero is not sent"
    );
    assert_eq!(soon(rx.recv()).await.unwrap().number, 1);
}

#[tokio::test]
async fn a_message_that_is_no_such_value_is_lost_and_the_next_one_comes() {
    let (tx, rx) = pipe::one_way::<(bool, String)>().unwrap();
    tx.send_bytes(&[7]).await.unwrap();
    tx.send((true, "next".to_owned())).await.unwrap();
    tx.send((false, "last".to_owned())).await.unwrap();

    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Decode(_))));
    assert!(soon(rx.recv()).await.unwrap().0);
    assert!(matches!(
        soon(rx.recv_bytes()).await,
        Err(RecvError::Decode(_))
    ));
}

#[tokio::test]
async fn a_stream_and_a_sink_carry_many_messages() {
    let (mut here, there) = AsyncPipe::<u32, u32>::pair().unwrap();
    let doubled = tokio::spawn(async move {
        let (mut tx, rx) = there.split();
        let mut doubled = rx.map(|number| Ok(number.unwrap() * 2));
        tx.send_all(&mut doubled).await.unwrap();
    });

    for number in 0..10_000 {
        SinkExt::feed(&mut here, number).await.unwrap();
    }
    SinkExt::<u32>::close(&mut here).await.unwrap();

    let received: Vec<u32> = soon((&mut here).map(Result::unwrap).collect()).await;
    assert!(received.iter().copied().eq((0..10_000).map(|x| 2 * x)));
    assert!(here.next().await.is_none());
    doubled.await.unwrap();
}

#[tokio::test]
async fn each_half_ends_by_itself() {
    let (here, there) = AsyncPipe::<u8, u8>::pair().unwrap();
    let (tx, rx) = here.split();

    drop(tx);
    assert!(matches!(soon(there.recv()).await, Err(RecvError::Closed)));
    there.send(1).await.unwrap();
    assert_eq!(soon(rx.recv()).await.unwrap(), 1);

    drop(rx);
    assert!(there.send(2).await.unwrap_err().is_closed());
}

#[test]
fn threads_without_a_runtime_can_send_and_receive() {
    let (here, there) = AsyncPipe::<Vec<u8>, usize>::pair().unwrap();
    let answers = std::thread::spawn(move || {
        while let Ok(bytes) = there.blocking_recv() {
            there.blocking_send(bytes.len()).unwrap();
        }
        there.blocking_send_bytes(&[7; 3 << 20]).unwrap();
    });

    for len in [0, 1, 1 << 16, 3 << 20] {
        here.blocking_send(vec![0; len]).unwrap();
        assert_eq!(here.blocking_recv().unwrap(), len);
    }
    let (tx, rx) = here.split();
    drop(tx);
    assert_eq!(rx.blocking_recv_bytes().unwrap(), vec![7; 3 << 20]);
    assert!(matches!(rx.blocking_recv_bytes(), Err(RecvError::Closed)));
    answers.join().unwrap();
}

#[test]
fn an_end_works_in_every_runtime_and_after_one_was_dropped() {
    let (here, there) = AsyncPipe::<u32, u32>::pair().unwrap();
    for round in 0..4 {
        let mut builder = match round % 2 {
            0 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async {
            // Registered, and cut off in the middle.
            assert!(here.recv().now_or_never().is_none());
            assert!(there.recv().now_or_never().is_none());
            let (sent, received) =
                soon(async { tokio::join!(there.send(round), here.recv()) }).await;
            sent.unwrap();
            assert_eq!(received.unwrap(), round);
        });
    }
}

#[test]
fn a_receiver_in_one_runtime_and_a_sender_in_another_share_an_end() {
    let (here, there) = AsyncPipe::<u32, u32>::pair().unwrap();
    let (here, echo) = (Arc::new(here), Arc::new(there));
    let run = |future: Pin<Box<dyn Future<Output = ()> + Send>>| {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(soon(future));
        })
    };
    let sender = here.clone();
    let threads = [
        run(Box::pin(async move {
            for number in 0..1000 {
                sender.send(number).await.unwrap();
            }
        })),
        run(Box::pin(async move {
            for number in 0..1000 {
                assert_eq!(here.recv().await.unwrap(), number);
            }
        })),
        run(Box::pin(async move {
            for _ in 0..1000 {
                echo.send(echo.recv().await.unwrap()).await.unwrap();
            }
        })),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_concurrent_senders_are_neither_torn_nor_mixed() {
    const N_SENDERS: u64 = 16;
    const N_EACH: u64 = 60;
    /// Starts with its sender and number, and the rest tells them again and again.
    fn message(sender: u64, number: u64, len: usize) -> Vec<u8> {
        let mark = [sender as u8, number as u8];
        mark.repeat(1 + len / 2)
    }
    let (tx, rx) = pipe::one_way::<()>().unwrap();
    let tx = Arc::new(tx);
    for sender in 0..N_SENDERS {
        let tx = tx.clone();
        tokio::spawn(async move {
            let mut random = Random(sender + 1);
            for number in 0..N_EACH {
                let len = match number % 6 {
                    0 => random.below(1 << 20),
                    1 => random.below(1 << 16),
                    _ => random.below(300),
                };
                let bytes = message(sender, number, len);
                tx.send_bytes(&bytes).await.unwrap();
            }
        });
    }
    drop(tx);

    let mut next = HashMap::new();
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    for _ in 0..N_SENDERS * N_EACH {
        let received = tokio::time::timeout_at(limit, rx.recv_bytes());
        let bytes = received.await.unwrap().unwrap();
        let (sender, number) = (bytes[0], bytes[1]);
        let expected = next.entry(sender).or_insert(0);
        assert_eq!(number, *expected);
        *expected += 1;
        assert!(bytes.chunks(2).all(|mark| mark == [sender, number]));
    }
    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_receivers_share_the_messages() {
    let (tx, rx) = pipe::one_way::<u32>().unwrap();
    let rx = Arc::new(rx);
    let receivers: Vec<_> = (0..8)
        .map(|_| {
            let rx = rx.clone();
            tokio::spawn(async move {
                let mut received = Vec::new();
                while let Ok(number) = rx.recv().await {
                    received.push(number);
                }
                received
            })
        })
        .collect();

    for number in 0..10_000 {
        tx.feed(number).await.unwrap();
        if number % 97 == 0 {
            tx.flush().await.unwrap();
        }
    }
    drop(tx);

    let mut all = Vec::new();
    for receiver in receivers {
        let received = soon(receiver).await.unwrap();
        assert!(received.is_sorted());
        all.extend(received);
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..10_000));
}

/// A gigabyte by hand: `HUGE=1073741824`.
fn huge_length() -> usize {
    let len = std::env::var("HUGE");
    len.map_or(256 << 20, |len| len.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_message_arrives_whole_where_the_limit_allows_it() {
    const PART: usize = 1 << 20;
    /// A part that no other is like.
    fn part(number: usize) -> Vec<u8> {
        let mut part = vec![number as u8; PART];
        part[..8].copy_from_slice(&number.to_le_bytes());
        part
    }
    let len = huge_length();
    let (tx, rx) = pipe::one_way::<()>().unwrap();
    tx.set_limit(len);
    rx.set_limit(len);
    let sender = tokio::spawn(async move {
        let mut bytes = Vec::with_capacity(len + PART);
        (0..len.div_ceil(PART)).for_each(|number| bytes.extend(part(number)));
        bytes.resize(len + 1, 0);
        let refused = tx.send_bytes(&bytes).await;
        assert!(matches!(refused, Err(SendFailure::TooLong { .. })));
        tx.send_bytes(&bytes[..len]).await.unwrap();
        tx.send_bytes(b"next").await.unwrap();
    });

    let bytes = soon(rx.recv_bytes()).await.unwrap();
    assert_eq!(bytes.len(), len);
    for (number, received) in bytes.chunks(PART).enumerate() {
        assert!(received == &part(number)[..received.len()], "{number}");
    }
    drop(bytes);
    assert_eq!(soon(rx.recv_bytes()).await.unwrap(), "next");
    soon(sender).await.unwrap();
}

#[test]
fn signals_interrupt_neither_who_sends_nor_who_receives() {
    static N_SIGNALS: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_: i32) {
        N_SIGNALS.fetch_add(1, Relaxed);
    }
    /// Sends messages of all sizes, some long after the other end began to wait.
    fn message(number: usize) -> Vec<u8> {
        if number.is_multiple_of(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        vec![number as u8; [10, 5000, 3 << 20][number % 3]]
    }
    const N_MESSAGES: usize = 60;
    /// Some, and as many as there are until signals have come.
    fn numbers() -> impl Iterator<Item = usize> {
        (0..).take_while(|number| *number < N_MESSAGES || N_SIGNALS.load(Relaxed) <= 50)
    }
    fn is_right(number: usize, bytes: &[u8]) -> bool {
        bytes.len() == [10, 5000, 3 << 20][number % 3]
            && bytes.iter().step_by(4001).all(|byte| *byte == number as u8)
    }
    alone(async || {
        // Without SA_RESTART: what is interrupted says so.
        let action = SigAction::new(
            SigHandler::Handler(count),
            SaFlags::empty(),
            SigSet::empty(),
        );
        #[expect(unsafe_code, reason = "the handler adds to a number")]
        // SAFETY: adding to an atomic is allowed in a handler.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let mut masked = SigSet::empty();
        masked.add(Signal::SIGUSR1);
        masked.thread_block().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        // This thread and the storm's do not take the signal, so those that send and receive do.
        let storm = std::thread::spawn(move || {
            while !until.load(Relaxed) {
                nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGUSR1).unwrap();
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let unmasked = move |work: Box<dyn FnOnce() + Send>| {
            std::thread::spawn(move || {
                masked.thread_unblock().unwrap();
                work();
            })
        };
        let run = |future: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            { runtime }.enable_all().build().unwrap().block_on(future);
        };

        let (tx, rx) = pipe::one_way::<()>().unwrap();
        let (late_tx, late_rx) = pipe::one_way::<()>().unwrap();
        let threads = [
            unmasked(Box::new(move || {
                for number in numbers() {
                    tx.blocking_send_bytes(&message(number)).unwrap();
                }
            })),
            unmasked(Box::new(move || {
                let mut n_messages = 0;
                let end = loop {
                    match rx.blocking_recv_bytes() {
                        Ok(bytes) => assert!(is_right(n_messages, &bytes)),
                        Err(end) => break end,
                    }
                    n_messages += 1;
                };
                assert!(matches!(end, RecvError::Closed) && n_messages >= N_MESSAGES);
            })),
            unmasked(Box::new(move || {
                run(Box::pin(async move {
                    for number in numbers() {
                        late_tx.send_bytes(&message(number)).await.unwrap();
                    }
                }));
            })),
            unmasked(Box::new(move || {
                run(Box::pin(async move {
                    let mut n_messages = 0;
                    let end = loop {
                        match late_rx.recv_bytes().await {
                            Ok(bytes) => assert!(is_right(n_messages, &bytes)),
                            Err(end) => break end,
                        }
                        n_messages += 1;
                    };
                    assert!(matches!(end, RecvError::Closed) && n_messages >= N_MESSAGES);
                }));
            })),
        ];
        for thread in threads {
            thread.join().unwrap();
        }
        is_over.store(true, Relaxed);
        storm.join().unwrap();
    });
}

/// How many sending futures the storm drops. A longer one: `STORM=100000`.
fn storm_size() -> usize {
    let size = std::env::var("STORM");
    size.map_or(5_000, |size| size.parse().unwrap())
}

/// A message whose length, at most `len_max`, and content follow from its number.
fn numbered(number: u32, len_max: usize) -> Vec<u8> {
    let mut random = Random(u64::from(number) + 1);
    let len = match random.below(50) {
        0 => random.below(len_max),
        _ => random.below(len_max / 200),
    };
    let mut message = number.to_le_bytes().to_vec();
    message.resize(4 + len, number as u8);
    message
}

/// Polls a future at most `n_polls` times, and drops it.
async fn poll_some<F: Future>(future: F, n_polls: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..n_polls {
        if let Poll::Ready(output) = futures::poll!(&mut future) {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

async fn storm(is_raw: bool) {
    let size = storm_size();
    // Values are serialised byte by byte.
    let len_max = if is_raw { 1 << 20 } else { 1 << 16 };
    let (tx, rx) = pipe::one_way::<Vec<u8>>().unwrap();
    let begun = Instant::now();
    let sender = tokio::spawn(async move {
        let mut random = Random(1);
        let mut sent = Vec::new();
        let mut n_dropped = 0;
        for number in 0.. {
            if n_dropped == size {
                break;
            }
            let message = numbered(number, len_max);
            let n_polls = random.below(4);
            let ended = match is_raw {
                true => poll_some(tx.send_bytes(&message), n_polls).await.is_some(),
                false => poll_some(tx.send(message), n_polls).await.is_some(),
            };
            match ended {
                true => sent.push(number),
                false => n_dropped += 1,
            }
        }
        sent
    });

    let mut random = Random(2);
    let mut received = Vec::new();
    let mut n_dropped = 0;
    loop {
        let n_polls = random.below(4);
        let message = match is_raw {
            true => poll_some(rx.recv_bytes(), n_polls).await,
            false => poll_some(rx.recv(), n_polls)
                .await
                .map(|m| m.map(Into::into)),
        };
        match message {
            Some(Ok(message)) => {
                let number = u32::from_le_bytes(*message.first_chunk().unwrap());
                assert!(
                    message == numbered(number, len_max),
                    "{number} is not whole"
                );
                received.push(number);
            }
            Some(Err(RecvError::Closed)) => break,
            Some(Err(error)) => panic!("{error}"),
            None => n_dropped += 1,
        }
    }

    // In order and none twice; and none is missing of which the sender knows that it was sent.
    assert!(received.is_sorted_by(|a, b| a < b));
    let sent = soon(sender).await.unwrap();
    let mut certain = sent.iter().peekable();
    received
        .iter()
        .for_each(|number| _ = certain.next_if_eq(&number));
    assert_eq!(certain.next(), None);
    println!(
        "{} messages arrived, {} of them from futures that completed; {size} futures that send and \
         {n_dropped} that receive were dropped; {:?}",
        received.len(),
        sent.len(),
        begun.elapsed(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_at_any_poll_lose_and_double_no_value() {
    storm(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_at_any_poll_lose_and_double_no_bytes() {
    storm(true).await;
}

/// A sequence that is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
