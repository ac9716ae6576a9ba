//! What is written, from a seed: every batch of a history, and what a store holds after each.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikv::{Batch, Op, Seq};

use crate::setup::Values;

/// What a store holds.
pub(crate) type Content = BTreeMap<Bytes, Bytes>;

/// A history, and its states as far as somebody asked for them.
#[derive(Debug)]
pub(crate) struct History {
    seed: u64,
    values: Values,
    /// The record before the first batch.
    start: u64,
    /// The state after each batch; the first one before all of them.
    states: Vec<Content>,
}

const KEYS: u32 = 300;

impl History {
    /// The history of a master that was empty: its first record begins the epoch, each further one is a batch.
    pub(crate) fn of_an_empty_master(seed: u64, values: Values) -> Self {
        Self { seed, values, start: 1, states: vec![Content::new()] }
    }

    /// The history of a master that began with data: the second record says so.
    pub(crate) fn of_a_full_master(seed: u64, values: Values) -> Self {
        Self { seed, values, start: 2, states: vec![initial(seed, values)] }
    }

    /// The batch that becomes record `seq`.
    pub(crate) fn batch(&self, seq: u64) -> Batch {
        let ops = ops(self.seed, seq, self.values);
        let mut batch = ops.iter().fold(Batch::new(), |mut batch, op| {
            batch.push(op.as_op());
            batch
        });
        if seq.is_multiple_of(7) {
            batch = batch.note(format!("batch {seq}"));
        }
        batch
    }

    /// What the store of a master holds at record `seq`.
    pub(crate) fn at(&mut self, seq: Seq) -> &Content {
        let wanted = usize::try_from(seq.as_u64().saturating_sub(self.start)).unwrap_or(usize::MAX);
        while self.states.len() <= wanted {
            let mut state = self.states.last().cloned().unwrap_or_default();
            for op in ops(self.seed, self.start + self.states.len() as u64, self.values) {
                op.apply(&mut state);
            }
            self.states.push(state);
        }
        &self.states[wanted]
    }

    /// The record after which the first batch comes.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }
}

#[derive(Debug)]
enum Change {
    Put(Bytes, Bytes),
    Delete(Bytes),
    DeleteRange(Bytes, Bytes),
}

impl Change {
    fn as_op(&self) -> Op<'_> {
        match self {
            Self::Put(key, value) => Op::Put { key, value },
            Self::Delete(key) => Op::Delete { key },
            Self::DeleteRange(start, end) => Op::DeleteRange { start, end: Some(end) },
        }
    }

    fn apply(self, state: &mut Content) {
        match self {
            Self::Put(key, value) => drop(state.insert(key, value)),
            Self::Delete(key) => drop(state.remove(&key)),
            Self::DeleteRange(start, end) if start < end => state.retain(|key, _| *key < start || *key >= end),
            Self::DeleteRange(..) => {}
        }
    }
}

fn rng(seed: u64, of: u64) -> Rng {
    Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ of.wrapping_mul(0xD1B5_4A32_D192_ED03))
}

fn key(number: u32) -> Bytes {
    // Of several lengths, and in several parts of the tree.
    Bytes::from(format!("{}/{number:03}{}", number % 7, "k".repeat((number % 40) as usize)))
}

fn ops(seed: u64, seq: u64, values: Values) -> Vec<Change> {
    let mut rng = rng(seed, seq);
    let few = rng.usize(1..=8);
    (0..few)
        .map(|_| match rng.u8(..40) {
            0..=27 => Change::Put(key(rng.u32(..KEYS)), value(&mut rng, values)),
            28..=36 => Change::Delete(key(rng.u32(..KEYS))),
            37..=38 => {
                let number = rng.u32(..KEYS);
                Change::DeleteRange(key(number), key(number + 21))
            }
            _ => {
                let tree = rng.u8(..7);
                Change::DeleteRange(Bytes::from(format!("{tree}/")), Bytes::from(format!("{tree}0")))
            }
        })
        .collect()
}

fn value(rng: &mut Rng, values: Values) -> Bytes {
    let len = match rng.u16(..500) {
        // Files of their own in sled, runs of pages in LMDB.
        0 if values == Values::Large => rng.usize(140_000..200_000),
        0..=25 => rng.usize(3_000..20_000),
        26..=60 => 0,
        _ => rng.usize(1..400),
    };
    let (first, step) = (rng.u8(..), rng.u8(1..));
    (0..len).map(|at| first.wrapping_add(step.wrapping_mul((at % 251) as u8))).collect()
}

fn initial(seed: u64, values: Values) -> Content {
    let mut rng = rng(seed, 0);
    (0..KEYS)
        .filter(|_| rng.u8(..4) != 0)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|number| (key(number), value(&mut rng, values)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_history() {
        let (mut one, mut two) =
            (History::of_a_full_master(5, Values::Large), History::of_a_full_master(5, Values::Large));
        let mut other = History::of_a_full_master(6, Values::Large);
        assert_eq!(one.at(Seq::new(90)), two.at(Seq::new(90)));
        assert_ne!(one.at(Seq::new(90)), other.at(Seq::new(90)));
        assert_ne!(one.at(Seq::new(90)).clone(), one.at(Seq::new(91)).clone());
        assert_eq!(one.batch(17).byte_len(), two.batch(17).byte_len());
    }

    #[test]
    fn a_history_has_everything_in_it() {
        let all: Vec<Change> = (3..600).flat_map(|seq| ops(1, seq, Values::Large)).collect();
        let count = |wanted: fn(&Change) -> bool| all.iter().filter(|change| wanted(change)).count();
        assert!(count(|change| matches!(change, Change::Put(_, value) if value.len() > 131_072)) > 0);
        assert!(count(|change| matches!(change, Change::Put(_, value) if value.is_empty())) > 10);
        assert!(count(|change| matches!(change, Change::Delete(_))) > 100);
        assert!(count(|change| matches!(change, Change::DeleteRange(..))) > 50);
    }
}
