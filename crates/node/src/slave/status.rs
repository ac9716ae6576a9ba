//! What a slave says of itself.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use replikv_core::{Cursor, Epoch, Fill, KeyRanges, Position, Seq, StoreError};
use replikv_proto::{Above, EpochStart, Fence, Lag, Mode, Now, Progress, ReadAt, RejectCode, SourceFacts, Welcome};
use serde::Serialize;
use tokio::sync::watch;

use super::trend::Trend;
use super::{FollowError, SlaveConfig, Verification};
use crate::health::{Health, HealthState};
use crate::{SlaveSeen, SlotSeen};

/// What a slave is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlaveState {
    /// It has never followed.
    Empty,
    /// It copies: what is here is not yet a state that the master had.
    Copying,
    /// It compares what it holds with its master: some of it may be older than the rest.
    Comparing,
    /// It goes through what it missed. It holds a state that the master had, unless some of that comes from the compacted
    /// part of the log, and is newer than the rest: see [`SlaveStatus::consistent`].
    CatchingUp,
    /// It holds what the master had when it last told.
    Following,
}

/// Progress, for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct SlaveProgress {
    /// The last record applied.
    pub position: Option<Position>,
    /// The last record on stable storage.
    pub durable: Seq,
    /// Whether the data is a state that the master had.
    pub consistent: bool,
    /// The master's last published record, as last told.
    pub head: Option<Position>,
    /// Whether a master is connected.
    pub connected: bool,
    /// Where the epochs of the history begin, as last told.
    pub epochs: Vec<EpochStart>,
    /// Whether what is on stable storage is a state that the master had, whatever of what came after it is there too.
    pub(super) settled: bool,
}

/// Where a slave is, and how it is. Position, lag and last contact are three separate things.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SlaveStatus {
    /// The slave's name.
    pub name: String,
    /// The keys that it subscribes to; `None` if that is every key. As JSON an array of objects with `start` and `end`, as
    /// text; what is not printable is escaped.
    #[serde(serialize_with = "crate::health::ranges_as_text")]
    pub ranges: Option<KeyRanges>,
    /// What it is doing.
    pub state: SlaveState,
    /// How it is.
    pub health: Health,
    /// The last record applied.
    pub position: Option<Position>,
    /// Whether the data is a state that the master had.
    pub consistent: bool,
    /// The last record on stable storage.
    pub durable: Seq,
    /// The master's last published record, as last told.
    pub source_head: Option<Position>,
    /// How far it is behind the master, also through relays; `None` before that has told where it stands, and while none is
    /// connected, here or at a relay above.
    pub lag: Option<Lag>,
    /// Milliseconds since anything was heard of the master, also through relays; `None` if nothing ever was.
    pub last_contact_ms: Option<u64>,
    /// Records applied since the slave was opened.
    pub records: u64,
    /// Store transactions since the slave was opened.
    pub groups: u64,
    /// Connections that got as far as a welcome, since the slave was opened.
    pub connections: u64,
    /// How often it began to compare what it holds with its master, since the slave was opened: what it missed was no
    /// longer in the log, or more than there is data.
    pub comparisons: u64,
    /// How often it began to copy, since the slave was opened: it was empty, and what it lacked was not in the log.
    pub copies: u64,
    /// How often it began to resync, since the slave was opened: its history had parted from its master's.
    pub resyncs: u64,
    /// How many entries were quarantined, since the slave was opened.
    pub quarantined: u64,
    /// The last verification that has ended since the slave was opened, in the background or by
    /// [`Slave::verify`](super::Slave::verify).
    pub verification: Option<Verification>,
    /// Milliseconds since a verification was last finished, since the slave was opened.
    pub last_verified_ms: Option<u64>,
    /// The relays above, from the one right below the master down, and this slave itself; as last told. Empty before a
    /// connection.
    pub path: Vec<String>,
    /// What it serves, if it keeps the log.
    pub relay: Option<RelayStatus>,
    /// What it has promised, if it waits for an epoch that is to begin: see [`Slave::fence`](super::Slave::fence).
    pub fence: Option<FenceSeen>,
}

