//! A group of records that are committed together.

use std::sync::{Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use replikv_core::{EncodedOps, Keyspace, Position, StoreError, WriteSet};

use super::job::{Job, Waiting};
use super::lone::LoneRecord;
use super::view::Overlay;
use super::{Answer, CommitterConfig};
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
    /// The whole record.
    pub bytes: Bytes,
    /// Bytes of records ever appended, this one included.
    pub log_bytes: u64,
}

/// A group that takes more.
#[derive(Debug)]
pub(super) struct Building<T> {
    head: Head,
    now: Now,
    /// Puts of log entries, encoded: `[key, record]` after one another.
    log: BytesMut,
    /// Where in `log` the records lie.
    entries: Vec<(Position, std::ops::Range<usize>, u64)>,
    bodies: Vec<EncodedOps>,
    body_bytes: usize,
    checkpoints: Vec<Checkpoint>,
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
            entries: Vec::new(),
            bodies: Vec::new(),
            body_bytes: 0,
            checkpoints: Vec::new(),
            answers: Vec::new(),
            jobs: Vec::new(),
            decided: None,
            overlay: Overlay::default(),
            seen: 0,
        }
    }

    pub(super) fn byte_len(&self) -> usize {
        self.log.len() + self.body_bytes
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
        let record = match PreparedRecord::after(&self.head.position, &draft) {
            Ok(record) => record,
            Err(error) => return self.decide(Answer::Failed(StoreError::backend(error))),
        };
        let position = record.position();
        put_log_key(&mut self.log, &position, record.byte_len());
        let range = record.append_to(&mut self.log);
        self.head.position = position;
        self.head.log_bytes += record.byte_len() as u64;
        self.entries.push((position, range, self.head.log_bytes));
        if Checkpoint::is_due(position.seq) {
            let Head { log_bytes, uptime_ms, .. } = self.head;
            self.checkpoints.push(Checkpoint { position, log_bytes, uptime_ms });
        }
        self.body_bytes += ops.byte_len();
        self.bodies.push(ops);
        self.decide(Answer::Committed(position));
    }

    pub(super) fn finish(self, before: Head) -> Result<CommitGroup<T>, Spoiled<T>> {
        let log = self.log.freeze();
        match Self::writes(&before, &self.head, &log, &self.bodies, &self.checkpoints) {
            Ok(writes) => {
                let entries = self.entries.into_iter();
                let entry = |(position, range, log_bytes)| LogEntry { position, bytes: log.slice(range), log_bytes };
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
        let Some((position, range, log_bytes)) = self.entries.into_iter().next() else { return Ok(None) };
        let writes = Self::writes(&before, &self.head, &log, &[], &self.checkpoints)?;
        let entry = LogEntry { position, bytes: log.slice(range), log_bytes };
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
        bodies: &[EncodedOps],
        checkpoints: &[Checkpoint],
    ) -> Result<WriteSet, StoreError> {
        let mut writes = WriteSet::builder();
        if !planted::is(Bug::HeadNotRequired) {
            writes.require(Head::KEY, Some(before.to_bytes()));
        }
        writes.append(Keyspace::Log, EncodedOps::from_bytes(log.clone()).map_err(StoreError::backend)?);
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
        writes.put(Keyspace::Meta, Head::KEY, after.to_bytes())?;
        Ok(writes.build())
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
