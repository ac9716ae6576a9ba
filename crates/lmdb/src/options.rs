//! How an environment is opened.

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

/// The settings of an [`LmdbStore`](crate::LmdbStore). Each has a default.
#[derive(Debug, Clone)]
pub struct LmdbOptions {
    pub(crate) sync: LmdbSync,
    pub(crate) map_size: usize,
    pub(crate) max_map_size: usize,
    pub(crate) max_readers: u32,
    pub(crate) max_databases: u32,
    /// Of data, log and meta.
    pub(crate) databases: [String; 3],
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
            databases: ["data".into(), "log".into(), "meta".into()],
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

    /// Keeps the data in a named database that the application has already. Default: `data`. It must be of plain byte
    /// order: integer keys, reverse keys and duplicates are refused by name; a custom comparator cannot be seen from
    /// outside, and must not be used.
    #[must_use]
    pub fn data_database(mut self, name: impl Into<String>) -> Self {
        self.databases[0] = name.into();
        self
    }

    /// Keeps the change log in a named database of another name, where the application has one of this name. Default:
    /// `log`. A store must always be opened with the same names.
    #[must_use]
    pub fn log_database(mut self, name: impl Into<String>) -> Self {
        self.databases[1] = name.into();
        self
    }

    /// Keeps cursors, identity and checkpoints in a named database of another name. Default: `meta`.
    #[must_use]
    pub fn meta_database(mut self, name: impl Into<String>) -> Self {
        self.databases[2] = name.into();
        self
    }
}
