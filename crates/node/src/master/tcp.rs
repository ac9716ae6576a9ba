//! Serving over TCP.

use std::io;

use replikv_core::ReplicaStore;
use tokio::net::TcpListener;

use super::Master;
use crate::transport::accept_all;

impl<S: ReplicaStore> Master<S> {
    /// Serves every connection that `listener` accepts, until the master is shut down.
    ///
    /// # Cancel safety
    /// If dropped, every connection that it serves ends.
    ///
    /// # Errors
    /// None while the listener works; a failed accept is logged, and tried again.
    pub async fn serve_tcp(self, listener: TcpListener) -> io::Result<()> {
        let source = self.source();
        let serve = |stream, peer| {
            let master = self.clone();
            async move {
                match master.serve(stream).await {
                    Ok(ending) => {
                        tracing::info!(target: "replikv::master", %source, %peer, ?ending, "a connection ended");
                    }
                    Err(error) => tracing::warn!(
                        target: "replikv::master", %source, %peer, error = %crate::error_chain(&error),
                        "a connection failed"
                    ),
                }
            }
        };
        let failed = |error: &io::Error| {
            tracing::warn!(target: "replikv::master", %source, %error, "a connection could not be accepted");
        };
        // More than are served are told so: how many that is, is not decided here.
        accept_all(listener, &self.inner.closing, usize::MAX, serve, failed).await;
        Ok(())
    }
}
