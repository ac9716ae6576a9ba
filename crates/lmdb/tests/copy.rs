//! Copies of an environment, taken while it is written to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::{child, contents, ends_well, put, role, says, value};
use replikv_core::{Durability, Keyspace, ReplicaStore, WriteSet};
use replikv_lmdb::{LmdbOptions, LmdbStore};

fn open(path: impl AsRef<std::path::Path>) -> LmdbStore {
    LmdbStore::open(path, LmdbOptions::default()).unwrap()
}

/// A set that is in three keyspaces at once: whoever sees a part of it sees half a set.
fn marked(n: u64) -> WriteSet {
    let mut writes = WriteSet::builder();
    for keyspace in Keyspace::ALL {
        writes.put(keyspace, "n", n.to_be_bytes()).unwrap();
        writes.put(keyspace, format!("{:03}", n % 700), [n as u8; 3_000]).unwrap();
    }
    writes.build()
}

async fn assert_whole(copy: &LmdbStore, from: u64, to: u64) {
    let mut seen = Vec::new();
    for keyspace in Keyspace::ALL {
        let bytes = copy.get(keyspace, b"n").await.unwrap().unwrap();
        seen.push(u64::from_be_bytes(bytes[..].try_into().unwrap()));
        let last = format!("{:03}", seen[0] % 700);
        assert_eq!(copy.get(keyspace, last.as_bytes()).await.unwrap().unwrap()[..], [seen[0] as u8; 3_000]);
    }
    assert_eq!(contents(copy).await.len(), 701);
    assert!(seen[0] >= from && seen[0] <= to && seen.iter().all(|n| *n == seen[0]), "{from} {seen:?} {to}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_of_one_instant_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path().join("store"));
    for n in 0..700 {
        store.apply(marked(n), Durability::Buffered).await.unwrap();
    }
    let (written, done) = (AtomicU64::new(699), AtomicBool::new(false));
    let writing = async {
        for n in 700.. {
            store.apply(marked(n), Durability::Buffered).await.unwrap();
            written.store(n, Ordering::SeqCst);
            if done.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    let copying = async {
        for round in 0..5 {
            let path = dir.path().join(format!("copy {round}"));
            let from = written.load(Ordering::SeqCst);
            tokio::task::block_in_place(|| store.copy_to(&path)).unwrap();
            // Of one that is under way, nobody was told yet.
            let to = written.load(Ordering::SeqCst) + 1;
            assert_whole(&open(&path), from, to).await;
            tokio::task::yield_now().await;
        }
        done.store(true, Ordering::SeqCst);
    };
    tokio::join!(writing, copying);
}

// As a backup beside a master that serves.
#[tokio::test]
async fn a_store_of_another_process_is_copied() {
    const TEST: &str = "copy::a_store_of_another_process_is_copied";
    if let Some(role) = role() {
        let store = open(&role[0]);
        for n in 0..700 {
            store.apply(marked(n), Durability::Buffered).await.unwrap();
        }
        println!("written");
        // Until the other one has copied enough, and lets go.
        std::thread::spawn(|| {
            drop(std::io::stdin().read_line(&mut String::new()));
            std::process::exit(0);
        });
        for n in 700.. {
            store.apply(marked(n), Durability::Buffered).await.unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut writer = child(TEST, &[path.to_str().unwrap()]);
    says(&mut writer, "written");
    let store = LmdbStore::open_read_only(&path, LmdbOptions::default()).unwrap();
    for round in 0..5 {
        let to = dir.path().join(format!("copy {round}"));
        store.copy_to(&to).unwrap();
        assert_whole(&open(&to), 699, u64::MAX).await;
    }
    ends_well(writer);
}

#[tokio::test]
async fn a_copy_goes_where_no_environment_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, other) = (open(dir.path().join("store")), open(dir.path().join("other")));
    store.apply(put("k", "store's"), Durability::Synced).await.unwrap();
    other.apply(put("k", "other's"), Durability::Synced).await.unwrap();
    for there in [other.path(), store.path()] {
        let words = store.copy_to(there).unwrap_err();
        let source = std::error::Error::source(&words).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains("data.mdb cannot be created"), "{words}: {source}");
    }
    assert_eq!(value(&other, "k").await.unwrap(), "other's");
    assert_eq!(value(&store, "k").await.unwrap(), "store's");
}
