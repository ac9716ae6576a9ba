//! Records that are committed beside the commit task, in transactions that belong to the application.
//!
//! A store whose write transactions exclude each other, and can be opened by the application itself, may have its
//! records written in those. Two parties then move the head: the commit task, and recordings. Both build upon the head
//! that the store holds; what is kept here tells the commit task which heads are this master's own. Only the commit task
//! publishes.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use replikv_core::{Batch, Position, ReplicaStore, StoreError, Token, WriteSet};
use replikv_proto::LoneRecord;
use replikv_proto::layout::{Head, Stored};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::commit::Queued;
use super::{Inner, Master, WriteError};

/// How long whoever has committed a recording lets the commit task go first.
const TURN: Duration = Duration::from_millis(20);

impl<S: ReplicaStore> Master<S> {
    /// For backends: begins a record that will be committed in a write transaction of the application's, which must be
    /// open, must exclude every other writer of the store, and must stay on this thread. `stored_head` is what the
    /// transaction reads under [`Head::KEY`] of `Meta`. Applications use what their backend makes of this; for LMDB that
    /// is `replikv::lmdb::LmdbMaster`.
    ///
    /// Until the recording ends, this thread cannot write through the master: it would wait for itself.
    ///
    /// # Errors
    /// [`WriteError::Closed`]; [`WriteError::Fenced`] if that head is none of this master's; [`WriteError::NotDerived`] if the
    /// master derives.
    pub fn begin_recording(&self, stored_head: Option<&[u8]>) -> Result<Recording<S>, WriteError> {
        let missing = || StoreError::Corrupt { what: format!("{} is missing", Head::WHAT) };
        let before = Head::from_bytes(stored_head.ok_or_else(missing)?)?;
        self.may_record()?;
        if let Some((derive, _)) = self.inner.config.derives.iter().next() {
            let reason = "recorders commit beside the master, where nothing is derived".into();
            return Err(WriteError::NotDerived { name: derive.name().to_owned(), reason });
        }
        if !self.inner.recordings.lock().is_own(&before.position) {
            return Err(WriteError::Fenced);
        }
        Ok(Recording { master: self.clone(), before, mark: Mark::new(&self.inner) })
    }

    fn may_record(&self) -> Result<(), WriteError> {
        if self.inner.closing.is_cancelled() {
            return Err(WriteError::Closed);
        }
        if self.inner.recordings.lock().fenced { Err(WriteError::Fenced) } else { Ok(()) }
    }

    /// True if a recording of this master is open on this thread.
    pub(super) fn records_here(&self) -> bool {
        let inner = Arc::as_ptr(&self.inner).addr();
        OPEN.with_borrow(|open| open.contains(&inner))
    }
}

/// A record that is being made, in a transaction of the application's. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Recording<S> {
    master: Master<S>,
    before: Head,
    mark: Mark,
}

impl<S: ReplicaStore> Recording<S> {
    /// Makes the record of `batch`, whose operations are in the transaction already. What [`Sealed::writes`] returns
    /// must go into the same transaction before it is committed. `synced` says that a commit is on stable storage.
    ///
    /// # Errors
    /// As [`Master::write`]. Nothing is recorded then: the transaction must be aborted.
    pub fn seal(self, batch: Batch, synced: bool) -> Result<Sealed<S>, WriteError> {
        let Self { master, before, mark } = self;
        let inner = &master.inner;
        master.may_record()?;
        inner.unclaimed(&batch)?;
        let lone = LoneRecord::new(&inner.committer, before, batch, inner.clock.now(), inner.uptime_ms())?;
        let (token, writes) = match lone {
            None => (before.position.into(), None),
            Some(lone) => {
                let (position, writes) = (lone.head.position, lone.writes.clone());
                let mut recordings = inner.recordings.lock();
                recordings.pending.push(Pending { lone, synced, released: false });
                // Before anybody can read it: a page that is read from now on may show it.
                inner.change_view(|view| view.handed = recordings.handed(view.handed));
                (position.into(), Some((position, writes)))
            }
        };
        Ok(Sealed { open: Some((master, mark)), token, writes })
    }
}

/// A record that goes with its transaction. Keep it until that is committed or aborted: the record is published soon
/// after this is gone.
#[derive(Debug)]
pub struct Sealed<S> {
    open: Option<(Master<S>, Mark)>,
    token: Token,
    writes: Option<(Position, WriteSet)>,
}

impl<S> Sealed<S> {
    /// What must go into the transaction; `None` if there was nothing to record.
    pub fn writes(&self) -> Option<&WriteSet> {
        self.writes.as_ref().map(|(_, writes)| writes)
    }

    /// The write, once the transaction is committed; of nothing, the last one before it.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The transaction has ended, committed or not. Lets writers that were held up by it go first, for a moment.
    pub fn ended(mut self) {
        if let Some((master, mark)) = self.open.take() {
            drop(mark);
            self.tell(&master);
            master.inner.recordings.give_way();
        }
    }

    fn tell(&self, master: &Master<S>) {
        if let Some((position, _)) = &self.writes {
            master.inner.recordings.lock().release(position);
            // A master that has ended leaves the record to the next one.
            drop(master.intents.send(Queued::Recorded));
        }
    }
}

