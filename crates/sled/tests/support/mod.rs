//! What the tests of sled share: children, whole contents.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_sled::sled;

const CHILD: &str = "REPLIKV_SLED_CHILD";

/// What this process is to be, if a test started it as a child.
pub(crate) fn role() -> Option<Vec<String>> {
    std::env::var(CHILD).ok().map(|role| role.split('\n').map(String::from).collect())
}

/// Starts this test again, in a process of its own, with a role.
pub(crate) fn child(test: &str, role: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, role.join("\n"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until a child has printed these words; all that it printed until then.
pub(crate) fn says(child: &mut Child, words: &str) -> String {
    let output = child.stdout.as_mut().unwrap();
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(words) {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the child has ended: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

/// Its end, or `None` if it hangs.
pub(crate) fn end(mut child: Child, limit: Duration) -> Option<Output> {
    let start = Instant::now();
    let (mut output, mut errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let output = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).map(|_| bytes).unwrap()
    });
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        errors.read_to_end(&mut bytes).map(|_| bytes).unwrap()
    });
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(Output { status, stdout: output.join().unwrap(), stderr: errors.join().unwrap() });
        }
        if start.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

pub(crate) async fn value(store: &impl ReplicaStore, key: &str) -> Option<Bytes> {
    store.get(Keyspace::Data, key.as_bytes()).await.unwrap()
}

pub(crate) async fn contents(store: &impl ReplicaStore) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    let mut found = Vec::new();
    let mut rest = Some(KeyRange::all());
    while let Some(range) = rest {
        let page = store.scan(Keyspace::Data, range, ScanOptions::default()).await?;
        found.extend(page.entries());
        rest = page.rest().cloned();
    }
    Ok(found)
}

/// A database as an application opens it, which knows nothing of us. One that was dropped a moment ago is waited for:
/// sled has no event for the end of its threads.
pub(crate) fn application(dir: &Path) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new().path(dir).cache_capacity(64 << 20);
    for _ in 0..40 {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other.map_err(StoreError::backend),
        }
    }
    Err(StoreError::Busy { holder: "another handle".into() })
}

/// What the error and its cause say.
pub(crate) fn words(error: &StoreError) -> String {
    format!("{error}: {:?}", std::error::Error::source(error).map(ToString::to_string))
}

/// The entries of a tree, as an application reads them.
pub(crate) fn entries(tree: &sled::Tree) -> Vec<(String, String)> {
    let text = |bytes: sled::IVec| String::from_utf8_lossy(&bytes).into_owned();
    tree.iter().map(|entry| entry.map(|(key, value)| (text(key), text(value))).unwrap()).collect()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
