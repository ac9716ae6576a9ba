//! The record: one committed batch, encoded once, chained by digests.
//!
//! The same bytes are stored in the log, kept in the ring of recent records and written to every slave's stream.
//! docs/protocol.md draws them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use replikv_core::{Digest, EncodedOps, Epoch, MAX_NOTE_LEN, Position, Seq, SourceId};
use serde::{Deserialize, Serialize};

/// The format of stored and sent records: their first byte.
pub const RECORD_FORMAT: u8 = 1;

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RecordKind {
    /// A batch that somebody wrote.
    Batch,
    /// The beginning of an epoch.
    Epoch,
    /// The data that was in the store before; what it is, a slave learns by copying.
    Base,
}

/// What a record says of itself: enough to verify its place in the chain without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// The history it belongs to.
    pub source: SourceId,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
    /// When it was committed: milliseconds since the Unix epoch. For lag only; nothing is decided by it.
    pub time: u64,
    /// What it is for.
    pub kind: RecordKind,
    /// The application's note.
    pub note: Bytes,
    /// The length of the body, in bytes.
    pub body_len: usize,
    /// The hash of the body.
    pub body_hash: Digest,
    /// The digest of this record and all before it.
    pub digest: Digest,
}

impl RecordHeader {
    /// The position that is reached with this record.
    pub fn position(&self) -> Position {
        Position { source: self.source, epoch: self.epoch, seq: self.seq, digest: self.digest }
    }

    /// Reads the header at the front of a record. The body is not looked at, and need not be there.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(bytes: &Bytes) -> Result<Self, RecordError> {
        let (wire, _) = read_head(bytes)?;
        Ok(wire.header(wire.body_len()?, bytes.slice_ref(wire.note)))
    }

    /// Takes the header off the front of `buffer`: what it says, and its bytes. What follows it there need not be its body.
    ///
    /// # Errors
    /// [`RecordError`]; `buffer` is unchanged.
    pub(crate) fn take(buffer: &mut Bytes) -> Result<(Self, Bytes), RecordError> {
        let (wire, rest) = read_head(buffer)?;
        let len = buffer.len() - rest.len();
        let header = wire.header(wire.body_len()?, buffer.slice_ref(wire.note));
        Ok((header, buffer.split_to(len)))
    }

    /// Checks that this record follows `before`: same source, next number, an epoch that may follow, and a digest
    /// that continues the chain.
    ///
    /// # Errors
    /// [`RecordError::Chain`] says what does not fit.
    pub fn verify_after(&self, before: &Position) -> Result<(), RecordError> {
        let broken = |what| Err(RecordError::Chain { seq: self.seq, what });
        if self.source != before.source {
            return broken("it belongs to another source");
        }
        if before.seq.next() != Some(self.seq) {
            return broken("its number does not follow");
        }
        let same_epoch = self.epoch == before.epoch;
        let new_epoch = self.kind == RecordKind::Epoch && self.epoch.number > before.epoch.number;
        let first = before.seq == Seq::ZERO;
        if !(same_epoch || new_epoch || first) {
            return broken("its epoch does not follow");
        }
        if self.digest != self.wire().chain(&before.digest) {
            return broken("its digest does not continue the chain");
        }
        Ok(())
    }

    fn wire(&self) -> Wire<'_> {
        Wire {
            source: self.source,
            epoch: self.epoch,
            seq: self.seq,
            time: self.time,
            kind: self.kind,
            note: &self.note,
            body_len: self.body_len as u64,
            body_hash: self.body_hash,
            digest: self.digest,
        }
    }
}

/// The header as it is encoded: postcard, borrowed.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    source: SourceId,
    epoch: Epoch,
    seq: Seq,
    time: u64,
    kind: RecordKind,
    #[serde(borrow, with = "serde_bytes")]
    note: &'a [u8],
    body_len: u64,
    body_hash: Digest,
    digest: Digest,
}

