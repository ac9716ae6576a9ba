//! Single entries.

use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{Durability, Keyspace, LargePut, StoreError, WriteSet};

use crate::Bench;
use crate::bench::{Put, Shorthand, writes};

/// A fresh store is empty in every keyspace.
pub async fn a_fresh_store_holds_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    for keyspace in Keyspace::ALL {
        assert!(store.contents(keyspace).await.is_empty(), "{keyspace:?}");
        assert_eq!(store.get(keyspace, b"key").await.expect("the key is read"), None);
    }
}

/// What was put is what is read.
pub async fn what_is_put_is_read(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "1").data("b", "2");
        })
        .await;
    assert_eq!(store.data("a").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(store.data("b").await.as_deref(), Some(&b"2"[..]));
    assert_eq!(store.data("c").await, None);
}

/// Many keys at once are answered in their order, each as it would be alone, refusals included.
pub async fn many_keys_are_read_as_each_alone(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "1").data("b", "").data("c", "3".repeat(10_000));
        })
        .await;
    let keys = ["c", "never", "a", "b", "c", "aa"].map(Bytes::from);
    for keyspace in Keyspace::ALL {
        let mut alone = Vec::new();
        for key in &keys {
            alone.push(store.get(keyspace, key).await.expect("the key is read"));
        }
        assert_eq!(store.get_many(keyspace, &keys).await.expect("the keys are read"), alone, "{keyspace:?}");
    }
    assert_eq!(store.get_many(Keyspace::Data, &[]).await.expect("nothing is read"), []);
    let refused = store.get_many(Keyspace::Data, &["a".into(), Bytes::new()]).await;
    assert!(matches!(refused, Err(StoreError::KeyEmpty)), "{refused:?}");
    let long = Bytes::from(vec![1; store.limits().max_key + 1]);
    let refused = store.get_many(Keyspace::Data, &[long, "a".into()]).await;
    assert!(matches!(refused, Err(StoreError::KeyTooLong { .. })), "{refused:?}");
}

/// A store that says how much data it holds does not say much more than there is, also where keys are written again. It
/// may say less: what it has in memory, and what it compresses, need not count.
pub async fn what_is_said_of_its_size_is_about_right(bench: Arc<Bench>) {
    let store = bench.open();
    let (mut random, mut there) = (fastrand::Rng::with_seed(5), 0);
    for round in 0..30u32 {
        let mut set = WriteSet::builder();
        for number in 0..1_000u32 {
            let value: Vec<u8> = (0..300).map(|_| random.u8(..)).collect();
            let key = (round % 10 * 1_000 + number).to_be_bytes();
            there += if round < 10 { (key.len() + value.len()) as u64 } else { 0 };
            set.put(Keyspace::Data, key, value).expect("it fits");
            // Nobody asked for the others.
            set.put(Keyspace::Log, random.u128(..).to_be_bytes(), [7; 3_000]).expect("it fits");
        }
        store.apply(set.build(), Durability::Buffered).await.expect("it is applied");
    }
    if let Some(said) = store.stats().data_bytes {
        assert!(said <= there * 2, "it says {said}, and holds {there}");
    }
}

/// A put replaces the value that was there, longer or shorter.
pub async fn a_put_replaces(bench: Arc<Bench>) {
    let store = bench.open();
    for value in ["long".repeat(100), String::new(), "x".into()] {
        store
            .commit(|set| {
                set.data("key", &value);
            })
            .await;
        assert_eq!(store.data("key").await.as_deref(), Some(value.as_bytes()));
    }
    assert_eq!(store.contents(Keyspace::Data).await.len(), 1);
}

/// A delete removes one key and no other; a key that is not there can be deleted.
pub async fn a_delete_removes_its_key_alone(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "").data("aa", "").data("b", "");
        })
        .await;
    store
        .commit(|set| {
            set.remove("a").remove("never");
        })
        .await;
    let keys: Vec<_> = store.contents(Keyspace::Data).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["aa", "b"]);
}

