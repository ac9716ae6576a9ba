//! What users do: random batches, conditions and transactions, and what they were promised.

use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{Batch, Condition, KeyRange, Op, Position};
use replikv_proto::{Abort, Record, TransactView, Work};

use super::model::{Model, Point};
use super::{Coverage, Scene};

/// A write that waits for its answer.
#[derive(Debug)]
pub(super) struct Intended {
    pub(super) promise: Promise,
    /// The head when it was written.
    pub(super) seen: Position,
}

/// What a write is to do if it is committed.
#[derive(Debug, Clone)]
pub(super) enum Promise {
    Batch { ops: Bytes, note: Bytes, conditions: Vec<Condition> },
    Transact(Transaction),
    Nothing,
}

/// Copies a value to another key, or refuses if there is none.
#[derive(Debug, Clone)]
pub(super) struct Transaction {
    from: Bytes,
    to: Bytes,
    ticket: u64,
}

const TAGGED: u8 = b't';

impl Promise {
    fn tag(ticket: u64) -> Vec<u8> {
        let mut note = vec![TAGGED];
        note.extend_from_slice(&ticket.to_be_bytes());
        note
    }

    /// The ticket of the write that a note belongs to.
    pub(super) fn ticket(note: &[u8]) -> Option<u64> {
        let (tag, rest) = note.split_first()?;
        let number = rest.first_chunk::<8>()?;
        (*tag == TAGGED).then(|| u64::from_be_bytes(*number))
    }
}

impl Transaction {
    fn run(&self, get: impl FnOnce(&Bytes) -> Result<Option<Bytes>, Abort>) -> Result<Batch, Abort> {
        let Some(value) = get(&self.from)? else { return Err(Abort::refuse("there is nothing to copy")) };
        let copied = value.slice(..value.len().min(64));
        Ok(Batch::new().put(&self.to, copied).note(Promise::tag(self.ticket)))
    }

