//! What the integration tests share: seeded histories, whole contents, waiting.

#![allow(dead_code, reason = "each program uses a part of it")]

pub(crate) mod wire;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::TryStreamExt;
use replikv::{Batch, KeyRange, Keyspace, ReplicaStore, ReplicaStoreExt, ScanOptions};

pub(crate) type Store = Arc<dyn ReplicaStore>;
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The seed of this run: from `REPLIKV_SEED`, or fixed.
pub(crate) fn seed() -> u64 {
    std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917)
}

/// Printed by every seeded test, and shown by the runner when it fails.
pub(crate) fn print_seed(test: &str, seed: u64) {
    println!("reproduce: REPLIKV_SEED={seed} cargo test --workspace --all-features {test}");
}

pub(crate) fn open(kind: &str, dir: &Path) -> Store {
    let url = match kind {
        "memory" => "memory:".to_string(),
        kind => format!("{kind}:{}", dir.display()),
    };
    replikv::open(&url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Everything that users see of a store.
pub(crate) async fn contents(store: &Store) -> Vec<(Bytes, Bytes)> {
    let options = ScanOptions::default().max_entries(10_000).max_bytes(8 << 20);
    store.entries(Keyspace::Data, KeyRange::all(), options).try_collect().await.unwrap()
}

/// Fails with the first difference.
pub(crate) async fn assert_equal(one: &Store, two: &Store) {
    let (one, two) = (contents(one).await, contents(two).await);
    for (a, b) in one.iter().zip(&two) {
        assert!(
            a == b,
            "first difference: {:?} and {:?}",
            a.0.escape_ascii().to_string(),
            b.0.escape_ascii().to_string()
        );
    }
    assert_eq!(one.len(), two.len(), "one store holds more entries");
}

/// Waits for what must happen soon. The limit only turns a hang into a failure.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("nothing hangs")
}

pub(crate) fn key(rng: &mut Rng) -> Vec<u8> {
    let len = rng.usize(1..=6);
    (0..len).map(|_| [0, 1, b'a', b'm', b'z', 0xFE, 0xFF][rng.usize(..7)]).collect()
}

/// A batch of a history that has everything in it: puts, overwrites, deletes, range deletes, empty and large values.
pub(crate) fn batch(rng: &mut Rng) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..=8) {
        batch = match rng.u8(..20) {
            0..=12 => {
                let len = match rng.u16(..400) {
                    0 => 300_000,
                    1..=20 => 5_000,
                    21..=60 => 0,
                    _ => rng.usize(1..100),
                };
                let byte = rng.u8(..);
                batch.put(key(rng), vec![byte; len])
            }
            13..=16 => batch.delete(key(rng)),
            17..=18 => {
                let (a, b) = (key(rng), key(rng));
                batch.delete_range(a..b)
            }
            _ => batch.note(key(rng)),
        };
    }
    batch
}
