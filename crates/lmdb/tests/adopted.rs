//! Stores in environments that belong to the application.

use std::sync::Arc;

use crate::support::app::{create, environment, environment_with};
use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, Subspace, WriteSet};
use replikv_lmdb::heed::types::Str;
use replikv_lmdb::heed::{Database, DatabaseFlags, EnvFlags, env_closing_event};
use replikv_lmdb::{LmdbOptions, LmdbStore};

fn options() -> LmdbOptions {
    LmdbOptions::default().table(Subspace::raw("u/"), "users")
}

fn put(key: &str, value: impl AsRef<[u8]>) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

fn words(error: &StoreError) -> String {
    format!("{error}: {:?}", std::error::Error::source(error).map(ToString::to_string))
}

#[tokio::test]
async fn the_application_and_the_store_share_one_environment() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    // Names that replikv must leave alone.
    let users: Database<'_, Str, Str> = create(&env, "users", DatabaseFlags::empty());
    let log: Database<'_, Str, Str> = create(&env, "log", DatabaseFlags::empty());
    let mut wtxn = env.write_txn().unwrap();
    users.put(&mut wtxn, "alice", "there before").unwrap();
    log.put(&mut wtxn, "line", "the application's").unwrap();
    wtxn.commit().unwrap();
    let store = LmdbStore::from_env(env.clone(), options()).unwrap();
    assert_eq!(store.get(Keyspace::Data, b"u/alice").await.unwrap().as_deref(), Some(&b"there before"[..]));
    assert!(store.get(Keyspace::Log, b"line").await.unwrap().is_none());
    store.apply(put("u/bob", "written"), Durability::Synced).await.unwrap();
    let rtxn = env.read_txn().unwrap();
    assert_eq!(users.get(&rtxn, "bob").unwrap(), Some("written"));
    drop(rtxn);
    let busy = LmdbStore::from_env(env.clone(), options()).unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }));
    // Closing lets go of it, and of nothing else.
    store.close().await.unwrap();
    let again = LmdbStore::from_env(env.clone(), options()).unwrap();
    again.close().await.unwrap();
    let rtxn = env.read_txn().unwrap();
    assert_eq!(users.len(&rtxn).unwrap(), 2);
    drop(rtxn);
    // Nobody holds it any more, though both handles are there.
    env.prepare_for_closing().wait();
    drop((store, again));
}

#[tokio::test]
async fn a_reader_of_the_callers_is_no_obstacle_to_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    let store = LmdbStore::from_env(env.clone(), options()).unwrap();
    store.apply(put("u/bob", "written"), Durability::Synced).await.unwrap();
    let rtxn = env.read_txn().unwrap();
    assert_eq!(store.get(Keyspace::Data, b"u/bob").await.unwrap().as_deref(), Some(&b"written"[..]));
    assert_eq!(store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap().len(), 1);
    // What runs on this thread says what is in the way.
    let error = store.read(|_| ()).unwrap_err();
    assert!(words(&error).contains("this thread has a read transaction open already"), "{}", words(&error));
    drop(rtxn);
    store.read(|_| ()).unwrap();
    // A thread that has read must not end while the environment is closed elsewhere.
    drop(store);
    env.prepare_for_closing().wait();
}

#[tokio::test]
async fn a_full_map_is_not_resized_and_the_size_to_open_it_with_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment_with(dir.path(), |open| {
        open.max_dbs(8).map_size(1 << 20);
    });
    let store = LmdbStore::from_env(env.clone(), options()).unwrap();
    let error = loop {
        if let Err(error) = store.apply(put(&format!("u/{}", fastrand::u64(..)), [7; 5000]), Durability::Synced).await {
            break error;
        }
    };
    assert!(matches!(&error, StoreError::StoreFull { hint } if hint.contains("map_size of 2097152")), "{error}");
    assert_eq!(env.info().map_size, 1 << 20);
    // Refused, and no more: the store goes on.
    let writes = WriteSet::builder().delete_range(Keyspace::Data, &KeyRange::prefix("u/a")).build();
    drop(store.apply(writes, Durability::Synced).await);
    assert!(!store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap().is_empty());
}

#[test]
fn the_flags_of_the_environment_say_what_a_commit_means() {
    for (flags, synced) in [
        (EnvFlags::empty(), true),
        (EnvFlags::NO_READ_AHEAD, true),
        (EnvFlags::NO_META_SYNC, false),
        (EnvFlags::NO_SYNC, false),
        (EnvFlags::WRITE_MAP, true),
        (EnvFlags::WRITE_MAP.union(EnvFlags::MAP_ASYNC), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let env = environment_with(dir.path(), |open| {
            open.max_dbs(8).map_size(1 << 24);
            #[allow(unsafe_code, reason = "heed asks its caller to vouch for flags")]
            // SAFETY: nothing here survives a power loss.
            unsafe {
                open.flags(flags);
            }
        });
        let store = LmdbStore::from_env(env, options()).unwrap();
        let scribe = store.scribe(store.limits()).unwrap();
        assert_eq!(scribe.commits_are_synced(), synced, "{flags:?}");
    }
}

#[test]
fn an_environment_without_locks_or_writes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, expected) in [(EnvFlags::NO_LOCK, "NO_LOCK"), (EnvFlags::READ_ONLY, "reading only")] {
        drop(environment(dir.path()));
        let env = environment_with(dir.path(), |open| {
            #[allow(unsafe_code, reason = "heed asks its caller to vouch for flags")]
            // SAFETY: nothing else uses the directory.
            unsafe {
                open.max_dbs(8).flags(flags);
            }
        });
        let error = LmdbStore::from_env(env, options()).unwrap_err();
        assert!(words(&error).contains(expected), "{}", words(&error));
    }
}

#[test]
fn a_store_that_opened_its_environment_itself_has_no_scribe() {
    let dir = tempfile::tempdir().unwrap();
    let store = LmdbStore::open(dir.path(), options()).unwrap();
    let error = store.scribe(store.limits()).unwrap_err();
    assert!(words(&error).contains("use from_env"), "{}", words(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_whose_readers_belong_to_threads_goes_with_the_store() {
    const ROUNDS: usize = 150;
    let dir = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        // The store has the last handle: whatever its threads leave behind must find the environment, or be gone.
        let store = Arc::new(LmdbStore::from_env(environment(dir.path()), options()).unwrap());
        let mut scans = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let store = store.clone();
            scans.spawn(async move { store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await });
        }
        assert!(scans.join_all().await.iter().all(Result::is_ok));
        // On a thread that ends just now.
        let asked = store.clone();
        let asking = std::thread::spawn(move || asked.stats());
        if round % 2 == 0 {
            store.close().await.unwrap();
        }
        drop(store);
        assert_eq!(asking.join().unwrap().foreign_commits.unwrap_or_default(), 0);
        if let Some(event) = env_closing_event(dir.path()) {
            event.wait();
        }
    }
}
