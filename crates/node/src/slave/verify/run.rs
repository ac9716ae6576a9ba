//! One verification, question by question.

use std::sync::Arc;
use std::time::Duration;

use replikv_core::KeyRange;
use replikv_proto::Probe;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::desk::{Compared, Desk, Job, Outcome};
use super::{VerifyError, VerifyOptions, VerifyReport};
use crate::slave::{Inner, SlaveProgress};

/// Asks about one range after the other. It holds nothing of the slave's but what it asks with: a slave that is dropped
/// closes its store, whoever verifies in the background.
#[derive(Debug)]
pub(super) struct Run {
    desk: Arc<Desk>,
    progress: watch::Receiver<SlaveProgress>,
    closing: CancellationToken,
    options: VerifyOptions,
    /// Whether somebody else may ask in between.
    gives_way: bool,
    pub(super) report: VerifyReport,
    /// Nothing is asked before.
    from: Instant,
}

impl Run {
    pub(super) fn new<S>(inner: &Inner<S>, mut options: VerifyOptions, gives_way: bool) -> Self {
        // What it does not subscribe to its master does not tell, and it holds nothing of it.
        options.ranges = options.ranges.iter().flat_map(|range| inner.ranges.clip(range)).collect();
        let (desk, progress) = (inner.desk.clone(), inner.tracker.subscribe());
        let (closing, report) = (inner.closing.clone(), VerifyReport::default());
        Self { desk, progress, closing, options, gives_way, report, from: Instant::now() }
    }

    /// Returns when a master is connected, and the slave holds a state of it. False if the slave is gone.
    pub(super) async fn wait_for_master(&mut self) -> bool {
        self.progress.wait_for(can_verify).await.is_ok()
    }

    /// Goes through all of it. What was found until an error is in the report.
    pub(super) async fn all(&mut self) -> Result<(), VerifyError> {
        for range in self.options.ranges.clone() {
            self.range(range).await?;
        }
        Ok(())
    }

    async fn range(&mut self, range: KeyRange) -> Result<(), VerifyError> {
        let mut rest = Some(range);
        while let Some(range) = rest.take().filter(|range| !range.is_empty()) {
            let compared = self.ask(&range, false).await?;
            self.report.ranges += 1;
            self.report.entries += compared.entries;
            self.report.bytes += compared.bytes;
            if !compared.equal {
                self.report.different_ranges += 1;
                let different = self.report.different;
                self.examine(compared.range.clone()).await?;
                self.report.healed += u64::from(self.report.different == different);
            }
            self.tell();
            rest = after(&range, &compared.range);
        }
        Ok(())
    }

    // It differs: which entries do?
    async fn examine(&mut self, range: KeyRange) -> Result<(), VerifyError> {
        let mut rest = Some(range);
        while let Some(range) = rest.take() {
            let compared = self.ask(&range, true).await?;
            self.report.different += compared.different;
            self.report.repaired += compared.repaired;
            self.report.differences.extend(compared.differences);
            rest = after(&range, &compared.range);
        }
        Ok(())
    }

    async fn ask(&mut self, range: &KeyRange, entries: bool) -> Result<Compared, VerifyError> {
        let probe = Probe { range: range.clone(), max_bytes: self.options.chunk, entries };
        let (desk, closing) = (self.desk.clone(), self.closing.clone());
        let answered = tokio::select! {
            biased;
            () = closing.cancelled() => Err(VerifyError::Closed),
            answered = self.answer(&desk, &probe) => answered,
            () = self.gone() => Err(VerifyError::Interrupted { report: Box::new(self.report.clone()) }),
        };
        let compared = answered?;
        self.report.position = Some(compared.at);
        self.spend(compared.read_bytes);
        Ok(compared)
    }

    async fn answer(&self, desk: &Desk, probe: &Probe) -> Result<Compared, VerifyError> {
        sleep_until(self.from).await;
        let _turn = if self.gives_way { Some(desk.turn.lock().await) } else { None };
        let _withdrawn = Withdrawn(desk);
        loop {
            let (answer, answered) = oneshot::channel();
            let max_differences = self.options.max_differences.saturating_sub(self.report.differences.len());
            desk.put(probe.clone(), Job { repair: self.options.repair, max_differences, answer });
            match answered.await {
                Ok(Outcome::Compared(compared)) => return Ok(compared),
                Ok(Outcome::Unsupported) => return Err(VerifyError::Unsupported),
                // With the connection went the question: the next one takes it again.
                Ok(Outcome::NotConsistent) | Err(_) => {}
            }
        }
    }

    // Returns when nobody could have answered for longer than there is patience.
    async fn gone(&self) {
        let mut progress = self.progress.clone();
        loop {
            if progress.wait_for(|progress| !can_verify(progress)).await.is_err() {
                return;
            }
            let back = progress.wait_for(can_verify);
            if !matches!(timeout(self.options.patience, back).await, Ok(Ok(_))) {
                return;
            }
        }
    }

    fn spend(&mut self, bytes: u64) {
        let Some(rate) = self.options.bytes_per_second else { return };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.from.max(Instant::now());
        self.from = from.checked_add(pause).unwrap_or(from);
    }

    fn tell(&self) {
        if let Some(progress) = &self.options.progress {
            progress.send_replace(self.report.clone());
        }
    }
}

fn can_verify(progress: &SlaveProgress) -> bool {
    progress.connected && progress.consistent
}

/// Whoever stops waiting leaves no question behind.
struct Withdrawn<'a>(&'a Desk);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

// What of `asked` lies after `compared`, a first part of it.
fn after(asked: &KeyRange, compared: &KeyRange) -> Option<KeyRange> {
    let end = compared.end()?;
    Some(KeyRange::new(end.clone(), asked.end().cloned())).filter(|rest| !rest.is_empty())
}
