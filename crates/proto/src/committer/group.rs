//! A group of records that are committed together.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use replikv_core::{EncodedOps, Keyspace, LargePut, LinkId, Position, Precondition, StoreError, WriteSet};

use super::job::{Job, Waiting};
use super::lone::LoneRecord;
use super::{Answer, CommitterConfig, Gathered};
use crate::derive::Overlay;
use crate::layout::{Checkpoint, Head, Stored};
use crate::planted::{self, Bug};
use crate::{Now, PreparedRecord, RecordDraft, RecordKind};

/// A group on its way to the store.
#[derive(Debug)]
pub struct CommitGroup<T> {
    /// What the store applies: log, data, head and checkpoints, if the head is still the one before.
    pub writes: WriteSet,
    /// The head after it.
    pub head: Head,
    /// Its records, in order.
    pub entries: Vec<LogEntry>,
    /// The checkpoints among them.
    pub checkpoints: Vec<Checkpoint>,
    /// Whom to tell, once the store has answered: conflicts wait too, since they may have seen what is not committed
    /// yet.
    pub answers: Vec<(T, Answer)>,
    /// What each of them wants, for when the group is overtaken. Never locked: functions are `Send` alone, and a group
    /// is shared.
    jobs: Mutex<Vec<Job>>,
}

impl<T> CommitGroup<T> {
    /// What must be decided anew, and whom to tell already: what was refused for what it is, is refused.
    pub(super) fn into_waiting(self) -> (Vec<Waiting<T>>, Vec<(T, Answer)>) {
        let (mut waiting, mut refused) = (Vec::new(), Vec::new());
        let jobs = self.jobs.into_inner().unwrap_or_else(PoisonError::into_inner);
        for ((ticket, answer), job) in self.answers.into_iter().zip(jobs) {
            match answer {
                Answer::Failed(_) => refused.push((ticket, answer)),
                _ => waiting.push(Waiting { ticket, job }),
            }
        }
        (waiting, refused)
    }
}

/// A record of a group: the bytes that are stored, kept in the ring and sent, without a copy.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// The position that is reached with it.
    pub position: Position,
    /// The whole record; of a long one, what comes before its body.
    pub bytes: Bytes,
    /// The body of a long record, which is nowhere copied: the store gets it for the data and for the log.
    pub body: Option<Bytes>,
    /// Bytes of records ever appended, this one included.
    pub log_bytes: u64,
}

impl LogEntry {
    /// The length of the whole record, in bytes.
    pub fn byte_len(&self) -> usize {
        self.bytes.len() + self.body.as_ref().map_or(0, Bytes::len)
    }

    /// The record, in one or two buffers.
    pub fn parts(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.bytes).chain(&self.body)
    }
}

/// From here on the body of a record is not copied: it costs less to put it into the store in two pieces.
const LONG: usize = 1 << 20;

/// Where a record of a group is.
#[derive(Debug)]
enum Place {
    /// In the buffer of the log.
    Log(std::ops::Range<usize>),
    /// Header and body apart.
    Apart(Bytes, Bytes),
}

/// What is committed beside records: what links know.
#[derive(Debug, Default)]
struct Beside {
    links: Vec<LinkId>,
    requires: Vec<Precondition>,
    ops: Vec<EncodedOps>,
    bytes: usize,
}

/// A group that takes more.
#[derive(Debug)]
pub(super) struct Building<T> {
    head: Head,
    now: Now,
    /// Puts of log entries, encoded: `[key, record]` after one another.
    log: BytesMut,
    /// Where the header of each record is encoded.
    header: Vec<u8>,
    /// Puts of long records.
    long: Vec<LargePut>,
    long_bytes: usize,
    entries: Vec<(Position, Place, u64)>,
    bodies: Vec<EncodedOps>,
    body_bytes: usize,
    checkpoints: Vec<Checkpoint>,
    beside: Beside,
    answers: Vec<(T, Answer)>,
    /// One for each answer.
    jobs: Vec<Job>,
    decided: Option<Answer>,
    /// Made when somebody looks; `seen` bodies are in it.
    overlay: Overlay,
    seen: usize,
}

