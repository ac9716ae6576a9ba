//! The codec: what goes in comes out, however it is cut; nothing else does.

use crate::support::{CRITICAL, MORE, decode_all, encode, feed, greeted, message, ops, preamble, seal};
use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use replikv_core::{Batch, Coverage, Cursor, Epoch, Fingerprint, KeyRange, Position, Seq, SourceId, StoreLimits};
use replikv_proto::{
    Ack, Answered, AnsweredBody, Compare, Content, DecodeError, Decoder, DecoderLimits, Encoder, Event,
    FRAME_HEADER_LEN, Goodbye, GoodbyeReason, Held, Hello, MAX_FRAME_LEN, Message, Mode, OnDivergence, PREAMBLE_LEN,
    PathNode, Preamble, Probed, RangeSummary, ReadAt, Records, Summary, WaitFor, Welcome, origin,
};

fn stream(messages: &[Message]) -> Vec<u8> {
    let mut bytes = preamble();
    messages.iter().for_each(|message| bytes.extend(encode(message)));
    bytes
}

fn decoder() -> Decoder {
    Decoder::new(DecoderLimits { data: 64 << 20, control: 1 << 20 })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_come_back_as_they_were(message in message()) {
        prop_assert_eq!(decode_all(&encode(&message)), (vec![message], None));
    }

    #[test]
    fn a_stream_means_the_same_however_it_is_cut(messages in vec(message(), 1..4), cuts in vec(1usize..60, 1..20)) {
        let bytes = stream(&messages);
        // In two at every byte, in single bytes, and in random pieces.
        for cut in 0..=bytes.len() {
            prop_assert_eq!(in_pieces(&bytes, [cut, bytes.len()].into_iter()), messages.clone());
        }
        prop_assert_eq!(in_pieces(&bytes, std::iter::repeat(1)), messages.clone());
        prop_assert_eq!(in_pieces(&bytes, cuts.into_iter().cycle()), messages);
    }

    #[test]
    fn a_flipped_bit_never_makes_another_message(messages in vec(message(), 2..4)) {
        let bytes = stream(&messages);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = BytesMut::from(&bytes[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (got, error) = feed(&mut decoder(), &mut damaged);
            prop_assert!(messages.starts_with(&got), "bit {} made {:?}", bit, got);
            // In a frame it ends the connection, or leaves it waiting for a longer frame.
            prop_assert!(bit < PREAMBLE_LEN * 8 || got.len() < messages.len(), "bit {bit} went unnoticed: {error:?}");
        }
    }

    #[test]
    fn no_bytes_at_all_break_the_decoder(bytes in vec(any::<u8>(), 0..200), sealed in any::<bool>(), kind in 0u8..16) {
        let frames = if sealed { seal(kind, CRITICAL, 0, 0, &bytes) } else { bytes };
        let (messages, _) = decode_all(&frames);
        for message in messages {
            // What was accepted is what would be sent.
            prop_assert_eq!(decode_all(&encode(&message)), (vec![message], None));
        }
    }

    #[test]
    fn fragments_of_any_size_are_one_message(message in message(), size in 1usize..50) {
        let whole = encode(&message);
        let kind = whole[4];
        let request = u32::from_le_bytes(whole[8..12].try_into().unwrap());
        let fragments: Vec<&[u8]> = whole[FRAME_HEADER_LEN..].chunks(size).collect();
        let mut bytes = Vec::new();
        for (index, fragment) in fragments.iter().enumerate() {
            let more = if index + 1 < fragments.len() { MORE } else { 0 };
            bytes.extend(seal(kind, CRITICAL | more, 0, request, fragment));
        }
        prop_assume!(!fragments.is_empty());
        prop_assert_eq!(decode_all(&bytes), (vec![message], None));
    }
}

fn in_pieces(bytes: &[u8], mut sizes: impl Iterator<Item = usize>) -> Vec<Message> {
    let (mut decoder, mut input, mut rest) = (decoder(), BytesMut::new(), bytes);
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
        rest = after;
        input.extend_from_slice(piece);
        let (more, error) = feed(&mut decoder, &mut input);
        assert_eq!(error, None);
        messages.extend(more);
    }
    assert!(input.is_empty());
    messages
}

fn ack() -> Message {
    Message::Ack(Ack { applied: Seq::new(300), durable: Seq::new(2), consistent: true })
}

fn ack_payload() -> Vec<u8> {
    encode(&ack())[FRAME_HEADER_LEN..].to_vec()
}

const ACK: u8 = 7;

