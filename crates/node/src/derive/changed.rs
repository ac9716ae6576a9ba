//! What a write set changes on the whole, in the order of keys, a part at a time.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, Op, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_proto::{Change, Derives};

/// A part ends with the changes that bring it to so many bytes.
const PART_BYTES: usize = 8 << 20;
/// Or to so many changes.
const PART_CHANGES: usize = 65_536;
/// So many keys are looked up at once, or those of values of so many bytes.
const NAMED: usize = 256;
const NAMED_BYTES: usize = 64 << 10;

/// Compares a write set with what the store holds before it.
pub(super) struct Changed<'a, S> {
    store: &'a S,
    /// What becomes of the keys that the write set names.
    after: BTreeMap<Bytes, Option<Bytes>>,
    /// What goes, unless it is named: apart from each other, in order. What is done with is taken off.
    deleted: VecDeque<KeyRange>,
    sources: Vec<KeyRange>,
}

impl<'a, S: ReplicaStore> Changed<'a, S> {
    pub(super) fn new(store: &'a S, derives: &Derives, writes: &WriteSet) -> Self {
        let sources: Vec<KeyRange> = derives.iter().map(|(derive, _)| derive.source()).collect();
        let is_asked = |key: &[u8]| sources.iter().any(|source| source.contains(key));
        let (mut after, mut deleted) = (BTreeMap::<Bytes, Option<Bytes>>::new(), Vec::new());
        for chunk in writes.chunks().iter().filter(|chunk| chunk.keyspace == Keyspace::Data) {
            let buffer = chunk.ops.as_bytes();
            for op in &chunk.ops {
                match op {
                    Op::Put { key, value } if is_asked(key) => {
                        after.insert(buffer.slice_ref(key), Some(buffer.slice_ref(value)));
                    }
                    Op::Delete { key } if is_asked(key) => drop(after.insert(buffer.slice_ref(key), None)),
                    Op::DeleteRange { start, end } => {
                        let range = KeyRange::new(buffer.slice_ref(start), end.map(|end| buffer.slice_ref(end)));
                        if range.is_empty() {
                            continue;
                        }
                        let met = after.range_mut::<[u8], _>((Bound::Included(start), Bound::Unbounded));
                        met.take_while(|(key, _)| range.contains(key)).for_each(|(_, value)| *value = None);
                        deleted.extend(sources.iter().map(|source| source.intersect(&range)));
                    }
                    Op::Put { .. } | Op::Delete { .. } => {}
                }
            }
        }
        Self { store, after, deleted: apart(deleted).into(), sources }
    }

    /// The next changes; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Change>>, StoreError> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while changes.len() < PART_CHANGES && bytes < PART_BYTES {
            let named = self.after.first_key_value().map(|(key, _)| key);
            let begins = self.deleted.front().map(KeyRange::start);
            let in_order = match (named, begins) {
                (None, None) => break,
                (Some(key), Some(start)) => key < start,
                (named, _) => named.is_some(),
            };
            let found = if in_order { self.named().await? } else { self.page().await? };
            for change in found {
                bytes +=
                    change.key.len() + [&change.old, &change.new].into_iter().flatten().map(Bytes::len).sum::<usize>();
                changes.push(change);
            }
        }
        Ok(Some(changes).filter(|changes| !changes.is_empty()))
    }

    // The next keys that are named, before anything that is deleted.
    async fn named(&mut self) -> Result<Vec<Change>, StoreError> {
        let begins = self.deleted.front().map(|range| range.start().clone());
        let (mut keys, mut news, mut bytes) = (Vec::new(), Vec::new(), 0);
        while keys.len() < NAMED && bytes < NAMED_BYTES {
            let Some(next) = self.after.first_entry() else { break };
            if begins.as_ref().is_some_and(|begins| next.key() >= begins) {
                break;
            }
            let (key, new) = next.remove_entry();
            bytes += new.as_ref().map_or(0, Bytes::len);
            keys.push(key);
            news.push(new);
        }
        let olds = self.store.get_many(Keyspace::Data, &keys).await?;
        let all = keys.into_iter().zip(olds).zip(news);
        Ok(all.filter(|((_, old), new)| old != new).map(|((key, old), new)| Change { key, old, new }).collect())
    }

    // The next page of what is deleted, with what is named in it.
    async fn page(&mut self) -> Result<Vec<Change>, StoreError> {
        let Some(range) = self.deleted.pop_front() else { return Ok(Vec::new()) };
        let options = ScanOptions::default().max_entries(PART_CHANGES);
        let page = self.store.scan(Keyspace::Data, range.clone(), options).await?;
        let mut done = range;
        if let Some(rest) = page.rest() {
            done = KeyRange::new(done.start().clone(), Some(rest.start().clone()));
            self.deleted.push_front(rest.clone());
        }
        let mut changes = Vec::with_capacity(page.len());
        for (key, old) in page.entries() {
            self.put_before(Some(&key), &done, &mut changes);
            let new = self.after.remove(&key).flatten();
            if new.as_ref() != Some(&old) {
                changes.push(Change { key, old: Some(old), new });
            }
        }
        self.put_before(None, &done, &mut changes);
        Ok(changes)
    }

    // What is put below `key` into a range of which the store holds nothing below it.
    fn put_before(&mut self, key: Option<&Bytes>, range: &KeyRange, changes: &mut Vec<Change>) {
        while let Some(named) = self.after.first_entry()
            && key.is_none_or(|key| named.key() < key)
            && range.contains(named.key())
        {
            let (key, new) = named.remove_entry();
            if new.is_some() && self.sources.iter().any(|source| source.contains(&key)) {
                changes.push(Change { key, old: None, new });
            }
        }
    }
}

// The same keys in ranges that do not meet, in order.
fn apart(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by(|a, b| a.start().cmp(b.start()));
    let mut apart: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match apart.last_mut() {
            Some(last) if last.end().is_none_or(|end| end >= range.start()) => {
                let end = match (last.end(), range.end()) {
                    (Some(one), Some(other)) => Some(one.max(other).clone()),
                    _ => None,
                };
                *last = KeyRange::new(last.start().clone(), end);
            }
            _ => apart.push(range),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_become_one() {
        let range = |start: &'static str, end: Option<&'static str>| KeyRange::new(start, end.map(Bytes::from));
        let ranges = vec![range("d", Some("f")), range("a", Some("b")), range("b", Some("c")), range("x", Some("x"))];
        assert_eq!(apart(ranges), [range("a", Some("c")), range("d", Some("f"))]);
        let open = vec![range("d", None), range("e", Some("f")), range("a", Some("z"))];
        assert_eq!(apart(open), [range("a", None)]);
    }
}
