//! Knows which writes are undecided, so that nobody reads past them.

use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::{Event, listener};

/// Counts writes whose caller is gone: they may have begun, and must be decided before any later call answers.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    abandoned: AtomicUsize,
    decided: Event,
}

impl Gate {
    /// A caller went away while its write was queued or running.
    pub(crate) fn abandon(&self) {
        self.abandoned.fetch_add(1, Ordering::AcqRel);
    }

    /// An abandoned write is decided.
    pub(crate) fn decide(&self) {
        self.abandoned.fetch_sub(1, Ordering::AcqRel);
        self.decided.notify(usize::MAX);
    }

    /// Waits until no abandoned write is undecided.
    pub(crate) async fn wait(&self) {
        loop {
            if self.abandoned.load(Ordering::Acquire) == 0 {
                return;
            }
            listener!(self.decided => decided);
            if self.abandoned.load(Ordering::Acquire) == 0 {
                return;
            }
            decided.await;
        }
    }
}