#[test]
fn large_messages_travel_in_fragments() {
    let message = Message::Records(Records { parts: vec![Bytes::from(vec![7; 2 * MAX_FRAME_LEN + 5])] });
    let bytes = encode(&message);
    let lengths = [MAX_FRAME_LEN, MAX_FRAME_LEN, 5];
    assert_eq!(bytes.len(), lengths.iter().map(|len| len + FRAME_HEADER_LEN).sum::<usize>());
    let mut outgoing = Encoder::new().begin(&message).unwrap();
    for (index, len) in lengths.into_iter().enumerate() {
        let last = index + 1 == lengths.len();
        assert_eq!(outgoing.is_short(), last, "{index}");
        let fragment = outgoing.next_fragment().unwrap();
        assert_eq!((fragment.byte_len(), fragment.is_last()), (len, last), "{index}");
    }
    assert!(outgoing.is_short() && outgoing.next_fragment().is_none());
    assert_eq!(decode_all(&bytes), (vec![message], None));
}

#[test]
fn a_message_of_hundreds_of_mib_is_never_in_one_buffer() {
    const SEGMENT: usize = 33 << 20;
    let value: Vec<u8> = (0..70 << 20).map(|at: u32| (at >> 12) as u8).collect();
    let (entries, _, _) = Batch::new().put("before", "x").put("large", &value).put("next", "x").into_parts().unwrap();
    let epoch = Epoch { number: 1, nonce: 1 };
    let read_at = origin(SourceId::from_bytes([1; 16]), epoch);
    let content = Content { range: KeyRange::all(), read_at, entries };
    let mut decoder = Decoder::new(DecoderLimits { data: 80 << 20, control: 1 << 20 });
    let encoder = Encoder::new();
    let mut outgoing = encoder.begin(&Message::Ranges(content.clone())).unwrap();
    let mut input = BytesMut::from(&preamble()[..]);
    let mut most = 0;
    let arrived = loop {
        // A frame is all that is encoded at once.
        outgoing.next_frame(&mut input);
        most = most.max(input.len());
        if let Some(Event::Message(message)) =
            std::iter::from_fn(|| decoder.decode(&mut input).unwrap()).find(|event| matches!(event, Event::Message(_)))
        {
            break *message;
        }
    };
    assert!(most <= preamble().len() + MAX_FRAME_LEN + FRAME_HEADER_LEN, "{most}");
    let Message::Ranges(arrived) = arrived else { panic!("{}", arrived.name()) };
    let longest = arrived.entries.buffers().map(Bytes::len).max();
    assert!(longest.is_some_and(|longest| longest <= SEGMENT), "{longest:?}");
    assert!(!arrived.entries.is_joined());
    assert!(arrived == content);
}

#[test]
fn what_a_newer_version_appends_to_a_control_payload_is_skipped() {
    let mut payload = ack_payload();
    payload[0] = 2;
    payload.extend(b"what comes next year");
    assert_eq!(decode_all(&seal(ACK, CRITICAL, 0, 0, &payload)), (vec![ack()], None));
}

#[test]
fn what_this_version_never_wrote_is_damage() {
    let mut payload = ack_payload();
    payload.push(0);
    let malformed = |payload: &[u8]| {
        let (messages, error) = decode_all(&seal(ACK, CRITICAL, 0, 0, payload));
        messages.is_empty() && matches!(error, Some(DecodeError::Malformed { kind: ACK, .. }))
    };
    assert!(malformed(&payload), "left over");
    assert!(malformed(&[]) && malformed(&[0, 1, 1, 1]) && malformed(&ack_payload()[..2]));
}

fn head() -> Position {
    origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 2 })
}

