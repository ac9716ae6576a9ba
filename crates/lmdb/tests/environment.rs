//! Opening: alone, where it can be, and what is there already.

use std::path::Path;

use crate::support::{child, contents, delete, ends_well, plain, plain_entries, plain_put, put, role, says, value};
use heed::DatabaseFlags;
use replikv_core::{Batch, Durability, Keyspace, ReplicaStore, StoreError};
use replikv_lmdb::{LmdbOptions, LmdbStore, LmdbSync};
use replikv_node::{Master, MasterConfig, Slave, SlaveConfig};

fn open(path: impl AsRef<Path>) -> Result<LmdbStore, StoreError> {
    LmdbStore::open(path, LmdbOptions::default())
}

/// The error and its cause, as people see them.
fn words(opened: Result<LmdbStore, StoreError>) -> String {
    let error = opened.map(drop).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

#[tokio::test]
async fn a_second_open_is_busy_in_this_and_in_another_process() {
    const TEST: &str = "environment::a_second_open_is_busy_in_this_and_in_another_process";
    if let Some(role) = role() {
        let error = words(open(&role[0]));
        assert_eq!(error, format!("the store is in use: {} is open in this or another process", role[0]));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    assert!(matches!(open(&path), Err(StoreError::Busy { .. })));
    // By another name as well.
    std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
    assert!(matches!(open(dir.path().join("link")), Err(StoreError::Busy { .. })));
    ends_well(child(TEST, &[path.to_str().unwrap()]));
    assert_eq!(value(&store, "k").await.unwrap(), "v");
    store.close().await.unwrap();
    assert_eq!(value(&open(&path).unwrap(), "k").await.unwrap(), "v");
}

#[test]
fn where_no_store_can_be_the_error_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "words").unwrap();
    assert_eq!(words(open(&file)), format!("the store failed: {} is no directory", file.display()));
    let below = file.join("below");
    assert!(words(open(&below)).contains(&format!("{} cannot be created", below.display())), "{}", words(open(&below)));
    assert_eq!(std::fs::read(&file).unwrap(), b"words");

    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let mut permissions = std::fs::metadata(&closed).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&closed, permissions).unwrap();
    // To some users every directory is open, except those that no file system lets anybody write to.
    let closed = if std::fs::write(closed.join("probe"), "").is_ok() { Path::new("/proc") } else { &closed };
    let error = words(open(closed));
    assert!(error.contains("replikv.lock cannot be opened: "), "{error}");
}

#[tokio::test]
async fn what_is_no_environment_is_damaged_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = (0..50_000).map(|_| rng.u8(..)).collect();
    for (name, bytes) in [("text", &b"no environment at all\n"[..]), ("zeros", &[0; 8192]), ("noise", &noise)] {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("data.mdb"), bytes).unwrap();
        assert_eq!(words(open(&path)), format!("the store is damaged: {} holds no LMDB environment", path.display()));
        assert_eq!(std::fs::read(path.join("data.mdb")).unwrap(), bytes, "{name}");
        let read = LmdbStore::open_read_only(&path, LmdbOptions::default());
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{name}");
    }
    // Both of the pages that name all others must be hit: one alone is what a crash leaves.
    let path = dir.path().join("meta");
    let store = open(&path).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    let mut bytes = std::fs::read(path.join("data.mdb")).unwrap();
    bytes[..8192].fill(0xFF);
    std::fs::write(path.join("data.mdb"), &bytes).unwrap();
    assert!(words(open(&path)).contains("holds no LMDB environment"));
}

