//! The messages, and their payloads.
//!
//! Control payloads are a version byte and postcard; a newer version may append fields, which are skipped. `Records`
//! is records as stored, back to back; `Ranges` is a small header and a page's entries as they are, of exactly this
//! version.

use bytes::{Bytes, BytesMut};
use replikv_core::{Cursor, EncodedOps, Epoch, KeyRange, Position, Seq, SourceId, StoreLimits};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::compare;
use super::filtered::{self, Filtered, Passage};
use super::reads::{self, Answered, Lag, RequestBody};
use crate::{Compare, Compared, Held, OnDivergence, Probe, Probed, Summary};

/// What master and slave say to each other.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Message {
    /// Slave: who it is and where it stands.
    Hello(Hello),
    /// Either: prove who you are. Reserved for authentication; opaque.
    Challenge(Bytes),
    /// Either: the proof. Opaque.
    Auth(Bytes),
    /// Master: how the slave is served.
    Welcome(Welcome),
    /// Master: why it is not.
    Reject(Reject),
    /// Master: records.
    Records(Records),
    /// Slave: how far it is.
    Ack(Ack),
    /// Either: a sign of life, with positions.
    Heartbeat(Heartbeat),
    /// Slave: what it holds in ranges that may differ.
    Compare(Compare),
    /// Master: the content of a range.
    Ranges(Content),
    /// Either: a question.
    Request(Request),
    /// Either: the answer.
    Response(Response),
    /// Either: an orderly end.
    Goodbye(Goodbye),
    /// Master: which of these ranges are equal, and which are to be asked again in pieces.
    Compared(Compared),
    /// Slave: what does a range hold, at one point of the history? Only to a master whose welcome says that it answers.
    Probe(Probe),
    /// Master: what it held there. Sent before the record that comes after that point.
    Probed(Probed),
    /// Master: what keys hold that were touched in a stretch of the log which is compacted.
    Touched(Touched),
    /// Either: what a read came to.
    Answered(Answered),
    /// Master: records, to a slave that subscribes to key ranges.
    Filtered(Filtered),
}

/// Who a slave is, where it stands, what it can hold and what it wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Its name: 1 to 128 bytes, no control characters.
    pub slave: String,
    /// Drawn when the slave was opened: tells a reconnect from a second slave of that name.
    pub nonce: u64,
    /// Its cursor, if it ever followed.
    pub cursor: Option<Cursor>,
    /// Whether its store holds data.
    pub holds_data: bool,
    /// Points that its history passed through, oldest first; at most 64.
    pub checkpoints: Vec<Position>,
    /// What its store can hold.
    pub limits: StoreLimits,
    /// The key ranges it wants; empty for all.
    pub ranges: Vec<KeyRange>,
    /// Not used: empty. Whether it would follow itself is told by its nonce, and the path of the welcome.
    pub path: Vec<String>,
    /// Whether it comes once, and nothing is to be kept for it when it is gone.
    pub temporary: bool,
    /// What it does if its history has parted from the master's. Told only if that is not to be refused: appended then,
    /// as a newer version does, so that a master that does not know it skips it, and refuses.
    #[serde(skip)]
    pub on_divergence: OnDivergence,
}

/// Where an epoch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first record.
    pub first: Seq,
}

/// How a slave is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The history.
    pub source: SourceId,
    /// Its epochs, oldest first.
    pub epochs: Vec<EpochStart>,
    /// The last published record.
    pub head: Position,
    /// Records after this one are in the log.
    pub floor: Position,
    /// What the slave must be able to hold.
    pub limits: StoreLimits,
    /// What the slave is to do.
    pub mode: Mode,
    /// How often each side is heard of, at least; milliseconds.
    pub heartbeat_ms: u32,
    /// Bytes of records ever published.
    pub log_bytes: u64,
    /// Of these, bytes that lie after the slave's position, as far as the master can tell.
    pub behind_bytes: u64,
    /// Points of the history that the content to come stands on, oldest first; at most 64. A slave that copies or
    /// compares keeps them: later they prove where it comes from. Empty in other modes.
    pub checkpoints: Vec<Position>,
    /// Whether the master answers [`Probe`]s. Told by the version of the payload, so that a
    /// slave that does not know it reads on as before.
    #[serde(skip)]
    pub verifies: bool,
    /// The relays from the one right below the master down to this one; empty if this is the master. Told only then, and
    /// appended, as a newer version does: a slave that does not know it serves nobody, and skips it.
    #[serde(skip)]
    pub path: Vec<PathNode>,
}

