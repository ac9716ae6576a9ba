//! Inputs: random keys of 16 bytes and values of 100, which the figures of the README are measured with.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use replikv_core::{Batch, Cursor, Epoch, KeyRanges, Op, Position, Seq, SourceId, StoreLimits};
use replikv_proto::{
    Ack, Hello, Located, MasterAction, MasterSession, MasterSessionConfig, Message, Mode, Now, OnDivergence,
    PreparedRecord, Record, RecordDraft, RecordKind, Records, SlaveSession, SlaveSessionConfig, View, Welcome, origin,
};

pub(super) const EPOCH: Epoch = Epoch { number: 1, nonce: 7 };
pub(super) const MIB: usize = 1 << 20;

const SOURCE: SourceId = SourceId::from_bytes([7; 16]);
const LIMITS: StoreLimits = StoreLimits { max_key: 511, max_value: MIB, max_batch: MIB };
const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn start() -> Position {
    origin(SOURCE, EPOCH)
}

pub(super) fn batch(rng: &mut fastrand::Rng, ops: usize) -> Batch {
    let mut batch = Batch::new();
    (0..ops).for_each(|_| batch.push(Op::Put { key: &rng.u128(..).to_be_bytes(), value: &[0x5A; 100] }));
    batch
}

pub(super) fn body(rng: &mut fastrand::Rng, ops: usize) -> Bytes {
    let (ops, _, _) = batch(rng, ops).into_parts().expect("no key is empty");
    ops.as_bytes().clone()
}

pub(super) fn draft(body: &[u8]) -> RecordDraft<'_> {
    RecordDraft { epoch: EPOCH, kind: RecordKind::Batch, time: 1_700_000_000_000, note: b"", body }
}

/// Records in a chain, each of so many operations.
pub(super) fn records(count: usize, ops: usize) -> Vec<Record> {
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

/// As much as one message of records holds by default.
pub(super) fn message() -> Message {
    let mut parts = Vec::new();
    let mut len = 0;
    for record in records(1000, 10) {
        if len + record.bytes().len() > 256 << 10 {
            break;
        }
        len += record.bytes().len();
        parts.push(record.bytes().clone());
    }
    Message::Records(Records { parts })
}

pub(super) fn ack(seq: Seq) -> Message {
    Message::Ack(Ack { applied: seq, durable: seq, consistent: true })
}

/// A master's history of single entries, and both ends of a session that begins before the first.
pub(super) struct History {
    pub(super) records: Vec<Record>,
}

impl History {
    pub(super) fn of(count: usize) -> Self {
        Self { records: records(count, 1) }
    }

    /// The master after so many records.
    pub(super) fn view(&self, count: usize) -> View {
        let log_bytes = self.records[..count].iter().map(|record| record.bytes().len() as u64).sum();
        let head = count.checked_sub(1).map_or_else(start, |last| self.records[last].position());
        View { published: head, handed: head, floor: start(), log_bytes, retained_bytes: log_bytes }
    }

    /// Messages of so many records.
    pub(super) fn messages(&self, records: usize) -> Vec<Message> {
        let bytes = |records: &[Record]| records.iter().map(|record| record.bytes().clone()).collect();
        self.records.chunks(records).map(|records| Message::Records(Records { parts: bytes(records) })).collect()
    }

    /// The master's end, when it has welcomed its slave.
    pub(super) fn streaming(&self) -> MasterSession {
        let config = MasterSessionConfig {
            source: SOURCE,
            limits: LIMITS,
            heartbeat: HOUR,
            handshake_timeout: HOUR,
            chunk: 256 << 10,
            compare_bytes_per_second: None,
            checkpoints: Vec::new(),
            relay: None,
        };
        let mut session = MasterSession::new(config, self.view(0), Vec::new(), Now::default());
        session.handle_message(Now::default(), Message::Hello(hello())).expect("it is awaited");
        while let Some(action) = session.poll_action() {
            if let MasterAction::Locate(positions) = action {
                session.handle_located(&vec![Located::Held { log_bytes: 0 }; positions.len()]);
            }
        }
        session.handle_message(Now::default(), ack(Seq::ZERO)).expect("it is welcome");
        session
    }

    /// The slave's end, when it has been welcomed.
    pub(super) fn following(&self) -> SlaveSession {
        let config = SlaveSessionConfig {
            slave: "edge".into(),
            nonce: 1,
            cursor: Some(Cursor::at(start())),
            holds_data: false,
            checkpoints: Vec::new(),
            limits: LIMITS,
            ranges: KeyRanges::all(),
            temporary: false,
            handshake_timeout: HOUR,
            on_divergence: OnDivergence::Refuse,
            resync: None,
            fence: None,
        };
        let view = self.view(self.records.len());
        let welcome = Welcome {
            source: SOURCE,
            epochs: Vec::new(),
            head: view.published,
            floor: view.floor,
            limits: LIMITS,
            mode: Mode::Resume,
            heartbeat_ms: 3_600_000,
            log_bytes: view.log_bytes,
            behind_bytes: view.log_bytes,
            checkpoints: Vec::new(),
            verifies: true,
            path: Vec::new(),
        };
        let mut session = SlaveSession::new(config, Now::default());
        session.handle_message(Now::default(), Message::Welcome(welcome)).expect("it is awaited");
        while session.poll_action().is_some() {}
        session
    }
}

fn hello() -> Hello {
    Hello {
        slave: "edge".into(),
        nonce: 1,
        cursor: Some(Cursor::at(start())),
        holds_data: false,
        checkpoints: Vec::new(),
        limits: LIMITS,
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
    }
}
