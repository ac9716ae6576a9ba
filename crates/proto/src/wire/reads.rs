//! Reads over the network: what can be asked, and what is answered.
//!
//! Questions are control payloads, told apart by a number. One that is not known is kept as it came, so that whoever is
//! asked can say so instead of ending the connection. An answer is a small header, and a value or a page's entries as
//! they are, of exactly this version.

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, Position, Seq, Token};
use serde::{Deserialize, Serialize};

use super::encoder::join;
use super::message::{control, parse, parse_head};
use crate::FenceRequest;

/// What to wait for, or what is to be in what is read: a [`Token`], which names one write and nothing else, or a [`Seq`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitFor {
    /// That write.
    Token(Token),
    /// That many records.
    Seq(Seq),
}

impl WaitFor {
    /// The number of the record.
    pub fn seq(self) -> Seq {
        match self {
            Self::Token(token) => token.seq,
            Self::Seq(seq) => seq,
        }
    }
}

impl From<Token> for WaitFor {
    fn from(token: Token) -> Self {
        Self::Token(token)
    }
}

impl From<Seq> for WaitFor {
    fn from(seq: Seq) -> Self {
        Self::Seq(seq)
    }
}

/// How far behind a slave is. Meaningful at the time of its last contact with its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// In records.
    pub seqs: u64,
    /// In bytes of records.
    pub bytes: u64,
    /// In milliseconds by the master's clock: how much older the last applied record is than now. 0 if nothing is
    /// missing.
    pub millis: u64,
}

/// Of which moment of the history it is what was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAt {
    /// Every record up to this one is in it. `None` before the first.
    pub includes: Option<Position>,
    /// No record after this one is in it. A later read that includes this one shows nothing older.
    pub shows: Option<Position>,
    /// Whether it is a state that the master had; not so while a slave copies or compares.
    pub consistent: bool,
    /// How far the reader was behind; `None` if nobody could tell.
    pub lag: Option<Lag>,
    /// Milliseconds since the reader had heard of its master; `None` if it never had. 0 on a master.
    pub last_contact_ms: Option<u64>,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RequestBody {
    /// The status of the node, as JSON.
    Status,
    /// Where the node stands, and how it is, in short, as JSON.
    Standing,
    /// The value of a key.
    Get {
        /// The key.
        key: Bytes,
        /// What must be in what is read, or else it is not read.
        after: Option<WaitFor>,
        /// The longest answer that is taken, in bytes.
        most: u64,
    },
    /// One page of a range.
    Scan {
        /// The keys.
        range: KeyRange,
        /// At most so many entries.
        max_entries: u64,
        /// The page ends with the entry that brings it to this many bytes.
        max_bytes: u64,
        /// From the last key to the first.
        reverse: bool,
        /// What must be in what is read, or else it is not read.
        after: Option<WaitFor>,
        /// The longest answer that is taken, in bytes.
        most: u64,
    },
    /// An answer once this is readable.
    Wait(WaitFor),
    /// Nobody waits any more for the answer to the question of this id. It is not answered itself.
    Forget {
        /// The id of that question.
        id: u32,
    },
    /// Stop for good, once the slave of this name holds everything, so that it can take over. Answered with the last record,
    /// as JSON.
    HandOver {
        /// Its name.
        slave: String,
        /// How long to wait for it, in milliseconds: once while writers go on, and once while they wait.
        patience_ms: u64,
    },
    /// Promise to follow nobody of an earlier epoch, so that another slave can be promoted. Answered with where the slave
    /// stands, or why it does not promise, as JSON.
    Fence(FenceRequest),
    /// A question of a newer version: its payload, to be refused in words.
    #[serde(skip)]
    Unknown(Bytes),
}

/// The first number that is not known.
const UNKNOWN: u32 = 8;

/// What a read came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The id of the question.
    pub id: u32,
    /// What it came to.
    pub body: AnsweredBody,
}

