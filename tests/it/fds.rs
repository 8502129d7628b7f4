//! Handles inside values: whoever receives one can use it, and nothing else stays open.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use futures::FutureExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_multiprocess::fd::{self, Fd};
use tokio_multiprocess::pipe::{self, PipeReceiver, PipeSender};
use tokio_multiprocess::{AsyncPipe, Process, RecvError, SendFailure, StartMethod};

use crate::alone::alone;
use crate::soon;

const SAFE_METHODS: [StartMethod; 2] = [StartMethod::SPAWN, StartMethod::FORK_SERVER];

/// Some text in a file without a name.
fn file(text: &str) -> File {
    let name = c"test";
    let memory = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(memory.unwrap());
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

fn text_of(mut source: impl Read) -> String {
    let mut text = String::new();
    source.read_to_string(&mut text).unwrap();
    text
}

#[derive(Serialize, Deserialize)]
struct Handles {
    #[serde(with = "fd")]
    file: File,
    nested: Option<Vec<(u8, Fd<PipeWriter>)>>,
    plain: Fd<OwnedFd>,
    socket: Fd<UnixStream>,
}

/// Writes to all of them what it reads from the first.
fn copy_to_all(handles: Handles) -> usize {
    let text = text_of(handles.file);
    let writers = handles.nested.unwrap();
    for (number, writer) in &writers {
        write!(&**writer, "{number} {text}").unwrap();
    }
    write!(File::from(handles.plain.0), "plain {text}").unwrap();
    write!(&*handles.socket, "socket {text}").unwrap();
    writers.len()
}

#[tokio::test]
async fn files_pipes_and_sockets_travel_as_arguments() {
    for method in SAFE_METHODS {
        let (mut readers, writers): (Vec<PipeReader>, Vec<PipeWriter>) =
            (0..3).map(|_| std::io::pipe().unwrap()).unzip();
        let (plain_reader, plain) = std::io::pipe().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let handles = Handles {
            file: file("text"),
            nested: Some((0..).zip(writers.into_iter().map(Fd)).collect()),
            plain: Fd(plain.into()),
            socket: Fd(there),
        };

        let builder = Process::builder().start_method(method);
        let child = builder.start(copy_to_all, handles).await.unwrap();

        assert_eq!(soon(child.join()).await.unwrap(), 3);
        for (number, reader) in readers.iter_mut().enumerate() {
            assert_eq!(text_of(reader), format!("{number} text"));
        }
        assert_eq!(text_of(plain_reader), "plain text");
        assert_eq!(text_of(here), "socket text");
    }
}

fn open_some((): ()) -> (Fd<File>, Vec<Fd<File>>) {
    (
        Fd(file("first")),
        vec![Fd(file("second")), Fd(file("third"))],
    )
}

#[tokio::test]
async fn files_come_back_as_results() {
    for method in SAFE_METHODS {
        let builder = Process::builder().start_method(method);
        let child = builder.start(open_some, ()).await.unwrap();

        let (first, others) = soon(child.join()).await.unwrap();

        assert_eq!(text_of(&*first), "first");
        let others = others.iter().map(|other| text_of(&**other));
        assert_eq!(others.collect::<Vec<_>>(), ["second", "third"]);
    }
}

async fn answer((listener, stream): (Fd<tokio::net::TcpListener>, Fd<tokio::net::UnixStream>)) {
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut text = String::new();
    stream.into_inner().read_to_string(&mut text).await.unwrap();
    connection.write_all(text.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn sockets_of_tokio_travel_and_are_registered_where_they_arrive() {
    for method in SAFE_METHODS {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
        let builder = Process::builder().start_method(method);
        let handles = (Fd(listener), Fd(there));
        let child = builder.start(answer, handles).await.unwrap();

        here.write_all(b"across").await.unwrap();
        here.shutdown().await.unwrap();
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut text = String::new();
        soon(connection.read_to_string(&mut text)).await.unwrap();

        assert_eq!(text, "across");
        soon(child.join()).await.unwrap();
    }
}

#[tokio::test]
async fn a_shared_handle_stays_usable_for_its_sender() {
    let (tx, rx) = pipe::one_way::<Fd<UdpSocket>>().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();

    tx.send(Fd(socket.try_clone().unwrap())).await.unwrap();
    let copy = soon(rx.recv()).await.unwrap();

    assert_eq!(copy.local_addr().unwrap(), address);
    assert_ne!(copy.as_raw_fd(), socket.as_raw_fd());
    socket.send_to(b"x", address).unwrap();
    assert_eq!(copy.recv(&mut [0; 8]).unwrap(), 1);
}

#[tokio::test]
async fn a_handle_elsewhere_is_an_error_that_says_so() {
    let file = Fd(file(""));
    let (tx, rx) = pipe::one_way::<u8>().unwrap();
    let says = "a file descriptor, or a handle that holds one, travels only in what \
                tokio-multiprocess sends: arguments, results and messages";

    assert_eq!(serde_json::to_string(&file).unwrap_err().to_string(), says);
    assert_eq!(serde_json::to_string(&tx).unwrap_err().to_string(), says);
    assert_eq!(serde_json::to_string(&rx).unwrap_err().to_string(), says);
    let refused = serde_json::from_str::<Fd<File>>("0").unwrap_err();
    assert!(refused.to_string().starts_with(says), "{refused}");

    // They are as usable as before.
    tx.send(1).await.unwrap();
    assert_eq!(soon(rx.recv()).await.unwrap(), 1);
}

#[tokio::test]
async fn more_descriptors_than_one_system_call_takes_travel_in_one_message() {
    let (tx, rx) = pipe::one_way::<Vec<Fd<PipeWriter>>>().unwrap();
    for n_fds in [1, 252, 253, 254, 506, 507] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writers = (0..n_fds).map(|_| Fd(writer.try_clone().unwrap()));
        tx.send(writers.collect()).await.unwrap();
        drop(writer);

        let received = soon(rx.recv()).await.unwrap();

        assert_eq!(received.len(), n_fds);
        for writer in received {
            (&*writer).write_all(b".").unwrap();
        }
        assert_eq!(text_of(&mut reader).len(), n_fds);
    }
}

#[tokio::test]
async fn too_many_descriptors_are_refused_by_the_sender() {
    let (tx, _rx) = pipe::one_way::<Vec<Shared>>().unwrap();
    /// Serialised many times, without many descriptors.
    #[derive(Debug, Clone)]
    struct Shared(std::sync::Arc<PipeWriter>);
    impl Serialize for Shared {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            fd::serialize(&*self.0, serializer)
        }
    }
    let (mut reader, writer) = std::io::pipe().unwrap();
    let shared = Shared(std::sync::Arc::new(writer));
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if limit < 8000 {
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, limit.min(20_000), limit).unwrap();

    let refused = tx.send(vec![shared; 5000]).await.unwrap_err();

    assert!(
        matches!(&refused.failure, SendFailure::Encode(why) if why.contains("more file descriptors than one message"))
    );
    drop(refused);
    assert_eq!(text_of(&mut reader), "");
}

#[tokio::test]
async fn a_pipe_end_that_was_sent_is_gone_here() {
    let (carrier, carried) = pipe::one_way::<PipeSender<u8>>().unwrap();
    let (tx, rx) = pipe::one_way::<u8>().unwrap();
    let tx = std::sync::Arc::new(tx);

    // Reserved by one message and refused by the next.
    struct Same(std::sync::Arc<PipeSender<u8>>);
    impl Serialize for Same {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }
    let (same, arrived) = pipe::one_way::<Same>().unwrap();
    let same = (same, tx.clone());
    same.0.send(Same(same.1)).await.unwrap();
    drop(arrived);

    assert!(matches!(
        tx.send(1).await.unwrap_err().failure,
        SendFailure::Moved
    ));
    assert!(matches!(tx.send_bytes(b"").await, Err(SendFailure::Moved)));
    let again = carrier.send(std::sync::Arc::into_inner(tx).unwrap()).await;
    assert!(
        matches!(again.unwrap_err().failure, SendFailure::Encode(why) if why.contains("has been sent"))
    );
    // What was sent away and never received closes.
    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Closed)));
    drop(carried);
}

