//! Pages beside writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, Subspace, WriteSet};
use replikv_sled::{SledOptions, SledStore};

/// All keys of a prefix hold the number, and the first `number % 40` of others are there.
fn generation(number: u32) -> WriteSet {
    let mut writes = WriteSet::builder();
    writes.delete_range(Keyspace::Data, &KeyRange::prefix("some/"));
    for key in 0..40 {
        writes.put(Keyspace::Data, format!("all/{key:02}"), number.to_be_bytes()).unwrap();
        if key < number % 40 {
            writes.put(Keyspace::Data, format!("some/{key:02}"), number.to_be_bytes()).unwrap();
        }
    }
    writes.build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_page_never_shows_half_a_write_set() {
    let dir = tempfile::tempdir().unwrap();
    no_page_is_torn(SledStore::open(dir.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_page_over_several_trees_never_shows_half_a_write_set() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions::default()
        .tree(Subspace::raw("all/0"), "first")
        .tree(Subspace::raw("all/2"), "third")
        .tree(Subspace::raw("some/"), "some");
    no_page_is_torn(SledStore::open_with(dir.path(), options).unwrap()).await;
}

async fn no_page_is_torn(store: SledStore) {
    let store = Arc::new(store);
    store.apply(generation(0), Durability::Buffered).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let pages = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..3)
        .map(|reader| {
            let (store, done, pages) = (store.clone(), done.clone(), pages.clone());
            tokio::spawn(async move {
                let mut before = 0;
                while !done.load(Ordering::Relaxed) {
                    let options = ScanOptions { reverse: reader == 1, ..ScanOptions::default() };
                    let page = store.scan(Keyspace::Data, KeyRange::all(), options).await.unwrap();
                    let numbers: Vec<_> =
                        page.iter().map(|(_, value)| u32::from_be_bytes(value.try_into().unwrap())).collect();
                    let number = numbers[0];
                    assert!(numbers.iter().all(|other| *other == number), "a page is torn: {numbers:?}");
                    assert_eq!(numbers.len() as u32, 40 + number % 40, "a range delete is torn");
                    assert!(number >= before, "a page went back");
                    before = number;
                    pages.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut number = 0;
    while number < 500 || pages.load(Ordering::Relaxed) < 300 {
        number += 1;
        store.apply(generation(number), Durability::Buffered).await.unwrap();
        if readers.iter().any(tokio::task::JoinHandle::is_finished) {
            break;
        }
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}
