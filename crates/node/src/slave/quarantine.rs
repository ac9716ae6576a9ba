//! Where a slave that resyncs, or is repaired, keeps what it loses.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use replikv_proto::{Displaced, Resync};
use serde_json::{Map, Value, json};

use crate::clock::unix_ms;

/// Keeps what a slave is about to lose in a resync, or in a repair.
#[async_trait]
pub trait Quarantine: Debug + Send + Sync + 'static {
    /// Keeps `entries`, which a slave held that had parted from its master as `resync` says. In a repair both of them stand
    /// at one record: `was` and `ancestor` are the same.
    ///
    /// # Durability
    /// On stable storage on return: after that the slave overwrites them. The same entries may come more than once, as
    /// when the slave is killed in between.
    ///
    /// # Errors
    /// If they could not be kept. The slave overwrites nothing of them, and comes again with the next connection.
    async fn keep(&self, resync: &Resync, entries: Vec<Displaced>) -> io::Result<()>;
}

/// A file of NDJSON, one entry a line, as `replikv import` takes it.
///
/// ```json
/// {"key":"k","value":"what the slave held","quarantine":{"reason":"Diverged","seq":120,"epoch":1,"ancestor":100,"unix_ms":1700000000000}}
/// ```
///
/// What is not UTF-8 goes as `key_b64`, `value_b64`. `seq` and `epoch` are where the slave stood, `ancestor` is the newest
/// point that both histories are known to share, if any is; of a repair, both are the record at which the entry differed. Lines are appended, and never replaced; what a crash left of
/// the last line is taken off, since its entry is still in the slave's store.
#[derive(Debug, Clone)]
pub struct QuarantineFile {
    path: Arc<Path>,
}

impl QuarantineFile {
    /// A quarantine at `path`. The file is made when there is something to keep; its directory must be there then.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into().into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sees whether the file can be appended to; it is made, empty, if it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn check(&self) -> io::Result<()> {
        open(&self.path).map(drop)
    }
}

#[async_trait]
impl Quarantine for QuarantineFile {
    async fn keep(&self, resync: &Resync, entries: Vec<Displaced>) -> io::Result<()> {
        let (path, about) = (self.path.clone(), about(resync));
        let append = move || append(&path, &about, &entries);
        tokio::task::spawn_blocking(append).await.map_err(io::Error::other)?
    }
}

fn about(resync: &Resync) -> Value {
    json!({
        "reason": format!("{:?}", resync.reason),
        "source": resync.was.source.to_string(),
        "seq": resync.was.seq.as_u64(),
        "epoch": resync.was.epoch.number,
        "ancestor": resync.ancestor.map(|ancestor| ancestor.seq.as_u64()),
        "unix_ms": unix_ms(),
    })
}

// Opened for each group: after an error nothing is known of a handle, and a group costs a sync anyway.
fn append(path: &Path, about: &Value, entries: &[Displaced]) -> io::Result<()> {
    let mut lines = Vec::new();
    for Displaced { key, value } in entries {
        let mut line = Map::new();
        member(&mut line, ["key", "key_b64"], key);
        member(&mut line, ["value", "value_b64"], value);
        line.insert("quarantine".into(), about.clone());
        serde_json::to_writer(&mut lines, &line)?;
        lines.push(b'\n');
    }
    let mut file = open(path)?;
    file.write_all(&lines)?;
    file.sync_all()
}

fn member(line: &mut Map<String, Value>, [text, base64]: [&str; 2], bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(words) => line.insert(text.into(), words.into()),
        Err(_) => line.insert(base64.into(), STANDARD.encode(bytes).into()),
    };
}

// At the end of its last whole line. A file that is new has its name on the disk before anything is in it.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true);
    let mut file = options.create(true).open(path)?;
    end_line(&mut file)?;
    if file.metadata()?.len() == 0 {
        sync_dir(path)?;
    }
    Ok(file)
}

fn end_line(file: &mut File) -> io::Result<()> {
    let len = file.seek(SeekFrom::End(0))?;
    let begun = last_line_start(file, len)?;
    if begun == len {
        return Ok(());
    }
    file.seek(SeekFrom::Start(begun))?;
    let whole = serde_json::from_reader::<_, serde::de::IgnoredAny>(BufReader::new(&mut *file)).is_ok();
    // An editor may have taken the line feed alone.
    if whole { file.write_all(b"\n") } else { file.set_len(begun) }
}

// Where the line begins that has no end; the length of the file if there is none.
fn last_line_start(file: &mut File, len: u64) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut end = len;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        Read::take(&mut *file, end - start).read_to_end(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(unix)]
fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn one(key: &'static [u8], value: &'static [u8]) -> [Displaced; 1] {
        [Displaced { key: Bytes::from_static(key), value: Bytes::from_static(value) }]
    }

    fn lines(path: &Path) -> Vec<Value> {
        std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_are_appended_and_a_torn_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lost.ndjson");
        append(&path, &json!(1), &one(b"a", b"1")).unwrap();
        append(&path, &json!(2), &one(b"\xff", b"\xfe")).unwrap();
        let two = lines(&path);
        assert_eq!(two[0], json!({ "key": "a", "value": "1", "quarantine": 1 }));
        assert_eq!(two[1], json!({ "key_b64": "/w==", "value_b64": "/g==", "quarantine": 2 }));
        let whole = std::fs::read(&path).unwrap();
        // Whatever a crash left of the last line; then the line without its line feed, which is whole.
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first + 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            append(&path, &json!(3), &one(b"c", b"")).unwrap();
            let found = lines(&path);
            let kept = if cut == whole.len() - 1 { 2 } else { 1 };
            assert_eq!(found[..kept], two[..kept], "cut at {cut}");
            assert_eq!(found[kept..], [json!({ "key": "c", "value": "", "quarantine": 3 })], "cut at {cut}");
        }
    }

    #[test]
    fn a_long_torn_line_goes_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lost.ndjson");
        let torn = format!("{{\"key\":\"a\",\"value\":\"1\"}}\n{{\"key\":\"{}", "x".repeat(200_000));
        std::fs::write(&path, torn).unwrap();
        append(&path, &json!(1), &one(b"b", b"2")).unwrap();
        assert_eq!(lines(&path).len(), 2);
    }
}