#[tokio::test]
async fn a_pipe_end_comes_back_when_it_could_not_be_sent() {
    let (tx, rx) = pipe::one_way::<u8>().unwrap();
    let (carrier, nobody) = pipe::one_way::<(PipeSender<u8>, PipeReceiver<u8>)>().unwrap();
    drop(nobody);

    let refused = carrier.send((tx, rx)).await.unwrap_err();

    assert!(refused.is_closed());
    let (tx, rx) = refused.into_inner();
    tx.send(7).await.unwrap();
    assert_eq!(soon(rx.recv()).await.unwrap(), 7);

    let (limited, _nobody) = pipe::one_way::<(PipeSender<u8>, Vec<u8>)>().unwrap();
    limited.set_limit(100);
    let refused = limited.send((tx, vec![0; 200])).await.unwrap_err();
    assert!(matches!(refused.failure, SendFailure::TooLong { .. }));
    let (tx, _) = refused.into_inner();
    tx.send(8).await.unwrap();
    assert_eq!(soon(rx.recv()).await.unwrap(), 8);
}

#[tokio::test]
async fn a_pipe_end_whose_send_was_dropped_in_time_is_still_here() {
    let (carrier, held) = pipe::one_way::<(Vec<u8>, Option<PipeSender<u8>>)>().unwrap();
    while carrier.try_send((vec![0; 1000], None)).is_ok() {}
    let (tx, rx) = pipe::one_way::<u8>().unwrap();

    // The value goes with the future, and with it the end.
    assert!(
        carrier
            .send((Vec::new(), Some(tx)))
            .now_or_never()
            .is_none()
    );

    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Closed)));
    drop(held);
}

