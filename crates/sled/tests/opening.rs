//! Opening: alone, again, and after a kill.

use std::path::Path;
use std::time::Duration;

use crate::support::{child, contents, end, put, role, says, value};
use replikv_core::{Durability, ReplicaStore, StoreError};
use replikv_sled::SledStore;

#[tokio::test]
async fn a_second_open_is_busy_in_this_and_in_another_process() {
    const TEST: &str = "opening::a_second_open_is_busy_in_this_and_in_another_process";
    let busy = |path: &str| match SledStore::open(path) {
        Err(error @ StoreError::Busy { .. }) => {
            assert_eq!(error.to_string(), format!("the store is in use: {path} is open in this or another process"));
        }
        other => panic!("{other:?}"),
    };
    if let Some(role) = role() {
        return busy(&role[0]);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let path = path.to_str().unwrap();
    let store = SledStore::open(path).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    busy(path);
    let ended = end(child(TEST, &[path]), Duration::from_secs(60)).expect("it hangs");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(value(&store, "k").await.unwrap(), "v");
    store.close().await.unwrap();
    assert_eq!(value(&SledStore::open(path).unwrap(), "k").await.unwrap(), "v");
}

#[test]
fn threads_that_make_one_store_at_once_make_one_store() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let path = dir.path().join(format!("{round}"));
        let opened: Vec<_> = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..4).map(|_| scope.spawn(|| SledStore::open(&path))).collect();
            opening.into_iter().map(|opening| opening.join().unwrap()).collect()
        });
        let busy = opened.iter().filter(|store| matches!(store, Err(StoreError::Busy { .. }))).count();
        assert_eq!((busy, opened.iter().filter(|store| store.is_ok()).count()), (3, 1), "round {round}: {opened:?}");
    }
}

// sled waits for ever for a write that it has given up.
#[tokio::test]
async fn a_store_whose_large_value_finds_no_place_can_be_closed() {
    const TEST: &str = "opening::a_store_whose_large_value_finds_no_place_can_be_closed";
    if let Some(role) = role() {
        let store = SledStore::open(&role[0]).unwrap();
        store.apply(put("k", "v"), Durability::Synced).await.unwrap();
        std::fs::remove_dir_all(Path::new(&role[0]).join("blobs")).unwrap();
        let error = store.apply(put("large", vec![7; 3 << 20]), Durability::Buffered).await.unwrap_err();
        assert!(matches!(error.outcome(), replikv_core::Outcome::Unknown), "{error}");
        assert!(matches!(store.close().await, Err(StoreError::Fatal { .. })));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let ended = end(child(TEST, &[path]), Duration::from_secs(60)).expect("it hangs");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(value(&SledStore::open(path).unwrap(), "k").await.unwrap(), "v");
}

#[tokio::test]
async fn a_store_can_be_opened_again_right_after_it_was_dropped_or_closed() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0u32..40 {
        let store = SledStore::open(dir.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        if let Some(before) = round.checked_sub(1) {
            assert_eq!(value(&store, "round").await.unwrap(), before.to_be_bytes()[..], "round {round}");
        }
        store.apply(put("round", round.to_be_bytes()), Durability::Synced).await.unwrap();
        if round % 2 == 0 {
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_kill_while_sled_recovers_or_while_the_store_is_made_leaves_a_store_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    // Half of a new store's settings, and half of what sled writes down when it has recovered.
    std::fs::create_dir_all(path.join("replikv.new/blobs")).unwrap();
    std::fs::write(path.join("replikv.new/conf"), [0; 58]).unwrap();
    for round in 0u32..3 {
        let store = SledStore::open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        if round > 0 {
            assert_eq!(value(&store, "k").await.unwrap(), (round - 1).to_be_bytes()[..]);
        }
        store.apply(put("k", round.to_be_bytes()), Durability::Synced).await.unwrap();
        store.close().await.unwrap();
        std::fs::write(path.join(format!("snap.{:016X}.generating", 1u64 << 40)), [round as u8; 40]).unwrap();
    }
    assert!(!path.join("replikv.new").exists());
}

#[tokio::test]
async fn a_store_that_was_removed_is_made_anew_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for round in 0u32..40 {
        let store = SledStore::open(&path).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        assert!(contents(&store).await.unwrap().is_empty(), "round {round}");
        store.apply(put("k", "v"), Durability::Synced).await.unwrap();
        store.close().await.unwrap();
        std::fs::rename(&path, dir.path().join(format!("old-{round}"))).unwrap();
    }
}

#[tokio::test]
async fn a_whole_snapshot_that_has_lost_its_name_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2u32 {
        let store = SledStore::open(dir.path()).unwrap();
        store.apply(put("k", round.to_be_bytes()), Durability::Synced).await.unwrap();
        store.close().await.unwrap();
    }
    let named = |dir: &Path| -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("snap.")).collect()
    };
    let [snapshot] = &named(dir.path())[..] else { panic!("one snapshot: {:?}", named(dir.path())) };
    let aside = format!("{snapshot}.generating");
    std::fs::rename(dir.path().join(snapshot), dir.path().join(aside)).unwrap();
    let found = names_after_opening(dir.path()).await;
    assert!(found >= *snapshot, "{found}");
    assert!(named(dir.path()).iter().all(|name| !name.ends_with(".generating")));
}

