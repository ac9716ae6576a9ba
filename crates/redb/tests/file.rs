//! The file of a database.

use replikv_core::{Durability, Keyspace, ReplicaStore, StoreError, WriteSet};
use replikv_redb::RedbStore;

fn put(key: &str, value: &str) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

#[tokio::test]
async fn a_second_open_is_busy_and_a_closed_store_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("above/it/store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    match RedbStore::open(&path) {
        Err(StoreError::Busy { holder }) => assert!(holder.contains("store.redb"), "{holder}"),
        other => panic!("{other:?}"),
    }
    store.close().await.unwrap();
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.get(Keyspace::Data, b"k").await.unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(store.path(), path);
}

#[test]
fn what_is_no_database_is_refused_by_name_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("letter.txt");
    for words in ["", "dear reader, this is no database, however long it may be"] {
        std::fs::write(&path, words).unwrap();
        let error = RedbStore::open(&path).unwrap_err();
        assert!(error.to_string().contains("letter.txt") || matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), words);
    }
    let error = RedbStore::open(dir.path()).unwrap_err();
    let words = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(words.contains("cannot be opened"), "{words}");
}

#[tokio::test]
async fn threads_that_make_one_store_at_once_make_one_store_and_keep_what_is_written_to_it() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = dir.path().join(format!("{round}.redb"));
        let mut opened: Vec<_> = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..4).map(|_| scope.spawn(|| RedbStore::open(&path))).collect();
            opening.into_iter().map(|opening| opening.join().unwrap()).collect()
        });
        let busy = opened.iter().filter(|store| matches!(store, Err(StoreError::Busy { .. }))).count();
        assert_eq!(busy, 3, "round {round}: {opened:?}");
        let store = opened.drain(..).find_map(Result::ok).expect("one has it");
        store.apply(put("k", "v"), Durability::Synced).await.unwrap();
        store.close().await.unwrap();
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(store.get(Keyspace::Data, b"k").await.unwrap().as_deref(), Some(&b"v"[..]), "round {round}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 20);
}

#[tokio::test]
async fn what_is_left_of_a_beginning_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let aside = dir.path().join(".store.redb.replikv-new");
    std::fs::write(&aside, "half of a database").unwrap();
    std::fs::write(dir.path().join("store.redb.new"), "somebody's own").unwrap();
    let store = RedbStore::open(&path).unwrap();
    store.apply(put("k", "v"), Durability::Buffered).await.unwrap();
    assert!(!aside.exists());
    assert_eq!(std::fs::read_to_string(dir.path().join("store.redb.new")).unwrap(), "somebody's own");
}
