//! Compaction against a model: a store of three maps, and what the data was after each record.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use replikv_core::{Batch, Digest, Epoch, KeyRange, Keyspace, Op, Position, Seq, SourceId, StoreError, WriteSet};

use super::run::from_touch_key;
use super::*;
use crate::layout::{Checkpoint, Floor, Head, Stored};
use crate::{PreparedRecord, Record, RecordDraft, RecordKind, Retention, origin};

type Map = BTreeMap<Bytes, Bytes>;

/// A log as a store holds it.
#[derive(Debug, Clone)]
pub(crate) struct StoredLog {
    pub(crate) log: Map,
    pub(crate) meta: Map,
    pub(crate) parts: LogParts,
    head: Head,
}

impl StoredLog {
    pub(crate) fn new(origin: Position) -> Self {
        let floor = Floor { position: origin, log_bytes: 0 };
        let head = Head { position: origin, log_bytes: 0, uptime_ms: 0 };
        let meta = Map::from([(Bytes::from_static(Floor::KEY), floor.to_bytes())]);
        Self { log: Map::new(), meta, parts: LogParts::new(floor), head }
    }

    pub(crate) fn append(&mut self, position: Position, record: Bytes) {
        self.head.log_bytes += record.len() as u64;
        self.head.position = position;
        self.head.uptime_ms = position.seq.as_u64();
        self.log.insert(Bytes::copy_from_slice(&position.seq.to_key()), record);
    }

    pub(crate) fn head(&self) -> Head {
        self.head
    }

    /// One step, of so many records at most, that leaves so many as they are. False if there was nothing to be done.
    pub(crate) fn compact(&mut self, records: usize, window: u64) -> bool {
        let compaction = Compaction { window_bytes: 0, window_records: window };
        let full = self.parts.full_after().position.seq;
        let after = KeyRange::from_bounds(full.next().unwrap().to_key()..);
        let full = self.page(&after).into_iter().take(records).map(|(_, bytes)| Record::decode(bytes).unwrap());
        let full: Vec<_> = full.collect();
        let Some(mut folding) = compaction.fold(&self.parts, &self.head, &full, 1024, None, &[]).unwrap() else {
            return false;
        };
        let indexed: Vec<_> = folding.index_keys().iter().map(|key| self.meta.get(key).cloned()).collect();
        let runs = folding.found(&indexed).unwrap();
        let runs: Vec<_> = runs.into_iter().map(|seq| (seq, self.log.get(&seq.to_key()[..]).cloned())).collect();
        let step = folding.finish(&runs).unwrap().unwrap();
        self.apply(&step);
        true
    }

