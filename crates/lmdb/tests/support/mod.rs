//! What the tests of LMDB share: plain heed, children, whole contents.

#![allow(dead_code, reason = "each program uses a part of it")]

pub(crate) mod app;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, DatabaseFlags, Env, EnvOpenOptions, RoTxn, WithoutTls};
use replikv_core::{KeyRange, Keyspace, ReplicaStore, ScanOptions, WriteSet};

const CHILD: &str = "REPLIKV_LMDB_CHILD";

/// What this process is to be, if a test started it as a child.
pub(crate) fn role() -> Option<Vec<String>> {
    std::env::var(CHILD).ok().map(|role| role.split('\n').map(String::from).collect())
}

/// Starts this test again, in a process of its own, with a role.
pub(crate) fn child(test: &str, role: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, role.join("\n"))
        // Address space is counted in one of the tests; an arena for each thread takes 64 MiB of it.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until a child has printed a line with these words.
pub(crate) fn says(child: &mut Child, words: &str) {
    use std::io::Read;
    let output = child.stdout.as_mut().unwrap();
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(words) {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the child has ended: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
}

#[track_caller]
pub(crate) fn ends_well(mut child: Child) {
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
}

/// An environment as any other program opens it.
#[allow(unsafe_code, reason = "LMDB maps a file")]
pub(crate) fn plain(path: &Path) -> Env<WithoutTls> {
    std::fs::create_dir_all(path).unwrap();
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(64 << 20).max_dbs(8);
    // SAFETY: a directory of this test, on a local file system.
    unsafe { options.open(path) }.unwrap()
}

/// Makes a named database with flags, and puts entries into it.
pub(crate) fn plain_put(env: &Env<WithoutTls>, name: &str, flags: DatabaseFlags, entries: &[(&[u8], &[u8])]) {
    let wtxn = env.write_txn().unwrap();
    env.create_databases_and_commit(wtxn, |opener, wtxn| {
        let database = opener.database_options().types::<Raw, Raw>().name(name).flags(flags).create(wtxn)?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(database))
    })
    .unwrap();
    let wtxn = env.write_txn().unwrap();
    let database = env.create_databases_and_commit(wtxn, |opener, wtxn| {
        let database = opener.database_options().types::<Raw, Raw>().name(name).flags(flags).create(wtxn)?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(database))
    });
    let database = database.unwrap().unwrap_commit();
    let mut wtxn = env.write_txn().unwrap();
    for (key, value) in entries {
        database.put(&mut wtxn, key, value).unwrap();
    }
    wtxn.commit().unwrap();
}

/// The entries of a named database in its order, or `None` if there is no such database.
pub(crate) fn plain_entries(env: &Env<WithoutTls>, name: &str) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let rtxn: RoTxn<'_, WithoutTls> = env.read_txn().unwrap();
    let opened = env.open_databases_and_commit(rtxn, |opener, rtxn| {
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(opener.open_database::<Raw, Raw>(rtxn, Some(name))?))
    });
    let database = opened.unwrap().unwrap_commit()?;
    let rtxn = env.read_txn().unwrap();
    let entries = database.iter(&rtxn).unwrap();
    Some(entries.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect())
}

pub(crate) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

pub(crate) fn delete(key: impl AsRef<[u8]>) -> WriteSet {
    WriteSet::builder().delete(Keyspace::Data, key).unwrap().build()
}

pub(crate) async fn value(store: &impl ReplicaStore, key: &str) -> Option<Bytes> {
    store.get(Keyspace::Data, key.as_bytes()).await.unwrap()
}

pub(crate) async fn contents(store: &impl ReplicaStore) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    let mut rest = Some(KeyRange::all());
    while let Some(range) = rest {
        let page = store.scan(Keyspace::Data, range, ScanOptions::default()).await.unwrap();
        found.extend(page.entries());
        rest = page.rest().cloned();
    }
    found
}
