//! Stores in databases that belong to the application.

use crate::support::{application, contents, entries, put, value, words};
use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, StoreError, Subspace, WriteSet};
use replikv_sled::{SledOptions, SledStore, sled};

fn options() -> SledOptions {
    SledOptions::default().tree(Subspace::raw("u/"), "users")
}

fn owned(found: &[(&str, &str)]) -> Vec<(String, String)> {
    found.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

#[tokio::test]
async fn the_application_and_the_store_share_one_database() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let users = db.open_tree("users").unwrap();
    let log = db.open_tree("log").unwrap();
    users.insert("alice", "there before").unwrap();
    log.insert("line", "the application's").unwrap();
    db.insert("d/default", "the application's").unwrap();
    let store = SledStore::from_db(db.clone(), options()).unwrap();
    assert_eq!(value(&store, "u/alice").await.unwrap(), "there before");
    assert_eq!(contents(&store).await.unwrap().len(), 1, "only what was named is data");
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Data, "u/bob", "written").unwrap().put(Keyspace::Data, "else", "in no tree").unwrap();
    writes.put(Keyspace::Log, "1", "record").unwrap().put(Keyspace::Meta, "head", "1").unwrap();
    store.apply(writes.build(), Durability::Synced).await.unwrap();
    assert_eq!(entries(&users), owned(&[("alice", "there before"), ("bob", "written")]));
    assert_eq!(entries(&log), owned(&[("line", "the application's")]));
    assert_eq!(entries(&db), owned(&[("d/default", "the application's")]), "nothing of ours is in the default tree");
    let busy = SledStore::from_db(db.clone(), options()).unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
    // Closing lets go of it, and of nothing else.
    store.close().await.unwrap();
    users.insert("carol", "after the store was closed").unwrap();
    let again = SledStore::from_db(db.clone(), options()).unwrap();
    assert_eq!(value(&again, "u/carol").await.unwrap(), "after the store was closed");
    again.close().await.unwrap();
    // Nobody holds it any more, though both handles are there.
    drop((db, users, log));
    let db = application(dir.path()).unwrap();
    assert_eq!(db.open_tree("users").unwrap().get("bob").unwrap().unwrap(), "written");
    drop((store, again));
}

#[tokio::test]
async fn a_store_remembers_its_trees() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let options = options().tree(Subspace::raw("o/"), "orders");
    let store = SledStore::from_db(db.clone(), options.clone()).unwrap();
    store.apply(put("u/alice", "1"), Durability::Synced).await.unwrap();
    store.apply(put("o/1", "2"), Durability::Synced).await.unwrap();
    let held = contents(&store).await.unwrap();
    assert_eq!(held.len(), 2);
    store.close().await.unwrap();
    // Named in part, not at all, and by who knows nothing of the application.
    for options in [self::options(), SledOptions::default(), options] {
        let store = SledStore::from_db(db.clone(), options).unwrap();
        assert_eq!(contents(&store).await.unwrap(), held);
        store.close().await.unwrap();
    }
    drop(db);
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(contents(&store).await.unwrap(), held);
    store.apply(put("o/2", "3"), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    let db = application(dir.path()).unwrap();
    assert_eq!(entries(&db.open_tree("orders").unwrap()), owned(&[("1", "2"), ("2", "3")]));
    assert!(db.is_empty(), "nothing of ours is in the default tree");
}

#[tokio::test]
async fn a_store_that_has_the_default_tree_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    store.apply(put("key", "value"), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    let db = application(dir.path()).unwrap();
    let store = SledStore::from_db(db.clone(), SledOptions::default()).unwrap();
    assert_eq!(value(&store, "key").await.unwrap(), "value");
    assert_eq!(db.tree_names().len(), 1);
}

