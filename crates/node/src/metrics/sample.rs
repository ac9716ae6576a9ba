//! Gauges are looked at once a second, whatever happens in between.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Metric;
use super::instruments::set_gauge;
use crate::{Health, HealthState};

const EVERY: Duration = Duration::from_secs(1);

/// Something whose gauges are looked at.
pub(crate) trait Sampled: Send + Sync + 'static {
    /// What is remembered from one look to the next.
    type Before: Default + Send;

    /// Tells the recorder where it stands.
    fn sample(&self, before: &mut Self::Before);
}

/// Samples `node` until it is gone, and once more when it is closed. Without the feature there is nothing to tell.
pub(crate) fn sample_every_second<T: Sampled>(runtime: &Handle, node: &Arc<T>, closing: CancellationToken) {
    if cfg!(feature = "metrics") {
        runtime.spawn(run(Arc::downgrade(node), closing));
    }
}

async fn run<T: Sampled>(node: Weak<T>, closing: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = T::Before::default();
    loop {
        let closed = tokio::select! {
            biased;
            () = closing.cancelled() => true,
            _ = ticks.tick() => false,
        };
        // Nobody is kept alive by being watched.
        let Some(node) = node.upgrade() else { return };
        node.sample(&mut before);
        if closed {
            return;
        }
    }
}

const STATES: [HealthState; 9] = [
    HealthState::Ready,
    HealthState::CatchingUp,
    HealthState::Stale,
    HealthState::Diverged,
    HealthState::Blocked,
    HealthState::Outpaced,
    HealthState::Replaced,
    HealthState::Disconnected,
    HealthState::Stopped,
];

// As a label. A state that is added here belongs into the list above as well.
fn label_of(state: HealthState) -> &'static str {
    match state {
        HealthState::Ready => "ready",
        HealthState::CatchingUp => "catching_up",
        HealthState::Stale => "stale",
        HealthState::Diverged => "diverged",
        HealthState::Blocked => "blocked",
        HealthState::Outpaced => "outpaced",
        HealthState::Replaced => "replaced",
        HealthState::Disconnected => "disconnected",
        HealthState::Stopped => "stopped",
        // No node is in it.
        HealthState::Other => "other",
    }
}

pub(super) fn set_health(metric: &Metric, label: (&'static str, &str), health: &Health) {
    for state in STATES {
        set_gauge(metric, &[label, ("state", label_of(state))], if health.state == state { 1.0 } else { 0.0 });
    }
}

/// Seqs and bytes beyond 2^53 lose their last digits.
#[allow(clippy::cast_precision_loss, reason = "that is what a gauge holds")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

pub(super) fn seconds(millis: u64) -> f64 {
    float(millis) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_the_label_that_the_status_names_it_by() {
        for state in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), label_of(state));
        }
    }
}
