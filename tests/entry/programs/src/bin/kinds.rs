//! Starts every kind of function by both safe methods.

use std::fmt::Display;

use tokio_multiprocess::{Pool, Process, StartMethod};

fn square(x: u64) -> u64 {
    x * x
}

/// The same code as `square`, which a linker may fold into one.
fn twin(x: u64) -> u64 {
    x * x
}

/// So small that an optimiser leaves no call to it.
#[inline(always)]
fn same(x: u64) -> u64 {
    x
}

fn show<T: Display>(value: T) -> String {
    value.to_string()
}

async fn later(x: u64) -> u64 {
    tokio::task::yield_now().await;
    x + 1
}

fn main() {
    #[cfg(not(feature = "auto-init"))]
    tokio_multiprocess::init();

    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        programs::block_on(all_by(method));
    }
    println!("all kinds work");
}

async fn all_by(method: StartMethod) {
    macro_rules! assert_child {
        ($function:expr, $argument:expr, $result:expr) => {
            let builder = Process::builder().start_method(method);
            let child = builder.start($function, $argument).await.unwrap();
            assert_eq!(child.join().await.unwrap(), $result);
        };
    }
    assert_child!(square, 7, 49);
    assert_child!(twin, 8, 64);
    assert_child!(same, 9, 9);
    assert_child!(programs::square, 10, 100);
    assert_child!(show::<u8>, 11, "11");
    assert_child!(show::<String>, "text".to_owned(), "text");
    assert_child!(later, 12, 13);
    assert_child!(|x: u64| x + 2, 13, 15);
    assert_child!(|x: u64| async move { later(x).await }, 14, 15);

    let builder = Pool::builder().processes(2).start_method(method);
    let pool = builder.build().await.unwrap();
    assert_eq!(pool.map(square, 0..4).await.unwrap(), [0, 1, 4, 9]);
    pool.close().await.unwrap();
}
