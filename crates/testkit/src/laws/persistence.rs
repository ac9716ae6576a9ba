//! What a store on disk keeps.

use std::sync::Arc;

use replikv_core::{Durability, Keyspace, LinkId, StoreError};

use super::cursors::cursor;
use crate::Bench;
use crate::bench::{Put, Shorthand, writes};

/// What was applied is there when the store is opened again, in every keyspace.
pub async fn what_was_applied_is_there_after_reopening(bench: Arc<Bench>) {
    for round in 0..5u32 {
        let store = bench.open();
        assert_eq!(store.contents(Keyspace::Data).await.len(), round as usize);
        let set = writes(|set| {
            set.data(round.to_be_bytes(), "v").put(Keyspace::Log, round.to_be_bytes(), "l").expect("a key");
            set.put(Keyspace::Meta, "round", round.to_be_bytes()).expect("a key");
        });
        store.apply(set, Durability::Buffered).await.expect("the write set is applied");
        store.close().await.expect("the store closes");
    }
    let store = bench.open();
    assert_eq!(store.contents(Keyspace::Log).await.len(), 5);
    assert_eq!(store.get(Keyspace::Meta, b"round").await.expect("read").as_deref(), Some(&4u32.to_be_bytes()[..]));
}

/// Deletes and range deletes are kept as well as puts.
pub async fn deletes_are_kept(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "").data("b", "").data("c", "");
        })
        .await;
    store
        .commit(|set| {
            set.remove("a");
        })
        .await;
    let range = replikv_core::KeyRange::from_bounds("b".."c");
    store
        .commit(|set| {
            set.delete_range(Keyspace::Data, &range);
        })
        .await;
    store.close().await.expect("the store closes");
    let keys: Vec<_> = bench.open().contents(Keyspace::Data).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["c"]);
}

/// A cursor is kept.
pub async fn a_cursor_is_kept(bench: Arc<Bench>) {
    let store = bench.open();
    let link = LinkId::default();
    store
        .commit(|set| {
            set.set_cursor(&link, &cursor(7));
        })
        .await;
    store.close().await.expect("the store closes");
    assert_eq!(bench.open().cursor(&link).await.expect("the cursor is read"), Some(cursor(7)));
}

/// A store that was closed can be opened at once; other handles to the closed one do not keep it.
pub async fn a_closed_store_can_be_opened_at_once(bench: Arc<Bench>) {
    for _ in 0..10 {
        let store = bench.open();
        let other = store.clone();
        store
            .commit(|set| {
                set.data("key", "");
            })
            .await;
        store.close().await.expect("the store closes");
        let again = bench.open();
        assert!(again.data("key").await.is_some());
        assert!(matches!(other.get(Keyspace::Data, b"key").await, Err(StoreError::Closed)));
        again.close().await.expect("the store closes");
    }
}

/// A store that is open cannot be opened a second time: that is `Busy`, and the first goes on.
pub async fn a_second_open_is_busy(bench: Arc<Bench>) {
    let store = bench.open();
    let second = bench.try_open().map(drop);
    assert!(matches!(second, Err(StoreError::Busy { .. })), "{second:?}");
    store
        .commit(|set| {
            set.data("key", "");
        })
        .await;
    assert!(store.data("key").await.is_some());
}
