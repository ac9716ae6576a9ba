//! Runs and their touches: how they are stored, and what vouches for them.
//!
//! A run lies in the log under the number of its last record, its touches right behind it: one page of a scan, which is
//! of one instant, holds both. docs/protocol.md draws them.

use bytes::{BufMut, Bytes, BytesMut};
use replikv_core::{Digest, EncodedOps, KeyRange, Op, Position, Seq};
use serde::{Deserialize, Serialize};

use super::step::Indexed;
use crate::planted::{self, Bug};

/// The format of a run: its first byte. No record begins with it.
pub const RUN_FORMAT: u8 = 0x81;

/// The length of the key of a touch: the number of its run, and what it is known by.
const TOUCH_KEY_LEN: usize = 24;
/// The length of a hash.
const HASH_LEN: usize = 16;

/// What the records after the run before it, up to its end, came to: how many touches there are, and a sum over them
/// that tells whether all of them are there, as they were written.
///
/// A sum, and not a hash of all of them in a row, because touches leave one by one, each when its key is touched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The last record it stands for.
    pub end: Position,
    /// Bytes of records up to there, as they were written.
    pub log_bytes: u64,
    /// The master's running time when its records were written, or somewhat later; milliseconds.
    pub uptime_ms: u64,
    /// When its last record was committed: milliseconds since the Unix epoch.
    pub time: u64,
    /// How many touches and range deletes there are.
    pub entries: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// The sum of their hashes.
    pub sum: Digest,
}

impl Run {
    /// The stored form: a format byte, postcard, and a hash of both.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = postcard::to_extend(self, vec![RUN_FORMAT]).unwrap_or_default();
        let hash = hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        Bytes::from(bytes)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, under the key that it has in the log.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn from_bytes(seq: Seq, bytes: &[u8]) -> Result<Self, RunError> {
        let damaged = |what| RunError { seq, what };
        let (content, stored) =
            bytes.split_last_chunk::<HASH_LEN>().ok_or_else(|| damaged("it is too short for a run"))?;
        if hash(content).as_bytes() != stored && !planted::is(Bug::RunNotChecked) {
            return Err(damaged("it does not match its hash"));
        }
        let run: Self = match content.split_first() {
            Some((&RUN_FORMAT, rest)) => {
                postcard::from_bytes(rest).map_err(|_| damaged("it does not decode as a run"))?
            }
            _ => return Err(damaged("its format is not known")),
        };
        if run.end.seq == seq { Ok(run) } else { Err(damaged("its key names another number")) }
    }

    /// True if these bytes of the log are a run, and no record.
    pub fn is_run(bytes: &[u8]) -> bool {
        bytes.first() == Some(&RUN_FORMAT)
    }

    pub(super) fn add(&mut self, entry: &Indexed) {
        self.entries += 1;
        self.bytes += entry.len;
        self.sum = Digest::from_bytes(as_number(self.sum).wrapping_add(as_number(entry.sum)).to_le_bytes());
    }

    pub(super) fn remove(&mut self, entry: &Indexed) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.len);
        self.sum = Digest::from_bytes(as_number(self.sum).wrapping_sub(as_number(entry.sum)).to_le_bytes());
    }
}

fn as_number(digest: Digest) -> u128 {
    u128::from_le_bytes(*digest.as_bytes())
}

pub(super) fn hash(bytes: &[u8]) -> Digest {
    let mut digest = [0; HASH_LEN];
    digest.copy_from_slice(&blake3::hash(bytes).as_bytes()[..HASH_LEN]);
    Digest::from_bytes(digest)
}

/// What a touch is known by, wherever it is: the hash of the key, or of the range. Keys can be as long as a store takes
/// them; this always fits.
pub(super) fn id_of(op: &[u8]) -> Digest {
    hash(op)
}

/// Where a touch of a run lies in the log.
pub(super) fn touch_key(run: Seq, id: &Digest) -> [u8; TOUCH_KEY_LEN] {
    let mut key = [0; TOUCH_KEY_LEN];
    key[..8].copy_from_slice(&run.to_key());
    key[8..].copy_from_slice(id.as_bytes());
    key
}

/// The run that a touch belongs to and what it is known by, from its key in the log; `None` for a record or a run.
pub(super) fn from_touch_key(key: &[u8]) -> Option<(Seq, Digest)> {
    let key: &[u8; TOUCH_KEY_LEN] = key.try_into().ok()?;
    let (run, id) = key.split_first_chunk::<8>()?;
    Some((Seq::new(u64::from_be_bytes(*run)), Digest::from_bytes(id.try_into().ok()?)))
}

/// A touch as stored: the number of the record that it comes from, and a delete of the key, or of the range.
pub(super) fn touch_value(seq: Seq, op: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(8 + op.len());
    value.put_u64(seq.as_u64());
    value.put_slice(op);
    value.freeze()
}

/// A stretch of the compacted log, as a slave goes through it: the range deletes, then the keys, whose values are to be
/// looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The last record it stands for.
    pub end: Position,
    /// Ranges that were deleted, in order. They go first: whatever was written into one of them since is touched.
    pub deleted: Vec<KeyRange>,
    /// Keys that were touched, in order. None of them is touched in a later run.
    pub touched: Vec<Bytes>,
}

