//! The faults are what they say.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use replikv_core::{
    Durability, KeyRange, Keyspace, Outcome, ReplicaStore, ReplicaStoreExt, ScanOptions, StoreError, WriteSet,
};
use replikv_memory::MemoryStore;
use replikv_testkit::{ApplyFault, FaultStore, Lost};
use tokio::time::timeout;

type Store = FaultStore<MemoryStore>;

fn store() -> Store {
    FaultStore::new(MemoryStore::new())
}

fn put(key: &str) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, "value").unwrap().build()
}

async fn keys(store: &Store) -> Vec<Bytes> {
    let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap();
    page.entries().map(|(key, _)| key).collect()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing hangs")
}

fn full() -> StoreError {
    StoreError::StoreFull { hint: "make room".into() }
}

fn is_fatal<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Fatal { .. }))
}

#[tokio::test]
async fn the_nth_apply_is_refused_and_changes_nothing() {
    let store = store();
    store.faults().apply_after(2, ApplyFault::Refuse(full()));
    let mut results = Vec::new();
    for key in ["a", "b", "c", "d"] {
        results.push(store.apply(put(key), Durability::Synced).await.is_ok());
    }
    assert_eq!(results, [true, true, false, true]);
    assert_eq!(keys(&store).await, ["a", "b", "d"]);
}

#[tokio::test]
async fn an_unknown_outcome_breaks_the_store_until_it_is_reopened() {
    for (fault, found) in [(ApplyFault::UnknownButApplied, 1), (ApplyFault::UnknownAndAbsent, 0)] {
        let store = store();
        store.faults().next_apply(fault);
        let error = store.apply(put("a"), Durability::Synced).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(is_fatal(&store.get(Keyspace::Data, b"a").await));
        assert!(is_fatal(&store.apply(put("b"), Durability::Synced).await));
        assert!(is_fatal(&store.sync().await));
        store.faults().refuse_reopens(2);
        assert!(store.reopen().await.is_err() && store.reopen().await.is_err());
        assert!(is_fatal(&store.get(Keyspace::Data, b"a").await));
        store.reopen().await.unwrap();
        assert_eq!(keys(&store).await.len(), found);
    }
}

#[tokio::test]
async fn an_apply_is_held_before_it_is_visible() {
    let store = store();
    let held = store.faults().hold_apply();
    assert!(!held.is_reached());
    let applying = tokio::spawn({
        let store = store.clone();
        async move { store.apply(put("a"), Durability::Synced).await }
    });
    soon(held.reached()).await;
    assert!(keys(&store).await.is_empty(), "readers do not wait, and see nothing");
    assert!(store.apply(put("b"), Durability::Synced).now_or_never().is_none(), "writers wait");
    held.release();
    soon(applying).await.unwrap().unwrap();
    assert_eq!(keys(&store).await, ["a"]);
}

#[tokio::test]
async fn a_visible_apply_is_not_durable_until_it_answers() {
    let store = store();
    let held = store.faults().hold_apply_visible();
    let applying = tokio::spawn({
        let store = store.clone();
        async move { store.apply(put("a"), Durability::Synced).await }
    });
    soon(held.reached()).await;
    assert_eq!(keys(&store).await, ["a"]);
    let after = soon(store.power_loss()).await.unwrap();
    assert!(is_fatal(&soon(applying).await.unwrap()));
    assert!(keys(&after).await.is_empty());
}

#[tokio::test]
async fn a_held_apply_that_is_dropped_is_decided() {
    let store = store();
    let held = store.faults().hold_apply();
    assert!(store.apply(put("a"), Durability::Synced).now_or_never().is_none());
    held.release();
    store.apply(put("b"), Durability::Synced).await.unwrap();
    assert_eq!(keys(&store).await, ["b"]);
}

#[tokio::test]
async fn power_loss_takes_what_was_not_synced_and_nothing_else() {
    let inner = MemoryStore::new();
    inner.apply(put("before"), Durability::Buffered).await.unwrap();
    let store = FaultStore::new(inner);
    store.apply(put("synced"), Durability::Synced).await.unwrap();
    store.apply(put("flushed"), Durability::Buffered).await.unwrap();
    store.sync().await.unwrap();
    let deleted = WriteSet::builder().delete_range(Keyspace::Data, &KeyRange::only("before")).build();
    store.apply(deleted, Durability::Buffered).await.unwrap();
    store.apply(put("lost"), Durability::Buffered).await.unwrap();
    assert_eq!(keys(&store).await, ["flushed", "lost", "synced"]);
    let after = store.power_loss().await.unwrap();
    assert_eq!(keys(&after).await, ["before", "flushed", "synced"]);
    for result in [store.apply(put("late"), Durability::Synced).await, store.sync().await, store.reopen().await] {
        assert!(is_fatal(&result), "handles from before are dead");
    }
    store.close().await.unwrap();
    after.apply(put("after"), Durability::Synced).await.unwrap();
    let again = after.power_loss().await.unwrap();
    assert_eq!(keys(&again).await, ["after", "before", "flushed", "synced"]);
}

