//! Has a thread in each of its processes before the crate's hook, so none can be copied safely.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio_multiprocess::{Process, StartMethod};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Stands in the program's own code, which the linker puts before that of its libraries.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start_thread;

extern "C" fn start_thread() {
    let thread = std::thread::Builder::new().name("library's".to_owned());
    thread.spawn(std::thread::park).unwrap();
}

static N_WARNINGS: AtomicU32 = AtomicU32::new(0);

/// Counts warnings.
struct Counter;

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        N_WARNINGS.fetch_add(1, Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn main() {
    tracing::subscriber::set_global_default(Counter).unwrap();
    programs::block_on(async {
        for _ in 0..3 {
            programs::start_one().await;
        }
        println!("{} warning", N_WARNINGS.load(Relaxed));
        let builder = Process::builder().start_method(StartMethod::FORK_SERVER);
        let started = builder.start(programs::square, 3).await;
        println!("{:?}", started.unwrap_err());
    });
}
