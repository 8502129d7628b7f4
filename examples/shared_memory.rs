//! A child writes into its parent's memory.
//!
//! Run with `cargo run --example shared_memory`.

use std::error::Error;

use tokio_multiprocess::Process;
use tokio_multiprocess::shared::{Array, Value};

#[expect(
    clippy::approx_constant,
    reason = "the number of the Python documentation"
)]
async fn change((number, array): (Value<f64>, Array<i32>)) {
    number.set(3.1415927).await.expect("the parent is there");
    let mut array = array.lock().await.expect("the parent is there");
    array.iter_mut().for_each(|n| *n = -*n);
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let number = Value::new(0.0)?;
    let array = Array::from_slice(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])?;

    let child = Process::start(change, (number.clone(), array.clone())).await?;
    child.join().await?;

    println!("{}", number.get().await?);
    println!("{:?}", array.to_vec().await?);
    Ok(())
}
