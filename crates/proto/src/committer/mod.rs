//! The committer decides what becomes a record: in which order, in which group, with which number and digest, and
//! which conditions hold.
//!
//! Intents go in; a driver asks for the next [`Step`] and executes it. Everything that waits, up to a bound in bytes,
//! becomes one write set: group commit, for every store. One group is in flight at a time; the next one gathers
//! meanwhile. Every write set requires the head that it builds upon, so that two masters on one store can never
//! write two records of one number.

mod group;
mod job;
mod lone;
#[cfg(test)]
mod tests;
mod view;

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{
    Batch, Condition, EncodedOps, Epoch, KeyRange, Keyspace, LinkId, Op, Position, Precondition, StoreError, WriteSet,
};

use self::group::Building;
pub use self::group::{CommitGroup, LogEntry};
use self::job::{Job, PreparedBatch, Waiting};
pub use self::lone::LoneRecord;
pub use self::view::{Abort, TransactView};
use crate::derive::{self, Change, Derives, Known, Stopped, Wants};
use crate::layout::Head;
use crate::planted::{self, Bug};
use crate::{Now, RecordKind};

/// A function that runs at its place in the commit order. It may run more than once, with the same answers or more of
/// them, and must do nothing but look and decide.
pub type TransactFn = Box<dyn FnMut(&TransactView<'_>) -> Result<Batch, Abort> + Send>;

/// Something that wants to be committed, and the ticket of whoever waits for the answer.
#[derive(Debug)]
pub struct Intent<T> {
    /// Comes back with the answer.
    pub ticket: T,
    /// What is to be done.
    pub work: Work,
}

/// What is to be done.
pub enum Work {
    /// A batch.
    Batch(Batch),
    /// A function that makes a batch of what it sees.
    Transact(TransactFn),
    /// What a link has brought from another master, and what it knows from then on.
    Gathered(Gathered),
    /// What one derive makes of entries that were there before it: a record of that alone.
    Derive {
        /// The name of the derive.
        name: String,
        /// The entries, in the order of their keys.
        entries: Vec<(Bytes, Bytes)>,
    },
    /// A record of another kind, with nothing in it: the beginning of an epoch, or the base.
    Mark(RecordKind),
}

/// What a link of a centre, which is a master itself, has brought from its own master.
#[derive(Debug)]
pub struct Gathered {
    /// The link. A group takes one from each at most: the conditions of a second one are about what the first one leaves.
    pub link: LinkId,
    /// What `Meta` must hold, in the transaction that commits it.
    pub requires: Vec<Precondition>,
    /// The changes of data: a record of this master's own.
    pub ops: EncodedOps,
    /// What is committed beside them, in `Meta`, and is in no record: the link's cursor.
    pub beside: EncodedOps,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch(batch) => batch.fmt(f),
            Self::Transact(_) => f.write_str("Transact"),
            Self::Gathered(gathered) => gathered.fmt(f),
            Self::Derive { name, entries } => write!(f, "Derive {name} from {} entries", entries.len()),
            Self::Mark(kind) => kind.fmt(f),
        }
    }
}

/// How a commit went, for one intent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Answer {
    /// It is the record at this position; an empty batch is none, and gets the position that it saw.
    Committed(Position),
    /// A condition did not hold.
    Conflict {
        /// The key.
        key: Bytes,
    },
    /// The function decided against it.
    Aborted {
        /// In its words.
        reason: String,
    },
    /// What follows from it cannot be derived.
    NotDerived {
        /// The derive that refused.
        name: String,
        /// In its words.
        reason: String,
    },
    /// It was refused, or the store failed and is unchanged.
    Failed(StoreError),
    /// Nobody knows yet whether it is there, since the store has failed with this.
    OutcomeUnknown(StoreError),
    /// Another master has taken over the store.
    Fenced,
}

