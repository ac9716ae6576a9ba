//! Tables: an ordered map over databases of every order, against a model.

use std::collections::BTreeMap;

use crate::support::app::{self, create, environment, environment_with};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, Subspace, WriteSet};
use replikv_lmdb::heed::types::{Bytes as Raw, DecodeIgnore, Str, U32, U64};
use replikv_lmdb::heed::{Database, DatabaseFlags, IntegerComparator, byteorder::NativeEndian};
use replikv_lmdb::{LmdbOptions, LmdbOrder, LmdbStore};

const PLAIN: &[u8] = b"b";
const REVERSED: &[u8] = b"d/";
const SHORT: &[u8] = b"f";
const LONG: &[u8] = b"g\xFF";

fn options() -> LmdbOptions {
    LmdbOptions::default()
        .table(Subspace::raw(PLAIN), "plain")
        .table_in_order(Subspace::raw(REVERSED), "reversed", LmdbOrder::ReverseKeys)
        .table_in_order(Subspace::raw(SHORT), "short", LmdbOrder::IntegerKeys)
        .table_in_order(Subspace::raw(LONG), "long", LmdbOrder::IntegerKeys)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(0x7F), Just(0xFE), Just(0xFF)];
    vec(byte, 0..5)
}

fn small<T: std::fmt::Debug + Clone + 'static>(values: Vec<T>) -> impl Strategy<Value = T> {
    proptest::sample::select(values)
}

/// Keys of every table, and of the rest between them; those that are a prefix are the rest's.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let in_table = |prefix: &'static [u8]| bytes().prop_map(move |key| [prefix, &key].concat());
    prop_oneof![
        bytes().prop_filter("keys are not empty", |key| !key.is_empty()),
        in_table(b"a"),
        in_table(PLAIN),
        in_table(b"c"),
        in_table(REVERSED),
        small(vec![0u32, 1, 255, 256, 65_535, u32::MAX - 1, u32::MAX]).prop_map(|number| [
            SHORT,
            &number.to_be_bytes()
        ]
        .concat()),
        small(vec![0u64, 1, 256, 1 << 32, u64::MAX - 1, u64::MAX])
            .prop_map(|number| [LONG, &number.to_be_bytes()].concat()),
        in_table(b"h"),
        // As long as keys can be.
        (small(vec![&b"a"[..], b"b", b"d/", b"h"]), any::<bool>()).prop_map(|(start, high)| {
            let mut key = start.to_vec();
            key.resize(511, if high { 0xFF } else { 0 });
            key
        }),
        Just(PLAIN.to_vec()),
        Just(REVERSED.to_vec()),
        Just(SHORT.to_vec()),
    ]
}

/// Bounds of any length: beside keys, cut off keys, longer than keys, and longer than any key may be.
fn bound() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => key(),
        2 => (key(), 0..12usize).prop_map(|(mut key, len)| { key.truncate(len); key }),
        2 => (key(), bytes()).prop_map(|(key, more)| [key, more].concat()),
        1 => (key(), 500..600usize).prop_map(|(mut key, len)| { key.resize(len, 0); key }),
        1 => (key(), 500..600usize).prop_map(|(mut key, len)| { key.resize(len, 0xFF); key }),
        1 => Just(vec![0xFF; 520]),
    ]
}

fn range() -> impl Strategy<Value = KeyRange> {
    (bound(), proptest::option::of(bound())).prop_map(|(start, end)| KeyRange::new(start, end.map(Bytes::from)))
}

#[derive(Debug, Clone)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Range(KeyRange),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (key(), bytes()).prop_map(|(key, value)| Change::Put(key, value)),
        1 => key().prop_map(Change::Delete),
        1 => range().prop_map(Change::Range),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn apply(model: &mut Model, changes: &[Change]) -> WriteSet {
    let mut writes = WriteSet::builder();
    for change in changes {
        match change {
            Change::Put(key, value) => {
                writes.put(Keyspace::Data, key, value).unwrap();
                model.insert(key.clone(), value.clone());
            }
            Change::Delete(key) => {
                writes.delete(Keyspace::Data, key).unwrap();
                model.remove(key);
            }
            Change::Range(range) => {
                writes.delete_range(Keyspace::Data, range);
                model.retain(|key, _| !range.contains(key));
            }
        }
    }
    writes.build()
}