/// A relay on the way from the master to a slave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathNode {
    /// Its name, as its own parent knows it.
    pub name: String,
    /// Drawn when it was opened: the nonce of its hello. Names may be used twice in a tree, these are not.
    pub nonce: u64,
}

/// What a slave is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Mode {
    /// Go on from its cursor; from the floor, if it has none. An unfinished copy goes on as well.
    Resume,
    /// Copy everything; records follow from here on.
    Copy {
        /// The position that the stream of records begins after.
        from: Position,
    },
    /// Compare ranges of what it holds with the master; records follow from here on. What is equal is kept.
    Compare {
        /// The position that the stream of records begins after.
        from: Position,
    },
    /// Wait until the master, a relay that is behind the slave, has caught up: another welcome or a reject follows.
    Wait,
    /// Their histories have parted, and the slave's owner has asked for this: as `Compare`, and the slave quarantines
    /// what it loses.
    Resync {
        /// The position that the stream of records begins after. It may lie before the slave's.
        from: Position,
        /// Why the slave would be refused.
        reason: RejectCode,
        /// The newest of the slave's checkpoints that lies in the history.
        ancestor: Option<Position>,
    },
}

impl Mode {
    /// Where the stream of records begins, if content comes with it.
    pub fn from(&self) -> Option<Position> {
        match self {
            Self::Copy { from } | Self::Compare { from } | Self::Resync { from, .. } => Some(*from),
            Self::Resume | Self::Wait => None,
        }
    }
}

/// Why a slave is not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The kind.
    pub code: RejectCode,
    /// In words.
    pub words: String,
    /// Whether the same attempt may succeed later.
    pub retry: bool,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RejectCode {
    /// The slave follows another source.
    ForeignSource,
    /// The slave's position is not in the master's history.
    Diverged,
    /// The slave's position lies after the master's last record.
    SlaveAhead,
    /// The slave holds data that came from no master.
    DataWithoutCursor,
    /// What the slave missed is no longer in the log; only a comparison could tell what differs.
    NeedsCompare,
    /// The slave's store cannot hold what the master accepts.
    LimitsTooSmall,
    /// Too many sessions, or the master is not ready.
    Busy,
    /// Something was asked for that this version does not do.
    Unsupported,
    /// The slave's hello makes no sense.
    Malformed,
    /// The master shuts down.
    Closing,
    /// Another slave of the same name has connected.
    DuplicateSlave,
    /// The slave has been in a newer epoch of this history: this master's time is over.
    Superseded,
    /// The slave is above the relay that it wants to follow, or so far below the master that it must be.
    Loop,
    /// The slave is fenced: it has promised to follow nobody of an epoch before one that is to begin. No master says so.
    Fenced,
}

/// Records, back to back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The buffers, which follow one another: a record may begin in one and end in the next.
    pub parts: Vec<Bytes>,
}

/// How far a slave is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The last record that is readable.
    pub applied: Seq,
    /// The last record on stable storage.
    pub durable: Seq,
    /// Whether its data is a state of the master.
    pub consistent: bool,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Heartbeat {
    /// The master's.
    Source {
        /// The last published record.
        head: Position,
        /// Bytes of records ever published.
        log_bytes: u64,
        /// Its wall clock; milliseconds since the Unix epoch.
        time: u64,
    },
    /// The slave's: as [`Ack`].
    Follower {
        /// The last record that is readable.
        applied: Seq,
        /// The last record on stable storage.
        durable: Seq,
        /// Whether its data is a state of the master.
        consistent: bool,
    },
    /// A relay's, to its slaves: as the master's, and how far it is behind itself.
    Relay {
        /// The last record that it serves.
        head: Position,
        /// Bytes of records ever published.
        log_bytes: u64,
        /// Its wall clock; milliseconds since the Unix epoch.
        time: u64,
        /// What it knows of the master.
        above: Above,
    },
}

