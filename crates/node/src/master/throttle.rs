//! Writers wait for slaves that are too far behind.
//!
//! Only for those that are worth it: connected, at a batch boundary, within the log, and moving. A slave that is gone is
//! no session, and holds nobody up; one that hangs is left out after a few heartbeats, and so is its next connection
//! until it applies something.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::history::History;
use super::sessions::Session;
use super::{Inner, View, WriteError};

/// After so many heartbeats in which a slave has applied nothing it is stuck, and nobody waits for it.
const PATIENCE: u32 = 4;

impl<S> Inner<S> {
    /// Waits until no slave that counts is further behind than it may be.
    pub(super) async fn wait_for_slaves(&self) -> Result<(), WriteError> {
        let Some(max_lag) = self.config.max_lag else { return Ok(()) };
        if self.laggard(max_lag).is_none() {
            return Ok(());
        }
        let _counted = Counted { inner: self, begun: Instant::now() };
        let waits = async {
            let _turn = self.throttle.lock().await;
            self.wait_for_laggards(max_lag).await;
        };
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(WriteError::Closed),
            () = waits => Ok(()),
        }
    }

    async fn wait_for_laggards(&self, max_lag: u64) {
        // Subscribed first: whatever changes after a look is told.
        let (mut acks, mut views) = (self.sessions.acks(), self.view.subscribe());
        loop {
            acks.mark_unchanged();
            views.mark_unchanged();
            let Some(session) = self.laggard(max_lag) else { return };
            let since = session.waited_for(self.clock.now().monotonic);
            let until = since.saturating_add(self.patience());
            if self.clock.now().monotonic >= until {
                self.leave_out(&session);
                continue;
            }
            tokio::select! {
                biased;
                changed = acks.changed() => if changed.is_err() {
                    return;
                },
                // The log may have been trimmed past it.
                changed = views.changed() => if changed.is_err() {
                    return;
                },
                () = sleep_until(self.clock.instant(until)) => {}
            }
        }
    }

    fn laggard(&self, max_lag: u64) -> Option<Arc<Session>> {
        let view = self.view();
        self.sessions.laggard(view.log_bytes.saturating_sub(max_lag), view.floor.seq)
    }

    // Once it moves it counts again.
    fn leave_out(&self, session: &Session) {
        if session.leave_out() {
            tracing::warn!(
                target: "replikv::master", source = %self.source, follower = %session.name,
                seq = %session.progress().applied,
                "a slave applies nothing: writers no longer wait for it"
            );
        }
    }

    fn patience(&self) -> Duration {
        self.config.heartbeat.saturating_mul(PATIENCE)
    }
}

impl<S> History<S> {
    /// Whether a slave that holds so many bytes of the records is near enough for writers to go on.
    pub(super) fn is_close(&self, bytes: u64, view: &View) -> bool {
        self.serving.max_lag.is_some_and(|max_lag| bytes.saturating_add(max_lag) >= view.log_bytes)
    }
}

// Also when the writer is dropped while it waits.
struct Counted<'a, S> {
    inner: &'a Inner<S>,
    begun: Instant,
}

impl<S> Drop for Counted<'_, S> {
    fn drop(&mut self) {
        self.inner.metrics.throttled(self.begun.elapsed());
    }
}