/// What the driver is asked to do.
#[derive(Debug)]
pub enum Step<T> {
    /// Read these keys of the data; answer with [`Committer::fetched`].
    Fetch(Vec<Bytes>),
    /// Read all entries of these ranges of the data; answer with [`Committer::fetched_range`] for each. Only a committer
    /// that [derives](Committer::deriving) asks for any.
    FetchRanges(Vec<KeyRange>),
    /// Apply a write set; answer with [`Committer::committed`], [`Committer::failed`] or [`Committer::settled`].
    Commit(Box<CommitGroup<T>>),
    /// Tell these; nothing was written.
    Answer(Vec<(T, Answer)>),
    /// Nothing waits, or a group is in flight.
    Idle,
}

/// What a committer needs to know, once.
#[derive(Debug, Clone, Copy)]
pub struct CommitterConfig {
    /// The epoch of new records.
    pub epoch: Epoch,
    /// A group takes intents until it has this many bytes; one at least.
    pub group_bytes: usize,
    /// What batches are checked against.
    pub limits: replikv_core::StoreLimits,
}

/// Turns intents into records.
#[derive(Debug)]
pub struct Committer<T> {
    config: CommitterConfig,
    queue: VecDeque<Waiting<T>>,
    /// So many of the first ones go in groups of their own.
    singles: usize,
    /// What the store holds.
    committed: Head,
    /// What it holds once the group in flight is committed.
    handed: Head,
    in_flight: bool,
    fenced: bool,
    building: Option<Building<T>>,
    /// What was read for conditions, as the store held it after `committed`.
    known: Known,
    derives: Derives,
}

impl<T> Committer<T> {
    /// A committer that goes on from `head`, which the store holds.
    pub fn new(config: CommitterConfig, head: Head) -> Self {
        Self {
            config,
            queue: VecDeque::new(),
            singles: 0,
            committed: head,
            handed: head,
            in_flight: false,
            fenced: false,
            building: None,
            known: Known::default(),
            derives: Derives::default(),
        }
    }

    /// The same, and what `derives` make of each batch is part of it.
    #[must_use]
    pub fn deriving(mut self, derives: Derives) -> Self {
        self.derives = derives;
        self
    }

    /// Takes an intent; its place in the queue is its place in the history.
    pub fn push(&mut self, intent: Intent<T>) {
        self.queue.push_back(intent.into());
    }

    /// The head that the store holds, as far as is known.
    pub fn head(&self) -> Head {
        self.committed
    }

    /// The last position handed to the store.
    pub fn handed(&self) -> Position {
        self.handed.position
    }

    /// True if another master has taken over the store.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// What to do next. `uptime_ms` is the accumulated running time of masters on this store.
    pub fn step(&mut self, now: Now, uptime_ms: u64) -> Step<T> {
        if self.in_flight {
            return Step::Idle;
        }
        if self.fenced {
            return self.answer_all(&Answer::Fenced);
        }
        let mut building = match self.building.take() {
            Some(building) => building,
            None if self.queue.is_empty() => return Step::Idle,
            None => Building::new(self.committed, now, uptime_ms),
        };
        while building.byte_len() < self.config.group_bytes.max(1) {
            let Some(mut waiting) = self.queue.pop_front() else { break };
            if building.has_link(&waiting.job) {
                self.queue.push_front(waiting);
                break;
            }
            if let Err(missing) = self.take(&mut building, &mut waiting.job) {
                let step = if missing.ranges.is_empty() {
                    Step::Fetch(self.missing(missing, &waiting))
                } else {
                    Step::FetchRanges(missing.ranges)
                };
                self.queue.push_front(waiting);
                self.building = Some(building);
                return step;
            } else if let Some(answer) = building.last_answer() {
                building.answer(waiting, answer);
            }
            if self.singles > 0 {
                break;
            }
        }
        if !building.has_records() {
            let answers = building.into_answers();
            self.singles = self.singles.saturating_sub(answers.len());
            // Nothing is committed that would outdate it; it would only grow.
            self.known.clear();
            return Step::Answer(answers);
        }
        match building.finish(self.committed) {
            Ok(group) => {
                self.in_flight = true;
                self.singles = self.singles.saturating_sub(group.answers.len());
                self.handed = group.head;
                if !planted::is(Bug::OldValuesKept) {
                    self.known.clear();
                }
                Step::Commit(Box::new(group))
            }
            Err((answers, error)) => {
                let answers = answers.into_iter().map(|(ticket, _)| (ticket, Answer::Failed(error.clone())));
                Step::Answer(answers.collect())
            }
        }
    }

