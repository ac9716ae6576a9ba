//! Time, as those who decide see it: passed in, never read.

use std::time::Duration;

/// A reading of both clocks. The monotonic one decides about timeouts; the wall clock is only ever reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Since some fixed moment of the caller's; never goes back.
    pub monotonic: Duration,
    /// Milliseconds since the Unix epoch; may jump.
    pub unix_ms: u64,
}
