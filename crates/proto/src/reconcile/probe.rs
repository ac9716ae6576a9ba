//! Proof of equality at one point of the history, while writes go on.
//!
//! A slave asks about a range. The master reads it as it was right after one record and answers with that record's
//! position; the slave looks at its own range once it has applied up to there, and nothing later. Both looks are of the
//! same state of the history, so what differs then differs, however hot its keys are.

use std::iter::Peekable;

use replikv_core::{EncodedOps, Fingerprint, KeyRange, Op, Ops, Position};

use super::{Fingerprinter, ends_by};

/// A slave's question: what does this range hold, at a position that the answer names?
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Probe {
    /// The keys. The answer may cover a first part of them.
    pub range: KeyRange,
    /// How many bytes of entries are read for it, roughly; one entry at least. The master's own bound holds too.
    pub max_bytes: u32,
    /// Whether the entries are wanted, and not only what they come to.
    pub entries: bool,
}

/// The answer to a [`Probe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What was read: the range that was asked about, or a first part of it.
    pub range: KeyRange,
    /// The history's record right after which it was read.
    pub at: Position,
    /// What it holds there.
    pub held: Held,
}

/// What a range holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// What it comes to.
    Summary(Summary),
    /// All of it, as puts in key order.
    Entries(EncodedOps),
}

/// What the entries of a range come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// How many entries.
    pub count: u64,
    /// How many bytes they have, as they are encoded.
    pub bytes: u64,
    /// Their fingerprint.
    pub fingerprint: Fingerprint,
}

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The master holds the key, the slave does not.
    Missing,
    /// The slave holds the key, the master does not.
    Extra,
    /// Both hold the key, with different values.
    Value,
}

/// An entry that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differing<'a> {
    /// The key.
    pub key: &'a [u8],
    /// How it differs.
    pub kind: DifferenceKind,
    /// What the master holds; `None` for an extra key.
    pub value: Option<&'a [u8]>,
    /// What the slave holds; `None` for a missing key.
    pub own: Option<&'a [u8]>,
}

impl Probed {
    /// The answer to `probe`, of a page that was read right after the record `at`.
    pub(crate) fn new(probe: &Probe, range: KeyRange, at: Position, entries: EncodedOps) -> Self {
        let held = if probe.entries { Held::Entries(entries) } else { Held::Summary(Summary::of(&entries)) };
        Self { range, at, held }
    }

    /// Whether it is what was asked for.
    pub(crate) fn answers(&self, probe: &Probe) -> bool {
        self.range.start() == probe.range.start()
            && !self.range.is_empty()
            && ends_by(&self.range, probe.range.end())
            && probe.entries == matches!(self.held, Held::Entries(_))
    }

    /// How many bytes of entries were read for it.
    pub fn read_bytes(&self) -> u64 {
        match &self.held {
            Held::Summary(summary) => summary.bytes,
            Held::Entries(entries) => entries.byte_len() as u64,
        }
    }

    /// What it counts for among the bytes that wait to be applied.
    pub fn byte_len(&self) -> usize {
        let held = match &self.held {
            Held::Summary(_) => 0,
            Held::Entries(entries) => entries.byte_len(),
        };
        held + super::bound_len(&self.range)
    }
}

impl Summary {
    fn of(entries: &EncodedOps) -> Self {
        let mut hash = Fingerprinter::default();
        hash.update(entries.as_bytes());
        let (count, bytes) = (entries.iter().count() as u64, entries.byte_len() as u64);
        Self { count, bytes, fingerprint: hash.finish() }
    }
}

/// Compares what a slave holds with an answer, page by page.
#[derive(Debug)]
pub struct ProbeCheck<'a> {
    theirs: Theirs<'a>,
    count: u64,
    bytes: u64,
    hash: Fingerprinter,
    differences: u64,
}

#[derive(Debug)]
enum Theirs<'a> {
    Summary(Summary),
    Entries(Peekable<Ops<'a>>),
}

/// What a [`ProbeCheck`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// How many entries the slave holds.
    pub entries: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// Whether both hold the same.
    pub equal: bool,
}

