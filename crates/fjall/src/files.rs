//! The directory of a database: whole, or not there.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use fjall::{CompressionType, Database, Error, JournalRecoveryError, Keyspace, KeyspaceCreateOptions, LsmError};
use replikv_blocking::{Aside, create_directory, sync_directory};
use replikv_core::StoreError;

use crate::FjallOptions;
use crate::error::failed;
use crate::journal;

/// What fjall writes last when it makes a database.
const MARKER: &str = "version";

/// `Meta` holds few keys that change with every write set: small memtables keep few of their old values.
const META_MEMTABLE: u64 = 4 << 20;

/// An open database with the keyspaces of a store.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) data: Keyspace,
    pub(crate) log: Keyspace,
    pub(crate) meta: Keyspace,
}

/// Opens the database in the directory `path`, and makes it, with the directories above it, if it is not there.
pub(crate) fn open(path: &Path, options: &FjallOptions) -> Result<Opened, StoreError> {
    let at = |what: &str, error: &dyn std::fmt::Display| {
        StoreError::backend(format!("{} cannot be {what}: {error}", path.display()))
    };
    let busy = || StoreError::Busy { holder: format!("{} is open in this or another process", path.display()) };
    // Without a slash at its end, and where a link leads to.
    let absolute = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(path),
        found => found,
    };
    let absolute = absolute.map_err(|error| at("opened", &error))?;
    let there = is_database(&absolute).map_err(|error| at("opened", &error))?;
    if !there {
        if !is_free(&absolute).map_err(|error| at("opened", &error))? {
            return Err(StoreError::Corrupt { what: format!("{} holds no fjall database", path.display()) });
        }
        if !begin(&absolute, options).map_err(|error| at("made", &error))? {
            return Err(busy());
        }
    }
    let mut opened = open_keyspaces(&absolute, options);
    if matches!(&opened, Err(Error::JournalRecovery(found)) if *found != JournalRecoveryError::InvalidFileName)
        && journal::cut_torn_end(&absolute).map_err(|error| at("opened", &error))?
    {
        opened = open_keyspaces(&absolute, options);
    }
    let opened = opened.map_err(|error| match error {
        Error::Locked => busy(),
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => at("opened", &error),
        error => failed(error),
    })?;
    settle(&absolute).map_err(|error| at("synced", &error))?;
    Ok(opened)
}

fn is_database(path: &Path) -> io::Result<bool> {
    path.join(MARKER).try_exists()
}

// Nothing is there, or an empty directory.
fn is_free(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn open_keyspaces(path: &Path, options: &FjallOptions) -> Result<Opened, Error> {
    let database = Database::builder(path)
        .cache_size(options.cache_bytes)
        // Recovery compresses values anew to find their checksum, and so depends on the compressor's version.
        .journal_compression(CompressionType::None)
        .open()?;
    let keyspace = |name, memtable_bytes| {
        database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes))
    };
    let data = keyspace("data", options.memtable_bytes)?;
    let log = keyspace("replikv-log", options.memtable_bytes)?;
    let meta = keyspace("replikv-meta", META_MEMTABLE.min(options.memtable_bytes))?;
    Ok(Opened { database, data, log, meta })
}

// Made aside, and given its name once it is whole: power loss, and a kill, leave nothing that is half of one. False if
// another one is making it.
fn begin(path: &Path, options: &FjallOptions) -> Result<bool, Box<dyn std::error::Error>> {
    // A name that nobody gives to something of his own.
    let name = format!(".{}.replikv-new", path.file_name().ok_or("name a directory")?.display());
    let Some(aside) = Aside::take(&path.with_file_name(name))? else { return Ok(false) };
    // Another one may have made it meanwhile.
    if is_database(path)? {
        return Ok(true);
    }
    drop(open_keyspaces(aside.place(), options)?);
    sync_all(aside.place())?;
    if !cfg!(unix) {
        // Only there it is in the way of the new name; and it is empty.
        drop(fs::remove_dir(path));
    }
    aside.give_name(path).map_err(|error| {
        format!("a new database is made beside it and gets its name, which a mount point cannot give: {error}")
    })?;
    Ok(true)
}

// Files too: fjall has synced what it needs to find its way, and this is done once.
fn sync_all(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            File::options().read(true).write(true).open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(path)
}

/// Brings the names of all directories of a database to stable storage: fjall syncs what is in the directory of a
/// keyspace, and not its name, and takes a keyspace without a directory for one that is not there.
fn settle(path: &Path) -> io::Result<()> {
    create_directory(path)?;
    settle_below(path)
}

fn settle_below(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            settle_below(&entry.path())?;
        }
    }
    sync_directory(path)
}
