//! Folding: many batches become one sorted run of changes.
//!
//! What a store pays for is the number of pages that a transaction touches, so a slave that is behind hands over the
//! last change of each key, in key order. A range delete, and a page of content, is a barrier: what came before it is
//! written before it.

use replikv_core::{EncodedOps, KeyRange, Keyspace, LargePut, Op, StoreError, WriteSetBuilder};

use crate::key_head::key_head;
use crate::planted::{self, Bug};

/// Gathers changes of one segment between two barriers.
#[derive(Debug, Default)]
pub(super) struct Fold<'a> {
    changes: Vec<Change<'a>>,
}

#[derive(Debug)]
struct Change<'a> {
    head: u64,
    key: &'a [u8],
    order: u32,
    value: Option<&'a [u8]>,
}

impl<'a> Fold<'a> {
    pub(super) fn put(&mut self, key: &'a [u8], value: &'a [u8]) {
        self.change(key, Some(value));
    }

    pub(super) fn delete(&mut self, key: &'a [u8]) {
        self.change(key, None);
    }

    /// Writes out what came before, then the put, which shares its buffers. A barrier too, and cheap beside the value.
    pub(super) fn put_large(&mut self, put: &LargePut, out: &mut WriteSetBuilder) -> Result<(), StoreError> {
        self.flush(out)?;
        out.append(Keyspace::Data, put.clone().into());
        Ok(())
    }

    /// Writes out what came before, then the range delete.
    pub(super) fn delete_range(&mut self, range: &KeyRange, out: &mut WriteSetBuilder) -> Result<(), StoreError> {
        if !planted::is(Bug::RangeDeleteIsNoBarrier) {
            self.flush(out)?;
        }
        out.delete_range(Keyspace::Data, range);
        Ok(())
    }

    /// Writes out what came before, then replaces `range` by `entries`.
    pub(super) fn replace(
        &mut self,
        range: &KeyRange,
        entries: EncodedOps,
        out: &mut WriteSetBuilder,
    ) -> Result<(), StoreError> {
        if planted::is(Bug::ContentIsAdded) {
            self.flush(out)?;
        } else {
            self.delete_range(range, out)?;
        }
        out.append(Keyspace::Data, entries);
        Ok(())
    }

    /// Writes out the last change of each key, in key order.
    pub(super) fn flush(&mut self, out: &mut WriteSetBuilder) -> Result<(), StoreError> {
        self.changes.sort_unstable_by(|a, b| (a.head, a.key, a.order).cmp(&(b.head, b.key, b.order)));
        let mut changes = self.changes.drain(..).peekable();
        let mut last_written: Option<&[u8]> = None;
        while let Some(change) = changes.next() {
            if planted::is(Bug::FirstChangeWins) {
                if last_written.replace(change.key) == Some(change.key) {
                    continue;
                }
            } else if changes.peek().is_some_and(|next| next.key == change.key) {
                continue;
            }
            let op = match change.value {
                Some(value) => Op::Put { key: change.key, value },
                None => Op::Delete { key: change.key },
            };
            out.push(Keyspace::Data, op)?;
        }
        Ok(())
    }

    fn change(&mut self, key: &'a [u8], value: Option<&'a [u8]>) {
        let order = u32::try_from(self.changes.len()).unwrap_or(u32::MAX);
        self.changes.push(Change { head: key_head(key), key, order, value });
    }
}