impl<'a> ProbeCheck<'a> {
    /// Compares with `probed`.
    pub fn new(probed: &'a Probed) -> Self {
        let theirs = match &probed.held {
            Held::Summary(summary) => Theirs::Summary(*summary),
            Held::Entries(entries) => Theirs::Entries(entries.iter().peekable()),
        };
        Self { theirs, count: 0, bytes: 0, hash: Fingerprinter::default(), differences: 0 }
    }

    /// The next page of the slave's own range. `found` is told of each entry that is known to differ by now, in key
    /// order.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn push_page<E>(
        &mut self,
        own: &EncodedOps,
        mut found: impl FnMut(Differing<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.bytes += own.byte_len() as u64;
        self.hash.update(own.as_bytes());
        for op in own {
            let Op::Put { key, value } = op else { continue };
            self.count += 1;
            if let Theirs::Entries(theirs) = &mut self.theirs {
                while let Some(Op::Put { key, value }) = theirs.next_if(|other| put_key(other) < Some(key)) {
                    self.differences += 1;
                    found(Differing { key, kind: DifferenceKind::Missing, value: Some(value), own: None })?;
                }
                let (kind, theirs) = match theirs.next_if(|other| put_key(other) == Some(key)) {
                    Some(Op::Put { value: theirs, .. }) if theirs == value => continue,
                    Some(Op::Put { value: theirs, .. }) => (DifferenceKind::Value, Some(theirs)),
                    _ => (DifferenceKind::Extra, None),
                };
                self.differences += 1;
                found(Differing { key, kind, value: theirs, own: Some(value) })?;
            }
        }
        Ok(())
    }

    /// The end of the slave's own range.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn finish<E>(mut self, mut found: impl FnMut(Differing<'_>) -> Result<(), E>) -> Result<Checked, E> {
        let equal = match &mut self.theirs {
            Theirs::Summary(theirs) => {
                let fingerprint = self.hash.finish();
                *theirs == Summary { count: self.count, bytes: self.bytes, fingerprint }
            }
            Theirs::Entries(theirs) => {
                for op in theirs {
                    let Op::Put { key, value } = op else { continue };
                    self.differences += 1;
                    found(Differing { key, kind: DifferenceKind::Missing, value: Some(value), own: None })?;
                }
                self.differences == 0
            }
        };
        Ok(Checked { entries: self.count, bytes: self.bytes, equal })
    }
}

