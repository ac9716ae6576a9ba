//! Reads that never go back.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use replikv_core::{KeyRange, Page, ScanOptions, Token};
use replikv_proto::{ReadAt, WaitFor};

use super::BalancedReader;
use crate::reader::Reading;
use crate::{ReadError, Reader};

/// Reads through a [`BalancedReader`], of which none shows anything older than the one before it: monotonic reads. With
/// [`saw`](Self::saw) they include what was written, too.
///
/// Made by [`BalancedReader::session`]. Whoever shares one sees what the others have seen; reads that run side by side
/// are in no order among each other, and in order with all that begin once they have ended.
///
/// It keeps the position of the latest moment that any answer may have shown. Where that is not part of the history any
/// more, because its master was restored from a backup, reads fail with
/// [`WaitError::Superseded`](crate::WaitError::Superseded): begin another session, and know that it may show less.
///
/// # Cancel safety
/// Of every method: a read that is dropped was not seen.
#[derive(Debug)]
pub struct ReadSession {
    balanced: BalancedReader,
    seen: Mutex<Option<Token>>,
}

impl ReadSession {
    pub(super) fn new(balanced: BalancedReader) -> Self {
        Self { balanced, seen: Mutex::default() }
    }

    /// Every read that begins from now on includes the write of `token`: read your writes.
    pub fn saw(&self, token: Token) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // A later reign may have begun before the end of an earlier one.
        let rank = |token: Token| (token.epoch.number, token.seq);
        if seen.is_none_or(|seen| rank(token) > rank(seen)) {
            *seen = Some(token);
        }
    }

    /// What every read that begins now includes.
    pub fn seen(&self) -> Option<Token> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn get(&self, key: impl AsRef<[u8]> + Send) -> Result<Option<Bytes>, ReadError> {
        Ok(self.read(key).await?.value)
    }

    /// The value of `key`, and of which moment it is.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, key: impl AsRef<[u8]> + Send) -> Result<Reading<Option<Bytes>>, ReadError> {
        let read = self.balanced.read(key.as_ref(), self.after()).await?;
        self.note(&read.at);
        Ok(read)
    }

    /// One page of `range`, as it was at one instant. The next page may be of a later one, and of no earlier one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn scan(&self, range: impl Into<KeyRange> + Send, options: ScanOptions) -> Result<Page, ReadError> {
        let read = self.balanced.read_page(range.into(), options, self.after()).await?;
        self.note(&read.at);
        Ok(read.value)
    }

    fn after(&self) -> Option<WaitFor> {
        self.seen().map(WaitFor::Token)
    }

    // What it may have shown, not what it is sure to include: or else the next read may go back.
    fn note(&self, at: &ReadAt) {
        if let Some(shows) = at.shows {
            self.saw(shows.into());
        }
    }
}
