//! The two ends of a session, driven by hand: no clock, no socket, no store, only a model of each.

mod comparing;
mod copying;
mod deciding;
mod filtering;
mod misbehaving;
mod probing;
mod relay;
mod resyncing;
mod slave_checks;
mod timing;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use replikv_core::{
    Batch, Coverage, Cursor, Digest, EncodedOps, Epoch, KeyRange, KeyRanges, Op, Position, Seq, SourceId, StoreLimits,
};

use super::*;
use crate::{
    Content, Hello, LogEntry, Message, Mode, Now, OnDivergence, PathNode, PreparedRecord, RecordDraft, RecordKind,
    Records, Welcome, origin,
};

const SOURCE: SourceId = SourceId::from_bytes([1; 16]);
const EPOCH: Epoch = Epoch { number: 1, nonce: 9 };
const LIMITS: StoreLimits = StoreLimits { max_key: 64, max_value: 1 << 20, max_batch: 4 << 20 };
const HEARTBEAT: Duration = Duration::from_secs(5);

type State = BTreeMap<Bytes, Bytes>;

/// A master's history, and what its data was after each record. The model that everything is compared with.
#[derive(Debug, Clone)]
struct History {
    entries: Vec<LogEntry>,
    /// One more than there are records: the first is the state before any.
    states: Vec<State>,
    floor: usize,
    published: usize,
}

impl History {
    fn new() -> Self {
        Self { entries: Vec::new(), states: vec![State::new()], floor: 0, published: 0 }
    }

    /// A history of `n` puts, all published.
    fn of(n: usize) -> Self {
        let mut history = Self::new();
        for n in 0..n {
            history.write(Batch::new().put(format!("key {n:03}"), "value"));
        }
        history
    }

    fn trimmed(mut self, floor: usize) -> Self {
        self.floor = floor;
        self
    }

    /// As it was after so many records.
    fn at(mut self, seq: usize) -> Self {
        self.entries.truncate(seq);
        self.states.truncate(seq + 1);
        self.published = self.published.min(seq);
        self
    }

    /// Hands a record to the store: it may be read from now on, and may come to nothing.
    fn hand(&mut self, batch: Batch) -> Position {
        let body = batch.into_parts().unwrap().0;
        let before = self.position(self.entries.len());
        let draft = RecordDraft { epoch: EPOCH, kind: RecordKind::Batch, time: 7, note: b"", body: body.as_bytes() };
        let record = PreparedRecord::after(&before, &draft).unwrap();
        let mut bytes = BytesMut::new();
        record.append_to(&mut bytes);
        let log_bytes = self.bytes_at(self.entries.len()) + bytes.len() as u64;
        self.entries.push(LogEntry { position: record.position(), bytes: bytes.freeze(), body: None, log_bytes });
        let mut state = self.states.last().unwrap().clone();
        change(&mut state, &body);
        self.states.push(state);
        record.position()
    }

    /// Everything that was handed over is published.
    fn publish(&mut self) {
        self.published = self.entries.len();
    }

    /// What was handed over and is not published has come to nothing.
    fn fail(&mut self) {
        self.entries.truncate(self.published);
        self.states.truncate(self.published + 1);
    }

    fn write(&mut self, batch: Batch) -> Position {
        let position = self.hand(batch);
        self.publish();
        position
    }

    fn position(&self, seq: usize) -> Position {
        seq.checked_sub(1).map_or_else(|| origin(SOURCE, EPOCH), |index| self.entries[index].position)
    }

    fn bytes_at(&self, seq: usize) -> u64 {
        seq.checked_sub(1).map_or(0, |index| self.entries[index].log_bytes)
    }

    fn head(&self) -> Position {
        self.position(self.published)
    }

    fn view(&self) -> View {
        View {
            published: self.head(),
            handed: self.position(self.entries.len()),
            floor: self.position(self.floor),
            log_bytes: self.bytes_at(self.published),
            retained_bytes: self.bytes_at(self.published) - self.bytes_at(self.floor),
        }
    }

    fn locate(&self, positions: &[Position]) -> Vec<Located> {
        let locate = |position: &Position| {
            let seq = usize::try_from(position.seq.as_u64()).unwrap();
            if seq > self.published {
                Located::Ahead
            } else if self.position(seq) != *position {
                Located::Mismatch
            } else if seq < self.floor {
                Located::Shared
            } else {
                Located::Held { log_bytes: self.bytes_at(seq) }
            }
        };
        positions.iter().map(locate).collect()
    }

    fn read(&self, after: Position, max_bytes: usize) -> LogAnswer {
        let from = usize::try_from(after.seq.as_u64()).unwrap();
        if from < self.floor {
            return LogAnswer::Trimmed;
        }
        let (mut parts, mut bytes) = (Vec::new(), 0);
        for entry in &self.entries[from..self.published] {
            if !parts.is_empty() && bytes + entry.bytes.len() > max_bytes {
                break;
            }
            bytes += entry.bytes.len();
            parts.push(entry.bytes.clone());
        }
        let last = self.position(from + parts.len());
        LogAnswer::Records { parts, last }
    }