/// What a relay knows of the master, at the moment at which it says so: a slave below it is no nearer to the master than that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Above {
    /// How far it is behind; `None` if nobody is there who could tell.
    pub lag: Option<Lag>,
    /// Milliseconds since anything was heard of the master; `None` if nothing ever was.
    pub silence_ms: Option<u64>,
}

/// The content of a range: the slave replaces what it holds there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The keys.
    pub range: KeyRange,
    /// The last record that the master had handed to its store when the range had been read.
    pub read_at: Position,
    /// The entries, as puts in key order.
    pub entries: EncodedOps,
}

/// What keys hold now that were touched in a stretch of the log whose records are no longer there in full.
///
/// It is newer than the records around it: a slave that has applied it is consistent again once it has gone through
/// `read_at`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The last record that the master had handed to its store when the values had been read.
    pub read_at: Position,
    /// The last record of the stretch, with the last message of it: the slave goes on from there.
    pub end: Option<Position>,
    /// Range deletes of the stretch first, then a put or a delete for each touched key.
    pub ops: EncodedOps,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Repeated in the answer.
    pub id: u32,
    /// What is asked.
    pub body: RequestBody,
}

/// An answer that is no read's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The id of the question.
    pub id: u32,
    /// The answer, or why there is none.
    pub body: Result<Bytes, String>,
}

/// An orderly end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The kind.
    pub reason: GoodbyeReason,
    /// In words.
    pub words: String,
}

/// Kinds of orderly ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GoodbyeReason {
    /// It shuts down.
    Closing,
    /// The log was trimmed past the slave. Connect again, and be told what to do.
    Trimmed,
    /// Another slave of the same name took the place of this one, which must not connect again.
    Replaced,
    /// It does not accept what the other side offers.
    Refused,
}

/// The version of every control payload.
pub(super) const PAYLOAD: u8 = 1;
/// The version of a hello that says what to do on divergence.
const HELLO_ON_DIVERGENCE: u8 = 2;
/// The version of a welcome that says that probes are answered.
const WELCOME_VERIFIES: u8 = 2;
/// The version of a welcome of a relay, which names its path.
const WELCOME_PATH: u8 = 3;

#[derive(Serialize, Deserialize)]
struct ContentHeader {
    range: KeyRange,
    read_at: Position,
}

/// What comes before the entries, if there are any.
#[derive(Serialize, Deserialize)]
struct ProbedHeader {
    range: KeyRange,
    at: Position,
    summary: Option<Summary>,
}

#[derive(Serialize, Deserialize)]
struct TouchedHeader {
    read_at: Position,
    end: Option<Position>,
}

