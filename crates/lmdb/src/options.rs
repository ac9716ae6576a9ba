//! How an environment is opened.

use replikv_core::Subspace;

/// What reaches the disk, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LmdbSync {
    /// Every commit is synced, whatever the caller asks for. The default: group commit makes it cheap.
    #[default]
    Full,
    /// A commit syncs its pages, and leaves the page that names them to the next one (`MDB_NOMETASYNC`). Power loss
    /// may take the last commit; the store is never damaged. `Durability::Synced` syncs everything.
    NoMetaSync,
    /// Nothing is synced until somebody asks (`MDB_NOSYNC`).
    ///
    /// # Hazard
    /// Power loss, unlike a crash of the process, can damage the whole store, sometimes silently. Only for a slave
    /// that is rebuilt from its master after an unclean stop.
    DangerouslyNone,
}

/// How a named database keeps its keys. On the wire, and in every other store, keys sort as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LmdbOrder {
    /// As bytes: LMDB's own order.
    #[default]
    Bytes,
    /// From the last byte to the first (`MDB_REVERSEKEY`). On the wire the bytes of a key come in that order too.
    ReverseKeys,
    /// As integers of the machine's own byte order, all of one width: 4 bytes or those of a `usize` (`MDB_INTEGERKEY`).
    /// On the wire they are big-endian.
    IntegerKeys,
}

/// The settings of an [`LmdbStore`](crate::LmdbStore). Each has a default.
#[derive(Debug, Clone)]
pub struct LmdbOptions {
    pub(crate) sync: LmdbSync,
    pub(crate) map_size: usize,
    pub(crate) max_map_size: usize,
    pub(crate) max_readers: u32,
    pub(crate) max_databases: u32,
    /// `None`: the one that the store has, or `data`.
    pub(crate) data_database: Option<String>,
    /// As well.
    pub(crate) log_database: Option<String>,
    pub(crate) meta_database: Option<String>,
    pub(crate) tables: Vec<TableOption>,
}

/// A subspace in a named database.
#[derive(Debug, Clone)]
pub(crate) struct TableOption {
    pub(crate) space: Subspace,
    pub(crate) database: String,
    /// `None`: the one that is there.
    pub(crate) order: Option<LmdbOrder>,
}

const GIB: usize = 1 << 30;

impl Default for LmdbOptions {
    fn default() -> Self {
        // Address space, not memory and not disk: on 64 bits there is plenty of it.
        let wide = usize::BITS >= 64;
        Self {
            sync: LmdbSync::Full,
            map_size: if wide { GIB.saturating_mul(64) } else { GIB / 2 },
            max_map_size: if wide { GIB.saturating_mul(4096) } else { GIB },
            max_readers: 1024,
            max_databases: 16,
            data_database: None,
            log_database: None,
            meta_database: None,
            tables: Vec::new(),
        }
    }
}

impl LmdbOptions {
    /// What reaches the disk, and when. Default: [`LmdbSync::Full`].
    #[must_use]
    pub fn sync(mut self, sync: LmdbSync) -> Self {
        self.sync = sync;
        self
    }

    /// How much address space is reserved at first, in bytes. Default: 64 GiB. It is doubled when it is full, up to
    /// [`max_map_size`](Self::max_map_size).
    #[must_use]
    pub fn map_size(mut self, bytes: usize) -> Self {
        self.map_size = bytes;
        self.max_map_size = self.max_map_size.max(bytes);
        self
    }

    /// How large the store may grow, in bytes. Default: 4 TiB. Beyond that, writes are refused as `StoreFull`; a
    /// little is kept in reserve, so that what only deletes still works.
    #[must_use]
    pub fn max_map_size(mut self, bytes: usize) -> Self {
        self.max_map_size = bytes;
        self.map_size = self.map_size.min(bytes);
        self
    }

    /// How many reads may run at once, in all processes. Default: 1,024.
    #[must_use]
    pub fn max_readers(mut self, readers: u32) -> Self {
        self.max_readers = readers;
        self
    }

    /// How many named databases the environment may hold, those of the application included. Default: 16.
    #[must_use]
    pub fn max_databases(mut self, databases: u32) -> Self {
        self.max_databases = databases;
        self
    }

    /// Keeps the data, as far as it lies in no [`table`](Self::table), in a named database that the application has
    /// already. Default: `data`. It must be of plain byte order; others can be tables.
    #[must_use]
    pub fn data_database(mut self, name: impl Into<String>) -> Self {
        self.data_database = Some(name.into());
        self
    }

    /// Keeps the change log in a named database of another name. Default: `replikv-log`.
    #[must_use]
    pub fn log_database(mut self, name: impl Into<String>) -> Self {
        self.log_database = Some(name.into());
        self
    }

    /// Keeps cursors, identity and checkpoints in a named database of another name. Default: `replikv-meta`.
    #[must_use]
    pub fn meta_database(mut self, name: impl Into<String>) -> Self {
        self.meta_database = Some(name.into());
        self
    }

    /// Keeps a subspace in a named database of its own, with keys that do without the prefix: a database that the
    /// application has already becomes a part of what is replicated. Of the prefix and a key, 511 bytes can be used:
    /// choose short prefixes.
    ///
    /// The database may keep its keys in any [`LmdbOrder`]. One that is not there is created with plain byte order; see
    /// [`table_in_order`](Self::table_in_order). Databases with several values to a key (`DUPSORT`) are refused by name:
    /// put key and value into one key instead. A comparator of the application's own cannot be seen from outside, and
    /// must not be used.
    ///
    /// Subspaces must not overlap, and no key of theirs may be in the [`data_database`](Self::data_database): both are
    /// refused when the store is opened. The key that is the prefix itself belongs to no table.
    ///
    /// A store remembers its tables. Opened without any, it has those that it had; once it is a master's or a slave's, it
    /// is not opened with others, since what they hold would be in no log.
    #[must_use]
    pub fn table(mut self, subspace: Subspace, database: impl Into<String>) -> Self {
        self.tables.push(TableOption { space: subspace, database: database.into(), order: None });
        self
    }

    /// Makes a [`table`](Self::table) of each of these databases, in the [`Subspace::named`] as the database is.
    #[must_use]
    pub fn tables<N: Into<String>>(self, databases: impl IntoIterator<Item = N>) -> Self {
        databases.into_iter().fold(self, |options, database| {
            let database = database.into();
            options.table(Subspace::named(&database), database)
        })
    }

    /// As [`table`](Self::table), for a database that is created with this order if it is not there, and refused if it is
    /// there with another: for a slave whose application reads such a database.
    #[must_use]
    pub fn table_in_order(mut self, subspace: Subspace, database: impl Into<String>, order: LmdbOrder) -> Self {
        self.tables.push(TableOption { space: subspace, database: database.into(), order: Some(order) });
        self
    }
}
