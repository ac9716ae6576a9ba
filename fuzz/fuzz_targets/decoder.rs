//! Bytes of a peer, in random cuts: the decoder neither panics nor depends on the cuts, and what it accepts it would
//! also send.
#![no_main]

use arbitrary::Arbitrary;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use replikv_fuzz::seal;
use replikv_proto::{DecodeError, Decoder, DecoderLimits, Encoder, Event, Message};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    greeted: bool,
    small: bool,
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

fn decoder(small: bool) -> Decoder {
    let limits = DecoderLimits { data: 1 << 20, control: 1 << 16 };
    Decoder::new(if small { DecoderLimits { data: 64, control: 32 } } else { limits })
}

fn decode(small: bool, bytes: &[u8], mut cuts: impl Iterator<Item = usize>) -> (Vec<Message>, Option<DecodeError>) {
    let (mut decoder, mut input, mut rest) = (decoder(small), BytesMut::new(), bytes);
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

fuzz_target!(|input: Input<'_>| {
    let encoder = Encoder::new();
    let mut preamble = BytesMut::new();
    encoder.encode_preamble(&mut preamble);
    let mut bytes = if input.greeted { preamble.to_vec() } else { Vec::new() };
    for Frame { kind, flags, odd, payload } in input.frames {
        // Kinds and flags that mean something, mostly; channels and request ids now and then.
        let (kind, channel) = if odd < 250 { (kind % 19, 0) } else { (kind, u16::from(odd - 250)) };
        bytes.extend(seal(kind, flags & if odd < 240 { 0x03 } else { 0xFF }, channel, u32::from(odd > 200), payload));
    }
    bytes.extend(input.raw);
    let whole = decode(input.small, &bytes, std::iter::empty());
    let cuts = input.cuts.into_iter().map(usize::from).cycle();
    assert_eq!(decode(input.small, &bytes, cuts), whole);
    for message in whole.0 {
        let mut again = preamble.clone();
        encoder.encode(&message, &mut again).expect("what was received can be sent");
        assert_eq!(decode(false, &again, std::iter::empty()), (vec![message], None));
    }
});
