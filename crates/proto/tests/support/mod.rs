//! What the tests of the wire share: frames made by hand, as docs/protocol.md draws them, and arbitrary messages.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use replikv_core::{
    Batch, Coverage, Cursor, Digest, EncodedOps, Epoch, Fingerprint, KeyRange, Position, Seq, SourceId, StoreLimits,
};
use replikv_proto::{
    Above, Ack, Answered, AnsweredBody, Compare, Compared, Content, DecodeError, Decoder, DecoderLimits, Encoder,
    EpochStart, Event, FenceRequest, Filtered, Goodbye, GoodbyeReason, Heartbeat, Hello, Lag, Message, Mode,
    OnDivergence, Passage, PathNode, PreparedRecord, RangeSummary, ReadAt, ReadFailure, Record, RecordDraft,
    RecordKind, Records, Reject, RejectCode, Request, RequestBody, Response, Share, Skipped, Verdict, WaitFor, Welcome,
    origin,
};

pub(crate) const CRITICAL: u8 = 0x01;
pub(crate) const MORE: u8 = 0x02;

/// One frame, made without the encoder.
pub(crate) fn seal(kind: u8, flags: u8, channel: u16, request: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
    frame.extend([kind, flags]);
    frame.extend(channel.to_le_bytes());
    frame.extend(request.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame), payload);
    frame.extend(crc.to_le_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn preamble() -> Vec<u8> {
    let mut out = BytesMut::new();
    Encoder::new().encode_preamble(&mut out);
    out.to_vec()
}

pub(crate) fn encode(message: &Message) -> Vec<u8> {
    let mut out = BytesMut::new();
    Encoder::new().encode(message, &mut out).unwrap();
    out.to_vec()
}

/// A decoder for large messages that has seen the preamble.
pub(crate) fn greeted() -> Decoder {
    let mut decoder = Decoder::new(DecoderLimits { data: 64 << 20, control: 1 << 20 });
    let mut input = BytesMut::from(&preamble()[..]);
    assert_eq!(decoder.decode(&mut input), Ok(Some(Event::Preamble { version: 1, features: 0 })));
    decoder
}

/// Every message in `frames`, and the error that ended them.
pub(crate) fn decode_all(frames: &[u8]) -> (Vec<Message>, Option<DecodeError>) {
    let mut input = BytesMut::from(frames);
    feed(&mut greeted(), &mut input)
}

pub(crate) fn feed(decoder: &mut Decoder, input: &mut BytesMut) -> (Vec<Message>, Option<DecodeError>) {
    let mut messages = Vec::new();
    loop {
        match decoder.decode(input) {
            Ok(Some(Event::Message(message))) => messages.push(*message),
            Ok(Some(_)) => {}
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error)),
        }
    }
}

pub(crate) fn ops(batch: Batch) -> EncodedOps {
    batch.into_parts().unwrap().0
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn seq() -> impl Strategy<Value = Seq> {
    prop_oneof![0u64..300, any::<u64>()].prop_map(Seq::new)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<(u64, u64)>().prop_map(|(number, nonce)| Epoch { number, nonce })
}

pub(crate) fn position() -> impl Strategy<Value = Position> {
    (any::<[u8; 16]>(), epoch(), seq(), any::<[u8; 16]>()).prop_map(|(source, epoch, seq, digest)| Position {
        source: SourceId::from_bytes(source),
        epoch,
        seq,
        digest: Digest::from_bytes(digest),
    })
}

fn range() -> impl Strategy<Value = KeyRange> {
    (bytes(9), proptest::option::of(bytes(9))).prop_map(|(start, end)| KeyRange::new(start, end))
}

fn limits() -> impl Strategy<Value = StoreLimits> {
    any::<(u32, u32, u32)>().prop_map(|(key, value, batch)| StoreLimits {
        max_key: key as usize,
        max_value: value as usize,
        max_batch: batch as usize,
    })
}

fn cursor() -> impl Strategy<Value = Cursor> {
    (position(), proptest::option::of((bytes(9), position()))).prop_map(|(position, copied)| {
        let coverage = copied.map_or_else(Coverage::default, |(end, read_at)| {
            let mut coverage = Coverage::begin(KeyRange::all());
            coverage.advance(&KeyRange::new(Bytes::new(), Some(end)), read_at);
            coverage
        });
        Cursor { position, coverage }
    })
}

fn batch() -> impl Strategy<Value = EncodedOps> {
    vec((vec(any::<u8>(), 1..9), vec(any::<u8>(), 0..200), 0u8..3), 0..9).prop_map(|changes| {
        ops(changes.into_iter().fold(Batch::new(), |batch, (key, value, kind)| match kind {
            0 => batch.put(key, value),
            1 => batch.delete(key),
            _ => batch.delete_range(key..value),
        }))
    })
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Resume),
        position().prop_map(|from| Mode::Copy { from }),
        position().prop_map(|from| Mode::Compare { from }),
        Just(Mode::Wait),
        (position(), code(), proptest::option::of(position())).prop_map(|(from, reason, ancestor)| Mode::Resync {
            from,
            reason,
            ancestor
        }),
    ]
}

