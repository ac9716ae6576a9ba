//! Where questions to the master lie, and what becomes of their answers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use replikv_core::{KeyRange, Position};
use replikv_proto::Probe;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};

use super::Difference;

/// Where a question lies until a connection takes it.
#[derive(Debug, Default)]
pub(in crate::slave) struct Desk {
    wanted: Mutex<Option<(Probe, Job)>>,
    put: Notify,
    /// Held by whoever verifies by hand.
    pub(super) by_hand: AsyncMutex<()>,
    /// Held by whoever asks: by hand for the whole of it, in the background for one question at a time.
    pub(super) turn: AsyncMutex<()>,
}

/// What becomes of the answer.
#[derive(Debug)]
pub(in crate::slave) struct Job {
    pub(in crate::slave) repair: bool,
    /// How many keys are listed.
    pub(in crate::slave) max_differences: usize,
    pub(in crate::slave) answer: oneshot::Sender<Outcome>,
}

/// What a question has come to.
#[derive(Debug)]
pub(in crate::slave) enum Outcome {
    Compared(Compared),
    /// The slave's data was no state of its master then.
    NotConsistent,
    Unsupported,
}

/// A range that was compared.
#[derive(Debug)]
pub(in crate::slave) struct Compared {
    pub(in crate::slave) range: KeyRange,
    pub(in crate::slave) at: Position,
    pub(in crate::slave) entries: u64,
    pub(in crate::slave) bytes: u64,
    /// What was read for it, on that side which holds more.
    pub(in crate::slave) read_bytes: u64,
    pub(in crate::slave) equal: bool,
    pub(in crate::slave) different: u64,
    pub(in crate::slave) differences: Vec<Difference>,
    pub(in crate::slave) repaired: u64,
}

impl Desk {
    /// Takes the question that somebody still waits for.
    pub(in crate::slave) fn take(&self) -> Option<(Probe, Job)> {
        self.lock().take().filter(|(_, job)| !job.answer.is_closed())
    }

    /// Returns when there may be a question.
    pub(in crate::slave) async fn filled(&self) {
        self.put.notified().await;
    }

    pub(super) fn put(&self, probe: Probe, job: Job) {
        *self.lock() = Some((probe, job));
        self.put.notify_one();
    }

    /// Takes the question back that nobody has taken.
    pub(super) fn withdraw(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Probe, Job)>> {
        // Nothing that runs under this lock can panic half way.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
