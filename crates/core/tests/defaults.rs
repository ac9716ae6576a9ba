//! What a store has by implementing no more than it must: shorthands, typed tables, and what the trait does by itself.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::table::{Postcard, TableError};
use replikv_core::{
    Batch, Cursor, DataReader, Digest, Durability, Epoch, KeyRange, Keyspace, LinkId, Op, Page, PageBuilder, Position,
    ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, SourceId, StoreError, StoreLimits, StoreStats, Subspace, Table,
    WriteSet, meta,
};

/// A map, and what every store must do.
#[derive(Default)]
struct Map(Mutex<BTreeMap<(Keyspace, Bytes), Bytes>>);

#[async_trait]
impl ReplicaStore for Map {
    async fn apply(&self, writes: WriteSet, _: Durability) -> Result<(), StoreError> {
        let mut map = self.0.lock().unwrap();
        for (keyspace, op) in writes.ops() {
            match op {
                Op::Put { key, value } => {
                    map.insert((keyspace, Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value));
                }
                Op::Delete { key } => drop(map.remove(&(keyspace, Bytes::copy_from_slice(key)))),
                Op::DeleteRange { start, end } => {
                    let within = |key: &Bytes| key[..] >= *start && end.is_none_or(|end| key[..] < *end);
                    map.retain(|(held, key), _| *held != keyspace || !within(key));
                }
            }
        }
        Ok(())
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().unwrap().get(&(keyspace, Bytes::copy_from_slice(key))).cloned())
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let map = self.0.lock().unwrap();
        let mut met: Vec<_> = map.iter().filter(|((held, key), _)| *held == keyspace && range.contains(key)).collect();
        if options.reverse {
            met.reverse();
        }
        let mut page = PageBuilder::new(range.clone(), options);
        for ((_, key), value) in met {
            if page.push(key, value).is_full() {
                break;
            }
        }
        Ok(page.finish())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits { max_key: 100, max_value: 1000, max_batch: 10_000 }
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a map answers at once"),
    }
}

fn filled(entries: &[(&str, &str)]) -> Map {
    let map = Map::default();
    for (key, value) in entries {
        let put = Op::Put { key: key.as_bytes(), value: value.as_bytes() };
        now(map.apply_one(Keyspace::Data, put)).unwrap();
    }
    map
}

fn apply(map: &Map, batch: Batch) {
    let (ops, _, _) = batch.into_parts().unwrap();
    now(map.apply(WriteSet::builder().append(Keyspace::Data, ops).build(), Durability::Synced)).unwrap();
}

fn entry(key: &'static str, value: &'static str) -> Option<(Bytes, Bytes)> {
    Some((Bytes::from(key), Bytes::from(value)))
}

