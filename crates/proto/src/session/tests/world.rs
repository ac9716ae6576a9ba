//! Random histories through both sessions and the applier, with a model on both sides.
//!
//! Whatever happens and in whatever order: when a cursor says that the slave is consistent, the slave's data is what
//! the master's was at that cursor.

use std::collections::VecDeque;

use proptest::prelude::*;
use replikv_core::{Keyspace, LinkId, PageBuilder, ScanOptions, meta};

use super::*;
use crate::compaction::tests::StoredLog;
use crate::layout::Floor;
use crate::{Applier, Group, Passage, Progress, Subscription, Verdict};

#[derive(Debug, Clone)]
enum Event {
    /// The master hands a batch to its store.
    Hand(Vec<Change>),
    /// The store has committed what was handed over.
    Publish,
    /// What was handed over comes to nothing.
    Fail,
    /// The log is trimmed, so far back from its end.
    Trim(usize),
    /// So many records of the log are compacted, all but so many.
    Compact(usize, u64),
    /// So much of what nobody is served any more goes.
    Expire(usize),
    /// The master's driver does so many things.
    Master(u8),
    /// The store has read the page that was asked for.
    ReadPage,
    /// The page, once read, reaches the session.
    PageArrives,
    /// The slave takes so many messages.
    Slave(u8),
    /// The slave's store has read what was asked for.
    OwnPage,
    /// The slave commits a group.
    Commit,
    /// The connection breaks: what is under way is lost. The next one goes to the master, or to a relay that is so
    /// many records behind it.
    Cut(usize),
    /// The relay comes one record closer.
    CatchUp,
    /// A heartbeat's time passes.
    Heartbeat,
    /// The slave is opened with another set of ranges; or with two, one after the other, of which the first one was not
    /// finished with.
    Subscribe(Vec<usize>),
}

/// What slaves subscribe to here.
fn sets() -> Vec<KeyRanges> {
    let one = |from: u8, to: u8| KeyRange::from_bounds([from]..[to]);
    vec![
        KeyRanges::all(),
        one(b'c', b'h').into(),
        KeyRanges::new([one(b'b', b'd'), one(b'g', b'k'), KeyRange::from_bounds([b'n']..)]),
        KeyRanges::new([one(b'd', b'e'), one(b'j', b'n')]),
    ]
}

#[derive(Debug, Clone)]
enum Change {
    Put(u8),
    Delete(u8),
    DeleteRange(u8, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let key = || b'a'..b'p';
    prop_oneof![
        5 => key().prop_map(Change::Put),
        2 => key().prop_map(Change::Delete),
        1 => (key(), key()).prop_map(|(a, b)| Change::DeleteRange(a.min(b), a.max(b))),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => proptest::collection::vec(change(), 1..4).prop_map(Event::Hand),
        4 => Just(Event::Publish),
        1 => Just(Event::Fail),
        1 => (0usize..6).prop_map(Event::Trim),
        3 => (1usize..6, 0u64..4).prop_map(|(records, window)| Event::Compact(records, window)),
        1 => (1usize..5).prop_map(Event::Expire),
        10 => (1u8..4).prop_map(Event::Master),
        4 => Just(Event::ReadPage),
        4 => Just(Event::PageArrives),
        10 => (1u8..4).prop_map(Event::Slave),
        6 => Just(Event::OwnPage),
        6 => Just(Event::Commit),
        1 => prop_oneof![Just(0usize), 0usize..5].prop_map(Event::Cut),
        2 => Just(Event::CatchUp),
        2 => Just(Event::Heartbeat),
        1 => proptest::collection::vec(0usize..4, 1..3).prop_map(Event::Subscribe),
    ]
}

#[derive(Debug)]
enum Reading {
    Asked {
        range: KeyRange,
        max_bytes: usize,
    },
    Read {
        range: KeyRange,
        max_bytes: usize,
        page: (KeyRange, EncodedOps),
    },
    /// Keys are looked up one after the other, each at its own moment.
    Keys {
        keys: Vec<Bytes>,
        values: Vec<Option<Bytes>>,
    },
}

#[derive(Debug)]
struct Connection {
    master: MasterSession,
    slave: SlaveSession,
    applier: Applier,
    to_master: VecDeque<Message>,
    to_slave: VecDeque<Message>,
    reading: Option<Reading>,
    /// What the slave wants to read of its own data.
    own: Option<(KeyRange, usize)>,
    time: u64,
}

#[derive(Debug)]
struct World {
    history: History,
    /// The log as the master's store holds it. A relay keeps its records as they are.
    log: StoredLog,
    written: u64,
    /// The slave's store: its data, and its cursor as stored.
    data: State,
    cursor: Option<Bytes>,
    subscription: Option<Subscription>,
    target: usize,
    /// How far the parent is behind the master.
    behind: usize,
    connection: Option<Connection>,
    pages: usize,
    waits: usize,
    consistent: usize,
    /// Ranges that were found equal, and questions that were to be asked again.
    equal: usize,
    splits: usize,
    /// Messages of what touched keys hold.
    touches: usize,
    /// Entries that came as content, and runs of records of which nothing came.
    copied: usize,
    skipped: usize,
}

impl World {
    fn new(before: Vec<Vec<Change>>, trimmed: bool, target: usize) -> Self {
        let mut world = Self {
            history: History::new(),
            log: StoredLog::new(origin(SOURCE, EPOCH)),
            written: 0,
            data: State::new(),
            cursor: None,
            subscription: None,
            target,
            behind: 0,
            connection: None,
            pages: 0,
            waits: 0,
            consistent: 0,
            equal: 0,
            splits: 0,
            touches: 0,
            copied: 0,
            skipped: 0,
        };
        before.into_iter().for_each(|changes| world.hand(changes));
        world.publish();
        if trimmed {
            world.trim(world.history.published);
        }
        world
    }

