//! The directory of a database.

use std::fs;
use std::path::Path;

use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use replikv_core::{Durability, Keyspace, ReplicaStore, StoreError, WriteSet};
use replikv_fjall::FjallStore;

fn put(key: &str, value: &str) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

async fn value(store: &FjallStore, key: &str) -> Option<String> {
    let value = store.get(Keyspace::Data, key.as_bytes()).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test]
async fn a_second_open_is_busy_and_a_closed_store_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("above/it/store");
    let store = FjallStore::open(&path).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    match FjallStore::open(&path) {
        Err(StoreError::Busy { holder }) => assert!(holder.contains("above/it/store"), "{holder}"),
        other => panic!("{other:?}"),
    }
    store.close().await.unwrap();
    let store = FjallStore::open(path.join("")).unwrap();
    assert_eq!(value(&store, "k").await.as_deref(), Some("v"));
    assert_eq!(store.path(), path);
}

#[test]
fn what_is_no_database_is_refused_by_name_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("letters");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("one"), "dear reader").unwrap();
    match FjallStore::open(&folder) {
        Err(StoreError::Corrupt { what }) => assert!(what.contains("letters holds no fjall database"), "{what}"),
        other => panic!("{other:?}"),
    }
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["one"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let error = FjallStore::open(folder.join("one")).unwrap_err();
    let words = format!("{:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(words.contains("cannot be opened"), "{words}");
    assert_eq!(fs::read_to_string(folder.join("one")).unwrap(), "dear reader");
    let error = FjallStore::open(Path::new("/")).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn an_empty_directory_and_what_is_left_of_a_beginning_are_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    fs::create_dir_all(&path).unwrap();
    // As a kill leaves it, before fjall calls it a database.
    let aside = dir.path().join(".store.replikv-new");
    fs::create_dir_all(aside.join("keyspaces/0")).unwrap();
    fs::write(aside.join("0.jnl"), "half of a journal").unwrap();
    fs::write(aside.join("lock"), "").unwrap();
    let store = FjallStore::open(&path).unwrap();
    store.apply(put("k", "v"), Durability::Buffered).await.unwrap();
    assert!(!aside.exists());
    store.close().await.unwrap();
    assert_eq!(value(&FjallStore::open(&path).unwrap(), "k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn what_lies_beside_it_stays_and_a_link_leads_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, beside) = (dir.path().join("store"), dir.path().join("store.new"));
    let other = FjallStore::open(&beside).unwrap();
    other.apply(put("k", "theirs"), Durability::Synced).await.unwrap();
    other.close().await.unwrap();
    FjallStore::open(&path).unwrap().close().await.unwrap();
    assert_eq!(value(&FjallStore::open(&beside).unwrap(), "k").await.as_deref(), Some("theirs"));
    #[cfg(unix)]
    {
        let (empty, link) = (dir.path().join("empty"), dir.path().join("link"));
        fs::create_dir(&empty).unwrap();
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        FjallStore::open(&link).unwrap().close().await.unwrap();
        assert!(empty.join("version").exists() && link.is_symlink());
    }
}

#[test]
fn threads_that_make_one_store_at_once_make_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..4).map(|_| scope.spawn(|| FjallStore::open(&path))).collect();
        let opened: Vec<_> = opening.into_iter().map(|opening| opening.join().unwrap()).collect();
        assert_eq!(opened.iter().filter(|store| store.is_ok()).count(), 1, "{opened:?}");
        let busy = opened.iter().filter(|store| matches!(store, Err(StoreError::Busy { .. }))).count();
        assert_eq!(busy, 3, "{opened:?}");
    });
    FjallStore::open(&path).unwrap();
}

// As `flock DIRECTORY COMMAND` holds it.
#[cfg(unix)]
#[test]
fn a_store_is_made_in_a_directory_that_somebody_has_locked() {
    let dir = tempfile::tempdir().unwrap();
    let held = fs::File::open(dir.path()).unwrap();
    held.lock().unwrap();
    FjallStore::open(dir.path().join("store")).unwrap();
}

#[tokio::test]
async fn others_read_what_is_stored_in_place_and_what_they_stored_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let database = Database::builder(&path).open().unwrap();
        let data = database.keyspace("data", KeyspaceCreateOptions::default).unwrap();
        data.insert("theirs", "1").unwrap();
        database.persist(PersistMode::SyncAll).unwrap();
    }
    let store = FjallStore::open(&path).unwrap();
    assert_eq!(value(&store, "theirs").await.as_deref(), Some("1"));
    store.apply(put("ours", "2"), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    let database = Database::builder(&path).open().unwrap();
    let data = database.keyspace("data", KeyspaceCreateOptions::default).unwrap();
    assert_eq!(data.get("ours").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(data.len().unwrap(), 2);
}