    /// Values that [`Step::Fetch`] asked for.
    pub fn fetched(&mut self, values: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        self.known.extend(values);
    }

    /// All entries of a range that [`Step::FetchRanges`] asked for.
    pub fn fetched_range(&mut self, range: KeyRange, entries: impl IntoIterator<Item = (Bytes, Bytes)>) {
        self.known.extend_range(range, entries);
    }

    /// A range that [`Step::FetchRanges`] asked for holds more than is read at once: what asked for it is refused. Returns
    /// whom to tell.
    pub fn range_too_large(&mut self, reason: &str) -> Option<(T, Answer)> {
        let waiting = self.queue.pop_front()?;
        self.singles = self.singles.saturating_sub(1);
        let names: Vec<&str> = self.derives.iter().map(|(derive, _)| derive.name()).collect();
        let (name, reason) = (names.join(", "), reason.to_owned());
        Some((waiting.ticket, Answer::NotDerived { name, reason }))
    }

    /// Values that [`Step::Fetch`] asked for could not be read: whoever waits is told, and nothing is written.
    pub fn fetch_failed(&mut self, error: &StoreError) -> Vec<(T, Answer)> {
        let mut answers: Vec<_> = self.building.take().map(Building::into_tickets).unwrap_or_default();
        answers.extend(self.queue.drain(..).map(|waiting| waiting.ticket));
        answers.into_iter().map(|ticket| (ticket, Answer::Failed(error.clone()))).collect()
    }

    /// The store has committed the group.
    pub fn committed(&mut self, group: &CommitGroup<T>) {
        self.committed = group.head;
        self.handed = group.head;
        self.in_flight = false;
    }

    /// The store has refused the group, and is unchanged.
    pub fn failed(&mut self, error: &StoreError) {
        if !planted::is(Bug::HandedNotTakenBack) {
            self.handed = self.committed;
        }
        self.in_flight = false;
        self.fenced |= matches!(error, StoreError::HeadMoved);
    }

    /// Another master has taken over, here or elsewhere: nothing more is committed.
    pub fn fence(&mut self) {
        self.fenced = true;
    }

    /// The store has refused a group of one intent for a condition of a link's, and is unchanged. No other master is
    /// there.
    pub fn refused(&mut self) {
        self.handed = self.committed;
        self.in_flight = false;
    }

    /// The store has refused the group, because this master itself has moved the head by other means: everything in the
    /// group is decided anew, in its old order and before all that waits, once [`adopted`](Self::adopted) has told the
    /// head. Returns what needs no new decision: whom to tell that theirs was refused for what it is.
    pub fn overtaken(&mut self, group: CommitGroup<T>) -> Vec<(T, Answer)> {
        self.in_flight = false;
        self.handed = self.committed;
        let (waiting, answers) = group.into_waiting();
        self.put_back(waiting);
        answers
    }

    /// The store has refused the group for something in it, and is unchanged: each intent is decided anew, in a group of
    /// its own, so that only the culprit is refused. Returns whom to tell already.
    ///
    /// # Errors
    /// The group itself, if there is only one intent in it: that is the culprit.
    pub fn taken_apart(&mut self, group: CommitGroup<T>) -> Result<Vec<(T, Answer)>, Box<CommitGroup<T>>> {
        if group.answers.len() < 2 {
            return Err(Box::new(group));
        }
        let before = self.queue.len();
        let answers = self.overtaken(group);
        self.singles = self.queue.len() - before;
        Ok(answers)
    }

    /// This master has moved the head by other means, up to `head`: what comes next builds upon that. No group may be in
    /// flight. What was read for conditions is read again.
    pub fn adopted(&mut self, head: Head) {
        self.committed = head;
        self.handed = head;
        self.known.clear();
        if let Some(building) = self.building.take() {
            let waiting = building.into_waiting();
            self.put_back(waiting);
        }
    }

