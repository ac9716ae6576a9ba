//! The model of a store: what readers see, and what would survive power loss.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{
    Cursor, Durability, KeyRange, Keyspace, LinkId, Op, Page, PageBuilder, Position, ScanOptions, StoreError,
    StoreLimits, WriteSet, meta,
};
use replikv_proto::layout::{Checkpoint, Floor, Head, Identity, Stored};
use replikv_proto::{Compacted, LogParts, TombstoneFloor};

use super::centre::View;
use super::print::Print;

/// The three maps.
#[derive(Debug, Clone, Default)]
pub(super) struct Maps {
    maps: [BTreeMap<Bytes, Bytes>; 3],
    /// Of the data.
    pub(super) print: Print,
}

impl Maps {
    pub(super) fn of(&self, keyspace: Keyspace) -> &BTreeMap<Bytes, Bytes> {
        match keyspace {
            Keyspace::Data => &self.maps[0],
            Keyspace::Log => &self.maps[1],
            Keyspace::Meta => &self.maps[2],
        }
    }

    fn of_mut(&mut self, keyspace: Keyspace) -> &mut BTreeMap<Bytes, Bytes> {
        match keyspace {
            Keyspace::Data => &mut self.maps[0],
            Keyspace::Log => &mut self.maps[1],
            Keyspace::Meta => &mut self.maps[2],
        }
    }

    pub(super) fn apply(&mut self, writes: &WriteSet) {
        for (keyspace, op) in writes.ops() {
            self.change(keyspace, op);
        }
    }

    pub(super) fn change(&mut self, keyspace: Keyspace, op: Op<'_>) {
        let data = keyspace == Keyspace::Data;
        match op {
            Op::Put { key, value } => {
                let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                if data {
                    self.print.add(&key, &value);
                }
                if let Some(before) = self.of_mut(keyspace).insert(key.clone(), value)
                    && data
                {
                    self.print.remove(&key, &before);
                }
            }
            Op::Delete { key } => {
                if let Some(before) = self.of_mut(keyspace).remove(key)
                    && data
                {
                    self.print.remove(key, &before);
                }
            }
            Op::DeleteRange { start, end } => {
                let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                let keys: Vec<Bytes> = entries(self.of(keyspace), &range).map(|(key, _)| key.clone()).collect();
                keys.iter().for_each(|key| self.change(keyspace, Op::Delete { key }));
            }
        }
    }

    pub(super) fn stored<V: Stored>(&self, key: &[u8]) -> Option<V> {
        self.of(Keyspace::Meta).get(key).and_then(|bytes| V::from_bytes(bytes).ok())
    }

    pub(super) fn cursor(&self) -> Option<Cursor> {
        let bytes = self.of(Keyspace::Meta).get(&meta::cursor_key(&LinkId::default()))?;
        Cursor::from_bytes(bytes)
    }

    pub(super) fn checkpoints(&self) -> Vec<Checkpoint> {
        let range = KeyRange::prefix(Checkpoint::PREFIX);
        let values = entries(self.of(Keyspace::Meta), &range).map(|(_, value)| value);
        values.filter_map(|value| Checkpoint::from_bytes(value).ok()).collect()
    }

    /// What lies in a range, in order.
    pub(super) fn within(&self, keyspace: Keyspace, range: &KeyRange) -> Vec<(&Bytes, &Bytes)> {
        entries(self.of(keyspace), range).collect()
    }

    pub(super) fn page(&self, keyspace: Keyspace, range: &KeyRange, options: ScanOptions) -> Page {
        let mut page = PageBuilder::new(range.clone(), options);
        for (key, value) in entries(self.of(keyspace), range) {
            if page.push(key, value).is_full() {
                break;
            }
        }
        page.finish()
    }
}

fn entries<'a>(
    map: &'a BTreeMap<Bytes, Bytes>,
    range: &KeyRange,
) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> + use<'a> {
    let range = range.clone();
    let from = if range.is_empty() { None } else { Some(map.range(range.start().clone()..)) };
    from.into_iter().flatten().take_while(move |(key, _)| range.contains(key))
}

/// What the next call that it fits will meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Armed {
    Transient,
    Unknown { applied: bool },
    SyncFails,
    ReadFails,
}

/// Why a store refuses everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poison {
    Unknown,
    SyncFailed,
}

/// What a driver asks of a store.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Apply(WriteSet, Durability),
    Get(Vec<(Keyspace, Bytes)>),
    Scan(Keyspace, KeyRange, ScanOptions),
    Sync,
    Reopen,
}

/// What a store answers.
#[derive(Debug)]
pub(super) enum Reply {
    Done(Result<(), StoreError>),
    Got(Result<Vec<Option<Bytes>>, StoreError>),
    Page(Result<Page, StoreError>),
}

