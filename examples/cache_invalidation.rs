//! A cache on disk that is never stale for long, whatever crashes.
//!
//! Rendered pages are kept in files. A consumer of the master's changes removes the files of pages that have changed, and
//! then acknowledges: a crash between the two removes a file a second time, which harms nobody, and never leaves one out.
//!
//! Run without arguments it starts itself as a second process, kills that (SIGKILL) again and again, and looks for stale
//! pages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use replikv::{ChangeOp, ChangesFrom, KeyRange, LmdbOptions, LmdbStore, Master, MasterConfig};
use tokio::sync::Mutex;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PAGES: u32 = 40;
const WRITES: u32 = 2_000;

#[tokio::main]
async fn main() -> Result {
    match std::env::args().nth(1) {
        Some(dir) => work(Path::new(&dir)).await,
        None => kill_and_look().await,
    }
}

async fn open(dir: &Path) -> Result<Master<LmdbStore>> {
    let store = LmdbStore::open(dir.join("pages"), LmdbOptions::default())?;
    Ok(Master::open(store, MasterConfig::default()).await?)
}

async fn work(dir: &Path) -> Result {
    let master = open(dir).await?;
    let cache = Cache::open(dir)?;
    let invalidating = tokio::spawn(invalidate(master.clone(), cache.clone()));
    let written = master.get("written").await?.map(|bytes| String::from_utf8_lossy(&bytes).parse::<u32>());
    for n in written.transpose()?.unwrap_or(0)..WRITES {
        let page = n * 7 % PAGES;
        let batch = replikv::Batch::new().put(format!("page/{page}"), format!("text {n}"));
        master.write(batch.put("written", (n + 1).to_string())).await?;
        // Readers come all the time, and fill the cache.
        cache.read(&master, n * 11 % PAGES).await?;
    }
    // What was written last is invalidated, too, before this ends.
    let head = master.status().published.seq;
    while master.status().slots.iter().all(|slot| slot.position.seq < head) {
        if invalidating.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    master.shutdown().await?;
    invalidating.await?
}

/// Removes what has changed from the cache, then says so.
async fn invalidate(master: Master<LmdbStore>, cache: Cache) -> Result {
    let consumer = master.consumer("cache", ChangesFrom::Oldest).await?;
    let mut changes = consumer.changes([KeyRange::prefix("page/")]).await?;
    while let Some(change) = changes.try_next().await? {
        let _removing = cache.filling.lock().await;
        for op in change.ops() {
            match op {
                ChangeOp::Put { key, .. } | ChangeOp::Delete { key } => cache.remove(&key)?,
                ChangeOp::DeleteRange(_) => cache.clear()?,
            }
        }
        consumer.ack(change.position()).await?;
    }
    Ok(())
}

#[derive(Clone)]
struct Cache {
    dir: PathBuf,
    /// Held while a page is read, rendered and kept, and while one is removed: a page that changes meanwhile is removed
    /// afterwards, and its change is acknowledged after that.
    filling: Arc<Mutex<()>>,
}

impl Cache {
    fn open(dir: &Path) -> Result<Self> {
        let dir = dir.join("cache");
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, filling: Arc::default() })
    }

    /// The rendered page, from its file or else from the master.
    async fn read(&self, master: &Master<LmdbStore>, page: u32) -> Result<Option<String>> {
        let key = format!("page/{page}");
        let file = self.file(key.as_bytes());
        if let Ok(rendered) = std::fs::read_to_string(&file) {
            return Ok(Some(rendered));
        }
        let _filling = self.filling.lock().await;
        let Some(text) = master.get(&key).await? else { return Ok(None) };
        let rendered = render(&text);
        // Whole or not at all.
        let part = file.with_extension("part");
        std::fs::write(&part, &rendered)?;
        std::fs::rename(&part, &file)?;
        Ok(Some(rendered))
    }

    fn file(&self, key: &[u8]) -> PathBuf {
        self.dir.join(String::from_utf8_lossy(key).replace('/', "_"))
    }

    fn remove(&self, key: &[u8]) -> Result {
        match std::fs::remove_file(self.file(key)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn clear(&self) -> Result {
        for file in std::fs::read_dir(&self.dir)? {
            std::fs::remove_file(file?.path())?;
        }
        Ok(())
    }
}

fn render(text: &[u8]) -> String {
    format!("<p>{}</p>", String::from_utf8_lossy(text))
}

async fn kill_and_look() -> Result {
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
    let cache = Cache::open(dir.path())?;
    let mut cached = 0;
    for page in 0..PAGES {
        let key = format!("page/{page}");
        if let Ok(rendered) = std::fs::read_to_string(cache.file(key.as_bytes())) {
            let text = master.get(&key).await?.ok_or("a page is cached that is not there")?;
            assert_eq!(rendered, render(&text), "page {page} is stale");
            cached += 1;
        }
    }
    println!("after {kills} kills {cached} of {PAGES} pages are cached, and none is stale");
    Ok(())
}