/// A record: its header, its body, and the bytes of both.
#[derive(Debug, Clone)]
pub struct Record {
    header: RecordHeader,
    /// The encoded header.
    head: Bytes,
    body: EncodedOps,
    /// The bytes of both, unless they lie in several buffers and nobody has asked for them in one.
    bytes: OnceLock<Bytes>,
}

/// Records up to this long that lie across two buffers are put together.
const JOINED: usize = 1 << 20;
/// Room for a header without its note. Nearly every one takes less.
const HEAD_LEN: usize = 128;
/// No header is longer: the note, and some numbers.
const MAX_HEAD_LEN: usize = MAX_NOTE_LEN + 256;

impl Record {
    /// Reads exactly one record.
    ///
    /// # Errors
    /// As [`take`](Self::take), and [`RecordError::Malformed`] if bytes are left over.
    pub fn decode(mut bytes: Bytes) -> Result<Self, RecordError> {
        let record = Self::take(&mut bytes)?;
        if bytes.is_empty() { Ok(record) } else { Err(RecordError::Malformed { what: "bytes are left over" }) }
    }

    /// Takes one record off the front of back-to-back records. Its body is checked against its hash; its place in
    /// the chain is not, see [`RecordHeader::verify_after`].
    ///
    /// # Errors
    /// [`RecordError`]; `buffer` is unchanged.
    pub fn take(buffer: &mut Bytes) -> Result<Self, RecordError> {
        let (wire, rest) = read_head(buffer)?;
        let body_len = wire.body_len()?;
        if rest.len() < body_len {
            return Err(malformed("its body is cut"));
        }
        let body_at = buffer.len() - rest.len();
        let header = wire.header(body_len, buffer.slice_ref(wire.note));
        let body = buffer.slice(body_at..body_at + body_len);
        if hash(&body) != header.body_hash {
            return Err(RecordError::Damaged { seq: header.seq });
        }
        let body = EncodedOps::from_bytes(body).map_err(|_| malformed("its body holds no operations"))?;
        let bytes = buffer.split_to(body_at + body_len);
        let head = bytes.slice(..body_at);
        Ok(Self { header, head, body, bytes: bytes.into() })
    }

    /// As [`take`](Self::take), off the front of buffers that follow one another; `None` if nothing is left. What is long
    /// stays in the buffers in which it came.
    ///
    /// # Errors
    /// [`RecordError`]; what is left is of no use.
    pub fn take_across(buffers: &mut VecDeque<Bytes>) -> Result<Option<Self>, RecordError> {
        while buffers.front().is_some_and(Bytes::is_empty) {
            buffers.pop_front();
        }
        let more = buffers.len() > 1;
        let Some(front) = buffers.front_mut() else { return Ok(None) };
        let whole = |bytes: &Bytes| {
            read_head(bytes).is_ok_and(|(wire, rest)| wire.body_len().is_ok_and(|len| len <= rest.len()))
        };
        if !more || whole(front) {
            return Self::take(front).map(Some);
        }
        let head = join(&peek(buffers, MAX_HEAD_LEN));
        let (wire, rest) = read_head(&head)?;
        let body_len = wire.body_len()?;
        let head_len = head.len() - rest.len();
        if body_len <= JOINED {
            let mut joined = join(&split_to(buffers, head_len + body_len)?);
            return Self::take(&mut joined).map(Some);
        }
        // In a buffer of its own, which keeps no other.
        let head = head.slice(..head_len);
        let header = wire.header(body_len, head.slice_ref(wire.note));
        drop(split_to(buffers, head_len)?);
        let body = split_to(buffers, body_len)?;
        let mut hasher = blake3::Hasher::new();
        for segment in &body {
            hasher.update(segment);
        }
        if truncate(&hasher.finalize()) != header.body_hash {
            return Err(RecordError::Damaged { seq: header.seq });
        }
        let body = EncodedOps::from_segments(body).map_err(|_| malformed("its body holds no operations"))?;
        Ok(Some(Self { header, head, body, bytes: OnceLock::new() }))
    }

