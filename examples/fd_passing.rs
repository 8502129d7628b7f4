//! Accepts connections and hands them to worker processes, which answer HTTP.
//!
//! Run with `cargo run --example fd_passing` for a demonstration, or with `-- 127.0.0.1:8080` as a
//! server.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::pipe::{self, PipeReceiver, PipeSender};
use tokio_multiprocess::{Process, current_process};

const N_WORKERS: usize = 2;

/// A worker: answers each connection that it is given, many at once.
async fn work(connections: PipeReceiver<Fd<TcpStream>>) {
    while let Ok(connection) = connections.recv().await {
        tokio::spawn(answer(connection.into_inner()));
    }
}

async fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(&mut connection).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    // Up to the empty line behind the request's head.
    while lines
        .next_line()
        .await?
        .is_some_and(|line| !line.is_empty())
    {}
    let text = format!("process {} got: {request}\n", current_process().pid);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
    connection.write_all((head + &text).as_bytes()).await
}

/// Deals out the connections in turn. The sockets are shared, and closed here at once.
async fn serve(listener: TcpListener, workers: Vec<PipeSender<Fd<TcpStream>>>) {
    for worker in workers.iter().cycle() {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        if let Err(error) = worker.send(Fd(connection)).await {
            eprintln!("a worker is gone: {error}");
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    let bound = listener.local_addr()?;
    let mut workers = Vec::new();
    for _ in 0..N_WORKERS {
        let (tx, rx) = pipe::one_way()?;
        Process::start(work, rx).await?;
        workers.push(tx);
    }
    println!("listening at http://{bound}");
    let server = tokio::spawn(serve(listener, workers));
    if address.is_some() {
        return Ok(server.await?);
    }
    for number in 0..4 {
        let mut client = TcpStream::connect(bound).await?;
        client
            .write_all(format!("GET /{number} HTTP/1.1\r\n\r\n").as_bytes())
            .await?;
        let mut reply = String::new();
        client.read_to_string(&mut reply).await?;
        println!("{}", reply.lines().last().unwrap_or_default());
    }
    Ok(())
}
