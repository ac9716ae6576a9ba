//! What the targets share: a short history, and arbitrary pieces that refer to it, so that the fuzzer need not guess
//! digests.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use bytes::{Bytes, BytesMut};
use replikv_core::{Batch, Coverage, Cursor, Digest, EncodedOps, Epoch, KeyRange, Op, Position, SourceId, StoreLimits};
use replikv_proto::{Content, PreparedRecord, Record, RecordDraft, RecordKind, origin};

/// How many records the history has.
pub const RECORDS: usize = 12;
/// The limits of everybody.
pub const LIMITS: StoreLimits = StoreLimits { max_key: 64, max_value: 1 << 16, max_batch: 1 << 20 };
const EPOCH: Epoch = Epoch { number: 1, nonce: 9 };

/// The history that everybody follows.
pub fn source() -> SourceId {
    SourceId::from_bytes([1; 16])
}

static HISTORY: LazyLock<Vec<Record>> = LazyLock::new(|| {
    let mut at = origin(source(), EPOCH);
    let batch = |n: usize| match n % 4 {
        0 => Batch::new().put([b'a' + (n % 16) as u8], [n as u8; 3]),
        1 => Batch::new().delete([b'a' + (n * 3 % 16) as u8]).put("m", "1"),
        2 => Batch::new().delete_range([b'a' + n as u8]..[b'd' + n as u8]),
        _ => Batch::new().note("nothing but a note"),
    };
    let record = |n| {
        let (ops, _, note) = batch(n).into_parts().expect("no key is empty");
        let draft = RecordDraft { epoch: EPOCH, kind: RecordKind::Batch, time: 7, note: &note, body: ops.as_bytes() };
        let prepared = PreparedRecord::after(&at, &draft).expect("it is a short history");
        at = prepared.position();
        let mut bytes = BytesMut::new();
        prepared.append_to(&mut bytes);
        Record::decode(bytes.freeze()).expect("it was just written")
    };
    (0..RECORDS).map(record).collect()
});

/// The record numbered `seq`.
pub fn record(seq: usize) -> &'static Record {
    &HISTORY[seq - 1]
}

/// The position after `seq` records.
pub fn position(seq: usize) -> Position {
    if seq == 0 { origin(source(), EPOCH) } else { record(seq).position() }
}

/// A position that may be of another history.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Place {
    seq: u8,
    odd: u8,
}

impl Place {
    pub fn position(self) -> Position {
        let position = position(usize::from(self.seq) % (RECORDS + 1));
        match self.odd {
            // Most are sound.
            255 => Position { source: SourceId::from_bytes([2; 16]), ..position },
            254 => Position { digest: Digest::from_bytes([9; 16]), ..position },
            253 => Position { seq: replikv_core::Seq::new(u64::MAX), ..position },
            _ => position,
        }
    }
}

/// A range of short keys.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Keys {
    start: u8,
    end: u8,
}

impl Keys {
    pub fn range(self) -> KeyRange {
        KeyRange::new(bound(self.start).unwrap_or_default(), bound(self.end))
    }
}

fn bound(n: u8) -> Option<Bytes> {
    (!n.is_multiple_of(20)).then(|| Bytes::from(vec![b'a' + n % 20]))
}

/// A page, not always one that keeps to its range.
#[derive(Debug, Clone, Arbitrary)]
pub struct Page {
    range: Keys,
    read_at: Place,
    keys: Vec<u8>,
    odd: u8,
}

impl Page {
    /// As it comes.
    pub fn content(&self) -> Content {
        let put = |batch: Batch, key: &u8| batch.put([b'a' + key % 20], [*key]);
        let mut batch = self.keys.iter().take(8).fold(Batch::new(), put);
        if self.odd == 255 {
            batch = batch.delete("m");
        }
        Content { range: self.range.range(), read_at: self.read_at.position(), entries: ops(batch) }
    }

    /// A sound one that continues `coverage`, if anything is left.
    pub fn next(&self, coverage: &Coverage) -> Option<Content> {
        let rest = coverage.rest()?;
        let read_at = position(usize::from(self.read_at.seq) % (RECORDS + 1));
        let end = bound(self.range.end).filter(|end| rest.contains(end) && end > rest.start());
        let range = KeyRange::new(rest.start().clone(), end.or_else(|| rest.end().cloned()));
        let keys: BTreeMap<_, _> = self.keys.iter().take(8).map(|key| ([b'a' + key % 20], [*key])).collect();
        let inside = keys.into_iter().filter(|(key, _)| range.contains(key));
        let entries = ops(inside.fold(Batch::new(), |batch, (key, value)| batch.put(key, value)));
        Some(Content { range, read_at, entries })
    }
}

/// A cursor, in mid copy or not.
#[derive(Debug, Clone, Arbitrary)]
pub struct Stand {
    position: Place,
    copies: Option<(u8, Place)>,
}

impl Stand {
    pub fn cursor(&self) -> Cursor {
        let coverage = match self.copies {
            None => Coverage::default(),
            Some((up_to, read_at)) => {
                let mut coverage = Coverage::begin(KeyRange::all());
                coverage.advance(&KeyRange::new(Bytes::new(), bound(up_to)), read_at.position());
                coverage
            }
        };
        Cursor { position: self.position.position(), coverage }
    }
}

/// Encoded operations.
pub fn ops(batch: Batch) -> EncodedOps {
    batch.into_parts().map(|(ops, ..)| ops).unwrap_or_default()
}

/// What a store does, done to a model.
pub fn change(state: &mut BTreeMap<Vec<u8>, Vec<u8>>, op: Op<'_>) {
    match op {
        Op::Put { key, value } => drop(state.insert(key.to_vec(), value.to_vec())),
        Op::Delete { key } => drop(state.remove(key)),
        Op::DeleteRange { start, end } => {
            state.retain(|key, _| &key[..] < start || end.is_some_and(|end| &key[..] >= end));
        }
    }
}

/// A frame with a right checksum.
pub fn seal(kind: u8, flags: u8, channel: u16, request: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
    frame.extend([kind, flags]);
    frame.extend(channel.to_le_bytes());
    frame.extend(request.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame), payload);
    frame.extend(crc.to_le_bytes());
    frame.extend(payload);
    frame
}

/// At most `max` of them, so that one input stays quick.
pub fn at_most<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>, max: usize) -> arbitrary::Result<Vec<T>> {
    let mut all = Vec::new();
    while all.len() < max && !u.is_empty() {
        all.push(T::arbitrary(u)?);
    }
    Ok(all)
}