fn code() -> impl Strategy<Value = RejectCode> {
    prop_oneof![Just(RejectCode::ForeignSource), Just(RejectCode::Busy), Just(RejectCode::DuplicateSlave)]
}

fn reason() -> impl Strategy<Value = GoodbyeReason> {
    prop_oneof![Just(GoodbyeReason::Closing), Just(GoodbyeReason::Trimmed), Just(GoodbyeReason::Refused)]
}

fn on_divergence() -> impl Strategy<Value = OnDivergence> {
    prop_oneof![Just(OnDivergence::Refuse), Just(OnDivergence::Resync), Just(OnDivergence::AdoptSource)]
}

fn hello() -> impl Strategy<Value = Hello> {
    let flags = (any::<bool>(), any::<bool>(), on_divergence());
    let who = (".{0,20}", any::<u64>(), proptest::option::of(cursor()), flags);
    (who, vec(position(), 0..4), limits(), vec(range(), 0..3), vec(".{0,9}", 0..3)).prop_map(
        |((slave, nonce, cursor, (holds_data, temporary, on_divergence)), checkpoints, limits, ranges, path)| Hello {
            slave,
            nonce,
            cursor,
            holds_data,
            checkpoints,
            limits,
            ranges,
            path,
            temporary,
            on_divergence,
        },
    )
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let epochs = vec((epoch(), seq()).prop_map(|(epoch, first)| EpochStart { epoch, first }), 0..4);
    let checkpoints = vec(position(), 0..4);
    (epochs, position(), position(), limits(), mode(), any::<(u32, u64, u64)>(), checkpoints).prop_map(
        |(epochs, head, floor, limits, mode, (heartbeat_ms, log_bytes, behind_bytes), checkpoints)| Welcome {
            source: head.source,
            epochs,
            head,
            floor,
            limits,
            mode,
            heartbeat_ms,
            log_bytes,
            behind_bytes,
            checkpoints,
            verifies: log_bytes % 2 == 0,
            // Told only by who verifies.
            path: if log_bytes % 4 == 0 { path_of(behind_bytes) } else { Vec::new() },
        },
    )
}

fn path_of(nonce: u64) -> Vec<PathNode> {
    (0..nonce % 3 + 1).map(|n| PathNode { name: format!("relay-{n}"), nonce: nonce.wrapping_add(n) }).collect()
}

/// Ranges that may or may not touch, with bounds that may or may not share a beginning.
fn compare() -> impl Strategy<Value = Compare> {
    let summary = (vec(0u8..3, 0..6), vec(0u8..3, 0..6), any::<(bool, bool)>(), any::<(u64, [u8; 16])>());
    vec(summary, 0..20).prop_map(|summaries| {
        let mut end = Some(Bytes::new());
        let ranges = summaries.into_iter().map(|(start, next, (joins, has_end), (count, fingerprint))| {
            let start = end.take().filter(|_| joins).unwrap_or(start.into());
            end = has_end.then_some(next.into());
            let fingerprint = Fingerprint::from_bytes(fingerprint);
            RangeSummary { range: KeyRange::new(start, end.clone()), count, fingerprint }
        });
        Compare { ranges: ranges.collect() }
    })
}

fn compared() -> impl Strategy<Value = Compared> {
    let verdict = prop_oneof![any::<u32>().prop_map(Verdict::Equal), any::<u32>().prop_map(Verdict::Split)];
    (position(), vec(verdict, 0..9), bytes(20)).prop_map(|(read_at, verdicts, start)| Compared {
        read_at,
        verdicts,
        start,
    })
}

fn wait_for() -> impl Strategy<Value = WaitFor> {
    prop_oneof![seq().prop_map(WaitFor::Seq), position().prop_map(|at| WaitFor::Token(at.into()))]
}

fn question() -> impl Strategy<Value = RequestBody> {
    let after = || proptest::option::of(wait_for());
    prop_oneof![
        Just(RequestBody::Status),
        Just(RequestBody::Standing),
        (bytes(40), after(), any::<u64>()).prop_map(|(key, after, most)| RequestBody::Get { key, after, most }),
        (range(), any::<(u64, u64, bool, u64)>(), after()).prop_map(|(range, numbers, after)| {
            let (max_entries, max_bytes, reverse, most) = numbers;
            RequestBody::Scan { range, max_entries, max_bytes, reverse, after, most }
        }),
        wait_for().prop_map(RequestBody::Wait),
        any::<u32>().prop_map(|id| RequestBody::Forget { id }),
        ("[a-z]{0,20}", any::<u64>()).prop_map(|(slave, patience_ms)| RequestBody::HandOver { slave, patience_ms }),
        (position(), "[a-z]{0,20}")
            .prop_map(|(at, by)| { RequestBody::Fence(FenceRequest { source: at.source, epoch: at.epoch, by }) }),
        bytes(40).prop_map(|rest| RequestBody::Unknown([&[1, 8], &rest[..]].concat().into())),
    ]
}

