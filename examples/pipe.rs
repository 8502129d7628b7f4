//! A child sends a number, nothing and a word through a pipe, and gets answers.
//!
//! Run with `cargo run --example pipe`.

use serde::{Deserialize, Serialize};
use tokio_multiprocess::{AsyncPipe, Process, RecvError};

#[derive(Debug, Serialize, Deserialize)]
enum Thing {
    Number(i32),
    Nothing,
    Word(String),
}

/// The child's end: things go out, answers come in.
async fn talk(pipe: AsyncPipe<Thing, String>) -> usize {
    let things = [
        Thing::Number(42),
        Thing::Nothing,
        Thing::Word("hello".to_owned()),
    ];
    let mut n_letters = 0;
    for thing in things {
        pipe.send(thing).await.expect("the parent listens");
        n_letters += pipe.recv().await.expect("the parent answers").len();
    }
    n_letters
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (here, there) = AsyncPipe::pair()?;
    let child = Process::start(talk, there).await?;

    loop {
        match here.recv().await {
            Ok(thing) => {
                println!("the child sent {thing:?}");
                here.send(format!("thanks for {thing:?}")).await?;
            }
            // The child has ended: this is how its parent learns that there is no more.
            Err(RecvError::Closed) => break,
            Err(error) => return Err(error.into()),
        }
    }
    println!("its answers had {} letters", child.join().await?);
    Ok(())
}
