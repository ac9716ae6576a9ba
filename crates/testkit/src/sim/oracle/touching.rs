//! What a stretch of a compacted log tells a slave: nothing strange, and nothing is left out.

use std::collections::BTreeSet;

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, KeyRanges, Op, Position};
use replikv_proto::{Record, Touched};

use super::{Invariant, Oracle};
use crate::sim::model::Model;

/// What was sent of a stretch that is not sent whole.
#[derive(Debug, Default)]
pub(in crate::sim) struct Told {
    keys: BTreeSet<Bytes>,
    deleted: Vec<KeyRange>,
}

impl Told {
    fn add(&mut self, ops: &EncodedOps) {
        for op in ops {
            match op {
                Op::Put { key, .. } | Op::Delete { key } => drop(self.keys.insert(Bytes::copy_from_slice(key))),
                Op::DeleteRange { start, end } => {
                    let end = end.map(Bytes::copy_from_slice);
                    self.deleted.push(KeyRange::new(Bytes::copy_from_slice(start), end));
                }
            }
        }
    }

    fn has(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || self.deleted.iter().any(|range| range.contains(key))
    }
}

impl Oracle {
    /// A master sends what keys hold that were touched, on a session that stands at `sent` and was `told` others of the
    /// same stretch. They were looked up once `from` was published.
    pub(in crate::sim) fn touched_sent(
        &mut self,
        (sent, told): (&mut Position, &mut Told),
        ranges: &KeyRanges,
        from: &Position,
        touched: &Touched,
    ) {
        let Touched { read_at, end, ops } = touched;
        let until = end.unwrap_or(*sent);
        let goes_on = end.is_none_or(|end| end.seq > sent.seq && self.model.leads_to(sent, &end));
        self.require(Invariant::SentInOrder, goes_on && self.model.leads_to(&until, read_at), || {
            format!("a stretch up to {end:?} was sent after {sent}, as of {read_at}")
        });
        if !ranges.is_all() {
            self.only(ranges, ops);
        }
        let strange = strange(&self.model, ops, from, read_at);
        self.require(Invariant::SentIsIntact, strange.is_none(), || {
            format!("{strange:?} never held from {from} on what was sent of it")
        });
        told.add(ops);
        if let Some(end) = end {
            let told = std::mem::take(told);
            let left_out = left_out(&self.model, &told, ranges, (sent, end, read_at));
            self.require(Invariant::SentIsWhole, left_out.is_none(), || {
                format!("{left_out:?} was changed after {sent} up to {end}, and left out")
            });
            let keys = told.keys.into_iter().collect();
            let strange = self.model.untouched(keys, sent, end).map(|key| key.escape_ascii().to_string());
            self.require(Invariant::SentIsIntact, strange.is_none(), || {
                format!("{strange:?} was touched by no record after {sent} up to {end}")
            });
        }
        *sent = until;
    }
}

// A key that never held, from `from` on up to `read_at`, what `ops` say.
fn strange(model: &Model, ops: &EncodedOps, from: &Position, read_at: &Position) -> Option<String> {
    let points: Vec<_> = std::iter::successors(model.point(read_at), |point| model.before(point))
        .take_while(|point| point.position.seq >= from.seq)
        .collect();
    let held = |key: &[u8], value: Option<&[u8]>| points.iter().any(|at| at.state.get(key).map(|v| &v[..]) == value);
    let strange = ops.iter().find_map(|op| match op {
        Op::Put { key, value } => (!held(key, Some(value))).then_some(key),
        Op::Delete { key } => (!held(key, None)).then_some(key),
        Op::DeleteRange { .. } => None,
    });
    strange.map(|key| key.escape_ascii().to_string())
}

// A key within `ranges` that holds something else at `until` than at `from`, of which nothing was told, and which no record
// after `until` touches, up to `now`: of those the slave hears later.
fn left_out(
    model: &Model,
    told: &Told,
    ranges: &KeyRanges,
    (from, until, now): (&Position, &Position, &Position),
) -> Option<String> {
    let (before, after) = (&model.point(from)?.state, &model.point(until)?.state);
    let differ = |key: &&Bytes| before.get(*key) != after.get(*key);
    let mut silent: BTreeSet<&Bytes> = before.keys().chain(after.keys()).filter(differ).collect();
    silent.retain(|key| ranges.contains(key) && !told.has(key));
    let mut next = model.point(now);
    while let Some(point) = next.filter(|point| point.position.seq > until.seq && !silent.is_empty()) {
        if let Ok(record) = Record::decode(point.bytes.clone()) {
            let mut later = Told::default();
            later.add(record.body());
            silent.retain(|key| !later.has(key));
        }
        next = model.before(point);
    }
    silent.first().map(|key| key.escape_ascii().to_string())
}