/// An entry of the compacted log, for those who look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunPart {
    /// A key was touched: its value is whatever it is now.
    Touched(Bytes),
    /// A range was deleted.
    Deleted(KeyRange),
}

/// Reads whole runs off the front of a page of the log, up to `max_bytes` of touches but one run at least, and leaves
/// out what belongs to records up to `after`. `complete`: nothing follows the page.
///
/// `Ok(None)` if the page holds no whole run: read a longer one.
///
/// # Errors
/// [`RunError`] if the first of them is damaged. A later one ends the stretch before it.
pub fn read_stretch(
    page: impl IntoIterator<Item = (Bytes, Bytes)>,
    complete: bool,
    after: Seq,
    max_bytes: usize,
) -> Result<Option<Stretch>, RunError> {
    let mut found: Option<Stretch> = None;
    let (mut deleted, mut bytes) = (Vec::new(), 0);
    let mut entries = page.into_iter().peekable();
    while let Some((key, value)) = entries.next_if(|(_, value)| Run::is_run(value)) {
        let whole = read_run(&key, &value, &mut entries, complete);
        let WholeRun { run, touched } = match (whole, &found) {
            (Ok(Some(whole)), _) => whole,
            (Ok(None), _) | (Err(_), Some(_)) => break,
            (Err(error), None) => return Err(error),
        };
        let stretch = found.get_or_insert_with(|| Stretch { end: run.end, deleted: Vec::new(), touched: Vec::new() });
        stretch.end = run.end;
        bytes += usize::try_from(run.bytes).unwrap_or(usize::MAX);
        for (seq, part) in touched.into_iter().filter(|(seq, _)| *seq > after) {
            match part {
                RunPart::Touched(key) => stretch.touched.push(key),
                RunPart::Deleted(range) => deleted.push((seq, range)),
            }
        }
        if bytes >= max_bytes {
            break;
        }
    }
    if let Some(stretch) = &mut found {
        deleted.sort_by(|(a, left), (b, right)| (a, left.start()).cmp(&(b, right.start())));
        stretch.deleted = deleted.into_iter().map(|(_, range)| range).collect();
        stretch.touched.sort_unstable();
    }
    Ok(found)
}

/// A run with its touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeRun {
    /// The run.
    pub run: Run,
    /// What was touched, each with the number of the record that it comes from, in no particular order.
    pub touched: Vec<(Seq, RunPart)>,
}

impl Run {
    /// Reads the run that a page of the log begins with. `complete`: nothing follows the page. `Ok(None)` if the page ends
    /// before the run does.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn read(page: impl IntoIterator<Item = (Bytes, Bytes)>, complete: bool) -> Result<Option<WholeRun>, RunError> {
        let mut entries = page.into_iter().peekable();
        match entries.next() {
            Some((key, value)) => read_run(&key, &value, &mut entries, complete),
            None => Ok(None),
        }
    }
}

// The run under `key`, with all of its touches; `None` if the page ends before they do.
fn read_run(
    key: &[u8],
    value: &[u8],
    entries: &mut std::iter::Peekable<impl Iterator<Item = (Bytes, Bytes)>>,
    complete: bool,
) -> Result<Option<WholeRun>, RunError> {
    let seq = Seq::from_key(key).unwrap_or_default();
    let run = Run::from_bytes(seq, value)?;
    let mut counted = Run { entries: 0, bytes: 0, sum: Digest::from_bytes([0; HASH_LEN]), ..run };
    let mut touches = Vec::new();
    while let Some((_, value)) = entries.next_if(|(key, _)| from_touch_key(key).is_some_and(|(run, _)| run == seq)) {
        counted.add(&Indexed::new(seq, &value));
        touches.extend(decode_touch(&value));
    }
    if entries.peek().is_none() && !complete {
        return Ok(None);
    }
    let whole = counted == run && touches.len() as u64 == run.entries;
    if !whole && !planted::is(Bug::RunNotChecked) {
        return Err(RunError { seq, what: "its touches are not those that were written" });
    }
    Ok(Some(WholeRun { run, touched: touches }))
}

fn decode_touch(value: &Bytes) -> Option<(Seq, RunPart)> {
    let seq = Seq::new(u64::from_be_bytes(*value.first_chunk()?));
    let ops = EncodedOps::from_bytes(value.slice(8..)).ok()?;
    let part = match ops.iter().next()? {
        Op::Delete { key } => RunPart::Touched(value.slice_ref(key)),
        Op::DeleteRange { start, end } => {
            RunPart::Deleted(KeyRange::new(value.slice_ref(start), end.map(|end| value.slice_ref(end))))
        }
        Op::Put { .. } => return None,
    };
    Some((seq, part))
}

/// A stored run that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run of the log that ends with record {seq} is damaged: {what}")]
pub struct RunError {
    /// The number that its key names.
    pub seq: Seq,
    /// What was found.
    pub what: &'static str,
}
