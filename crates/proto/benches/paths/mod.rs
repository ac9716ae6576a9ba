//! The hot paths of what decides, without a store, a socket or a clock. One list, timed by `hot_paths` and counted by
//! `instructions` and `allocations`.

mod fixture;

use std::any::Any;
use std::fmt;
use std::hint::black_box;

use bytes::BytesMut;
use replikv_core::{Cursor, LinkId, StoreLimits};
use replikv_proto::layout::Head;
use replikv_proto::{
    Applier, Committer, CommitterConfig, Decoder, DecoderLimits, Encoder, Event, Intent, LogAnswer, MasterAction, Now,
    PreparedRecord, Record, SlaveAction, Step, Work,
};

use fixture::{EPOCH, History, MIB, batch, body, draft, message, records, start};

/// What is measured, with its inputs ready. What it returns is dropped when the measurement is over.
pub(crate) type Run = Box<dyn FnOnce() -> Box<dyn Any>>;

/// One path.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    /// What one run works on: so many of these.
    pub(crate) items: u64,
    pub(crate) unit: &'static str,
    pub(crate) prepare: fn() -> Run,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (items: {}, each one {})", self.name, self.items, self.unit)
    }
}

/// All of them.
pub(crate) const PATHS: &[Path] = &[
    Path { name: "record_encode", items: 100, unit: "operation", prepare: record_encode },
    Path { name: "record_decode_and_verify", items: 100, unit: "operation", prepare: record_decode_and_verify },
    Path { name: "frame_encode", items: 256 << 10, unit: "byte", prepare: frame_encode },
    Path { name: "frame_decode", items: 256 << 10, unit: "byte", prepare: frame_decode },
    Path { name: "committer_group_of_100_entries", items: 100, unit: "entry", prepare: committer_group_of_entries },
    Path { name: "committer_group_of_100_batches", items: 1000, unit: "entry", prepare: committer_group_of_batches },
    Path { name: "applier_fold", items: 10_000, unit: "record", prepare: applier_fold },
    Path { name: "master_session_step", items: 1000, unit: "record", prepare: master_session_step },
    Path { name: "slave_session_step", items: 1000, unit: "record", prepare: slave_session_step },
];

/// Hashes, chains and encodes one record of a hundred operations.
fn record_encode() -> Run {
    let body = body(&mut fastrand::Rng::with_seed(1), 100);
    let (before, mut out) = (start(), BytesMut::with_capacity(MIB));
    Box::new(move || {
        let record = PreparedRecord::after(black_box(&before), &draft(&body)).expect("it follows");
        record.append_to(&mut out);
        Box::new(out)
    })
}

/// Decodes it, checks its body against its hash, and its place in the chain.
fn record_decode_and_verify() -> Run {
    let bytes = records(1, 100).remove(0).bytes().clone();
    let before = start();
    Box::new(move || {
        let record = Record::decode(black_box(bytes)).expect("it is a record");
        record.header().verify_after(&before).expect("it follows");
        Box::new(record)
    })
}

/// 256 KiB of records, as much as one message holds by default, into a frame with its checksum.
fn frame_encode() -> Run {
    let (message, encoder) = (message(), Encoder::new());
    let mut out = BytesMut::with_capacity(MIB);
    Box::new(move || {
        encoder.encode(black_box(&message), &mut out).expect("it encodes");
        Box::new(out)
    })
}

/// The frame back into a message, as it comes from a socket.
fn frame_decode() -> Run {
    let (encoder, mut preamble, mut frame) = (Encoder::new(), BytesMut::new(), BytesMut::new());
    encoder.encode_preamble(&mut preamble);
    encoder.encode(&message(), &mut frame).expect("it encodes");
    let mut decoder = Decoder::new(DecoderLimits::for_batches(MIB));
    assert!(matches!(decoder.decode(&mut preamble), Ok(Some(Event::Preamble { .. }))));
    Box::new(move || Box::new(decoder.decode(&mut frame).expect("it decodes").expect("it is whole")))
}

/// A hundred waiting batches become one group: numbered, chained, encoded, and one write set.
fn committer_group(ops: usize) -> Run {
    let head = Head { position: start(), log_bytes: 0, uptime_ms: 0 };
    let limits = StoreLimits { max_key: 511, max_value: MIB, max_batch: MIB };
    let config = CommitterConfig { epoch: EPOCH, group_bytes: 8 * MIB, limits };
    let mut rng = fastrand::Rng::with_seed(1);
    let mut committer = Committer::new(config, head);
    (0..100).for_each(|ticket| committer.push(Intent { ticket, work: Work::Batch(batch(&mut rng, ops)) }));
    Box::new(move || {
        let Step::Commit(group) = committer.step(Now::default(), 0) else { panic!("there is something to commit") };
        assert_eq!(group.entries.len(), 100);
        Box::new((committer, group))
    })
}

fn committer_group_of_entries() -> Run {
    committer_group(1)
}

fn committer_group_of_batches() -> Run {
    committer_group(10)
}

/// Ten thousand records become one write set, in key order.
fn applier_fold() -> Run {
    let records = records(10_000, 1);
    let mut applier = Applier::new(LinkId::default(), Some(Cursor::at(start())), Applier::DEFAULT_TARGET);
    records.iter().for_each(|record| applier.push_record(record.clone()));
    Box::new(move || {
        let group = applier.next_group().expect("it folds").expect("something waits");
        assert_eq!(group.records, 10_000);
        Box::new((applier, group, records))
    })
}

/// A master's session sends a thousand records, each on its own, to a slave that acknowledges each.
fn master_session_step() -> Run {
    let history = History::of(1000);
    let mut session = history.streaming();
    let views: Vec<_> = (1..=history.records.len()).map(|count| history.view(count)).collect();
    Box::new(move || {
        for (record, view) in history.records.iter().zip(views) {
            session.handle_view(view);
            loop {
                match session.poll_action().expect("there is a record to send") {
                    MasterAction::ReadRecords { .. } => {
                        let parts = vec![record.bytes().clone()];
                        session.handle_records(LogAnswer::Records { parts, last: record.position() });
                    }
                    MasterAction::Send(message) => {
                        black_box(message);
                        break;
                    }
                    _ => {}
                }
            }
            session.handle_message(Now::default(), fixture::ack(record.position().seq)).expect("it was sent");
        }
        Box::new((session, history))
    })
}

/// A slave's session checks a thousand records, in messages of ten, and hands them on.
fn slave_session_step() -> Run {
    let history = History::of(1000);
    let (mut session, messages) = (history.following(), history.messages(10));
    Box::new(move || {
        let mut applied = 0;
        for message in messages {
            session.handle_message(Now::default(), message).expect("it follows");
            while let Some(action) = session.poll_action() {
                applied += usize::from(matches!(black_box(action), SlaveAction::Apply(_)));
            }
        }
        assert_eq!(applied, 1000);
        Box::new((session, history))
    })
}
