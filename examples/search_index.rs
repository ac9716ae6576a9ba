//! A search index that follows a master's changes, and is exact after any crash.
//!
//! The index is a store of its own. What a batch changes in it, and the position of that batch, are written in one
//! transaction: after a crash the index goes on behind the last batch that it holds, so that none is missed and none is
//! counted twice. Its name at the master keeps the log from being trimmed past it.
//!
//! Run without arguments it starts itself as a second process, kills that (SIGKILL) again and again in mid work, and
//! compares the index with one made from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::TryStreamExt;
use replikv::{
    Batch, Change, ChangeOp, ChangesFrom, Durability, KeyRange, Keyspace, LmdbOptions, LmdbStore, Master, MasterConfig,
    Position, ReplicaStore, ReplicaStoreExt, ScanOptions, Subspace, WriteSet,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WRITES: u32 = 1_200;

#[tokio::main]
async fn main() -> Result {
    match std::env::args().nth(1) {
        Some(dir) => work(Path::new(&dir)).await,
        None => kill_and_compare().await,
    }
}

/// Writes documents, and keeps the index.
async fn work(dir: &Path) -> Result {
    let master = open(dir).await?;
    let writing = tokio::spawn(write_documents(master.clone()));
    let index = Index::open(dir)?;
    let consumer = master.consumer("search-index", ChangesFrom::Oldest).await?;
    let mut changes = match index.position().await? {
        Some(position) => consumer.changes_after(position, []).await?,
        None => consumer.changes([]).await?,
    };
    let mut seen = 0;
    loop {
        // Whatever is missing after the last document has been written, comes without a pause.
        let change = match tokio::time::timeout(Duration::from_millis(500), changes.try_next()).await {
            Ok(Ok(Some(change))) => change,
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(None)) => break,
            Err(_) if writing.is_finished() => break,
            Err(_) => continue,
        };
        index.apply(&change).await?;
        seen += 1;
        if seen % 100 == 0 {
            consumer.ack(change.position()).await?;
        }
    }
    writing.await??;
    master.shutdown().await?;
    Ok(index.store.close().await?)
}

async fn open(dir: &Path) -> Result<Master<LmdbStore>> {
    let store = LmdbStore::open(dir.join("documents"), LmdbOptions::default())?;
    Ok(Master::open(store, MasterConfig::default()).await?)
}

// Goes on behind the last document that is there: how many were written stands beside them.
async fn write_documents(master: Master<LmdbStore>) -> Result {
    let written = master.get("written").await?.map_or(Ok(0), |bytes| {
        std::str::from_utf8(&bytes)?.parse::<u32>().map_err(Box::<dyn std::error::Error + Send + Sync>::from)
    })?;
    for n in written..WRITES {
        let batch = Batch::new().put("written", (n + 1).to_string());
        let batch = match n % 7 {
            6 => batch.delete(format!("doc/{:03}", n % 200)),
            _ => batch.put(format!("doc/{:03}", n % 300), text(n)),
        };
        master.write(batch).await?;
    }
    Ok(())
}

fn text(n: u32) -> String {
    const WORDS: [&str; 12] =
        ["log", "page", "store", "slave", "master", "batch", "cursor", "digest", "epoch", "range", "key", "value"];
    (0..8).map(|i| WORDS[(n.wrapping_mul(31).wrapping_add(i * i * 7) % 12) as usize]).collect::<Vec<_>>().join(" ")
}

/// Which documents hold a word, how many do, and which words a document holds.
struct Index {
    store: LmdbStore,
}

impl Index {
    fn open(dir: &Path) -> Result<Self> {
        Ok(Self { store: LmdbStore::open(dir.join("index"), LmdbOptions::default())? })
    }

