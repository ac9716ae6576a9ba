//! Entries as they are kept: their order, the longest keys, the largest values.

use std::collections::BTreeMap;

use crate::support::{contents, plain, plain_entries, put, value};
use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_lmdb::{LmdbOptions, LmdbStore, LmdbSync};

fn open(path: &std::path::Path) -> LmdbStore {
    LmdbStore::open(path, LmdbOptions::default().sync(LmdbSync::DangerouslyNone)).unwrap()
}

/// Runs of ascending keys, which are appended, between keys from anywhere, deletes of the last key, and range deletes.
fn random_writes(rng: &mut Rng, model: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> WriteSet {
    let mut writes = WriteSet::builder();
    for _ in 0..rng.usize(1..6) {
        match rng.u8(..10) {
            0..=3 => {
                let mut key = model.keys().next_back().cloned().unwrap_or_default();
                for _ in 0..rng.usize(1..40) {
                    // Beyond the last key: longer, or larger.
                    match key.iter().position(|byte| *byte < 0xFF).filter(|_| rng.bool()) {
                        Some(at) => key[at] += 1,
                        None => key.push(rng.u8(..)),
                    }
                    key.truncate(20);
                    if key.is_empty() {
                        key.push(0);
                    }
                    let value = vec![rng.u8(..); rng.usize(..60)];
                    writes.put(Keyspace::Data, &key, &value).unwrap();
                    model.insert(key.clone(), value);
                }
            }
            4..=6 => {
                for _ in 0..rng.usize(1..20) {
                    let key: Vec<u8> = (0..rng.usize(1..8)).map(|_| rng.u8(..)).collect();
                    let value = vec![rng.u8(..); rng.usize(..5000)];
                    writes.put(Keyspace::Data, &key, &value).unwrap();
                    model.insert(key, value);
                }
            }
            7 => {
                // The last key goes, and comes again, and goes.
                if let Some(key) = model.keys().next_back().cloned() {
                    writes.delete(Keyspace::Data, &key).unwrap();
                    if rng.bool() {
                        writes.put(Keyspace::Data, &key, b"again").unwrap();
                        model.insert(key, b"again".to_vec());
                    } else {
                        model.remove(&key);
                    }
                }
            }
            8 => {
                let (a, b) = (vec![rng.u8(..)], vec![rng.u8(..), rng.u8(..)]);
                let range = KeyRange::new(a, Some(b.into()));
                writes.delete_range(Keyspace::Data, &range);
                model.retain(|key, _| !range.contains(key));
            }
            _ => {
                // Another keyspace in between: what is known of the last key is of its own.
                writes.put(Keyspace::Log, [0xFF; 8], "record").unwrap();
                if rng.u8(..20) == 0 {
                    writes.delete_range(Keyspace::Data, &KeyRange::all());
                    model.clear();
                }
            }
        }
    }
    writes.build()
}

#[tokio::test]
async fn appended_and_inserted_entries_keep_their_order() {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-lmdb --test lmdb order");
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut model = BTreeMap::new();
    for round in 0..400 {
        let writes = random_writes(&mut rng, &mut model);
        store.apply(writes, Durability::Buffered).await.unwrap();
        if round % 10 == 0 {
            let held = contents(&store).await;
            assert_eq!(held.len(), model.len(), "round {round}");
            assert!(held.iter().map(|(k, v)| (&k[..], &v[..])).eq(model.iter().map(|(k, v)| (&k[..], &v[..]))));
        }
        if round % 50 == 0
            && let Some(key) = model.keys().nth(model.len() / 2)
        {
            let found = store.get(Keyspace::Data, key).await.unwrap();
            assert_eq!(found.as_deref(), model.get(key).map(|value| &value[..]));
        }
    }
    store.close().await.unwrap();
    // Also for whoever reads it with LMDB alone.
    let plain = plain_entries(&plain(dir.path()), "data").unwrap();
    assert!(plain.into_iter().eq(model));
}

#[tokio::test]
async fn the_longest_keys_are_held_and_bounds_may_be_longer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.limits().max_key, 511);
    let long = |last: u8| [&[b'k'; 510][..], &[last]].concat();
    let mut writes = WriteSet::builder();
    for last in [0, 1, 0x7F, 0xFF] {
        writes.put(Keyspace::Data, long(last), [last]).unwrap();
        writes.put(Keyspace::Log, long(last), [last]).unwrap();
    }
    writes.put(Keyspace::Data, &long(0)[..510], "shorter").unwrap();
    store.apply(writes.build(), Durability::Synced).await.unwrap();
    for last in [0, 1, 0x7F, 0xFF] {
        assert_eq!(store.get(Keyspace::Data, &long(last)).await.unwrap().unwrap(), [last][..]);
    }
    let refused = store.apply(put([b'k'; 512], ""), Durability::Synced).await.unwrap_err();
    assert!(matches!(refused, StoreError::KeyTooLong { len: 512, max: 511 }), "{refused}");

    // Between a key of full length and the next one lie only bounds.
    let longer = |last: u8| [&long(last)[..], b"\x00\x00"].concat();
    let keys = async |start: Vec<u8>, end: Vec<u8>| {
        let range = KeyRange::new(start, Some(end.into()));
        let options = ScanOptions::default();
        let forward = store.scan(Keyspace::Data, range.clone(), options).await.unwrap();
        let back = store.scan(Keyspace::Data, range, options.reversed()).await.unwrap();
        let forward: Vec<_> = forward.entries().map(|(key, _)| key[key.len() - 1]).collect();
        let back: Vec<_> = back.entries().map(|(key, _)| key[key.len() - 1]).collect();
        assert!(forward.iter().rev().eq(&back));
        forward
    };
    assert_eq!(keys(longer(0), longer(0x7F)).await, [1, 0x7F]);
    assert_eq!(keys(long(0), long(0x7F)).await, [0, 1]);
    assert!(keys(longer(1), [&longer(1)[..], b"z"].concat()).await.is_empty());
    let mut writes = WriteSet::builder();
    writes.delete_range(Keyspace::Data, &KeyRange::new(longer(0), Some(longer(1).into())));
    store.apply(writes.build(), Durability::Synced).await.unwrap();
    assert_eq!(contents(&store).await.len(), 4);
    assert!(store.get(Keyspace::Data, &long(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn the_largest_value_is_held_and_a_larger_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let max = store.limits().max_value;
    let large = {
        let mut bytes = vec![0; max + 1];
        bytes.chunks_mut(4096).enumerate().for_each(|(number, chunk)| chunk[0] = number as u8);
        Bytes::from(bytes)
    };
    let refused = store.apply(put("k", &large), Durability::Synced).await.unwrap_err();
    assert!(matches!(refused, StoreError::ValueTooLarge { len, .. } if len == max + 1), "{refused}");
    store.apply(put("k", &large[..max]), Durability::Synced).await.unwrap();
    assert!(value(&store, "k").await.unwrap() == large[..max]);
    let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap();
    assert_eq!(page.len(), 1, "a page holds one entry, however large it is");
    store.close().await.unwrap();
    let store = open(dir.path());
    assert!(value(&store, "k").await.unwrap() == large[..max]);
    store.apply(put("k", "small"), Durability::Synced).await.unwrap();
    assert_eq!(value(&store, "k").await.unwrap(), "small");
}