#[tokio::test]
async fn a_receiving_end_takes_along_what_it_has_read() {
    let (carrier, carried) = pipe::one_way::<PipeReceiver<(u8, Option<Fd<File>>)>>().unwrap();
    let (tx, rx) = pipe::one_way().unwrap();
    for number in 0..3 {
        let file = Fd(file(&number.to_string()));
        tx.feed((number, Some(file))).await.unwrap();
    }
    for number in 3..100 {
        tx.feed((number, None)).await.unwrap();
    }
    tx.flush().await.unwrap();
    // All of them are read, and one is taken.
    assert_eq!(soon(rx.recv()).await.unwrap().0, 0);

    carrier.send(rx).await.unwrap();
    let rx = soon(carried.recv()).await.unwrap();

    drop(tx);
    for number in 1..100 {
        let (received, file) = soon(rx.recv()).await.unwrap();
        assert_eq!(received, number);
        if let Some(file) = file {
            assert_eq!(text_of(&*file), number.to_string());
        }
    }
    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Closed)));
}

#[tokio::test]
async fn a_sending_end_takes_along_what_it_has_not_sent() {
    let (carrier, carried) = pipe::one_way::<PipeSender<(u8, Option<Fd<File>>)>>().unwrap();
    let (tx, rx) = pipe::one_way().unwrap();
    for number in 0..100 {
        let file = (number % 30 == 7).then(|| Fd(file(&number.to_string())));
        tx.feed((number, file)).await.unwrap();
    }

    carrier.send(tx).await.unwrap();
    let tx = soon(carried.recv()).await.unwrap();
    tx.send((100, None)).await.unwrap();

    for number in 0..=100 {
        let (received, file) = soon(rx.recv()).await.unwrap();
        assert_eq!(received, number);
        assert_eq!(file.is_some(), number % 30 == 7);
        if let Some(file) = file {
            assert_eq!(text_of(&*file), number.to_string());
        }
    }
}