impl Message {
    /// Its name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Challenge(_) => "challenge",
            Self::Auth(_) => "auth",
            Self::Welcome(_) => "welcome",
            Self::Reject(_) => "reject",
            Self::Records(_) => "records",
            Self::Ack(_) => "ack",
            Self::Heartbeat(_) => "heartbeat",
            Self::Compare(_) => "compare",
            Self::Ranges(_) => "ranges",
            Self::Request(_) => "request",
            Self::Response(_) => "response",
            Self::Goodbye(_) => "goodbye",
            Self::Compared(_) => "compared",
            Self::Probe(_) => "probe",
            Self::Probed(_) => "probed",
            Self::Touched(_) => "touched",
            Self::Answered(_) => "answered",
            Self::Filtered(_) => "filtered records",
        }
    }

    /// Its kind on the wire.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Challenge(_) => 2,
            Self::Auth(_) => 3,
            Self::Welcome(_) => 4,
            Self::Reject(_) => 5,
            Self::Records(_) => KIND_RECORDS,
            Self::Ack(_) => 7,
            Self::Heartbeat(_) => 8,
            Self::Compare(_) => 9,
            Self::Ranges(_) => KIND_RANGES,
            Self::Request(_) => 11,
            Self::Response(_) => 12,
            Self::Goodbye(_) => 13,
            Self::Compared(_) => 14,
            Self::Touched(_) => KIND_TOUCHED,
            Self::Probe(_) => 16,
            Self::Probed(_) => KIND_PROBED,
            Self::Answered(_) => KIND_ANSWERED,
            Self::Filtered(_) => KIND_FILTERED,
        }
    }

    pub(super) fn request_id(&self) -> u32 {
        match self {
            Self::Request(Request { id, .. })
            | Self::Response(Response { id, .. })
            | Self::Answered(Answered { id, .. }) => *id,
            _ => 0,
        }
    }

    /// How many bytes of it are of a store, about: what decides how much of it a peer must be able to take.
    pub(crate) fn data_len(&self) -> usize {
        match self {
            Self::Records(records) => records.parts.iter().map(Bytes::len).sum(),
            Self::Ranges(content) => content.entries.byte_len(),
            Self::Touched(touched) => touched.ops.byte_len(),
            Self::Probed(Probed { held: Held::Entries(entries), .. }) => entries.byte_len(),
            Self::Filtered(filtered) => filtered.passages.iter().map(Passage::byte_len).sum(),
            _ => 0,
        }
    }

    /// Its payload, in parts that follow one another.
    pub(crate) fn payload(&self) -> Result<Vec<Bytes>, postcard::Error> {
        Ok(match self {
            Self::Hello(hello) => vec![hello_payload(hello)?],
            Self::Welcome(welcome) => vec![welcome_payload(welcome)?],
            Self::Reject(reject) => vec![control(reject)?],
            Self::Ack(ack) => vec![control(ack)?],
            Self::Heartbeat(heartbeat) => vec![control(heartbeat)?],
            Self::Goodbye(goodbye) => vec![control(goodbye)?],
            Self::Request(request) => vec![reads::request_payload(&request.body)?],
            Self::Response(response) => vec![control(&response.body)?],
            Self::Compare(compare) => vec![compare::to_payload(compare)?],
            Self::Compared(compared) => vec![control(compared)?],
            Self::Probe(probe) => vec![control(probe)?],
            Self::Challenge(bytes) | Self::Auth(bytes) => vec![bytes.clone()],
            Self::Records(records) => records.parts.clone(),
            Self::Ranges(content) => {
                let header = ContentHeader { range: content.range.clone(), read_at: content.read_at };
                std::iter::once(control(&header)?).chain(content.entries.buffers().cloned()).collect()
            }
            Self::Probed(Probed { range, at, held }) => {
                let (summary, entries) = match held {
                    Held::Summary(summary) => (Some(*summary), None),
                    Held::Entries(entries) => (None, Some(entries)),
                };
                let header = ProbedHeader { range: range.clone(), at: *at, summary };
                let entries = entries.into_iter().flat_map(EncodedOps::buffers).cloned();
                std::iter::once(control(&header)?).chain(entries).collect()
            }
            Self::Touched(touched) => {
                let header = TouchedHeader { read_at: touched.read_at, end: touched.end };
                vec![control(&header)?, touched.ops.as_bytes().clone()]
            }
            Self::Answered(answered) => reads::answered_payload(&answered.body)?,
            Self::Filtered(filtered) => filtered::to_payload(filtered)?,
        })
    }

    /// Reads a payload, which is in more than one buffer if it is long; `Ok(None)` if the kind is not known.
    pub(super) fn from_payload(kind: u8, request: u32, segments: Vec<Bytes>) -> Result<Option<Self>, &'static str> {
        match kind {
            KIND_RECORDS => return Ok(Some(Self::Records(Records { parts: segments }))),
            KIND_RANGES => return Ok(Some(Self::Ranges(content(segments)?))),
            KIND_PROBED => return Ok(Some(Self::Probed(probed(segments)?))),
            KIND_FILTERED => return Ok(Some(Self::Filtered(filtered::from_payload(segments)?))),
            KIND_ANSWERED => {
                let body = reads::parse_answered(segments)?;
                return Ok(Some(Self::Answered(Answered { id: request, body })));
            }
            _ => {}
        }
        let payload = super::encoder::join(segments);
        Ok(Some(match kind {
            1 => Self::Hello(parse_hello(&payload)?),
            2 => Self::Challenge(payload),
            3 => Self::Auth(payload),
            4 => Self::Welcome(parse_welcome(&payload)?),
            5 => Self::Reject(parse(&payload)?),
            7 => Self::Ack(parse(&payload)?),
            8 => Self::Heartbeat(parse(&payload)?),
            9 => Self::Compare(compare::from_payload(&payload)?),
            11 => Self::Request(Request { id: request, body: reads::parse_request(&payload)? }),
            12 => Self::Response(Response { id: request, body: parse(&payload)? }),
            13 => Self::Goodbye(parse(&payload)?),
            14 => Self::Compared(parse(&payload)?),
            KIND_TOUCHED => Self::Touched(touched(&payload)?),
            16 => Self::Probe(parse(&payload)?),
            _ => return Ok(None),
        }))
    }
}

