//! Closing and reopening.

use std::sync::Arc;

use replikv_core::{Durability, KeyRange, Keyspace, ScanOptions, StoreError};

use crate::Bench;
use crate::bench::{Put, Shorthand, writes};

/// A closed store refuses every call as `Closed`.
pub async fn a_closed_store_refuses_everything(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("key", "");
        })
        .await;
    store.close().await.expect("the store closes");
    let set = writes(|set| {
        set.data("late", "");
    });
    assert!(matches!(store.apply(set, Durability::Synced).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(Keyspace::Data, b"key").await, Err(StoreError::Closed)));
    let scan = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await;
    assert!(matches!(scan, Err(StoreError::Closed)));
    assert!(matches!(store.sync().await, Err(StoreError::Closed)));
    assert!(matches!(store.reopen().await, Err(StoreError::Closed)));
}

/// Closing twice is no error.
pub async fn closing_twice_is_no_error(bench: Arc<Bench>) {
    let store = bench.open();
    store.close().await.expect("the store closes");
    store.close().await.expect("the store is closed");
}

/// Reopening a store that is well changes nothing.
pub async fn reopening_a_healthy_store_changes_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("key", "value");
        })
        .await;
    store.reopen().await.expect("the store is well");
    assert_eq!(store.data("key").await.as_deref(), Some(&b"value"[..]));
    store
        .commit(|set| {
            set.data("key", "other");
        })
        .await;
    assert_eq!(store.data("key").await.as_deref(), Some(&b"other"[..]));
}

/// A sync of a store that is well succeeds, with and without anything to do.
pub async fn a_sync_succeeds(bench: Arc<Bench>) {
    let store = bench.open();
    store.sync().await.expect("there is nothing to do");
    let set = writes(|set| {
        set.data("key", "value");
    });
    store.apply(set, Durability::Buffered).await.expect("the write set is applied");
    store.sync().await.expect("there is something to do");
    assert!(store.data("key").await.is_some());
}