fn owned<'a>(entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(Vec<u8>, Vec<u8>)> {
    entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn tables_of_every_order_are_one_map_in_byte_order(
        sets in vec(vec(change(), 1..40), 1..4),
        ranges in vec(range(), 1..12),
        page in 1..9usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = LmdbStore::open(dir.path(), options()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut model = Model::new();
        for set in &sets {
            runtime.block_on(store.apply(apply(&mut model, set), Durability::Buffered)).unwrap();
            for range in ranges.iter().chain([&KeyRange::all()]) {
                let expected = owned(model.iter().filter(|(key, _)| range.contains(key)).map(|(k, v)| (&k[..], &v[..])));
                let mut backwards = expected.clone();
                backwards.reverse();
                for (expected, reverse) in [(expected, false), (backwards, true)] {
                    let mut found = Vec::new();
                    let mut rest = Some(range.clone());
                    while let Some(range) = rest {
                        let options = ScanOptions { reverse, ..ScanOptions::default().max_entries(page) };
                        let page = runtime.block_on(store.scan(Keyspace::Data, range, options)).unwrap();
                        found.extend(owned(page.iter()));
                        rest = page.rest().cloned();
                    }
                    prop_assert_eq!(&found, &expected, "{:?}, reverse: {}", range, reverse);
                    let read = store.read(|snapshot| {
                        let entries =
                            if reverse { snapshot.iter_reverse(range.clone()) } else { snapshot.iter(range.clone()) };
                        entries.map(|entry| entry.map(|(key, value)| (key.into_owned(), value.to_vec()))).collect()
                    });
                    let read: Result<Vec<_>, StoreError> = read.unwrap();
                    prop_assert_eq!(&read.unwrap(), &expected, "in place, {:?}, reverse: {}", range, reverse);
                }
            }
            for key in model.keys() {
                let found = runtime.block_on(store.get(Keyspace::Data, key)).unwrap();
                prop_assert_eq!(found.as_deref(), model.get(key).map(|value| &value[..]));
            }
        }
    }
}

#[tokio::test]
async fn every_database_holds_its_keys_as_the_application_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    let plain: Database<'_, Str, Str> = create(&env, "plain", DatabaseFlags::empty());
    let store = LmdbStore::from_env(env.clone(), options()).unwrap();
    let mut writes = WriteSet::builder();
    for key in [&b"bob"[..], b"d/xyz", b"f\0\0\x01\0", b"g\xFF\0\0\0\0\0\0\0\x07", b"else", b"b", b"d/zyx"] {
        writes.put(Keyspace::Data, key, "value").unwrap();
    }
    store.apply(writes.build(), Durability::Synced).await.unwrap();
    let rtxn = env.read_txn().unwrap();
    assert_eq!(plain.get(&rtxn, "ob").unwrap(), Some("value"));
    drop(rtxn);
    let reversed: Database<'_, Raw, DecodeIgnore> = app::open(&env, "reversed");
    let short: Database<'_, U32<NativeEndian>, Str, IntegerComparator> = app::open_integers(&env, "short");
    let long: Database<'_, U64<NativeEndian>, Str, IntegerComparator> = app::open_integers(&env, "long");
    let rest: Database<'_, Str, Str> = app::open(&env, "data");
    let rtxn = env.read_txn().unwrap();
    let keys: Vec<_> = reversed.iter(&rtxn).unwrap().map(|entry| entry.unwrap().0.to_vec()).collect();
    assert_eq!(keys, [b"zyx", b"xyz"], "as the bytes from the last to the first sort");
    assert_eq!(short.get(&rtxn, &256).unwrap(), Some("value"));
    assert_eq!(long.get(&rtxn, &7).unwrap(), Some("value"));
    let keys: Vec<_> = rest.iter(&rtxn).unwrap().map(|entry| entry.unwrap().0.to_string()).collect();
    assert_eq!(keys, ["b", "else"]);
    // A thread that has read must not end while the environment is closed elsewhere.
    drop((rtxn, store));
    env.prepare_for_closing().wait();
}

#[tokio::test]
async fn a_key_that_a_table_cannot_hold_is_refused_by_name_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), options()).unwrap();
    let put = |key: &[u8]| WriteSet::builder().put(Keyspace::Data, key, "").unwrap().build();
    for key in [&b"f123"[..], b"f12345", b"g\xFF1234567"] {
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Data, "else", "").unwrap().put(Keyspace::Data, key, "").unwrap();
        let error = store.apply(writes.build(), Durability::Synced).await.unwrap_err();
        assert!(matches!(&error, StoreError::KeyUnfit { table, .. } if table == "short" || table == "long"), "{error}");
        assert_eq!(error.outcome(), replikv_core::Outcome::Unchanged);
        let error = store.get(Keyspace::Data, key).await.unwrap_err();
        assert!(matches!(error, StoreError::KeyUnfit { .. }));
    }
    let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap();
    assert!(page.is_empty());
    // One width for all keys: the first one decides.
    store.apply(put(b"f1234"), Durability::Synced).await.unwrap();
    let error = store.apply(put(b"f12345678"), Durability::Synced).await.unwrap_err();
    assert!(error.to_string().contains("integers of 4 bytes, this one has 8"), "{error}");
}

