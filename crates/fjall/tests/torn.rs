//! A journal whose end power loss has torn.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use replikv_core::{Durability, Keyspace, ReplicaStore, StoreError, WriteSet};
use replikv_fjall::FjallStore;

/// Longer than what a disk writes at once.
const LONG: usize = 20_000;

fn set(number: u32) -> WriteSet {
    let long = vec![number.to_le_bytes()[0]; LONG];
    let mut set = WriteSet::builder();
    for key in ["a", "b"] {
        set.put(Keyspace::Data, format!("{key}{number}"), &long).unwrap();
    }
    set.put(Keyspace::Log, number.to_be_bytes(), "record").unwrap();
    set.put(Keyspace::Meta, "head", number.to_be_bytes()).unwrap();
    set.build()
}

fn journal(path: &Path) -> PathBuf {
    path.join("0.jnl")
}

/// Where the last byte of something is.
fn written(path: &Path) -> usize {
    let bytes = fs::read(journal(path)).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

fn lose(path: &Path, at: usize, len: usize) {
    let mut file = File::options().write(true).open(journal(path)).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&vec![0; len]).unwrap();
}

/// Where each of four write sets ends in the journal.
async fn begin(path: &Path) -> Vec<usize> {
    let store = FjallStore::open(path).unwrap();
    let mut ends = Vec::new();
    for number in 1..=4 {
        store.apply(set(number), Durability::Buffered).await.unwrap();
        ends.push(written(path));
    }
    store.close().await.unwrap();
    ends
}

async fn look(path: &Path, sets: u32) {
    let store = FjallStore::open(path).unwrap();
    for number in 1..=4u32 {
        for key in ["a", "b"] {
            let value = store.get(Keyspace::Data, format!("{key}{number}").as_bytes()).await.unwrap();
            let expected = (number <= sets).then(|| vec![number.to_le_bytes()[0]; LONG]);
            assert!(value.as_deref() == expected.as_deref(), "{key}{number} with {sets} sets");
        }
        let record = store.get(Keyspace::Log, &number.to_be_bytes()).await.unwrap();
        assert_eq!(record.is_some(), number <= sets);
    }
    let head = store.get(Keyspace::Meta, b"head").await.unwrap();
    assert_eq!(head.as_deref(), (sets > 0).then_some(&sets.to_be_bytes()[..]));
    store.close().await.unwrap();
}

#[tokio::test]
async fn of_a_torn_journal_a_beginning_of_whole_sets_is_left() {
    let whole = tempfile::tempdir().unwrap();
    let whole = whole.path().join("store");
    let ends = begin(&whole).await;
    // What fjall has set aside for more is not copied over and over.
    File::options().write(true).open(journal(&whole)).unwrap().set_len(ends[3] as u64 + 8_000).unwrap();
    let (start, end) = (ends[1], ends[2]);
    let dir = tempfile::tempdir().unwrap();
    // Blocks of the third set, or of its neighbours, were never written; the fourth one was.
    for (at, len) in [
        (start, 1),
        (start, 512),
        (start + 8_000, 4096),
        (start + LONG - 10, 512),
        (start + LONG + 2_000, 9_000),
        (end - 40, 512),
        (end - 13, 13),
        (end - 1, 1),
        (start, 64 << 10),
    ] {
        let path = dir.path().join(format!("{at}-{len}"));
        copy(&whole, &path);
        lose(&path, at, len);
        look(&path, 2).await;
        // And it goes on from there.
        let store = FjallStore::open(&path).unwrap();
        store.apply(set(3), Durability::Synced).await.unwrap();
        store.close().await.unwrap();
        look(&path, 3).await;
    }
    look(&whole, 4).await;
}

#[tokio::test]
async fn damage_in_a_table_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = replikv_fjall::FjallOptions::default().memtable_bytes(64 << 10);
    let store = FjallStore::open_with(&path, options.clone()).unwrap();
    for number in 1..=40 {
        store.apply(set(number), Durability::Synced).await.unwrap();
    }
    store.close().await.unwrap();
    let mut tables = Vec::new();
    for keyspace in fs::read_dir(path.join("keyspaces")).unwrap() {
        let keyspace = keyspace.unwrap();
        if keyspace.file_name() != "0" {
            tables.extend(fs::read_dir(keyspace.path().join("tables")).unwrap().map(|table| table.unwrap().path()));
        }
    }
    assert!(!tables.is_empty());
    for table in tables {
        let mut bytes = fs::read(&table).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 1;
        fs::write(table, bytes).unwrap();
    }
    let found = match FjallStore::open_with(&path, options) {
        Err(error) => error,
        Ok(store) => {
            let mut found = None;
            for number in 1..=40 {
                match store.get(Keyspace::Data, format!("a{number}").as_bytes()).await {
                    Ok(value) => assert_eq!(value.map(|value| value.len()), Some(LONG)),
                    Err(error) => found = Some(error),
                }
            }
            found.unwrap()
        }
    };
    assert!(matches!(found, StoreError::Corrupt { .. }), "{found:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
