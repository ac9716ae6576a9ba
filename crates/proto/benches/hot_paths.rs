//! How long the hot paths take: `cargo bench -p replikv-proto --bench hot_paths`.
//!
//! Figures of stores and of whole replication come from `replikv bench`.

mod paths;

use divan::Bencher;
use divan::counter::ItemsCount;

use paths::{PATHS, Path};

fn main() {
    divan::main();
}

#[divan::bench(args = PATHS)]
fn path(bencher: Bencher<'_, '_>, path: &Path) {
    bencher.counter(ItemsCount::new(path.items)).with_inputs(path.prepare).bench_local_values(|run| run());
}
