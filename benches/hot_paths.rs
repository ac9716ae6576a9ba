//! The hot paths of what decides, without a store, a socket or a clock: `cargo bench --bench hot_paths`.
//!
//! Figures of stores and of whole replication come from `replikv bench`.

use bytes::{Bytes, BytesMut};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use replikv::proto::layout::Head;
use replikv::proto::{
    Applier, Committer, CommitterConfig, Decoder, DecoderLimits, Encoder, Event, Intent, Message, Now, PreparedRecord,
    Record, RecordDraft, RecordKind, Records, Step, Work, origin,
};
use replikv::{Batch, Cursor, Epoch, LinkId, Op, Position, SourceId, StoreLimits};

const EPOCH: Epoch = Epoch { number: 1, nonce: 7 };
const MIB: usize = 1 << 20;

fn main() {
    divan::main();
}

fn start() -> Position {
    origin(SourceId::from_bytes([7; 16]), EPOCH)
}

// Random keys of 16 bytes, values of 100: what the figures of the README are measured with.
fn batch(rng: &mut fastrand::Rng, ops: usize) -> Batch {
    let mut batch = Batch::new();
    (0..ops).for_each(|_| batch.push(Op::Put { key: &rng.u128(..).to_be_bytes(), value: &[0x5A; 100] }));
    batch
}

fn body(rng: &mut fastrand::Rng, ops: usize) -> Bytes {
    let (ops, _, _) = batch(rng, ops).into_parts().expect("no key is empty");
    ops.as_bytes().clone()
}

fn draft(body: &[u8]) -> RecordDraft<'_> {
    RecordDraft { epoch: EPOCH, kind: RecordKind::Batch, time: 1_700_000_000_000, note: b"", body }
}

/// Records in a chain, each of so many operations.
fn records(count: usize, ops: usize) -> Vec<Record> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut at = start();
    let record = |_| {
        let body = body(&mut rng, ops);
        let prepared = PreparedRecord::after(&at, &draft(&body)).expect("it follows");
        at = prepared.position();
        let mut bytes = BytesMut::new();
        prepared.append_to(&mut bytes);
        Record::decode(bytes.freeze()).expect("it is a record")
    };
    (0..count).map(record).collect()
}

/// Hashes, chains and encodes one record.
#[divan::bench(args = [1, 100])]
fn record_encode(bencher: Bencher<'_, '_>, ops: usize) {
    let body = body(&mut fastrand::Rng::with_seed(1), ops);
    let (before, mut out) = (start(), BytesMut::with_capacity(MIB));
    bencher.counter(ItemsCount::new(ops)).bench_local(|| {
        out.clear();
        let record = PreparedRecord::after(black_box(&before), &draft(&body)).expect("it follows");
        record.append_to(&mut out)
    });
}

/// Decodes one record, checks its body against its hash, and its place in the chain.
#[divan::bench(args = [1, 100])]
fn record_decode_and_verify(bencher: Bencher<'_, '_>, ops: usize) {
    let bytes = records(1, ops).remove(0).bytes().clone();
    let before = start();
    bencher.counter(ItemsCount::new(ops)).bench_local(|| {
        let record = Record::decode(black_box(&bytes).clone()).expect("it is a record");
        record.header().verify_after(&before).expect("it follows");
        record
    });
}

/// As much as one message of records holds by default.
fn message() -> (Message, usize) {
    let mut parts = Vec::new();
    let mut len = 0;
    for record in records(1000, 10) {
        if len + record.bytes().len() > 256 << 10 {
            break;
        }
        len += record.bytes().len();
        parts.push(record.bytes().clone());
    }
    (Message::Records(Records { parts }), len)
}

/// 256 KiB of records into a frame, checksum included.
#[divan::bench]
fn frame_encode(bencher: Bencher<'_, '_>) {
    let (message, len) = message();
    let (encoder, mut out) = (Encoder::new(), BytesMut::with_capacity(MIB));
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        out.clear();
        encoder.encode(black_box(&message), &mut out).expect("it encodes");
    });
}

/// The frame back into a message, as it comes from a socket.
#[divan::bench]
fn frame_decode(bencher: Bencher<'_, '_>) {
    let (message, len) = message();
    let (encoder, mut preamble, mut frame) = (Encoder::new(), BytesMut::new(), BytesMut::new());
    encoder.encode_preamble(&mut preamble);
    encoder.encode(&message, &mut frame).expect("it encodes");
    let mut decoder = Decoder::new(DecoderLimits::for_batches(MIB));
    assert!(matches!(decoder.decode(&mut preamble), Ok(Some(Event::Preamble { .. }))));
    bencher
        .counter(BytesCount::new(len))
        .with_inputs(|| frame.clone())
        .bench_local_refs(|input| decoder.decode(input).expect("it decodes").expect("it is whole"));
}

/// A hundred waiting batches become one group: numbered, chained, encoded, and one write set.
#[divan::bench(args = [1, 10])]
fn committer_group_of_100(bencher: Bencher<'_, '_>, ops: usize) {
    let head = Head { position: start(), log_bytes: 0, uptime_ms: 0 };
    let limits = StoreLimits { max_key: 511, max_value: MIB, max_batch: MIB };
    let config = CommitterConfig { epoch: EPOCH, group_bytes: 8 * MIB, limits };
    let waiting = || {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut committer = Committer::new(config, head);
        (0..100).for_each(|ticket| committer.push(Intent { ticket, work: Work::Batch(batch(&mut rng, ops)) }));
        committer
    };
    bencher.counter(ItemsCount::new(100 * ops)).with_inputs(waiting).bench_local_refs(|committer| {
        let Step::Commit(group) = committer.step(Now::default(), 0) else { panic!("there is something to commit") };
        assert_eq!(group.entries.len(), 100);
        group
    });
}

/// Ten thousand records become one write set, in key order.
#[divan::bench]
fn applier_fold_of_10_000_records(bencher: Bencher<'_, '_>) {
    let records = records(10_000, 1);
    let received = || {
        let mut applier = Applier::new(LinkId::default(), Some(Cursor::at(start())), Applier::DEFAULT_TARGET);
        records.iter().for_each(|record| applier.push_record(record.clone()));
        applier
    };
    bencher.counter(ItemsCount::new(records.len())).with_inputs(received).bench_local_refs(|applier| {
        let group = applier.next_group().expect("it folds").expect("something waits");
        assert_eq!(group.records, 10_000);
        group
    });
}