/// Whom to tell that a group could not be made, and why.
type Spoiled<T> = (Vec<(T, Answer)>, StoreError);

impl<T> Building<T> {
    pub(super) fn new(head: Head, now: Now, uptime_ms: u64) -> Self {
        Self {
            head: Head { uptime_ms: uptime_ms.max(head.uptime_ms), ..head },
            now,
            log: BytesMut::new(),
            header: Vec::new(),
            long: Vec::new(),
            long_bytes: 0,
            entries: Vec::new(),
            bodies: Vec::new(),
            body_bytes: 0,
            checkpoints: Vec::new(),
            beside: Beside::default(),
            answers: Vec::new(),
            jobs: Vec::new(),
            decided: None,
            overlay: Overlay::default(),
            seen: 0,
        }
    }

    pub(super) fn byte_len(&self) -> usize {
        self.log.len() + self.long_bytes + self.body_bytes + self.beside.bytes
    }

    /// True if it holds something of the very link that `job` is of.
    pub(super) fn has_link(&self, job: &Job) -> bool {
        matches!(job, Job::Gathered(gathered) if self.beside.links.contains(&gathered.link))
    }

    pub(super) fn position(&self) -> Position {
        self.head.position
    }

    pub(super) fn has_records(&self) -> bool {
        !self.entries.is_empty()
    }

    /// What the next intent sees of this group.
    pub(super) fn overlay(&mut self) -> &Overlay {
        for body in self.bodies[self.seen..].iter().filter(|_| !planted::is(Bug::GroupUnseen)) {
            self.overlay.add(body);
        }
        self.seen = self.bodies.len();
        &self.overlay
    }

    pub(super) fn decide(&mut self, answer: Answer) {
        self.decided = Some(answer);
    }

    pub(super) fn last_answer(&mut self) -> Option<Answer> {
        self.decided.take()
    }

    pub(super) fn answer(&mut self, waiting: Waiting<T>, answer: Answer) {
        self.answers.push((waiting.ticket, answer));
        self.jobs.push(waiting.job);
    }

    pub(super) fn record(&mut self, config: &CommitterConfig, kind: RecordKind, ops: EncodedOps, note: &Bytes) {
        let draft = RecordDraft { epoch: config.epoch, kind, time: self.now.unix_ms, note, body: ops.as_bytes() };
        let record = match PreparedRecord::reusing(take(&mut self.header), &self.head.position, &draft) {
            Ok(record) => record,
            Err(error) => return self.decide(Answer::Failed(StoreError::backend(error))),
        };
        let position = record.position();
        let place = if ops.byte_len() < LONG {
            put_log_key(&mut self.log, &position, record.byte_len());
            Place::Log(record.append_to(&mut self.log))
        } else {
            let (head, body) = (Bytes::copy_from_slice(record.head()), ops.as_bytes().clone());
            self.long.extend(LargePut::new(&position.seq.to_key(), vec![head.clone(), body.clone()]));
            self.long_bytes += record.byte_len();
            Place::Apart(head, body)
        };
        self.head.position = position;
        self.head.log_bytes += record.byte_len() as u64;
        self.header = record.into_buffer();
        self.entries.push((position, place, self.head.log_bytes));
        if Checkpoint::is_due(position.seq) {
            let Head { log_bytes, uptime_ms, .. } = self.head;
            self.checkpoints.push(Checkpoint { position, log_bytes, uptime_ms });
        }
        self.body_bytes += ops.byte_len();
        self.bodies.push(ops);
        self.decide(Answer::Committed(position));
    }

    /// As [`record`](Self::record), of what a link has brought: `ops` are its operations and what follows from them.
    pub(super) fn gathered(&mut self, config: &CommitterConfig, gathered: &Gathered, ops: EncodedOps) {
        self.record(config, RecordKind::Batch, ops, &Bytes::new());
        if matches!(self.decided, Some(Answer::Committed(_))) {
            self.beside.links.push(gathered.link.clone());
            self.beside.requires.extend(gathered.requires.iter().cloned());
            self.beside.bytes += gathered.beside.byte_len();
            self.beside.ops.push(gathered.beside.clone());
        }
    }

