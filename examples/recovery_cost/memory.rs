//! How much memory a process takes for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

/// The most that both sides took since it began to watch; what LMDB maps is not among it. On Linux.
pub(crate) struct Memory {
    before: u64,
    most: Arc<AtomicU64>,
    watching: JoinHandle<()>,
}

impl Memory {
    pub(crate) fn watch() -> Self {
        let before = taken().unwrap_or(0);
        let most = Arc::new(AtomicU64::new(before));
        let seen = most.clone();
        let watching = tokio::spawn(async move {
            loop {
                seen.fetch_max(taken().unwrap_or(0), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { before, most, watching }
    }

    pub(crate) fn most(&self) -> String {
        match self.most.load(Ordering::Relaxed).saturating_sub(self.before) {
            0 if self.before == 0 => "?".into(),
            more => format!("{} MiB", more >> 10),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

// In KiB.
fn taken() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    anonymous.split_whitespace().next()?.parse().ok()
}