    fn put_back(&mut self, waiting: Vec<Waiting<T>>) {
        for waiting in waiting.into_iter().rev() {
            self.queue.push_front(waiting);
        }
        self.known.clear();
    }

    /// Nobody knows whether the store has committed the group. It was opened anew, and this is the head that it holds.
    /// A head that is neither the one before the group nor the one after it is another master's.
    pub fn settled(&mut self, group: &CommitGroup<T>, found: Head) {
        self.in_flight = false;
        self.fenced |= found.position != self.committed.position && found.position != group.head.position;
        if !self.fenced {
            self.committed = found;
        }
        self.handed = self.committed;
    }

    /// The store was opened anew, and holds an earlier head than was committed: what was not synced is lost. Nothing may
    /// be under way but a group that shares that fate. A head of an earlier epoch has lost the beginning of this one as
    /// well: it is marked again before anything else is pushed or left waiting.
    pub fn rewound(&mut self, found: Head) {
        self.in_flight = false;
        self.committed = found;
        self.handed = found;
        self.known.clear();
    }

    /// Gives up: everybody who waits gets `answer`.
    pub fn answer_all(&mut self, answer: &Answer) -> Step<T> {
        let mut tickets = self.building.take().map(Building::into_tickets).unwrap_or_default();
        tickets.extend(self.queue.drain(..).map(|waiting| waiting.ticket));
        if tickets.is_empty() {
            return Step::Idle;
        }
        Step::Answer(tickets.into_iter().map(|ticket| (ticket, answer.clone())).collect())
    }

    // Puts one intent into the group, or names what must be read before that can be decided.
    fn take(&mut self, building: &mut Building<T>, job: &mut Job) -> Result<(), Wants> {
        if let Err(error) = job.prepare(&self.config.limits) {
            building.decide(Answer::Failed(error));
            return Ok(());
        }
        match job {
            Job::Mark(kind) => building.record(&self.config, *kind, EncodedOps::default(), &Bytes::new()),
            Job::Batch(_) => {}
            Job::Gathered(gathered) => match self.with_derived(building, &gathered.ops)? {
                Ok(ops) => building.gathered(&self.config, gathered, ops),
                Err(answer) => building.decide(answer),
            },
            Job::Derive { name, entries } => match self.derived_from(building, name, entries)? {
                Ok(ops) if ops.is_empty() => building.decide(Answer::Committed(building.position())),
                Ok(ops) => building.record(&self.config, RecordKind::Batch, ops, &Bytes::new()),
                Err(answer) => building.decide(answer),
            },
            Job::Prepared(batch) => return self.take_batch(building, batch),
            Job::Transact(function) => {
                let view = TransactView::new(building.overlay(), &self.known);
                let batch = match function(&view) {
                    Ok(batch) => batch,
                    Err(Abort::Missing(key)) => return Err(only(key)),
                    Err(Abort::Refused(reason)) => {
                        building.decide(Answer::Aborted { reason });
                        return Ok(());
                    }
                };
                match PreparedBatch::new(batch, &self.config.limits) {
                    Ok(batch) => return self.take_batch(building, &batch),
                    Err(error) => building.decide(Answer::Failed(error)),
                }
            }
        }
        Ok(())
    }

    fn take_batch(&self, building: &mut Building<T>, batch: &PreparedBatch) -> Result<(), Wants> {
        if !batch.conditions.is_empty() {
            let view = TransactView::new(building.overlay(), &self.known);
            // Where a key must be read first, conditions are asked again once it is known.
            if let Some(key) = holds(&view, &batch.conditions).map_err(only)? {
                building.decide(Answer::Conflict { key });
                return Ok(());
            }
        }
        if batch.ops.is_empty() && batch.note.is_empty() {
            building.decide(Answer::Committed(building.position()));
        } else {
            match self.with_derived(building, &batch.ops)? {
                Ok(ops) => building.record(&self.config, RecordKind::Batch, ops, &batch.note),
                Err(answer) => building.decide(answer),
            }
        }
        Ok(())
    }

