//! A benchmark starts a process.

use criterion::{Criterion, criterion_group, criterion_main};
use programs::{block_on, start_one};

fn starts(criterion: &mut Criterion) {
    criterion.bench_function("start and join", |bencher| {
        bencher.iter(|| block_on(start_one()));
    });
}

criterion_group!(benches, starts);
criterion_main!(benches);
