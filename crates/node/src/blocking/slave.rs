//! What only a slave can do.

use std::time::Duration;

use replikv_core::ReplicaStore;

use super::{Blocking, BlockingError, Host};
use crate::{Slave, SlaveConfig, SlaveStatus, VerifyOptions, VerifyReport};

impl<S: ReplicaStore> Blocking<Slave<S>> {
    /// As [`Slave::open`], with a runtime of its own.
    ///
    /// # Errors
    /// [`BlockingError::Open`]; [`BlockingError::Runtime`].
    pub fn open(store: S, config: SlaveConfig) -> Result<Self, BlockingError> {
        let host = Host::own()?;
        let node = host.wait(Slave::open(store, config))?;
        Ok(Self::new(node, host))
    }

    /// Follows the master at `address` in the background, with reconnects, until the guard is dropped; see
    /// [`Slave::follow_tcp`].
    ///
    /// # Errors
    /// [`BlockingError::NoRuntime`]. What ends the following is told by the guard.
    #[cfg(feature = "tcp")]
    pub fn follow_tcp(
        &self,
        address: impl tokio::net::ToSocketAddrs + Send + Sync + 'static,
    ) -> Result<super::Following, BlockingError> {
        let slave = self.node.clone();
        let work = async move { slave.follow_tcp(address).await };
        let stopped = Ok(crate::Ending::Shutdown);
        Ok(super::Following::new(super::background::Background::start(&self.host, work, stopped)?))
    }

    /// Serves every connection to `address` in the background, until the guard is dropped; see [`Slave::serve`].
    ///
    /// # Errors
    /// [`BlockingError::Listen`].
    #[cfg(feature = "tcp")]
    pub fn serve_tcp(&self, address: impl std::net::ToSocketAddrs) -> Result<super::Serving, BlockingError> {
        let slave = self.node.clone();
        super::background::serve(&self.host, address, |listener| slave.serve_tcp(listener))
    }

    /// As [`Slave::wait_caught_up`].
    ///
    /// # Errors
    /// [`BlockingError::TimedOut`] if it is not so after `timeout`; [`BlockingError::Wait`].
    pub fn wait_caught_up(&self, timeout: Duration) -> Result<(), BlockingError> {
        self.host.wait_for(self.node.wait_caught_up(), timeout)
    }

    /// As [`Slave::verify`], while the slave follows.
    ///
    /// # Errors
    /// [`BlockingError::Verify`].
    pub fn verify(&self, options: VerifyOptions) -> Result<VerifyReport, BlockingError> {
        self.host.wait(self.node.verify(options))
    }

    /// As [`Slave::status`]. Never waits, and works everywhere.
    pub fn status(&self) -> SlaveStatus {
        self.node.status()
    }

    /// As [`Slave::shutdown`].
    ///
    /// # Errors
    /// [`BlockingError::Store`].
    pub fn shutdown(&self) -> Result<(), BlockingError> {
        self.host.wait(self.node.shutdown())
    }
}