#[tokio::test]
async fn a_database_that_is_there_is_adopted_and_stays_readable_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let entries: [(&[u8], &[u8]); 4] = [(b"\x00", b"zero"), (b"ada", b"1"), (b"bob", b""), (b"\xFF\xFF", b"last")];
    let env = plain(dir.path());
    plain_put(&env, "users", DatabaseFlags::empty(), &entries);
    plain_put(&env, "other", DatabaseFlags::empty(), &[(b"k", b"v")]);
    drop(env);

    let options = LmdbOptions::default().data_database("users");
    let store = LmdbStore::open(dir.path(), options.clone()).unwrap();
    let held: Vec<_> = contents(&store).await;
    assert!(held.iter().map(|(key, value)| (&key[..], &value[..])).eq(entries));
    let master = Master::open(store, MasterConfig::default()).await.unwrap();
    let batch = Batch::new().put("carol", "3").put("ada", "2").delete(b"\x00");
    let token = master.write(batch).await.unwrap();
    // What was there before replication was, reaches a slave as well.
    let slave_dir = tempfile::tempdir().unwrap();
    let slave = Slave::open(open(slave_dir.path()).unwrap(), SlaveConfig::new("s")).await.unwrap();
    let (one, two) = tokio::io::duplex(1 << 16);
    let serving = tokio::spawn({
        let master = master.clone();
        async move { master.serve(one).await }
    });
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow(two).await }
    });
    slave.wait_applied(token).await.unwrap();
    assert_eq!(contents(slave.store()).await, contents(master.store()).await);
    slave.shutdown().await.unwrap();
    master.shutdown().await.unwrap();
    following.await.unwrap().unwrap();
    serving.await.unwrap().unwrap();

    let after: &[(&[u8], &[u8])] = &[(b"ada", b"2"), (b"bob", b""), (b"carol", b"3"), (b"\xFF\xFF", b"last")];
    let env = plain(dir.path());
    let read = plain_entries(&env, "users").unwrap();
    assert!(read.iter().map(|(key, value)| (&key[..], &value[..])).eq(after.iter().copied()), "{read:?}");
    assert_eq!(plain_entries(&env, "other").unwrap(), [(b"k".to_vec(), b"v".to_vec())]);
    drop(env);
    let env = plain(slave_dir.path());
    assert_eq!(plain_entries(&env, "data").unwrap(), read, "a slave in place, key by key");
}

#[test]
fn a_database_that_is_not_in_plain_order_is_refused_by_name() {
    for (flags, kind) in [
        // As MDB_INTEGERKEY.
        (DatabaseFlags::from_bits_retain(0x08), "integer keys"),
        (DatabaseFlags::REVERSE_KEY, "reverse keys"),
        (DatabaseFlags::DUP_SORT, "duplicates"),
        (DatabaseFlags::DUP_SORT | DatabaseFlags::DUP_FIXED, "duplicates"),
    ] {
        for name in ["odd", "replikv-log", "replikv-meta"] {
            let dir = tempfile::tempdir().unwrap();
            let env = plain(dir.path());
            plain_put(&env, name, flags, &[(b"12345678", b"v")]);
            drop(env);
            let options = LmdbOptions::default();
            let options = if name == "odd" { options.data_database("odd") } else { options };
            let error = words(LmdbStore::open(dir.path(), options));
            assert!(error.starts_with(&format!("the store failed: database {name} has {kind}")), "{error}");
            let env = plain(dir.path());
            assert_eq!(plain_entries(&env, name).unwrap().len(), 1);
            for ours in ["data", "replikv-log", "replikv-meta", "replikv-book"].iter().filter(|ours| **ours != name) {
                assert!(plain_entries(&env, ours).is_none(), "{ours} was made");
            }
        }
    }
}