impl Reply {
    pub(super) fn done(self) -> Result<(), StoreError> {
        match self {
            Self::Done(result) => result,
            _ => Err(mixed_up()),
        }
    }

    pub(super) fn got(self) -> Result<Vec<Option<Bytes>>, StoreError> {
        match self {
            Self::Got(result) => result,
            _ => Err(mixed_up()),
        }
    }

    pub(super) fn page(self) -> Result<Page, StoreError> {
        match self {
            Self::Page(result) => result,
            _ => Err(mixed_up()),
        }
    }
}

fn mixed_up() -> StoreError {
    StoreError::Corrupt { what: "the simulated driver took one answer for another".into() }
}

/// What a call did to the store when it took effect.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    Nothing,
    Wrote(WriteSet),
    /// It was opened anew, and is not what it was.
    Rewound,
}

/// One store.
#[derive(Debug)]
pub(super) struct ModelStore {
    pub(super) limits: StoreLimits,
    pub(super) visible: Maps,
    pub(super) durable: Maps,
    /// Visible and not durable, in order; the number of the first.
    pending: VecDeque<WriteSet>,
    first_pending: u64,
    poison: Option<Poison>,
    pub(super) armed: VecDeque<Armed>,
    pub(super) full: bool,
    pub(super) slow: bool,
    /// More than one process has it open. A sync that fails for one of them would prove nothing to the other.
    pub(super) shared: bool,
    /// It was shared since who uses it has looked.
    pub(super) was_shared: bool,
    /// It was opened anew after an outcome was unknown, and what is readable may not be durable.
    pub(super) unsettled: bool,
    /// It went back when it was opened anew, and who uses it has not looked since.
    pub(super) went_back: bool,
    /// Writes come one after the other.
    pub(super) writer_free_at: u64,
    /// How often it was opened anew after a failure; of a link, of how many of these it knows.
    pub(super) setbacks: u64,
    /// It is what a link sees of its centre's store.
    pub(super) view: Option<View>,
}

pub(super) const LIMITS: StoreLimits = StoreLimits { max_key: 511, max_value: 1 << 16, max_batch: 1 << 20 };

impl ModelStore {
    pub(super) fn new(image: Maps) -> Self {
        Self {
            limits: LIMITS,
            durable: image.clone(),
            visible: image,
            pending: VecDeque::new(),
            first_pending: 0,
            poison: None,
            armed: VecDeque::new(),
            full: false,
            slow: false,
            shared: false,
            was_shared: false,
            unsettled: false,
            went_back: false,
            writer_free_at: 0,
            setbacks: 0,
            view: None,
        }
    }

    /// The number of the last write set.
    pub(super) fn last(&self) -> u64 {
        self.first_pending + self.pending.len() as u64
    }

    /// A call takes effect. What it answers is told later; the number is that of the last write set it covers.
    pub(super) fn execute(&mut self, request: &Request, rng: &mut Rng) -> (Reply, Effect, u64) {
        let (reply, effect) = match request {
            Request::Apply(writes, durability) => {
                let (result, effect) = self.apply(writes, *durability);
                (Reply::Done(result), effect)
            }
            Request::Get(keys) => (Reply::Got(self.read().map(|maps| get(maps, keys))), Effect::Nothing),
            Request::Scan(keyspace, range, options) => {
                (Reply::Page(self.read().map(|maps| maps.page(*keyspace, range, *options))), Effect::Nothing)
            }
            Request::Sync => (Reply::Done(self.sync()), Effect::Nothing),
            Request::Reopen => {
                let effect = self.reopen(rng);
                (Reply::Done(Ok(())), effect)
            }
        };
        (reply, effect, self.first_pending + self.pending.len() as u64)
    }

    /// Everything up to the write set of this number is on stable storage.
    pub(super) fn persist(&mut self, number: u64) {
        while self.first_pending < number {
            let Some(writes) = self.pending.pop_front() else { return };
            self.durable.apply(&writes);
            self.first_pending += 1;
        }
        self.unsettled &= !self.pending.is_empty();
    }

