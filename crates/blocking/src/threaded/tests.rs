use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures_util::FutureExt;
use replikv_core::{Op, PageBuilder};

use super::*;

/// A store that does as it is told by the values that are written to it.
#[derive(Debug, Default)]
struct Scripted {
    map: Mutex<BTreeMap<(Keyspace, Bytes), Bytes>>,
}

static OPENED: AtomicUsize = AtomicUsize::new(0);

impl BlockingStore for Scripted {
    fn apply(&self, writes: &WriteSet, _: Durability) -> Result<(), StoreError> {
        for (keyspace, op) in writes.ops() {
            if let Op::Put { key, value } = op {
                match value {
                    b"panic" => panic!("as told"),
                    b"slow" => thread::sleep(Duration::from_millis(50)),
                    b"unknown" => return Err(StoreError::backend_unknown("as told")),
                    _ => {}
                }
                let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                self.map.lock().unwrap().insert((keyspace, key), value);
            }
        }
        Ok(())
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.map.lock().unwrap().get(&(keyspace, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, _: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        Ok(PageBuilder::new(range, options).finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        match self.get(Keyspace::Data, b"sync")? {
            Some(_) => Err(StoreError::backend("as told")),
            None => Ok(()),
        }
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits { max_key: 16, max_value: 16, max_batch: 1 << 20 }
    }

    fn reads_inline(&self) -> bool {
        true
    }
}

fn open() -> Threaded<Scripted> {
    Threaded::open("scripted", ThreadedOptions::default(), || {
        OPENED.fetch_add(1, Ordering::Relaxed);
        Ok(Scripted::default())
    })
    .unwrap()
}

fn put(key: &str, value: &str) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

#[tokio::test]
async fn after_a_panic_everything_is_refused_until_the_store_is_reopened() {
    let store = open();
    let error = store.apply(put("k", "panic"), Durability::Synced).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Fatal { .. })));
    assert!(matches!(store.apply(put("k", "v"), Durability::Synced).await, Err(StoreError::Fatal { .. })));
    store.reopen().await.unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
}

#[tokio::test]
async fn after_an_unknown_outcome_everything_is_refused_until_the_store_is_reopened() {
    let store = open();
    let error = store.apply(put("k", "unknown"), Durability::Synced).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(matches!(
        store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await,
        Err(StoreError::Fatal { .. })
    ));
    store.reopen().await.unwrap();
    assert!(store.get(Keyspace::Data, b"k").await.unwrap().is_none());
}

#[tokio::test]
async fn a_failed_sync_is_fatal() {
    let store = open();
    store.apply(put("sync", "fails"), Durability::Synced).await.unwrap();
    assert!(matches!(store.sync().await, Err(StoreError::Fatal { .. })));
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Fatal { .. })));
}

#[tokio::test]
async fn a_dropped_write_is_decided_before_the_next_call_answers() {
    for polls in 0..4 {
        let store = open();
        let writes = WriteSet::builder()
            .put(Keyspace::Data, "first", "slow")
            .unwrap()
            .put(Keyspace::Data, "second", "v")
            .unwrap()
            .build();
        {
            let mut apply = store.apply(writes, Durability::Synced);
            for _ in 0..polls {
                assert!(apply.as_mut().now_or_never().is_none());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let first = store.get(Keyspace::Data, b"first").await.unwrap();
        let second = store.get(Keyspace::Data, b"second").await.unwrap();
        assert_eq!(first.is_some(), second.is_some(), "after {polls} polls");
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert_eq!(store.get(Keyspace::Data, b"second").await.unwrap(), second, "decided stays decided");
    }
}

#[tokio::test]
async fn a_closed_store_refuses_everything() {
    let store = open();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Closed)));
    assert!(matches!(store.apply(put("k", "v"), Durability::Synced).await, Err(StoreError::Closed)));
    assert!(matches!(store.reopen().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn limits_are_checked_before_the_store_sees_anything() {
    let store = open();
    let long = "k".repeat(17);
    assert!(matches!(store.apply(put(&long, "v"), Durability::Synced).await, Err(StoreError::KeyTooLong { .. })));
    assert!(matches!(store.apply(put("k", &long), Durability::Synced).await, Err(StoreError::ValueTooLarge { .. })));
    assert!(matches!(store.get(Keyspace::Data, b"").await, Err(StoreError::KeyEmpty)));
    assert!(matches!(store.get(Keyspace::Data, long.as_bytes()).await, Err(StoreError::KeyTooLong { .. })));
}

#[test]
fn a_panic_while_opening_is_an_error() {
    let opened = Threaded::<Scripted>::open("broken", ThreadedOptions::default(), || panic!("bad page"));
    assert!(matches!(opened, Err(StoreError::Corrupt { what }) if what.contains("bad page")));
}
