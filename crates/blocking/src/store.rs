//! What a synchronous store implements.

use bytes::Bytes;
use replikv_core::{Durability, KeyRange, Keyspace, Page, ScanOptions, StoreError, StoreLimits, StoreStats, WriteSet};

/// A store whose calls block. See `ReplicaStore` for the contract; what differs is said here.
///
/// Keys are never empty nor too long, and write sets fit the limits: [`Threaded`](crate::Threaded) has checked them.
/// A panic is caught, and counts as an unknown outcome. Dropping the store closes it: afterwards it can be opened again.
pub trait BlockingStore: Send + Sync + 'static {
    /// Applies every operation of `writes` in order, all or nothing, if the preconditions hold. Always called on the
    /// same thread, the writer's.
    ///
    /// # Errors
    /// As `ReplicaStore::apply`.
    fn apply(&self, writes: &WriteSet, durability: Durability) -> Result<(), StoreError>;

    /// As [`apply`](Self::apply), for a write set that nobody else may need: a store that puts a large value piece by piece
    /// frees each piece here as soon as it is copied. Default: puts the pieces into one buffer, and calls `apply`.
    ///
    /// # Errors
    /// As `apply`. What was consumed is not handed over again: whoever wants the outcome changed asks for it anew.
    fn apply_owned(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        self.apply(&writes.into_joined(), durability)
    }

    /// The value of `key`, or `None`. Called from many threads at once; beside `apply`.
    ///
    /// # Errors
    /// What the store reports.
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// One page of `range`, as it was at one instant. Called from several threads at once; beside `apply`.
    ///
    /// # Errors
    /// What the store reports.
    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError>;

    /// Brings everything that was applied so far to stable storage. Called on the writer's thread.
    ///
    /// # Errors
    /// Whatever it returns is taken as fatal: the store is used no more until it is opened again.
    fn sync(&self) -> Result<(), StoreError>;

    /// What fits into it.
    fn limits(&self) -> StoreLimits;

    /// How many bytes of operations a write set holds at best; see `ReplicaStore::preferred_write_set`. Default: 32 MiB.
    fn preferred_write_set(&self) -> usize {
        32 << 20
    }

    /// How many operations a write set holds at best; see `ReplicaStore::preferred_operations`. Default: any number.
    fn preferred_operations(&self) -> usize {
        usize::MAX
    }

    /// What it can say of itself. Called on any thread; must not wait for a write.
    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }

    /// True if `get` is so quick that it may run on the caller's thread, async or not: a memory map, a memory table.
    /// Default: false.
    fn reads_inline(&self) -> bool {
        false
    }
}
