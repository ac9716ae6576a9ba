//! Which of the slaves that subscribe to key ranges a record concerns.
//!
//! A master with a thousand of them must not have each look at each record, to find that it is not for it. What is
//! published is looked at once, against the ranges of all: whoever it concerns is woken, and whoever it does not concern
//! learns later, at once and without the log, how far the history has gone on without it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRanges, MalformedOps, Op, Position, Seq};

use crate::filter::MAX_HEADERS;
use crate::key_head::key_head;
use crate::layout::Checkpoint;
use crate::planted::{self, Bug};
use crate::{LogEntry, RecordHeader, Skipped};

/// So many checkpoints are remembered: whoever is further behind goes through the log. Whoever looks when it is woken is not.
const MAX_MARKS: usize = 1024;
/// Ranges that overlap so often are not told apart: every record concerns everybody.
const MAX_LISTED: usize = 1 << 20;

/// The slaves that subscribe to key ranges, each with what wakes it.
#[derive(Debug)]
pub struct Subscribers<W> {
    members: BTreeMap<u64, Member<W>>,
    next: u64,
    /// Between two starts the same ones are concerned. Empty if it must be made.
    stretches: Vec<Stretch>,
    /// Fewer records than this are read: their headers prove more than a run.
    least: u64,
    /// The last record that was looked at, and the checkpoints before it, as long as there is anybody.
    latest: Option<Mark>,
    marks: VecDeque<Mark>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriberId(u64);

#[derive(Debug)]
struct Member<W> {
    ranges: KeyRanges,
    wake: W,
    /// What came after it was looked at.
    known: Seq,
    /// Where it stood when it last asked.
    told: Mark,
    concerned: Option<Concerned>,
}

/// Records that somebody has not read.
#[derive(Debug, Clone, Copy)]
struct Concerned {
    /// The one before the first of them.
    before: Mark,
    last: Mark,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    position: Position,
    log_bytes: u64,
    time: u64,
}

#[derive(Debug)]
struct Stretch {
    start: Bytes,
    /// The beginning of `start`: of most keys it tells enough, without a look at another place.
    head: u64,
    members: Vec<u64>,
    /// The last record that concerned them.
    seen: Seq,
}

impl Stretch {
    fn new(start: Bytes, members: Vec<u64>) -> Self {
        let head = key_head(&start);
        Self { start, head, members, seen: Seq::ZERO }
    }
}

impl<W> Default for Subscribers<W> {
    fn default() -> Self {
        Self::passing(MAX_HEADERS as u64 + 1)
    }
}

impl<W> Subscribers<W> {
    /// Nobody. Runs of fewer than `least` records are not passed by; by default of as few as travel as headers.
    pub fn passing(least: u64) -> Self {
        let (members, stretches, marks) = (BTreeMap::new(), Vec::new(), VecDeque::new());
        Self { members, next: 0, stretches, least, latest: None, marks }
    }

    /// Enters somebody who subscribes to `ranges`, when the last published record is the one at `published`, and
    /// `log_bytes` bytes of records were ever published. It must hear of every record from then on.
    pub fn enter(&mut self, ranges: &KeyRanges, published: Position, log_bytes: u64, wake: W) -> SubscriberId {
        let told = Mark { position: published, log_bytes, time: 0 };
        if self.members.is_empty() {
            self.begin(told);
        }
        let id = self.next;
        self.next += 1;
        let known = published.seq;
        self.members.insert(id, Member { ranges: ranges.clone(), wake, known, told, concerned: None });
        self.stretches.clear();
        SubscriberId(id)
    }

    /// It is gone.
    pub fn leave(&mut self, id: SubscriberId) {
        self.members.remove(&id.0);
        self.stretches.clear();
    }

    /// A record was published: `wake` gets whomever it concerns; and everybody, once in a great many records.
    pub fn publish(&mut self, entry: &LogEntry, mut wake: impl FnMut(&W)) {
        let Some(before) = self.latest.filter(|_| !self.members.is_empty()) else { return };
        let read = read(entry);
        let time = read.as_ref().map_or(0, |(time, _)| *time);
        let mark = Mark { position: entry.position, log_bytes: entry.log_bytes, time };
        if before.position.seq.next() != Some(entry.position.seq) {
            return self.reset(mark, wake);
        }
        if self.stretches.is_empty() {
            self.stretches = stretches(&self.members);
        }
        let mut concern = |stretch: &mut Stretch| {
            if stretch.seen == mark.position.seq {
                return;
            }
            stretch.seen = mark.position.seq;
            if planted::is(Bug::ConcernUnnoticed) {
                return;
            }
            for id in &stretch.members {
                let Some(member) = self.members.get_mut(id) else { continue };
                let unread = member.concerned.filter(|unread| unread.last.position.seq > member.told.position.seq);
                let before = unread.map_or(before, |unread| unread.before);
                member.concerned = Some(Concerned { before, last: mark });
                wake(&member.wake);
            }
        };
        let whole = read.is_some_and(|(_, ops)| each(&mut self.stretches, &ops, &mut concern).is_ok());
        if !whole {
            // Whoever reads it finds out what is wrong with it.
            self.stretches.iter_mut().for_each(concern);
        }
        self.latest = Some(mark);
        if Checkpoint::is_due(mark.position.seq) {
            self.marks.push_back(mark);
            if self.marks.len() > MAX_MARKS {
                self.marks.pop_front();
            }
            // Whoever has asked for nothing so long comes to ask before what it needs is forgotten.
            if mark.position.seq.as_u64().is_multiple_of(Checkpoint::EVERY * MAX_MARKS as u64 / 2) {
                self.members.values().for_each(|member| wake(&member.wake));
            }
        }
    }

