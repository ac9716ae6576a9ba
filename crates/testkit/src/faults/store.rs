//! The store.

use std::fmt;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Durability, KeyRange, Keyspace, Page, ReplicaStore, ScanOptions, StoreError, StoreLimits, StoreStats, WriteSet,
};
use tokio::sync::{Mutex, watch};

use super::gate::Gate;
use super::handle::{ApplyFault, ReadRule, SyncRule};
use super::medium::Medium;
use super::{Faults, Lost};

/// A store around another one, with [`Faults`] that are switched by a handle.
///
/// Clones are one store. It knows what is on stable storage and what is only readable: [`power_loss`](Self::power_loss)
/// takes the difference away. What the inner store held before the first write through this one counts as synced.
pub struct FaultStore<S> {
    shared: Arc<Shared<S>>,
    machine: Arc<Machine>,
}

/// What power loss does not touch.
struct Shared<S> {
    inner: S,
    faults: Faults,
    /// One write at a time, as in a store with a writer thread; whoever syncs or reopens waits for it.
    medium: Mutex<Medium>,
}

/// What does not outlive a power loss.
#[derive(Debug)]
struct Machine {
    power: watch::Sender<Power>,
    broken: SyncMutex<Option<&'static str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Out,
}

impl<S: ReplicaStore> FaultStore<S> {
    /// A store without faults around `inner`.
    pub fn new(inner: S) -> Self {
        let shared = Shared { inner, faults: Faults::default(), medium: Mutex::default() };
        Self { shared: Arc::new(shared), machine: Machine::running() }
    }

    /// The handle that switches its faults.
    pub fn faults(&self) -> Faults {
        self.shared.faults.clone()
    }

    /// The store inside. What is written to it directly is no part of the simulation.
    pub fn inner(&self) -> &S {
        &self.shared.inner
    }

    /// Takes the power away, and gives it back: everything since the last sync is lost, whatever is under way ends.
    ///
    /// Every handle from before refuses everything from then on; the one that is returned is what a process finds that
    /// starts afterwards. Faults that no call has met yet are still to come.
    ///
    /// # Errors
    /// Those of the inner store, which must be open.
    pub async fn power_loss(&self) -> Result<Self, StoreError> {
        self.machine.power.send_replace(Power::Out);
        let mut medium = self.shared.medium.lock().await;
        medium.restore(&self.shared.inner).await?;
        drop(medium);
        Ok(Self { shared: self.shared.clone(), machine: Machine::running() })
    }

    /// Changes a stored value behind everybody's back, as a bad disk does. False if `key` is not there.
    ///
    /// # Errors
    /// Those of the inner store.
    pub async fn damage(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        change: impl FnOnce(&mut Vec<u8>) + Send,
    ) -> Result<bool, StoreError> {
        let mut medium = self.shared.medium.lock().await;
        let Some(value) = self.shared.inner.get(keyspace, key).await? else { return Ok(false) };
        let mut value = value.to_vec();
        change(&mut value);
        let writes = WriteSet::builder().put(keyspace, key, &value)?.build();
        self.shared.inner.apply(writes, Durability::Synced).await?;
        medium.rot(keyspace, key, &value);
        Ok(true)
    }

    // Waits at a gate, unless the power goes out.
    async fn pass(&self, gate: Option<Gate>) -> Result<(), StoreError> {
        if let Some(gate) = gate {
            let mut power = self.machine.power.subscribe();
            tokio::select! {
                biased;
                _ = power.wait_for(|power| *power == Power::Out) => {}
                () = gate.pass() => {}
            }
        }
        self.machine.check()
    }

    async fn read<R>(
        &self,
        keyspace: Keyspace,
        read: impl Future<Output = Result<R, StoreError>>,
    ) -> Result<R, StoreError> {
        self.machine.check()?;
        match self.shared.faults.take_read(keyspace) {
            None => read.await,
            Some(ReadRule::Fail(error)) => Err(error),
            Some(ReadRule::Hold(gate)) => {
                let result = read.await;
                self.pass(Some(gate)).await?;
                result
            }
        }
    }
}

impl Machine {
    fn running() -> Arc<Self> {
        Arc::new(Self { power: watch::Sender::new(Power::On), broken: SyncMutex::new(None) })
    }

