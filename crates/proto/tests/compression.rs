//! Compressed frames: what goes in comes out; nothing becomes more than it says, nor than anybody allows.

use crate::support::{self, CRITICAL, MORE, feed, message, ops, preamble, seal};
use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use replikv_core::{Batch, Epoch, KeyRange, Seq, SourceId};
use replikv_proto::{
    Ack, Compression, Compressor, Content, DecodeError, Decoder, DecoderLimits, Encoder, Event, FRAME_HEADER_LEN,
    MAX_FRAME_LEN, Message, PREAMBLE_LEN, Packed, Preamble, Records, origin,
};

const COMPRESSED: u8 = 0x04;
const RECORDS: u8 = 6;
/// Algorithm and length, before the compressed bytes.
const HEAD: usize = 5;

fn code(algorithm: Compression) -> u8 {
    match algorithm {
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
        other => panic!("{other} is not tested"),
    }
}

/// A decoder that reads `algorithm`, and has seen the preamble.
fn reading(algorithm: Compression) -> Decoder {
    let limits = DecoderLimits { data: 64 << 20, control: 1 << 20 };
    let mut decoder = Decoder::new(limits).reading(Some(algorithm));
    assert!(matches!(decoder.decode(&mut BytesMut::from(&preamble()[..])), Ok(Some(Event::Preamble { .. }))));
    decoder
}

fn compressed(messages: &[Message], algorithm: Compression) -> (Vec<u8>, Vec<Option<Packed>>) {
    let (mut compressor, mut out, mut packed) = (Compressor::new(algorithm), BytesMut::new(), Vec::new());
    for message in messages {
        let mut outgoing = Encoder::new().begin(message).unwrap();
        while let Some(fragment) = outgoing.next_fragment() {
            packed.push(fragment.compress(&mut compressor, &mut out));
        }
    }
    (out.to_vec(), packed)
}

fn decode(algorithm: Compression, frames: &[u8]) -> (Vec<Message>, Option<DecodeError>) {
    feed(&mut reading(algorithm), &mut BytesMut::from(frames))
}

/// The flags of each frame, and the length of its payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() {
        let [l0, l1, l2, l3, _, flags, ..] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        frames.push((flags, len));
        bytes = &rest[len..];
    }
    frames
}

fn records(bytes: Vec<u8>) -> Message {
    Message::Records(Records { parts: vec![bytes.into()] })
}

fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|n: u64| format!("the value numbered {n}, ").into_bytes()).take(len).collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn head(code: u8, len: usize) -> Vec<u8> {
    let mut head = vec![code];
    head.extend((len as u32).to_le_bytes());
    head
}

/// A frame of records that says that it becomes `len` bytes.
fn packed_frame(algorithm: Compression, len: usize, packed: &[u8]) -> Vec<u8> {
    seal(RECORDS, CRITICAL | COMPRESSED, 0, 0, &[&head(code(algorithm), len)[..], packed].concat())
}

/// The compressed bytes alone of a text of that length.
fn packed_text(algorithm: Compression, len: usize) -> Vec<u8> {
    let (bytes, _) = compressed(&[records(text(len))], algorithm);
    assert_eq!(frames(&bytes)[0].0, CRITICAL | COMPRESSED);
    bytes[FRAME_HEADER_LEN + HEAD..].to_vec()
}

// As they are, and with payloads that are worth it.
fn any_message() -> impl Strategy<Value = Message> {
    let repeated = (vec(any::<u8>(), 1..40), 20usize..200).prop_map(|(bytes, times)| records(bytes.repeat(times)));
    let pages = (1u32..60, 0usize..80).prop_map(|(entries, len)| {
        let batch = (0..entries).fold(Batch::new(), |batch, n| batch.put(n.to_be_bytes(), text(len)));
        let read_at = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 1 });
        Message::Ranges(Content { range: KeyRange::all(), read_at, entries: ops(batch) })
    });
    prop_oneof![message(), repeated, pages]
}

