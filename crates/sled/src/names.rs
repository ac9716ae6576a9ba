//! What sled leaves unsynced when it makes a database: its settings, and the names of its files.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use replikv_blocking::{Aside, create_directory, sync_directory};

/// sled's name for its settings.
const SETTINGS: &str = "conf";
/// Where a new database's settings are made.
const ASIDE: &str = "replikv.new";

/// Makes the settings of a new database, on stable storage before anything else of it: sled writes them without a sync,
/// and refuses the database for ever if power loss leaves half of them. False if another one is making them.
pub(crate) fn begin(path: &Path) -> Result<bool, sled::Error> {
    let settings = path.join(SETTINGS);
    if path.join("db").exists() {
        settle_snapshots(path)?;
        return Ok(true);
    }
    if settings.exists() {
        return Ok(true);
    }
    create_directory(path)?;
    let Some(aside) = Aside::take(&path.join(ASIDE))? else { return Ok(false) };
    // Another one may have made them meanwhile.
    if !settings.exists() {
        // With the same settings as the database: those that sled takes by default. Gone some time after it was dropped, when
        // sled's threads have let go of it.
        let sample = sled::Config::new().path(aside.place()).flush_every_ms(None).temporary(true).open()?;
        let made = aside.place().join(SETTINGS);
        File::open(&made)?.sync_all()?;
        fs::rename(&made, settings)?;
        drop(sample);
        sync_directory(path)?;
    }
    Ok(true)
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
