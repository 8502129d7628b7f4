//! scratch
use std::time::Duration;
use tokio_multiprocess::*;
fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}
#[tokio::main]
async fn main() {
    let p = Process::start(|x: u64| x, 1).await.unwrap();
    p.join().await.unwrap();
    drop(p);
    let f0 = fds();
    let (mut ok, mut late) = (0, 0);
    for i in 0..200 {
        match tokio::time::timeout(
            Duration::from_micros(i * 10),
            Process::start(
                |_: ()| -> () {
                    loop {
                        std::thread::sleep(Duration::from_secs(10))
                    }
                },
                (),
            ),
        )
        .await
        {
            Ok(p) => {
                ok += 1;
                p.unwrap().kill().unwrap();
            }
            Err(_) => late += 1,
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!(
        "ok {ok} late {late} fds {f0} {} active {}",
        fds(),
        active_children().len()
    );
    println!(
        "{}",
        String::from_utf8_lossy(
            &std::process::Command::new("sh")
                .arg("-c")
                .arg(format!(
                    "ps --ppid {} -o pid,stat | wc -l",
                    std::process::id()
                ))
                .output()
                .unwrap()
                .stdout
        )
    );
}