#[tokio::test]
async fn a_half_sent_message_is_finished_by_the_new_owner() {
    let (carrier, carried) = pipe::one_way::<PipeSender<Vec<u8>>>().unwrap();
    let (tx, rx) = pipe::one_way::<Vec<u8>>().unwrap();
    let long = vec![7; 6 << 20];
    // Accepted, partly in the socket, and its future dropped.
    assert!(tx.send(long.clone()).now_or_never().is_none());

    let (sent, tx) = soon(async { tokio::join!(carrier.send(tx), carried.recv()) }).await;
    sent.unwrap();
    let tx = tx.unwrap();
    let sender = tokio::spawn(async move { tx.send(b"after".to_vec()).await.unwrap() });

    assert!(soon(rx.recv()).await.unwrap() == long);
    assert_eq!(soon(rx.recv()).await.unwrap(), b"after");
    sender.await.unwrap();
}

#[tokio::test]
async fn an_end_that_a_task_receives_from_cannot_be_sent_away() {
    let (carrier, carried) = pipe::one_way::<AsyncPipe<u8, u8>>().unwrap();
    let (here, there) = AsyncPipe::<u8, u8>::pair().unwrap();
    struct Same(std::sync::Arc<AsyncPipe<u8, u8>>);
    impl Serialize for Same {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }
    let (same, _arrived) = pipe::one_way::<Same>().unwrap();
    let here = std::sync::Arc::new(here);
    let mut receiving = std::pin::pin!(here.recv());
    assert!(receiving.as_mut().now_or_never().is_none());

    let refused = same.send(Same(here.clone())).await.unwrap_err();

    assert!(
        matches!(&refused.failure, SendFailure::Encode(why) if why.contains("is receiving")),
        "{refused}"
    );
    // Neither half has gone.
    there.send(1).await.unwrap();
    assert_eq!(soon(receiving).await.unwrap(), 1);
    here.send(2).await.unwrap();
    assert_eq!(soon(there.recv()).await.unwrap(), 2);
    drop((carrier, carried));
}

/// What the children of the next test are told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Send(PipeSender<(u32, u32)>),
    Receive(PipeReceiver<(u32, u32)>),
    /// Passes the order on to a child of its own.
    Delegate(Box<Self>),
}

async fn obey(order: Order) -> Option<PipeReceiver<(u32, u32)>> {
    match order {
        Order::Send(tx) => {
            for number in 0..1000 {
                tx.feed((std::process::id(), number)).await.unwrap();
            }
            tx.flush().await.unwrap();
            None
        }
        Order::Receive(rx) => {
            for number in 0..500 {
                assert_eq!(rx.recv().await.unwrap().1, number);
            }
            Some(rx)
        }
        Order::Delegate(order) => {
            let child = Process::start(obey_at_last, *order).await.unwrap();
            child.join().await.unwrap()
        }
    }
}

/// As `obey`, whose future would else contain itself.
fn obey_at_last(order: Order) -> Option<PipeReceiver<(u32, u32)>> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(obey(order))
}

#[tokio::test]
async fn ends_go_to_children_and_grandchildren_and_come_back_as_results() {
    for method in SAFE_METHODS {
        let (tx, rx) = pipe::one_way().unwrap();
        let start = |order| {
            let builder = Process::builder().start_method(method);
            async move { builder.start(obey, order).await.unwrap() }
        };
        let receiver = start(Order::Delegate(Box::new(Order::Receive(rx)))).await;
        let sender = start(Order::Delegate(Box::new(Order::Send(tx)))).await;

        let rx = soon(receiver.join()).await.unwrap().unwrap();
        assert!(soon(sender.join()).await.unwrap().is_none());

        for number in 500..1000 {
            assert_eq!(soon(rx.recv()).await.unwrap().1, number);
        }
        assert!(matches!(soon(rx.recv()).await, Err(RecvError::Closed)));
    }
}

/// Obeys whatever comes.
async fn serve(orders: PipeReceiver<Order>) {
    while let Ok(order) = orders.recv().await {
        obey(order).await;
    }
}

