//! What must hold, checked after every event that could break it.

mod touching;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replikv_core::{Cursor, EncodedOps, Fill, KeyRange, KeyRanges, Keyspace, Op, Position, Seq, WriteSet};
use replikv_proto::layout::{Epochs, Role, Superseded};
use replikv_proto::{
    Ack, Answer, Content, Fence, Filtered, LogEntry, Passage, Record, RecordKind, Resync, Run, Share, Subscription,
};

pub(super) use self::touching::Told;
use super::context::Sizes;
use super::model::Model;
use super::promises::Promises;
use super::slots::Stands;
use super::store::{ModelStore, Request};
use super::work::{Intended, Promise};
use super::{Coverage, Scene};

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A slave's data is what its master held at the slave's cursor, whenever the cursor says that it is consistent.
    SlaveState,
    /// A slave's cursor is a point of a history.
    SlavePosition,
    /// A cursor never goes back within an epoch, but for power loss.
    CursorGoesOn,
    /// What a slave writes lies within what its cursor says is covered.
    WithinCoverage,
    /// What came from another source, or from nobody, is not overwritten.
    NothingOverwritten,
    /// An ack tells of what is there, and a durable ack of what is durable.
    AckIsTrue,
    /// A master's data is what its records say.
    MasterState,
    /// Records follow one another: one for each number, chained.
    OneChain,
    /// Records are published in order, without gaps, and once they are durable.
    Published,
    /// What is sent is published and durable: no slave is ahead of what its master can still have.
    SentIsDurable,
    /// What is sent on a session goes on where the session stands.
    SentInOrder,
    /// What is sent is what was committed.
    SentIsIntact,
    /// What is sent in place of records leaves out nothing that these have changed.
    SentIsWhole,
    /// What a writer was told is true.
    AnswerIsTrue,
    /// Conditions and transactions saw every batch before them.
    ConditionsHold,
    /// A slave that verifies finds what differs, by its key, and nothing else.
    VerifiedRightly,
    /// A slave that subscribes to key ranges holds nothing else, and is sent nothing else.
    OnlySubscribed,
    /// A slave is served or refused as its position demands.
    RightDecision,
    /// A master that has met a newer epoch never commits again.
    Fenced,
    /// A slave takes over only once its master has stopped, which its store says, and stands where that has stopped.
    HandedOver,
    /// What as many slaves have acknowledged as a writer waits for is in the history that goes on after a promotion that
    /// fences, and nothing more is acknowledged of the one before.
    Acknowledged,
    /// A slave is promoted only if it holds a state of its master, and knows the history that it goes on with.
    Promotable,
    /// What a resync takes away is in the quarantine.
    NothingDiscarded,
    /// A kept log is a part of the history without a gap, and ends where its slave stands.
    KeptLog,
    /// Every entry of a centre is one of the link that has claimed its key, or was left by one that is gone.
    LinksApart,
    /// The log is kept for whoever has a slot in it, from where it was last known to stand.
    KeptForAway,
    /// A log is cut only where something in it is damaged.
    CutRightly,
    /// Buffers stay under their bounds.
    BoundedMemory,
    /// Once faults end, every slave comes to equal its master, or to the refusal that its situation demands.
    Convergence,
    /// Nothing panics.
    NoPanic,
}

/// Something that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What should have held.
    pub invariant: Invariant,
    /// What was found instead.
    pub words: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} does not hold: {}", self.invariant, self.words)
    }
}

/// A store, before a call takes effect.
#[derive(Debug, Default)]
pub(super) struct Before {
    head: Option<Position>,
    cursor: Option<Cursor>,
    holds_data: bool,
    role: Option<Role>,
    resync: Option<Resync>,
    filtered: bool,
    superseded: bool,
    fence: Option<Fence>,
}