    /// What it says of itself.
    pub fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// The position that is reached with it.
    pub fn position(&self) -> Position {
        self.header.position()
    }

    /// The whole record, as stored and sent. A long one that came in several buffers is copied into one.
    pub fn bytes(&self) -> &Bytes {
        self.bytes.get_or_init(|| {
            let buffers: Vec<_> = std::iter::once(&self.head).chain(self.body.buffers()).cloned().collect();
            join(&buffers)
        })
    }

    /// The length of the whole record, in bytes.
    pub fn byte_len(&self) -> usize {
        self.head.len() + self.body.byte_len()
    }

    /// What comes before the body.
    pub(crate) fn head(&self) -> &Bytes {
        &self.head
    }

    /// Its operations, sharing the buffer of the record.
    pub fn body(&self) -> &EncodedOps {
        &self.body
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.head == other.head && self.body == other.body
    }
}

impl Eq for Record {}

fn malformed(what: &'static str) -> RecordError {
    RecordError::Malformed { what }
}

fn read_head(bytes: &[u8]) -> Result<(Wire<'_>, &[u8]), RecordError> {
    match bytes.first() {
        Some(&RECORD_FORMAT) => {}
        Some(&found) if found > RECORD_FORMAT => return Err(RecordError::NewerFormat { found }),
        _ => return Err(malformed("it does not begin as a record")),
    }
    let (wire, rest) =
        postcard::take_from_bytes::<Wire<'_>>(&bytes[1..]).map_err(|_| malformed("its header is cut or damaged"))?;
    if wire.note.len() > MAX_NOTE_LEN {
        return Err(malformed("its note is too long"));
    }
    Ok((wire, rest))
}

impl Wire<'_> {
    /// The digest of this record and all before it.
    fn chain(&self, before: &Digest) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(before.as_bytes());
        hasher.update(&self.epoch.number.to_le_bytes());
        hasher.update(&self.epoch.nonce.to_le_bytes());
        hasher.update(&self.seq.as_u64().to_le_bytes());
        hasher.update(&self.time.to_le_bytes());
        hasher.update(&[self.kind as u8]);
        hasher.update(&(self.note.len() as u64).to_le_bytes());
        hasher.update(self.note);
        hasher.update(self.body_hash.as_bytes());
        truncate(&hasher.finalize())
    }

    fn body_len(&self) -> Result<usize, RecordError> {
        usize::try_from(self.body_len).map_err(|_| malformed("its body is too long"))
    }

    fn header(&self, body_len: usize, note: Bytes) -> RecordHeader {
        RecordHeader {
            source: self.source,
            epoch: self.epoch,
            seq: self.seq,
            time: self.time,
            kind: self.kind,
            note,
            body_len,
            body_hash: self.body_hash,
            digest: self.digest,
        }
    }
}

// Up to `len` bytes at the front.
fn peek(buffers: &VecDeque<Bytes>, mut len: usize) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    for buffer in buffers {
        let piece = buffer.slice(..buffer.len().min(len));
        len -= piece.len();
        pieces.push(piece);
        if len == 0 {
            break;
        }
    }
    pieces
}

// Takes `len` bytes off the front.
fn split_to(buffers: &mut VecDeque<Bytes>, len: usize) -> Result<Vec<Bytes>, RecordError> {
    let mut left = len;
    let mut pieces = Vec::new();
    while left > 0 {
        let Some(front) = buffers.front_mut() else { return Err(malformed("its body is cut")) };
        let piece = front.split_to(front.len().min(left));
        left -= piece.len();
        pieces.push(piece);
        if front.is_empty() {
            buffers.pop_front();
        }
    }
    Ok(pieces)
}

fn join(pieces: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}

/// What a new record is made of.
#[derive(Debug, Clone, Copy)]
pub struct RecordDraft<'a> {
    /// The epoch it is written in.
    pub epoch: Epoch,
    /// What it is for.
    pub kind: RecordKind,
    /// When: milliseconds since the Unix epoch.
    pub time: u64,
    /// The application's note; at most [`MAX_NOTE_LEN`] bytes.
    pub note: &'a [u8],
    /// Encoded operations.
    pub body: &'a [u8],
}