    /// What was published after `at` is gone. Everybody has to look.
    pub fn rewind(&mut self, at: Position, log_bytes: u64, wake: impl FnMut(&W)) {
        if self.latest.is_some_and(|latest| latest.position.seq > at.seq) {
            self.reset(Mark { position: at, log_bytes, time: 0 }, wake);
        }
    }

    /// How the history went on after `after` without concerning the one that asks, in runs that end with each
    /// checkpoint; `None` if the log must be read: for what concerns it, for a few records, or since too little is
    /// known. `log_bytes` are those of the records up to `after`, if they are known.
    pub fn passed(&mut self, id: SubscriberId, after: Position, log_bytes: Option<u64>) -> Option<Vec<Skipped>> {
        let member = self.members.get_mut(&id.0)?;
        let known = member.concerned.map(|read| read.last).filter(|last| last.position == after);
        if let Some(last) = known {
            member.told = last;
        } else if member.told.position != after {
            member.told = Mark { position: after, log_bytes: log_bytes?, time: 0 };
        }
        let mut at = member.told;
        if after.seq < member.known {
            return None;
        }
        let through = match member.concerned {
            Some(unread) if after.seq < unread.before.position.seq => unread.before,
            Some(unread) if after.seq < unread.last.position.seq => return None,
            _ => self.latest?,
        };
        let due = (after.seq.as_u64() / Checkpoint::EVERY + 1).saturating_mul(Checkpoint::EVERY);
        let remembered = due >= through.position.seq.as_u64()
            || self.marks.front().is_some_and(|first| first.position.seq.as_u64() <= due);
        if through.position.seq.since(after.seq) < self.least.max(1) || !remembered {
            return None;
        }
        let between = |mark: &&Mark| mark.position.seq > after.seq && mark.position.seq < through.position.seq;
        let ends = self.marks.iter().filter(between).chain([&through]);
        let runs = ends.map(|end| {
            let log_bytes = end.log_bytes.saturating_sub(at.log_bytes);
            at = *end;
            Skipped { through: end.position, log_bytes, time: end.time }
        });
        let runs = runs.collect();
        member.told = through;
        Some(runs)
    }

    fn begin(&mut self, at: Mark) {
        self.latest = Some(at);
        self.marks.clear();
    }

    fn reset(&mut self, at: Mark, mut wake: impl FnMut(&W)) {
        self.begin(at);
        // Other records come to have numbers that were seen.
        self.stretches.clear();
        for member in self.members.values_mut() {
            (member.known, member.told, member.concerned) = (at.position.seq, at, None);
            wake(&member.wake);
        }
    }
}

// When it was committed, and its operations. It was made or verified here: its hash is not taken again.
fn read(entry: &LogEntry) -> Option<(u64, Bytes)> {
    let mut rest = entry.bytes.clone();
    let (header, _) = RecordHeader::take(&mut rest).ok()?;
    Some((header.time, entry.body.clone().unwrap_or(rest)))
}

// The stretches that an operation falls into, once for each of its keys.
fn each(stretches: &mut [Stretch], ops: &[u8], mut concern: impl FnMut(&mut Stretch)) -> Result<(), MalformedOps> {
    let mut touch = |start: &[u8], end: Option<&[u8]>| {
        let head = key_head(start);
        let before = |stretch: &Stretch| (stretch.head, &stretch.start[..]) <= (head, start);
        let from = stretches.partition_point(before).saturating_sub(1);
        let met = stretches.iter_mut().skip(from);
        met.take_while(|stretch| before(stretch) || end.is_none_or(|end| &stretch.start[..] < end))
            .for_each(&mut concern);
    };
    for op in EncodedOps::read(ops) {
        match op? {
            Op::Put { key, .. } | Op::Delete { key } => touch(key, Some(key)),
            Op::DeleteRange { start, end } => touch(start, end),
        }
    }
    Ok(())
}

// The first one begins with the least of all keys.
fn stretches<W>(members: &BTreeMap<u64, Member<W>>) -> Vec<Stretch> {
    let mut changes: BTreeMap<Bytes, (Vec<u64>, Vec<u64>)> = BTreeMap::from([(Bytes::new(), Default::default())]);
    for (id, member) in members {
        for range in &member.ranges {
            changes.entry(range.start().clone()).or_default().0.push(*id);
            if let Some(end) = range.end() {
                changes.entry(end.clone()).or_default().1.push(*id);
            }
        }
    }
    let (mut stretches, mut there, mut listed) = (Vec::with_capacity(changes.len()), BTreeSet::new(), 0);
    for (start, (begin, end)) in changes {
        for id in &end {
            there.remove(id);
        }
        there.extend(begin);
        listed += there.len();
        if listed > MAX_LISTED {
            let members = members.keys().copied().collect();
            return vec![Stretch::new(Bytes::new(), members)];
        }
        stretches.push(Stretch::new(start, there.iter().copied().collect()));
    }
    stretches
}

#[cfg(test)]
mod tests;
