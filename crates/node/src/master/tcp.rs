//! Serving over TCP.

use std::io;
use std::time::Duration;

use replikv_core::ReplicaStore;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Master;

/// How long to wait after a failed accept: usually it is file descriptors that are missing.
const PAUSE: Duration = Duration::from_millis(100);

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
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.inner.closing.cancelled() => break,
                Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        // Small messages matter to a slave that waits for them.
                        let _ = stream.set_nodelay(true);
                        let master = self.clone();
                        sessions.spawn(async move {
                            match master.serve(stream).await {
                                Ok(ending) => {
                                    tracing::info!(
                                        target: "replikv::master", %source, %peer, ?ending,
                                        "a connection ended"
                                    );
                                }
                                Err(error) => {
                                    tracing::warn!(
                                        target: "replikv::master", %source, %peer, error = %crate::error_chain(&error),
                                        "a connection failed"
                                    );
                                }
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(
                            target: "replikv::master", %source, %error,
                            "a connection could not be accepted"
                        );
                        sleep(PAUSE).await;
                    }
                },
            }
        }
        // Every session has seen the same signal, and says goodbye.
        while sessions.join_next().await.is_some() {}
        Ok(())
    }
}
