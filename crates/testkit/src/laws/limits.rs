//! What does not fit is refused, and changes nothing.

use std::sync::Arc;

use bytes::BytesMut;
use replikv_core::{Durability, EncodedOps, Keyspace, Op, Outcome, ReplicaStore, StoreError, WriteSet};

use crate::Bench;
use crate::bench::{Put, Shorthand, writes};

// Refused with the store as it was: nothing of the set is there, and the next one works.
async fn refused(store: &Arc<dyn ReplicaStore>, set: WriteSet) -> StoreError {
    let before = store.contents(Keyspace::Data).await;
    let error = store.apply(set, Durability::Synced).await.expect_err("the write set does not fit");
    assert_eq!(error.outcome(), Outcome::Unchanged, "{error:?}");
    assert_eq!(store.contents(Keyspace::Data).await, before, "{error:?}");
    store
        .commit(|set| {
            set.data("works", "still");
        })
        .await;
    error
}

/// An empty key is refused by reads with the error that writes have for it.
pub async fn an_empty_key_is_refused(bench: Arc<Bench>) {
    let store = bench.open();
    for keyspace in Keyspace::ALL {
        assert!(matches!(store.get(keyspace, b"").await, Err(StoreError::KeyEmpty)), "{keyspace:?}");
        assert!(matches!(WriteSet::builder().put(keyspace, "", "value"), Err(StoreError::KeyEmpty)));
    }
}

/// A key that is too long is refused by writes, and names both lengths.
pub async fn a_key_too_long_is_refused(bench: Arc<Bench>) {
    let store = bench.open();
    let max = store.limits().max_key;
    let long = vec![1; max + 1];
    for set in [
        writes(|set| {
            set.data("first", "").data(&long, "");
        }),
        writes(|set| {
            set.data("first", "").remove(&long);
        }),
    ] {
        let error = refused(&store, set).await;
        assert!(
            matches!(error, StoreError::KeyTooLong { len, max: limit } if len == max + 1 && limit == max),
            "{error:?}"
        );
    }
}

/// A key that is too long is refused by reads too.
pub async fn a_key_too_long_cannot_be_asked_for(bench: Arc<Bench>) {
    let store = bench.open();
    let long = vec![1; store.limits().max_key + 1];
    assert!(matches!(store.get(Keyspace::Data, &long).await, Err(StoreError::KeyTooLong { .. })));
}

/// A value that is too large is refused.
pub async fn a_value_too_large_is_refused(bench: Arc<Bench>) {
    let store = bench.open();
    let max = store.limits().max_value;
    assert!(max <= 1 << 31, "a store has some limit to its values");
    let value = vec![0; max + 1];
    let error = refused(
        &store,
        writes(|set| {
            set.data("first", "").data("key", value);
        }),
    )
    .await;
    assert!(matches!(error, StoreError::ValueTooLarge { .. } | StoreError::BatchTooLarge { .. }), "{error:?}");
}

/// A set that is too large is refused.
pub async fn a_set_too_large_is_refused(bench: Arc<Bench>) {
    let store = bench.open();
    // The same chunk over and over: as large as needed, and no memory.
    let mut chunk = BytesMut::new();
    let value = vec![0; store.limits().max_value.min(1 << 20)];
    Op::Put { key: b"key", value: &value }.encode_into(&mut chunk);
    let chunk = EncodedOps::from_bytes(chunk.freeze()).expect("one operation");
    let mut set = WriteSet::builder();
    while set.byte_len() <= store.limits().max_batch {
        set.append(Keyspace::Data, chunk.clone());
    }
    let error = refused(&store, set.build()).await;
    assert!(matches!(error, StoreError::BatchTooLarge { .. }), "{error:?}");
}

/// The limits are large enough to be of use: a log record, a cursor, a checkpoint fit.
pub async fn the_limits_leave_room_for_replication(bench: Arc<Bench>) {
    let store = bench.open();
    let limits = store.limits();
    assert!(limits.max_key >= 160 && limits.max_value >= 1 << 12 && limits.max_batch >= 1 << 20, "{limits:?}");
    assert_eq!(limits, store.limits());
}
