//! What sled leaves unsynced when it makes a database: its settings, and the names of its files.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use replikv_blocking::{create_directory, sync_directory};

/// sled's name for its settings.
const SETTINGS: &str = "conf";
/// Where a new database's settings are made: what such names begin with.
const ASIDE: &str = "replikv.new";
/// How many were.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Makes the settings of a new database, on stable storage before anything else of it: sled writes them without a sync,
/// and refuses the database for ever if power loss leaves half of them.
pub(crate) fn begin(path: &Path) -> Result<(), sled::Error> {
    if path.join("db").exists() {
        return Ok(settle_snapshots(path)?);
    }
    if path.join(SETTINGS).exists() {
        return Ok(());
    }
    create_directory(path)?;
    forget_beginnings(path)?;
    // With the same settings as the database: those that sled takes by default. Gone some time after it was dropped, when
    // sled's threads have let go of it; so each has a name of its own.
    let number = BEGUN.fetch_add(1, Ordering::Relaxed);
    let aside = path.join(format!("{ASIDE}.{}.{number}", std::process::id()));
    let sample = sled::Config::new().path(&aside).flush_every_ms(None).temporary(true).open()?;
    let settings = aside.join(SETTINGS);
    File::open(&settings)?.sync_all()?;
    fs::rename(&settings, path.join(SETTINGS))?;
    drop(sample);
    Ok(sync_directory(path)?)
}

// What is left of earlier ones. It is in nobody's way, and may be about to go by itself.
fn forget_beginnings(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with(ASIDE) {
            drop(fs::remove_dir_all(path.join(name)));
        }
    }
    Ok(())
}

// sled takes the snapshot that it was writing when its process ended for a whole one, and refuses the database for ever.
// One that is whole gets its name: power loss may have taken the name that sled gave it, and left what sled has cleared
// away since.
fn settle_snapshots(path: &Path) -> io::Result<()> {
    // The lock that sled takes itself: whoever has the database open may be writing one.
    let database = File::options().write(true).open(path.join("db"))?;
    if database.try_lock().is_err() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let Some(whole) = name.strip_suffix(".generating").filter(|name| name.starts_with("snap.")) else { continue };
        if is_whole(&fs::read(path.join(&*name))?) {
            fs::rename(path.join(&*name), path.join(whole))?;
        } else {
            fs::remove_file(path.join(&*name))?;
        }
        sync_directory(path)?;
    }
    Ok(())
}

// A snapshot ends with its length, in eight bytes, and its checksum, in four.
fn is_whole(snapshot: &[u8]) -> bool {
    let Some((content, end)) = snapshot.split_last_chunk::<12>().filter(|(content, _)| !content.is_empty()) else {
        return false;
    };
    let [.., a, b, c, d] = *end;
    crc32fast::hash(content) == u32::from_le_bytes([a, b, c, d])
}

/// Brings the settings, and the names of all files, to stable storage: what is synced in a file without a name is lost
/// with it.
pub(crate) fn settle(path: &Path) -> io::Result<()> {
    create_directory(path)?;
    File::open(path.join(SETTINGS))?.sync_all()?;
    sync_directory(&path.join("blobs"))?;
    sync_directory(path)
}