    /// The records after the first `from`, as one message.
    fn records(&self, from: usize, to: usize) -> Message {
        Message::Records(Records { parts: self.entries[from..to].iter().map(|entry| entry.bytes.clone()).collect() })
    }
}

/// Does to a model what a store does.
fn change(state: &mut State, ops: &EncodedOps) {
    for op in ops {
        change_one(state, op);
    }
}

fn change_one(state: &mut State, op: Op<'_>) {
    match op {
        Op::Put { key, value } => drop(state.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
        Op::Delete { key } => drop(state.remove(key)),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
            state.retain(|key, _| !range.contains(key));
        }
    }
}

fn puts<'a>(entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> EncodedOps {
    entries.into_iter().fold(Batch::new(), |batch, (key, value)| batch.put(key, value)).into_parts().unwrap().0
}

/// A page of keys that all hold `v`.
fn content(range: KeyRange, read_at: Position, keys: &[&str]) -> Content {
    Content { range, read_at, entries: puts(keys.iter().map(|key| (key.as_bytes(), &b"v"[..]))) }
}

fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), unix_ms: 1_700_000_000_000 + seconds * 1000 }
}

fn elsewhere(position: Position) -> Position {
    Position { source: SourceId::from_bytes([2; 16]), ..position }
}

fn parted(position: Position) -> Position {
    Position { digest: Digest::from_bytes([0xEE; 16]), ..position }
}

fn hello(cursor: Option<Cursor>) -> Hello {
    Hello {
        slave: "edge".into(),
        nonce: 1,
        cursor,
        holds_data: false,
        checkpoints: Vec::new(),
        limits: LIMITS,
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
    }
}

fn master_config() -> MasterSessionConfig {
    let handshake_timeout = Duration::from_secs(10);
    MasterSessionConfig {
        source: SOURCE,
        limits: LIMITS,
        heartbeat: HEARTBEAT,
        handshake_timeout,
        chunk: 64,
        relay: None,
        compare_bytes_per_second: None,
        checkpoints: Vec::new(),
    }
}

/// Below nobody but the master.
fn as_relay() -> Relay {
    Relay { path: vec![PathNode { name: "relay".into(), nonce: 900 }], wait: Duration::from_secs(300) }
}

fn master(history: &History) -> MasterSession {
    MasterSession::new(master_config(), history.view(), Vec::new(), at(0))
}

fn slave_config(cursor: Option<Cursor>) -> SlaveSessionConfig {
    SlaveSessionConfig {
        slave: "edge".into(),
        nonce: 1,
        cursor,
        holds_data: false,
        checkpoints: Vec::new(),
        limits: LIMITS,
        ranges: KeyRanges::all(),
        handshake_timeout: Duration::from_secs(10),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
        resync: None,
        fence: None,
    }
}

fn welcome(history: &History, mode: Mode) -> Welcome {
    let view = history.view();
    Welcome {
        source: SOURCE,
        epochs: Vec::new(),
        head: view.published,
        floor: view.floor,
        limits: LIMITS,
        mode,
        heartbeat_ms: 5000,
        log_bytes: view.log_bytes,
        behind_bytes: 0,
        verifies: false,
        path: Vec::new(),
        checkpoints: Vec::new(),
    }
}

/// A slave's session that has been welcomed, its first actions taken.
fn following(history: &History, cursor: Option<Cursor>, mode: Mode) -> SlaveSession {
    let mut slave = SlaveSession::new(slave_config(cursor), at(0));
    slave.handle_message(at(0), Message::Welcome(welcome(history, mode))).unwrap();
    while let Some(action) = slave.poll_action() {
        assert!(!matches!(action, SlaveAction::Close(_)), "{action:?}");
    }
    slave
}

/// A master's session that streams to a slave whose cursor is `cursor`, its welcome sent.
fn streaming(history: &History, cursor: Option<Cursor>) -> MasterSession {
    let mut master = master(history);
    master.handle_message(at(0), Message::Hello(hello(cursor))).unwrap();
    loop {
        match master.poll_action() {
            Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
            Some(MasterAction::Send(Message::Welcome(_))) => return master,
            Some(MasterAction::Joined { .. } | MasterAction::Verified(_)) => {}
            other => panic!("expected a welcome, got {other:?}"),
        }
    }
}

fn all_actions(session: &mut SlaveSession) -> Vec<SlaveAction> {
    std::iter::from_fn(|| session.poll_action()).collect()
}

/// True for what changes a store.
fn writes(action: &SlaveAction) -> bool {
    use SlaveAction::{Apply, ApplyPortion, Begin, Copy, Covered, Resync, Touch};
    matches!(action, Begin(_) | Resync(..) | Apply(_) | ApplyPortion(_) | Copy(_) | Touch(_) | Covered { .. })
}

/// A copy of everything that has come as far as `key`, by a page that was read at `read_at`.
fn copied_to(key: &'static str, read_at: Position) -> Coverage {
    let mut coverage = Coverage::begin(KeyRange::all());
    assert!(coverage.advance(&KeyRange::from_bounds(..key), read_at));
    coverage
}

fn seq(n: u64) -> Seq {
    Seq::new(n)
}
