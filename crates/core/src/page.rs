//! One page of a scan.

use bytes::{Bytes, BytesMut};

use crate::{EncodedOps, KeyRange, Op, Ops};

/// How much of a range one page may hold, and in which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanOptions {
    /// At most so many entries. Default: 1,000. 0 counts as 1.
    pub max_entries: usize,
    /// A page ends with the entry that brings keys and values to this many bytes. Default: 1 MiB.
    pub max_bytes: usize,
    /// From the last key to the first. Default: false.
    pub reverse: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { max_entries: 1000, max_bytes: 1 << 20, reverse: false }
    }
}

impl ScanOptions {
    /// At most `entries` entries.
    #[must_use]
    pub const fn max_entries(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }

    /// Ends a page once it holds `bytes` bytes of keys and values.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// From the last key to the first.
    #[must_use]
    pub const fn reversed(mut self) -> Self {
        self.reverse = true;
        self
    }
}

/// Entries of a range as they were at one instant, and what of the range is left.
///
/// Entries are kept in one buffer, encoded as puts: a page travels to a slave, and into its store, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    entries: EncodedOps,
    len: usize,
    rest: Option<KeyRange>,
}

impl Page {
    /// A page that came from elsewhere: of `range`, read backwards if `reverse` says so. `rest` is the part of the range
    /// that was not looked at.
    ///
    /// # Errors
    /// [`NoPage`] if the entries are none of the range, or not in its order, or the rest does not lie behind them.
    pub fn received(
        range: &KeyRange,
        reverse: bool,
        entries: EncodedOps,
        rest: Option<KeyRange>,
    ) -> Result<Self, NoPage> {
        let (mut left, mut len) = (range.clone(), 0);
        for op in &entries {
            let Op::Put { key, .. } = op else { return Err(NoPage) };
            if !left.contains(key) {
                return Err(NoPage);
            }
            left = if reverse { left.before(key) } else { left.after(key) };
            len += 1;
        }
        if rest.as_ref().is_some_and(|rest| rest.intersect(&left) != *rest || (len == 0 && rest == range)) {
            return Err(NoPage);
        }
        Ok(Self { entries, len, rest })
    }

    pub(crate) fn from_parts(entries: EncodedOps, len: usize, rest: Option<KeyRange>) -> Self {
        Self { entries, len, rest }
    }

    /// The entries, in the order of the scan, borrowed.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + '_ {
        puts(self.entries.iter())
    }

    /// The entries, in the order of the scan, sharing the page's buffer.
    pub fn entries(&self) -> impl Iterator<Item = (Bytes, Bytes)> + '_ {
        let buffer = self.entries.as_bytes();
        self.iter().map(|(key, value)| (buffer.slice_ref(key), buffer.slice_ref(value)))
    }

    /// The entries as puts, for a write set or the wire.
    pub fn ops(&self) -> &EncodedOps {
        &self.entries
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where to go on: the part of the range that was not looked at, or `None` at its end. It may turn out to hold
    /// nothing.
    pub fn rest(&self) -> Option<&KeyRange> {
        self.rest.as_ref()
    }
}

/// What was received is no page of the range that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was received is no page of the range that was asked for")]
pub struct NoPage;

fn puts<'a>(ops: Ops<'a>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    ops.filter_map(|op| match op {
        Op::Put { key, value } => Some((key, value)),
        _ => None,
    })
}

/// Fills a [`Page`]: what every implementation of `scan` needs.
///
/// ```
/// # use replikv_core::{KeyRange, PageBuilder, ScanOptions};
/// # use std::collections::BTreeMap;
/// # let map: BTreeMap<Vec<u8>, Vec<u8>> = [(b"a".to_vec(), vec![]), (b"b".to_vec(), vec![])].into();
/// let range = KeyRange::all();
/// let mut page = PageBuilder::new(range.clone(), ScanOptions::default().max_entries(1));
/// for (key, value) in map.iter().filter(|(key, _)| range.contains(key)) {
///     if page.push(key, value).is_full() {
///         break;
///     }
/// }
/// let page = page.finish();
/// assert_eq!(page.len(), 1);
/// assert!(page.rest().is_some_and(|rest| rest.contains(b"b")));
/// ```
#[derive(Debug)]
pub struct PageBuilder {
    range: KeyRange,
    options: ScanOptions,
    buffer: BytesMut,
    len: usize,
    bytes: usize,
    rest: Option<KeyRange>,
}

/// Whether a page takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Room {
    /// Push the next entry.
    More,
    /// Finish the page.
    Full,
}

impl Room {
    /// True if the page is full.
    pub fn is_full(self) -> bool {
        self == Self::Full
    }
}