#[tokio::test]
async fn ends_go_sideways_from_child_to_child() {
    async fn introduce((to_first, to_second): (PipeSender<Order>, PipeSender<Order>)) {
        let (tx, rx) = pipe::one_way().unwrap();
        to_first.send(Order::Send(tx)).await.unwrap();
        to_second.send(Order::Receive(rx)).await.unwrap();
    }
    for method in SAFE_METHODS {
        let builder = || Process::builder().start_method(method);
        let (to_first, first) = pipe::one_way().unwrap();
        let (to_second, second) = pipe::one_way().unwrap();
        let first = builder().start(serve, first).await.unwrap();
        let second = builder().start(serve, second).await.unwrap();
        let middle = builder().start(introduce, (to_first, to_second));
        let middle = middle.await.unwrap();

        for child in [middle, first, second] {
            soon(child.join()).await.unwrap();
        }
    }
}

#[test]
fn descriptors_above_256_travel() {
    alone(async || {
        let held: Vec<File> = (0..300).map(|_| file("")).collect();
        let last = file("high");
        assert!(last.as_raw_fd() > 256);
        let child = Process::start(|file: Fd<File>| text_of(&*file), Fd(last));
        let child = soon(child).await.unwrap();
        assert_eq!(soon(child.join()).await.unwrap(), "high");
        drop(held);
    });
}

/// How much memory this process has written to. `statm` is off by what each core has not told yet.
fn own_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let mut lines = rollup.lines();
    let anonymous = lines
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .unwrap();
    let kilobytes = anonymous.trim().strip_suffix(" kB").unwrap();
    1024 * kilobytes.parse::<usize>().unwrap()
}

#[test]
fn ten_thousand_messages_with_descriptors_leave_none_behind() {
    alone(async || {
        let (tx, rx) = pipe::one_way::<(u32, Vec<Fd<File>>)>().unwrap();
        let sender = tokio::spawn(async move {
            let file = file("shared");
            for number in 0..10_000 {
                let files = (0..number % 4).map(|_| Fd(file.try_clone().unwrap()));
                tx.send((number, files.collect())).await.unwrap();
            }
        });
        let mut settled = 0;
        for expected in 0..10_000 {
            let (number, files) = soon(rx.recv()).await.unwrap();
            assert_eq!((number, files.len()), (expected, expected as usize % 4));
            if expected == 2000 {
                settled = own_bytes();
            }
        }
        soon(sender).await.unwrap();
        // Less than 16 bytes of each.
        let grown = own_bytes().saturating_sub(settled);
        assert!(grown < 100_000, "{grown} bytes are left of the messages");
    });
}

#[test]
fn a_message_whose_descriptors_find_no_room_is_refused_alone() {
    alone(async || {
        let (tx, rx) = pipe::one_way::<(u8, Vec<Fd<File>>)>().unwrap();
        let shared = file("shared");
        let files = |n| (0..n).map(|_| Fd(shared.try_clone().unwrap())).collect();
        tx.send((1, files(3))).await.unwrap();
        tx.send((2, files(0))).await.unwrap();
        tx.send((3, files(1))).await.unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let mut held = Vec::new();
        let limit = shared.as_raw_fd() as u64 + 20;
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        while let Ok(copy) = shared.try_clone() {
            held.push(copy);
        }
        held.pop();

        // There is room for one, and three came.
        assert!(matches!(soon(rx.recv()).await, Err(RecvError::OutOfFds)));
        assert_eq!(soon(rx.recv()).await.unwrap().0, 2);
        let (number, files) = soon(rx.recv()).await.unwrap();
        assert_eq!((number, text_of(&*files[0]).as_str()), (3, "shared"));

        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    });
}

