//! Which databases a store consists of: remembered in the store, so that it is never opened as another one.

use std::collections::BTreeSet;

use bytes::Bytes;
use replikv_core::{StoreError, Subspace};

use crate::databases::BOOK;
use crate::options::{LmdbOptions, TableOption};
use crate::order::MAX_KEY;

/// The database of the rest, and the tables.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) data: String,
    pub(crate) log: String,
    pub(crate) meta: String,
    pub(crate) tables: Vec<TableOption>,
}

const FORMAT: u8 = 1;
const WHAT: &str = "the list of tables";

impl Layout {
    /// What is asked for, where the store has `stored`. `used` says that it is a master's or a slave's.
    pub(crate) fn resolve(options: &LmdbOptions, stored: Option<Self>, used: bool) -> Result<Self, StoreError> {
        let asked = Self::asked(options);
        let nothing = options.tables.is_empty()
            && [&options.data_database, &options.log_database, &options.meta_database].into_iter().all(Option::is_none);
        let layout = match stored {
            Some(stored) if nothing => stored,
            Some(stored) if used && stored.parts() != asked.parts() => {
                let words = format!(
                    "the store consists of {}, it cannot be opened with {}: what is added or left out would be in no log",
                    stored.words(),
                    asked.words()
                );
                return Err(StoreError::backend(words));
            }
            _ => asked,
        };
        layout.check()?;
        Ok(layout)
    }

    /// What is asked for, as if the store remembered nothing.
    pub(crate) fn asked(options: &LmdbOptions) -> Self {
        let name = |asked: &Option<String>, default: &str| asked.clone().unwrap_or_else(|| default.into());
        Self {
            data: name(&options.data_database, "data"),
            log: name(&options.log_database, "replikv-log"),
            meta: name(&options.meta_database, "replikv-meta"),
            tables: options.tables.clone(),
        }
    }

    /// The names of all but the tables.
    pub(crate) fn names(&self) -> [&str; 3] {
        [&self.data, &self.log, &self.meta]
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        let mut put = |part: &[u8]| {
            // Names and prefixes are keys of LMDB, or parts of them.
            bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        self.names().into_iter().for_each(|name| put(name.as_bytes()));
        for table in &self.tables {
            put(table.space.prefix());
            put(table.database.as_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt { what: format!("{WHAT} does not decode") };
        let mut rest = match bytes.split_first().ok_or_else(corrupt)? {
            (&FORMAT, rest) => rest,
            (&found, _) => {
                return Err(StoreError::NewerFormat { what: WHAT, found: found.into(), supported: FORMAT.into() });
            }
        };
        let mut take = || -> Option<&[u8]> {
            let (len, after) = rest.split_first_chunk()?;
            let (part, after) = after.split_at_checked(u16::from_be_bytes(*len).into())?;
            rest = after;
            Some(part)
        };
        let name = |part: &[u8]| String::from_utf8(part.to_vec()).map_err(|_| corrupt());
        let data = name(take().ok_or_else(corrupt)?)?;
        let log = name(take().ok_or_else(corrupt)?)?;
        let meta = name(take().ok_or_else(corrupt)?)?;
        let mut tables = Vec::new();
        while let Some(prefix) = take() {
            let space = Subspace::raw(Bytes::copy_from_slice(prefix));
            tables.push(TableOption { space, database: name(take().ok_or_else(corrupt)?)?, order: None });
        }
        if rest.is_empty() { Ok(Self { data, log, meta, tables }) } else { Err(corrupt()) }
    }

    fn check(&self) -> Result<(), StoreError> {
        let refused = |words: String| Err(StoreError::backend(words));
        let [data, log, meta] = self.names();
        if data == log || log == meta || meta == data {
            return refused(format!("{data}, {log} and {meta} must be three databases"));
        }
        let all = self.names().into_iter().chain(self.tables.iter().map(|table| &table.database[..]));
        for name in all {
            if name.is_empty() || name.contains('\0') || name.len() > MAX_KEY {
                return refused(format!("{name:?} cannot name a database"));
            }
        }
        let mut taken = BTreeSet::from([BOOK]);
        for name in self.names() {
            if !taken.insert(name) {
                return refused(format!("database {name} is replikv's own: choose another name"));
            }
        }
        for table in &self.tables {
            if !taken.insert(&table.database) {
                return refused(format!("database {} cannot be a table: it has another use already", table.database));
            }
            if table.space.prefix().is_empty() {
                return refused(format!("table {} has no prefix: name it as data_database", table.database));
            }
            if table.space.prefix().len() >= MAX_KEY {
                return refused(format!("table {} has a prefix that leaves no room for keys", table.database));
            }
        }
        for (index, one) in self.tables.iter().enumerate() {
            if let Some(other) = self.tables[..index].iter().find(|other| other.space.overlaps(&one.space)) {
                return refused(format!(
                    "the subspaces of tables {} and {} overlap: a key could belong to both",
                    other.database, one.database
                ));
            }
        }
        Ok(())
    }

    fn parts(&self) -> ([&str; 3], BTreeSet<(&Bytes, &str)>) {
        (self.names(), self.tables.iter().map(|table| (table.space.prefix(), &table.database[..])).collect())
    }

    fn words(&self) -> String {
        let [data, log, meta] = self.names();
        let mut words = format!("data database {data}, log database {log}, meta database {meta}");
        for table in &self.tables {
            words.push_str(&format!(", table {} at {:?}", table.database, table.space.prefix()));
        }
        words
    }
}
