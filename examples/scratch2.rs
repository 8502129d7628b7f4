//! scratch
#![allow(unsafe_code)]
use std::time::{Duration, Instant};
use tokio_multiprocess::*;
fn nested(depth: u32) -> Vec<String> {
    let me = current_process();
    let mut v = vec![format!(
        "{} ppid ok {} parent {:?}",
        me.name,
        parent_process().is_some_and(|p| p.is_alive()),
        parent_process().map(|p| p.name().to_owned())
    )];
    if depth > 0 {
        let rt = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        v.extend(rt.block_on(async {
            let p = Process::start(nested, depth - 1).await.unwrap();
            p.join().await.unwrap()
        }));
    }
    v
}
fn spin(_: ()) {
    std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    loop {
        std::hint::black_box(0);
    }
}
fn grand(_: ()) {
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    rt.block_on(async {
        let _a = Process::start(spin, ()).await.unwrap();
        let _b = Context::new(StartMethod::SPAWN)
            .process(spin, ())
            .await
            .unwrap();
        std::future::pending::<()>().await
    })
}
fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}
fn main() {
    let arg = std::env::args().nth(1).unwrap_or_default();
    match arg.as_str() {
        "fork" => {
            let s = String::from("captured");
            let t = Instant::now();
            let p = unsafe {
                Process::builder().name("forky").fork(move || {
                    format!(
                        "{s} {} {:?}",
                        current_process().name,
                        parent_process().map(|p| p.name().to_owned())
                    )
                })
            }
            .unwrap();
            println!("{:?} {:?}", t.elapsed(), p);
            println!("{:?}", p.blocking_join());
            let p = unsafe { Process::builder().fork(|| -> () { panic!("x") }) }.unwrap();
            println!("{:?}", p.blocking_join().is_err());
            let p = unsafe { Process::builder().fork(|| nested(2)) }.unwrap();
            println!("{:?}", p.blocking_join());
            let t = Instant::now();
            for _ in 0..200 {
                let p = unsafe { Process::builder().fork(|| 5) }.unwrap();
                assert_eq!(p.blocking_join().unwrap(), 5);
            }
            println!("{:?} each", t.elapsed() / 200);
            std::thread::spawn(|| std::thread::park());
            println!("{:?}", unsafe { Process::builder().fork(|| 5) });
            let p = unsafe { Process::builder().fork_multithreaded(|| 5) }.unwrap();
            println!("{:?} fds {}", p.blocking_join(), fds());
        }
        "killed" => {
            let rt = tokio::runtime::Runtime::new().unwrap();
            rt.block_on(async {
                let mut v = vec![];
                for m in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
                    v.push(Context::new(m).process(grand, ()).await.unwrap());
                    v.push(Context::new(m).process(spin, ()).await.unwrap());
                }
                println!("up");
                std::future::pending::<()>().await
            });
        }
        _ => {
            let rt = tokio::runtime::Runtime::new().unwrap();
            rt.block_on(async {
                for m in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
                    set_start_method(m);
                    let p = Process::start(nested, 3).await.unwrap();
                    println!("{:#?}", p.join().await);
                }
                let f = fds();
                let t = Instant::now();
                let mut v = vec![];
                for i in 0..100u64 {
                    v.push(tokio::spawn(async move {
                        Process::start(
                            |x: u64| {
                                std::thread::sleep(Duration::from_millis(300));
                                x
                            },
                            i,
                        )
                        .await
                        .unwrap()
                    }));
                }
                for (i, p) in v.into_iter().enumerate() {
                    let p = p.await.unwrap();
                    if i % 2 == 0 {
                        p.terminate().unwrap();
                        println!("{:?}", p.join().await);
                    } else {
                        assert_eq!(p.join().await.unwrap(), i as u64);
                    }
                }
                println!("{:?} fds {f} {}", t.elapsed(), fds());
                // dropped start
                for i in 0..200 {
                    let _ = tokio::time::timeout(
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
                    .await;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
                println!("fds {}", fds());
                for e in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
                    if let Ok(l) = std::fs::read_link(e.path()) {
                        println!("F {}", l.display().to_string().split(":").next().unwrap());
                    }
                }
                println!(
                    "{}",
                    String::from_utf8_lossy(
                        &std::process::Command::new("ps")
                            .args([
                                "--ppid",
                                &std::process::id().to_string(),
                                "-o",
                                "pid,stat,args"
                            ])
                            .output()
                            .unwrap()
                            .stdout
                    )
                );
            });
        }
    }
}