/// An epoch that a slave waits for. It follows nobody of an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FenceSeen {
    /// The epoch that is to begin.
    pub epoch: Epoch,
    /// Who is to be promoted.
    pub by: String,
    /// Whether it is this one.
    pub own: bool,
}

impl From<Fence> for FenceSeen {
    fn from(fence: Fence) -> Self {
        Self { epoch: fence.epoch, by: fence.by, own: fence.own }
    }
}

/// What a slave serves that keeps the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RelayStatus {
    /// Why nobody can follow this slave; `None` if others can.
    pub blocked: Option<String>,
    /// The last record that those who follow can have; `None` while nobody can follow.
    pub published: Option<Position>,
    /// Records after this one are in the kept log; `None` while there is none.
    pub floor: Option<Position>,
    /// Bytes that the kept log holds.
    pub retained_bytes: u64,
    /// The slaves that are being served, by name.
    pub slaves: Vec<SlaveSeen>,
    /// The slots of slaves of this one, connected or not.
    pub slots: Vec<SlotSeen>,
}

/// Keeps the facts; the status is made of them when somebody asks.
#[derive(Debug)]
pub(super) struct Tracker {
    name: String,
    ranges: Option<KeyRanges>,
    stale_after: Duration,
    progress: watch::Sender<SlaveProgress>,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    source: Option<SourceFacts>,
    /// Bytes of records that the master had published and this slave had not received, when it was welcomed.
    behind_at_welcome: u64,
    log_bytes_at_welcome: u64,
    applied_bytes: u64,
    /// On all connections.
    applied_ever: u64,
    applied_time: Option<u64>,
    clock_offset: i64,
    heard: Option<Duration>,
    above: Link,
    trouble: Option<(HealthState, String)>,
    since: u64,
    last_state: Option<HealthState>,
    records: u64,
    groups: u64,
    connections: u64,
    comparisons: u64,
    copies: u64,
    resyncs: u64,
    quarantined: u64,
    verification: Option<Verification>,
    verified: Option<Duration>,
    path: Vec<String>,
    /// How what is not covered is filled, as committed.
    fill: Option<Fill>,
    /// Copies and comparisons that were begun since the data was last a state of the master.
    begun: u64,
    /// Whether its lag grows for good, while it holds a state of the master.
    trend: Trend,
    /// What the slave has promised.
    fence: Option<Fence>,
}

/// Whom a slave follows.
#[derive(Debug, Clone, Copy, Default)]
enum Link {
    #[default]
    Master,
    /// A relay, and what it has told of the master, and when.
    Relay(Option<(Above, Duration)>),
}

/// How much has come of connecting, since the slave was opened.
#[cfg(feature = "tcp")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Worked {
    /// Connections that were welcomed.
    pub(super) connections: u64,
    /// Groups that were committed.
    pub(super) groups: u64,
}

/// So many copies or comparisons begun in a row, and none finished: the slave is slower than its master's writers. A
/// restart of either side begins none, since a slave goes on where it was; only a log that was trimmed meanwhile does.
const OUTPACED: u64 = 4;