/// A payload of the kind that is changed on its way: how it decodes.
fn changed(message: &Message, change: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<Message>, DecodeError> {
    let frame = encode(message);
    let mut payload = frame[FRAME_HEADER_LEN..].to_vec();
    change(&mut payload);
    let (messages, error) = decode_all(&seal(frame[4], CRITICAL, 0, 0, &payload));
    error.map_or(Ok(messages), Err)
}

#[test]
fn what_a_version_of_a_hello_or_of_a_welcome_does_not_say_is_damage_and_what_a_newer_one_says_is_skipped() {
    let hello = |on_divergence| {
        let limits = StoreLimits { max_key: 9, max_value: 9, max_batch: 9 };
        let (ranges, path, checkpoints) = (Vec::new(), Vec::new(), Vec::new());
        let (slave, nonce, cursor, holds_data, temporary) = ("edge".into(), 1, None, false, false);
        let hello =
            Hello { slave, nonce, cursor, holds_data, checkpoints, limits, ranges, path, temporary, on_divergence };
        Message::Hello(hello)
    };
    let welcome = |verifies, path| {
        let limits = StoreLimits { max_key: 9, max_value: 9, max_batch: 9 };
        let welcome = Welcome {
            source: head().source,
            epochs: Vec::new(),
            head: head(),
            floor: head(),
            limits,
            mode: Mode::Resume,
            heartbeat_ms: 5,
            log_bytes: 0,
            behind_bytes: 0,
            verifies,
            path,
            checkpoints: Vec::new(),
        };
        Message::Welcome(welcome)
    };
    let path = vec![PathNode { name: "relay".into(), nonce: 3 }];
    let newest = [hello(OnDivergence::Resync), welcome(true, path)];
    for message in newest.iter().chain(&[hello(OnDivergence::Refuse), welcome(false, Vec::new())]) {
        assert!(changed(message, |payload| payload.push(0)).is_err(), "{message:?}");
    }
    assert!(changed(&welcome(true, Vec::new()), |payload| payload.push(0)).is_err());
    for message in newest {
        let newer = changed(&message, |payload| {
            payload[0] += 1;
            payload.extend(b"what comes next year");
        });
        assert_eq!(newer, Ok(vec![message]));
    }
    // The later version says what the earlier one would have said as well.
    let refuse = changed(&hello(OnDivergence::Resync), |payload| *payload.last_mut().unwrap() = 0);
    assert!(refuse.is_err(), "{refuse:?}");
    let no_path = changed(&welcome(true, Vec::new()), |payload| {
        payload[0] = 3;
        payload.push(0);
    });
    assert!(no_path.is_err(), "{no_path:?}");
}

#[test]
fn what_has_neither_value_nor_entries_is_followed_by_nothing() {
    let summary = Summary { count: 1, bytes: 9, fingerprint: Fingerprint::from_bytes([7; 16]) };
    let answered = |body| Message::Answered(Answered { id: 0, body });
    for message in [
        Message::Probed(Probed { range: KeyRange::all(), at: head(), held: Held::Summary(summary) }),
        answered(AnsweredBody::Value(ReadAt::default(), None)),
        answered(AnsweredBody::Reached),
    ] {
        assert_eq!(changed(&message, |_| {}), Ok(vec![message.clone()]));
        let entry = ops(Batch::new().put("a", "1"));
        let followed = changed(&message, |payload| payload.extend(entry.as_bytes()));
        assert!(matches!(followed, Err(DecodeError::Malformed { .. })), "{message:?}: {followed:?}");
    }
}

#[test]
fn a_question_about_as_many_ranges_as_one_may_have_is_read_and_one_more_is_not() {
    let question = |len: u32| {
        let key = |n: u32| Bytes::copy_from_slice(&n.to_be_bytes());
        let fingerprint = Fingerprint::from_bytes([7; 16]);
        let ranges =
            (0..len).map(|n| RangeSummary { range: KeyRange::new(key(n), Some(key(n + 1))), count: 1, fingerprint });
        Message::Compare(Compare { ranges: ranges.collect() })
    };
    assert_eq!(decode_all(&encode(&question(4096))), (vec![question(4096)], None));
    for more in [4097, 5000] {
        let (messages, error) = decode_all(&encode(&question(more)));
        assert!(messages.is_empty() && matches!(error, Some(DecodeError::Malformed { kind: 9, .. })), "{error:?}");
    }
}

#[test]
fn what_a_record_is_waited_for_by_is_its_number() {
    let at = Position { seq: Seq::new(7), ..head() };
    assert_eq!([WaitFor::Token(at.into()).seq(), WaitFor::Seq(Seq::new(8)).seq()], [Seq::new(7), Seq::new(8)]);
}

#[test]
fn what_only_an_upgrade_mends_is_not_tried_again_and_all_else_is() {
    for (error, retryable) in [
        (DecodeError::OtherProtocol, false),
        (DecodeError::NoCommonVersion { min: 2, max: 3 }, false),
        (DecodeError::UnknownKind { kind: 99 }, false),
        (DecodeError::UnknownFlags { flags: 8 }, false),
        (DecodeError::UnknownChannel { channel: 1 }, false),
        (DecodeError::OtherCompression { algorithm: 9 }, true),
        (DecodeError::FrameTooLarge { len: 2, max: 1 }, true),
        (DecodeError::MessageTooLarge { len: 2, max: 1 }, true),
        (DecodeError::Interleaved, true),
        (DecodeError::Malformed { kind: 7, what: "" }, true),
        (DecodeError::Damaged, true),
    ] {
        assert_eq!(error.is_retryable(), retryable, "{error}");
    }
}

// Read without what nobody can find in it, it would empty the range that it speaks of.
#[test]
fn a_page_of_a_newer_version_is_refused_whole() {
    let head = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 2 });
    let entries = ops(Batch::new().put("a", "1"));
    let page = encode(&Message::Ranges(Content { range: KeyRange::all(), read_at: head, entries }));
    let mut payload = page[FRAME_HEADER_LEN..].to_vec();
    payload[0] = 2;
    let (messages, error) = decode_all(&seal(10, CRITICAL, 0, 0, &payload));
    assert!(messages.is_empty() && matches!(error, Some(DecodeError::Malformed { kind: 10, .. })), "{error:?}");
}