/// What a read came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnsweredBody {
    /// To [`RequestBody::Get`]: the value, if there is one.
    Value(ReadAt, Option<Bytes>),
    /// To [`RequestBody::Scan`]: entries as puts, and the part of the range that was not looked at.
    Page(ReadAt, Option<KeyRange>, EncodedOps),
    /// To [`RequestBody::Wait`]: it is readable.
    Reached,
    /// There is no answer.
    Failed(ReadFailure),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReadFailure {
    /// Keys have at least one byte.
    #[error("the key is empty")]
    KeyEmpty,
    /// The node holds shorter keys only.
    #[error("the key has {len} bytes, the store holds keys of up to {max}")]
    KeyTooLong {
        /// Its length.
        len: u64,
        /// The longest that fits.
        max: u64,
    },
    /// What must be in it is not there yet. Later it is, or on another node.
    #[error("the reader is behind: it stands at record {at}")]
    Behind {
        /// Where the node stands.
        at: Seq,
    },
    /// The epoch of the token ended before its record.
    #[error("the epoch of that write ended before it")]
    Superseded,
    /// The token speaks of another history.
    #[error("that write was made to another source")]
    ForeignSource,
    /// Try again: the node has as many questions as it may have.
    #[error("the reader is busy")]
    Busy,
    /// The node was shut down.
    #[error("the reader was shut down")]
    Closed,
    /// The answer is longer than is taken.
    #[error("the answer has {len} bytes, at most {max} are taken")]
    TooLarge {
        /// Its length.
        len: u64,
        /// The most.
        max: u64,
    },
    /// The node's store failed.
    #[error("the reader's store failed: {words}")]
    Store {
        /// In its words.
        words: String,
        /// Whether the same read can succeed later without anybody doing anything.
        retry: bool,
    },
}

#[derive(Serialize, Deserialize)]
enum Header {
    Value(ReadAt),
    Missing(ReadAt),
    Page(ReadAt, Option<KeyRange>),
    Reached,
    Failed(ReadFailure),
}

pub(super) fn request_payload(body: &RequestBody) -> Result<Bytes, postcard::Error> {
    match body {
        RequestBody::Unknown(payload) => Ok(payload.clone()),
        body => control(body),
    }
}

pub(super) fn parse_request(payload: &Bytes) -> Result<RequestBody, &'static str> {
    let (_, number, _): (_, u32, _) = parse_head(payload)?;
    if number >= UNKNOWN {
        return Ok(RequestBody::Unknown(payload.clone()));
    }
    parse(payload)
}

pub(super) fn answered_payload(body: &AnsweredBody) -> Result<Vec<Bytes>, postcard::Error> {
    let header = match body {
        AnsweredBody::Value(at, Some(_)) => Header::Value(*at),
        AnsweredBody::Value(at, None) => Header::Missing(*at),
        AnsweredBody::Page(at, rest, _) => Header::Page(*at, rest.clone()),
        AnsweredBody::Reached => Header::Reached,
        AnsweredBody::Failed(failure) => Header::Failed(failure.clone()),
    };
    let mut parts = vec![control(&header)?];
    match body {
        AnsweredBody::Value(_, Some(value)) => parts.push(value.clone()),
        AnsweredBody::Page(_, _, entries) => parts.extend(entries.buffers().cloned()),
        _ => {}
    }
    Ok(parts)
}

pub(super) fn parse_answered(mut segments: Vec<Bytes>) -> Result<AnsweredBody, &'static str> {
    // The header is in the first one: it is much shorter than any but the last.
    let Some(first) = segments.first_mut() else { return Err("its payload is empty") };
    let (version, header, rest) = parse_head(first)?;
    // Nobody can tell where a longer header ends and the value begins.
    if version != super::message::PAYLOAD {
        return Err("its payload has a newer version");
    }
    let rest = first.slice_ref(rest);
    *first = rest;
    let nothing = segments.iter().all(Bytes::is_empty);
    Ok(match header {
        Header::Value(at) => AnsweredBody::Value(at, Some(join(segments))),
        Header::Page(at, rest) => {
            let entries = EncodedOps::from_segments(segments).map_err(|_| "its entries are malformed")?;
            AnsweredBody::Page(at, rest, entries)
        }
        _ if !nothing => return Err("bytes are left over in its payload"),
        Header::Missing(at) => AnsweredBody::Value(at, None),
        Header::Reached => AnsweredBody::Reached,
        Header::Failed(failure) => AnsweredBody::Failed(failure),
    })
}
