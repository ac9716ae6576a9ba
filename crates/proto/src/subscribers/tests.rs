use bytes::BytesMut;
use proptest::prelude::*;
use replikv_core::{Batch, Epoch, KeyRange, SourceId};

use super::*;
use crate::{PreparedRecord, RecordDraft, RecordKind, origin};

/// A history, and where each of its records lies in it.
struct History {
    start: Position,
    entries: Vec<LogEntry>,
}

impl History {
    fn new() -> Self {
        let start = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 9 });
        Self { start, entries: Vec::new() }
    }

    fn at(&self, seq: u64) -> Position {
        seq.checked_sub(1).map_or(self.start, |index| self.entries[usize::try_from(index).unwrap()].position)
    }

    fn bytes_at(&self, seq: u64) -> u64 {
        seq.checked_sub(1).map_or(0, |index| self.entries[usize::try_from(index).unwrap()].log_bytes)
    }

    fn head(&self) -> Position {
        self.at(self.entries.len() as u64)
    }

    fn write(&mut self, batch: Batch) -> &LogEntry {
        let (before, log_bytes) = (self.head(), self.bytes_at(self.entries.len() as u64));
        let body = batch.into_parts().unwrap().0;
        let time = 1_000 + self.entries.len() as u64;
        let draft =
            RecordDraft { epoch: before.epoch, kind: RecordKind::Batch, time, note: b"", body: body.as_bytes() };
        let record = PreparedRecord::after(&before, &draft).unwrap();
        let mut bytes = BytesMut::new();
        record.append_to(&mut bytes);
        let log_bytes = log_bytes + bytes.len() as u64;
        self.entries.push(LogEntry { position: record.position(), bytes: bytes.freeze(), body: None, log_bytes });
        self.entries.last().unwrap()
    }

    fn touches(&self, seq: u64, ranges: &KeyRanges) -> bool {
        let (_, ops) = read(&self.entries[usize::try_from(seq - 1).unwrap()]).unwrap();
        !EncodedOps::from_bytes(ops).unwrap().within(ranges).is_empty()
    }
}

/// Somebody who reads as a session does.
struct Listener {
    id: SubscriberId,
    ranges: KeyRanges,
    sent: u64,
}