const KIND_RECORDS: u8 = 6;
const KIND_RANGES: u8 = 10;
const KIND_TOUCHED: u8 = 15;
const KIND_PROBED: u8 = 17;
const KIND_ANSWERED: u8 = 18;
const KIND_FILTERED: u8 = 19;

/// True for kinds whose payload is data: as large as batches are.
pub(super) fn carries_data(kind: u8) -> bool {
    // A response carries as much as was asked for.
    matches!(kind, KIND_RECORDS | KIND_RANGES | KIND_TOUCHED | KIND_PROBED | KIND_ANSWERED | KIND_FILTERED | 12)
}

pub(super) fn control<T: Serialize>(payload: &T) -> Result<Bytes, postcard::Error> {
    postcard::to_extend(payload, BytesMut::from(&[PAYLOAD][..])).map(BytesMut::freeze)
}

fn hello_payload(hello: &Hello) -> Result<Bytes, postcard::Error> {
    if hello.on_divergence == OnDivergence::Refuse {
        return control(hello);
    }
    let payload = BytesMut::from(&[HELLO_ON_DIVERGENCE][..]);
    postcard::to_extend(&(hello, hello.on_divergence), payload).map(BytesMut::freeze)
}

fn parse_hello(payload: &[u8]) -> Result<Hello, &'static str> {
    let (version, mut hello, rest): (_, Hello, _) = parse_head(payload)?;
    match (version, rest) {
        (PAYLOAD, []) => {}
        (PAYLOAD, _) => return Err("bytes are left over in its payload"),
        (version, rest) => {
            let (on_divergence, rest) = postcard::take_from_bytes(rest).map_err(|_| "its payload does not decode")?;
            if version == HELLO_ON_DIVERGENCE && (!rest.is_empty() || on_divergence == OnDivergence::Refuse) {
                return Err("bytes are left over in its payload");
            }
            hello.on_divergence = on_divergence;
        }
    }
    Ok(hello)
}

fn welcome_payload(welcome: &Welcome) -> Result<Bytes, postcard::Error> {
    if !welcome.verifies {
        return control(welcome);
    }
    if !welcome.path.is_empty() {
        let payload = BytesMut::from(&[WELCOME_PATH][..]);
        return postcard::to_extend(&(welcome, &welcome.path), payload).map(BytesMut::freeze);
    }
    postcard::to_extend(welcome, BytesMut::from(&[WELCOME_VERIFIES][..])).map(BytesMut::freeze)
}

fn parse_welcome(payload: &[u8]) -> Result<Welcome, &'static str> {
    let (version, mut welcome, rest): (_, Welcome, _) = parse_head(payload)?;
    if version <= WELCOME_VERIFIES && !rest.is_empty() {
        return Err("bytes are left over in its payload");
    }
    // Up to there the version says it all: nothing is appended.
    welcome.verifies = version >= WELCOME_VERIFIES;
    if version >= WELCOME_PATH {
        let (path, rest): (Vec<PathNode>, _) =
            postcard::take_from_bytes(rest).map_err(|_| "its payload does not decode")?;
        if version == WELCOME_PATH && (!rest.is_empty() || path.is_empty()) {
            return Err("bytes are left over in its payload");
        }
        welcome.path = path;
    }
    Ok(welcome)
}