fn read_at() -> impl Strategy<Value = ReadAt> {
    let at = || proptest::option::of(position());
    let lag = any::<(u64, u64, u64)>().prop_map(|(seqs, bytes, millis)| Lag { seqs, bytes, millis });
    (at(), at(), any::<bool>(), proptest::option::of(lag), any::<Option<u64>>()).prop_map(
        |(includes, shows, consistent, lag, last_contact_ms)| ReadAt {
            includes,
            shows,
            consistent,
            lag,
            last_contact_ms,
        },
    )
}

fn answer() -> impl Strategy<Value = AnsweredBody> {
    let failure = prop_oneof![
        Just(ReadFailure::KeyEmpty),
        any::<(u64, u64)>().prop_map(|(len, max)| ReadFailure::KeyTooLong { len, max }),
        seq().prop_map(|at| ReadFailure::Behind { at }),
        Just(ReadFailure::Superseded),
        Just(ReadFailure::ForeignSource),
        Just(ReadFailure::Busy),
        Just(ReadFailure::Closed),
        any::<(u64, u64)>().prop_map(|(len, max)| ReadFailure::TooLarge { len, max }),
        (".{0,40}", any::<bool>()).prop_map(|(words, retry)| ReadFailure::Store { words, retry }),
    ];
    prop_oneof![
        (read_at(), proptest::option::of(bytes(400))).prop_map(|(at, value)| AnsweredBody::Value(at, value)),
        (read_at(), proptest::option::of(range()), batch())
            .prop_map(|(at, rest, entries)| AnsweredBody::Page(at, rest, entries)),
        Just(AnsweredBody::Reached),
        failure.prop_map(AnsweredBody::Failed),
    ]
}

fn filtered() -> impl Strategy<Value = Filtered> {
    let run = (position(), any::<(u64, u64)>());
    let run = run.prop_map(|(through, (log_bytes, time))| Passage::Skipped(Skipped { through, log_bytes, time }));
    let share = (batch(), bytes(40), range()).prop_map(|(body, note, range)| {
        let epoch = Epoch { number: 1, nonce: 2 };
        let before = origin(SourceId::from_bytes([7; 16]), epoch);
        let draft = RecordDraft { epoch, kind: RecordKind::Batch, time: 3, note: &note, body: body.as_bytes() };
        let mut bytes = BytesMut::new();
        PreparedRecord::after(&before, &draft).unwrap().append_to(&mut bytes);
        Passage::Share(Share::of(&Record::decode(bytes.freeze()).unwrap(), &range.into()))
    });
    vec(prop_oneof![run, share], 1..4).prop_map(|passages| Filtered { passages })
}

/// Any message at all.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    let progress = || (seq(), seq(), any::<bool>());
    prop_oneof![
        hello().prop_map(Message::Hello),
        welcome().prop_map(Message::Welcome),
        (code(), ".{0,40}", any::<bool>()).prop_map(|(code, words, retry)| Message::Reject(Reject {
            code,
            words,
            retry
        })),
        bytes(400).prop_map(|part| Message::Records(Records { parts: vec![part] })),
        progress().prop_map(|(applied, durable, consistent)| Message::Ack(Ack { applied, durable, consistent })),
        progress().prop_map(|(applied, durable, consistent)| Message::Heartbeat(Heartbeat::Follower {
            applied,
            durable,
            consistent
        })),
        (position(), any::<(u64, u64)>()).prop_map(|(head, (log_bytes, time))| Message::Heartbeat(Heartbeat::Source {
            head,
            log_bytes,
            time
        })),
        (position(), any::<(u64, u64)>(), any::<(Option<(u64, u64, u64)>, Option<u64>)>()).prop_map(
            |(head, (log_bytes, time), (lag, silence_ms))| {
                let lag = lag.map(|(seqs, bytes, millis)| Lag { seqs, bytes, millis });
                Message::Heartbeat(Heartbeat::Relay { head, log_bytes, time, above: Above { lag, silence_ms } })
            }
        ),
        (range(), position(), batch()).prop_map(|(range, read_at, entries)| Message::Ranges(Content {
            range,
            read_at,
            entries
        })),
        (any::<u32>(), question()).prop_map(|(id, body)| Message::Request(Request { id, body })),
        (any::<u32>(), answer()).prop_map(|(id, body)| Message::Answered(Answered { id, body })),
        (any::<u32>(), bytes(200)).prop_map(|(id, body)| Message::Response(Response { id, body: Ok(body) })),
        (any::<u32>(), ".{0,40}").prop_map(|(id, words)| Message::Response(Response { id, body: Err(words) })),
        (reason(), ".{0,40}").prop_map(|(reason, words)| Message::Goodbye(Goodbye { reason, words })),
        bytes(40).prop_map(Message::Challenge),
        bytes(40).prop_map(Message::Auth),
        compare().prop_map(Message::Compare),
        compared().prop_map(Message::Compared),
        filtered().prop_map(Message::Filtered),
    ]
}
