//! A program that calls nothing first; that it calls `init` later does no harm.

#[tokio::main]
async fn main() {
    programs::start_one().await;
    tokio_multiprocess::init();
    programs::start_one().await;
    println!("both came back");
}