#[test]
fn unknown_kinds_are_skipped_or_refused_by_name() {
    let mut bytes = seal(200, 0, 0, 9, b"whatever");
    bytes.extend(seal(201, MORE, 0, 9, b"in two"));
    bytes.extend(seal(201, 0, 0, 9, b"pieces"));
    bytes.extend(encode(&ack()));
    assert_eq!(decode_all(&bytes), (vec![ack()], None));
    let critical = seal(200, CRITICAL, 0, 9, b"whatever");
    assert_eq!(decode_all(&critical), (vec![], Some(DecodeError::UnknownKind { kind: 200 })));
}

#[test]
fn unknown_flags_are_ignored_or_refused_by_name() {
    for bit in 4..8 {
        assert_eq!(decode_all(&seal(ACK, CRITICAL | 1 << bit, 0, 0, &ack_payload())), (vec![ack()], None));
    }
    for bit in 2..4 {
        let flags = 1 << bit;
        let bytes = seal(ACK, CRITICAL | flags, 0, 0, &ack_payload());
        assert_eq!(decode_all(&bytes), (vec![], Some(DecodeError::UnknownFlags { flags })));
    }
}

#[test]
fn other_channels_are_refused_by_name() {
    let bytes = seal(ACK, CRITICAL, 3, 0, &ack_payload());
    assert_eq!(decode_all(&bytes), (vec![], Some(DecodeError::UnknownChannel { channel: 3 })));
}

#[test]
fn fragments_that_do_not_follow_one_another_are_refused() {
    let payload = ack_payload();
    let first = seal(ACK, CRITICAL | MORE, 0, 0, &payload[..2]);
    for second in [
        seal(8, CRITICAL, 0, 0, &payload[2..]),
        seal(ACK, CRITICAL, 0, 1, &payload[2..]),
        seal(ACK, CRITICAL, 0, 0, b""),
        seal(ACK, CRITICAL | MORE, 0, 0, b""),
    ] {
        let bytes = [first.clone(), second].concat();
        assert_eq!(decode_all(&bytes), (vec![], Some(DecodeError::Interleaved)));
    }
    assert_eq!(decode_all(&seal(ACK, CRITICAL | MORE, 0, 0, b"")), (vec![], Some(DecodeError::Interleaved)));
}

#[test]
fn whoever_speaks_something_else_is_told_at_once() {
    let end = |bytes: &[u8]| decoder().decode(&mut BytesMut::from(bytes));
    assert_eq!(end(b"G"), Err(DecodeError::OtherProtocol), "the first byte is enough");
    assert_eq!(end(b"GET / HTTP/1.1\r\n\r\n"), Err(DecodeError::OtherProtocol));
    assert_eq!(end(b"RPLKV\r\n"), Ok(None));
    assert_eq!(end(b"RPLKV\n"), Err(DecodeError::OtherProtocol), "line ends were translated on the way");
    let newer = Preamble { min_version: 2, max_version: 5, features: 0 };
    assert_eq!(end(&newer.to_bytes()), Err(DecodeError::NoCommonVersion { min: 2, max: 5 }));
    let older = Preamble { min_version: 0, max_version: 0, features: 0 };
    assert_eq!(end(&older.to_bytes()), Err(DecodeError::NoCommonVersion { min: 0, max: 0 }));
    let able = Preamble { min_version: 1, max_version: 7, features: u32::MAX };
    assert_eq!(
        end(&able.to_bytes()),
        Ok(Some(Event::Preamble { version: 1, features: u32::MAX })),
        "features are no condition"
    );
}