#[test]
fn the_first_and_the_last_entry_are_those_of_the_range() {
    let map = filled(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
    let range = || KeyRange::from_bounds("b".."d");
    assert_eq!(now(map.first(Keyspace::Data, range())).unwrap(), entry("b", "2"));
    assert_eq!(now(map.last(Keyspace::Data, range())).unwrap(), entry("c", "3"));
    assert_eq!(now(map.last(Keyspace::Data, KeyRange::all())).unwrap(), entry("d", "4"));
    let beyond = KeyRange::from_bounds("x"..);
    assert_eq!(now(map.first(Keyspace::Data, beyond.clone())).unwrap(), None);
    assert_eq!(now(map.last(Keyspace::Data, beyond)).unwrap(), None);
    assert_eq!(now(map.first(Keyspace::Meta, KeyRange::all())).unwrap(), None);
}

#[test]
fn a_keyspace_is_empty_until_something_is_in_it() {
    let map = Map::default();
    assert!(now(map.is_keyspace_empty(Keyspace::Data)).unwrap());
    now(map.apply_one(Keyspace::Data, Op::Put { key: b"a", value: b"" })).unwrap();
    assert!(!now(map.is_keyspace_empty(Keyspace::Data)).unwrap());
    assert!(now(map.is_keyspace_empty(Keyspace::Log)).unwrap());
}

#[test]
fn many_values_come_in_the_order_of_their_keys() {
    let map = filled(&[("a", "1"), ("b", "2")]);
    let keys = ["b", "x", "a", "b"].map(Bytes::from);
    let values = now(map.get_many(Keyspace::Data, &keys)).unwrap();
    assert_eq!(values, [Some("2"), None, Some("1"), Some("2")].map(|value| value.map(Bytes::from)));
    assert!(now(map.get_many(Keyspace::Data, &[])).unwrap().is_empty());
}

#[test]
fn a_cursor_is_what_was_set_and_damage_is_no_cursor() {
    let map = Map::default();
    let link = LinkId::default();
    assert_eq!(now(map.cursor(&link)).unwrap(), None);
    let source = SourceId::from_bytes([7; 16]);
    let (epoch, digest) = (Epoch { number: 1, nonce: 9 }, Digest::from_bytes([1; 16]));
    let cursor = Cursor::at(Position { source, epoch, seq: Seq::new(5), digest });
    let writes = WriteSet::builder().set_cursor(&link, &cursor).build();
    now(map.apply(writes, Durability::Synced)).unwrap();
    assert_eq!(now(map.cursor(&link)).unwrap(), Some(cursor));
    let damage = Op::Put { key: &meta::cursor_key(&link), value: b"none" };
    now(map.apply_one(Keyspace::Meta, damage)).unwrap();
    assert!(matches!(now(map.cursor(&link)), Err(StoreError::Corrupt { what }) if what.contains("default")));
}

#[test]
fn what_a_store_does_not_say_of_itself_is_what_suits_most() {
    let map = Map::default();
    assert_eq!((map.preferred_write_set(), map.preferred_operations()), (32 << 20, usize::MAX));
    assert_eq!(map.stats(), StoreStats::default());
    assert_eq!(map.stats().foreign_commits, None);
    assert_eq!(StoreStats::default().with_foreign_commits(7).foreign_commits, Some(7));
    assert_eq!(StoreStats::default().with_data_bytes(7).data_bytes, Some(7));
}

#[test]
fn readers_of_a_store_see_its_data() {
    let map = filled(&[("a", "1")]);
    assert_eq!(now(map.get_data(b"a")).unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(now(map.get_data(b"b")).unwrap(), None);
    assert_eq!(now(map.scan_data(KeyRange::all(), ScanOptions::default())).unwrap().len(), 1);
}

#[test]
fn a_table_writes_reads_and_deletes_what_is_its_own() {
    let map = filled(&[("other", "data")]);
    let ages: Table<String, u32> = Table::new("ages", Subspace::named("ages"));
    let (alice, bob, carol) = ("alice".to_string(), "bob".to_string(), "carol".to_string());
    let mut batch = Batch::new();
    for (name, age) in [(&alice, 42), (&bob, 7), (&carol, 99)] {
        batch = ages.put(batch, name, &age).unwrap();
    }
    assert_eq!(batch.len(), 3);
    apply(&map, batch);
    assert_eq!(now(ages.get(&map, &bob)).unwrap(), Some(7));
    assert_eq!(now(ages.get(&map, &"dave".to_string())).unwrap(), None);

    let page = |options: ScanOptions, from| now(ages.page(&map, from, options)).unwrap();
    let all = [(alice.clone(), 42), (bob.clone(), 7), (carol.clone(), 99)];
    assert_eq!(page(ScanOptions::default(), ages.range(..)), (all.to_vec(), None));
    let (first, rest) = page(ScanOptions::default().max_entries(2), ages.range(..));
    assert_eq!(first, all[..2]);
    let (second, rest) = page(ScanOptions::default(), rest.expect("one is left"));
    assert_eq!((&second[..], rest), (&all[2..], None));

    let stored = now(map.get_data(&ages.key(&alice))).unwrap().unwrap();
    assert_eq!(ages.decode(&ages.key(&alice), &stored).unwrap(), Some((alice.clone(), 42)));
    assert_eq!(ages.decode(b"other", b"data").unwrap(), None, "it is no key of the table");

    apply(&map, ages.delete(Batch::new(), &alice));
    assert_eq!(page(ScanOptions::default(), ages.range(..)).0, all[1..]);
    apply(&map, ages.delete_range(Batch::new(), bob.clone()..carol.clone()));
    assert_eq!(page(ScanOptions::default(), ages.range(..)).0, all[2..]);
    assert!(now(map.get_data(b"other")).unwrap().is_some(), "what is not the table's stays");
}

#[test]
fn what_is_not_of_a_tables_types_is_named_by_table_and_key() {
    let ages: Table<u8, u32> = Table::new("ages", Subspace::raw("ages/"));
    let key = ages.decode(b"ages/\x01\xFF", b"\x01").expect_err("two bytes are no u8");
    assert!(matches!(&key, TableError::Key { table, key } if table == "ages" && key == "ages/\\x01\\xff"), "{key:?}");
    let map = Map::default();
    now(map.apply_one(Keyspace::Data, Op::Put { key: &ages.key(&3), value: b"" })).unwrap();
    let value = now(ages.get(&map, &3)).expect_err("nothing is no u32");
    assert!(
        matches!(&value, TableError::Value { table, key, .. } if table == "ages" && key == "ages/\\x03"),
        "{value:?}"
    );
    let again: Table<u8, u32, Postcard> = ages.clone();
    assert_eq!(again.key(&3), b"ages/\x03");
}
