//! The clocks, read in one place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use replikv_proto::Now;
use tokio::time::Instant;

/// A timeout beyond what the clock can tell is as good as a year.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads both clocks. The monotonic one counts from the clock's making.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: self.start.elapsed(), unix_ms: unix_ms() }
    }

    pub(crate) fn instant(&self, monotonic: Duration) -> Instant {
        self.start.checked_add(monotonic).unwrap_or_else(|| Instant::now() + FAR)
    }
}

/// The instant that lies `wait` ahead.
pub(crate) fn ahead(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or_else(|| now + FAR)
}

/// Milliseconds since the Unix epoch; 0 before it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