impl Listener {
    /// Asks once, and checks the answer against the history; then it goes one record on if it has to read.
    fn ask(&mut self, subscribers: &mut Subscribers<u64>, history: &History, knows: bool) -> bool {
        let log_bytes = knows.then(|| history.bytes_at(self.sent));
        let Some(runs) = subscribers.passed(self.id, history.at(self.sent), log_bytes) else {
            self.sent = (self.sent + 1).min(history.entries.len() as u64);
            return false;
        };
        for run in runs {
            let through = run.through.seq.as_u64();
            assert!(through > self.sent, "a run of nothing");
            assert_eq!(run.through, history.at(through), "of this history");
            assert_eq!(run.log_bytes, history.bytes_at(through) - history.bytes_at(self.sent));
            assert_eq!(run.time, 1_000 + through - 1);
            for seq in self.sent + 1..=through {
                assert!(!history.touches(seq, &self.ranges), "record {seq} concerns {:?}", self.ranges);
                assert!(seq == through || !Checkpoint::is_due(Seq::new(seq)), "a run goes past a checkpoint");
            }
            self.sent = through;
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// So many records that put this key.
    Write(u8, usize),
    /// The keys between two.
    Delete(u8, Option<u8>),
    Enter(Vec<(u8, Option<u8>)>),
    Leave(usize),
    Ask(usize, bool),
    /// Everybody reads to the end.
    CatchUp,
    /// So many records come to nothing.
    Rewind(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let number = || 0..24u8;
    let range =
        || (number(), proptest::option::of(1..24u8)).prop_map(|(start, more)| (start, more.map(|more| start + more)));
    prop_oneof![
        6 => (number(), prop_oneof![Just(1), Just(70), Just(300)]).prop_map(|(number, count)| Step::Write(number, count)),
        1 => range().prop_map(|(start, end)| Step::Delete(start, end)),
        2 => proptest::collection::vec(range(), 1..4).prop_map(Step::Enter),
        1 => any::<usize>().prop_map(Step::Leave),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(who, knows)| Step::Ask(who, knows)),
        2 => Just(Step::CatchUp),
        1 => (1..90usize).prop_map(Step::Rewind),
    ]
}

// In the order of the numbers; some differ behind their eighth byte alone, or by a zero.
fn key(number: u8) -> Bytes {
    let letter = b'a' + number / 4;
    Bytes::from(match number % 4 {
        0 => vec![letter],
        1 => vec![letter, 0],
        2 => vec![letter; 8],
        _ => [[letter; 8].as_slice(), &[0]].concat(),
    })
}

fn range((start, end): (u8, Option<u8>)) -> KeyRange {
    KeyRange::new(key(start), end.map(key))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nobody_is_passed_by_what_concerns_it(steps in proptest::collection::vec(step(), 1..60)) {
        let mut history = History::new();
        let (mut subscribers, mut listeners) = (Subscribers::<u64>::default(), Vec::<Listener>::new());
        let mut names = 0;
        for step in steps {
            match step {
                Step::Write(number, count) => {
                    for _ in 0..count {
                        let entry = history.write(Batch::new().put(key(number), "v")).clone();
                        publish(&mut subscribers, &listeners, &history, &entry);
                    }
                }
                Step::Delete(start, end) => {
                    let entry = history.write(Batch::new().delete_range(range((start, end)))).clone();
                    publish(&mut subscribers, &listeners, &history, &entry);
                }
                Step::Enter(ranges) => {
                    let ranges = KeyRanges::new(ranges.into_iter().map(range));
                    let sent = history.entries.len() as u64;
                    let id = subscribers.enter(&ranges, history.head(), history.bytes_at(sent), names);
                    assert_eq!(id, SubscriberId(names));
                    names += 1;
                    listeners.push(Listener { id, ranges, sent: sent.saturating_sub(names % 3) });
                }
                Step::Leave(who) if !listeners.is_empty() => {
                    let gone = listeners.swap_remove(who % listeners.len());
                    subscribers.leave(gone.id);
                }
                Step::Ask(who, knows) if !listeners.is_empty() => {
                    let who = who % listeners.len();
                    listeners[who].ask(&mut subscribers, &history, knows);
                }
                Step::CatchUp => {
                    for listener in &mut listeners {
                        while listener.sent < history.entries.len() as u64 {
                            listener.ask(&mut subscribers, &history, true);
                        }
                    }
                }
                Step::Rewind(count) => {
                    let left = history.entries.len().saturating_sub(count);
                    // A session that was told of what is gone ends.
                    let told = |listener: &Listener| listener.sent > left as u64;
                    for gone in listeners.extract_if(.., |listener| told(listener)) {
                        subscribers.leave(gone.id);
                    }
                    history.entries.truncate(left);
                    let mut woken = Vec::new();
                    subscribers.rewind(history.head(), history.bytes_at(left as u64), |name| woken.push(*name));
                }
                Step::Leave(_) | Step::Ask(..) => {}
            }
        }
    }
}

// Whomever it concerns is woken, and nobody else but where the history did not simply go on.
fn publish(subscribers: &mut Subscribers<u64>, listeners: &[Listener], history: &History, entry: &LogEntry) {
    let mut woken = BTreeSet::new();
    subscribers.publish(entry, |name| {
        woken.insert(*name);
    });
    for listener in listeners {
        let concerns = history.touches(entry.position.seq.as_u64(), &listener.ranges);
        assert_eq!(woken.contains(&listener.id.0), concerns, "record {} and {:?}", entry.position.seq, listener.ranges);
    }
}

fn listening(history: &History, subscribers: &mut Subscribers<u64>, prefix: &str) -> Listener {
    let ranges = KeyRanges::new([KeyRange::prefix(prefix)]);
    let sent = history.entries.len() as u64;
    let id = subscribers.enter(&ranges, history.head(), history.bytes_at(sent), 0);
    Listener { id, ranges, sent }
}

fn write(history: &mut History, subscribers: &mut Subscribers<u64>, key: &str, count: usize) {
    for _ in 0..count {
        let entry = history.write(Batch::new().put(key, "v")).clone();
        subscribers.publish(&entry, |_| {});
    }
}

#[test]
fn what_does_not_concern_somebody_costs_no_look_at_the_log() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    write(&mut history, &mut subscribers, "other", 1_000);
    assert!(listener.ask(&mut subscribers, &history, false));
    assert_eq!(listener.sent, 1_000);
    // Up to what concerns it, and from there on.
    write(&mut history, &mut subscribers, "other", 500);
    write(&mut history, &mut subscribers, "mine/1", 1);
    write(&mut history, &mut subscribers, "other", 500);
    assert!(listener.ask(&mut subscribers, &history, false));
    assert_eq!(listener.sent, 1_500);
    assert!(!listener.ask(&mut subscribers, &history, false), "this one it reads");
    assert!(listener.ask(&mut subscribers, &history, true));
    assert_eq!(listener.sent, 2_001);
}

#[test]
fn a_record_that_cannot_be_read_concerns_everybody() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let [near, far] = ["mine/", "theirs/"].map(|prefix| listening(&history, &mut subscribers, prefix));
    let entry = history.write(Batch::new().put("other", "v")).clone();
    let header = entry.bytes.len() - read(&entry).unwrap().1.len();
    // A header alone is that of a record without operations.
    for len in (0..entry.bytes.len()).filter(|len| *len != header) {
        let (mut subscribers, mut woken) = (Subscribers::default(), Vec::new());
        for (name, listener) in [&near, &far].into_iter().enumerate() {
            subscribers.enter(&listener.ranges, history.start, 0, name);
        }
        let torn = LogEntry { bytes: entry.bytes.slice(..len), ..entry.clone() };
        subscribers.publish(&torn, |name| woken.push(*name));
        woken.sort_unstable();
        assert_eq!(woken, [0, 1], "{len} bytes of it");
    }
    subscribers.publish(&entry, |_| panic!("whole, it concerns nobody"));
}