#[tokio::test]
async fn a_database_of_the_application_is_not_taken_for_one_of_ours() {
    for (name, option) in [("replikv-log", "log_database"), ("replikv-meta", "meta_database")] {
        let dir = tempfile::tempdir().unwrap();
        let env = plain(dir.path());
        plain_put(&env, name, DatabaseFlags::empty(), &[(b"theirs", b"v")]);
        drop(env);
        let error = words(open(dir.path()));
        assert!(error.contains(&format!("has a database {name} of its own: choose another {option}")), "{error}");
        let options = LmdbOptions::default().log_database("replikv/log").meta_database("replikv/meta");
        let store = LmdbStore::open(dir.path(), options.clone()).unwrap();
        let master = Master::open(store, MasterConfig::default()).await.unwrap();
        master.put("k", "v").await.unwrap();
        master.shutdown().await.unwrap();
        let store = LmdbStore::open(dir.path(), options).unwrap();
        assert_eq!(value(&store, "k").await.unwrap(), "v");
        store.close().await.unwrap();
        assert_eq!(plain_entries(&plain(dir.path()), name).unwrap(), [(b"theirs".to_vec(), b"v".to_vec())]);
    }
    let dir = tempfile::tempdir().unwrap();
    for (options, expected) in [
        (LmdbOptions::default().data_database("replikv-log"), "must be three databases"),
        (LmdbOptions::default().log_database("replikv-meta"), "must be three databases"),
        (LmdbOptions::default().data_database(""), "\"\" cannot name a database"),
        (LmdbOptions::default().data_database("a\0b"), "cannot name a database"),
    ] {
        let error = words(LmdbStore::open(dir.path(), options));
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_store_is_read_from_another_process_while_it_is_written_and_grows() {
    const TEST: &str = "environment::a_store_is_read_from_another_process_while_it_is_written_and_grows";
    if let Some(role) = role() {
        let store = LmdbStore::open_read_only(&role[0], LmdbOptions::default().map_size(1 << 20)).unwrap();
        let refused = store.apply(put("k", "v"), Durability::Synced).await.unwrap_err();
        assert_eq!(std::error::Error::source(&refused).unwrap().to_string(), "it was opened for reading only");
        store.sync().await.unwrap();
        assert_eq!(value(&store, "first").await.unwrap(), "1");
        println!("reading");
        while value(&store, "last").await.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(contents(&store).await.len(), 130, "what made the map grow is here");
        store.close().await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = LmdbOptions::default().map_size(1 << 20).max_map_size(1 << 30);
    let missing = LmdbStore::open_read_only(dir.path().join("missing"), options.clone());
    assert!(missing.is_err() && !dir.path().join("missing").exists(), "nothing is made");
    let store = LmdbStore::open(dir.path(), options.clone()).unwrap();
    store.apply(put("first", "1"), Durability::Synced).await.unwrap();
    assert!(matches!(LmdbStore::open_read_only(dir.path(), options), Err(StoreError::Busy { .. })));
    let mut reader = child(TEST, &[dir.path().to_str().unwrap()]);
    says(&mut reader, "reading");
    for number in 0..128 {
        store.apply(put(format!("large/{number}"), vec![1; 64 << 10]), Durability::Buffered).await.unwrap();
    }
    store.apply(put("last", "1"), Durability::Buffered).await.unwrap();
    ends_well(reader);
    // Who only reads does not keep the store from being a store.
    store.close().await.unwrap();
}

#[test]
fn what_holds_no_store_cannot_be_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    plain_put(&plain(dir.path()), "users", DatabaseFlags::empty(), &[(b"k", b"v")]);
    let opened = LmdbStore::open_read_only(dir.path(), LmdbOptions::default());
    assert_eq!(words(opened), format!("the store failed: {} holds no store", dir.path().display()));
}

/// In a child, as another program: what it is told to do with the environment.
fn other_program(role: &[String]) {
    let env = plain(Path::new(&role[1]));
    match &role[0][..] {
        // Until it is killed.
        "read" => {
            let _txn = env.read_txn().unwrap();
            println!("reading");
            std::thread::park();
        }
        // Until its standard input closes.
        "hold" => {
            println!("holding");
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).unwrap();
        }
        "count" => println!("stale: {}", env.clear_stale_readers().unwrap()),
        role => panic!("{role}"),
    }
}

fn reader_that_died(test: &str, path: &str) {
    let mut reader = child(test, &["read", path]);
    says(&mut reader, "reading");
    reader.kill().unwrap();
    reader.wait().unwrap();
}

fn stale_readers(test: &str, path: &str) -> bool {
    let counted = child(test, &["count", path]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&counted.stdout).into_owned();
    assert!(said.contains("stale: "), "{said}");
    !said.contains("stale: 0")
}

#[tokio::test]
async fn readers_that_died_are_forgotten_at_open_and_while_it_is_open() {
    const TEST: &str = "environment::readers_that_died_are_forgotten_at_open_and_while_it_is_open";
    if let Some(role) = role() {
        return other_program(&role);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let options = LmdbOptions::default().sync(LmdbSync::DangerouslyNone);
    let store = LmdbStore::open(dir.path(), options.clone()).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();

    reader_that_died(TEST, path);
    assert!(stale_readers(TEST, path), "the test sees what it is about; counting clears");
    reader_that_died(TEST, path);
    for number in 0u32..300 {
        store.apply(put("k", number.to_be_bytes()), Durability::Buffered).await.unwrap();
    }
    assert!(!stale_readers(TEST, path), "forgotten while it is open");

    // Somebody holds the environment, so that its table of readers is kept.
    let mut holder = child(TEST, &["hold", path]);
    says(&mut holder, "holding");
    reader_that_died(TEST, path);
    store.close().await.unwrap();
    let store = LmdbStore::open(dir.path(), options).unwrap();
    assert!(!stale_readers(TEST, path), "forgotten at open");
    store.apply(delete("k"), Durability::Synced).await.unwrap();
    ends_well(holder);
}

#[tokio::test]
async fn reads_that_find_no_slot_say_what_to_raise() {
    const TEST: &str = "environment::reads_that_find_no_slot_say_what_to_raise";
    if let Some(role) = role() {
        return other_program(&role);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let store = LmdbStore::open(dir.path(), LmdbOptions::default().max_readers(2)).unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    let mut readers: Vec<_> = (0..2).map(|_| child(TEST, &["read", path])).collect();
    readers.iter_mut().for_each(|reader| says(reader, "reading"));
    let error = store.get(Keyspace::Data, b"k").await.unwrap_err();
    assert_eq!(error.to_string(), "the store is busy for the moment: all reader slots are taken; raise max_readers");
    assert!(error.is_retryable());
    // Those that died give theirs back at once.
    readers[0].kill().unwrap();
    readers[0].wait().unwrap();
    assert_eq!(value(&store, "k").await.unwrap(), "v");
    readers[1].kill().unwrap();
    readers[1].wait().unwrap();
}

#[tokio::test]
async fn in_every_sync_mode_a_killed_process_loses_nothing_that_was_acknowledged() {
    const TEST: &str = "environment::in_every_sync_mode_a_killed_process_loses_nothing_that_was_acknowledged";
    let options = |mode: &str| {
        LmdbOptions::default().sync(match mode {
            "full" => LmdbSync::Full,
            "no meta sync" => LmdbSync::NoMetaSync,
            _ => LmdbSync::DangerouslyNone,
        })
    };
    if let Some(role) = role() {
        let store = LmdbStore::open(&role[1], options(&role[0])).unwrap();
        for number in 0u32.. {
            let durability = if number % 8 == 0 { Durability::Synced } else { Durability::Buffered };
            store.apply(put(format!("{number:06}"), "v"), durability).await.unwrap();
            println!("acknowledged {number}.");
        }
    }
    for mode in ["full", "no meta sync", "none"] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = child(TEST, &[mode, dir.path().to_str().unwrap()]);
        says(&mut writer, "acknowledged 100.");
        writer.kill().unwrap();
        writer.wait().unwrap();
        let store = LmdbStore::open(dir.path(), options(mode)).unwrap();
        let held = contents(&store).await;
        assert!(held.len() > 100, "{mode}: {}", held.len());
        assert!(held.iter().enumerate().all(|(number, (key, _))| *key == format!("{number:06}")), "{mode}");
        store.close().await.unwrap();
    }
}