    async fn position(&self) -> Result<Option<Position>> {
        let stored = self.store.get(Keyspace::Meta, b"position").await?;
        Ok(stored.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
    }

    /// One batch: what it changes, and its position, or nothing.
    async fn apply(&self, change: &Change) -> Result {
        let mut words_of: BTreeMap<Vec<u8>, BTreeSet<String>> = BTreeMap::new();
        for op in change.ops() {
            match op {
                ChangeOp::Put { key, value } if key.starts_with(b"doc/") => {
                    words_of.insert(key.to_vec(), words(&value));
                }
                ChangeOp::Delete { key } if key.starts_with(b"doc/") => {
                    words_of.insert(key.to_vec(), BTreeSet::new());
                }
                _ => {}
            }
        }
        let mut writes = WriteSet::builder();
        for (document, new) in words_of {
            let old = self.words_of(&document).await?;
            for word in old.symmetric_difference(&new) {
                let counted = self.count(word).await?;
                let posting = postings(word).key(&document);
                if new.contains(word) {
                    writes.put(Keyspace::Data, posting, "")?;
                    writes.put(Keyspace::Data, count_key(word), (counted + 1).to_string())?;
                } else {
                    writes.delete(Keyspace::Data, posting)?;
                    writes.put(Keyspace::Data, count_key(word), (counted - 1).to_string())?;
                }
            }
            writes.put(Keyspace::Data, words_key(&document), serde_json::to_vec(&new)?)?;
        }
        writes.put(Keyspace::Meta, "position", serde_json::to_vec(&change.position())?)?;
        Ok(self.store.apply(writes.build(), Durability::Synced).await?)
    }

    async fn words_of(&self, document: &[u8]) -> Result<BTreeSet<String>> {
        let stored = self.store.get(Keyspace::Data, &words_key(document)).await?;
        Ok(stored.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.unwrap_or_default())
    }

    async fn count(&self, word: &str) -> Result<i64> {
        let stored = self.store.get(Keyspace::Data, &count_key(word)).await?;
        Ok(stored.map(|bytes| std::str::from_utf8(&bytes).map(str::parse)).transpose()?.transpose()?.unwrap_or(0))
    }

    async fn find(&self, word: &str) -> Result<BTreeSet<Vec<u8>>> {
        let space = postings(word);
        let entries = self.store.entries(Keyspace::Data, space.range(), ScanOptions::default());
        let keys: Vec<_> = entries.map_ok(|(key, _)| key).try_collect().await?;
        Ok(keys.iter().filter_map(|key| space.strip(key)).map(<[u8]>::to_vec).collect())
    }
}

fn words(text: &[u8]) -> BTreeSet<String> {
    String::from_utf8_lossy(text).split_whitespace().map(str::to_owned).collect()
}

fn postings(word: &str) -> Subspace {
    Subspace::named("postings").child(word)
}

fn count_key(word: &str) -> bytes::Bytes {
    Subspace::named("count").key(word)
}

fn words_key(document: &[u8]) -> bytes::Bytes {
    Subspace::named("words").key(document)
}

async fn kill_and_compare() -> Result {
    let dir = tempfile::tempdir()?;
    let mut kills = 0;
    loop {
        let mut child = Command::new(std::env::current_exe()?).arg(dir.path()).stdin(Stdio::null()).spawn()?;
        // A little longer each time, so that it comes to an end.
        tokio::time::sleep(Duration::from_millis(60 + 40 * kills)).await;
        if let Some(status) = child.try_wait()? {
            assert!(status.success(), "the second process failed: {status}");
            break;
        }
        child.kill()?;
        child.wait()?;
        kills += 1;
    }
    let master = open(dir.path()).await?;
    let index = Index::open(dir.path())?;
    let mut expected: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut documents = master.store().entries(Keyspace::Data, KeyRange::prefix("doc/"), ScanOptions::default());
    while let Some((key, value)) = documents.try_next().await? {
        for word in words(&value) {
            expected.entry(word).or_default().insert(key.to_vec());
        }
    }
    for (word, holders) in &expected {
        assert_eq!(&index.find(word).await?, holders, "{word}");
        assert_eq!(index.count(word).await?, holders.len() as i64, "{word}");
    }
    println!("after {kills} kills the index of {} words is what it would be if made anew", expected.len());
    Ok(())
}
