//! The file of a database: whole, or not there.

use std::io;
use std::path::Path;

use redb::{Builder, Database, DatabaseError, ReadableDatabase};
use replikv_blocking::Aside;
use replikv_core::StoreError;

use crate::RedbOptions;
use crate::blocking::TABLES;
use crate::error::failed;

/// Opens the database in the file `path`, and creates it, and the directories above it, if it is not there.
pub(crate) fn open(path: &Path, options: &RedbOptions) -> Result<Database, StoreError> {
    let at = |what: &str, error: &dyn std::fmt::Display| {
        StoreError::backend(format!("{} cannot be {what}: {error}", path.display()))
    };
    let busy = || StoreError::Busy { holder: format!("{} is open in this or another process", path.display()) };
    let builder = builder(options);
    let there = path.try_exists().map_err(|error| at("opened", &error))?;
    if !there && !begin(path, &builder).map_err(|error| at("created", &error))? {
        return Err(busy());
    }
    let database = builder.open(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => busy(),
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

// Made aside, and given its name once it is whole: power loss leaves no file that is half of one. False if another one is
// making it.
fn begin(path: &Path, builder: &Builder) -> Result<bool, Box<dyn std::error::Error>> {
    // A name that nobody gives to something of his own.
    let name = format!(".{}.replikv-new", path.file_name().ok_or("name a file")?.display());
    let Some(aside) = Aside::take(&path.with_file_name(name))? else { return Ok(false) };
    // Another one may have made it meanwhile.
    if !path.try_exists()? {
        make_tables(&builder.create(aside.place())?)?;
        std::fs::File::open(aside.place())?.sync_all()?;
        aside.give_name(path)?;
    }
    Ok(true)
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
