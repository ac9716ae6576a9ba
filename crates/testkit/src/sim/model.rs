//! What masters have committed, as the oracle knows it: a tree of records, and the state after each.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{Digest, KeyRange, Keyspace, Op, Position, Seq, SourceId};
use replikv_proto::{EpochStart, Record, origin};

use super::print::Print;
use super::store::Maps;

/// One point of a history.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) position: Position,
    before: Option<Name>,
    /// The last one before it whose number is a multiple of [`STRIDE`], if there is one.
    far: Option<Name>,
    /// The first record of its epoch.
    began: Seq,
    /// The data after it.
    pub(super) state: Arc<BTreeMap<Bytes, Bytes>>,
    pub(super) print: Print,
    /// The record, as it was encoded.
    pub(super) bytes: Bytes,
    /// Its operations include a range delete.
    pub(super) deletes_range: bool,
    pub(super) time: u64,
    /// It was durable on a master.
    settled: bool,
}

type Name = (SourceId, Seq, Digest);

/// Who looks for an early point passes so many by at once.
const STRIDE: u64 = 64;

fn name(position: &Position) -> Name {
    (position.source, position.seq, position.digest)
}

/// All histories.
#[derive(Debug, Default)]
pub(super) struct Model {
    points: BTreeMap<Name, Point>,
}

impl Model {
    /// A store became a master's: `maps` is what it holds, its log included.
    pub(super) fn begin(&mut self, maps: &Maps, first: &Position) -> Result<(), String> {
        let mut before = origin(first.source, first.epoch);
        self.insert(before, None, Bytes::new(), maps.of(Keyspace::Data).clone(), maps.print, (false, 0));
        for bytes in maps.of(Keyspace::Log).values() {
            let record = Record::decode(bytes.clone()).map_err(|error| error.to_string())?;
            self.append(&before, &record)?;
            before = record.position();
        }
        Ok(())
    }

    /// A record was put into the log of a store whose head was `before`.
    pub(super) fn append(&mut self, before: &Position, record: &Record) -> Result<(), String> {
        record.header().verify_after(before).map_err(|error| error.to_string())?;
        if self.points.contains_key(&name(&record.position())) {
            return Ok(());
        }
        let parent = self.points.get(&name(before)).ok_or("the record before it is not known")?;
        let (mut state, mut print) = (BTreeMap::clone(&parent.state), parent.print);
        let mut deletes_range = false;
        for op in record.body() {
            deletes_range |= matches!(op, Op::DeleteRange { .. });
            change(&mut state, &mut print, op);
        }
        let (position, time) = (record.position(), record.header().time);
        self.insert(position, Some(name(before)), record.bytes().clone(), state, print, (deletes_range, time));
        Ok(())
    }

    fn insert(
        &mut self,
        position: Position,
        before: Option<Name>,
        bytes: Bytes,
        state: BTreeMap<Bytes, Bytes>,
        print: Print,
        (deletes_range, time): (bool, u64),
    ) {
        let far = before.and_then(|(_, seq, _)| match seq.as_u64().is_multiple_of(STRIDE) {
            true => before,
            false => before.and_then(|before| self.points.get(&before)?.far),
        });
        let same_epoch = before
            .and_then(|before| self.points.get(&before))
            .filter(|before| before.position.seq > Seq::ZERO && before.position.epoch == position.epoch);
        let began = same_epoch.map_or(position.seq, |before| before.began);
        let state = Arc::new(state);
        let point = Point { position, before, far, began, state, print, bytes, deletes_range, time, settled: false };
        self.points.insert(name(&position), point);
    }

    pub(super) fn point(&self, position: &Position) -> Option<&Point> {
        self.points.get(&name(position)).filter(|point| {
            // Before the first record there is no epoch to compare.
            point.position == *position || position.seq == Seq::ZERO
        })
    }

    /// It was durable on a master, with all before it.
    pub(super) fn settle(&mut self, position: &Position) {
        let mut next = self.point(position).map(|point| name(&point.position));
        while let Some(point) = next.and_then(|name| self.points.get_mut(&name)).filter(|point| !point.settled) {
            point.settled = true;
            next = point.before;
        }
    }

    pub(super) fn is_settled(&self, position: &Position) -> bool {
        self.point(position).is_some_and(|point| point.settled)
    }

    pub(super) fn before(&self, point: &Point) -> Option<&Point> {
        self.points.get(&point.before?)
    }

    /// The point numbered `seq` on the way to `head`.
    pub(super) fn at(&self, head: &Position, seq: Seq) -> Option<&Point> {
        let mut point = self.point(head)?;
        while point.position.seq > seq {
            let far = point.far.and_then(|far| self.points.get(&far)).filter(|far| far.position.seq >= seq);
            point = match far {
                Some(far) => far,
                None => self.before(point)?,
            };
        }
        Some(point).filter(|point| point.position.seq == seq)
    }

    /// One of `keys` that no record after `from` up to `until` has touched.
    pub(super) fn untouched(&self, mut keys: Vec<Bytes>, from: &Position, until: &Position) -> Option<Bytes> {
        let mut next = self.point(until);
        while let Some(point) = next.filter(|point| point.position.seq > from.seq && !keys.is_empty()) {
            if let Ok(record) = Record::decode(point.bytes.clone()) {
                let touches = |op: Op<'_>, other: &Bytes| match op {
                    Op::Put { key, .. } | Op::Delete { key } => key == other,
                    Op::DeleteRange { .. } => false,
                };
                keys.retain(|key| !record.body().iter().any(|op| touches(op, key)));
            }
            next = self.before(point);
        }
        keys.pop()
    }

    /// Where epochs began on the way to `head`, oldest first.
    pub(super) fn epochs(&self, head: &Position) -> Vec<EpochStart> {
        let mut epochs: Vec<EpochStart> = Vec::new();
        let mut next = self.point(head);
        while let Some(point) = next.filter(|point| point.position.seq > Seq::ZERO) {
            epochs.push(EpochStart { epoch: point.position.epoch, first: point.began });
            let before = Seq::new(point.began.as_u64().saturating_sub(1));
            next = self.at(&point.position, before);
        }
        epochs.reverse();
        epochs
    }

    /// True if `position` lies on the way to `head`.
    pub(super) fn leads_to(&self, position: &Position, head: &Position) -> bool {
        if position.source != head.source || position.seq > head.seq {
            return false;
        }
        let found = self.at(head, position.seq);
        found.is_some_and(|point| self.point(position).is_some_and(|own| own.position == point.position))
    }
}

fn change(state: &mut BTreeMap<Bytes, Bytes>, print: &mut Print, op: Op<'_>) {
    match op {
        Op::Put { key, value } => {
            let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            print.add(&key, &value);
            if let Some(before) = state.insert(key.clone(), value) {
                print.remove(&key, &before);
            }
        }
        Op::Delete { key } => {
            if let Some(before) = state.remove(key) {
                print.remove(key, &before);
            }
        }
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
            state.retain(|key, value| {
                let goes = range.contains(key);
                if goes {
                    print.remove(key, value);
                }
                !goes
            });
        }
    }
}
