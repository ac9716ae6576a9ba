//! One way to read, whatever holds the data.

use async_trait::async_trait;
use replikv_core::{DataReader, ReplicaStore};

use crate::{Health, Master, Slave, WaitError, WaitFor};

/// Whatever the replicated data can be read from: a master, a slave, and later readers over several of them.
///
/// `Arc<dyn Reader>` lets a program choose at run time. `get_data` and `scan_data` come from [`DataReader`].
#[async_trait]
pub trait Reader: DataReader + 'static {
    /// Waits until a write is readable here. On a master that is so as soon as the write has returned.
    ///
    /// # Errors
    /// [`WaitError`].
    async fn wait_readable(&self, write: WaitFor) -> Result<(), WaitError>;

    /// How it is.
    fn health(&self) -> Health;
}

#[async_trait]
impl<S: ReplicaStore> Reader for Slave<S> {
    async fn wait_readable(&self, write: WaitFor) -> Result<(), WaitError> {
        self.wait_applied(write).await
    }

    fn health(&self) -> Health {
        self.status().health
    }
}

#[async_trait]
impl<S: ReplicaStore> Reader for Master<S> {
    async fn wait_readable(&self, write: WaitFor) -> Result<(), WaitError> {
        let seq = match write {
            WaitFor::Token(token) if token.source != self.source() => return Err(WaitError::ForeignSource),
            WaitFor::Token(token) => token.seq,
            WaitFor::Seq(seq) => seq,
        };
        self.subscribe().reached(seq).await.map(drop).map_err(|_| WaitError::Closed)
    }

    fn health(&self) -> Health {
        self.status().health
    }
}
