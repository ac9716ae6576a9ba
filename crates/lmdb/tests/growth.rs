//! The map: it grows under load, and when it may not, the store says so and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{self, contents, delete, put, value};
use replikv_core::{
    Durability, KeyRange, Keyspace, LargePut, Outcome, ReplicaStore, ScanOptions, StoreError, WriteSet,
};
use replikv_lmdb::{LmdbOptions, LmdbStore, LmdbSync};

const MIB: usize = 1 << 20;

fn open(path: &std::path::Path, map: usize, max: usize) -> LmdbStore {
    LmdbStore::open(path, LmdbOptions::default().map_size(map).max_map_size(max)).unwrap()
}

/// A write set whose keys all hold its number, beside something that stays.
fn generation(number: u32) -> WriteSet {
    let mut writes = WriteSet::builder();
    for key in 0..10 {
        let value = [&number.to_be_bytes()[..], &[7; 2000]].concat();
        writes.put(Keyspace::Data, format!("generation/{key}"), value).unwrap();
    }
    writes.put(Keyspace::Data, format!("history/{number:06}"), vec![9; 64 << 10]).unwrap();
    writes.build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_map_grows_under_load_while_pages_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path(), MIB, 256 * MIB));
    store.apply(generation(0), Durability::Synced).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let pages = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let (store, done, pages) = (store.clone(), done.clone(), pages.clone());
            tokio::spawn(async move {
                let mut before = 0;
                while !done.load(Ordering::Relaxed) {
                    let options = ScanOptions { reverse: reader % 2 == 1, ..ScanOptions::default() };
                    let range = KeyRange::prefix("generation/");
                    let page = store.scan(Keyspace::Data, range, options).await.unwrap();
                    let number = |value: &[u8]| u32::from_be_bytes(value[..4].try_into().unwrap());
                    let numbers: Vec<_> = page.iter().map(|(_, value)| number(value)).collect();
                    assert_eq!(numbers.len(), 10);
                    assert!(numbers.iter().all(|number| *number == numbers[0]), "a page is torn: {numbers:?}");
                    assert!(numbers[0] >= before, "a page went back");
                    before = numbers[0];
                    assert!(value(&*store, &format!("history/{before:06}")).await.is_some());
                    pages.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for number in 1..=300 {
        store.apply(generation(number), Durability::Buffered).await.unwrap();
    }
    // Every reader has seen the map as it is at the end.
    let seen = pages.load(Ordering::Relaxed);
    while pages.load(Ordering::Relaxed) < seen + 20 && !readers.iter().any(tokio::task::JoinHandle::is_finished) {
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    let size = std::fs::metadata(dir.path().join("data.mdb")).unwrap().len();
    assert!(size > 16 * MIB as u64, "the file has grown by more than one doubling: {size}");
    let history = KeyRange::prefix("history/");
    let options = ScanOptions::default().max_bytes(usize::MAX);
    let page = store.scan(Keyspace::Data, history, options).await.unwrap();
    assert_eq!(page.len(), 301, "no write set was lost when it was tried again");
}

/// Fills a store until it says no; what was accepted.
async fn fill(store: &LmdbStore, name: &str, len: usize) -> (Vec<String>, StoreError) {
    let mut accepted = Vec::new();
    loop {
        let key = format!("{name}/{:05}", accepted.len());
        match store.apply(put(&key, vec![1; len]), Durability::Synced).await {
            Ok(()) => accepted.push(key),
            Err(error) => return (accepted, error),
        }
        assert!(accepted.len() < 10_000, "it is never full");
    }
}

#[tokio::test]
async fn a_full_store_names_the_figure_and_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), MIB, 2 * MIB);
    let (accepted, error) = fill(&store, "a", 50_000).await;
    assert_eq!(error.outcome(), Outcome::Unchanged);
    let StoreError::StoreFull { hint } = &error else { panic!("{error}") };
    assert!(hint.contains("may not grow; raise max_map_size, to 4194304 for example"), "{hint}");
    assert!(accepted.len() > 20, "{}", accepted.len());
    let held: Vec<_> = contents(&store).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(held, accepted, "all that was accepted, and nothing else");
    assert!(value(&store, "a/00000").await.is_some());

    // What only deletes works, in the log as well: trimming makes room.
    store.apply(delete("a/00000"), Durability::Synced).await.unwrap();
    let mut trim = WriteSet::builder();
    trim.delete_range(Keyspace::Log, &KeyRange::all()).put(Keyspace::Meta, "floor", "1").unwrap();
    store.apply(trim.build(), Durability::Synced).await.unwrap();
    let mut range = WriteSet::builder();
    range.delete_range(Keyspace::Data, &KeyRange::from_bounds("a/00001".."a/00015"));
    store.apply(range.build(), Durability::Synced).await.unwrap();
    store.apply(put("room", vec![2; 50_000]), Durability::Synced).await.unwrap();
    assert_eq!(contents(&store).await.len(), accepted.len() - 15 + 1);
    store.close().await.unwrap();

    // As full again, and opened with a larger map.
    let store = open(dir.path(), MIB, 2 * MIB);
    let (_, error) = fill(&store, "b", 50_000).await;
    assert!(matches!(error, StoreError::StoreFull { .. }), "{error}");
    let held = contents(&store).await;
    store.close().await.unwrap();
    let store = open(dir.path(), MIB, 8 * MIB);
    assert_eq!(contents(&store).await, held);
    store.apply(put("z", vec![3; 2 * MIB]), Durability::Synced).await.unwrap();
}