    pub(super) fn finish(self, before: Head) -> Result<CommitGroup<T>, Spoiled<T>> {
        let log = self.log.freeze();
        match Self::writes(&before, &self.head, &log, self.long, &self.bodies, &self.checkpoints, &self.beside) {
            Ok(writes) => {
                let entries = self.entries.into_iter();
                let entry = |(position, place, log_bytes)| entry(position, place, log_bytes, &log);
                let (head, checkpoints, answers) = (self.head, self.checkpoints, self.answers);
                let jobs = Mutex::new(self.jobs);
                Ok(CommitGroup { writes, head, entries: entries.map(entry).collect(), checkpoints, answers, jobs })
            }
            Err(error) => Err((self.answers, error)),
        }
    }

    /// As [`finish`](Self::finish), for one record whose operations are in the store's transaction already: without them.
    pub(super) fn finish_alone(self, before: Head) -> Result<Option<LoneRecord>, StoreError> {
        if let Some(Answer::Failed(error)) = self.decided {
            return Err(error);
        }
        let log = self.log.freeze();
        let Some((position, place, log_bytes)) = self.entries.into_iter().next() else { return Ok(None) };
        let writes = Self::writes(&before, &self.head, &log, self.long, &[], &self.checkpoints, &self.beside)?;
        let entry = entry(position, place, log_bytes, &log);
        Ok(Some(LoneRecord { before: before.position, writes, head: self.head, entry, checkpoints: self.checkpoints }))
    }

    pub(super) fn into_answers(self) -> Vec<(T, Answer)> {
        self.answers
    }

    pub(super) fn into_waiting(self) -> Vec<Waiting<T>> {
        let all = self.answers.into_iter().zip(self.jobs);
        all.map(|((ticket, _), job)| Waiting { ticket, job }).collect()
    }

    pub(super) fn into_tickets(self) -> Vec<T> {
        self.answers.into_iter().map(|(ticket, _)| ticket).collect()
    }

    fn writes(
        before: &Head,
        after: &Head,
        log: &Bytes,
        long: Vec<LargePut>,
        bodies: &[EncodedOps],
        checkpoints: &[Checkpoint],
        beside: &Beside,
    ) -> Result<WriteSet, StoreError> {
        let mut writes = WriteSet::builder();
        if !planted::is(Bug::HeadNotRequired) {
            writes.require(Head::KEY, Some(before.to_bytes()));
        }
        for condition in &beside.requires {
            writes.require(condition.key.clone(), condition.value.clone());
        }
        writes.append(Keyspace::Log, EncodedOps::from_bytes(log.clone()).map_err(StoreError::backend)?);
        for put in long {
            writes.append(Keyspace::Log, put.into());
        }
        let lost = usize::from(planted::is(Bug::LastBodyLost) && bodies.len() > 1);
        for body in &bodies[..bodies.len() - lost] {
            writes.append(Keyspace::Data, body.clone());
        }
        for checkpoint in checkpoints {
            writes.put(Keyspace::Meta, checkpoint.key(), checkpoint.to_bytes())?;
            for key in checkpoint.expired_keys() {
                writes.delete(Keyspace::Meta, key)?;
            }
        }
        for ops in &beside.ops {
            writes.append(Keyspace::Meta, ops.clone());
        }
        writes.put(Keyspace::Meta, Head::KEY, after.to_bytes())?;
        Ok(writes.build())
    }
}

fn entry(position: Position, place: Place, log_bytes: u64, log: &Bytes) -> LogEntry {
    match place {
        Place::Log(range) => LogEntry { position, bytes: log.slice(range), body: None, log_bytes },
        Place::Apart(head, body) => LogEntry { position, bytes: head, body: Some(body), log_bytes },
    }
}

// The beginning of an encoded put: its tag, the key with its length, and the length of the record that follows.
fn put_log_key(buffer: &mut BytesMut, position: &Position, mut record_len: usize) {
    buffer.put_u8(0);
    buffer.put_u8(8);
    buffer.put_slice(&position.seq.to_key());
    while record_len >= 0x80 {
        buffer.put_u8(record_len as u8 | 0x80);
        record_len >>= 7;
    }
    buffer.put_u8(record_len as u8);
}
