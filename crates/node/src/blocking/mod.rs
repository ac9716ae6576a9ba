//! Masters and slaves for programs without async.
//!
//! One handle, [`Blocking`], goes round any async one: what every reader can do is here, what only a master or only a
//! slave can do is beside it. A handle brings a small runtime of its own ([`BlockingMaster::open`],
//! [`BlockingSlave::open`]) or lends the one in which its async handle was opened (`master.blocking()`,
//! `slave.blocking()`).

#[cfg(feature = "tcp")]
mod background;
mod error;
mod host;
mod master;
mod read;
mod slave;

use std::time::Duration;

use bytes::Bytes;
use replikv_core::{KeyRange, Page, ReplicaStore, ScanOptions};

#[cfg(feature = "tcp")]
pub use self::background::{Following, Serving};
pub use self::error::BlockingError;
pub(crate) use self::host::Host;
pub use self::read::{BlockingChanges, BlockingEntries};
use crate::{ChangesFrom, Master, Reader, Slave, WaitFor};

/// A [`Master`] whose calls block the thread until they are done.
pub type BlockingMaster<S> = Blocking<Master<S>>;

/// A [`Slave`] whose calls block the thread until they are done.
pub type BlockingSlave<S> = Blocking<Slave<S>>;

/// A node whose calls block the thread until they are done. What they do, and when they fail, stands at the methods of
/// the async handle.
///
/// Handles are cheap to clone, share one node, and may be used from many threads at once. Where a handle lends its
/// runtime, that runtime must go on running on other threads.
///
/// A runtime that came with the handle ends with the last handle, guard and iterator that was made from it. Writes that
/// returned are committed then; nothing waits for the store to be closed: that is what `shutdown` is for.
///
/// # Errors
/// On a thread of an async runtime, the threads of `spawn_blocking` among them, everything that would block is
/// [`BlockingError::InsideRuntime`], and nothing happens.
#[derive(Debug, Clone)]
pub struct Blocking<N> {
    // Dropped in this order: the node's tasks have a moment to see that nobody is left.
    node: N,
    host: Host,
}

impl<N> Blocking<N> {
    pub(crate) fn new(node: N, host: Host) -> Self {
        Self { node, host }
    }

    /// The async handle.
    pub fn node(&self) -> &N {
        &self.node
    }
}

impl<N: Reader> Blocking<N> {
    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`BlockingError::Store`], as [`ReplicaStore::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, BlockingError> {
        self.host.wait(self.node.get_data(key.as_ref()))
    }

    /// One page of `range`, as it was at one instant.
    ///
    /// # Errors
    /// [`BlockingError::Store`], as [`ReplicaStore::scan`].
    pub fn scan(&self, range: impl Into<KeyRange>, options: ScanOptions) -> Result<Page, BlockingError> {
        self.host.wait(self.node.scan_data(range.into(), options))
    }

    /// The entries of `range`, in the order of `options`, read page by page as they are asked for. Each page is of one
    /// instant; two pages need not be of the same.
    pub fn entries(&self, range: impl Into<KeyRange>, options: ScanOptions) -> BlockingEntries<'_, N> {
        BlockingEntries::new(&self.node, &self.host, range.into(), options)
    }

    /// Every batch after `from`, as far as it lies in `ranges`; no ranges stand for everything. The iterator waits for
    /// new batches, and ends when the node is shut down.
    ///
    /// # Errors
    /// [`BlockingError::Changes`], as [`Master::changes`] and [`Slave::changes`].
    pub fn changes(
        &self,
        from: impl Into<ChangesFrom>,
        ranges: impl IntoIterator<Item = KeyRange>,
    ) -> Result<BlockingChanges, BlockingError> {
        let ranges = ranges.into_iter().collect();
        let changes = self.host.wait(self.node.changes(from.into(), ranges))?;
        Ok(BlockingChanges::new(changes, self.host.clone()))
    }

    /// Waits until a write is readable here: read your writes.
    ///
    /// # Errors
    /// [`BlockingError::TimedOut`] if it is not after `timeout`; [`BlockingError::Wait`], as
    /// [`Slave::wait_applied`].
    pub fn wait_applied(&self, write: impl Into<WaitFor>, timeout: Duration) -> Result<(), BlockingError> {
        self.host.wait_for(self.node.wait_applied(write.into()), timeout)
    }
}

impl<S: ReplicaStore> Master<S> {
    /// A handle for synchronous code, which lends the runtime that the master was opened in.
    pub fn blocking(&self) -> BlockingMaster<S> {
        Blocking::new(self.clone(), Host::Lent(self.runtime().clone()))
    }
}

impl<S: ReplicaStore> Slave<S> {
    /// A handle for synchronous code, which lends the runtime that the slave was opened in.
    pub fn blocking(&self) -> BlockingSlave<S> {
        Blocking::new(self.clone(), self.runtime().cloned().map_or(Host::Nobody, Host::Lent))
    }
}