#[test]
fn what_cannot_be_a_tree_is_refused_with_the_names_and_nothing_is_made() {
    let raw = |prefix: &'static str| Subspace::raw(prefix);
    let none = SledOptions::default;
    let cases = [
        (none().tree(raw("a"), "one").tree(raw("ab"), "two"), vec!["one", "two", "overlap"]),
        (none().tree(raw("ab"), "one").tree(raw("a"), "two"), vec!["one", "two", "overlap"]),
        (none().tree(raw("a"), "one").tree(raw("a"), "two"), vec!["one", "two", "overlap"]),
        (none().tree(Subspace::root(), "one").tree(raw("a"), "two"), vec!["one", "two", "overlap"]),
        (none().tree(raw("a"), "one").tree(raw("b"), "one"), vec!["tree one is named twice", " a and b"]),
        (none().tree(raw("a"), "one").tree(raw("a"), "one"), vec!["tree one is named twice"]),
        (none().tree(raw("a"), "replikv"), vec!["tree replikv is replikv's own"]),
        (none().own_tree("mine").tree(raw("a"), "mine"), vec!["tree mine is replikv's own"]),
        (none().own_tree("users"), vec!["tree users holds entries"]),
        (none().own_tree("__sled__default"), vec!["the default tree is the application's"]),
        (none().tree(Subspace::raw(vec![7; 1 << 16]), "one"), vec!["tree one has a prefix that leaves no room"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    db.open_tree("users").unwrap().insert("alice", "").unwrap();
    for (options, expected) in cases {
        let error = words(&SledStore::from_db(db.clone(), options).unwrap_err());
        assert!(expected.iter().all(|words| error.contains(words)), "{error}: {expected:?}");
        assert_eq!(db.tree_names().len(), 2, "{error}: {:?}", db.tree_names());
    }
    // What was refused holds nothing back.
    SledStore::from_db(db, options()).unwrap();
}

#[tokio::test]
async fn two_stores_in_one_database_share_no_tree() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let one = SledStore::from_db(db.clone(), options()).unwrap();
    let refused = |options: SledOptions, expected: &str| {
        let error = words(&SledStore::from_db(db.clone(), options).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    let second = || SledOptions::default().own_tree("second");
    refused(second().tree(Subspace::raw("x/"), "users"), "tree users belongs to the store in tree replikv");
    refused(second().tree(Subspace::raw("x/"), "replikv"), "tree replikv belongs to the store in tree replikv");
    refused(SledOptions::default().own_tree("users"), "tree users belongs to the store in tree replikv");
    let two = SledStore::from_db(db.clone(), second().tree(Subspace::raw("u/"), "others")).unwrap();
    one.apply(put("u/alice", "one"), Durability::Buffered).await.unwrap();
    two.apply(put("u/alice", "two"), Durability::Buffered).await.unwrap();
    assert_eq!(value(&one, "u/alice").await.unwrap(), "one");
    assert_eq!(value(&two, "u/alice").await.unwrap(), "two");
    one.close().await.unwrap();
    two.close().await.unwrap();
    // Both are there: the usual name is meant.
    let again = SledStore::from_db(db.clone(), SledOptions::default()).unwrap();
    assert_eq!(value(&again, "u/alice").await.unwrap(), "one");
    again.close().await.unwrap();
    drop(db);
    let error = words(&SledStore::open(dir.path()).unwrap_err());
    assert!(error.contains("trees replikv and second each hold a store: say with own_tree which is meant"), "{error}");
}

#[tokio::test]
async fn a_tree_becomes_part_of_a_store_only_while_nothing_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let store = SledStore::from_db(db.clone(), options()).unwrap();
    let begin = WriteSet::builder().put(Keyspace::Meta, "head", "1").unwrap().build();
    store.apply(begin, Durability::Synced).await.unwrap();
    store.apply(put("o/1", "in no tree"), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    let refused = |options: SledOptions, expected: &[&str]| {
        let error = words(&SledStore::from_db(db.clone(), options).unwrap_err());
        assert!(expected.iter().all(|words| error.contains(words)), "{error}");
    };
    // What is there under the prefix would be hidden.
    let orders = || SledOptions::default().tree(Subspace::raw("o/"), "orders");
    refused(orders(), &["tree replikv holds keys that begin with the prefix of tree orders"]);
    // What is in the tree would come from nowhere.
    let parts = db.open_tree("parts").unwrap();
    parts.insert("1", "of which nobody was told").unwrap();
    let new = || SledOptions::default().tree(Subspace::raw("p/"), "parts");
    refused(new(), &["tree parts holds entries of which the store in tree replikv knows nothing"]);
    // A tree stays what it is.
    refused(SledOptions::default().tree(Subspace::raw("x/"), "users"), &["tree users is the subspace u/ of the store"]);
    refused(SledOptions::default().tree(Subspace::raw("u/a"), "other"), &["users", "other", "overlap"]);
    parts.clear().unwrap();
    let store = SledStore::from_db(db.clone(), new()).unwrap();
    store.apply(put("p/1", "told"), Durability::Synced).await.unwrap();
    assert_eq!(entries(&parts), owned(&[("1", "told")]));
    assert_eq!(contents(&store).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_prefix_counts_in_keys_that_are_empty_or_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let users = db.open_tree("users").unwrap();
    let store = SledStore::from_db(db.clone(), options()).unwrap();
    let max = store.limits().max_key;
    let longest = [b"u/".to_vec(), vec![7; max - 2]].concat();
    store.apply(put(&longest, "fits"), Durability::Buffered).await.unwrap();
    store.apply(put("u/", "the empty key of the tree"), Durability::Buffered).await.unwrap();
    let error = store.apply(put([&longest[..], &[7]].concat(), ""), Durability::Buffered).await.unwrap_err();
    assert!(matches!(error, StoreError::KeyTooLong { len, max: most } if len == max + 1 && most == max), "{error}");
    assert_eq!(users.get([]).unwrap().unwrap(), "the empty key of the tree");
    assert_eq!(users.get(&longest[2..]).unwrap().unwrap(), "fits");
    let keys: Vec<_> = contents(&store).await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [&b"u/"[..], &longest]);
    let range = WriteSet::builder().delete_range(Keyspace::Data, &KeyRange::only("u/")).build();
    store.apply(range, Durability::Buffered).await.unwrap();
    assert_eq!(users.len(), 1);
}

#[test]
fn what_a_tree_holds_and_no_store_can_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let users = db.open_tree("users").unwrap();
    let refused = |space: Subspace, expected: &str| {
        let error = SledStore::from_db(db.clone(), SledOptions::default().tree(space, "users")).unwrap_err();
        assert!(words(&error).contains(expected), "{}", words(&error));
    };
    users.insert([], "").unwrap();
    refused(Subspace::root(), "tree users holds an empty key: give it a subspace with a prefix");
    users.clear().unwrap();
    users.insert(vec![7; (1 << 16) - 1], "").unwrap();
    refused(Subspace::raw("u/"), "tree users holds a key that has 65537 bytes with its prefix");
    SledStore::from_db(db.clone(), SledOptions::default().tree(Subspace::raw("u"), "users")).unwrap();
}

#[tokio::test]
async fn after_a_failed_sync_only_a_database_that_was_opened_anew_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let db = application(dir.path()).unwrap();
    let store = SledStore::from_db(db.clone(), options()).unwrap();
    store.apply(put("u/alice", "synced"), Durability::Synced).await.unwrap();
    // The file is where sled has it open, and cannot be opened by anybody else.
    let (file, away) = (dir.path().join("db"), dir.path().join("away"));
    std::fs::rename(&file, &away).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let error = store.apply(put("u/bob", "who knows"), Durability::Synced).await.unwrap_err();
    assert!(matches!(error, StoreError::Fatal { .. }), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&away, &file).unwrap();
    // The file can be synced again, which says nothing of what failed.
    for _ in 0..2 {
        let error = store.reopen().await.unwrap_err();
        assert!(error.to_string().contains("drop every handle of it, and open it anew"), "{error}");
        assert!(matches!(store.get(Keyspace::Data, b"u/bob").await, Err(StoreError::Fatal { .. })));
    }
    drop((store, db));
    let store = SledStore::from_db(application(dir.path()).unwrap(), options()).unwrap();
    assert_eq!(value(&store, "u/alice").await.unwrap(), "synced");
    store.apply(put("u/carol", "again"), Durability::Synced).await.unwrap();
}

#[tokio::test]
async fn a_temporary_database_can_be_a_store() {
    let db = sled::Config::new().temporary(true).open().unwrap();
    let store = SledStore::from_db(db.clone(), options()).unwrap();
    store.apply(put("u/alice", vec![7; 3 << 20]), Durability::Synced).await.unwrap();
    assert_eq!(store.path(), db.context.get_path().canonicalize().unwrap());
    assert_eq!(db.open_tree("users").unwrap().get("alice").unwrap().unwrap().len(), 3 << 20);
}
