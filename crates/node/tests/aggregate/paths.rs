//! Write sets of every shape, into a store that derives.

use bytes::Bytes;
use proptest::prelude::*;
use replikv_core::{
    Batch, Durability, EncodedOps, KeyRange, Keyspace, Op, ReplicaStore, ReplicaStoreExt, StoreError, WriteSet,
};
use replikv_memory::MemoryStore;
use replikv_node::{AggregateError, DerivedStore, InStore, OpenError, Slave, SlaveConfig};

use crate::kinds::Kinds;
use crate::support::{Error, contents, entries};

#[derive(Debug, Clone)]
enum Change {
    Put(u8, u8, Vec<u8>),
    Delete(u8, u8),
    Range(u8, u8),
    /// A range and what is put in its place, as a page of a copy does.
    Replace(u8, u8, Vec<(u8, Vec<u8>)>),
}

fn change() -> impl Strategy<Value = Change> {
    let (first, second) = (b'a'..b'e', b'a'..b'f');
    let value = || proptest::collection::vec(95..106u8, 1..3);
    prop_oneof![
        4 => (first.clone(), second.clone(), value()).prop_map(|(a, b, value)| Change::Put(a, b, value)),
        2 => (first.clone(), second.clone()).prop_map(|(a, b)| Change::Delete(a, b)),
        1 => (first.clone(), b'a'..b'g').prop_map(|(a, b)| Change::Range(a, b)),
        1 => (first, b'a'..b'g', proptest::collection::vec((second, value()), 0..4))
            .prop_map(|(a, b, mut entries)| {
                entries.sort();
                entries.dedup_by_key(|(key, _)| *key);
                Change::Replace(a, b, entries)
            }),
    ]
}

fn range(from: u8, to: u8) -> KeyRange {
    KeyRange::from_bounds([from]..[to])
}

fn writes(changes: &[Change]) -> WriteSet {
    let mut writes = WriteSet::builder();
    for change in changes {
        match change {
            Change::Put(a, b, value) => drop(writes.put(Keyspace::Data, [*a, *b], value).unwrap()),
            Change::Delete(a, b) => drop(writes.delete(Keyspace::Data, [*a, *b]).unwrap()),
            Change::Range(from, to) => drop(writes.delete_range(Keyspace::Data, &range(*from, *to))),
            Change::Replace(from, to, entries) => {
                writes.delete_range(Keyspace::Data, &range(*from, *to));
                if from < to {
                    for (key, value) in entries {
                        writes.put(Keyspace::Data, [*from, *key], value).unwrap();
                    }
                }
            }
        }
    }
    writes.build()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn each_kind_is_what_the_data_comes_to_after_every_write_set(
        sets in proptest::collection::vec(proptest::collection::vec(change(), 1..10), 1..12),
    ) {
        run(async {
            let (kinds, inner) = (Kinds::new(), MemoryStore::new());
            let store = kinds.on(inner.clone()).await;
            let plain = MemoryStore::new();
            for (n, set) in sets.iter().enumerate() {
                store.apply(writes(set), Durability::Buffered).await.unwrap();
                plain.apply(writes(set), Durability::Buffered).await.unwrap();
                let data = contents(&store).await;
                assert_eq!(data, contents(&plain).await);
                kinds.assert_of(&store, &data, &format!("after write set {n}")).await;
            }
            // All of it at once, and in one write set, and from what is there, comes to the same.
            let folded = kinds.on(MemoryStore::new()).await;
            let all: Vec<Change> = sets.concat();
            folded.apply(writes(&all), Durability::Buffered).await.unwrap();
            assert_eq!(entries(folded.inner(), Keyspace::Meta).await, entries(&inner, Keyspace::Meta).await);
            let found = kinds.on(plain).await;
            assert_eq!(entries(found.inner(), Keyspace::Meta).await, entries(&inner, Keyspace::Meta).await);
            // When all goes, nothing is left but marks.
            store.apply(WriteSet::builder().delete_range(Keyspace::Data, &KeyRange::all()).build(), Durability::Buffered)
                .await
                .unwrap();
            let left = entries(&inner, Keyspace::Meta).await;
            assert!(left.iter().all(|(key, _)| key.starts_with(b"derived/mark/")), "{left:?}");
        });
    }
}

#[tokio::test]
async fn what_is_derived_is_seen_by_nobody_above_and_touched_by_nobody() -> Result<(), Error> {
    let kinds = Kinds::new();
    let store = kinds.on(MemoryStore::new()).await;
    store.apply_one(Keyspace::Data, Op::Put { key: b"ab", value: b"cd" }).await?;
    for key in ["a", "derived", "derived0", "z"] {
        store.apply_one(Keyspace::Meta, Op::Put { key: key.as_bytes(), value: b"1" }).await?;
    }
    let names = |found: &[(Bytes, Bytes)]| found.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    let all = entries(&store, Keyspace::Meta).await;
    assert_eq!(names(&all), ["a", "derived", "derived0", "z"]);
    assert!(entries(store.inner(), Keyspace::Meta).await.len() > 12);
    for (key, _) in entries(store.inner(), Keyspace::Meta).await {
        let hidden = !names(&all).contains(&key);
        assert_eq!(store.get(Keyspace::Meta, &key).await?.is_none(), hidden);
        if hidden {
            assert!(store.apply_one(Keyspace::Meta, Op::Put { key: &key, value: b"" }).await.is_err());
            store.apply_one(Keyspace::Meta, Op::Delete { key: &key }).await?;
        }
    }
    let wipe = WriteSet::builder().delete_range(Keyspace::Meta, &KeyRange::all()).build();
    store.apply(wipe, Durability::Synced).await?;
    assert!(store.is_keyspace_empty(Keyspace::Meta).await?);
    kinds.assert_of(&store, &contents(&store).await, "after a wipe of all that is seen").await;
    Ok(())
}