#[test]
fn a_few_headers_are_worth_more_than_a_run() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    write(&mut history, &mut subscribers, "other", MAX_HEADERS);
    assert!(!listener.ask(&mut subscribers, &history, true));
}

#[test]
fn whoever_is_further_behind_than_anybody_remembers_reads() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    let every = usize::try_from(Checkpoint::EVERY).unwrap();
    write(&mut history, &mut subscribers, "other", (MAX_MARKS + 1) * every);
    assert!(!listener.ask(&mut subscribers, &history, true), "the first checkpoint is forgotten");
    assert_eq!(listener.sent, 1);
    assert!(!listener.ask(&mut subscribers, &history, true), "it was the next one from here on too");
    listener.sent = Checkpoint::EVERY;
    assert!(listener.ask(&mut subscribers, &history, true));
}

#[test]
fn a_position_of_what_came_to_nothing_is_no_place_to_go_on_from() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let listener = listening(&history, &mut subscribers, "mine/");
    write(&mut history, &mut subscribers, "other", 100);
    let gone = history.head();
    history.entries.truncate(90);
    let mut woken = 0;
    subscribers.rewind(history.head(), history.bytes_at(90), |_| woken += 1);
    assert_eq!(woken, 1, "everybody has to look");
    write(&mut history, &mut subscribers, "others", 300);
    // Nobody knows it: the ring holds another record of that number.
    assert_eq!(subscribers.passed(listener.id, gone, None), None);
}

#[test]
fn ranges_that_overlap_too_often_are_not_told_apart() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    for n in 0..1_500u16 {
        let ranges = KeyRange::new(Bytes::copy_from_slice(&n.to_be_bytes()), None).into();
        subscribers.enter(&ranges, history.head(), 0, u64::from(n));
    }
    let entry = history.write(Batch::new().put([0, 0], "v")).clone();
    let mut woken = 0;
    subscribers.publish(&entry, |_| woken += 1);
    assert_eq!(woken, 1_500);
}

#[test]
fn a_record_with_the_number_of_one_that_came_to_nothing_is_another_one() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    write(&mut history, &mut subscribers, "mine/lost", 1);
    history.entries.clear();
    subscribers.rewind(history.head(), 0, |_| {});
    let entry = history.write(Batch::new().put("mine/1", "v")).clone();
    let mut woken = 0;
    subscribers.publish(&entry, |_| woken += 1);
    assert_eq!(woken, 1);
    write(&mut history, &mut subscribers, "other", 100);
    assert!(!listener.ask(&mut subscribers, &history, true), "it must read the first one");
}

#[test]
fn whoever_is_concerned_by_nothing_is_woken_before_it_is_too_far_behind() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    let mut woken = Vec::new();
    for seq in 1..=2 * MAX_MARKS as u64 * Checkpoint::EVERY {
        let entry = history.write(Batch::new().put("other", "v")).clone();
        let mut wakes = false;
        subscribers.publish(&entry, |_| wakes = true);
        if wakes {
            woken.push(seq);
            assert!(listener.ask(&mut subscribers, &history, false), "it is not too far behind");
            assert_eq!(listener.sent, seq);
        }
    }
    assert_eq!(woken.len(), 4);
}

#[test]
fn whoever_has_left_is_neither_woken_nor_told() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let gone = listening(&history, &mut subscribers, "mine/");
    listening(&history, &mut subscribers, "yours/");
    subscribers.leave(gone.id);
    let mut woken = 0;
    for _ in 0..100 {
        let entry = history.write(Batch::new().put("mine/1", "v")).clone();
        subscribers.publish(&entry, |_| woken += 1);
    }
    subscribers.rewind(history.at(50), history.bytes_at(50), |_| woken += 100);
    assert_eq!(woken, 100, "the other one");
    assert_eq!(subscribers.passed(gone.id, history.at(0), Some(0)), None);
}

#[test]
fn whoever_has_read_all_that_concerned_it_is_passed_by_until_the_next() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    write(&mut history, &mut subscribers, "mine/1", 1);
    assert!(!listener.ask(&mut subscribers, &history, true), "this one it reads");
    assert!(!listener.ask(&mut subscribers, &history, true), "there is nothing more");
    write(&mut history, &mut subscribers, "other", MAX_HEADERS + 1);
    write(&mut history, &mut subscribers, "mine/2", 1);
    assert!(listener.ask(&mut subscribers, &history, true), "one more than travel as headers");
    assert_eq!(listener.sent, MAX_HEADERS as u64 + 2);
}

#[test]
fn nothing_has_come_to_nothing_where_the_last_record_is_the_one_that_was_looked_at() {
    let (mut history, mut subscribers) = (History::new(), Subscribers::default());
    let mut listener = listening(&history, &mut subscribers, "mine/");
    write(&mut history, &mut subscribers, "other", 100);
    subscribers.rewind(history.head(), history.bytes_at(100), |_| panic!("nobody has to look"));
    assert!(listener.ask(&mut subscribers, &history, false));
    assert_eq!(listener.sent, 100);
}
