//! Iterators for streams.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use replikv_core::{KeyRange, Position, ScanOptions};

use super::{BlockingError, Host};
use crate::{Change, Changes, Reader};

/// The entries of a range, page by page. Ends with its first error.
#[derive(Debug)]
pub struct BlockingEntries<'a, N> {
    node: &'a N,
    host: &'a Host,
    options: ScanOptions,
    rest: Option<KeyRange>,
    page: VecDeque<(Bytes, Bytes)>,
}

impl<'a, N> BlockingEntries<'a, N> {
    pub(super) fn new(node: &'a N, host: &'a Host, range: KeyRange, options: ScanOptions) -> Self {
        Self { node, host, options, rest: Some(range), page: VecDeque::new() }
    }
}

impl<N: Reader> Iterator for BlockingEntries<'_, N> {
    type Item = Result<(Bytes, Bytes), BlockingError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.pop_front() {
                return Some(Ok(entry));
            }
            // Taken: after an error there is no rest.
            let range = self.rest.take()?;
            match self.host.wait(self.node.scan_data(range, self.options)) {
                Ok(page) => {
                    self.page.extend(page.entries());
                    self.rest = page.rest().cloned();
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Changes, in order and without a gap; see [`Changes`]. Waits for the next one, and ends when its node is shut down, or
/// with its first error.
#[derive(Debug)]
pub struct BlockingChanges {
    start: Position,
    // `None` once it has ended: a stream is not asked again then.
    changes: Option<Changes>,
    host: Host,
}

impl BlockingChanges {
    pub(super) fn new(changes: Changes, host: Host) -> Self {
        Self { start: changes.start(), changes: Some(changes), host }
    }

    /// Where it begins: the first change is the one after this.
    pub fn start(&self) -> Position {
        self.start
    }

    /// The next change, or `None` at the end.
    ///
    /// # Errors
    /// [`BlockingError::TimedOut`] if there is none within `timeout`, and nothing is skipped by that;
    /// [`BlockingError::Changes`] at an early end.
    pub fn next_within(&mut self, timeout: Duration) -> Result<Option<Change>, BlockingError> {
        let Some(changes) = &mut self.changes else { return Ok(None) };
        let next = async { changes.next().await.transpose() };
        let next = self.host.wait_for(next, timeout);
        self.note_end(&next);
        next
    }

    fn note_end(&mut self, next: &Result<Option<Change>, BlockingError>) {
        if matches!(next, Ok(None) | Err(BlockingError::Changes(_))) {
            self.changes = None;
        }
    }
}

impl Iterator for BlockingChanges {
    type Item = Result<Change, BlockingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let changes = self.changes.as_mut()?;
        let next = self.host.wait(async { changes.next().await.transpose() });
        self.note_end(&next);
        next.transpose()
    }
}
