//! Holding a call back until somebody lets it go.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Armed,
    Reached,
    Released,
}

/// Where a call waits.
#[derive(Debug, Clone)]
pub(super) struct Gate(watch::Sender<Phase>);

impl Gate {
    /// A gate, and the hand that opens it.
    pub(super) fn new() -> (Self, Held) {
        let phase = watch::Sender::new(Phase::Armed);
        (Self(phase.clone()), Held(phase))
    }

    /// Says that a call is here, and waits until it may go on. Cancel safe: the gate stays as it is.
    pub(super) async fn pass(&self) {
        let mut phase = self.0.subscribe();
        self.0.send_if_modified(|phase| {
            let arrived = *phase == Phase::Armed;
            if arrived {
                *phase = Phase::Reached;
            }
            arrived
        });
        // The sender lives in `self`: waiting cannot fail.
        drop(phase.wait_for(|phase| *phase == Phase::Released).await);
    }
}

/// A call that is held back, or will be. Dropping it lets the call go: a test that fails leaves nobody hanging.
#[derive(Debug)]
#[must_use = "the call goes on as soon as this is dropped"]
pub struct Held(watch::Sender<Phase>);

impl Held {
    /// Waits until a call has arrived where it is held.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn reached(&self) {
        drop(self.0.subscribe().wait_for(|phase| *phase >= Phase::Reached).await);
    }

    /// True if a call has arrived where it is held.
    pub fn is_reached(&self) -> bool {
        *self.0.borrow() >= Phase::Reached
    }

    /// Lets the call go.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send_replace(Phase::Released);
    }
}