/// A read ends inside of the header of a message, and its descriptors are dropped with it.
#[test]
fn a_message_never_has_the_descriptors_of_another() {
    /// Fills the first read, but for some bytes of the next header.
    const FIRST: usize = (64 << 10) - 16 - 12;
    alone(async || {
        let (tx, rx) = pipe::one_way::<(Vec<u8>, Vec<Fd<File>>)>().unwrap();
        // The lengths of the two lists are sixteen bytes.
        let padding = vec![0; FIRST - 16];
        tx.send((padding, Vec::new())).await.unwrap();
        let files = |text| vec![Fd(file(text))];
        tx.send((b"one".to_vec(), files("one"))).await.unwrap();
        tx.send((b"two".to_vec(), files("two"))).await.unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();

        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
        let padding = soon(rx.recv()).await;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();

        assert_eq!(padding.unwrap().1.len(), 0);
        drop(tx);
        let mut n = 0;
        loop {
            match soon(rx.recv()).await {
                Ok((name, mut files)) => {
                    let text = text_of(&mut *files.remove(0));
                    assert_eq!(text.as_bytes(), name);
                    n += 1;
                }
                Err(RecvError::OutOfFds) => (),
                Err(end) => break assert!(matches!(end, RecvError::Closed), "{end:?}"),
            }
        }
        assert!(n > 0);
    });
}

#[tokio::test]
async fn a_receiving_end_is_moved_with_half_a_message_of_many_descriptors() {
    type Many = (Vec<Fd<File>>, Vec<u8>);
    const FILES: usize = 600;
    let (tx, rx) = pipe::one_way::<Many>().unwrap();
    let (carrier, carried) = pipe::one_way::<PipeReceiver<Many>>().unwrap();
    let shared = file("shared");
    let files = (0..FILES)
        .map(|_| Fd(shared.try_clone().unwrap()))
        .collect();
    let sender = tokio::spawn(async move { tx.send((files, vec![0; 20_000_000])).await });
    {
        // Polled until some of it has been read, and given up.
        let mut recv = std::pin::pin!(rx.recv());
        for _ in 0..10 {
            assert!(futures::poll!(recv.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }

    let moving = tokio::spawn(async move { carrier.send(rx).await });
    let rx = soon(carried.recv()).await.unwrap();
    soon(moving).await.unwrap().unwrap();

    let (files, bytes) = soon(rx.recv()).await.unwrap();
    assert_eq!((files.len(), bytes.len()), (FILES, 20_000_000));
    soon(sender).await.unwrap().unwrap();
}

#[test]
fn what_was_accepted_is_sent_by_a_process_without_room_for_descriptors() {
    alone(async || {
        let (tx, rx) = pipe::one_way::<Vec<u8>>().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();

        tx.try_send(vec![0; 5_000_000]).unwrap();
        drop(tx);

        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert_eq!(soon(rx.recv()).await.unwrap().len(), 5_000_000);
        let end = soon(rx.recv()).await;
        assert!(matches!(end, Err(RecvError::Closed)));
    });
}

/// Looks like a sending end on its way, with more descriptors than a frame can have.
#[derive(Debug)]
struct Forged;

impl Serialize for Forged {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (_, socket) = UnixStream::pair().unwrap();
        let null = || Fd(File::open("/dev/null").unwrap());
        let fds: Vec<Fd<File>> = (0..300).map(|_| null()).collect();
        let (socket, limit) = (Fd(socket), 1000_u32);
        (socket, limit, vec![(vec![0_u8; 4], fds)]).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Forged {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PipeSender::<u8>::deserialize(deserializer).map(|_| Self)
    }
}

#[tokio::test]
async fn a_sending_end_with_a_frame_that_cannot_be_is_refused() {
    let (tx, rx) = pipe::one_way().unwrap();

    tx.send(Forged).await.unwrap();

    assert!(matches!(soon(rx.recv()).await, Err(RecvError::Decode(_))));
}

#[tokio::test]
async fn tcp_connections_are_shared_with_who_receives_them() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let child = Process::start(
        |stream: Fd<TcpStream>| write!(&*stream, "from a child").unwrap(),
        Fd(server),
    );

    soon(child.await.unwrap().join()).await.unwrap();

    assert_eq!(text_of(client), "from a child");
    assert!(listener.as_fd().as_raw_fd() >= 0);
}