    fn cursor(&self) -> Option<Cursor> {
        self.cursor.as_ref().map(|bytes| Cursor::from_bytes(bytes).unwrap())
    }

    fn ranges(&self) -> KeyRanges {
        self.subscription.as_ref().map_or_else(KeyRanges::all, |subscription| subscription.ranges.clone())
    }

    /// What the slave is to hold of a state of its master.
    fn within(&self, state: &State) -> State {
        let ranges = self.ranges();
        state.iter().filter(|(key, _)| ranges.contains(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    // As a store is opened with other settings. All but the last one die before what is not wanted has gone.
    fn subscribe(&mut self, sets: &[KeyRanges]) {
        self.connection = None;
        for (at, wanted) in sets.iter().enumerate() {
            let cursor = self.cursor();
            if let Some(change) = Subscription::change(self.subscription.as_ref(), cursor.as_ref(), wanted) {
                self.subscription = change.subscription;
                self.cursor = change.cursor.map(|cursor| cursor.to_bytes());
            }
            if let Some(subscription) = &mut self.subscription {
                let dies = at + 1 < sets.len();
                self.data.retain(|key, _| !subscription.dropping.contains(key) || (dies && key[0] % 2 == 0));
                if !dies {
                    *subscription = subscription.settled();
                }
            }
        }
    }

    /// What the slave's parent has of the history: a relay has what was published, and is behind.
    fn parent(&self) -> History {
        let mut parent = self.history.clone();
        if self.behind > 0 {
            parent.published = parent.published.saturating_sub(self.behind).max(parent.floor);
            parent.fail();
        }
        parent
    }

    fn hand(&mut self, changes: Vec<Change>) {
        let mut batch = Batch::new();
        for change in changes {
            self.written += 1;
            batch = match change {
                // So long that ranges are split before they are sent.
                Change::Put(key) => batch.put([key], [&self.written.to_be_bytes()[..], &[0; 300]].concat()),
                Change::Delete(key) => batch.delete([key]),
                Change::DeleteRange(from, to) => batch.delete_range([from]..[to]),
            };
        }
        self.history.hand(batch);
    }

    fn connection(&mut self) -> &mut Connection {
        let (cursor, ranges) = (self.cursor(), self.ranges());
        let view = self.parent().view();
        self.connection.get_or_insert_with(|| {
            let holds_data = cursor.is_none() && !self.data.is_empty();
            let config = MasterSessionConfig { chunk: 700, relay: Some(as_relay()), ..master_config() };
            Connection {
                // A relay that is not behind decides as a master does.
                master: MasterSession::new(config, view, Vec::new(), at(0)),
                slave: SlaveSession::new(
                    SlaveSessionConfig { holds_data, ranges, ..slave_config(cursor.clone()) },
                    at(0),
                ),
                applier: Applier::new(LinkId::default(), cursor, self.target),
                to_master: VecDeque::new(),
                to_slave: VecDeque::new(),
                reading: None,
                own: None,
                time: 0,
            }
        })
    }

    /// Returns whether anything was done.
    fn run(&mut self, event: Event) -> bool {
        match event {
            Event::Hand(changes) => self.hand(changes),
            Event::Publish => self.publish(),
            Event::Fail => self.fail(),
            Event::Trim(back) => self.trim(self.history.published.saturating_sub(back)),
            Event::Compact(records, window) => return self.log.compact(records, window),
            Event::Expire(entries) => return self.log.expire(entries),
            Event::Master(times) => return (0..times).filter(|_| self.master()).count() > 0,
            Event::ReadPage => return self.read_page(),
            Event::PageArrives => return self.page_arrives(),
            Event::Slave(times) => return (0..times).filter(|_| self.slave()).count() > 0,
            Event::OwnPage => return self.own_page(),
            Event::Commit => return self.commit(),
            Event::Cut(behind) => {
                self.connection = None;
                self.behind = behind;
            }
            Event::CatchUp => self.behind = self.behind.saturating_sub(1),
            Event::Heartbeat => return self.heartbeat(),
            Event::Subscribe(chosen) => {
                let sets = sets();
                self.subscribe(&chosen.iter().map(|at| sets[*at].clone()).collect::<Vec<_>>());
            }
        }
        true
    }

    fn heartbeat(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        connection.time += HEARTBEAT.as_secs();
        let now = at(connection.time);
        // Whoever has not had its turn for long enough is given up.
        if connection.master.handle_timeout(now).is_err() || connection.slave.handle_timeout(now).is_err() {
            self.connection = None;
        }
        true
    }

    fn publish(&mut self) {
        for entry in &self.history.entries[self.history.published..] {
            self.log.append(entry.position, entry.bytes.clone());
        }
        self.history.publish();
    }

    fn trim(&mut self, to: usize) {
        if to > self.history.floor {
            self.history.floor = to;
            self.log.give_up(Floor { position: self.history.position(to), log_bytes: self.history.bytes_at(to) });
        }
    }

    // What the store answers: records, or what they came to.
    fn read(&self, after: Position, max_bytes: usize) -> LogAnswer {
        let history = self.parent();
        let floor = usize::try_from(after.seq.as_u64()).unwrap() < history.floor;
        if self.behind > 0 || floor || !self.log.parts.is_compacted_after(after.seq) {
            return history.read(after, max_bytes);
        }
        LogAnswer::Compacted(self.log.stretch(after.seq, 60).unwrap().unwrap())
    }

    // A page that was read before something came to nothing is read again by the driver: it cannot be told what the
    // page shows.
    fn fail(&mut self) {
        self.history.fail();
        if let Some(Connection { reading, .. }) = &mut self.connection
            && let Some(Reading::Read { range, max_bytes, .. }) =
                reading.take_if(|reading| matches!(reading, Reading::Read { .. }))
        {
            *reading = Some(Reading::Asked { range, max_bytes });
        } else if let Some(Connection { reading: Some(Reading::Keys { values, .. }), .. }) = &mut self.connection {
            values.clear();
        }
    }

    fn master(&mut self) -> bool {
        let history = self.parent();
        let (mut splits, mut touches, mut skipped, mut copied, mut asked) = (0, 0, 0, 0, None);
        let ranges = self.ranges();
        let connection = self.connection();
        let now = at(connection.time);
        if connection.reading.is_some() {
            return false;
        }
        let master = &mut connection.master;
        master.handle_view(history.view());
        if let Some(message) = connection.to_master.pop_front() {
            master.handle_message(now, message).unwrap();
        }
        match master.poll_action() {
            None => return false,
            Some(MasterAction::Send(message)) => {
                if let Message::Compared(compared) = &message {
                    let split = |verdict: &&Verdict| matches!(verdict, Verdict::Split(_));
                    splits += compared.verdicts.iter().filter(split).count();
                }
                touches += usize::from(matches!(message, Message::Touched(_)));
                if let Message::Filtered(filtered) = &message {
                    let runs = filtered.passages.iter().filter(|passage| matches!(passage, Passage::Skipped(_)));
                    skipped += runs.count();
                }
                if let Message::Ranges(content) = &message {
                    copied += content.entries.iter().count();
                }
                filtering::tells_nothing_outside(&ranges, &message);
                connection.to_slave.push_back(message);
            }
            Some(MasterAction::LookUp { keys, .. }) => {
                connection.reading = Some(Reading::Keys { keys, values: Vec::new() });
            }
            Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
            Some(MasterAction::MeasureData { .. }) => master.handle_data_size(0),
            Some(MasterAction::ReadRecords { after, max_bytes, .. }) => asked = Some((after, max_bytes)),
            Some(MasterAction::ReadPage { range, max_bytes }) => {
                connection.reading = Some(Reading::Asked { range, max_bytes });
            }
            Some(MasterAction::Joined { .. } | MasterAction::Verified(_) | MasterAction::Progress(_)) => {}
            // The slave still reads what is under way; it ends the connection.
            Some(MasterAction::Close(_)) => {}
            Some(MasterAction::Superseded(_)) => panic!("one epoch is all there is"),
            Some(MasterAction::Answer(request)) => panic!("nobody asked {request:?}"),
            Some(MasterAction::ReadExactly { .. }) => panic!("nobody verifies here"),
        }
        if let Some((after, max_bytes)) = asked {
            let answer = self.read(after, max_bytes);
            self.connection().master.handle_records(answer);
        }
        self.splits += splits;
        self.touches += touches;
        self.skipped += skipped;
        self.copied += copied;
        true
    }

    // What is visible is what was handed over, committed or not.
    fn read_page(&mut self) -> bool {
        let parent = self.parent();
        let Some(connection) = &mut self.connection else { return false };
        if let Some(Reading::Keys { keys, values }) = &mut connection.reading {
            let Some(key) = keys.get(values.len()) else { return false };
            values.push(parent.states.last().unwrap().get(key).cloned());
            return true;
        }
        let Some(Reading::Asked { range, max_bytes }) = &connection.reading else { return false };
        let page = page(parent.states.last().unwrap(), range, *max_bytes);
        connection.reading = Some(Reading::Read { range: range.clone(), max_bytes: *max_bytes, page });
        true
    }

    fn own_page(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let Some((range, max_bytes)) = connection.own.take() else { return false };
        let (covered, entries) = page(&self.data, &range, max_bytes);
        connection.slave.handle_page(&covered, &entries);
        true
    }

    fn page_arrives(&mut self) -> bool {
        let view = self.parent().view();
        let Some(connection) = &mut self.connection else { return false };
        // As many as have been looked up: one at least, if there is one.
        let looked_up = |reading: &mut Reading| matches!(reading, Reading::Keys { keys, values } if !values.is_empty() || keys.is_empty());
        if let Some(Reading::Keys { values, .. }) = connection.reading.take_if(looked_up) {
            connection.master.handle_view(view);
            connection.master.handle_values(&values, view.handed);
            return true;
        }
        let read = connection.reading.take_if(|reading| matches!(reading, Reading::Read { .. }));
        let Some(Reading::Read { page: (range, entries), .. }) = read else { return false };
        connection.master.handle_view(view);
        connection.master.handle_page(Content { range, read_at: view.handed, entries });
        self.pages += 1;
        true
    }

    fn slave(&mut self) -> bool {
        let mut equal = 0;
        let connection = self.connection();
        let now = at(connection.time);
        let slave = &mut connection.slave;
        let message = connection.to_slave.pop_front();
        let mut busy = message.is_some();
        if let Some(message) = message {
            slave.handle_message(now, message).unwrap();
        }
        let (mut ending, mut waits) = (None, 0);
        while let Some(action) = slave.poll_action() {
            busy = true;
            match action {
                SlaveAction::Send(message) => connection.to_master.push_back(message),
                SlaveAction::ReadPage { range, max_bytes } => {
                    assert!(connection.own.is_none(), "one page at a time");
                    // Small pages, so that pieces are of several.
                    connection.own = Some((range, max_bytes.min(700)));
                }
                SlaveAction::Covered { range, read_at } => {
                    equal += 1;
                    connection.applier.push_covered(range, read_at);
                }
                SlaveAction::Touch(touched) => connection.applier.push_touched(touched),
                SlaveAction::Checkpoints(checkpoints) => connection.applier.push_checkpoints(checkpoints),
                SlaveAction::Begin(cursor) => connection.applier.begin(cursor),
                SlaveAction::Resync(..) => panic!("nothing here has parted"),
                SlaveAction::Apply(record) => connection.applier.push_record(record),
                SlaveAction::ApplyPortion(portion) => connection.applier.push_portion(portion),
                SlaveAction::Copy(content) => connection.applier.push_content(content),
                SlaveAction::Welcomed(_) | SlaveAction::Contact(_) => {}
                SlaveAction::Waiting(_) => waits += 1,
                SlaveAction::Probed(_) => panic!("nobody verifies here"),
                SlaveAction::Close(end) => ending = Some(end),
            }
        }
        self.equal += equal;
        self.waits += waits;
        match ending {
            None => {}
            Some(Ok(_)) => self.connection = None,
            Some(Err(refusal)) => panic!("nothing here is refused: {refusal}"),
        }
        busy
    }

    fn commit(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let Some(group) = connection.applier.next_group().unwrap() else { return false };
        let Cursor { position, .. } = group.cursor;
        let progress =
            Progress { applied: position.seq, durable: position.seq, consistent: group.cursor.is_consistent() };
        connection.slave.handle_progress(progress);
        self.apply(&group);
        true
    }

    fn apply(&mut self, group: &Group) {
        let key = meta::cursor_key(&LinkId::default());
        let [required] = group.writes.preconditions() else { panic!("one precondition") };
        assert_eq!((&required.key, &required.value), (&key, &self.cursor), "the cursor before it");
        let before = self.cursor();
        for (keyspace, op) in group.writes.ops() {
            match (keyspace, op) {
                (Keyspace::Data, op) => change_one(&mut self.data, op),
                (Keyspace::Meta, Op::Put { key: stored, value }) if stored == key => {
                    self.cursor = Some(Bytes::copy_from_slice(value));
                }
                _ => {}
            }
        }
        let cursor = self.cursor().unwrap();
        assert_eq!(cursor, group.cursor);
        assert!(before.is_none_or(|before| before.position.seq <= cursor.position.seq), "a cursor never goes back");
        let seq = usize::try_from(cursor.position.seq.as_u64()).unwrap();
        assert!(seq <= self.history.published, "a slave never has what is not published");
        assert_eq!(self.history.position(seq), cursor.position);
        if cursor.is_consistent() {
            self.consistent += 1;
            assert_eq!(self.data, self.within(&self.history.states[seq]), "at {}", cursor.position);
        }
        let ranges = self.ranges();
        assert!(self.data.keys().all(|key| ranges.contains(key)), "it holds what it does not subscribe to");
    }

    /// Faults end: everything converges, within a bound.
    fn settle(&mut self) {
        self.publish();
        self.behind = 0;
        for _ in 0..10_000 {
            let steps =
                [Event::Master(1), Event::ReadPage, Event::PageArrives, Event::Slave(1), Event::OwnPage, Event::Commit];
            if steps.into_iter().filter(|step| self.run(step.clone())).count() == 0 {
                let cursor = self.cursor().unwrap();
                // What touches nothing is told with the next heartbeat.
                if !self.ranges().is_all() && cursor.position != self.history.head() && self.heartbeat() {
                    continue;
                }
                assert_eq!(cursor, Cursor::at(self.history.head()));
                assert_eq!(self.data, self.within(self.history.states.last().unwrap()));
                return;
            }
        }
        panic!("it does not come to rest: {self:?}");
    }
}

fn page(state: &State, range: &KeyRange, max_bytes: usize) -> (KeyRange, EncodedOps) {
    let mut page = PageBuilder::new(range.clone(), ScanOptions::default().max_bytes(max_bytes));
    let _ = state.iter().filter(|(key, _)| range.contains(key)).any(|(key, value)| page.push(key, value).is_full());
    let page = page.finish();
    let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
    (KeyRange::new(range.start().clone(), end), page.ops().clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_slave_that_says_it_is_consistent_is(
        before in proptest::collection::vec(proptest::collection::vec(change(), 1..6), 0..8),
        trimmed in proptest::bool::weighted(0.8),
        target in prop_oneof![Just(1usize), Just(400), Just(1 << 20)],
        set in prop_oneof![2 => Just(0usize), 1 => 1usize..4],
        events in proptest::collection::vec(event(), 0..150),
    ) {
        let mut world = World::new(before, trimmed, target);
        world.subscribe(&sets()[set..=set]);
        for event in events {
            world.run(event);
        }
        world.settle();
    }
}

// A model that never copies, and never is consistent before the end, would prove nothing.
#[test]
fn the_model_copies_while_it_writes() {
    let put = |key| vec![Change::Put(key)];
    let mut world = World::new((b'a'..b'p').map(put).collect(), true, 1);
    for round in 0..40u8 {
        world.hand(put(b'a' + round % 15));
        for event in
            [Event::Master(2), Event::ReadPage, Event::Publish, Event::PageArrives, Event::Slave(2), Event::Commit]
        {
            world.run(event);
        }
    }
    world.settle();
    // The next connection goes to a relay that is behind the slave.
    for event in [Event::Cut(5), Event::Slave(1), Event::Master(3), Event::Slave(3)] {
        world.run(event);
    }
    assert_eq!(world.waits, 1);
    world.hand(put(b'z'));
    world.settle();
    assert!(world.pages >= 4 && world.consistent > 5, "{} pages, {} consistent", world.pages, world.consistent);
}

// Nor would one that never compares.
#[test]
fn the_model_compares_while_it_writes() {
    let put = |key| vec![Change::Put(key)];
    let mut world = World::new((b'a'..b'p').map(put).collect(), true, 1);
    world.settle();
    for round in 0..20u8 {
        // What the slave missed is trimmed each time.
        world.run(Event::Cut(0));
        world.hand(vec![Change::Put(b'a' + round % 15), Change::Delete(b'a' + round % 7)]);
        world.publish();
        world.trim(world.history.published);
        for step in 0..30 {
            if step % 5 == 0 {
                world.hand(put(b'a' + (round + step) % 15));
            }
            for event in [
                Event::Master(2),
                Event::ReadPage,
                Event::Publish,
                Event::PageArrives,
                Event::Slave(2),
                Event::OwnPage,
                Event::Commit,
            ] {
                world.run(event);
            }
        }
    }
    world.settle();
    let World { pages, consistent, equal, splits, .. } = world;
    assert!(
        equal > 20 && splits >= 20 && consistent > 10,
        "{pages} pages, {consistent}, {equal} equal, {splits} split"
    );
}

// Nor would one that never meets what is compacted.
#[test]
fn the_model_goes_through_touches_while_it_writes() {
    let put = |key| vec![Change::Put(key)];
    let mut world = World::new((b'a'..b'p').map(put).collect(), false, 1);
    world.settle();
    for round in 0..20u8 {
        world.run(Event::Cut(0));
        for key in 0..6 {
            world.hand(vec![Change::Put(b'a' + (round + key) % 15), Change::Delete(b'a' + round % 7)]);
        }
        world.publish();
        while world.run(Event::Compact(4, 2)) {}
        for step in 0..30 {
            if step % 5 == 0 {
                world.hand(put(b'a' + (round + step) % 15));
            }
            for event in [
                Event::Master(2),
                Event::ReadPage,
                Event::Publish,
                Event::PageArrives,
                Event::Slave(2),
                Event::Commit,
                Event::Compact(3, 1),
            ] {
                world.run(event);
            }
        }
    }
    world.settle();
    let World { touches, consistent, pages, .. } = world;
    assert!(touches > 60 && consistent > 20 && pages == 0, "{touches} touches, {consistent} consistent, {pages} pages");
}

// Nor would one whose slave never subscribes, or is only ever told of what it subscribes to.
#[test]
fn the_model_filters_while_it_writes() {
    let put = |key| vec![Change::Put(key)];
    let mut world = World::new((b'a'..b'p').map(put).collect(), true, 1);
    world.subscribe(&sets()[1..=1]);
    world.settle();
    assert_eq!(world.copied, 5, "what it subscribes to, and nothing else");
    for round in 0..400u32 {
        // Of twenty batches one touches its ranges.
        world.hand(put(if round % 20 == 0 { b'd' } else { b'a' + (round % 2) as u8 }));
        for event in [Event::Publish, Event::Master(2), Event::Slave(1), Event::Commit] {
            world.run(event);
        }
    }
    for _ in 0..300 {
        world.hand(put(b'z'));
    }
    world.settle();
    assert!(world.skipped > 0 && world.skipped < 10, "{} runs", world.skipped);
    assert_eq!(world.copied, 5);
    // It grows: only what is new is copied. It shrinks: nothing is.
    world.subscribe(&[KeyRanges::new([KeyRange::from_bounds([b'c']..[b'k'])])]);
    world.settle();
    assert_eq!(world.copied, 8);
    world.subscribe(&[KeyRanges::new([KeyRange::from_bounds([b'j']..[b'k'])])]);
    world.settle();
    assert_eq!((world.copied, world.data.len()), (8, 1));
}
