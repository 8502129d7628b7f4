//! A server that has the work of each request done by a pool, and streams the results.
//!
//! Run with `cargo run --example web_server`, and then
//! `curl -N localhost:3000/squares --json '[1, 2, 13, 4]'`; with `-- --demo` it asks by itself.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_multiprocess::{Pool, TaskError};

/// Takes its time, and brings its process down if it meets bad luck.
fn square(x: u64) -> (u64, u64) {
    std::thread::sleep(Duration::from_millis(2));
    if x == 13 {
        std::process::abort();
    }
    (x, x * x)
}

/// One line of JSON a result, sent when it is there. A client that goes away drops the stream,
/// and that cancels the rest of its tasks.
async fn squares(State(pool): State<Pool>, Json(numbers): Json<Vec<u64>>) -> impl IntoResponse {
    let lines = pool.imap_unordered(square, numbers).map(|result| {
        let line = line(result);
        Ok::<_, Infallible>(format!("{line}\n"))
    });
    (
        [(CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
}

fn line(result: Result<(u64, u64), TaskError>) -> Value {
    match result {
        Ok((x, square)) => json!({ "x": x, "square": square }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let is_demo = std::env::args().any(|argument| argument == "--demo");
    let pool = Pool::new(2).await?;
    let app = Router::new()
        .route("/squares", post(squares))
        .with_state(pool.clone());

    let port = if is_demo { 0 } else { 3000 };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}/squares");
    let server = axum::serve(listener, app);
    if is_demo {
        tokio::select! {
            ended = server => ended?,
            asked = demo(&pool, address) => asked?,
        }
    } else {
        server.await?;
    }
    Ok(())
}

async fn demo(pool: &Pool, server: std::net::SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    println!("\nsome squares, as they arrive; 13 brings its worker down:");
    let mut body = ask(server, &[1, 2, 13, 4, 5]).await?;
    let mut text = String::new();
    body.read_to_string(&mut text).await?;
    print!("{text}");

    println!("\na client that wants 100000 squares and leaves after the first:");
    let before = pool.stats().finished;
    let numbers = (100..100_100).collect::<Vec<_>>();
    let mut lines = ask(server, &numbers).await?.lines();
    println!("{}", lines.next_line().await?.unwrap_or_default());
    drop(lines);

    println!("\nthe server lives and the workers are free at once:");
    let mut body = ask(server, &[7]).await?;
    let mut text = String::new();
    body.read_to_string(&mut text).await?;
    print!("{text}");
    println!("tasks done for both: {}", pool.stats().finished - before);
    Ok(())
}

/// Sends a request, reads the answer's head, and gives the body to read.
async fn ask(
    server: std::net::SocketAddr,
    numbers: &[u64],
) -> std::io::Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(server).await?;
    let body = json!(numbers).to_string();
    // In version 1.0 a body is sent as it is and ends where the connection ends.
    let head = format!(
        "POST /squares HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;

    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        answer.read_line(&mut line).await?;
    }
    Ok(answer)
}