impl Before {
    pub(super) fn of(store: &ModelStore, request: &Request) -> Self {
        match request {
            Request::Apply(..) => Self {
                head: store.head().map(|head| head.position),
                cursor: store.visible.cursor(),
                holds_data: !store.visible.of(Keyspace::Data).is_empty(),
                role: store.identity().map(|identity| identity.role),
                resync: store.visible.stored(Resync::KEY),
                filtered: store.visible.stored::<Subscription>(Subscription::KEY).is_some(),
                superseded: store.visible.stored::<Superseded>(Superseded::KEY).is_some(),
                fence: store.visible.stored(Fence::KEY),
            },
            _ => Self::default(),
        }
    }
}

/// Knows what was committed, and what must follow from it.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) model: Model,
    pub(super) violation: Option<Violation>,
    pub(super) records: u64,
    intended: BTreeMap<u64, Intended>,
    /// Where the batch of a ticket was written.
    written: BTreeMap<u64, Position>,
    /// Tickets whose batch is nowhere, and must stay so.
    refused: BTreeSet<u64>,
    /// Stores of masters that have kept that a newer epoch was met.
    fenced: BTreeSet<usize>,
    /// For whom masters keep their logs.
    pub(super) stands: Stands,
    /// Stores of slaves that go through what is compacted, and hold no state of their master meanwhile.
    touching: BTreeSet<usize>,
    /// Stores of slaves that resync, having held a state of their master before: where else they have been since.
    parted: BTreeMap<usize, Vec<Position>>,
    pub(super) promises: Promises,
}