    fn check(&self) -> Result<(), StoreError> {
        match *self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            _ if *self.power.borrow() == Power::Out => Err(StoreError::Fatal { reason: "the power went out".into() }),
            Some(reason) => Err(StoreError::Fatal { reason: reason.into() }),
            None => Ok(()),
        }
    }

    fn set_broken(&self, reason: Option<&'static str>) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn is_broken(&self) -> bool {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

#[async_trait]
impl<S: ReplicaStore> ReplicaStore for FaultStore<S> {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        let Shared { inner, faults, medium } = &*self.shared;
        let mut medium = medium.lock().await;
        self.machine.check()?;
        faults.count(|calls| {
            calls.applies += 1;
            calls.largest_apply = calls.largest_apply.max(writes.byte_len());
        });
        let rule = faults.take_apply();
        self.pass(rule.hold_before).await?;
        match rule.fault {
            Some(ApplyFault::Refuse(error)) => return Err(error),
            Some(ApplyFault::UnknownAndAbsent) => return Err(self.unknown()),
            Some(ApplyFault::UnknownAndUnsyncedLost) => {
                medium.loses = true;
                return Err(self.unknown());
            }
            Some(ApplyFault::UnknownButApplied) | None => {}
        }
        medium.begin(inner).await?;
        match inner.apply(writes.clone(), durability).await {
            Ok(()) => medium.decided(Some(writes)),
            Err(error) => {
                if error.outcome() == replikv_core::Outcome::Unchanged {
                    medium.decided(None);
                }
                return Err(error);
            }
        }
        if rule.fault.is_some() {
            return Err(self.unknown());
        }
        self.pass(rule.hold_after).await?;
        if durability == Durability::Synced { medium.synced(inner).await } else { Ok(()) }
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.shared.faults.count(|calls| calls.gets += 1);
        self.read(keyspace, self.shared.inner.get(keyspace, key)).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.shared.faults.count(|calls| calls.scans += 1);
        self.read(keyspace, self.shared.inner.scan(keyspace, range, options)).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let Shared { inner, faults, medium } = &*self.shared;
        let mut medium = medium.lock().await;
        self.machine.check()?;
        faults.count(|calls| calls.syncs += 1);
        match faults.take_sync() {
            None => {}
            Some(SyncRule::Hold(gate)) => self.pass(Some(gate)).await?,
            Some(SyncRule::Fail(lost)) => {
                medium.loses |= lost == Lost::Unsynced;
                self.machine.set_broken(Some("a sync failed"));
                return self.machine.check();
            }
        }
        inner.sync().await?;
        medium.synced(inner).await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        let Shared { inner, faults, medium } = &*self.shared;
        let mut medium = medium.lock().await;
        faults.count(|calls| calls.reopens += 1);
        if *self.machine.power.borrow() == Power::Out {
            return self.machine.check();
        }
        if self.machine.is_broken() {
            if !faults.takes_reopen() {
                return Err(StoreError::backend("the store refuses to be reopened"));
            }
            if medium.loses {
                medium.restore(inner).await?;
            }
        }
        inner.reopen().await?;
        self.machine.set_broken(None);
        Ok(())
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shared.faults.count(|calls| calls.closes += 1);
        // Whoever lived through a power loss has nothing left to close.
        if *self.machine.power.borrow() == Power::Out {
            return Ok(());
        }
        let Shared { inner, medium, .. } = &*self.shared;
        let mut medium = medium.lock().await;
        // Closing syncs, unless there is nobody who could: a broken store, or one that is closed already.
        if !self.machine.is_broken() {
            match medium.synced(inner).await {
                Ok(()) | Err(StoreError::Closed) => {}
                Err(error) => return Err(error),
            }
        }
        inner.close().await
    }

    fn limits(&self) -> StoreLimits {
        self.shared.inner.limits()
    }

    fn preferred_write_set(&self) -> usize {
        self.shared.inner.preferred_write_set()
    }

    fn preferred_operations(&self) -> usize {
        self.shared.inner.preferred_operations()
    }

    fn stats(&self) -> StoreStats {
        self.shared.inner.stats()
    }
}

impl<S> FaultStore<S> {
    fn unknown(&self) -> StoreError {
        self.machine.set_broken(Some("the outcome of a write is unknown"));
        StoreError::backend_unknown("the writer does not answer")
    }
}

impl<S> Clone for FaultStore<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), machine: self.machine.clone() }
    }
}

impl<S> fmt::Debug for FaultStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore").field("machine", &self.machine).finish_non_exhaustive()
    }
}