    fn work(self) -> Work {
        Work::Transact(Box::new(move |view: &TransactView<'_>| self.run(|key| view.get(key))))
    }
}

impl Intended {
    /// Checks a committed write against the state before it.
    pub(super) fn is_kept(&self, model: &Model, at: &Position, coverage: &mut Coverage) -> Result<(), String> {
        if matches!(self.promise, Promise::Nothing) {
            return Ok(());
        }
        let point = model.point(at).ok_or("no such record")?;
        let before = model.before(point).ok_or("nothing before it")?;
        let record = Record::decode(point.bytes.clone()).map_err(|error| error.to_string())?;
        let (ops, note) = match &self.promise {
            Promise::Batch { ops, note, conditions } => {
                if let Some(broken) = conditions.iter().find(|condition| !holds(condition, before)) {
                    return Err(format!("{} does not hold what was expected", broken.key.escape_ascii()));
                }
                let earlier = model.before(before).filter(|_| before.time == point.time);
                let changed = |condition: &Condition| earlier.is_some_and(|earlier| !holds(condition, earlier));
                if conditions.iter().any(changed) {
                    coverage.met(Scene::ConditionOnGroup);
                }
                (ops.clone(), note.clone())
            }
            Promise::Transact(transaction) => {
                let batch = transaction.run(|key| Ok(before.state.get(key).cloned()));
                let batch = batch.map_err(|_| "a transaction that must refuse did not")?;
                let (ops, _, note) = batch.into_parts().map_err(|error| error.to_string())?;
                (ops.as_bytes().clone(), note)
            }
            Promise::Nothing => return Ok(()),
        };
        let same = record.body().as_bytes() == &ops && record.header().note == note;
        if same { Ok(()) } else { Err("the record is not what was written".into()) }
    }

    /// True if, at some point since it was written, there was a reason to refuse it.
    pub(super) fn could_refuse(&self, model: &Model, head: &Position) -> bool {
        let Some(mut point) = model.point(head) else { return true };
        loop {
            let refuses = match &self.promise {
                Promise::Batch { conditions, .. } => conditions.iter().any(|condition| !holds(condition, point)),
                Promise::Transact(transaction) => !point.state.contains_key(&transaction.from),
                Promise::Nothing => false,
            };
            if refuses {
                return true;
            }
            if point.position.seq <= self.seen.seq {
                // A head that went back took the states with it that would tell.
                return point.position != self.seen;
            }
            match model.before(point) {
                Some(before) => point = before,
                None => return true,
            }
        }
    }
}

fn holds(condition: &Condition, point: &Point) -> bool {
    point.state.get(&condition.key) == condition.value.as_ref()
}

/// Draws what is written next. `now` is the data as the writer sees it.
pub(super) fn draw(
    rng: &mut Rng,
    ticket: u64,
    now: &std::collections::BTreeMap<Bytes, Bytes>,
    (keys, quiet): (u8, bool),
    coverage: &mut Coverage,
) -> (Work, Promise) {
    if quiet {
        return of_batch(Batch::new().put(key(rng, keys), value(rng)).note(Promise::tag(ticket)));
    }
    match rng.u8(0..100) {
        0..7 => {
            let transaction = Transaction { from: key(rng, keys), to: key(rng, keys), ticket };
            (transaction.clone().work(), Promise::Transact(transaction))
        }
        7..12 => {
            coverage.met(Scene::NoteAlone);
            of_batch(Batch::new().note(Promise::tag(ticket)))
        }
        12 => of_batch(Batch::new().put(key(rng, keys), vec![0; 8_000]).note(Promise::tag(ticket))),
        kind => {
            let mut batch = Batch::new();
            let ops = if rng.u8(0..10) == 0 { rng.usize(1..20) } else { rng.usize(1..4) };
            (0..ops).for_each(|_| push(rng, &mut batch, keys));
            if kind < 30 {
                let key = key(rng, keys);
                let expected = if rng.u8(0..4) == 0 { Some(value(rng)) } else { now.get(&key).cloned() };
                batch = match expected {
                    Some(value) => batch.expect(&key, value),
                    None => batch.expect_absent(&key),
                };
                // Puts what it looked at, so that the next one of its group can tell.
                batch = batch.put(&key, value(rng));
            }
            if rng.u8(0..4) > 0 {
                let mut note = Promise::tag(ticket);
                note.resize(note.len() + rng.usize(0..40), b'.');
                batch = batch.note(note);
            }
            of_batch(batch)
        }
    }
}

fn of_batch(batch: Batch) -> (Work, Promise) {
    let promise = match batch.clone().into_parts() {
        Ok((ops, conditions, note)) => Promise::Batch { ops: ops.as_bytes().clone(), note, conditions },
        Err(_) => Promise::Nothing,
    };
    (Work::Batch(batch), promise)
}

fn push(rng: &mut Rng, batch: &mut Batch, keys: u8) {
    match rng.u8(0..100) {
        0..65 => batch.push(Op::Put { key: &key(rng, keys), value: &value(rng) }),
        65..85 => batch.push(Op::Delete { key: &key(rng, keys) }),
        kind => {
            let (one, other) = (key(rng, keys), key(rng, keys));
            let range = match kind {
                98 => KeyRange::all(),
                99 => KeyRange::from_bounds(&one[..]..),
                _ if rng.bool() => KeyRange::new(one.clone().min(other.clone()), Some(one.max(other))),
                _ => KeyRange::prefix(&one[..one.len() - 1]),
            };
            batch.push(Op::delete_range(&range));
        }
    }
}

pub(super) fn key(rng: &mut Rng, keys: u8) -> Bytes {
    let n = rng.u8(0..keys);
    match rng.u8(0..12) {
        0 => Bytes::from(vec![0xFF, n]),
        1 => Bytes::from(vec![0x00, n]),
        2 => Bytes::from(vec![0xFF; usize::from(n % 16) + 1]),
        _ => {
            let prefix = char::from(b'a' + rng.u8(0..4));
            Bytes::from(format!("{prefix}{n:02}"))
        }
    }
}

pub(super) fn value(rng: &mut Rng) -> Bytes {
    let len = match rng.u8(0..20) {
        0..16 => rng.usize(0..30),
        16..19 => rng.usize(30..200),
        _ => rng.usize(200..1_500),
    };
    let salt = rng.u64(..).to_le_bytes();
    (0..len).map(|at| salt[at % 8].wrapping_add(at as u8)).collect()
}