impl Tracker {
    pub(super) fn new(config: &SlaveConfig, ranges: &KeyRanges, cursor: Option<&Cursor>) -> Self {
        let progress = SlaveProgress {
            position: cursor.map(|cursor| cursor.position),
            durable: cursor.map_or(Seq::ZERO, |cursor| cursor.position.seq),
            consistent: cursor.is_some_and(Cursor::is_consistent),
            settled: cursor.is_some_and(Cursor::is_consistent),
            ..SlaveProgress::default()
        };
        let facts =
            Facts { trouble: Some((HealthState::Disconnected, "not connected yet".into())), ..Facts::default() };
        Self {
            name: config.name.clone(),
            ranges: (!ranges.is_all()).then(|| ranges.clone()),
            stale_after: config.stale_after,
            progress: watch::Sender::new(progress),
            facts: Mutex::new(facts),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SlaveProgress> {
        self.progress.subscribe()
    }

    /// What the master is told. It counts on what is durable: that this is no state of it yet, it must not miss.
    pub(super) fn progress(&self) -> Progress {
        let progress = self.progress.borrow();
        let applied = progress.position.map_or(Seq::ZERO, |position| position.seq);
        let consistent = progress.consistent && progress.settled;
        Progress { applied, durable: progress.durable.min(applied), consistent }
    }

    /// Whether what is readable is a state of the master.
    pub(super) fn is_consistent(&self) -> bool {
        self.progress.borrow().consistent
    }

    /// Whether there is anything that is readable, and not known to be durable.
    pub(super) fn is_unsynced(&self) -> bool {
        let Progress { applied, durable, consistent } = self.progress();
        durable < applied || consistent != self.is_consistent()
    }

    pub(super) fn welcomed(&self, welcome: &Welcome) {
        self.change(|facts| {
            facts.log_bytes_at_welcome = welcome.log_bytes;
            facts.behind_at_welcome = welcome.behind_bytes;
            facts.applied_bytes = 0;
            facts.trouble = None;
            facts.connections += 1;
            facts.comparisons += u64::from(matches!(welcome.mode, Mode::Compare { .. } | Mode::Resync { .. }));
            facts.copies += u64::from(matches!(welcome.mode, Mode::Copy { .. }));
            facts.begun += u64::from(welcome.mode.from().is_some());
            facts.path = path(&self.name, welcome);
            facts.above = if welcome.path.is_empty() { Link::Master } else { Link::Relay(None) };
        });
        let begins = welcome.mode.from().is_some();
        self.progress.send_modify(|progress| {
            progress.connected = true;
            // In one step: who waits must not see a connection, and the head of an earlier one.
            progress.head = Some(welcome.head);
            progress.consistent &= !begins;
            progress.epochs = welcome.epochs.clone();
        });
    }

    /// The master is a relay that is behind: nobody is there who could tell how far behind this slave is.
    pub(super) fn waiting(&self, welcome: &Welcome) {
        self.change(|facts| facts.path = path(&self.name, welcome));
        self.trouble(HealthState::CatchingUp, "waits for its master, a relay, to come as far as this slave is".into());
    }

    #[cfg(feature = "tcp")]
    pub(super) fn worked(&self) -> Worked {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        Worked { connections: facts.connections, groups: facts.groups }
    }

    pub(super) fn contact(&self, source: SourceFacts, now: Now) {
        self.change(|facts| {
            facts.source = Some(source);
            if let Some(above) = source.above {
                facts.above = Link::Relay(Some((above, now.monotonic)));
            }
            if let Some(time) = source.time {
                facts.clock_offset = time.cast_signed().wrapping_sub(now.unix_ms.cast_signed());
            }
        });
        self.progress.send_modify(|progress| progress.head = Some(source.head));
        if source.time.is_none() {
            return;
        }
        let progress = self.progress.borrow().clone();
        self.change(|facts| match own_lag(facts, &progress, now) {
            Some(lag) if progress.consistent => facts.trend.told(lag.bytes, facts.applied_ever, now.monotonic),
            // A copy or a comparison ends with what was written meanwhile.
            _ => facts.trend = Trend::default(),
        });
    }

    pub(super) fn heard(&self, at: Duration) {
        self.change(|facts| facts.heard = Some(at));
    }

    /// A group that ends at `cursor` goes to the store. What it leaves there may be no state of the master, and is there
    /// before the store says so.
    pub(super) fn handed(&self, cursor: &Cursor) {
        if !cursor.is_consistent() {
            self.progress.send_if_modified(|progress| {
                progress.settled = false;
                std::mem::take(&mut progress.consistent)
            });
        }
    }

    /// A group is readable, and durable if `durable` says so.
    pub(super) fn applied(&self, group: &Applied) {
        self.change(|facts| {
            facts.applied_ever += group.received.saturating_sub(facts.applied_bytes);
            facts.applied_bytes = group.received;
            facts.applied_time = group.time.or(facts.applied_time);
            facts.records += group.records as u64;
            facts.groups += 1;
            facts.filled_in(Some(&group.cursor));
        });
        self.progress.send_modify(|progress| {
            progress.position = Some(group.cursor.position);
            progress.consistent = group.cursor.is_consistent();
            if group.durable {
                progress.durable = group.cursor.position.seq;
                progress.settled = progress.consistent;
            }
            if progress.head.is_none_or(|head| head.seq < group.cursor.position.seq) {
                progress.head = Some(group.cursor.position);
            }
        });
    }

    /// All that was applied, up to the record `seq`, is on stable storage.
    pub(super) fn synced(&self, seq: Seq) {
        self.progress.send_modify(|progress| {
            progress.durable = progress.durable.max(seq);
            progress.settled = progress.consistent;
        });
    }

    /// The cursor was read from the store again.
    pub(super) fn rewound(&self, cursor: Option<&Cursor>) {
        self.change(|facts| facts.filled_in(cursor));
        self.progress.send_modify(|progress| {
            progress.position = cursor.map(|cursor| cursor.position);
            progress.consistent = cursor.is_some_and(Cursor::is_consistent);
            progress.settled &= progress.consistent;
            let applied = cursor.map_or(Seq::ZERO, |cursor| cursor.position.seq);
            progress.durable = progress.durable.min(applied);
        });
    }

    /// The history that the slave was in is left. What it had acknowledged there counts for nothing in the new one.
    pub(super) fn resyncs(&self, cursor: &Cursor) {
        self.change(|facts| {
            facts.resyncs += 1;
            facts.filled_in(Some(cursor));
        });
        self.progress.send_modify(|progress| {
            progress.position = Some(cursor.position);
            (progress.consistent, progress.settled) = (false, false);
            progress.durable = Seq::ZERO;
        });
    }

    /// So many entries were quarantined.
    pub(super) fn quarantined(&self, entries: u64) {
        self.change(|facts| facts.quarantined += entries);
    }

    /// A verification has ended.
    pub(super) fn verified(&self, verification: Verification, now: Now) {
        self.change(|facts| {
            if verification.reason.is_none() {
                facts.verified = Some(now.monotonic);
            }
            facts.verification = Some(verification);
        });
    }

    /// What the store says that the slave has promised.
    pub(super) fn fenced(&self, fence: Option<Fence>) {
        self.change(|facts| facts.fence = fence);
    }

    /// What it waits for.
    pub(super) fn fence(&self) -> Option<Fence> {
        let progress = self.progress.borrow().clone();
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).fence_at(&progress)
    }

    pub(super) fn disconnected(&self, reason: String) {
        self.trouble(HealthState::Disconnected, reason);
    }

    pub(super) fn failed(&self, error: &FollowError) {
        let state = match error {
            // The same attempt may succeed later, and nobody needs to do anything.
            FollowError::Refused(refusal) if refusal.retry => HealthState::Disconnected,
            FollowError::Refused(refusal) => match refusal.code {
                RejectCode::Diverged | RejectCode::ForeignSource | RejectCode::SlaveAhead => HealthState::Diverged,
                _ => HealthState::Blocked,
            },
            FollowError::Store(StoreError::Closed) => HealthState::Stopped,
            FollowError::Store(_)
            | FollowError::Fenced
            | FollowError::AlreadyFollowing
            | FollowError::Quarantine { .. } => HealthState::Blocked,
            FollowError::Connection(_) | FollowError::Protocol(_) => HealthState::Disconnected,
        };
        self.trouble(state, crate::error_chain(error));
    }

    pub(super) fn stopped(&self) {
        self.trouble(HealthState::Stopped, "shut down".into());
    }

    /// Where the slave stands, for a read that begins.
    pub(super) fn read_at(&self, now: Now) -> (SlaveProgress, ReadAt) {
        let progress = self.progress.borrow().clone();
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ReadAt {
            includes: progress.position,
            shows: None,
            consistent: progress.consistent,
            lag: lag(&facts, &progress, now),
            last_contact_ms: facts.silence(now).map(millis),
        };
        drop(facts);
        (progress, at)
    }

    pub(super) fn status(&self, now: Now) -> SlaveStatus {
        let progress = self.progress.borrow().clone();
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = lag(&facts, &progress, now);
        let caught_up = lag.is_some_and(|lag| lag.seqs == 0);
        let state = match progress.position {
            None => SlaveState::Empty,
            Some(_) if !progress.consistent && facts.fill == Some(Fill::Compare) => SlaveState::Comparing,
            Some(_) if !progress.consistent && facts.fill == Some(Fill::Copy) => SlaveState::Copying,
            Some(_) if caught_up && progress.consistent => SlaveState::Following,
            Some(_) => SlaveState::CatchingUp,
        };
        let silence = facts.silence(now);
        let (health, reason) = match &facts.trouble {
            Some((state, reason)) => (*state, reason.clone()),
            None if facts.is_cut_off() => {
                (HealthState::Disconnected, "the relay that it follows has lost the master".into())
            }
            None if silence.is_some_and(|silence| silence > self.stale_after) => {
                (HealthState::Stale, "nothing was heard of the master for too long".into())
            }
            None if state == SlaveState::Following => (HealthState::Ready, "holds what the master holds".into()),
            None if facts.begun >= OUTPACED => {
                let begun = facts.begun;
                let reason = format!(
                    "has begun {begun} copies or comparisons and finished none: the log is trimmed faster than this \
                     slave takes it; let the master keep more log, or give the slave a faster store"
                );
                (HealthState::Outpaced, reason)
            }
            None if progress.consistent && facts.trend.minutes().is_some() => {
                let minutes = facts.trend.minutes().unwrap_or_default();
                let reason = format!(
                    "has fallen further and further behind for {minutes} minutes: this slave is slower than its \
                     master's writers; give it a faster store, or let them wait for it (max_lag)"
                );
                (HealthState::Outpaced, reason)
            }
            None if state == SlaveState::Comparing => {
                (HealthState::CatchingUp, "compares what it holds with the master".into())
            }
            None if state == SlaveState::Copying => (HealthState::CatchingUp, "copies the master's data".into()),
            None => (HealthState::CatchingUp, "goes through what it missed".into()),
        };
        if facts.last_state != Some(health) {
            facts.last_state = Some(health);
            facts.since = now.unix_ms;
        }
        SlaveStatus {
            name: self.name.clone(),
            ranges: self.ranges.clone(),
            state,
            health: Health { state: health, reason, since_unix_ms: facts.since },
            position: progress.position,
            consistent: progress.consistent,
            durable: progress.durable,
            source_head: progress.head,
            lag,
            last_contact_ms: silence.map(millis),
            records: facts.records,
            groups: facts.groups,
            connections: facts.connections,
            comparisons: facts.comparisons,
            copies: facts.copies,
            resyncs: facts.resyncs,
            quarantined: facts.quarantined,
            verification: facts.verification.clone(),
            last_verified_ms: facts.verified.map(|verified| millis(now.monotonic.saturating_sub(verified))),
            path: facts.path.clone(),
            relay: None,
            fence: facts.fence_at(&progress).map(FenceSeen::from),
        }
    }

    fn trouble(&self, state: HealthState, reason: String) {
        self.change(|facts| facts.trouble = Some((state, reason)));
        self.progress.send_modify(|progress| progress.connected = false);
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Facts {
    // Unless it has come to that epoch meanwhile.
    fn fence_at(&self, progress: &SlaveProgress) -> Option<Fence> {
        let fence = self.fence.as_ref()?;
        let position = progress.position.filter(|_| progress.consistent);
        let over = position.is_some_and(|position| fence.is_over(&Cursor::at(position)));
        (!over).then(|| fence.clone())
    }

    // Since the master itself was heard of. A relay that has not told yet knows what this slave knew before.
    fn silence(&self, now: Now) -> Option<Duration> {
        let since = |at: Duration| now.monotonic.saturating_sub(at);
        match self.above {
            Link::Master | Link::Relay(None) => self.heard.map(since),
            Link::Relay(Some((above, told))) => {
                above.silence_ms.map(|silence| since(told).saturating_add(Duration::from_millis(silence)))
            }
        }
    }

    fn is_cut_off(&self) -> bool {
        matches!(self.above, Link::Relay(Some((Above { lag: None, .. }, _))))
    }

    fn filled_in(&mut self, cursor: Option<&Cursor>) {
        // Where everything is covered nothing is copied: part of it is newer than the position.
        let missing = cursor.filter(|cursor| cursor.coverage.consistent_at().is_none());
        let comparing = cursor.filter(|cursor| cursor.coverage.fill() == Some(Fill::Compare));
        self.fill = missing.or(comparing).and_then(|cursor| cursor.coverage.fill());
        if cursor.is_some_and(Cursor::is_consistent) {
            self.begun = 0;
        }
    }
}

fn path(name: &str, welcome: &Welcome) -> Vec<String> {
    welcome.path.iter().map(|above| above.name.clone()).chain([name.to_owned()]).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A committed group, as the tracker wants to know it.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) cursor: Cursor,
    pub(super) records: usize,
    pub(super) received: u64,
    pub(super) time: Option<u64>,
    pub(super) durable: bool,
}

// A lag is only told while somebody is there who could tell that it has grown: lag 0 while broken is impossible.
fn lag(facts: &Facts, progress: &SlaveProgress, now: Now) -> Option<Lag> {
    let own = own_lag(facts, progress, now)?;
    match facts.above {
        Link::Master => Some(own),
        Link::Relay(told) => told.and_then(|(above, _)| above.lag).map(|above| Lag {
            seqs: own.seqs + above.seqs,
            bytes: own.bytes + above.bytes,
            millis: own.millis.max(above.millis),
        }),
    }
}

// Behind whom it follows.
fn own_lag(facts: &Facts, progress: &SlaveProgress, now: Now) -> Option<Lag> {
    let source = facts.source.filter(|_| progress.connected)?;
    let head = progress.head.map_or(source.head.seq, |head| head.seq.max(source.head.seq));
    let seqs = progress.position.map_or(head.as_u64(), |position| head.since(position.seq));
    if seqs == 0 {
        return Some(Lag { seqs: 0, bytes: 0, millis: 0 });
    }
    let published = source.log_bytes.saturating_sub(facts.log_bytes_at_welcome);
    let bytes = (facts.behind_at_welcome + published).saturating_sub(facts.applied_bytes);
    let source_now = now.unix_ms.saturating_add_signed(facts.clock_offset);
    let millis = facts.applied_time.map_or(0, |time| source_now.saturating_sub(time));
    Some(Lag { seqs, bytes, millis })
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikv_core::{Coverage, Digest, Epoch, KeyRange, SourceId, StoreLimits};

    fn position(seq: u64) -> Position {
        Position {
            source: SourceId::from_bytes([7; 16]),
            epoch: Epoch { number: 1, nonce: 9 },
            seq: Seq::new(seq),
            digest: Digest::from_bytes([3; 16]),
        }
    }

    // Whoever waits for a slave to have caught up may look between any two steps.
    #[test]
    fn a_slave_that_was_caught_up_is_not_so_once_it_is_welcomed_to_more() {
        let from = position(9);
        for (mode, consistent) in [(Mode::Compare { from }, false), (Mode::Copy { from }, false), (Mode::Resume, true)]
        {
            let tracker = Tracker::new(&SlaveConfig::new("edge"), &KeyRanges::all(), Some(&Cursor::at(position(5))));
            tracker.progress.send_modify(|progress| progress.head = Some(position(5)));
            let mut seen = tracker.subscribe();
            tracker.welcomed(&Welcome {
                source: from.source,
                epochs: Vec::new(),
                head: from,
                floor: position(8),
                limits: StoreLimits { max_key: 1, max_value: 1, max_batch: 1 },
                mode,
                heartbeat_ms: 1,
                log_bytes: 0,
                behind_bytes: 0,
                verifies: false,
                path: Vec::new(),
                checkpoints: Vec::new(),
            });
            let seen = seen.borrow_and_update();
            assert_eq!((seen.connected, seen.head, seen.consistent), (true, Some(from), consistent), "{mode:?}");
        }
    }

    // A copy may end with a group that moves no record on: what is durable is then the same record, and not the same data.
    #[test]
    fn what_is_no_state_of_the_master_on_stable_storage_is_told_as_none() {
        let cursor = |covered: bool| {
            let mut coverage = Coverage::new(KeyRange::all(), Fill::Copy);
            assert_eq!(covered, covered && coverage.cover(&KeyRange::all(), position(9)));
            Cursor { position: position(9), coverage }
        };
        let tracker = Tracker::new(&SlaveConfig::new("edge"), &KeyRanges::all(), Some(&Cursor::at(position(9))));
        let told = || (tracker.progress().durable, tracker.progress().consistent, tracker.is_consistent());
        let commit = |covered, durable| {
            let cursor = cursor(covered);
            tracker.handed(&cursor);
            tracker.applied(&Applied { cursor, records: 0, received: 0, time: None, durable });
        };
        let nine = Seq::new(9);
        assert_eq!(told(), (nine, true, true));
        commit(false, false);
        tracker.synced(nine);
        assert_eq!(told(), (nine, false, false));
        commit(true, false);
        assert_eq!((told(), tracker.is_unsynced()), ((nine, false, true), true), "it may lose what it has just copied");
        tracker.rewound(Some(&cursor(true)));
        assert_eq!((told(), tracker.is_unsynced()), ((nine, false, true), true), "reading it makes nothing durable");
        tracker.synced(nine);
        assert_eq!((told(), tracker.is_unsynced()), ((nine, true, true), false));
        commit(true, false);
        assert_eq!(told(), (nine, true, true), "whether that is lost or not, what is there is a state of it");
        commit(false, false);
        commit(true, true);
        assert_eq!(told(), (nine, true, true), "a group that is synced is durable with all before it");
        tracker.rewound(Some(&cursor(false)));
        tracker.rewound(Some(&cursor(true)));
        assert_eq!(told(), (nine, false, true), "somebody else has written there");
    }

    // Also before the relay has told anything, and once it says that it does not know.
    #[test]
    fn what_a_relay_lacks_itself_is_lacking_below_it() {
        let tracker = Tracker::new(&SlaveConfig::new("leaf"), &KeyRanges::all(), Some(&Cursor::at(position(5))));
        tracker.progress.send_modify(|progress| progress.connected = true);
        tracker.change(|facts| facts.above = Link::Relay(None));
        let now = |seconds: u64| Now { monotonic: Duration::from_secs(seconds), unix_ms: seconds * 1_000 };
        let told = |at: u64, head: u64, above: Option<Above>| {
            let source = SourceFacts { head: position(head), log_bytes: head * 10, time: Some(at * 1_000), above };
            tracker.contact(source, now(at));
            let (_, read_at) = tracker.read_at(now(at + 1));
            (read_at.lag, read_at.last_contact_ms)
        };
        let lag = |seqs, bytes, millis| Some(Lag { seqs, bytes, millis });
        assert_eq!(told(1, 5, None), (None, None));
        let above = |lag| Some(Above { lag, silence_ms: Some(500) });
        assert_eq!(told(2, 5, above(lag(0, 0, 0))), (lag(0, 0, 0), Some(1_500)));
        assert_eq!(told(3, 5, above(lag(4, 40, 400))), (lag(4, 40, 400), Some(1_500)));
        assert_eq!(told(4, 8, above(lag(4, 40, 400))), (lag(7, 120, 400), Some(1_500)), "and three of its own");
        assert_eq!(told(5, 8, above(None)), (None, Some(1_500)));
    }
}