fn put_key<'a>(op: &Op<'a>) -> Option<&'a [u8]> {
    match op {
        Op::Put { key, .. } => Some(key),
        Op::Delete { .. } | Op::DeleteRange { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use replikv_core::{Digest, Epoch, Seq, SourceId};

    fn entries(list: &[(&str, &str)]) -> EncodedOps {
        let mut buffer = BytesMut::new();
        for (key, value) in list {
            Op::Put { key: key.as_bytes(), value: value.as_bytes() }.encode_into(&mut buffer);
        }
        EncodedOps::from_bytes(buffer.freeze()).unwrap()
    }

    fn probed(wants_entries: bool, theirs: &[(&str, &str)]) -> Probed {
        let probe = Probe { range: KeyRange::all(), max_bytes: 1, entries: wants_entries };
        let at = Position {
            source: SourceId::from_bytes([7; 16]),
            epoch: Epoch { number: 1, nonce: 9 },
            seq: Seq::new(3),
            digest: Digest::from_bytes([3; 16]),
        };
        Probed::new(&probe, KeyRange::all(), at, entries(theirs))
    }

    type Found = Vec<(Bytes, DifferenceKind, Option<Bytes>, Option<Bytes>)>;

    // However the slave's own is cut into pages.
    fn check(probed: &Probed, own: &[(&str, &str)], cut: usize) -> (Found, bool) {
        let mut found = Vec::new();
        let mut tell = |differing: Differing<'_>| {
            let (value, own) = (differing.value.map(Bytes::copy_from_slice), differing.own.map(Bytes::copy_from_slice));
            found.push((Bytes::copy_from_slice(differing.key), differing.kind, value, own));
            Ok::<_, ()>(())
        };
        let mut check = ProbeCheck::new(probed);
        for page in [&own[..cut], &own[cut..]] {
            check.push_page(&entries(page), &mut tell).unwrap();
        }
        let checked = check.finish(&mut tell).unwrap();
        assert_eq!(checked.entries, own.len() as u64);
        (found, checked.equal)
    }

    #[test]
    fn each_entry_that_differs_is_told_once_and_in_key_order() {
        let theirs = [("b", "1"), ("c", "1"), ("d", "1"), ("f", ""), ("g", "1")];
        let own = [("a", "1"), ("b", "1"), ("c", "2"), ("e", "1"), ("f", "")];
        let key = |key: &'static str| Bytes::from_static(key.as_bytes());
        let one = Some(key("1"));
        let wanted = vec![
            (key("a"), DifferenceKind::Extra, None, one.clone()),
            (key("c"), DifferenceKind::Value, one.clone(), Some(key("2"))),
            (key("d"), DifferenceKind::Missing, one.clone(), None),
            (key("e"), DifferenceKind::Extra, None, one.clone()),
            (key("g"), DifferenceKind::Missing, one, None),
        ];
        for cut in 0..=own.len() {
            assert_eq!(check(&probed(true, &theirs), &own, cut), (wanted.clone(), false), "cut at {cut}");
            assert_eq!(check(&probed(false, &theirs), &own, cut), (Vec::new(), false), "cut at {cut}");
            assert_eq!(check(&probed(true, &own), &own, cut), (Vec::new(), true), "cut at {cut}");
            assert_eq!(check(&probed(false, &own), &own, cut), (Vec::new(), true), "cut at {cut}");
        }
        assert_eq!(check(&probed(true, &[]), &[], 0), (Vec::new(), true));
        assert!(!check(&probed(false, &[("a", "")]), &[], 0).1);
    }

    #[test]
    fn an_answer_begins_where_the_question_does_and_ends_no_later() {
        let probe = Probe { range: KeyRange::from_bounds("b".."m"), max_bytes: 1, entries: false };
        let answer = |range, entries| Probed { range, ..probed(entries, &[]) };
        assert!(answer(KeyRange::from_bounds("b".."m"), false).answers(&probe));
        assert!(answer(KeyRange::from_bounds("b".."c"), false).answers(&probe));
        assert!(!answer(KeyRange::from_bounds("b".."c"), true).answers(&probe));
        assert!(!answer(KeyRange::from_bounds("b".."n"), false).answers(&probe));
        assert!(!answer(KeyRange::from_bounds("b"..), false).answers(&probe));
        assert!(!answer(KeyRange::from_bounds("c".."m"), false).answers(&probe));
        assert!(!answer(KeyRange::from_bounds("b".."b"), false).answers(&probe));
    }

    #[test]
    fn one_entry_that_differs_is_enough_wherever_it_lies() {
        let theirs = [("b", "1"), ("d", "1"), ("f", "1")];
        for own in [
            &[("d", "1"), ("f", "1")][..],
            &[("b", "1"), ("f", "1")],
            &[("b", "1"), ("d", "1")],
            &[("b", "1"), ("d", "2"), ("f", "1")],
            &[("b", "1"), ("c", "1"), ("d", "1"), ("f", "1")],
            &[("b", "1"), ("d", "1"), ("f", "1"), ("g", "1")],
        ] {
            let (found, equal) = check(&probed(true, &theirs), own, 1);
            assert_eq!((found.len(), equal), (1, false), "{own:?}");
        }
    }

    #[test]
    fn an_answer_counts_for_what_was_read_and_for_what_it_holds() {
        let theirs = [("b", "1"), ("c", "of some length")];
        let len = entries(&theirs).byte_len();
        for (wants_entries, held) in [(false, 0), (true, len)] {
            let range = KeyRange::from_bounds("bound".."m");
            let answer = Probed { range, ..probed(wants_entries, &theirs) };
            assert_eq!((answer.read_bytes(), answer.byte_len()), (len as u64, held + 6));
        }
    }
}