// The newest snapshot, once the store was opened and read.
async fn names_after_opening(dir: &Path) -> String {
    let store = SledStore::open(dir).unwrap();
    assert_eq!(value(&store, "k").await.unwrap(), 1u32.to_be_bytes()[..]);
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let newest = names.filter(|name| name.starts_with("snap.")).max().unwrap_or_default();
    store.close().await.unwrap();
    newest
}

#[test]
fn where_no_store_can_be_the_error_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "words").unwrap();
    for path in [&file, &file.join("below"), Path::new("/proc/replikv")] {
        let error = SledStore::open(path).unwrap_err();
        let words = format!("{error}: {}", std::error::Error::source(&error).expect("a cause"));
        assert!(words.contains(&format!("{} cannot be opened: ", path.display())), "{words}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"words");
}

fn large(number: u32) -> Vec<u8> {
    // Some lie within the log, some in files of their own.
    let len = [100, 20_000, 700_000, 3 << 20][number as usize % 4];
    let mut bytes = vec![number as u8; len];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

#[tokio::test]
async fn large_values_survive_a_reopen_and_a_kill() {
    const TEST: &str = "opening::large_values_survive_a_reopen_and_a_kill";
    if let Some(role) = role() {
        let store = SledStore::open(&role[0]).unwrap();
        let first: u32 = role[1].parse().unwrap();
        for number in first.. {
            let key = format!("{:02}", number % 30);
            store.apply(put(key, large(number)), Durability::Synced).await.unwrap();
            println!("acknowledged {number}.");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0u32;
    for round in 0..4 {
        let mut writer = child(TEST, &[dir.path().to_str().unwrap(), &next.to_string()]);
        // Each value is overwritten in the later rounds.
        let last = next + 34;
        says(&mut writer, &format!("acknowledged {last}."));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let held = contents(&store).await.unwrap();
        assert_eq!(held.len(), 30, "round {round}");
        let mut newest = 0;
        for (key, value) in &held {
            let number = u32::from_be_bytes(value[..4].try_into().unwrap());
            assert_eq!(*key, format!("{:02}", number % 30));
            assert!(value[..] == large(number), "round {round}: the value of {number} is whole");
            assert!(number + 30 > last, "round {round}: {number} was overwritten, and is back");
            newest = newest.max(number);
        }
        assert!(newest >= last);
        next = newest + 1;
        store.close().await.unwrap();
        // What a kill left is left by an orderly end as well.
        let store = SledStore::open(dir.path()).unwrap();
        assert!(contents(&store).await.unwrap() == held);
        store.close().await.unwrap();
    }
    assert!(std::fs::read_dir(dir.path().join("blobs")).unwrap().next().is_some(), "some are in files of their own");
}
