//! iceoryx2: shared memory, polled by both sides, and read in place.

use std::time::Instant;

use iceoryx2::prelude::*;

use crate::harness::{median_us, per_op_ns};
use crate::message::count;
use crate::rival::{Place, Rival};

type Service = ipc::Service;
type Words = [u64; 8];

/// Microseconds there and back, both sides spinning.
pub(crate) fn round_trip(place: Place) -> f64 {
    place.take();
    let name = format!("peers/{}", std::process::id());
    let (there, back) = (format!("{name}/there"), format!("{name}/back"));
    let (rivals_there, rivals_back) = (there.clone(), back.clone());
    let _rival = Rival::start(move || {
        let node = node();
        let incoming = subscriber(&node, &rivals_there);
        let outgoing = publisher(&node, &rivals_back);
        loop {
            let words = spin(&incoming);
            outgoing.send_copy(words).expect("a peer");
        }
    });
    let node = node();
    let outgoing = publisher(&node, &there);
    let incoming = subscriber(&node, &back);
    // Nothing is kept for a subscriber that comes late: knock until the other side answers.
    while incoming.receive().expect("a service").is_none() {
        outgoing.send_copy([0; 8]).expect("a service");
        std::thread::yield_now();
    }
    while incoming.receive().expect("a service").is_some() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    median_us(20_000, || {
        outgoing.send_copy([1; 8]).expect("a peer");
        spin(&incoming);
    })
}

/// Nanoseconds a message one way, written once by the sender, every page of it read.
pub(crate) fn one_way(len: usize) -> f64 {
    let n = count(len);
    let name = format!("peers/{}/one-way", std::process::id());
    let rivals_name = name.clone();
    let _rival = Rival::start(move || {
        let node = node();
        let service = slices(&node, &rivals_name);
        let publisher = service
            .publisher_builder()
            .initial_max_slice_len(len)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()
            .expect("a publisher");
        let message = vec![7; len];
        loop {
            let sample = publisher.loan_slice_uninit(len).expect("a sample");
            sample.write_from_slice(&message).send().expect("a service");
        }
    });
    let node = node();
    let service = slices(&node, &name);
    let subscriber = service.subscriber_builder().create().expect("a subscriber");
    let receive = || {
        loop {
            if let Some(sample) = subscriber.receive().expect("a service") {
                let sum = sample
                    .iter()
                    .step_by(4096)
                    .map(|byte| usize::from(*byte))
                    .sum::<usize>();
                assert_eq!(sum, 7 * len.div_ceil(4096));
                return;
            }
        }
    };
    receive();
    let started = Instant::now();
    (0..n).for_each(|_| receive());
    per_op_ns(started.elapsed(), n)
}

fn node() -> Node<Service> {
    set_log_level(LogLevel::Fatal);
    NodeBuilder::new().create::<Service>().expect("a node")
}

fn publisher(
    node: &Node<Service>,
    name: &str,
) -> iceoryx2::port::publisher::Publisher<Service, Words, ()> {
    words(node, name)
        .publisher_builder()
        .create()
        .expect("a publisher")
}

fn subscriber(
    node: &Node<Service>,
    name: &str,
) -> iceoryx2::port::subscriber::Subscriber<Service, Words, ()> {
    words(node, name)
        .subscriber_builder()
        .create()
        .expect("a subscriber")
}

fn words(
    node: &Node<Service>,
    name: &str,
) -> iceoryx2::service::port_factory::publish_subscribe::PortFactory<Service, Words, ()> {
    let name = name.try_into().expect("a name");
    node.service_builder(&name)
        .publish_subscribe::<Words>()
        .open_or_create()
        .expect("a service")
}

fn slices(
    node: &Node<Service>,
    name: &str,
) -> iceoryx2::service::port_factory::publish_subscribe::PortFactory<Service, [u8], ()> {
    let name = name.try_into().expect("a name");
    node.service_builder(&name)
        .publish_subscribe::<[u8]>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(64)
        .open_or_create()
        .expect("a service")
}

fn spin(incoming: &iceoryx2::port::subscriber::Subscriber<Service, Words, ()>) -> Words {
    loop {
        if let Some(sample) = incoming.receive().expect("a service") {
            return *sample;
        }
        std::hint::spin_loop();
    }
}