#[tokio::test]
async fn the_reserve_is_for_deletes_however_often_the_store_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (map, reserve) = (2 * MIB, 16 * MIB);
    let options = LmdbOptions::default().map_size(map).max_map_size(map).sync(LmdbSync::DangerouslyNone);
    let store = LmdbStore::open(dir.path(), options).unwrap();
    for round in 0..30 {
        // To the last page.
        let mut accepted = Vec::new();
        for len in [3000 + round * 500, 2000, 500, 1] {
            let (more, error) = fill(&store, &format!("{round:02}/{len}"), len).await;
            assert!(matches!(error, StoreError::StoreFull { .. }), "{error}");
            accepted.extend(more);
        }
        let first = contents(&store).await[0].0.clone();
        store.apply(delete(&first), Durability::Synced).await.unwrap();
        // The delete had the reserve; a put has not.
        let error = store.apply(put("large", vec![0; MIB]), Durability::Synced).await.unwrap_err();
        assert!(matches!(error, StoreError::StoreFull { .. }), "round {round}, {} accepted: {error}", accepted.len());
        let size = std::fs::metadata(dir.path().join("data.mdb")).unwrap().len();
        assert!(size < (map + reserve / 2) as u64, "round {round}: the file has {size} bytes");
        if round % 10 == 9 {
            let mut all = WriteSet::builder();
            all.delete_range(Keyspace::Data, &KeyRange::all());
            store.apply(all.build(), Durability::Synced).await.unwrap();
        }
    }
}

/// Ten thousand deletes, one by one, in a store that is full to the brim.
#[tokio::test]
async fn a_full_store_can_be_emptied_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = LmdbOptions::default().map_size(MIB).max_map_size(2 * MIB).sync(LmdbSync::DangerouslyNone);
    let store = LmdbStore::open(dir.path(), options).unwrap();
    let (_, error) = fill(&store, "k", 900).await;
    assert!(matches!(error, StoreError::StoreFull { .. }), "{error}");
    for (key, _) in contents(&store).await {
        store.apply(delete(key), Durability::Buffered).await.unwrap();
    }
    assert!(contents(&store).await.is_empty());
    let (accepted, _) = fill(&store, "k", 900).await;
    assert!(accepted.len() > 500, "{}", accepted.len());
}

