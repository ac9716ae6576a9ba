//! Following over TCP, with reconnects.

use std::io;

use replikv_core::ReplicaStore;
use replikv_proto::{GoodbyeReason, Refusal, RejectCode};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::time::{Instant, sleep, timeout};

use super::status::Worked;
use super::{Ending, FollowError, Slave};
use crate::ServeError;
use crate::transport::{ConnectionError, accept_all};

/// How many may ask for the status at once. More wait their turn.
const PROBES: usize = 64;
/// How many may read at once. More wait their turn.
const READERS: usize = 256;

impl<S: ReplicaStore> Slave<S> {
    /// Answers questions for the status on every connection that `listener` accepts, until the slave is shut down; see
    /// [`serve_status`](Self::serve_status).
    ///
    /// # Cancel safety
    /// If dropped, answering stops.
    ///
    /// # Errors
    /// None while the listener works; a failed accept is logged, and tried again.
    pub async fn serve_status_tcp(self, listener: TcpListener) -> io::Result<()> {
        self.accept(listener, PROBES, |slave, stream| async move { slave.serve_status(stream).await }).await
    }

    /// Answers reads, and questions for the status, on every connection that `listener` accepts, until the slave is shut
    /// down; see [`serve_reads`](Self::serve_reads). 256 may be connected at once; more wait until one of these leaves.
    ///
    /// # Cancel safety
    /// If dropped, answering stops.
    ///
    /// # Errors
    /// None while the listener works; a failed accept is logged, and tried again.
    pub async fn serve_reads_tcp(self, listener: TcpListener) -> io::Result<()> {
        self.accept(listener, READERS, |slave, stream| async move { slave.serve_reads(stream).await }).await
    }

    /// Serves every connection that `listener` accepts, until the slave is shut down; see [`serve`](Self::serve).
    ///
    /// # Cancel safety
    /// If dropped, every connection that it serves ends.
    ///
    /// # Errors
    /// None while the listener works; a failed accept is logged, and tried again.
    pub async fn serve_tcp(self, listener: TcpListener) -> io::Result<()> {
        // More than are served are told so: how many that is, is not decided here.
        self.accept(listener, usize::MAX, |slave, stream| async move { slave.serve(stream).await.map(drop) }).await
    }

    async fn accept<F>(self, listener: TcpListener, most: usize, answer: fn(Self, TcpStream) -> F) -> io::Result<()>
    where
        F: Future<Output = Result<(), ServeError>> + Send + 'static,
    {
        let serve = |stream, peer| {
            let slave = self.clone();
            async move {
                if let Err(error) = answer(slave.clone(), stream).await {
                    tracing::info!(
                        target: "replikv::slave", follower = %slave.inner.config.name, %peer,
                        error = %crate::error_chain(&error), "a connection failed"
                    );
                }
            }
        };
        let failed = |error: &io::Error| {
            tracing::warn!(
                target: "replikv::slave", follower = %self.inner.config.name, %error,
                "a connection could not be accepted"
            );
        };
        accept_all(listener, &self.inner.closing, most, serve, failed).await;
        Ok(())
    }

    /// Follows the master at `address`, and connects again whenever the connection ends: after a pause that doubles
    /// from try to try, is half random, and starts over after a connection that worked: something was applied, or the
    /// master was heard of for longer than the pause and the slave's own store did not fail.
    ///
    /// Of several addresses the first one that can be connected to is taken; one after the other, once the slave is
    /// [fenced](Self::fence), until one of them is the new master's.
    ///
    /// # Cancel safety
    /// As [`follow`](Self::follow).
    ///
    /// # Errors
    /// Only those that another connection cannot help; see [`FollowError::is_retryable`].
    pub async fn follow_tcp(&self, address: impl ToSocketAddrs) -> Result<Ending, FollowError> {
        let (first, longest) = self.inner.config.backoff;
        let (mut pause, mut turn) = (first, 0);
        loop {
            let before = self.inner.tracker.worked();
            let begun = Instant::now();
            let result = self.follow_once(&address, turn).await.and_then(|ending| self.unless_replaced(ending));
            let store_failed = matches!(result, Err(FollowError::Store(_)));
            let reason = match result {
                Ok(Ending::Shutdown | Ending::Answered) => return Ok(Ending::Shutdown),
                Ok(Ending::Goodbye { words, .. }) => words,
                Err(error) if error.is_retryable() => {
                    if matches!(&error, FollowError::Refused(refusal) if refusal.code == RejectCode::Fenced) {
                        turn += 1;
                    }
                    crate::error_chain(&error)
                }
                Err(error) => {
                    let words = crate::error_chain(&error);
                    tracing::warn!(
                        target: "replikv::slave", follower = %self.inner.config.name, error = %words,
                        "following cannot go on"
                    );
                    return Err(error);
                }
            };
            let after = self.inner.tracker.worked();
            if starts_over(before, after, begun.elapsed() >= pause, store_failed) {
                pause = first;
            }
            let half = pause / 2;
            let wait = half + half.mul_f64(fastrand::f64());
            tracing::info!(
                target: "replikv::slave", follower = %self.inner.config.name, error = %reason, ?wait,
                "reconnecting"
            );
            tokio::select! {
                biased;
                () = self.inner.closing.cancelled() => return Ok(Ending::Shutdown),
                () = sleep(wait) => {}
            }
            pause = pause.saturating_mul(2).min(longest);
        }
    }

    // Whoever connects again after that undoes what the other slave waits for.
    fn unless_replaced(&self, ending: Ending) -> Result<Ending, FollowError> {
        let Ending::Goodbye { reason: GoodbyeReason::Replaced, words } = ending else { return Ok(ending) };
        let error = FollowError::Refused(Refusal::new(RejectCode::DuplicateSlave, words));
        self.inner.tracker.failed(&error);
        Err(error)
    }

    async fn follow_once(&self, address: &impl ToSocketAddrs, turn: usize) -> Result<Ending, FollowError> {
        let connecting = async {
            let mut addresses: Vec<_> = tokio::net::lookup_host(address).await?.collect();
            let first = turn % addresses.len().max(1);
            addresses.rotate_left(first);
            TcpStream::connect(&addresses[..]).await
        };
        let connecting = timeout(self.inner.config.handshake_timeout, connecting);
        let stream = tokio::select! {
            biased;
            () = self.inner.closing.cancelled() => return Ok(Ending::Shutdown),
            connected = connecting => connected
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
                .inspect_err(|error| self.inner.tracker.disconnected(error.to_string()))
                .map_err(ConnectionError::from)?,
        };
        stream.set_nodelay(true).map_err(ConnectionError::from)?;
        self.follow(stream).await
    }
}

// A welcome alone proves little: a slave whose disk is full is welcomed, is sent a lot, and fails, every time.
fn starts_over(before: Worked, after: Worked, long: bool, store_failed: bool) -> bool {
    after.groups > before.groups || (after.connections > before.connections && long && !store_failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_starts_over_only_after_a_connection_that_worked() {
        let before = Worked { connections: 3, groups: 5 };
        let welcomed = Worked { connections: 4, ..before };
        let applied = Worked { groups: 6, ..welcomed };
        for (after, long, store_failed, over) in [
            (before, true, false, false),
            (welcomed, false, false, false),
            (welcomed, true, false, true),
            (welcomed, false, true, false),
            (welcomed, true, true, false),
            (applied, false, false, true),
            (applied, false, true, true),
        ] {
            assert_eq!(starts_over(before, after, long, store_failed), over, "{after:?} {long} {store_failed}");
        }
    }
}