// Else a copy of long keys could never go on once it was cut.
#[test]
fn a_hello_in_mid_copy_fits_whatever_the_longest_key_is() {
    let at = origin(SourceId::from_bytes([1; 16]), Epoch { number: u64::MAX, nonce: u64::MAX });
    for max_key in [1, 511, 1 << 16, 1 << 20] {
        let key = Bytes::from(vec![b'k'; max_key + 1]);
        let mut coverage = Coverage::begin(KeyRange::new(key.slice(1..), Some(Bytes::from(vec![b'z'; max_key + 1]))));
        assert!(coverage.advance(&KeyRange::new(key.slice(1..), Some(key)), at));
        let hello = Message::Hello(Hello {
            slave: "n".repeat(128),
            nonce: u64::MAX,
            cursor: Some(Cursor { position: at, coverage }),
            holds_data: false,
            checkpoints: vec![at; 64],
            limits: StoreLimits { max_key, max_value: usize::MAX, max_batch: usize::MAX },
            ranges: Vec::new(),
            path: Vec::new(),
            temporary: false,
            on_divergence: OnDivergence::Refuse,
        });
        let mut decoder = greeted();
        decoder.set_limits(DecoderLimits::for_hello(max_key));
        let bytes = encode(&hello);
        assert_eq!(feed(&mut decoder, &mut BytesMut::from(&bytes[..])), (vec![hello], None), "{max_key}");
    }
}

#[test]
fn from_a_master_a_batch_of_the_largest_size_is_taken_and_long_words_too() {
    let max_batch = 2 << 20;
    let records = Message::Records(Records { parts: vec![vec![7; max_batch + (1 << 20)].into()] });
    let goodbye = Message::Goodbye(Goodbye { reason: GoodbyeReason::Closing, words: "w".repeat(1000 << 10) });
    let mut decoder = greeted();
    decoder.set_limits(DecoderLimits::for_batches(max_batch));
    let bytes = [encode(&records), encode(&goodbye)].concat();
    assert_eq!(feed(&mut decoder, &mut BytesMut::from(&bytes[..])), (vec![records, goodbye], None));
}

fn header(len: u32, kind: u8, flags: u8) -> BytesMut {
    let mut header = BytesMut::with_capacity(FRAME_HEADER_LEN);
    header.extend_from_slice(&seal(kind, flags, 0, 0, b""));
    header[..4].copy_from_slice(&len.to_le_bytes());
    header
}

#[test]
fn a_length_that_is_not_allowed_allocates_nothing() {
    let limits = DecoderLimits { data: 200_000, control: 1000 };
    for (len, kind, error) in [
        (u32::MAX, 6, DecodeError::FrameTooLarge { len: u32::MAX as usize, max: MAX_FRAME_LEN }),
        (MAX_FRAME_LEN as u32 + 1, 6, DecodeError::FrameTooLarge { len: MAX_FRAME_LEN + 1, max: MAX_FRAME_LEN }),
        (200_001, 6, DecodeError::MessageTooLarge { len: 200_001, max: 200_000 }),
        (1001, ACK, DecodeError::MessageTooLarge { len: 1001, max: 1000 }),
        (1001, 99, DecodeError::MessageTooLarge { len: 1001, max: 1000 }),
    ] {
        let mut decoder = greeted();
        decoder.set_limits(limits);
        let mut input = header(len, kind, CRITICAL);
        let before = input.capacity();
        assert_eq!(decoder.decode(&mut input), Err(error));
        assert_eq!(input.capacity(), before, "nothing was reserved for it");
    }
    let mut decoder = greeted();
    decoder.set_limits(limits);
    let mut allowed = header(200_000, 6, CRITICAL);
    assert_eq!(decoder.decode(&mut allowed), Ok(None));
    assert!((200_000 + FRAME_HEADER_LEN..400_000).contains(&allowed.capacity()), "{}", allowed.capacity());
}

#[test]
fn fragments_together_keep_to_the_cap_of_one_message() {
    let mut decoder = greeted();
    decoder.set_limits(DecoderLimits { data: 100, control: 100 });
    let mut input = BytesMut::from(&seal(6, CRITICAL | MORE, 0, 0, &[0; 60])[..]);
    assert_eq!(decoder.decode(&mut input), Ok(None));
    let mut input = header(41, 6, CRITICAL);
    let before = input.capacity();
    assert_eq!(decoder.decode(&mut input), Err(DecodeError::MessageTooLarge { len: 101, max: 100 }));
    assert_eq!(input.capacity(), before);
}