/// LMDB unmaps before it maps anew. If the new map cannot be had, every access would be to nowhere.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_map_that_cannot_be_made_anew_is_fatal_until_the_store_is_reopened() {
    const TEST: &str = "growth::a_map_that_cannot_be_made_anew_is_fatal_until_the_store_is_reopened";
    let dir = tempfile::tempdir().unwrap();
    let Some(role) = support::role() else {
        return support::ends_well(support::child(TEST, &[dir.path().to_str().unwrap()]));
    };
    let options = LmdbOptions::default().map_size(64 * MIB).max_map_size(1 << 40).sync(LmdbSync::DangerouslyNone);
    let store = LmdbStore::open(&role[0], options).unwrap();
    // The process may have a little more address space than it has, and not as much as the map would need.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: usize = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = format!("--as={}", (kib << 10) + 32 * MIB);
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), &limit])
        .status()
        .expect("prlimit, of util-linux");
    assert!(limited.success());
    let mut written = 0;
    let error = loop {
        match store.apply(put(format!("{written:03}"), vec![1; MIB]), Durability::Buffered).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the map could be made anew");
    };
    assert!(matches!(&error, StoreError::Fatal { reason } if reason.contains("could not be made anew")), "{error}");
    assert!(matches!(store.get(Keyspace::Data, b"000").await, Err(StoreError::Fatal { .. })));
    let scanned = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await;
    assert!(matches!(scanned, Err(StoreError::Fatal { .. })), "{scanned:?}");
    store.reopen().await.unwrap();
    for number in 0..written {
        assert!(value(&store, &format!("{number:03}")).await.is_some(), "{number} of {written}");
    }
}

/// A put of `mib` MiB that comes in pieces of one.
fn large(key: &str, mib: usize) -> WriteSet {
    let pieces = (0..mib).map(|n| vec![n as u8; MIB].into()).collect();
    let mut writes = WriteSet::builder();
    writes.append(Keyspace::Data, LargePut::new(key.as_bytes(), pieces).unwrap().into());
    writes.put(Keyspace::Data, format!("{key}, behind"), "small").unwrap();
    writes.build()
}

async fn holds(store: &LmdbStore, key: &str, mib: usize) -> bool {
    let Some(found) = value(store, key).await else { return false };
    let is_piece = |(n, piece): (usize, &[u8])| piece.iter().all(|byte| *byte == n as u8);
    found.len() == mib * MIB && found.chunks(MIB).enumerate().all(is_piece)
}

#[tokio::test]
async fn the_map_grows_before_a_value_in_pieces_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), MIB, 256 * MIB);
    for (key, mib) in [("a", 2), ("b", 40), ("a", 5)] {
        store.apply(large(key, mib), Durability::Synced).await.unwrap();
        assert!(holds(&store, key, mib).await, "{key} of {mib} MiB");
    }
}

#[tokio::test]
async fn a_value_in_pieces_that_fits_only_into_free_pages_is_put_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 24 * MIB, 24 * MIB);
    // Never is there room for it and all that may come with it behind the last page.
    for round in 0..6 {
        store.apply(large("a", 9), Durability::Synced).await.unwrap();
        assert!(holds(&store, "a", 9).await, "round {round}");
        store.apply(delete("a"), Durability::Synced).await.unwrap();
    }
}

#[tokio::test]
async fn a_value_in_pieces_that_does_not_fit_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), MIB, 8 * MIB);
    store.apply(put("small", "1"), Durability::Synced).await.unwrap();
    for _ in 0..3 {
        let refused = store.apply(large("large", 20), Durability::Synced).await;
        assert!(matches!(refused, Err(StoreError::StoreFull { .. })), "{refused:?}");
        assert_eq!(contents(&store).await.len(), 1);
    }
    store.apply(put("small", "2"), Durability::Synced).await.unwrap();
}