    /// What was not synced is gone, but for a prefix of it. True if anything was lost.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) -> bool {
        let kept = rng.usize(0..=self.pending.len());
        let lost = kept < self.pending.len();
        self.persist(self.first_pending + kept as u64);
        self.first_pending += self.pending.len() as u64;
        self.pending.clear();
        if lost {
            self.visible = self.durable.clone();
        }
        self.poison = None;
        lost
    }

    /// A process that had the store open is gone; what is visible stays.
    pub(super) fn process_died(&mut self) {
        self.poison = None;
    }

    /// Another image takes the place of what is there.
    pub(super) fn replace(&mut self, image: Maps) {
        let limits = self.limits;
        *self = Self { limits, writer_free_at: self.writer_free_at, ..Self::new(image) };
    }

    /// Flips a bit of the record with this key, as a disk would: below everybody.
    pub(super) fn flip_record(&mut self, key: &Bytes, bit: usize) {
        for maps in [&mut self.visible, &mut self.durable] {
            if let Some(value) = maps.of_mut(Keyspace::Log).get_mut(key) {
                let mut damaged = value.to_vec();
                damaged[bit / 8 % value.len()] ^= 1 << (bit % 8);
                *value = damaged.into();
            }
        }
    }

    /// Everything works again.
    pub(super) fn heal(&mut self) {
        self.armed.clear();
        (self.full, self.slow) = (false, false);
    }

    pub(super) fn head(&self) -> Option<Head> {
        self.visible.stored(Head::KEY)
    }

    pub(super) fn floor(&self) -> Option<Floor> {
        self.visible.stored(Floor::KEY)
    }

    pub(super) fn parts(&self) -> Option<LogParts> {
        let maps = &self.visible;
        let (compacted, tombstones) = (maps.stored(Compacted::KEY), maps.stored(TombstoneFloor::KEY));
        Some(LogParts { floor: self.floor()?, compacted, tombstones })
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.visible.stored(Identity::KEY)
    }

    pub(super) fn durable_head(&self) -> Option<Position> {
        self.durable.stored::<Head>(Head::KEY).map(|head| head.position)
    }

    fn apply(&mut self, writes: &WriteSet, durability: Durability) -> (Result<(), StoreError>, Effect) {
        if let Err(error) = self.check(writes) {
            return (Err(error), Effect::Nothing);
        }
        let fits = |armed: &Armed| match armed {
            Armed::Transient | Armed::Unknown { .. } => true,
            Armed::SyncFails => durability == Durability::Synced,
            Armed::ReadFails => false,
        };
        match self.disarm(fits) {
            Some(Armed::Transient) => (Err(StoreError::Transient { reason: "simulated".into() }), Effect::Nothing),
            Some(Armed::Unknown { applied }) => {
                self.poison = Some(Poison::Unknown);
                let effect = if applied { self.write(writes) } else { Effect::Nothing };
                (Err(StoreError::backend_unknown("simulated")), effect)
            }
            Some(_) => {
                self.poison = Some(Poison::SyncFailed);
                let effect = self.write(writes);
                (Err(StoreError::Fatal { reason: "the sync failed".into() }), effect)
            }
            None => (Ok(()), self.write(writes)),
        }
    }

    fn check(&mut self, writes: &WriteSet) -> Result<(), StoreError> {
        self.check_poison()?;
        writes.check(&self.limits)?;
        if self.full {
            return Err(StoreError::StoreFull { hint: "simulated".into() });
        }
        let meta = self.visible.of(Keyspace::Meta);
        let holds = writes.preconditions().iter().all(|required| meta.get(&required.key) == required.value.as_ref());
        if holds { Ok(()) } else { Err(StoreError::HeadMoved) }
    }

    fn write(&mut self, writes: &WriteSet) -> Effect {
        self.visible.apply(writes);
        self.pending.push_back(writes.clone());
        Effect::Wrote(writes.clone())
    }

    fn read(&mut self) -> Result<&Maps, StoreError> {
        self.check_poison()?;
        match self.disarm(|armed| *armed == Armed::ReadFails) {
            Some(_) => Err(StoreError::backend("simulated")),
            None => Ok(&self.visible),
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.check_poison()?;
        if self.disarm(|armed| *armed == Armed::SyncFails).is_some() {
            self.poison = Some(Poison::SyncFailed);
            return Err(StoreError::Fatal { reason: "the sync failed".into() });
        }
        Ok(())
    }

    fn reopen(&mut self, rng: &mut Rng) -> Effect {
        self.setbacks += u64::from(self.poison.is_some());
        match self.poison.take() {
            // The kernel may have dropped what it could not write.
            Some(Poison::SyncFailed) if rng.bool() && self.lose_power(rng) => {
                self.went_back = true;
                Effect::Rewound
            }
            Some(_) => {
                self.unsettled = true;
                Effect::Nothing
            }
            None => Effect::Nothing,
        }
    }

    fn check_poison(&self) -> Result<(), StoreError> {
        match self.poison {
            None => Ok(()),
            Some(_) => Err(StoreError::Fatal { reason: "an outcome is unknown".into() }),
        }
    }

    fn disarm(&mut self, fits: impl Fn(&Armed) -> bool) -> Option<Armed> {
        let fits = |armed: &Armed| fits(armed) && !(self.shared && *armed == Armed::SyncFails);
        let index = self.armed.iter().position(fits)?;
        self.armed.remove(index)
    }
}

fn get(maps: &Maps, keys: &[(Keyspace, Bytes)]) -> Vec<Option<Bytes>> {
    keys.iter().map(|(keyspace, key)| maps.of(*keyspace).get(key).cloned()).collect()
}
