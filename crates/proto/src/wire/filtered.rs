//! Records as a slave that subscribes to key ranges gets them: headers, and what of their operations lies within.

use bytes::{BufMut, Bytes, BytesMut};
use replikv_core::{Digest, EncodedOps, KeyRanges, Position};
use serde::{Deserialize, Serialize};

use super::message::PAYLOAD;
use crate::planted::{self, Bug};
use crate::{Record, RecordError, RecordHeader};

/// Passages of the history, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filtered {
    /// Each begins where the one before it ends.
    pub passages: Vec<Passage>,
}

/// A part of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// One record.
    Share(Share),
    /// Records of which nothing lies in the ranges.
    Skipped(Skipped),
}

/// A record's header, and those of its operations that lie in the ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    header: RecordHeader,
    /// The encoded header.
    head: Bytes,
    sum: Digest,
    ops: EncodedOps,
}

/// A run of records of which nothing lies in the ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The last one.
    pub through: Position,
    /// How many bytes they have in the log.
    pub log_bytes: u64,
    /// When the last one was committed: milliseconds since the Unix epoch.
    pub time: u64,
}

/// A message that is longer than this takes no more passages: only the last ones of a message lie in more than one buffer.
pub(crate) const LONG: usize = 1 << 20;

impl Share {
    /// What of `record` lies in `ranges`.
    pub fn of(record: &Record, ranges: &KeyRanges) -> Self {
        let ops = match planted::is(Bug::FilterForgotten) {
            true => record.body().clone(),
            false => record.body().within(ranges),
        };
        let (header, head) = (record.header().clone(), record.head().clone());
        let sum = sum(&head, &ops);
        Self { header, head, sum, ops }
    }

    /// What the record says of itself. The hash of its body is that of all of it.
    pub fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// Those of its operations that lie in the ranges.
    pub fn ops(&self) -> &EncodedOps {
        &self.ops
    }

    /// Those of its operations that lie in the ranges.
    pub fn into_ops(self) -> EncodedOps {
        self.ops
    }

    /// How many bytes the whole record has.
    pub fn log_bytes(&self) -> u64 {
        self.head.len().saturating_add(self.header.body_len) as u64
    }

    /// Checks the operations against their sum.
    ///
    /// # Errors
    /// [`RecordError::Damaged`].
    pub fn verify(&self) -> Result<(), RecordError> {
        if sum(&self.head, &self.ops) == self.sum { Ok(()) } else { Err(RecordError::Damaged { seq: self.header.seq }) }
    }

    pub(crate) fn head(&self) -> &Bytes {
        &self.head
    }
}

impl Passage {
    /// How long it is on the wire, about.
    pub(crate) fn byte_len(&self) -> usize {
        match self {
            Self::Share(share) => share.head.len() + share.ops.byte_len() + 32,
            Self::Skipped(_) => 64,
        }
    }
}

// Bound to the record: what belongs to one is not taken for another's.
fn sum(head: &Bytes, ops: &EncodedOps) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"replikv filtered record v1");
    hasher.update(&(head.len() as u64).to_le_bytes());
    hasher.update(head);
    for buffer in ops.buffers() {
        hasher.update(buffer);
    }
    crate::record::truncate(&hasher.finalize())
}

#[derive(Serialize, Deserialize)]
struct Kept {
    sum: Digest,
    len: u64,
}

pub(super) fn to_payload(filtered: &Filtered) -> Result<Vec<Bytes>, postcard::Error> {
    let mut parts = Vec::new();
    let mut buffer = BytesMut::from(&[PAYLOAD][..]);
    for passage in &filtered.passages {
        match passage {
            Passage::Share(share) => {
                buffer.put_u8(0);
                buffer.put_slice(&share.head);
                let kept = Kept { sum: share.sum, len: share.ops.byte_len() as u64 };
                buffer = postcard::to_extend(&kept, buffer)?;
                if share.ops.byte_len() <= LONG {
                    buffer.put_slice(share.ops.as_bytes());
                } else {
                    parts.push(buffer.split().freeze());
                    parts.extend(share.ops.buffers().cloned());
                }
            }
            Passage::Skipped(run) => {
                buffer.put_u8(1);
                buffer = postcard::to_extend(run, buffer)?;
            }
        }
    }
    if !buffer.is_empty() {
        parts.push(buffer.freeze());
    }
    Ok(parts)
}

pub(super) fn from_payload(segments: Vec<Bytes>) -> Result<Filtered, &'static str> {
    let mut segments = segments.into_iter();
    let mut rest = segments.next().unwrap_or_default();
    let mut more: Vec<Bytes> = segments.collect();
    match take_byte(&mut rest) {
        None => return Err("its payload is empty"),
        // Nobody can tell where a longer header ends.
        Some(version) if version != PAYLOAD => return Err("its payload has another version"),
        Some(_) => {}
    }
    let mut passages = Vec::new();
    while let Some(kind) = take_byte(&mut rest) {
        passages.push(match kind {
            0 => Passage::Share(share(&mut rest, &mut more)?),
            1 => Passage::Skipped(take(&mut rest)?),
            _ => return Err("a passage is of an unknown kind"),
        });
    }
    if passages.is_empty() || !more.is_empty() {
        return Err("its passages are cut, or bytes are left over in its payload");
    }
    Ok(Filtered { passages })
}