#[tokio::test]
async fn a_page_of_large_ranges_is_gone_through_in_parts() -> Result<(), Error> {
    let kinds = Kinds::new();
    let builder = DerivedStore::builder(MemoryStore::new()).derive(kinds.count.clone());
    let store = builder.open().await?;
    // More than one part, and more than one page.
    let key = |n: u32| [&b"a"[..], &n.to_be_bytes()].concat();
    let mut ops = Batch::new();
    for n in 0..70_000u32 {
        ops = ops.put(key(n), [100, 100, (n % 3) as u8 + 100]);
    }
    let apply = async |ops: EncodedOps| {
        store.apply(WriteSet::builder().append(Keyspace::Data, ops).build(), Durability::Buffered).await
    };
    apply(ops.into_parts()?.0).await?;
    let check = async |when: &str| {
        let data = contents(&store).await;
        let counted = kinds.count.all(&store).await.unwrap().value;
        let wanted = crate::kinds::groups(&data).into_iter().map(|(group, all)| (group, all.len() as u64));
        assert!(counted.into_iter().eq(wanted), "{when}");
    };
    check("after all came").await;
    let some =
        Batch::new().delete_range(key(10)..key(69_990)).put(key(5), "cde").put(key(500), "cde").put(key(69_995), "f");
    apply(some.into_parts()?.0).await?;
    check("after most went").await;
    Ok(())
}

#[tokio::test]
async fn what_is_there_is_derived_from_when_the_store_is_opened_and_only_then() -> Result<(), Error> {
    let kinds = Kinds::new();
    let inner = MemoryStore::new();
    let put = |key: &'static [u8]| Op::Put { key, value: b"cdef" };
    inner.apply_one(Keyspace::Data, put(b"ab")).await?;
    let store = kinds.on(inner.clone()).await;
    kinds.assert_of(&store, &contents(&inner).await, "the first time").await;
    // Whoever writes past it is not noticed, as it is said; another version begins anew.
    inner.apply_one(Keyspace::Data, put(b"ac")).await?;
    let again = kinds.on(inner.clone()).await;
    assert_eq!(kinds.count.get(&again, &b'a').await?, kinds.count.get(&store, &b'a').await?);
    let newer = Kinds::version(2);
    let store = newer.on(inner.clone()).await;
    newer.assert_of(&store, &contents(&inner).await, "by another version").await;
    // What is no longer derived goes.
    let few = DerivedStore::builder(inner.clone()).derive(newer.sum.clone()).open().await?;
    assert!(newer.sum.get(&few, &b'a').await?.is_some());
    assert!(newer.count.get(&few, &b'a').await.is_err(), "nobody derives it");
    let left = entries(&inner, Keyspace::Meta).await;
    assert!(left.iter().all(|(key, _)| key.escape_ascii().to_string().contains("sum")), "{left:?}");
    let twice = DerivedStore::builder(inner).derive(newer.sum.clone()).derive(newer.sum.clone()).open().await;
    assert!(matches!(twice.map(drop), Err(OpenError::Derive { name, .. }) if name == "sum"));
    Ok(())
}

#[tokio::test]
async fn what_does_not_fit_into_the_store_is_refused_as_not_derived() -> Result<(), Error> {
    let kinds = Kinds::new();
    let store = kinds.on(MemoryStore::new()).await;
    let longest = vec![b'a'; store.limits().max_key];
    let refused = store.apply_one(Keyspace::Data, Op::Put { key: &longest, value: b"cde" }).await;
    assert!(matches!(refused, Err(StoreError::NotDerived { .. })), "{refused:?}");
    assert!(store.get(Keyspace::Data, &longest).await?.is_none());
    kinds.assert_of(&store, &[], "after a refusal").await;
    Ok(())
}

mod laws {
    use std::path::Path;
    use std::sync::Arc;

    use replikv_core::StoreError;
    use tokio::runtime::Handle;

    use super::*;

    fn derives(_: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        let kinds = Kinds::new();
        let builder = DerivedStore::builder(MemoryStore::new()).derive(kinds.sum).derive(kinds.max).derive(kinds.top);
        let store = tokio::task::block_in_place(|| Handle::current().block_on(builder.open()));
        Ok(Arc::new(store.map_err(StoreError::backend)?))
    }

    replikv_testkit::conformance_suite!(derives, volatile);
}

#[tokio::test]
async fn what_is_derived_is_read_in_the_store_inside_for_as_long_as_it_is_whole() -> Result<(), Error> {
    let kinds = Kinds::new();
    let inner = MemoryStore::new();
    let name = kinds.count.name();
    let none = InStore::new(&inner);
    assert!(none.names().await?.is_empty());
    assert!(matches!(kinds.count.get(&none, &b'a').await, Err(AggregateError::Store(StoreError::NotDerived { .. }))));
    let store = kinds.on(inner.clone()).await;
    store.apply_one(Keyspace::Data, Op::Put { key: b"ab", value: b"cd" }).await?;
    let inside = InStore::new(&inner);
    assert!(inside.names().await?.iter().any(|found| found == name));
    assert_eq!(kinds.count.get(&inside, &b'a').await?, Some(1));
    assert_eq!(kinds.count.all(&inside).await?.value, kinds.count.all(&store).await?.value);
    // Whoever opens it to write and does not derive leaves it alone.
    Slave::open(inner.clone(), SlaveConfig::new("plain")).await?.shutdown().await?;
    let left = inner.open_again();
    let left = InStore::new(&left);
    assert!(left.names().await?.is_empty());
    assert!(matches!(kinds.count.all(&left).await, Err(AggregateError::Store(StoreError::NotDerived { .. }))));
    Ok(())
}
