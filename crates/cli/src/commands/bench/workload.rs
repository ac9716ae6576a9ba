//! What is written, and how fast a store takes it without a log.

use std::time::Instant;

use bytes::Bytes;
use replikv::{Batch, Durability, Keyspace, Master, Token, WriteSet};

use crate::args::{self, Keys};
use crate::store::Store;
use crate::ui;

/// Entries, the same ones for every seed. Values cannot be compressed.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    rng: fastrand::Rng,
    keys: Keys,
    next: u128,
    noise: Bytes,
    value: usize,
}

impl Entries {
    pub(super) fn new(args: &args::Bench) -> Self {
        Self::part(args, 0)
    }

    /// Others for each number.
    pub(super) fn part(args: &args::Bench, number: usize) -> Self {
        Self::seeded(args.keys, args.value, number)
    }

    pub(super) fn seeded(keys: Keys, value: usize, number: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(7 + number as u64);
        let noise = (0..value + 4096).map(|_| rng.u8(..)).collect();
        Self { rng, keys, next: (number as u128) << 64, noise, value }
    }
}

/// In key order.
pub(super) fn sorted(entries: impl Iterator<Item = (Key, Bytes)>) -> Vec<(Key, Bytes)> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable_by_key(|entry| entry.0);
    entries
}

pub(super) type Key = [u8; 16];

impl Iterator for Entries {
    type Item = (Key, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        self.next += 1;
        let key = match self.keys {
            Keys::Random => self.rng.u128(..),
            Keys::Sequential => self.next,
        };
        let from = self.rng.usize(..4096);
        Some((key.to_be_bytes(), self.noise.slice(from..from + self.value)))
    }
}

/// What allocates, in words.
pub(super) const ALLOCATOR: &str = if cfg!(feature = "jemalloc") { ", with jemalloc" } else { "" };

pub(super) fn words(args: &args::Bench) -> String {
    let keys = match args.keys {
        Keys::Random => "random",
        Keys::Sequential => "sequential",
    };
    let entries = ui::thousands(args.entries as u64);
    format!("{entries} entries, {keys} 16-byte keys, {}-byte values, {} a batch{ALLOCATOR}", args.value, args.batch)
}

/// Of text.
pub(super) fn words_of_text(args: &args::Bench) -> String {
    format!("{} paragraphs of text, {} a batch{ALLOCATOR}", ui::thousands(args.entries as u64), args.batch)
}

/// So many at once, and at the end what is left.
pub(super) fn batches(
    mut entries: impl Iterator<Item = (Key, Bytes)>,
    batch: usize,
) -> impl Iterator<Item = Vec<(Key, Bytes)>> {
    std::iter::from_fn(move || Some(entries.by_ref().take(batch).collect::<Vec<_>>()))
        .take_while(|next| !next.is_empty())
}

/// Puts entries into a store as they come: how many a second, synced.
pub(super) async fn ingest(
    store: &Store,
    entries: impl Iterator<Item = (Key, Bytes)>,
    batch: usize,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    for batch in batches(entries, batch) {
        let mut writes = WriteSet::builder();
        for (key, value) in batch {
            writes.put(Keyspace::Data, key, value)?;
            count += 1;
        }
        store.apply(writes.build(), Durability::Synced).await?;
    }
    Ok(ui::rate(count, start.elapsed()))
}

/// Writes entries through a master, one batch after the other: how many a second, and the last of them.
pub(super) async fn write(
    master: &Master<Store>,
    entries: impl Iterator<Item = (Key, Bytes)>,
    batch: usize,
) -> anyhow::Result<(f64, Option<Token>)> {
    let start = Instant::now();
    let mut count = 0;
    let mut last = None;
    for batch in batches(entries, batch) {
        let mut writes = Batch::new();
        for (key, value) in batch {
            writes = writes.put(key, value);
            count += 1;
        }
        last = Some(master.write(writes).await?);
    }
    Ok((ui::rate(count, start.elapsed()), last))
}