fn share(rest: &mut Bytes, more: &mut Vec<Bytes>) -> Result<Share, &'static str> {
    let (header, head) = RecordHeader::take(rest).map_err(|_| "the header of a record is malformed")?;
    let Kept { sum, len } = take(rest)?;
    let len = usize::try_from(len).map_err(|_| "its operations are too long")?;
    let malformed = |_| "its operations are malformed";
    let ops = if len <= rest.len() {
        EncodedOps::from_bytes(rest.split_to(len)).map_err(malformed)?
    } else {
        // The last one, and it is all that is left.
        let segments: Vec<Bytes> = std::iter::once(std::mem::take(rest)).chain(more.drain(..)).collect();
        if segments.iter().map(Bytes::len).sum::<usize>() != len {
            return Err("its operations are cut");
        }
        EncodedOps::from_segments(segments).map_err(malformed)?
    };
    Ok(Share { header, head, sum, ops })
}

fn take_byte(rest: &mut Bytes) -> Option<u8> {
    let byte = rest.first().copied()?;
    drop(rest.split_to(1));
    Some(byte)
}

fn take<T: serde::de::DeserializeOwned>(rest: &mut Bytes) -> Result<T, &'static str> {
    let (value, left) = postcard::take_from_bytes(rest).map_err(|_| "its payload does not decode")?;
    let taken = rest.len() - left.len();
    drop(rest.split_to(taken));
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PreparedRecord, RecordDraft, RecordKind, origin};
    use replikv_core::{Batch, Epoch, KeyRange, SourceId};

    fn ranges() -> KeyRanges {
        KeyRanges::new([KeyRange::prefix("a"), KeyRange::prefix("m")])
    }

    fn start() -> Position {
        origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 2 })
    }

    fn filtered(batches: Vec<Batch>) -> Filtered {
        let mut before = start();
        let share = |batch: Batch| {
            let body = batch.into_parts().unwrap().0;
            let (epoch, kind) = (before.epoch, RecordKind::Batch);
            let draft = RecordDraft { epoch, kind, time: 7, note: b"", body: body.as_bytes() };
            let record = PreparedRecord::after(&before, &draft).unwrap();
            before = record.position();
            let mut bytes = BytesMut::new();
            record.append_to(&mut bytes);
            Passage::Share(Share::of(&Record::decode(bytes.freeze()).unwrap(), &ranges()))
        };
        Filtered { passages: batches.into_iter().map(share).collect() }
    }

    fn is_taken(filtered: Filtered) -> bool {
        crate::filter::verify(&ranges(), &mut start(), filtered).is_ok()
    }

    #[test]
    fn every_bit_of_a_filtered_record_is_held() {
        let message = filtered(vec![Batch::new().put("apple", "1").put("quiet", "1"), Batch::new().put("quiet", "1")]);
        let [payload] = &to_payload(&message).unwrap()[..] else { panic!("one buffer") };
        assert_eq!(from_payload(vec![payload.clone()]), Ok(message.clone()));
        assert!(is_taken(message.clone()));
        for bit in 0..payload.len() * 8 {
            let mut bytes = payload.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(flipped) = from_payload(vec![bytes.into()]) {
                assert!(!is_taken(flipped), "bit {bit} is flipped, and taken");
            }
        }
        for len in 0..payload.len() {
            let cut = from_payload(vec![payload.slice(..len)]);
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.passages.len() < 2), "cut at {len}");
        }
    }

    #[test]
    fn operations_in_several_buffers_end_their_message() {
        let message = filtered(vec![Batch::new().put("apple", vec![7; 3 << 20]).put("quiet", "1")]);
        let bytes = Bytes::from(to_payload(&message).unwrap().concat());
        for cut in [1_000_000, 2_000_000] {
            let segments = vec![bytes.slice(..cut), bytes.slice(cut..)];
            assert_eq!(from_payload(segments), Ok(message.clone()));
            let short = vec![bytes.slice(..cut), bytes.slice(cut..bytes.len() - 1)];
            assert!(from_payload(short).is_err());
        }
    }

    #[test]
    fn a_passage_counts_for_about_as_much_as_it_takes_on_the_wire() {
        let run = Passage::Skipped(Skipped { through: start(), log_bytes: u64::MAX, time: u64::MAX });
        let batches = [0, 1, 100, 3 << 20].map(|len| Batch::new().put("apple", vec![7; len]));
        let none = filtered(vec![Batch::new().put("quiet", "1")]).passages;
        for passage in filtered(batches.into()).passages.into_iter().chain(none).chain([run]) {
            let about = passage.byte_len();
            let parts = to_payload(&Filtered { passages: vec![passage] }).unwrap();
            let wire: usize = parts.iter().map(Bytes::len).sum();
            assert!(about.abs_diff(wire) < 24, "{about} for {wire}");
        }
    }

    #[test]
    fn a_message_holds_a_passage_at_least_and_nothing_after_the_last() {
        assert!(from_payload(vec![Bytes::from_static(&[PAYLOAD])]).is_err());
        let [payload] = &to_payload(&filtered(vec![Batch::new().put("apple", "1")])).unwrap()[..] else { panic!() };
        assert!(from_payload(vec![payload.clone(), Bytes::from_static(b"more")]).is_err());
    }
}
