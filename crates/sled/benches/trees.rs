//! What several trees cost: the same write sets into a store of one tree and into one of three, round by round in one
//! run. `cargo bench -p replikv-sled --bench trees` prints the figures of docs/adoption_sled.md.

use std::path::Path;
use std::time::Instant;

use fastrand::Rng;
use replikv_core::{Durability, Keyspace, ReplicaStore, StoreError, Subspace, WriteSet};
use replikv_sled::{SledOptions, SledStore};

const TREES: [&str; 3] = ["users", "orders", "parts"];

fn open(dir: &Path, trees: usize) -> Result<SledStore, StoreError> {
    SledStore::open_with(dir, SledOptions::default().trees(&TREES[..trees]))
}

/// As a master writes them: the batch, its record, and the head.
fn write_set(rng: &mut Rng, number: u64, ops: usize) -> Result<WriteSet, StoreError> {
    let mut writes = WriteSet::builder();
    for op in 0..ops {
        let space = Subspace::named(TREES[op % TREES.len()]);
        writes.put(Keyspace::Data, space.key(rng.u128(..).to_be_bytes()), [0x5A; 100])?;
    }
    writes.put(Keyspace::Log, number.to_be_bytes(), vec![0x5A; 130 * ops])?;
    writes.put(Keyspace::Meta, "head", number.to_be_bytes())?;
    Ok(writes.build())
}

/// Operations a second.
async fn speed(store: &SledStore, sets: Vec<WriteSet>, ops: usize, durability: Durability) -> Result<f64, StoreError> {
    let count = sets.len() * ops;
    let start = Instant::now();
    for set in sets {
        store.apply(set, durability).await?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Run as a test, it only shows that it runs.
    let measures = std::env::args().any(|argument| argument == "--bench");
    // Many short rounds: what else the machine does meets both alike.
    let (rounds, total) = if measures { (61, 4_000) } else { (1, 200) };
    println!("| durability | operations in a set | one tree | three trees | ratio |\n| --- | --- | --- | --- | --- |");
    for durability in [Durability::Synced, Durability::Buffered] {
        for ops in [1, 10, 100, 1000] {
            let dir = tempfile::tempdir()?;
            let stores = [open(&dir.path().join("one"), 0)?, open(&dir.path().join("three"), TREES.len())?];
            let mut rng = Rng::with_seed(7);
            let mut speeds = [Vec::new(), Vec::new()];
            let mut number = 0;
            // Each set is a commit, and a sync is what a small one consists of.
            let sets = (total / ops).clamp(1, 200);
            for round in 0..rounds {
                let made = (number..number + sets as u64).map(|number| write_set(&mut rng, number, ops));
                let made: Vec<WriteSet> = made.collect::<Result<_, _>>()?;
                number += sets as u64;
                // Each goes first in turn.
                for which in [round % 2, 1 - round % 2] {
                    speeds[which].push(speed(&stores[which], made.clone(), ops, durability).await?);
                }
            }
            let ratio = median(speeds[1].iter().zip(&speeds[0]).map(|(three, one)| three / one).collect());
            let [one, three] = speeds.map(median);
            println!("| {durability:?} | {ops} | {one:.0}/s | {three:.0}/s | {ratio:.2} |");
            for store in stores {
                store.close().await?;
            }
        }
    }
    Ok(())
}