// What a newer version has appended is skipped; what this version never wrote is damage.
pub(super) fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, &'static str> {
    match parse_head(payload)? {
        (PAYLOAD, _, [_, ..]) => Err("bytes are left over in its payload"),
        (_, value, _) => Ok(value),
    }
}

pub(super) fn parse_head<T: DeserializeOwned>(payload: &[u8]) -> Result<(u8, T, &[u8]), &'static str> {
    let Some((&version, rest)) = payload.split_first() else { return Err("its payload is empty") };
    if version < PAYLOAD {
        return Err("its payload has no version");
    }
    let (value, rest) = postcard::take_from_bytes(rest).map_err(|_| "its payload does not decode")?;
    Ok((version, value, rest))
}

fn content(segments: Vec<Bytes>) -> Result<Content, &'static str> {
    let (ContentHeader { range, read_at }, entries) = header_and_entries(segments)?;
    Ok(Content { range, read_at, entries })
}

fn probed(segments: Vec<Bytes>) -> Result<Probed, &'static str> {
    let (ProbedHeader { range, at, summary }, entries) = header_and_entries(segments)?;
    let held = match summary {
        Some(_) if !entries.is_empty() => return Err("bytes are left over in its payload"),
        Some(summary) => Held::Summary(summary),
        None => Held::Entries(entries),
    };
    Ok(Probed { range, at, held })
}

fn header_and_entries<T: DeserializeOwned>(mut segments: Vec<Bytes>) -> Result<(T, EncodedOps), &'static str> {
    // The header is in the first one: it is much shorter than any but the last.
    let Some(first) = segments.first_mut() else { return Err("its payload is empty") };
    let (version, header, rest) = parse_head(first)?;
    // Nobody can tell where a longer header ends and the entries begin: a page read without its entries would empty
    // the range.
    if version != PAYLOAD {
        return Err("its payload has a newer version");
    }
    let rest = first.slice_ref(rest);
    *first = rest;
    let entries = EncodedOps::from_segments(segments).map_err(|_| "its entries are malformed")?;
    Ok((header, entries))
}

fn touched(payload: &Bytes) -> Result<Touched, &'static str> {
    let (version, TouchedHeader { read_at, end }, rest) = parse_head(payload)?;
    // As above: what is left over are the operations, and nothing else.
    if version != PAYLOAD {
        return Err("its payload has a newer version");
    }
    let ops = EncodedOps::from_bytes(payload.slice_ref(rest)).map_err(|_| "its operations are malformed")?;
    Ok(Touched { read_at, end, ops })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Passage, Skipped, Summary, origin};
    use replikv_core::{Batch, Epoch, Fingerprint, SourceId};

    #[test]
    fn whatever_carries_data_counts_for_it() {
        let at = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 2 });
        let (ops, ..) = Batch::new().put("key", vec![7; 1000]).into_parts().unwrap();
        let (len, range) = (ops.byte_len(), KeyRange::all());
        let summary = Summary { count: 1, bytes: 1000, fingerprint: Fingerprint::from_bytes([7; 16]) };
        let probed = |held| Message::Probed(Probed { range: KeyRange::all(), at, held });
        let run = Passage::Skipped(Skipped { through: at, log_bytes: 1, time: 1 });
        for (message, wanted) in [
            (Message::Records(Records { parts: vec![vec![7; 10].into(), vec![7; 20].into()] }), 30),
            (Message::Ranges(Content { range, read_at: at, entries: ops.clone() }), len),
            (Message::Touched(Touched { read_at: at, end: None, ops: ops.clone() }), len),
            (probed(Held::Entries(ops)), len),
            (probed(Held::Summary(summary)), 0),
            (Message::Filtered(Filtered { passages: vec![run.clone(), run.clone()] }), 2 * run.byte_len()),
            (Message::Auth(vec![7; 1000].into()), 0),
        ] {
            assert_eq!(message.data_len(), wanted, "{}", message.name());
        }
    }
}
