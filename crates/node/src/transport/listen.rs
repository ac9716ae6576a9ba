//! Accepting connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long to wait after a failed accept: usually it is file descriptors that are missing.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves every connection that `listener` accepts, at most `most` at once, until `closing` is cancelled and every
/// connection has ended. If dropped, the connections end.
pub(crate) async fn accept_all<F>(
    listener: TcpListener,
    closing: &CancellationToken,
    most: usize,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
    failed: impl Fn(&io::Error),
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled() => break,
            Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
            accepted = listener.accept(), if sessions.len() < most => match accepted {
                Ok((stream, peer)) => {
                    // Small messages matter to whoever waits for them.
                    let _ = stream.set_nodelay(true);
                    sessions.spawn(serve(stream, peer));
                }
                Err(error) => {
                    failed(&error);
                    sleep(PAUSE).await;
                }
            },
        }
    }
    // Every session has seen the same signal, and says goodbye.
    while sessions.join_next().await.is_some() {}
}