fn algorithm() -> impl Strategy<Value = Compression> {
    prop::sample::select(Compression::ALL)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_come_back_as_they_were(messages in vec(any_message(), 1..4), algorithm in algorithm()) {
        let (bytes, packed) = compressed(&messages, algorithm);
        for (packed, (_, len)) in packed.iter().zip(frames(&bytes)) {
            prop_assert!(packed.is_none_or(|packed| packed.after <= packed.before && packed.after == len));
        }
        prop_assert_eq!(decode(algorithm, &bytes), (messages, None));
    }

    #[test]
    fn a_stream_means_the_same_however_it_is_cut(messages in vec(any_message(), 1..3), algorithm in algorithm()) {
        let (bytes, _) = compressed(&messages, algorithm);
        for step in [1, 7, 64] {
            for cut in (0..=bytes.len()).step_by(step * (1 + bytes.len() / 200)) {
                let (mut decoder, mut input) = (reading(algorithm), BytesMut::from(&bytes[..cut]));
                let (mut got, error) = feed(&mut decoder, &mut input);
                prop_assert_eq!(error, None);
                input.extend_from_slice(&bytes[cut..]);
                let (more, error) = feed(&mut decoder, &mut input);
                got.extend(more);
                prop_assert_eq!((&got, error), (&messages, None));
            }
        }
        let (mut decoder, mut input, mut got) = (reading(algorithm), BytesMut::new(), Vec::new());
        for byte in bytes {
            input.extend_from_slice(&[byte]);
            let (more, error) = feed(&mut decoder, &mut input);
            prop_assert_eq!(error, None);
            got.extend(more);
        }
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn bytes_of_anybody_neither_break_it_nor_become_more_than_they_say(
        packed in vec(any::<u8>(), 0..300),
        len in prop_oneof![1usize..600, 1usize..=MAX_FRAME_LEN],
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        algorithm in algorithm(),
        honest in any::<bool>(),
    ) {
        // Sealed anew: the checksum does not help.
        let mut packed = if honest { packed_text(algorithm, 700) } else { packed };
        for (index, byte) in flips {
            if !packed.is_empty() {
                let at = index.index(packed.len());
                packed[at] ^= byte;
            }
        }
        let (messages, error) = decode(algorithm, &packed_frame(algorithm, len, &packed));
        match &messages[..] {
            [] => prop_assert!(matches!(error, Some(DecodeError::Malformed { .. })), "{error:?}"),
            [Message::Records(records)] => prop_assert_eq!(records.parts.iter().map(Bytes::len).sum::<usize>(), len),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_is_never_taken_for_what_was_sent() {
    for &algorithm in Compression::ALL {
        let (bytes, _) = compressed(&[records(text(1200))], algorithm);
        assert!(bytes.len() < 700, "{}", bytes.len());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (messages, error) = decode(algorithm, &damaged);
            // A longer frame is waited for.
            let waits = error.is_none() && bit < 32;
            assert!(messages.is_empty() && (waits || error.is_some()), "{algorithm}: bit {bit} went unnoticed");
        }
    }
}

// What the encoders write may change with their versions; what is read may not.
#[test]
fn fixed_bytes_become_what_they_always_did() {
    // A token: 8 literals, and a match of 4 + 15 + 255 + 225 = 499 bytes; 8 bytes back. Then 5 literals.
    let lz4 = [&b"\x8Freplikv \x08\x00\xFF\xE1\x50"[..], b"likv "].concat();
    let bytes = packed_frame(Compression::Lz4, 512, &lz4);
    assert_eq!(decode(Compression::Lz4, &bytes), (vec![records(b"replikv ".repeat(64))], None));
    // Magic; one segment of 256 + 256 bytes; one block, the last: a byte 512 times.
    let zstd = b"\x28\xB5\x2F\xFD\x60\x00\x01\x03\x10\x00r";
    let bytes = packed_frame(Compression::Zstd, 512, zstd);
    assert_eq!(decode(Compression::Zstd, &bytes), (vec![records(vec![b'r'; 512])], None));
}

#[test]
fn a_frame_that_becomes_more_or_less_than_it_says_is_refused() {
    for &algorithm in Compression::ALL {
        let packed = packed_text(algorithm, 2000);
        assert_eq!(decode(algorithm, &packed_frame(algorithm, 2000, &packed)), (vec![records(text(2000))], None));
        for len in [1, 1999, 2001, 100_000, MAX_FRAME_LEN] {
            let (messages, error) = decode(algorithm, &packed_frame(algorithm, len, &packed));
            assert!(messages.is_empty(), "{algorithm} {len}");
            assert!(
                matches!(error, Some(DecodeError::Malformed { kind: RECORDS, .. })),
                "{algorithm} {len}: {error:?}"
            );
        }
        // A megabyte, of a few bytes, that calls itself short.
        let bomb = packed_text_of_one_byte(algorithm);
        let (messages, error) = decode(algorithm, &packed_frame(algorithm, 600, &bomb));
        assert!(messages.is_empty() && matches!(error, Some(DecodeError::Malformed { .. })), "{error:?}");
        assert_eq!(decode(algorithm, &packed_frame(algorithm, MAX_FRAME_LEN, &bomb)).0.len(), 1);
        // What comes after the end counts as well.
        let followed = [&packed[..], &packed[..]].concat();
        let (messages, error) = decode(algorithm, &packed_frame(algorithm, 2000, &followed));
        assert!(messages.is_empty() && matches!(error, Some(DecodeError::Malformed { .. })), "{error:?}");
    }
}

fn packed_text_of_one_byte(algorithm: Compression) -> Vec<u8> {
    let (bytes, _) = compressed(&[records(vec![0; MAX_FRAME_LEN])], algorithm);
    assert!(bytes.len() < 6000, "{}", bytes.len());
    bytes[FRAME_HEADER_LEN + HEAD..].to_vec()
}

#[test]
fn a_length_that_is_not_allowed_inflates_nothing() {
    let malformed = |error: &DecodeError| matches!(error, DecodeError::Malformed { kind: RECORDS, .. });
    for &algorithm in Compression::ALL {
        let packed = packed_text(algorithm, 2000);
        let ends = |len: usize, limits: DecoderLimits| {
            let mut decoder = reading(algorithm);
            decoder.set_limits(limits);
            // The head alone: the rest is not waited for.
            let frame = packed_frame(algorithm, len, &packed);
            let mut input = BytesMut::from(&frame[..FRAME_HEADER_LEN + HEAD]);
            let before = input.capacity();
            let error = decoder.decode(&mut input);
            assert_eq!(input.capacity(), before, "nothing was reserved for it");
            error
        };
        let large = DecoderLimits { data: 64 << 20, control: 1 << 20 };
        assert!(malformed(&ends(0, large).unwrap_err()));
        for len in [MAX_FRAME_LEN + 1, u32::MAX as usize] {
            assert_eq!(ends(len, large), Err(DecodeError::FrameTooLarge { len, max: MAX_FRAME_LEN }));
        }
        let small = DecoderLimits { data: 1999, control: 1 << 20 };
        assert_eq!(ends(2000, small), Err(DecodeError::MessageTooLarge { len: 2000, max: 1999 }));
        // Nothing, or a head alone.
        for payload in [&[][..], &head(code(algorithm), 2000)[..3], &head(code(algorithm), 2000)] {
            let (messages, error) = decode(algorithm, &seal(RECORDS, CRITICAL | COMPRESSED, 0, 0, payload));
            assert!(messages.is_empty() && error.as_ref().is_some_and(malformed), "{payload:?}: {error:?}");
        }
    }
}

#[test]
fn fragments_count_as_what_they_become() {
    for &algorithm in Compression::ALL {
        let message = records(text(3 * MAX_FRAME_LEN));
        let (bytes, _) = compressed(std::slice::from_ref(&message), algorithm);
        assert!(bytes.len() < MAX_FRAME_LEN, "{}", bytes.len());
        let mut decoder = reading(algorithm);
        decoder.set_limits(DecoderLimits { data: 3 * MAX_FRAME_LEN, control: 0 });
        assert_eq!(feed(&mut decoder, &mut BytesMut::from(&bytes[..])), (vec![message], None));
        let mut decoder = reading(algorithm);
        decoder.set_limits(DecoderLimits { data: 3 * MAX_FRAME_LEN - 1, control: 0 });
        let too_large = DecodeError::MessageTooLarge { len: 3 * MAX_FRAME_LEN, max: 3 * MAX_FRAME_LEN - 1 };
        assert_eq!(feed(&mut decoder, &mut BytesMut::from(&bytes[..])), (vec![], Some(too_large)));
    }
}

#[test]
fn nothing_is_read_that_was_not_asked_for() {
    for &algorithm in Compression::ALL {
        let bytes = packed_frame(algorithm, 2000, &packed_text(algorithm, 2000));
        let unknown = DecodeError::UnknownFlags { flags: COMPRESSED };
        assert_eq!(support::decode_all(&bytes), (vec![], Some(unknown)));
        for &other in Compression::ALL {
            if other != algorithm {
                let unasked = DecodeError::OtherCompression { algorithm: code(algorithm) };
                assert_eq!(decode(other, &bytes), (vec![], Some(unasked)));
            }
        }
        for unknown in [0, 3, 255] {
            let bytes = seal(RECORDS, CRITICAL | COMPRESSED, 0, 0, &[&head(unknown, 2000)[..], &[0; 9]].concat());
            assert_eq!(decode(algorithm, &bytes), (vec![], Some(DecodeError::OtherCompression { algorithm: unknown })));
        }
        // The other flag of the low half stays unknown.
        let bytes = seal(RECORDS, CRITICAL | 0x08, 0, 0, b"");
        assert_eq!(decode(algorithm, &bytes), (vec![], Some(DecodeError::UnknownFlags { flags: 0x08 })));
    }
}

#[test]
fn what_gains_nothing_goes_as_it_is() {
    for &algorithm in Compression::ALL {
        let ack = Message::Ack(Ack { applied: Seq::new(9), durable: Seq::new(9), consistent: true });
        let goodbye =
            replikv_proto::Goodbye { reason: replikv_proto::GoodbyeReason::Closing, words: "words ".repeat(400) };
        let messages = [
            ack,
            Message::Goodbye(goodbye),
            records(text(511)),
            records(text(512)),
            records(noise(100_000)),
            records([noise(MAX_FRAME_LEN), text(MAX_FRAME_LEN), noise(700), text(1000)].concat()),
        ];
        let (bytes, packed) = compressed(&messages, algorithm);
        let flags: Vec<_> = frames(&bytes).into_iter().map(|(flags, _)| flags).collect();
        let (plain, packs) = (CRITICAL, CRITICAL | COMPRESSED);
        let expected = [plain, plain, plain, packs, plain, plain | MORE, packs | MORE, packs];
        assert_eq!(flags, expected, "{algorithm}");
        let tried: Vec<_> = packed.iter().map(Option::is_some).collect();
        assert_eq!(tried, [false, false, false, true, true, true, true, true]);
        assert_eq!(packed[4], Some(Packed { before: 100_000, after: 100_000 }), "time was spent on it");
        assert_eq!(decode(algorithm, &bytes), (messages.to_vec(), None));
    }
}

#[test]
fn what_becomes_no_shorter_goes_as_it_is_to_the_last_byte() {
    for &algorithm in Compression::ALL {
        let mut kinds = [0; 2];
        for zeros in 0..64 {
            let (bytes, packed) = compressed(&[records([noise(600), vec![0; zeros]].concat())], algorithm);
            let [Some(Packed { before, after })] = packed[..] else { panic!("it is tried") };
            let packs = frames(&bytes)[0].0 & COMPRESSED != 0;
            assert_eq!((packs, after <= before), (after < before, true), "{algorithm}: {zeros}");
            kinds[usize::from(packs)] += 1;
        }
        assert!(kinds[0] > 4 && kinds[1] > 4, "{algorithm}: {kinds:?}");
    }
}

#[test]
fn text_becomes_less_by_far() {
    for &algorithm in Compression::ALL {
        let (bytes, packed) = compressed(&[records(text(256 << 10))], algorithm);
        assert!(bytes.len() < 100 << 10, "{algorithm}: {}", bytes.len());
        assert_eq!(packed, [Some(Packed { before: 256 << 10, after: bytes.len() - FRAME_HEADER_LEN })]);
    }
}

#[test]
fn each_has_its_name_and_its_bit() {
    assert_eq!(Compression::ALL, [Compression::Lz4, Compression::Zstd]);
    for (algorithm, name, bit) in [(Compression::Lz4, "lz4", 1), (Compression::Zstd, "zstd", 2)] {
        assert_eq!((algorithm.to_string(), algorithm.feature()), (name.to_owned(), bit));
        assert_eq!(name.parse(), Ok(algorithm));
        assert_eq!(Compression::of_features(bit | 0xFFF0), Some(algorithm));
        let said = Decoder::new(DecoderLimits::default()).reading(Some(algorithm)).preamble();
        assert_eq!(said, Preamble { features: bit, ..Preamble::OWN });
        let mut bytes = Preamble::OWN.to_bytes();
        bytes[PREAMBLE_LEN - 4] = bit as u8;
        assert_eq!(said.to_bytes(), bytes);
        let event = Decoder::new(DecoderLimits::default()).decode(&mut BytesMut::from(&bytes[..]));
        assert_eq!(event, Ok(Some(Event::Preamble { version: 1, features: bit })));
    }
    assert_eq!(Compression::of_features(0xFFFC), None);
    let error = "brotli".parse::<Compression>().unwrap_err();
    assert_eq!(error.to_string(), "there is no compression \"brotli\"; this build knows: lz4, zstd");
}
