//! Preconditions.

use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{Durability, Keyspace, Outcome, ReplicaStore, StoreError, WriteSet};

use crate::Bench;
use crate::bench::{Put, Shorthand};

fn fenced(expected: Option<&[u8]>, head: &[u8]) -> WriteSet {
    let mut set = WriteSet::builder();
    set.require("head", expected.map(Bytes::copy_from_slice));
    set.data(head, "written").put(Keyspace::Meta, "head", head).expect("a key").build()
}

async fn head(store: &Arc<dyn ReplicaStore>) -> Option<Bytes> {
    store.get(Keyspace::Meta, b"head").await.expect("the head is read")
}

/// A set whose preconditions hold is applied: a value, and absence.
pub async fn a_condition_that_holds_lets_the_set_through(bench: Arc<Bench>) {
    let store = bench.open();
    store.apply(fenced(None, b"1"), Durability::Synced).await.expect("the head is absent");
    store.apply(fenced(Some(b"1"), b"2"), Durability::Synced).await.expect("the head is 1");
    assert_eq!(head(&store).await.as_deref(), Some(&b"2"[..]));
}

/// A set whose precondition does not hold is refused as `HeadMoved`, and changes nothing.
pub async fn a_condition_that_fails_changes_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    store.apply(fenced(None, b"1"), Durability::Synced).await.expect("the head is absent");
    for expected in [None, Some(&b"0"[..]), Some(b""), Some(b"11")] {
        let error = store.apply(fenced(expected, b"2"), Durability::Synced).await.expect_err("the head is 1");
        assert!(matches!(error, StoreError::HeadMoved), "{error:?}");
        assert_eq!(error.outcome(), Outcome::Unchanged);
    }
    assert_eq!(head(&store).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(store.contents(Keyspace::Data).await.len(), 1);
    store.apply(fenced(Some(b"1"), b"2"), Durability::Synced).await.expect("the head is 1");
}

/// Every precondition counts, not only the first.
pub async fn every_condition_counts(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.put(Keyspace::Meta, "head", "1").expect("a key");
        })
        .await;
    let mut set = WriteSet::builder();
    set.require("head", Some("1".into())).require("other", Some("there".into())).data("key", "");
    assert!(matches!(store.apply(set.build(), Durability::Synced).await, Err(StoreError::HeadMoved)));
    assert!(store.contents(Keyspace::Data).await.is_empty());
}

/// A precondition is about the state before the set, whatever the set itself writes.
pub async fn a_condition_is_checked_before_the_set(bench: Arc<Bench>) {
    let store = bench.open();
    let mut set = WriteSet::builder();
    set.require("head", Some("new".into()));
    set.put(Keyspace::Meta, "head", "new").expect("a key");
    assert!(matches!(store.apply(set.build(), Durability::Synced).await, Err(StoreError::HeadMoved)));
    assert_eq!(head(&store).await, None);
}

/// Two writers that build on one head never both succeed.
pub async fn two_writers_never_share_a_head(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.put(Keyspace::Meta, "head", 0u64.to_be_bytes()).expect("a key");
        })
        .await;
    let writers: Vec<_> = (0..8u64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut wins = 0u64;
                for _ in 0..50 {
                    let seen = head(&store).await.expect("there is a head");
                    let number = u64::from_be_bytes(seen[..].try_into().expect("eight bytes")) + 1;
                    let mut set = WriteSet::builder();
                    set.require("head", Some(seen));
                    set.put(Keyspace::Meta, "head", number.to_be_bytes()).expect("a key");
                    // Of two winners of one number, one would overwrite the other here.
                    set.put(Keyspace::Log, number.to_be_bytes(), writer.to_be_bytes()).expect("a key");
                    match store.apply(set.build(), Durability::Buffered).await {
                        Ok(()) => wins += 1,
                        Err(StoreError::HeadMoved) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
                wins
            })
        })
        .collect();
    let mut wins = 0;
    for writer in writers {
        wins += writer.await.expect("the writer ends");
    }
    assert!(wins > 0);
    assert_eq!(store.contents(Keyspace::Log).await.len() as u64, wins);
    assert_eq!(head(&store).await.as_deref(), Some(&wins.to_be_bytes()[..]));
}
