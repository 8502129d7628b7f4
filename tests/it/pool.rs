//! Pools.

use tokio_multiprocess::Pool;

fn square(x: u64) -> u64 {
    x * x
}

#[tokio::test]
async fn first_light() {
    let pool = Pool::new(2).await.unwrap();
    assert_eq!(pool.apply(square, 7).await.unwrap(), 49);
    assert_eq!(
        pool.map(square, 0..10_000).await.unwrap(),
        (0..10_000).map(|x| x * x).collect::<Vec<u64>>()
    );
    pool.close().await.unwrap();
}