/// A record that is about to be written: everything but the body is encoded.
#[derive(Debug)]
pub struct PreparedRecord<'a> {
    position: Position,
    head: Vec<u8>,
    body: &'a [u8],
}

impl<'a> PreparedRecord<'a> {
    /// The record that follows `before`.
    ///
    /// # Errors
    /// [`RecordError::Malformed`] if the note is too long, [`RecordError::Chain`] after the last sequence number.
    pub fn after(before: &Position, draft: &RecordDraft<'a>) -> Result<Self, RecordError> {
        Self::reusing(Vec::new(), before, draft)
    }

    /// As [`after`](Self::after), with its header in `buffer`, whatever was there before.
    pub(crate) fn reusing(
        mut buffer: Vec<u8>,
        before: &Position,
        draft: &RecordDraft<'a>,
    ) -> Result<Self, RecordError> {
        if draft.note.len() > MAX_NOTE_LEN {
            return Err(RecordError::Malformed { what: "its note is too long" });
        }
        let seq = before.seq.next().ok_or(RecordError::Chain { seq: before.seq, what: "no number follows" })?;
        let mut wire = Wire {
            source: before.source,
            epoch: draft.epoch,
            seq,
            time: draft.time,
            kind: draft.kind,
            note: draft.note,
            body_len: draft.body.len() as u64,
            body_hash: hash(draft.body),
            digest: before.digest,
        };
        wire.digest = wire.chain(&before.digest);
        buffer.clear();
        buffer.reserve(HEAD_LEN + draft.note.len());
        buffer.push(RECORD_FORMAT);
        let head = postcard::to_extend(&wire, buffer)
            .map_err(|_| RecordError::Malformed { what: "its header does not encode" })?;
        let position = Position { source: wire.source, epoch: wire.epoch, seq, digest: wire.digest };
        Ok(Self { position, head, body: draft.body })
    }

    /// The buffer of its header, for the next one.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.head
    }

    /// The position that is reached with it.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The length of the whole record, in bytes.
    pub fn byte_len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// What comes before the body.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Appends the whole record, and says where it is in `buffer`.
    pub fn append_to(&self, buffer: &mut BytesMut) -> Range<usize> {
        let start = buffer.len();
        buffer.reserve(self.byte_len());
        buffer.extend_from_slice(&self.head);
        buffer.extend_from_slice(self.body);
        start..buffer.len()
    }
}

/// Where a history begins: sequence number 0, before the first record.
pub fn origin(source: SourceId, epoch: Epoch) -> Position {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"replikv record chain v1");
    hasher.update(source.as_bytes());
    Position { source, epoch, seq: Seq::ZERO, digest: truncate(&hasher.finalize()) }
}

fn hash(bytes: &[u8]) -> Digest {
    truncate(&blake3::hash(bytes))
}

pub(crate) fn truncate(hash: &blake3::Hash) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.as_bytes()[..16]);
    Digest::from_bytes(digest)
}

