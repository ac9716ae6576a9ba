//! What a slave does when its history has parted from its master's.
//!
//! Its owner decides beforehand. A slave that resyncs compares ranges with its master, as one does that fell behind the
//! log, and becomes what the master is; but what the master's content takes the place of is kept first, in a quarantine
//! of the owner's. Records never touch what is not covered yet, and what is equal takes nothing away: all that is ever
//! lost is lost to content, and so the content of a group tells what has to be kept before the group may be committed.

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, Op, Position};
use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::{Content, RejectCode};

/// What a slave does when its master refuses it because their histories have parted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OnDivergence {
    /// Nothing: it stays refused, and its owner looks into it.
    #[default]
    Refuse,
    /// It becomes what the master is, if the master is of the same source: restored from a backup, a copy of the one that
    /// was followed, or one that has lost batches. Another source stays refused: a typo in an address wipes nothing.
    Resync,
    /// As [`Resync`](Self::Resync), and another source is adopted as well.
    AdoptSource,
}

impl OnDivergence {
    /// True if a slave that is refused with `code` resyncs instead.
    pub fn resyncs(self, code: RejectCode) -> bool {
        match code {
            RejectCode::ForeignSource => self == Self::AdoptSource,
            // Nothing shows that the histories are one: that is no proof that they are two, and no reason to lose anything.
            RejectCode::Diverged | RejectCode::SlaveAhead | RejectCode::NeedsCompare => self != Self::Refuse,
            _ => false,
        }
    }
}

/// A resync that is under way: kept by the slave until its data is a state of the master again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// Why the slave would have been refused.
    pub reason: RejectCode,
    /// Where the slave stood before.
    pub was: Position,
    /// The newest point of the slave's history that is also one of the master's, as far as both still know. What differs
    /// came after it, on either side.
    pub ancestor: Option<Position>,
}

/// An entry that a slave is about to lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displaced {
    /// Its key.
    pub key: Bytes,
    /// What the slave holds.
    pub value: Bytes,
}

/// What has to be quarantined, and synced, before a group may be committed: everything that the store holds in these
/// ranges, and that their content does not hold alike.
#[derive(Debug, Clone)]
pub struct Displacing {
    /// Why.
    pub resync: Resync,
    /// What takes the place of what the store holds; no two meet.
    pub contents: Vec<Content>,
}

impl Displacing {
    /// Of a page of the slave's own entries, those that `content` takes away or changes.
    pub fn displaced(content: &Content, page: &EncodedOps) -> Vec<Displaced> {
        let mut new = (&content.entries).into_iter().filter_map(put).peekable();
        let mut displaced = Vec::new();
        // Both are in key order.
        for (key, value) in page.into_iter().filter_map(put).filter(|(key, _)| content.range.contains(key)) {
            while new.next_if(|(other, _)| *other < key).is_some() {}
            if planted::is(Bug::ChangedIsNotDisplaced) && new.peek().is_some_and(|(other, _)| *other == key) {
                continue;
            }
            if new.peek() != Some(&(key, value)) {
                let own = |bytes: &[u8]| page.as_bytes().slice_ref(bytes);
                displaced.push(Displaced { key: own(key), value: own(value) });
            }
        }
        displaced
    }

    /// What has to be read for it.
    pub fn ranges(&self) -> impl Iterator<Item = (&Content, &KeyRange)> {
        self.contents.iter().map(|content| (content, &content.range))
    }
}

fn put(op: Op<'_>) -> Option<(&[u8], &[u8])> {
    match op {
        Op::Put { key, value } => Some((key, value)),
        Op::Delete { .. } | Op::DeleteRange { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikv_core::{Batch, Epoch, SourceId};

    fn entries(entries: &[(&str, &str)]) -> EncodedOps {
        entries.iter().fold(Batch::new(), |batch, (key, value)| batch.put(key, value)).into_parts().unwrap().0
    }

    #[test]
    fn what_is_missing_or_differs_is_displaced_and_what_is_equal_or_outside_is_not() {
        let read_at = crate::origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 1 });
        let content = Content {
            range: KeyRange::from_bounds("b".."y"),
            read_at,
            entries: entries(&[("b", "1"), ("c", "2"), ("e", "3"), ("m", "4"), ("x", "")]),
        };
        let page = entries(&[
            ("a", "0"),
            ("b", "1"),
            ("c", "other"),
            ("d", "gone"),
            ("f", "gone"),
            ("m", "4"),
            ("x", "1"),
            ("y", "0"),
        ]);
        let displaced = Displacing::displaced(&content, &page);
        let keys: Vec<_> = displaced.iter().map(|entry| (&entry.key[..], &entry.value[..])).collect();
        let expected: [(&[u8], &[u8]); 4] = [(b"c", b"other"), (b"d", b"gone"), (b"f", b"gone"), (b"x", b"1")];
        assert_eq!(keys, expected);
    }

    #[test]
    fn another_source_is_adopted_only_if_that_was_said() {
        use OnDivergence::{AdoptSource, Refuse, Resync};
        for (code, by) in [
            (RejectCode::Diverged, &[Resync, AdoptSource][..]),
            (RejectCode::SlaveAhead, &[Resync, AdoptSource]),
            (RejectCode::NeedsCompare, &[Resync, AdoptSource]),
            (RejectCode::ForeignSource, &[AdoptSource]),
            (RejectCode::DataWithoutCursor, &[]),
            (RejectCode::LimitsTooSmall, &[]),
        ] {
            for policy in [Refuse, Resync, AdoptSource] {
                assert_eq!(policy.resyncs(code), by.contains(&policy), "{policy:?} {code:?}");
            }
        }
    }
}