#[tokio::test]
async fn a_synced_apply_takes_the_buffered_ones_before_it_along() {
    let store = store();
    store.apply(put("a"), Durability::Buffered).await.unwrap();
    store.apply(put("b"), Durability::Synced).await.unwrap();
    assert_eq!(keys(&store.power_loss().await.unwrap()).await, ["a", "b"]);
}

#[tokio::test]
async fn a_failed_sync_breaks_the_store_and_may_lose_what_it_was_for() {
    for (lost, found) in [(Lost::Nothing, vec!["a", "b"]), (Lost::Unsynced, vec!["a"])] {
        let store = store();
        store.apply(put("a"), Durability::Synced).await.unwrap();
        store.apply(put("b"), Durability::Buffered).await.unwrap();
        store.faults().fail_sync(lost);
        assert!(is_fatal(&store.sync().await));
        assert!(is_fatal(&store.sync().await), "a second sync proves nothing");
        assert!(is_fatal(&store.get(Keyspace::Data, b"a").await));
        store.reopen().await.unwrap();
        assert_eq!(keys(&store).await, found);
        assert_eq!(keys(&store.power_loss().await.unwrap()).await, ["a"], "the failed sync has synced nothing");
    }
}

#[tokio::test]
async fn an_unknown_outcome_may_take_what_was_not_synced_along() {
    let store = store();
    store.apply(put("a"), Durability::Synced).await.unwrap();
    store.apply(put("b"), Durability::Buffered).await.unwrap();
    store.faults().next_apply(ApplyFault::UnknownAndUnsyncedLost);
    assert_eq!(store.apply(put("c"), Durability::Buffered).await.unwrap_err().outcome(), Outcome::Unknown);
    store.reopen().await.unwrap();
    assert_eq!(keys(&store).await, ["a"]);
}

#[tokio::test]
async fn reads_fail_in_one_keyspace_and_as_often_as_asked() {
    let store = store();
    store.apply(put("a"), Durability::Synced).await.unwrap();
    store.faults().fail_reads(Keyspace::Data, 2, &StoreError::Corrupt { what: "a page".into() });
    assert!(store.get(Keyspace::Meta, b"a").await.is_ok());
    assert!(matches!(store.get(Keyspace::Data, b"a").await, Err(StoreError::Corrupt { .. })));
    assert!(store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.is_err());
    assert_eq!(keys(&store).await, ["a"]);
}

#[tokio::test]
async fn a_held_read_answers_what_was_there_when_it_read() {
    let store = store();
    let held = store.faults().hold_read(Keyspace::Data);
    let reading = tokio::spawn({
        let store = store.clone();
        async move { keys(&store).await }
    });
    soon(held.reached()).await;
    store.apply(put("a"), Durability::Synced).await.unwrap();
    held.release();
    assert!(soon(reading).await.unwrap().is_empty());
    assert_eq!(keys(&store).await, ["a"]);
}

#[tokio::test]
async fn a_held_sync_makes_nothing_durable() {
    let store = store();
    store.apply(put("a"), Durability::Buffered).await.unwrap();
    let held = store.faults().hold_sync();
    let syncing = tokio::spawn({
        let store = store.clone();
        async move { store.sync().await }
    });
    soon(held.reached()).await;
    let after = store.power_loss().await.unwrap();
    assert!(is_fatal(&soon(syncing).await.unwrap()));
    assert!(keys(&after).await.is_empty());
}

#[tokio::test]
async fn damage_outlives_power_loss() {
    let store = store();
    store.apply(put("a"), Durability::Synced).await.unwrap();
    assert!(store.damage(Keyspace::Data, b"a", |value| value[0] ^= 1).await.unwrap());
    assert!(!store.damage(Keyspace::Data, b"b", Vec::clear).await.unwrap());
    let after = store.power_loss().await.unwrap();
    assert_eq!(after.get(Keyspace::Data, b"a").await.unwrap().as_deref(), Some(&b"walue"[..]));
}

#[tokio::test]
async fn calls_are_counted_and_faults_forgotten() {
    let store = store();
    let faults = store.faults();
    faults.next_apply(ApplyFault::Refuse(full()));
    faults.fail_sync(Lost::Nothing);
    faults.clear();
    store.apply(put("key"), Durability::Buffered).await.unwrap();
    store.sync().await.unwrap();
    store.get(Keyspace::Data, b"key").await.unwrap();
    assert!(!store.is_keyspace_empty(Keyspace::Data).await.unwrap());
    store.reopen().await.unwrap();
    store.close().await.unwrap();
    let calls = faults.calls();
    assert_eq!((calls.applies, calls.gets, calls.scans, calls.syncs), (1, 1, 1, 1));
    assert_eq!((calls.reopens, calls.closes), (1, 1));
    assert!(calls.largest_apply >= "keyvalue".len());
}
