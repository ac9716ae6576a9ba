//! What a simulated session is given of the log: records, or what compacted ones came to and what their keys hold now.
//! Step by step as in `replikv-node`.

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, Page, Position, ScanOptions, Seq};
use replikv_proto::{LogAnswer, Record, Run, read_stretch};

use super::context::{Context, Moment, Owner};
use super::serving::Served;
use super::store::Request;
use super::{DriverBug, Scene};

/// True if what a page begins with is compacted.
pub(super) fn is_compacted(page: &Page) -> bool {
    page.iter().next().is_some_and(|(_, first)| Run::is_run(first))
}

/// Asks for published records after `after`. Not for the touches behind a run that ends there.
pub(super) fn ask_records(ctx: &mut Context, (store, owner): (usize, Owner), open: &Served, after: Seq, bytes: usize) {
    let range = from(after).intersect(&KeyRange::from_bounds(..=open.view.published.seq.to_key()));
    let options = ScanOptions::default().max_entries(4096).max_bytes(bytes);
    ctx.call(store, owner, Request::Scan(Keyspace::Log, range, options));
}

/// Asks for runs with their touches, in one page.
pub(super) fn ask_stretch(ctx: &mut Context, (store, owner): (usize, Owner), after: Seq, bytes: usize) {
    let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(bytes);
    ctx.call(store, owner, Request::Scan(Keyspace::Log, from(after), options));
}

fn from(after: Seq) -> KeyRange {
    KeyRange::from_bounds(after.next().unwrap_or(after).to_key()..)
}

/// Stored records after `after`, as far as their digests vouch for them.
pub(super) fn records(ctx: &mut Context, store: usize, open: &mut Served, after: Position, page: &Page) -> LogAnswer {
    let (mut parts, mut last) = (Vec::new(), after);
    let tells = !ctx.planted(DriverBug::TrimmedWithoutTelling);
    for (key, bytes) in page.entries() {
        // By its key: what the record says of itself may be what is damaged.
        let seq = Seq::from_key(&key).unwrap_or_default();
        if tells && parts.is_empty() && last.seq.next() != Some(seq) {
            return LogAnswer::Trimmed;
        }
        let record = match Record::decode(bytes.clone()) {
            Ok(record) if record.header().seq == seq => record,
            Err(_) if ctx.planted(DriverBug::DamagedRecordSent) => {
                parts.push(bytes);
                break;
            }
            _ => {
                ctx.damaged(store, open, seq);
                break;
            }
        };
        if tells && record.header().verify_after(&last).is_err() {
            ctx.damaged(store, open, seq);
            break;
        }
        last = record.position();
        parts.push(bytes);
    }
    if parts.is_empty() { LogAnswer::Trimmed } else { LogAnswer::Records { parts, last } }
}

/// Runs after `after`; `None` if the page is too short for one.
pub(super) fn stretch(
    ctx: &mut Context,
    store: usize,
    open: &mut Served,
    after: Seq,
    page: &Page,
) -> Option<LogAnswer> {
    // What was cut meanwhile is not there; what has begun to go must not be served. A run does not say where it begins, and
    // another process on the store may have cut what was before it: the store knows.
    let begins = ctx.stores[store].parts().map_or(Seq::ZERO, |parts| parts.begins().position.seq);
    if begins.max(open.view.floor.seq) > after {
        return Some(LogAnswer::Trimmed);
    }
    let most = ctx.compacts.map_or(usize::MAX, |plan| plan.stretch);
    match read_stretch(page.entries(), page.rest().is_none(), after, most) {
        Ok(Some(stretch)) => Some(LogAnswer::Compacted(stretch)),
        Ok(None) if page.rest().is_some() => None,
        Ok(None) => Some(LogAnswer::Trimmed),
        Err(error) => {
            ctx.coverage.met(Scene::RunDamaged);
            ctx.damaged(store, open, error.seq);
            Some(LogAnswer::Trimmed)
        }
    }
}

/// Keys that are looked up one after the other, each at its own moment.
#[derive(Debug)]
pub(super) struct LookUp {
    keys: Vec<Bytes>,
    max_bytes: usize,
    bytes: usize,
    pub(super) values: Vec<Option<Bytes>>,
    /// As it was when the first one was asked for.
    pub(super) handed: Position,
    pub(super) published: Position,
    setbacks: u64,
    /// No further key from then on: the slave is to hear something.
    until: Moment,
}

impl LookUp {
    pub(super) fn new(ctx: &Context, open: &Served, keys: Vec<Bytes>, max_bytes: usize) -> Self {
        let (handed, published, setbacks) = (open.view.handed, open.view.published, open.setbacks);
        let heartbeat = u64::try_from(ctx.sizes.heartbeat.as_micros()).unwrap_or(u64::MAX);
        let until = ctx.now.saturating_add(heartbeat);
        Self { keys, max_bytes, bytes: 0, values: Vec::new(), handed, published, setbacks, until }
    }

    /// The next key; `None` if enough are looked up.
    pub(super) fn next(&self, now: Moment) -> Option<Bytes> {
        let goes_on = self.values.is_empty() || (self.bytes < self.max_bytes && now < self.until);
        self.keys.get(self.values.len()).filter(|_| goes_on).cloned()
    }

    pub(super) fn found(&mut self, value: Option<Bytes>) {
        let key = self.keys.get(self.values.len()).map_or(0, Bytes::len);
        self.bytes += key + value.as_ref().map_or(0, Bytes::len);
        self.values.push(value);
    }

    /// True if what came to nothing meanwhile may be in it.
    pub(super) fn is_void(&self, open: &Served) -> bool {
        self.setbacks != open.setbacks
    }

    pub(super) fn again(self, ctx: &Context, open: &Served) -> Self {
        Self::new(ctx, open, self.keys, self.max_bytes)
    }
}
