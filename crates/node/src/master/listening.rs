//! Slaves that subscribe to key ranges, and are woken by what concerns them alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use replikv_core::{KeyRanges, Position};
use replikv_proto::{LogAnswer, LogEntry, SubscriberId, Subscribers, View};
use tokio::sync::Notify;

use super::history::History;

/// Those of one history.
#[derive(Debug, Default)]
pub(super) struct Audience(Mutex<Subscribers<Arc<Notify>>>);

/// The place of one of them. It leaves when dropped.
#[derive(Debug)]
pub(super) struct Listening<'a> {
    audience: &'a Audience,
    id: SubscriberId,
    woken: Arc<Notify>,
}

impl Listening<'_> {
    /// Until a record is published that concerns it. One that was meanwhile counts.
    ///
    /// # Cancel safety
    /// If dropped, nothing is missed.
    pub(super) async fn concerned(&self) {
        self.woken.notified().await;
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.audience.lock().leave(self.id);
    }
}

impl Audience {
    // Nothing that runs under it can panic half way.
    fn lock(&self) -> MutexGuard<'_, Subscribers<Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> History<S> {
    /// Whoever subscribes to `ranges` listens from now on.
    pub(super) fn listen(&self, ranges: &KeyRanges) -> Listening<'_> {
        let woken = Arc::new(Notify::new());
        let mut subscribers = self.audience.lock();
        let view = self.view();
        let id = subscribers.enter(ranges, view.published, view.log_bytes, woken.clone());
        Listening { audience: &self.audience, id, woken }
    }

    /// Publishes `entries`, which follow one another and are in the ring: `change` says so in the view.
    pub(super) fn publish<'a>(&self, entries: impl Iterator<Item = &'a LogEntry>, change: impl FnOnce(&mut View)) {
        // Held over both: whoever begins to listen does so before a record, or after it.
        let mut subscribers = self.audience.lock();
        self.change_view(change);
        entries.for_each(|entry| subscribers.publish(entry, |woken| woken.notify_one()));
    }

    /// Takes back what was published after `at`.
    pub(super) fn unpublish(&self, at: Position) {
        let mut subscribers = self.audience.lock();
        self.change_view(|view| view.published = at);
        subscribers.rewind(at, self.view().log_bytes, |woken| woken.notify_one());
    }

    /// What the one that listens is told of the history after `after`, without the log; `None` if that must be read.
    pub(super) fn told(&self, listening: &Listening<'_>, after: Position, may_pass: bool) -> Option<LogAnswer> {
        let held = self.with_ring(|ring| ring.entry(after.seq).map(|entry| (entry.position, entry.log_bytes)));
        if held.is_some_and(|(position, _)| position != after) {
            // It was sent what came to nothing. A run would not show it: its next connection does.
            return Some(LogAnswer::Trimmed);
        }
        let log_bytes = held.map(|(_, log_bytes)| log_bytes);
        let runs = may_pass.then(|| self.audience.lock().passed(listening.id, after, log_bytes)).flatten();
        runs.map(LogAnswer::Passed)
    }
}
