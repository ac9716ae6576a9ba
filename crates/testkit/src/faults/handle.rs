//! The handle that switches faults, and counts calls.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use replikv_core::{Keyspace, StoreError};

use super::gate::{Gate, Held};

/// What goes wrong with one `apply`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ApplyFault {
    /// It fails with this error, and changes nothing. Choose one whose outcome is `Unchanged`.
    Refuse(StoreError),
    /// It is applied, and then fails with an unknown outcome: the store refuses everything until it is reopened.
    UnknownButApplied,
    /// It is not applied, and fails with an unknown outcome: the store refuses everything until it is reopened.
    UnknownAndAbsent,
    /// As `UnknownAndAbsent`, and what was written since the last sync is gone as well when the store is reopened.
    UnknownAndUnsyncedLost,
}

/// What a failed sync costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Nothing: what was written is there when the store is reopened.
    Nothing,
    /// Everything since the last sync: when the store is reopened, it is gone.
    Unsynced,
}

/// How often a store was called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// Applies that got their turn, whatever came of them.
    pub applies: u64,
    /// The largest write set among them, in bytes of operations.
    pub largest_apply: usize,
    /// Reads of single keys.
    pub gets: u64,
    /// Reads of pages.
    pub scans: u64,
    /// Syncs.
    pub syncs: u64,
    /// Reopenings, of a store that was well too.
    pub reopens: u64,
    /// Closings.
    pub closes: u64,
}

/// Switches the faults of a [`FaultStore`](super::FaultStore), and of what is left of it after power loss.
///
/// Faults are met in the order in which they were asked for, one by each call; afterwards the store is well again.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    applies: VecDeque<ApplyRule>,
    syncs: VecDeque<SyncRule>,
    reads: BTreeMap<Keyspace, VecDeque<ReadRule>>,
    refused_reopens: u32,
    calls: Calls,
}

#[derive(Debug, Clone, Default)]
pub(super) struct ApplyRule {
    pub(super) hold_before: Option<Gate>,
    pub(super) fault: Option<ApplyFault>,
    pub(super) hold_after: Option<Gate>,
}

#[derive(Debug, Clone)]
pub(super) enum SyncRule {
    Fail(Lost),
    Hold(Gate),
}

#[derive(Debug, Clone)]
pub(super) enum ReadRule {
    Fail(StoreError),
    Hold(Gate),
}

impl Faults {
    /// The next apply goes wrong; if faults are waiting already, the one after those.
    pub fn next_apply(&self, fault: ApplyFault) {
        self.apply_after(0, fault);
    }

    /// `times` applies go well before what is asked for next.
    pub fn pass_applies(&self, times: usize) {
        self.state().applies.extend(std::iter::repeat_n(ApplyRule::default(), times));
    }

    /// `skip` applies go well, then one goes wrong.
    pub fn apply_after(&self, skip: usize, fault: ApplyFault) {
        self.pass_applies(skip);
        self.state().applies.push_back(ApplyRule { fault: Some(fault), ..ApplyRule::default() });
    }

    /// The next apply hangs before anybody can see it. Other writers wait behind it, readers do not.
    pub fn hold_apply(&self) -> Held {
        let (gate, held) = Gate::new();
        self.state().applies.push_back(ApplyRule { hold_before: Some(gate), ..ApplyRule::default() });
        held
    }

    /// The next apply hangs where it is visible, and neither durable nor answered.
    pub fn hold_apply_visible(&self) -> Held {
        let (gate, held) = Gate::new();
        self.state().applies.push_back(ApplyRule { hold_after: Some(gate), ..ApplyRule::default() });
        held
    }

    /// The next sync fails as `Fatal`: the store refuses everything until it is reopened.
    pub fn fail_sync(&self, lost: Lost) {
        self.state().syncs.push_back(SyncRule::Fail(lost));
    }

    /// The next sync hangs.
    pub fn hold_sync(&self) -> Held {
        let (gate, held) = Gate::new();
        self.state().syncs.push_back(SyncRule::Hold(gate));
        held
    }

    /// A store that is broken refuses to be reopened so many times. [`u32::MAX`] stands for ever, or until it is
    /// called again.
    pub fn refuse_reopens(&self, times: u32) {
        self.state().refused_reopens = times;
    }

    /// The next `times` reads of `keyspace` fail with `error`: keys and pages alike.
    pub fn fail_reads(&self, keyspace: Keyspace, times: usize, error: &StoreError) {
        let rules = std::iter::repeat_n(ReadRule::Fail(error.clone()), times);
        self.state().reads.entry(keyspace).or_default().extend(rules);
    }

    /// The next read of `keyspace` hangs: it has read, and does not answer.
    pub fn hold_read(&self, keyspace: Keyspace) -> Held {
        let (gate, held) = Gate::new();
        self.state().reads.entry(keyspace).or_default().push_back(ReadRule::Hold(gate));
        held
    }

    /// Forgets every fault that no call has met yet.
    pub fn clear(&self) {
        let mut state = self.state();
        let calls = state.calls;
        *state = State { calls, ..State::default() };
    }

    /// How often the store was called so far.
    pub fn calls(&self) -> Calls {
        self.state().calls
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Calls)) {
        count(&mut self.state().calls);
    }

    pub(super) fn take_apply(&self) -> ApplyRule {
        self.state().applies.pop_front().unwrap_or_default()
    }

    pub(super) fn take_sync(&self) -> Option<SyncRule> {
        self.state().syncs.pop_front()
    }

    pub(super) fn take_read(&self, keyspace: Keyspace) -> Option<ReadRule> {
        self.state().reads.get_mut(&keyspace)?.pop_front()
    }

    pub(super) fn takes_reopen(&self) -> bool {
        let mut state = self.state();
        let refused = state.refused_reopens > 0;
        if refused && state.refused_reopens != u32::MAX {
            state.refused_reopens -= 1;
        }
        !refused
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under this lock can panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
