//! The file of a database: whole, or not there.

use std::io;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, DatabaseError, ReadableDatabase};
use replikv_blocking::{create_directory, sync_directory};
use replikv_core::StoreError;

use crate::RedbOptions;
use crate::blocking::TABLES;
use crate::error::failed;

/// Opens the database in the file `path`, and creates it, and the directories above it, if it is not there.
pub(crate) fn open(path: &Path, options: &RedbOptions) -> Result<Database, StoreError> {
    let at = |what: &str, error: &dyn std::fmt::Display| {
        StoreError::backend(format!("{} cannot be {what}: {error}", path.display()))
    };
    let builder = builder(options);
    let there = path.try_exists().map_err(|error| at("opened", &error))?;
    if !there {
        begin(path, &builder).map_err(|error| at("created", &error))?;
    }
    let database = builder.open(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Busy { holder: format!("{} is open in this or another process", path.display()) }
        }
        DatabaseError::Storage(redb::StorageError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            StoreError::Corrupt { what: format!("{} holds no redb database", path.display()) }
        }
        DatabaseError::Storage(redb::StorageError::Io(error)) => at("opened", &error),
        error => failed(error),
    })?;
    if !has_tables(&database)? {
        make_tables(&database).map_err(failed)?;
    }
    Ok(database)
}

fn builder(options: &RedbOptions) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes);
    builder
}

// Made aside, and given its name once it is whole: power loss leaves no file that is half of one.
fn begin(path: &Path, builder: &Builder) -> Result<(), Box<dyn std::error::Error>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_directory(directory)?;
    let aside = aside(directory, path).ok_or("name a file")?;
    // What is left of an earlier beginning.
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    make_tables(&builder.create(&aside)?)?;
    std::fs::File::open(&aside)?.sync_all()?;
    std::fs::rename(&aside, path)?;
    sync_directory(directory)?;
    Ok(())
}

// A name that nobody gives to something of his own: what has it goes.
fn aside(directory: &Path, path: &Path) -> Option<PathBuf> {
    Some(directory.join(format!(".{}.replikv-new", path.file_name()?.display())))
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    for table in TABLES {
        txn.open_table(table)?;
    }
    txn.commit()?;
    Ok(())
}

fn has_tables(database: &Database) -> Result<bool, StoreError> {
    let txn = database.begin_read().map_err(failed)?;
    for table in TABLES {
        match txn.open_table(table) {
            Ok(_) => {}
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(true)
}