impl PageBuilder {
    /// A page of `range`.
    pub fn new(range: KeyRange, options: ScanOptions) -> Self {
        Self { range, options, buffer: BytesMut::new(), len: 0, bytes: 0, rest: None }
    }

    /// Adds the next entry of the range, in the direction of the scan.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Room {
        debug_assert!(self.range.contains(key));
        Op::Put { key, value }.encode_into(&mut self.buffer);
        self.len += 1;
        self.bytes += key.len() + value.len();
        if self.len < self.options.max_entries && self.bytes < self.options.max_bytes {
            return Room::More;
        }
        let rest = if self.options.reverse { self.range.before(key) } else { self.range.after(key) };
        self.rest = (!rest.is_empty()).then_some(rest);
        Room::Full
    }

    /// The page. Where it was not full, its range is exhausted.
    pub fn finish(self) -> Page {
        Page { entries: EncodedOps::trusted(self.buffer.freeze()), len: self.len, rest: self.rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;

    fn entries(keys: &[&str]) -> EncodedOps {
        let put = |batch: Batch, key: &&str| batch.put(key, "v");
        keys.iter().fold(Batch::new(), put).into_parts().map(|(ops, _, _)| ops).unwrap_or_default()
    }

    #[test]
    fn a_page_is_full_as_soon_as_one_of_its_bounds_is_reached() {
        let page = |options: ScanOptions| PageBuilder::new(KeyRange::all(), options);
        let mut by_entries = page(ScanOptions::default().max_entries(2).max_bytes(100));
        assert_eq!(by_entries.push(b"a", b"1"), Room::More);
        assert_eq!(by_entries.push(b"b", b"2"), Room::Full);
        let mut by_bytes = page(ScanOptions::default().max_entries(100).max_bytes(4));
        assert_eq!(by_bytes.push(b"a", b"1"), Room::More);
        assert_eq!(by_bytes.push(b"b", b"2"), Room::Full);
        let page = by_bytes.finish();
        assert_eq!((page.len(), page.rest().map(|rest| rest.start().to_vec())), (2, Some(b"b\0".to_vec())));
        assert_eq!(page.iter().map(|(key, _)| key).collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn entries_are_what_was_pushed_and_share_the_buffer_of_the_page() {
        let mut builder = PageBuilder::new(KeyRange::all(), ScanOptions::default());
        for (key, value) in [("a", "1"), ("b", "")] {
            assert!(!builder.push(key.as_bytes(), value.as_bytes()).is_full());
        }
        let page = builder.finish();
        let entries: Vec<_> = page.entries().collect();
        assert_eq!(entries, [("a", "1"), ("b", "")].map(|(key, value)| (Bytes::from(key), Bytes::from(value))));
        assert_eq!(entries[0].0.as_ptr(), page.ops().as_bytes()[2..].as_ptr());
    }

    #[test]
    fn a_received_page_holds_keys_of_its_range_in_its_order_and_its_rest_lies_behind_them() {
        let range = KeyRange::from_bounds("b".."m");
        let page = |keys, reverse, rest| Page::received(&range, reverse, entries(keys), rest);
        let behind = || Some(KeyRange::from_bounds("d".."m"));
        assert_eq!(page(&["b", "c"], false, behind()).map(|page| page.len()), Ok(2));
        assert!(page(&["c", "b"], true, None).is_ok());
        assert!(page(&[], false, None).is_ok());
        for (keys, reverse, rest) in [
            (&["c", "b"][..], false, None),
            (&["b", "c"], true, None),
            (&["b", "b"], false, None),
            (&["a"], false, None),
            (&["m"], false, None),
            (&["b", "e"], false, behind()),
            (&["b"], false, Some(KeyRange::all())),
            // Whoever goes on from there never ends.
            (&[], false, Some(range.clone())),
        ] {
            assert_eq!(page(keys, reverse, rest.clone()), Err(NoPage), "{keys:?} {reverse} {rest:?}");
        }
        let deletes = Batch::new().delete("c").into_parts().map(|(ops, _, _)| ops).unwrap_or_default();
        assert_eq!(Page::received(&range, false, deletes, None), Err(NoPage));
    }

    #[test]
    fn a_page_without_entries_is_empty_and_may_have_looked_at_a_part_of_its_range() {
        let range = KeyRange::from_bounds("b".."m");
        let page = Page::received(&range, false, entries(&[]), Some(KeyRange::from_bounds("c".."m"))).unwrap();
        assert!(page.is_empty());
        let page = Page::received(&range, false, entries(&["c"]), None).unwrap();
        assert!(!page.is_empty());
    }
}