    /// Gives up what lies before `until`; what is there goes with further steps.
    pub(crate) fn give_up(&mut self, until: Floor) {
        if self.parts.compacted().is_none() {
            // As retention does it.
            let mut writes = WriteSet::builder();
            self.parts.require(&mut writes);
            writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..=until.position.seq.to_key()));
            writes.put(Keyspace::Meta, Floor::KEY, until.to_bytes()).unwrap();
            let after = LogParts { floor: until, ..self.parts };
            return self.apply(&CompactionStep { writes: writes.build(), before: self.parts, after });
        }
        let step = Expiry::all_until(&self.parts, until).step(&[], false).unwrap();
        self.apply(&step);
    }

    /// One step of so many touches. False if nothing is to go.
    pub(crate) fn expire(&mut self, entries: usize) -> bool {
        let Some(expiry) = Expiry::unfinished(&self.parts) else { return false };
        let all = self.page(&expiry.range());
        let page = &all[..entries.min(all.len())];
        let step = expiry.step(page, page.len() == all.len()).unwrap();
        self.apply(&step);
        true
    }

    pub(crate) fn oldest(&self) -> Option<Run> {
        let (key, value) =
            self.page(&KeyRange::all().after(&self.parts.floor.position.seq.to_key())).into_iter().next()?;
        Run::is_run(&value).then(|| Run::from_bytes(Seq::from_key(&key).unwrap(), &value).unwrap())
    }

    pub(crate) fn stretch(&self, after: Seq, max_bytes: usize) -> Result<Option<Stretch>, RunError> {
        let page = self.page(&KeyRange::from_bounds(after.next().unwrap().to_key()..));
        read_stretch(page, true, after, max_bytes)
    }

    fn page(&self, range: &KeyRange) -> Vec<(Bytes, Bytes)> {
        let entries = self.log.iter().filter(|(key, _)| range.contains(key));
        entries.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn apply(&mut self, step: &CompactionStep) {
        assert_eq!(step.before, self.parts);
        self.write(&step.writes).unwrap();
        self.parts = step.after;
        self.check();
    }

    fn write(&mut self, writes: &WriteSet) -> Result<(), StoreError> {
        let holds =
            |precondition: &replikv_core::Precondition| self.meta.get(&precondition.key) == precondition.value.as_ref();
        if !writes.preconditions().iter().all(holds) {
            return Err(StoreError::HeadMoved);
        }
        for (keyspace, op) in writes.ops() {
            let map = if keyspace == Keyspace::Log { &mut self.log } else { &mut self.meta };
            match op {
                Op::Put { key, value } => drop(map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
                Op::Delete { key } => drop(map.remove(key)),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                    map.retain(|key, _| !range.contains(key));
                }
            }
        }
        Ok(())
    }

    // What the parts say is what is there; every touch has its place in the index, and only there.
    fn check(&self) {
        let stored = |key: &[u8]| self.meta.get(key);
        assert_eq!(stored(Floor::KEY), Some(&self.parts.floor.to_bytes()));
        assert_eq!(stored(Compacted::KEY), self.parts.compacted.map(|part| part.to_bytes()).as_ref());
        assert_eq!(stored(TombstoneFloor::KEY), self.parts.tombstones.map(|part| part.to_bytes()).as_ref());
        let floor = self.parts.floor.position.seq;
        assert!(self.log.keys().all(|key| key[..8] > floor.to_key()[..]), "nothing is left below the floor");
        let touches: BTreeMap<_, _> =
            self.log.keys().filter_map(|key| from_touch_key(key)).map(|(run, id)| (id, run)).collect();
        let touch_count = self.log.keys().filter(|key| from_touch_key(key).is_some()).count();
        assert_eq!(touches.len(), touch_count, "one touch of each key");
        let index = self.meta.iter().filter_map(|(key, value)| {
            let id = key.strip_prefix(Indexed::PREFIX)?;
            Some((Digest::from_bytes(id.try_into().unwrap()), Indexed::from_bytes(value).unwrap().run))
        });
        assert_eq!(index.collect::<BTreeMap<_, _>>(), touches, "the index knows them all");
        if let Some(compacted) = self.parts.compacted() {
            let part = |value: &&Bytes| value.len() as u64;
            let runs = self.log.values().filter(|value| Run::is_run(value));
            assert_eq!((compacted.entries, compacted.runs), (touch_count as u64, runs.clone().count() as u64));
            let touches = self.log.iter().filter(|(key, _)| from_touch_key(key).is_some()).map(|(_, value)| value);
            assert_eq!(compacted.bytes, runs.chain(touches).map(|value| part(&value)).sum::<u64>());
        }
    }
}

fn start() -> Position {
    origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 9 })
}

/// A log of batches, and the data after each of them.
struct Model {
    stored: StoredLog,
    states: Vec<Map>,
    positions: Vec<Position>,
}

impl Model {
    fn new() -> Self {
        Self { stored: StoredLog::new(start()), states: vec![Map::new()], positions: vec![start()] }
    }

    fn write(&mut self, batch: Batch) {
        let body = batch.into_parts().unwrap().0;
        let before = *self.positions.last().unwrap();
        let draft =
            RecordDraft { epoch: before.epoch, kind: RecordKind::Batch, time: 7, note: b"", body: body.as_bytes() };
        let record = PreparedRecord::after(&before, &draft).unwrap();
        let mut bytes = BytesMut::new();
        record.append_to(&mut bytes);
        self.stored.append(record.position(), bytes.freeze());
        self.positions.push(record.position());
        let mut state = self.states.last().unwrap().clone();
        body.iter().for_each(|op| change(&mut state, op));
        self.states.push(state);
    }

    fn now(&self) -> &Map {
        self.states.last().unwrap()
    }

