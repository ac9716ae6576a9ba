//! Records that are what they should be, nearly so, or not at all.
#![no_main]

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use replikv_core::Epoch;
use replikv_fuzz::position;
use replikv_proto::{PreparedRecord, Record, RecordDraft, RecordKind};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    drafts: Vec<Draft<'a>>,
    damage: Option<(u16, u8)>,
    raw: &'a [u8],
}

#[derive(Debug, Arbitrary)]
struct Draft<'a> {
    kind: u8,
    epoch: u8,
    time: u64,
    note: &'a [u8],
    body: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let start = position(3);
    let (mut at, mut bytes) = (start, BytesMut::new());
    for Draft { kind, epoch, time, note, body } in input.drafts.iter().take(8) {
        let kind = [RecordKind::Batch, RecordKind::Epoch, RecordKind::Base][usize::from(*kind) % 3];
        let epoch = if *epoch < 200 { at.epoch } else { Epoch { number: u64::from(*epoch), nonce: 1 } };
        // Its body may be no operations: the hash is right then, and it must be refused all the same.
        let draft = RecordDraft { epoch, kind, time: *time, note, body };
        let Ok(record) = PreparedRecord::after(&at, &draft) else { continue };
        record.append_to(&mut bytes);
        at = record.position();
    }
    bytes.extend_from_slice(input.raw);
    let damaged = input.damage.filter(|(place, mask)| *mask != 0 && usize::from(*place) < bytes.len());
    if let Some((place, mask)) = damaged {
        bytes[usize::from(place)] ^= mask;
    }
    let mut rest: Bytes = bytes.freeze();
    let mut at = start;
    loop {
        let before = rest.clone();
        match Record::take(&mut rest) {
            Ok(record) => {
                assert_eq!(Record::decode(record.bytes().clone()).as_ref(), Ok(&record));
                assert_eq!(before.len(), record.bytes().len() + rest.len());
                assert_eq!(record.header().body_len, record.body().byte_len());
                if record.header().verify_after(&at).is_err() {
                    break;
                }
                assert_eq!(Some(record.position().seq), at.seq.next());
                at = record.position();
            }
            Err(_) => {
                assert_eq!(rest, before, "a record that is refused takes nothing");
                break;
            }
        }
    }
});