#[test]
fn what_cannot_be_replicated_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    let many: Database<'_, Str, Str> = create(&env, "many", DatabaseFlags::DUP_SORT);
    #[allow(deprecated, reason = "what an application may have")]
    let integers: Database<'_, Raw, Str> = create(&env, "integers", DatabaseFlags::INTEGER_KEY);
    let rest: Database<'_, Str, Str> = create(&env, "data", DatabaseFlags::empty());
    let mut wtxn = env.write_txn().unwrap();
    many.put(&mut wtxn, "k", "v").unwrap();
    integers.put(&mut wtxn, &7u32.to_ne_bytes(), "v").unwrap();
    rest.put(&mut wtxn, "users/alice", "v").unwrap();
    wtxn.commit().unwrap();
    let space = |prefix: &'static str| Subspace::raw(prefix);
    let plain = LmdbOptions::default;
    for (options, words) in [
        (plain().table(space("m"), "many"), "database many has duplicates (DUPSORT)"),
        (plain().data_database("integers"), "database integers has integer keys"),
        (plain().data_database("many"), "database many has duplicates"),
        (plain().table_in_order(space("i"), "integers", LmdbOrder::Bytes), "integers has integer keys, it was asked"),
        (plain().table(space("a"), "one").table(space("ab"), "two"), "tables one and two overlap"),
        (plain().table(space("a"), "one").table(space("b"), "one"), "database one cannot be a table"),
        (plain().table(space("a"), "replikv-log"), "replikv-log cannot be a table"),
        (plain().table(Subspace::root(), "one"), "table one has no prefix"),
        (plain().table(space("users/"), "users"), "database data holds keys that begin with the prefix of table users"),
    ] {
        let error = LmdbStore::from_env(env.clone(), options).unwrap_err();
        let error = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(error.contains(words), "{error}");
    }
    assert!(LmdbStore::from_env(env, plain().table(space("i"), "integers")).is_ok(), "nothing was left behind");
}

#[test]
fn too_few_databases_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment_with(dir.path(), |open| {
        open.max_dbs(4);
    });
    let _own: Database<'_, Str, Str> = create(&env, "own", DatabaseFlags::empty());
    let options = LmdbOptions::default().table(Subspace::raw("u"), "users");
    let error = LmdbStore::from_env(env.clone(), options.clone()).unwrap_err();
    let words = std::error::Error::source(&error).unwrap().to_string();
    assert!(words.contains("max_dbs(6)"), "{words}");
    env.prepare_for_closing().wait();
    let env = environment_with(dir.path(), |open| {
        open.max_dbs(6);
    });
    let _own: Database<'_, Str, Str> = create(&env, "own", DatabaseFlags::empty());
    assert!(LmdbStore::from_env(env, options).is_ok(), "as many as were named are enough");
}

#[tokio::test]
async fn a_store_remembers_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let open = |options: LmdbOptions| LmdbStore::open(dir.path(), options);
    // Nobody's yet: it may become another one.
    open(LmdbOptions::default().table(Subspace::raw("x"), "plain")).unwrap().close().await.unwrap();
    let store = open(options()).unwrap();
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Meta, "identity", "somebody's").unwrap().put(Keyspace::Data, "bob", "in a table").unwrap();
    store.apply(writes.build(), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    for read_only in [false, true] {
        let plain = LmdbOptions::default();
        let store = if read_only { LmdbStore::open_read_only(dir.path(), plain) } else { open(plain) }.unwrap();
        assert_eq!(store.get(Keyspace::Data, b"bob").await.unwrap().as_deref(), Some(&b"in a table"[..]));
        let error = store.get(Keyspace::Data, b"f12345").await.unwrap_err();
        assert!(matches!(error, StoreError::KeyUnfit { .. }), "their orders as well");
        store.close().await.unwrap();
    }
    for other in [
        options().table(Subspace::raw("new"), "new"),
        LmdbOptions::default().table(Subspace::raw(PLAIN), "plain"),
        options().data_database("elsewhere"),
    ] {
        let error = open(other).unwrap_err();
        let words = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            words.contains("the store consists of data database data, log database replikv-log")
                && words.contains("in no log"),
            "{words}"
        );
    }
    assert!(open(options()).is_ok());
}
