//! Bytes of a peer, in random cuts, compressed or not: the decoder neither panics nor depends on the cuts, and what it
//! accepts it would also send. Nothing becomes longer than is allowed.
#![no_main]

use arbitrary::Arbitrary;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use replikv_fuzz::seal;
use replikv_proto::{Compression, Compressor, DecodeError, Decoder, DecoderLimits, Encoder, Event, Message, Records};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    greeted: bool,
    /// Whether limits are small, and what is read compressed.
    ways: u8,
    cuts: [u8; 4],
    frames: Vec<Frame<'a>>,
    raw: &'a [u8],
}

#[derive(Debug, Arbitrary)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    odd: u8,
    payload: &'a [u8],
}

const COMPRESSED: u8 = 0x04;
const SMALL: DecoderLimits = DecoderLimits { data: 64, control: 32 };
const LARGE: DecoderLimits = DecoderLimits { data: 1 << 20, control: 1 << 16 };

#[derive(Clone, Copy)]
struct Ways {
    limits: DecoderLimits,
    reads: Option<Compression>,
}

fn decode(ways: Ways, bytes: &[u8], mut cuts: impl Iterator<Item = usize>) -> (Vec<Message>, Option<DecodeError>) {
    let mut decoder = Decoder::new(ways.limits).reading(ways.reads);
    let (mut input, mut rest) = (BytesMut::new(), bytes);
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(cuts.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        rest = after;
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Event::Message(message))) => messages.push(*message),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

// What a frame of records says and holds that an honest sender compressed, with some bits of it flipped.
fn packed(algorithm: Compression, payload: &[u8], odd: u8) -> Vec<u8> {
    // Less is not compressed.
    let long = payload.repeat(600 / payload.len().max(1) + 1).into();
    let mut outgoing = Encoder::new().begin(&Message::Records(Records { parts: vec![long] })).expect("it is records");
    let mut frame = BytesMut::new();
    if let Some(fragment) = outgoing.next_fragment() {
        fragment.compress(&mut Compressor::new(algorithm), &mut frame);
    }
    let mut packed = frame.split_off(replikv_proto::FRAME_HEADER_LEN).to_vec();
    let at = usize::from(odd) * 7 % packed.len().max(1);
    if let Some(byte) = packed.get_mut(at).filter(|_| odd % 2 == 1) {
        *byte ^= odd;
    }
    packed
}

fuzz_target!(|input: Input<'_>| {
    let encoder = Encoder::new();
    let mut preamble = BytesMut::new();
    encoder.encode_preamble(&mut preamble);
    let mut bytes = if input.greeted { preamble.to_vec() } else { Vec::new() };
    let reads = match input.ways >> 1 & 3 {
        0 | 1 => None,
        way => Compression::ALL.get(usize::from(way) - 2).copied(),
    };
    let ways = Ways { limits: if input.ways & 1 == 1 { SMALL } else { LARGE }, reads };
    for Frame { kind, flags, odd, payload } in input.frames {
        if let Some(algorithm) = reads.filter(|_| flags & COMPRESSED != 0) {
            let (kind, flags) = (if odd < 200 { 6 } else { kind % 20 }, flags & 0x07);
            // As somebody compressed it, or as it is.
            let payload = if odd < 128 { packed(algorithm, payload, odd) } else { payload.to_vec() };
            bytes.extend(seal(kind, flags, 0, 0, &payload));
            continue;
        }
        // Kinds and flags that mean something, mostly; channels and request ids now and then.
        let (kind, channel) = if odd < 250 { (kind % 19, 0) } else { (kind, u16::from(odd - 250)) };
        bytes.extend(seal(kind, flags & if odd < 240 { 0x03 } else { 0xFF }, channel, u32::from(odd > 200), payload));
    }
    bytes.extend(input.raw);
    let whole = decode(ways, &bytes, std::iter::empty());
    let cuts = input.cuts.into_iter().map(usize::from).cycle();
    assert_eq!(decode(ways, &bytes, cuts), whole);
    let large = Ways { limits: LARGE, ..ways };
    for message in whole.0 {
        let mut again = preamble.clone();
        encoder.encode(&message, &mut again).expect("what was received can be sent");
        assert!(again.len() <= ways.limits.data.max(ways.limits.control) + bytes.len() + 64);
        assert_eq!(decode(large, &again, std::iter::empty()), (vec![message.clone()], None));
        if let Some(algorithm) = reads {
            let (mut again, mut compressor) = (preamble.clone(), Compressor::new(algorithm));
            let mut outgoing = encoder.begin(&message).expect("what was received can be sent");
            while let Some(fragment) = outgoing.next_fragment() {
                fragment.compress(&mut compressor, &mut again);
            }
            assert_eq!(decode(large, &again, std::iter::empty()), (vec![message], None));
        }
    }
});