impl<S> Drop for Sealed<S> {
    fn drop(&mut self) {
        if let Some((master, mark)) = self.open.take() {
            drop(mark);
            self.tell(&master);
        }
    }
}

/// A thread must not wait for the lock that its own transaction holds.
#[derive(Debug)]
struct Mark {
    inner: usize,
    /// It stays on its thread.
    _thread: PhantomData<*const ()>,
}

thread_local! {
    static OPEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

impl Mark {
    fn new<S>(inner: &Arc<Inner<S>>) -> Self {
        let inner = Arc::as_ptr(inner).addr();
        OPEN.with_borrow_mut(|open| open.push(inner));
        Self { inner, _thread: PhantomData }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        OPEN.with_borrow_mut(|open| {
            if let Some(index) = open.iter().rposition(|inner| *inner == self.inner) {
                open.swap_remove(index);
            }
        });
    }
}

/// Which heads of the store are this master's own.
#[derive(Debug)]
pub(super) struct Recordings {
    state: Mutex<Own>,
    turn: Condvar,
}

#[derive(Debug)]
pub(super) struct Own {
    /// What the commit task knows of.
    committed: Position,
    /// What the commit task has handed to the store.
    in_flight: Option<Position>,
    /// What was put into transactions, in order, and has not been found in the store yet.
    pending: Vec<Pending>,
    /// A group waits for the store.
    waiting: bool,
    fenced: bool,
}

/// A record that is in a transaction, committed or not.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) lone: LoneRecord,
    /// Whether it is on stable storage, if it is committed.
    pub(super) synced: bool,
    /// Nobody tells about it any more.
    released: bool,
}

impl Recordings {
    pub(super) fn new(committed: Position) -> Self {
        let state = Own { committed, in_flight: None, pending: Vec::new(), waiting: false, fenced: false };
        Self { state: Mutex::new(state), turn: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Own> {
        // Nothing that runs under this lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A group goes to the store; recordings that have been committed let it go first.
    pub(super) fn hand(&self, position: Position) {
        let mut own = self.lock();
        (own.in_flight, own.waiting) = (Some(position), true);
    }

    /// Somebody reads between two groups; recordings that have been committed let it go first.
    pub(super) fn wait_for_me(&self) {
        self.lock().waiting = true;
    }

    /// The group that was handed over is decided.
    pub(super) fn decided(&self) {
        self.lock().waiting = false;
        self.turn.notify_all();
    }

    // On a thread that everything else runs on, waiting would only hold it up.
    fn give_way(&self) {
        if Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread) {
            return;
        }
        let until = Instant::now() + TURN;
        let mut own = self.lock();
        while own.waiting {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            own = self.turn.wait_timeout(own, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Own {
    /// The store holds `committed`, by the commit task's own doing.
    pub(super) fn committed(&mut self, committed: Position) {
        (self.committed, self.in_flight) = (committed, None);
        self.pending.retain(|pending| pending.lone.entry.position.seq > committed.seq);
    }

    /// The store was opened anew, and holds `committed` by the commit task's own doing. What was recorded on top of it
    /// stays pending.
    pub(super) fn went_back(&mut self, committed: Position) {
        (self.committed, self.in_flight) = (committed, None);
    }

    /// Another master writes to the store: nobody records any more.
    pub(super) fn fence(&mut self) {
        self.fenced = true;
    }

    /// The last record that a page may show, if `handed` is the last one of the commit task's.
    pub(super) fn handed(&self, handed: Position) -> Position {
        let pending = self.pending.iter().map(|pending| pending.lone.entry.position);
        pending.chain([handed]).max_by_key(|position| position.seq).unwrap_or(handed)
    }

    /// The position below all records that were put into transactions, on the way down from `head`.
    pub(super) fn base_of(&self, head: Position) -> Position {
        let mut at = head;
        while let Some(pending) = self.find(&at) {
            at = pending.lone.before;
        }
        at
    }

    /// Takes the records that lead from `base` to `head`, in order, and forgets what they have left behind. Empty if
    /// none do.
    pub(super) fn take_chain(&mut self, base: Position, head: Position) -> Vec<Pending> {
        if base == head || self.base_of(head) != base {
            return Vec::new();
        }
        let (mut chain, mut at) = (Vec::new(), head);
        while at != base {
            let Some(index) = self.pending.iter().position(|pending| pending.lone.entry.position == at) else { break };
            let pending = self.pending.remove(index);
            at = pending.lone.before;
            chain.push(pending);
        }
        chain.reverse();
        self.committed(head);
        chain
    }

    /// How many are left that nobody tells about any more.
    pub(super) fn released(&self) -> Vec<Position> {
        let released = self.pending.iter().filter(|pending| pending.released);
        released.map(|pending| pending.lone.entry.position).collect()
    }

    /// These were not committed.
    pub(super) fn forget(&mut self, aborted: &[Position]) {
        self.pending.retain(|pending| !aborted.contains(&pending.lone.entry.position));
    }

    fn release(&mut self, position: &Position) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.lone.entry.position == *position) {
            pending.released = true;
        }
    }

    fn is_own(&self, position: &Position) -> bool {
        self.committed == *position || self.in_flight == Some(*position) || self.find(position).is_some()
    }

    fn find(&self, position: &Position) -> Option<&Pending> {
        self.pending.iter().find(|pending| pending.lone.entry.position == *position)
    }
}
