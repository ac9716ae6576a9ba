//! Settings.

/// How a [`FjallStore`](crate::FjallStore) is opened. Each setting has a default.
#[derive(Debug, Clone)]
pub struct FjallOptions {
    pub(crate) cache_bytes: u64,
    pub(crate) memtable_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, memtable_bytes: 64 << 20 }
    }
}

impl FjallOptions {
    /// How much memory fjall uses for blocks of tables that were read. Default: 256 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// How much of what was written last is kept in memory, for the data and for the log each, before it becomes a table.
    /// Up to three times as much is there while tables are written, and one write set. Counts when a store is made; it
    /// remembers it. Default: 64 MiB.
    #[must_use]
    pub fn memtable_bytes(mut self, bytes: u64) -> Self {
        self.memtable_bytes = bytes;
        self
    }
}