    /// Goes through the log from what the data was at `from`, and says how often each key was given a value by touches.
    fn replay(&self, from: usize) -> (Map, BTreeMap<Bytes, usize>) {
        let (mut data, mut values) = (self.states[from].clone(), BTreeMap::new());
        let mut at = self.positions[from];
        while self.stored.parts.is_compacted_after(at.seq) {
            let stretch = self.stored.stretch(at.seq, 1).unwrap().expect("a run");
            for range in &stretch.deleted {
                data.retain(|key, _| !range.contains(key));
            }
            for key in stretch.touched {
                *values.entry(key.clone()).or_default() += 1;
                match self.now().get(&key) {
                    Some(value) => drop(data.insert(key, value.clone())),
                    None => drop(data.remove(&key)),
                }
            }
            at = stretch.end;
        }
        for bytes in self.stored.page(&KeyRange::from_bounds(at.seq.next().unwrap().to_key()..)) {
            let record = Record::decode(bytes.1).unwrap();
            record.header().verify_after(&at).unwrap();
            record.body().iter().for_each(|op| change(&mut data, op));
            at = record.position();
        }
        (data, values)
    }
}

fn change(state: &mut Map, op: Op<'_>) {
    match op {
        Op::Put { key, value } => drop(state.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
        Op::Delete { key } => drop(state.remove(key)),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
            state.retain(|key, _| !range.contains(key));
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Write(Vec<Change>),
    Compact(usize, u64),
    GiveUp,
    Expire(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Put(u8),
    Delete(u8),
    DeleteRange(u8, u8),
}

fn event() -> impl Strategy<Value = Event> {
    let key = || b'a'..b'i';
    let changes = prop_oneof![
        5 => key().prop_map(Change::Put),
        2 => key().prop_map(Change::Delete),
        1 => (key(), key()).prop_map(|(a, b)| Change::DeleteRange(a.min(b), a.max(b))),
    ];
    prop_oneof![
        8 => proptest::collection::vec(changes, 0..4).prop_map(Event::Write),
        4 => (1usize..6, 0u64..6).prop_map(|(records, window)| Event::Compact(records, window)),
        1 => Just(Event::GiveUp),
        2 => (1usize..5).prop_map(Event::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_above_the_tombstone_floor_ends_equal_with_one_value_of_each_key(
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut model = Model::new();
        let mut written = 0u32;
        for event in events {
            match event {
                Event::Write(changes) => model.write(changes.into_iter().fold(Batch::new(), |batch, change| {
                    written += 1;
                    match change {
                        Change::Put(key) => batch.put([key], written.to_be_bytes()),
                        Change::Delete(key) => batch.delete([key]),
                        Change::DeleteRange(from, to) => batch.delete_range([from]..[to]),
                    }
                })),
                Event::Compact(records, window) => drop(model.stored.compact(records, window)),
                Event::GiveUp => {
                    if let Some(oldest) = model.stored.oldest().filter(|_| !model.stored.parts.is_expiring()) {
                        model.stored.give_up(Floor { position: oldest.end, log_bytes: oldest.log_bytes });
                    }
                }
                Event::Expire(entries) => drop(model.stored.expire(entries)),
            }
            let begins = usize::try_from(model.stored.parts.begins().position.seq.as_u64()).unwrap();
            for from in begins..model.positions.len() {
                let (data, values) = model.replay(from);
                prop_assert_eq!(&data, model.now(), "from {}", from);
                prop_assert!(values.values().all(|times| *times == 1), "from {}: {:?}", from, values);
                // Nothing is sent that did not change.
                let changed = |key: &Bytes| model.states[from..].windows(2).any(|pair| pair[0].get(key) != pair[1].get(key));
                let idle = |key: &&Bytes| !changed(key) && model.now().contains_key(*key);
                prop_assert_eq!(values.keys().find(idle), None);
            }
        }
    }
}

#[test]
fn a_step_is_due_once_what_lies_behind_the_window_is_worth_it() {
    let start = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 1 });
    let parts = LogParts::new(Floor { position: start, log_bytes: 0 });
    let due = |window_bytes, window_records, records, log_bytes| {
        let position = Position { seq: Seq::new(records), ..start };
        Compaction { window_bytes, window_records }.is_due(&parts, &Head { position, log_bytes, uptime_ms: 0 })
    };
    // A quarter of the window.
    assert!(due(4000, 10, 11, 5000) && !due(4000, 10, 11, 4999));
    assert!(!due(4000, 10, 10, 9000), "every record lies within it");
    // Or many records.
    assert!(due(4000, 10, 266, 4001) && !due(4000, 10, 265, 4001) && !due(4000, 10, 266, 4000));
    let (wide, worth) = (4 << 20, 256 << 10);
    assert!(due(wide, 0, 1, wide + worth) && !due(wide, 0, 1, wide + worth - 1));
    assert!(due(0, 0, 1, 1), "without a window, anything");
}

#[test]
fn the_log_holds_one_entry_of_each_key_and_the_window() {
    let mut model = Model::new();
    for n in 0..3_000u32 {
        model.write(Batch::new().put([b'k', (n % 50) as u8], n.to_be_bytes()));
        if n % 100 == 0 {
            while model.stored.compact(64, 20) {}
        }
    }
    while model.stored.compact(64, 20) {}
    let compacted = model.stored.parts.compacted().unwrap();
    assert_eq!(compacted.entries, 50);
    let full = model.stored.log.values().filter(|value| Record::decode((*value).clone()).is_ok()).count();
    assert_eq!(full, 20);
    assert!(model.stored.log.len() <= 50 + 50 + 20);
}

#[test]
fn a_run_that_was_altered_in_any_bit_is_never_read() {
    let mut model = Model::new();
    model.write(Batch::new().put("a", "1").delete_range("b".."c").put("b", "2"));
    model.write(Batch::new().delete("a").put("long key", "3"));
    assert!(model.stored.compact(2, 0));
    assert!(model.stored.stretch(Seq::ZERO, 1).unwrap().is_some());
    for (key, value) in model.stored.log.clone() {
        for bit in 0..value.len() * 8 {
            let mut damaged = value.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut stored = model.stored.clone();
            stored.log.insert(key.clone(), damaged.into());
            let read = stored.stretch(Seq::ZERO, 1);
            assert!(!matches!(read, Ok(Some(_))), "bit {bit} of {key:?}: {read:?}");
        }
        let mut stored = model.stored.clone();
        stored.log.remove(&key);
        assert!(!matches!(stored.stretch(Seq::ZERO, 1), Ok(Some(_))), "without {key:?}");
    }
}

#[test]
fn a_page_that_ends_within_a_run_holds_no_whole_one() {
    let mut model = Model::new();
    model.write(Batch::new().put("a", "1").put("b", "2"));
    model.write(Batch::new().put("c", "3"));
    assert!(model.stored.compact(1, 0) && model.stored.compact(1, 0));
    let page = model.stored.page(&KeyRange::all());
    assert_eq!(page.len(), 5);
    let read = |len: usize| read_stretch(page[..len].to_vec(), false, Seq::ZERO, usize::MAX).unwrap();
    for len in 1..=3 {
        assert_eq!(read(len), None, "{len} entries, and more may follow");
    }
    assert_eq!(read(4).unwrap().end.seq, Seq::new(1));
    let whole = read_stretch(page.clone(), true, Seq::ZERO, usize::MAX).unwrap().unwrap();
    assert_eq!((whole.end.seq, whole.touched.len()), (Seq::new(2), 3));
    let bounded = read_stretch(page.clone(), true, Seq::ZERO, 1).unwrap().unwrap();
    assert_eq!((bounded.end.seq, bounded.touched.len()), (Seq::new(1), 2), "one run at least");
    let first = Run::read(page.clone(), false).unwrap().unwrap();
    assert_eq!((first.run.end.seq, first.touched.len()), (Seq::new(1), 2));
    assert!(first.touched.iter().all(|(seq, part)| *seq == Seq::new(1) && matches!(part, RunPart::Touched(_))));
    assert_eq!(Run::read(page[..2].to_vec(), false), Ok(None));
    assert_eq!(Run::read([], true), Ok(None));
}

#[test]
fn the_tombstone_floor_is_raised_with_the_first_touch_that_goes() {
    let mut model = Model::new();
    (0..10u8).for_each(|n| model.write(Batch::new().put([n], [n])));
    assert!(model.stored.compact(10, 0));
    let oldest = model.stored.oldest().unwrap();
    let retention = Retention { max_bytes: 0, max_age_ms: None, hold_back_bytes: 0 };
    let head = model.stored.head();
    let expiry = Expiry::due(&retention, &model.stored.parts, &head, &oldest, None).unwrap();
    let all = model.stored.page(&expiry.range());
    let step = expiry.step(&all[..3], false).unwrap();
    assert!(step.writes.ops().all(|(_, op)| !matches!(op, Op::DeleteRange { .. })), "there are no full records to cut");
    model.stored.apply(&step);
    let parts = model.stored.parts;
    let next = Expiry::unfinished(&parts).unwrap().step(&[], false).unwrap();
    let raises = |(_, op): (Keyspace, Op<'_>)| matches!(op, Op::Put { key: TombstoneFloor::KEY, .. });
    assert!(step.writes.ops().any(raises) && !next.writes.ops().any(raises), "once");
    assert_eq!((parts.floor.position.seq, parts.begins().position.seq), (Seq::ZERO, Seq::new(10)));
    while model.stored.expire(3) {}
    let parts = model.stored.parts;
    assert_eq!((parts.floor.position.seq, parts.compacted()), (Seq::new(10), None));
    assert!(model.stored.log.is_empty(), "{:?}", model.stored.log);
}

#[test]
fn retention_lets_the_oldest_run_go_unless_it_is_held() {
    let mut model = Model::new();
    (0..10u8).for_each(|n| model.write(Batch::new().put([n], [n])));
    assert!(model.stored.compact(4, 0) && model.stored.compact(4, 0));
    let (parts, head, oldest) = (model.stored.parts, model.stored.head(), model.stored.oldest().unwrap());
    let retained = head.log_bytes - parts.missing_bytes();
    assert_eq!(retained, model.stored.log.values().map(|value| value.len() as u64).sum::<u64>());
    assert_eq!(LogParts::new(Floor { log_bytes: 70, ..parts.floor }).missing_bytes(), 70);
    let none = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    let due = |retention: Retention, held: Option<u64>| {
        Expiry::due(&retention, &parts, &head, &oldest, held.map(Seq::new)).is_some()
    };
    assert!(!due(none, None));
    assert!(due(Retention { max_bytes: retained - 1, ..none }, None));
    assert!(!due(Retention { max_bytes: retained, ..none }, None), "what is there counts, not what was written");
    assert!(!due(Retention { max_bytes: 0, ..none }, Some(3)), "a slave that is inside holds it");
    assert!(due(Retention { max_bytes: 0, hold_back_bytes: 0, ..none }, Some(3)), "but not past the cap");
    assert!(due(Retention { max_bytes: 0, ..none }, Some(4)), "whoever is past it does not");
    let older = Run { uptime_ms: head.uptime_ms - 6, ..oldest };
    for (max, is_due) in [(5, true), (6, false), (7, false)] {
        let retention = Retention { max_age_ms: Some(max), ..none };
        assert_eq!(Expiry::due(&retention, &parts, &head, &older, None).is_some(), is_due, "{max}");
    }
}

#[test]
fn a_step_that_somebody_has_overtaken_changes_nothing() {
    let mut model = Model::new();
    (0..10u8).for_each(|n| model.write(Batch::new().put([n], [n])));
    let mut other = model.stored.clone();
    assert!(other.compact(4, 0));
    let mut at_once = model.stored.clone();
    assert!(at_once.compact(10, 0));
    // The other's write set, on the store that has moved on.
    let overtaken = Compaction { window_bytes: 0, window_records: 0 };
    let records: Vec<_> = model.stored.log.values().map(|bytes| Record::decode(bytes.clone()).unwrap()).collect();
    let mut folding =
        overtaken.fold(&model.stored.parts, &model.stored.head(), &records, 1024, None, &[]).unwrap().unwrap();
    let indexed = vec![None; folding.index_keys().len()];
    assert_eq!(folding.found(&indexed).unwrap(), []);
    let step = folding.finish(&[]).unwrap().unwrap();
    assert!(matches!(at_once.write(&step.writes), Err(StoreError::HeadMoved)));
}

#[test]
fn runs_end_where_checkpoints_are() {
    let mut model = Model::new();
    (0..300u32).for_each(|n| model.write(Batch::new().put(n.to_be_bytes(), [1])));
    assert!(model.stored.compact(300, 0));
    assert_eq!(model.stored.parts.full_after().position.seq, Seq::new(Checkpoint::EVERY));
    let run = model.stored.oldest().unwrap();
    assert_eq!(Run::from_bytes(run.end.seq, &run.to_bytes()), Ok(run));
}

#[test]
fn a_batch_that_is_larger_than_a_step_is_compacted_at_once() {
    let mut model = Model::new();
    let keys = (0..6_000u32).fold(Batch::new(), |batch, n| batch.put(n.to_be_bytes(), [1]));
    model.write(keys);
    model.write(Batch::new().put("a", "1"));
    assert!(model.stored.compact(2, 0));
    assert_eq!(model.stored.parts.full_after().position.seq, Seq::new(1));
    assert_eq!(model.stored.parts.compacted().unwrap().entries, 6_000);
}

/// Ten records of two changes each.
fn ten_records() -> (StoredLog, Vec<Record>) {
    let mut model = Model::new();
    (0..10u8).for_each(|n| model.write(Batch::new().put([n, 1], [n]).put([n, 2], [n])));
    let records = model.stored.log.values().map(|bytes| Record::decode(bytes.clone()).unwrap()).collect();
    (model.stored, records)
}

#[test]
fn a_step_takes_what_lies_behind_the_window_as_far_as_it_may_go() {
    let (log, records) = ten_records();
    let fold = |window_records, most_ops, until: Option<u64>| {
        let compaction = Compaction { window_bytes: 0, window_records };
        let until = until.map(Seq::new);
        let folding = compaction.fold(&log.parts, &log.head, &records, most_ops, until, &[]).unwrap()?;
        assert_eq!(folding.records(), folding.end().as_u64());
        assert_eq!(folding.index_keys().len() as u64, 2 * folding.records());
        Some(folding.records())
    };
    assert_eq!((fold(0, 1024, None), fold(3, 1024, None), fold(10, 1024, None)), (Some(10), Some(7), None));
    assert_eq!((fold(0, 1024, Some(4)), fold(0, 1024, Some(0)), fold(3, 1024, Some(9))), (Some(4), None, Some(7)));
    assert_eq!((fold(0, 5, None), fold(0, 6, None), fold(0, 1, None)), (Some(2), Some(3), Some(1)), "one at least");
}

#[test]
fn a_run_is_as_old_as_the_checkpoint_that_follows_its_last_record() {
    let (log, records) = ten_records();
    let checkpoint = |index: usize| Checkpoint {
        position: records[index - 1].position(),
        log_bytes: 0,
        uptime_ms: index as u64 * 100,
    };
    let checkpoints = [3, 4, 6].map(checkpoint);
    for (until, uptime_ms) in [(2, 300), (3, 300), (4, 400), (5, 600), (7, log.head.uptime_ms)] {
        let compaction = Compaction { window_bytes: 0, window_records: 0 };
        let until = Seq::new(until);
        let folding = compaction.fold(&log.parts, &log.head, &records, 1024, Some(until), &checkpoints);
        let step = folding.unwrap().unwrap().finish(&[]).unwrap().unwrap();
        let run = step.writes.ops().find_map(|(_, op)| match op {
            Op::Put { key, value } if key == until.to_key() => Some(Run::from_bytes(until, value).unwrap()),
            _ => None,
        });
        assert_eq!(run.unwrap().uptime_ms, uptime_ms, "until {until}");
    }
}

#[test]
fn an_index_of_what_has_gone_takes_nothing_from_what_is_there() {
    let (log, records) = ten_records();
    let [floor, position] = [4, 6].map(|seq: usize| records[seq - 1].position());
    let compacted = Compacted { position, log_bytes: 0, entries: 3, runs: 1, bytes: 300 };
    let parts = LogParts { compacted: Some(compacted), ..LogParts::new(Floor { position: floor, log_bytes: 0 }) };
    let compaction = Compaction { window_bytes: 0, window_records: 0 };
    let mut folding = compaction.fold(&parts, &log.head, &records[6..], 1024, Some(Seq::new(7)), &[]).unwrap().unwrap();
    let outlived = [floor.seq, Seq::new(2)].map(|run| Some(Indexed::new(run, b"touch").to_bytes()));
    assert_eq!(folding.found(&outlived).unwrap(), []);
    let step = folding.finish(&[]).unwrap().unwrap();
    assert_eq!(step.after.compacted.unwrap().entries, 3 + 2);
}