impl Oracle {
    pub(super) fn fail(&mut self, invariant: Invariant, words: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, words: words.into() });
        }
    }

    fn require(&mut self, invariant: Invariant, holds: bool, words: impl FnOnce() -> String) {
        if !holds {
            self.fail(invariant, words());
        }
    }

    /// A store became a master's.
    pub(super) fn began(&mut self, store: &ModelStore, head: &Position) {
        if let Err(words) = self.model.begin(&store.visible, head) {
            self.fail(Invariant::OneChain, words);
        }
        self.check_store(store);
    }

    /// A write set is readable.
    pub(super) fn wrote(
        &mut self,
        (number, store): (usize, &ModelStore),
        before: &Before,
        writes: &WriteSet,
        quarantined: Option<&BTreeSet<(Bytes, Bytes)>>,
        coverage: &mut Coverage,
    ) {
        let role = store.identity().map(|identity| identity.role);
        let promoted = before.role == Some(Role::Slave) && role == Some(Role::Master);
        let stepped_down = before.role == Some(Role::Master) && role == Some(Role::Slave);
        let keeps = before.role != Some(Role::Master) && role != Some(Role::Master);
        if keeps {
            self.kept(store, writes);
        }
        let mut at = if promoted { before.cursor.as_ref().map(|cursor| cursor.position) } else { before.head };
        let from = at;
        for (keyspace, op) in writes.ops() {
            // What older records came to is no record.
            if let (Keyspace::Log, Op::Put { key, value }, false) = (keyspace, op, keeps)
                && Seq::from_key(key).is_some()
                && !Run::is_run(value)
            {
                at = self.logged(at, value, coverage);
            }
        }
        if at != from {
            let fenced = before.superseded || self.fenced.contains(&number);
            let writes_on = fenced && before.role == Some(Role::Master);
            self.require(Invariant::Fenced, !writes_on, || {
                format!("{at:?} was committed by a master whose time is over")
            });
            let found = store.head().map(|head| head.position);
            self.require(Invariant::OneChain, found == at, || format!("the head is {found:?}, the log ends at {at:?}"));
        }
        let cursor = store.visible.cursor();
        if promoted {
            self.promoted(store, before, coverage);
        } else if stepped_down {
            self.fenced.remove(&number);
            let there = cursor.as_ref().map(|cursor| cursor.position) == before.head;
            self.require(Invariant::SlavePosition, there, || format!("{:?} became {cursor:?}", before.head));
        } else if cursor != before.cursor {
            self.moved((number, store), before, cursor.as_ref(), coverage);
        }
        let resync = store.visible.stored::<Resync>(Resync::KEY);
        if before.resync.is_none() && (resync.is_some() || before.cursor != cursor) {
            let parts =
                resync.is_some() && !before.filtered && before.cursor.as_ref().is_some_and(Cursor::is_consistent);
            let fresh = parts.then(Vec::new);
            self.parted.remove(&number);
            self.parted.extend(fresh.map(|fresh| (number, fresh)));
        } else if let Some((from, to)) = before.cursor.as_ref().zip(cursor.as_ref())
            && let Some(been) = self.parted.get_mut(&number)
            && from != to
            && !self.model.leads_to(&from.position, &to.position)
        {
            been.push(from.position);
        }
        if store.visible.stored::<Subscription>(Subscription::KEY).is_some() {
            // What its owner no longer wants goes without a word.
            self.parted.remove(&number);
        }
        let left = before.resync.filter(|_| resync.is_none());
        if let Some((resync, cursor)) = left.zip(cursor.as_ref()) {
            coverage.met(Scene::ResyncFinished);
            if store.head().is_some() {
                coverage.met(Scene::RelayResynced);
            }
            if let Some(mut been) = self.parted.remove(&number).filter(|_| !before.filtered) {
                been.push(cursor.position);
                self.resynced(&resync, &been, quarantined);
            }
        }
        if let Some(cursor) = &cursor
            && (before.head.is_none() || keeps)
        {
            self.within(cursor, writes);
        }
        self.check_store(store);
    }

    fn logged(&mut self, at: Option<Position>, value: &[u8], coverage: &mut Coverage) -> Option<Position> {
        let record = match Record::decode(Bytes::copy_from_slice(value)) {
            Ok(record) => record,
            Err(error) => {
                self.fail(Invariant::OneChain, format!("what is logged is no record: {error}"));
                return at;
            }
        };
        let position = record.position();
        if let Some(before) = &at {
            if let Err(words) = self.model.append(before, &record) {
                self.fail(Invariant::OneChain, format!("{position} was written after {before}: {words}"));
            }
            if self.model.point(before).is_some_and(|point| point.time > record.header().time) {
                coverage.met(Scene::TimeWentBack);
            }
        }
        self.records += 1;
        if let Some(ticket) = Promise::ticket(&record.header().note) {
            let again = self.written.insert(ticket, position);
            let twice = again.is_some_and(|again| again != position && self.model.leads_to(&again, &position));
            self.require(Invariant::AnswerIsTrue, !twice, || format!("ticket {ticket} is committed twice"));
            let refused = self.refused.contains(&ticket);
            self.require(Invariant::AnswerIsTrue, !refused, || format!("ticket {ticket} was refused, and is there"));
        }
        Some(position)
    }

    // What a slave keeps of the log.
    fn kept(&mut self, store: &ModelStore, writes: &WriteSet) {
        for (keyspace, op) in writes.ops() {
            let (Keyspace::Log, Op::Put { value, .. }) = (keyspace, op) else { continue };
            let record = Record::decode(Bytes::copy_from_slice(value)).ok();
            let point = record.as_ref().and_then(|record| self.model.point(&record.position()));
            let same = point.is_some_and(|point| point.bytes == value);
            self.require(Invariant::KeptLog, same, || format!("{record:?} was kept, and is no record of the history"));
        }
        let log = store.visible.of(Keyspace::Log);
        let (Some(head), Some(floor)) = (store.head(), store.floor()) else {
            return self.require(Invariant::KeptLog, log.is_empty(), || "there are records, and no head".into());
        };
        let cursor = store.visible.cursor();
        let stands = cursor.as_ref().filter(|cursor| cursor.is_consistent()).map(|cursor| cursor.position);
        self.require(Invariant::KeptLog, stands == Some(head.position), || {
            format!("the kept log ends at {}, the slave is at {cursor:?}", head.position)
        });
        let held = log.len() as u64 == head.position.seq.since(floor.position.seq);
        let first = log.keys().next().is_none_or(|key| Seq::from_key(key) == floor.position.seq.next());
        self.require(Invariant::KeptLog, held && first && self.model.leads_to(&floor.position, &head.position), || {
            format!("{} records are kept between {} and {}", log.len(), floor.position, head.position)
        });
    }

    /// A centre, and what its links see of it.
    pub(super) fn linked(&mut self, centre: &ModelStore, views: &[&ModelStore]) {
        let held: usize = views.iter().map(|view| view.visible.of(Keyspace::Data).len()).sum();
        let all = centre.visible.of(Keyspace::Data).len();
        self.require(Invariant::LinksApart, held == all, || format!("links see {held} entries of {all}"));
        for view in views {
            let cursor = view.visible.cursor();
            let left = cursor.is_none() && !view.visible.of(Keyspace::Data).is_empty();
            let known = view.identity().is_some();
            self.require(Invariant::LinksApart, !(left && known), || "a link holds data and no cursor".into());
        }
    }

    /// A link is undone whose entries were to go.
    pub(super) fn emptied(&mut self, view: &ModelStore) {
        let left = view.visible.of(Keyspace::Data).len();
        self.require(Invariant::LinksApart, left == 0, || format!("{left} entries of a link that is undone are there"));
    }

    /// Whether a claim was refused, and rightly.
    pub(super) fn claimed(&mut self, rightly: bool, prefix: &[u8]) {
        self.require(Invariant::RightDecision, rightly, || {
            format!("a claim of {} was decided wrongly", prefix.escape_ascii())
        });
    }

    /// A master has kept that a newer epoch was met, and its slave is told.
    pub(super) fn fenced(&mut self, store: usize) {
        self.fenced.insert(store);
    }

    /// A store holds something else than before: what it knew is not known there.
    pub(super) fn replaced(&mut self, store: usize) {
        self.fenced.remove(&store);
        self.touching.remove(&store);
    }

    // A slave's store became a master's.
    fn promoted(&mut self, store: &ModelStore, before: &Before, coverage: &mut Coverage) {
        coverage.met(Scene::Promoted);
        let settled = before.cursor.as_ref().is_some_and(Cursor::is_consistent) && before.resync.is_none();
        self.require(Invariant::Promotable, settled && !before.filtered, || {
            format!("a slave was promoted that holds no state of its master: {:?}", before.cursor)
        });
        let Some((head, last)) = store.head().map(|head| head.position).zip(before.cursor.as_ref()) else { return };
        let last = last.position;
        let record = self.model.point(&head).and_then(|point| Record::decode(point.bytes.clone()).ok());
        let begins = record.is_some_and(|record| record.header().kind == RecordKind::Epoch)
            && last.seq.next() == Some(head.seq)
            && match before.fence.as_ref().filter(|fence| before.cursor.as_ref().is_some_and(|at| fence.binds(at))) {
                Some(fence) => fence.own && head.epoch == fence.epoch,
                None => head.epoch.number == last.epoch.number + 1,
            };
        self.require(Invariant::Promotable, begins, || format!("{head} does not begin an epoch after {last}"));
        let known = store.visible.stored::<Epochs>(Epochs::KEY).unwrap_or_default().0;
        // Of an epoch that ended before its first record there is none.
        let begun =
            known.iter().enumerate().filter(|(n, start)| known.get(n + 1).is_none_or(|next| next.first != start.first));
        let real = self.model.epochs(&head);
        let right = begun.map(|(_, start)| *start).eq(real.iter().copied());
        self.require(Invariant::Promotable, right, || format!("its epochs are {real:?}, and it knows {known:?}"));
    }

    // Whatever a slave held that was written after its history had parted from its master's is in the quarantine, or its
    // master has held it as well: the one that it has come to, or one that it had joined on the way.
    fn resynced(&mut self, resync: &Resync, been: &[Position], quarantined: Option<&BTreeSet<(Bytes, Bytes)>>) {
        let Some(was) = self.model.point(&resync.was) else { return };
        let kept =
            |key: &Bytes, value: &Bytes| quarantined.is_some_and(|kept| kept.contains(&(key.clone(), value.clone())));
        let mut lost: Vec<(&Bytes, &Bytes)> = was.state.iter().filter(|(key, value)| !kept(key, value)).collect();
        for at in been {
            let mut next = self.model.point(at);
            while let Some(point) = next.filter(|_| !lost.is_empty()) {
                lost.retain(|(key, value)| point.state.get(*key) != Some(*value));
                next = self.model.before(point);
            }
        }
        if let Some((key, _)) = lost.first() {
            let words = format!("{} of {} is lost in a resync that came to {been:?}", key.escape_ascii(), resync.was);
            self.fail(Invariant::NothingDiscarded, words);
        }
    }

    fn moved(
        &mut self,
        (number, store): (usize, &ModelStore),
        before: &Before,
        cursor: Option<&Cursor>,
        coverage: &mut Coverage,
    ) {
        let Some(cursor) = cursor else {
            return self.fail(Invariant::CursorGoesOn, "the cursor is gone");
        };
        let to = cursor.position;
        match &before.cursor {
            None => self.require(Invariant::NothingOverwritten, !before.holds_data, || {
                format!("data that came from no master was overwritten from {to}")
            }),
            Some(Cursor { position: from, coverage: covered }) => {
                self.require(Invariant::NothingOverwritten, from.source == to.source, || {
                    format!("a slave of {from} was overwritten from {to}")
                });
                let parts = store.visible.stored::<Resync>(Resync::KEY).is_some();
                let back = from.epoch == to.epoch && to.seq < from.seq && !parts;
                self.require(Invariant::CursorGoesOn, !back, || format!("the cursor went from {from} to {to}"));
                if covered.is_complete() && !cursor.coverage.is_complete() && cursor.coverage.rest().is_none() {
                    self.touching.insert(number);
                }
                if !covered.is_complete() && cursor.coverage.is_complete() && self.touching.remove(&number) {
                    coverage.met(Scene::TouchesPassed);
                } else if !covered.is_complete() && cursor.coverage.is_complete() {
                    let compared = covered.fill() == Some(Fill::Compare);
                    coverage.met(if compared { Scene::ComparisonFinished } else { Scene::CopyFinished });
                }
                if !cursor.coverage.is_complete() && to.seq > from.seq && cursor.coverage.consistent_at().is_none() {
                    coverage.met(Scene::RecordsInCopy);
                    if self.model.point(&to).is_some_and(|point| point.deletes_range) {
                        coverage.met(Scene::RangeDeleteInCopy);
                    }
                }
            }
        }
    }

    fn within(&mut self, cursor: &Cursor, writes: &WriteSet) {
        for (keyspace, op) in writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Data) {
            let inside = match op {
                Op::Put { key, .. } | Op::Delete { key } => cursor.coverage.covers(key),
                Op::DeleteRange { start, end } => {
                    let copy = |end: &[u8]| Bytes::copy_from_slice(end);
                    let range = KeyRange::new(copy(start), end.map(copy));
                    range.is_empty() || cursor.coverage.clip(&range) == [range]
                }
            };
            self.require(Invariant::WithinCoverage, inside, || {
                format!("{op:?} of {} lies outside of {:?}", keyspace.name(), cursor.coverage)
            });
        }
    }

    /// What a store holds is what its head, or its cursor, says.
    pub(super) fn check_store(&mut self, store: &ModelStore) {
        let print = store.visible.print;
        if let Some(head) = store.head() {
            let held = self.model.point(&head.position).map(|point| point.print);
            self.require(Invariant::MasterState, held == Some(print), || {
                format!("the data is not what the records up to {} come to", head.position)
            });
        }
        let is_master = store.identity().is_some_and(|identity| identity.role == Role::Master);
        let Some(cursor) = store.visible.cursor().filter(|_| !is_master) else { return };
        let Some(point) = self.model.point(&cursor.position) else {
            return self.fail(Invariant::SlavePosition, format!("{} is no point of any history", cursor.position));
        };
        let Some(subscription) = store.visible.stored::<Subscription>(Subscription::KEY) else {
            if cursor.is_consistent() && point.print != print {
                let words = difference(&point.state, store.visible.of(Keyspace::Data));
                self.fail(Invariant::SlaveState, format!("at {}: {words}", cursor.position));
            }
            return;
        };
        let Subscription { ranges, dropping } = &subscription;
        let within = |data: &BTreeMap<Bytes, Bytes>| -> BTreeMap<Bytes, Bytes> {
            data.iter()
                .filter(|(key, _)| ranges.contains(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        };
        let held = store.visible.of(Keyspace::Data);
        let (wanted, found) = (within(&point.state), within(held));
        if cursor.is_consistent() && wanted != found {
            let words = difference(&wanted, &found);
            self.fail(Invariant::SlaveState, format!("within {ranges}, at {}: {words}", cursor.position));
        }
        let stray = held.keys().find(|key| !ranges.contains(key) && !dropping.contains(key));
        if let Some(key) = stray.map(|key| key.escape_ascii().to_string()) {
            self.fail(Invariant::OnlySubscribed, format!("it holds {key}, and subscribes to {ranges}"));
        }
    }

    /// Somebody wants to write.
    pub(super) fn intends(&mut self, ticket: u64, intended: Intended) {
        self.intended.insert(ticket, intended);
    }

    /// A writer was told how it went. `durable` says whether that was promised.
    pub(super) fn answered(
        &mut self,
        store: &ModelStore,
        ticket: u64,
        answer: &Answer,
        durable: bool,
        coverage: &mut Coverage,
    ) {
        let Some(intended) = self.intended.remove(&ticket) else { return };
        let visible = store.head().map(|head| head.position);
        match answer {
            Answer::Committed(position) => {
                let held = if durable { store.durable_head() } else { visible };
                let there = held.is_some_and(|held| self.model.leads_to(position, &held));
                self.require(Invariant::AnswerIsTrue, there, || format!("ticket {ticket} is not there at {position}"));
                if let Err(words) = intended.is_kept(&self.model, position, coverage) {
                    self.fail(Invariant::ConditionsHold, format!("ticket {ticket} at {position}: {words}"));
                }
            }
            Answer::Conflict { .. } | Answer::Aborted { .. } => {
                let seen = visible.is_none_or(|head| intended.could_refuse(&self.model, &head));
                self.require(Invariant::ConditionsHold, seen, || {
                    format!("ticket {ticket} was refused, though its conditions held all the time")
                });
                coverage.met(if matches!(answer, Answer::Aborted { .. }) { Scene::Aborted } else { Scene::Conflict });
                self.is_nowhere(ticket, visible);
            }
            Answer::Failed(_) | Answer::Fenced => self.is_nowhere(ticket, visible),
            _ => {}
        }
    }

    fn is_nowhere(&mut self, ticket: u64, visible: Option<Position>) {
        let written = self.written.get(&ticket).copied();
        let there = written.zip(visible).is_some_and(|(at, head)| self.model.leads_to(&at, &head));
        self.require(Invariant::AnswerIsTrue, !there, || format!("ticket {ticket} was refused, and is there"));
        self.refused.insert(ticket);
    }

    /// A master published records.
    pub(super) fn published(&mut self, store: &ModelStore, before: &Position, entries: &[LogEntry]) {
        let mut at = *before;
        for entry in entries {
            let follows = at.seq.next() == Some(entry.position.seq) && self.model.leads_to(&at, &entry.position);
            self.require(Invariant::Published, follows, || format!("{} was published after {at}", entry.position));
            at = entry.position;
        }
        let durable = self.is_durable(store, &at);
        self.require(Invariant::Published, durable, || format!("{at} is published, and not durable"));
    }

    fn is_durable(&self, store: &ModelStore, position: &Position) -> bool {
        store.durable_head().is_some_and(|head| self.model.leads_to(position, &head))
    }

    /// A master sends records on a session that stands at `sent`.
    pub(super) fn records_sent(&mut self, store: Option<&ModelStore>, sent: &mut Position, parts: &[Bytes]) {
        for part in parts {
            let mut rest = part.clone();
            while !rest.is_empty() {
                let record = match Record::take(&mut rest) {
                    Ok(record) => record,
                    Err(error) => return self.fail(Invariant::SentIsIntact, format!("after {sent}: {error}")),
                };
                let position = record.position();
                let follows = record.header().verify_after(sent).is_ok();
                self.require(Invariant::SentInOrder, follows, || format!("{position} was sent after {sent}"));
                let intact = self.model.point(&position).is_some_and(|point| point.bytes == record.bytes());
                self.require(Invariant::SentIsIntact, intact, || format!("{position} is not what was committed"));
                *sent = position;
            }
        }
        self.sent_is_durable(store, sent);
    }

    /// A master sends what of its records lies within `ranges`, on a session that stands at `sent`.
    pub(super) fn filtered_sent(
        &mut self,
        store: Option<&ModelStore>,
        sent: &mut Position,
        ranges: &KeyRanges,
        filtered: &Filtered,
        coverage: &mut Coverage,
    ) {
        for passage in &filtered.passages {
            match passage {
                Passage::Share(share) => {
                    coverage.met(Scene::Filtered);
                    self.share_sent(sent, ranges, share);
                }
                Passage::Skipped(run) => {
                    coverage.met(Scene::RunSkipped);
                    let mut next = self.model.point(&run.through);
                    let mut touched = None;
                    while let Some(point) = next.filter(|point| point.position.seq > sent.seq) {
                        let record = Record::decode(point.bytes.clone());
                        let quiet = record.is_ok_and(|record| record.body().within(ranges).is_empty());
                        touched = touched.or((!quiet).then_some(point.position));
                        next = self.model.before(point);
                    }
                    let continues = next.is_some_and(|point| point.position == *sent || sent.seq == Seq::ZERO);
                    self.require(Invariant::SentInOrder, continues, || {
                        format!("a run up to {} was sent after {sent}", run.through)
                    });
                    self.require(Invariant::SentIsIntact, touched.is_none(), || {
                        format!("{touched:?} touches {ranges}, and was left out")
                    });
                    *sent = run.through;
                }
            }
        }
        self.sent_is_durable(store, sent);
    }

    fn share_sent(&mut self, sent: &mut Position, ranges: &KeyRanges, share: &Share) {
        let position = share.header().position();
        let follows = share.header().verify_after(sent).is_ok();
        self.require(Invariant::SentInOrder, follows, || format!("{position} was sent after {sent}"));
        self.only(ranges, share.ops());
        let record = self.model.point(&position).and_then(|point| Record::decode(point.bytes.clone()).ok());
        let intact = record.is_some_and(|record| record.body().within(ranges) == *share.ops());
        self.require(Invariant::SentIsIntact, intact, || format!("{position} is not what was committed"));
        *sent = position;
    }

    /// A master decides how far its log may be trimmed, which begins after `floor`: it keeps what comes after `held`.
    pub(super) fn holds(&mut self, node: usize, floor: Seq, held: Option<Seq>) {
        if let Some(words) = self.stands.forgotten(node, floor, held) {
            self.fail(Invariant::KeptForAway, words);
        }
    }

    /// A log is about to be cut after this one.
    pub(super) fn found_damage(&mut self, excused: bool, seq: Seq) {
        self.require(Invariant::CutRightly, excused, || format!("nothing is damaged, and the log is cut after {seq}"));
    }

    /// A master sends content to a slave that subscribes to `ranges`.
    pub(super) fn content_within(&mut self, ranges: &KeyRanges, content: &Content) {
        self.require(Invariant::OnlySubscribed, ranges.covers(&content.range), || {
            format!("{:?} was sent to a slave of {ranges}", content.range)
        });
        self.only(ranges, &content.entries);
    }

    fn only(&mut self, ranges: &KeyRanges, ops: &EncodedOps) {
        for op in ops {
            let inside = match op {
                Op::Put { key, .. } | Op::Delete { key } => ranges.contains(key),
                Op::DeleteRange { start, end } => {
                    let copy = |key: &[u8]| Bytes::copy_from_slice(key);
                    let range = KeyRange::new(copy(start), end.map(copy));
                    ranges.veil(&range) == Some(range)
                }
            };
            self.require(Invariant::OnlySubscribed, inside, || format!("{op:?} was sent to a slave of {ranges}"));
        }
    }

    /// A master sends a page, or says what is equal.
    pub(super) fn content_sent(&mut self, store: Option<&ModelStore>, read_at: &Position) {
        self.sent_is_durable(store, read_at);
    }

    // In `store`, whose node sends it. What a relay sends was durable on a master as well, when that sent it, or stepped down.
    fn sent_is_durable(&mut self, store: Option<&ModelStore>, position: &Position) {
        let is_master = |store: &ModelStore| store.identity().is_some_and(|identity| identity.role == Role::Master);
        let durable = store.is_none_or(|store| self.is_durable(store, position));
        if durable && store.is_some_and(is_master) {
            self.model.settle(position);
        }
        let settled = self.model.is_settled(position);
        self.require(Invariant::SentIsDurable, durable && settled, || {
            format!("{position} was sent, and is not durable: {durable}, on a master: {settled}")
        });
    }

    /// A store that was a master's is a slave's, which is durable.
    pub(super) fn stepped_down(&mut self, store: &ModelStore) {
        if let Some(cursor) = store.visible.cursor() {
            self.model.settle(&cursor.position);
        }
    }

    /// A slave tells how far it is. One that is `parting` speaks of the history that it joins.
    pub(super) fn acknowledged(&mut self, store: &ModelStore, ack: &Ack, parting: bool) {
        let seq = |cursor: Option<Cursor>| cursor.map_or(Seq::ZERO, |cursor| cursor.position.seq);
        let visible = store.visible.cursor();
        let consistent = visible.as_ref().is_some_and(Cursor::is_consistent);
        let (applied, durable) = (seq(visible), seq(store.durable.cursor()));
        // A store that goes back takes with it what was readable and never durable; its slave learns of that last.
        let joins = parting && !ack.consistent && ack.durable == Seq::ZERO;
        let readable = ack.applied <= applied || store.went_back || joins;
        self.require(Invariant::AckIsTrue, readable, || format!("{ack:?}, the cursor is at {applied}"));
        self.require(Invariant::AckIsTrue, ack.durable <= durable, || format!("{ack:?}, durable is only {durable}"));
        // Of two slaves on one store, one cannot know what the other has begun until it looks, or writes itself.
        let known = !store.went_back && !store.was_shared;
        self.require(Invariant::AckIsTrue, consistent || !ack.consistent || !known, || {
            format!("{ack:?} is not consistent")
        });
        // The master counts on what would be there after power loss.
        let settled = store.durable.cursor().as_ref().is_some_and(Cursor::is_consistent);
        self.require(Invariant::AckIsTrue, settled || !ack.consistent || store.was_shared, || {
            format!("{ack:?}, what is durable is not consistent")
        });
    }

    /// A connection holds so many bytes that the network has not taken.
    pub(super) fn buffered(&mut self, sizes: &Sizes, bytes: usize) {
        // What is queued, one message more (twice, where the network doubles it), and a few small ones.
        let most = sizes.high_water + 2 * (sizes.chunk + sizes.max_batch) + (16 << 10);
        self.require(Invariant::BoundedMemory, bytes <= most, || format!("a connection buffers {bytes} bytes"));
    }

    /// A slave holds so many bytes that are not committed.
    pub(super) fn backlog(&mut self, sizes: &Sizes, bytes: usize) {
        // A message may tell of many records of which nothing came.
        let most = 2 * sizes.apply_bytes + sizes.chunk + sizes.max_batch + (20 << 10);
        self.require(Invariant::BoundedMemory, bytes <= most, || format!("a slave holds {bytes} bytes"));
    }

    /// A ring holds so many bytes.
    pub(super) fn ring(&mut self, sizes: &Sizes, bytes: usize) {
        self.require(Invariant::BoundedMemory, bytes <= sizes.ring, || format!("a ring holds {bytes} bytes"));
    }
}

fn difference(expected: &BTreeMap<Bytes, Bytes>, found: &BTreeMap<Bytes, Bytes>) -> String {
    let show = |value: Option<&Bytes>| value.map_or("nothing".into(), |value| value.escape_ascii().to_string());
    for key in expected.keys().chain(found.keys()) {
        if expected.get(key) != found.get(key) {
            let (wanted, there) = (show(expected.get(key)), show(found.get(key)));
            return format!("{} should be {wanted}, is {there}", key.escape_ascii());
        }
    }
    "the same data".into()
}