/// A value that comes in pieces is read as one. It replaces what was there, and gives way to what comes after it.
pub async fn a_value_in_pieces_is_read_as_one(bench: Arc<Bench>) {
    let store = bench.open();
    let pieces = |len: usize| (0..3).map(|n| Bytes::from(vec![b'a' + n; len])).collect::<Vec<_>>();
    let put = |key: &str, len| LargePut::new(key.as_bytes(), pieces(len)).expect("a key");
    for len in [1, 700, 20_000] {
        let set = writes(|set| {
            set.data("before", "1").data("replaced", "1").data("replaced later", "1");
            for key in ["piecemeal", "replaced", "replaced later", "removed later"] {
                set.append(Keyspace::Data, put(key, len).into());
            }
            set.remove("removed later").data("replaced later", "2").data("zero", "1");
        });
        store.apply(set, Durability::Synced).await.expect("the write set is applied");
        for key in ["piecemeal", "replaced"] {
            assert!(store.data(key).await == Some(pieces(len).concat().into()), "{key}, in pieces of {len}");
        }
        for (key, value) in [("before", "1"), ("replaced later", "2"), ("zero", "1")] {
            assert_eq!(store.data(key).await.as_deref(), Some(value.as_bytes()), "{key}");
        }
        assert_eq!(store.data("removed later").await, None);
    }
}

/// The same key in two keyspaces is two keys, for reads, deletes and range deletes.
pub async fn keyspaces_are_apart(bench: Arc<Bench>) {
    let store = bench.open();
    for keyspace in Keyspace::ALL {
        let set = writes(|set| {
            set.put(keyspace, "key", keyspace.name()).expect("a key");
        });
        store.apply(set, Durability::Synced).await.expect("the write set is applied");
    }
    for keyspace in Keyspace::ALL {
        let found = store.get(keyspace, b"key").await.expect("the key is read");
        assert_eq!(found.as_deref(), Some(keyspace.name().as_bytes()));
    }
    store
        .commit(|set| {
            set.delete(Keyspace::Log, "key").expect("a key");
        })
        .await;
    assert_eq!(store.contents(Keyspace::Meta).await.len(), 1, "a delete keeps to its keyspace");
    store
        .commit(|set| {
            set.delete_range(Keyspace::Meta, &replikv_core::KeyRange::all());
        })
        .await;
    assert_eq!(store.data("key").await.as_deref(), Some(&b"data"[..]));
    assert!(store.contents(Keyspace::Log).await.is_empty() && store.contents(Keyspace::Meta).await.is_empty());
}

/// An empty value is there.
pub async fn an_empty_value_is_a_value(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("key", "");
        })
        .await;
    assert_eq!(store.data("key").await.as_deref(), Some(&b""[..]));
    assert_eq!(store.contents(Keyspace::Data).await.len(), 1);
}

/// Keys and values of every byte value come back as they were, in byte order.
pub async fn every_byte_is_kept(bench: Arc<Bench>) {
    let store = bench.open();
    let every: Vec<u8> = (0..=255).collect();
    store
        .commit(|set| {
            every.iter().for_each(|byte| {
                set.data([*byte], [*byte, 0, *byte]);
            });
        })
        .await;
    store
        .commit(|set| {
            set.data(&every, &every);
        })
        .await;
    assert_eq!(store.data(&every).await.as_deref(), Some(&every[..]));
    for byte in &every {
        assert_eq!(store.data([*byte]).await.as_deref(), Some(&[*byte, 0, *byte][..]));
    }
    let keys: Vec<_> = store.contents(Keyspace::Data).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 257);
    assert!(keys.is_sorted());
}

/// The longest key and a value as large as the store takes (up to 8 MiB here) come back whole.
pub async fn the_largest_entries_are_kept(bench: Arc<Bench>) {
    let store = bench.open();
    let limits = store.limits();
    let key = vec![0xAB; limits.max_key.min(1 << 16)];
    let value = vec![0xCD; limits.max_value.min(limits.max_batch.saturating_sub(key.len() + 64)).min(8 << 20)];
    store
        .commit(|set| {
            set.data(&key, &value);
        })
        .await;
    assert!(store.data(&key).await.is_some_and(|found| found == value));
    let contents = store.contents(Keyspace::Data).await;
    assert!(contents.len() == 1 && contents[0].0 == key && contents[0].1 == value);
}

/// A write set without operations is applied, and changes nothing.
pub async fn an_empty_write_set_changes_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "1");
        })
        .await;
    store.apply(WriteSet::builder().build(), Default::default()).await.expect("the write set is applied");
    assert_eq!(store.contents(Keyspace::Data).await.len(), 1);
}
