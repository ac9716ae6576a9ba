//! Settings.

/// How a [`RedbStore`](crate::RedbStore) is opened. Each setting has a default.
#[derive(Debug, Clone)]
pub struct RedbOptions {
    pub(crate) cache_bytes: usize,
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20 }
    }
}

impl RedbOptions {
    /// How much memory redb uses for pages that were read, or are to be written. A write set that changes more is written
    /// to the file before it is committed. Default: 256 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }
}
