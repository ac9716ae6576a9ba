//! The entries of a range, over all tables, without a copy of any value.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Bound;

use heed::types::Bytes;
use heed::{RoRange, RoRevRange, RoTxn};
use replikv_core::{KeyRange, Keyspace, StoreError};

use crate::table::{Segment, Table, Tables, as_slice, read_failed};

/// The entries of a range, in key order or from the last to the first: keys in full, values borrowed from the map.
///
/// Ends with the first error.
pub struct Entries<'s> {
    txn: &'s RoTxn<'s>,
    segments: VecDeque<Segment<'s>>,
    reverse: bool,
    current: Option<Walk<'s>>,
}

struct Walk<'s> {
    table: &'s Table,
    inner: KeyRange,
    cursor: Cursor<'s>,
}

enum Cursor<'s> {
    Forward(RoRange<'s, Bytes, Bytes>),
    Reverse(RoRevRange<'s, Bytes, Bytes>),
}

type Entry<'s> = (Cow<'s, [u8]>, &'s [u8]);

impl<'s> Entries<'s> {
    pub(crate) fn new(
        tables: &'s Tables,
        txn: &'s RoTxn<'s>,
        keyspace: Keyspace,
        range: &KeyRange,
        reverse: bool,
    ) -> Self {
        let segments = if range.is_empty() { VecDeque::new() } else { tables.segments(keyspace, range) };
        Self { txn, segments, reverse, current: None }
    }

    fn advance(&mut self) -> Result<Option<Entry<'s>>, StoreError> {
        loop {
            let Some(walk) = &mut self.current else {
                let next = if self.reverse { self.segments.pop_back() } else { self.segments.pop_front() };
                let Some(segment) = next else { return Ok(None) };
                self.current = Walk::begin(self.txn, segment, self.reverse)?;
                continue;
            };
            if let Some(entry) = walk.next()? {
                return Ok(Some(entry));
            }
            self.current = None;
        }
    }
}

impl<'s> Walk<'s> {
    // One bound is LMDB's to find, in its own order; heed would compare the other one as bytes, so it is checked here,
    // in wire form.
    fn begin(txn: &'s RoTxn<'s>, segment: Segment<'s>, reverse: bool) -> Result<Option<Self>, StoreError> {
        let Segment { table, inner } = segment;
        let width = table.width(txn)?;
        let Some((start, end)) = table.order.bounds(&inner, width) else { return Ok(None) };
        let cursor = if reverse {
            let bounds = (Bound::Unbounded, as_slice(&end));
            Cursor::Reverse(table.database.rev_range(txn, &bounds).map_err(read_failed)?)
        } else {
            let bounds = (as_slice(&start), Bound::Unbounded);
            Cursor::Forward(table.database.range(txn, &bounds).map_err(read_failed)?)
        };
        drop((start, end));
        Ok(Some(Self { table, inner, cursor }))
    }

    fn next(&mut self) -> Result<Option<Entry<'s>>, StoreError> {
        let entry = match &mut self.cursor {
            Cursor::Forward(cursor) => cursor.next(),
            Cursor::Reverse(cursor) => cursor.next(),
        };
        let Some((native, value)) = entry.transpose().map_err(read_failed)? else { return Ok(None) };
        let within = self.inner.contains(&self.table.order.turn(native));
        Ok(within.then(|| (self.table.full_key(native), value)))
    }
}

impl<'s> Iterator for Entries<'s> {
    type Item = Result<Entry<'s>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.advance().transpose();
        if matches!(entry, Some(Err(_))) {
            (self.current, self.segments) = (None, VecDeque::new());
        }
        entry
    }
}

impl std::fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("reverse", &self.reverse).finish_non_exhaustive()
    }
}