    // The operations, and after them what follows from them; or why nothing does.
    fn with_derived(&self, building: &mut Building<T>, ops: &EncodedOps) -> Result<Result<EncodedOps, Answer>, Wants> {
        let derives = self.derives.placed();
        if derives.is_empty() {
            return Ok(Ok(ops.clone()));
        }
        let overlay = building.overlay();
        let changes = derive::changes_of(derives, ops, overlay, &self.known)?;
        let derived = match derive::derive_all(derives, &changes, overlay, &self.known) {
            Ok(derived) if derived.is_empty() => return Ok(Ok(ops.clone())),
            Ok(derived) => derived,
            Err(Stopped::Unread(wants)) => return Err(wants),
            Err(Stopped::Refused { name, reason }) => return Ok(Err(Answer::NotDerived { name, reason })),
        };
        let together = derive::encode(&derived).and_then(|derived| {
            let segments = ops.buffers().chain(derived.buffers()).cloned().collect();
            EncodedOps::from_segments(segments).map_err(StoreError::backend)
        });
        Ok(together.and_then(|ops| self.fits(ops)).map_err(|error| self.too_large(&error)))
    }

    // What follows for one derive from entries that were there before it.
    fn derived_from(
        &self,
        building: &mut Building<T>,
        name: &str,
        entries: &[(Bytes, Bytes)],
    ) -> Result<Result<EncodedOps, Answer>, Wants> {
        let change = |(key, value): &(Bytes, Bytes)| Change { key: key.clone(), old: None, new: Some(value.clone()) };
        let others = self.derives.placed();
        let own = |change: &Change| !others.iter().any(|placed| placed.target.strip(&change.key).is_some());
        let changes: Vec<Change> = entries.iter().map(change).filter(own).collect();
        match derive::derive_all(self.derives.only(name).placed(), &changes, building.overlay(), &self.known) {
            Ok(derived) => {
                let ops = derive::encode(&derived).and_then(|ops| self.fits(ops));
                Ok(ops.map_err(|error| self.too_large(&error)))
            }
            Err(Stopped::Unread(wants)) => Err(wants),
            Err(Stopped::Refused { name, reason }) => Ok(Err(Answer::NotDerived { name, reason })),
        }
    }

    // Slaves must hold it as well.
    fn fits(&self, ops: EncodedOps) -> Result<EncodedOps, StoreError> {
        let mut all = WriteSet::builder();
        all.append(Keyspace::Data, ops.clone());
        all.build().check(&self.config.limits).map(|()| ops)
    }

    fn too_large(&self, error: &StoreError) -> Answer {
        let names: Vec<&str> = self.derives.iter().map(|(derive, _)| derive.name()).collect();
        Answer::NotDerived { name: names.join(", "), reason: error.to_string() }
    }

    // One round trip for everything that waits, instead of one for each.
    fn missing(&self, first: Wants, waiting: &Waiting<T>) -> Vec<Bytes> {
        const AHEAD: usize = 4096;
        let mut keys = first.keys;
        for waiting in std::iter::once(waiting).chain(self.queue.iter().take(1024)) {
            let conditions = waiting.job.conditions();
            let unknown = conditions.iter().filter(|condition| self.known.get(&condition.key).is_none());
            keys.extend(unknown.map(|condition| condition.key.clone()));
            if self.derives.is_empty() || keys.len() > AHEAD {
                continue;
            }
            waiting.job.each_op(|op| {
                if let Op::Put { key, .. } | Op::Delete { key } = op
                    && self.known.get(key).is_none()
                    && self.derives.iter().any(|(derive, _)| derive.source().contains(key))
                {
                    keys.insert(Bytes::copy_from_slice(key));
                }
            });
        }
        keys.into_iter().collect()
    }
}

fn only(key: Bytes) -> Wants {
    Wants { keys: [key].into(), ..Wants::default() }
}

// The first key whose condition does not hold, or else the key that must be read to tell.
fn holds(view: &TransactView<'_>, conditions: &[Condition]) -> Result<Option<Bytes>, Bytes> {
    for condition in conditions {
        match view.get(&condition.key) {
            Ok(value) if value == condition.value => {}
            Ok(_) => return Ok(Some(condition.key.clone())),
            Err(_) => return Err(condition.key.clone()),
        }
    }
    Ok(None)
}