/// Bytes that are not the record they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// They are no record.
    #[error("not a record: {what}")]
    Malformed {
        /// What was found.
        what: &'static str,
    },
    /// A newer program wrote them.
    #[error("a record of format {found}, this program reads up to {RECORD_FORMAT}")]
    NewerFormat {
        /// The format found.
        found: u8,
    },
    /// The body does not match its hash.
    #[error("record {seq} is damaged: its body does not match its hash")]
    Damaged {
        /// The number that the record names.
        seq: Seq,
    },
    /// It does not continue the history.
    #[error("record {seq} does not continue the history: {what}")]
    Chain {
        /// The number that the record names.
        seq: Seq,
        /// What does not fit.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikv_core::Batch;

    fn history() -> (Position, Bytes, Vec<Position>) {
        let epoch = Epoch { number: 1, nonce: 7 };
        let start = origin(SourceId::from_bytes([3; 16]), epoch);
        let (mut buffer, mut at, mut positions) = (BytesMut::new(), start, Vec::new());
        let body = Batch::new().put("key", "value").delete("old").into_parts().unwrap().0;
        for (time, kind) in [(1, RecordKind::Epoch), (2, RecordKind::Batch), (3, RecordKind::Batch)] {
            let draft = RecordDraft { epoch, kind, time, note: b"note", body: body.as_bytes() };
            let record = PreparedRecord::after(&at, &draft).unwrap();
            record.append_to(&mut buffer);
            at = record.position();
            positions.push(at);
        }
        (start, buffer.freeze(), positions)
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let (mut at, mut bytes, positions) = history();
        for expected in positions {
            let record = Record::take(&mut bytes).unwrap();
            record.header().verify_after(&at).unwrap();
            at = record.position();
            assert_eq!(at, expected);
            assert_eq!(record.body().iter().count(), 2);
            assert_eq!(Record::decode(record.bytes().clone()).unwrap(), record);
        }
        assert!(bytes.is_empty());
    }

    fn taken(buffers: &[&[u8]]) -> Result<Vec<Record>, RecordError> {
        let mut rest: VecDeque<_> = buffers.iter().map(|buffer| Bytes::copy_from_slice(buffer)).collect();
        std::iter::from_fn(|| Record::take_across(&mut rest).transpose()).collect()
    }

    #[test]
    fn records_are_the_same_wherever_their_buffers_end() {
        let (_, bytes, positions) = history();
        for one in 0..=bytes.len() {
            for two in [one, (one + 1).min(bytes.len()), (one + 90).min(bytes.len())] {
                let records = taken(&[&bytes[..one], &bytes[one..two], &bytes[two..]]).unwrap();
                assert_eq!(records.iter().map(Record::position).collect::<Vec<_>>(), positions, "{one}, {two}");
                assert_eq!(records.iter().map(Record::byte_len).sum::<usize>(), bytes.len());
            }
        }
    }

    #[test]
    fn a_long_record_stays_in_its_buffers_and_is_what_it_was() {
        let start = history().0;
        let value: Vec<u8> = (0..3 * JOINED).map(|at| (at >> 9) as u8).collect();
        let batch = Batch::new().put("before", "x").put("key", &value).delete("last");
        let body = batch.into_parts().unwrap().0;
        let epoch = start.epoch;
        let draft = RecordDraft { epoch, kind: RecordKind::Batch, time: 1, note: &[7; 4000], body: body.as_bytes() };
        let mut whole = BytesMut::new();
        PreparedRecord::after(&start, &draft).unwrap().append_to(&mut whole);
        let expected = Record::decode(Bytes::copy_from_slice(&whole)).unwrap();
        for at in [1, 100, 4050, 4200, JOINED, 2 * JOINED + 1, whole.len() - 1] {
            let (one, two) = whole.split_at(at);
            let [record] = &taken(&[one, two]).unwrap()[..] else { panic!("one record") };
            assert_eq!(record.header(), expected.header());
            record.header().verify_after(&start).unwrap();
            assert_eq!(record.byte_len(), whole.len());
            assert_eq!(record.body().is_joined(), at < record.head().len(), "cut at {at}");
            assert!(*record == expected && record.bytes()[..] == whole[..], "cut at {at}");
            // A flipped bit, and an end that is missing.
            let mut damaged = two.to_vec();
            damaged[two.len() / 2] ^= 1;
            assert!(taken(&[one, &damaged]).is_err(), "cut at {at}");
            assert!(taken(&[one, &two[..two.len() - 1]]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let (start, bytes, _) = history();
        let first = Record::take(&mut bytes.clone()).unwrap().bytes().clone();
        for bit in 0..first.len() * 8 {
            let mut damaged = BytesMut::from(&first[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = Record::decode(damaged.freeze());
            assert!(read.and_then(|record| record.header().verify_after(&start)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_record_is_refused() {
        let (_, bytes, _) = history();
        let first = Record::take(&mut bytes.clone()).unwrap().bytes().clone();
        for len in 0..first.len() {
            assert!(Record::decode(first.slice(..len)).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_record_left_out_breaks_the_chain() {
        let (start, mut bytes, positions) = history();
        let first = Record::take(&mut bytes).unwrap();
        let second = Record::take(&mut bytes).unwrap();
        assert!(first.header().verify_after(&start).is_ok());
        assert!(second.header().verify_after(&start).is_err());
        assert!(second.header().verify_after(&Position { digest: positions[2].digest, ..positions[0] }).is_err());
    }

    #[test]
    fn an_epoch_changes_only_with_a_record_that_says_so() {
        let (_, _, positions) = history();
        let at = positions[2];
        let next = Epoch { number: 2, nonce: 1 };
        for (kind, epoch, fits) in [
            (RecordKind::Epoch, next, true),
            (RecordKind::Batch, next, false),
            (RecordKind::Epoch, Epoch { number: 1, nonce: 1 }, false),
        ] {
            let mut buffer = BytesMut::new();
            let draft = RecordDraft { epoch, kind, time: 0, note: b"", body: b"" };
            PreparedRecord::after(&at, &draft).unwrap().append_to(&mut buffer);
            let record = Record::decode(buffer.freeze()).unwrap();
            assert_eq!(record.header().verify_after(&at).is_ok(), fits, "{kind:?} {epoch}");
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        assert_eq!(Record::decode(Bytes::from_static(&[9, 0, 0])), Err(RecordError::NewerFormat { found: 9 }));
        for none in [&[0, 0, 0][..], &[]] {
            assert!(matches!(Record::decode(Bytes::from_static(none)), Err(RecordError::Malformed { .. })), "{none:?}");
        }
    }

    #[test]
    fn records_with_the_same_operations_are_not_the_same_record() {
        let (_, mut bytes, _) = history();
        let [one, two] = [(); 2].map(|()| Record::take(&mut bytes).unwrap());
        assert_eq!(one.body(), two.body());
        assert_ne!(one, two);
    }

    #[test]
    fn a_record_that_lies_in_one_buffer_is_not_copied_and_no_more_is_peeked_at_than_asked_for() {
        let (_, bytes, _) = history();
        let mut buffers = VecDeque::from([bytes.clone(), Bytes::from_static(b"more")]);
        let record = Record::take_across(&mut buffers).unwrap().unwrap();
        assert_eq!(record.bytes().as_ptr(), bytes.as_ptr());
        let buffers = VecDeque::from([bytes.slice(..3), bytes.slice(3..5), bytes.slice(5..)]);
        for len in [2, 3, 4, 7] {
            assert_eq!(join(&peek(&buffers, len)), bytes[..len]);
        }
    }

    #[test]
    fn a_note_has_so_many_bytes_at_most_whoever_wrote_the_record() {
        let (start, ..) = history();
        for (len, fits) in [(MAX_NOTE_LEN, true), (MAX_NOTE_LEN + 1, false), (MAX_NOTE_LEN + 2, false)] {
            let note = vec![7; len];
            let draft = RecordDraft { epoch: start.epoch, kind: RecordKind::Batch, time: 1, note: &note, body: b"" };
            assert_eq!(PreparedRecord::after(&start, &draft).is_ok(), fits, "{len}");
            let (source, epoch, seq, digest) = (start.source, start.epoch, Seq::new(1), start.digest);
            let (kind, body_hash) = (RecordKind::Batch, hash(b""));
            let wire = Wire { source, epoch, seq, time: 1, kind, note: &note, body_len: 0, body_hash, digest };
            let written = Bytes::from(postcard::to_extend(&wire, vec![RECORD_FORMAT]).unwrap());
            assert_eq!(Record::decode(written).is_ok(), fits, "{len}");
        }
    }
}
