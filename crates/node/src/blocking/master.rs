//! What only a master can do.

use std::time::Duration;

use replikv_core::{Batch, ReplicaStore, Token};
use replikv_proto::{Abort, TransactView};

use super::{Blocking, BlockingError, Host};
use crate::{Master, MasterConfig, MasterStatus};

impl<S: ReplicaStore> Blocking<Master<S>> {
    /// As [`Master::open`], with a runtime of its own.
    ///
    /// # Errors
    /// [`BlockingError::Open`]; [`BlockingError::Runtime`].
    pub fn open(store: S, config: MasterConfig) -> Result<Self, BlockingError> {
        let host = Host::own()?;
        let node = host.wait(Master::open(store, config))?;
        Ok(Self::new(node, host))
    }

    /// As [`Master::write`].
    ///
    /// # Errors
    /// [`BlockingError::Write`].
    pub fn write(&self, batch: Batch) -> Result<Token, BlockingError> {
        self.host.wait(self.node.write(batch).into_future())
    }

    /// As [`write`](Self::write), then waits until `slaves` slaves hold the batch on stable storage; see
    /// [`Write::replicated`](crate::Write::replicated) for what that buys.
    ///
    /// # Errors
    /// [`BlockingError::Write`]. With [`WriteError::NotReplicated`](crate::WriteError::NotReplicated) the batch is
    /// committed, and stays.
    pub fn write_replicated(&self, batch: Batch, slaves: usize, timeout: Duration) -> Result<Token, BlockingError> {
        let token = self.write(batch)?;
        let copied = async { Ok::<_, BlockingError>(self.node.copied(token, slaves).await) };
        match self.host.wait_for(copied, timeout) {
            Ok(true) => Ok(token),
            Ok(false) | Err(BlockingError::TimedOut) => Err(self.node.not_replicated(token, slaves).into()),
            Err(error) => Err(error),
        }
    }

    /// As [`Master::put`].
    ///
    /// # Errors
    /// [`BlockingError::Write`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<Token, BlockingError> {
        self.write(Batch::new().put(key, value))
    }

    /// As [`Master::delete`].
    ///
    /// # Errors
    /// [`BlockingError::Write`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Token, BlockingError> {
        self.write(Batch::new().delete(key))
    }

    /// As [`Master::transact`].
    ///
    /// # Errors
    /// [`BlockingError::Write`].
    pub fn transact(
        &self,
        transaction: impl FnMut(&TransactView<'_>, Batch) -> Result<Batch, Abort> + Send + 'static,
    ) -> Result<Token, BlockingError> {
        self.host.wait(self.node.transact(transaction))
    }

    /// Serves every connection to `address` in the background, until the guard is dropped.
    ///
    /// # Errors
    /// [`BlockingError::Listen`].
    #[cfg(feature = "tcp")]
    pub fn serve_tcp(&self, address: impl std::net::ToSocketAddrs) -> Result<super::Serving, BlockingError> {
        let master = self.node.clone();
        super::background::serve(&self.host, address, |listener| master.serve_tcp(listener))
    }

    /// As [`Master::status`]. Never waits, and works everywhere.
    pub fn status(&self) -> MasterStatus {
        self.node.status()
    }

    /// As [`Master::shutdown`].
    ///
    /// # Errors
    /// [`BlockingError::Store`].
    pub fn shutdown(&self) -> Result<(), BlockingError> {
        self.host.wait(self.node.shutdown())
    }
}
