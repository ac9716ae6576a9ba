//! The recorder.

use std::borrow::Borrow;
use std::ops::RangeBounds;

use replikv_core::{Keyspace, ReplicaStore, Token};
use replikv_lmdb::heed::{BytesEncode, Database, RoTxn, RwTxn};
use replikv_lmdb::{LmdbStore, Scribe};
use replikv_node::{Master, Recording, Sealed};
use replikv_proto::layout::Head;

use super::RecorderError;

/// What a master of an LMDB store can do beyond others: record the application's own transactions.
///
/// Implemented for masters of an [`LmdbStore`], and of an `Arc` of one.
pub trait LmdbMaster {
    /// The store of the master.
    type Store: ReplicaStore;

    /// Begins to record `wtxn`, a write transaction of the environment that the store was made of.
    ///
    /// Until the recorder and what [`finish`](Recorder::finish) returns are gone, writing through the master on this
    /// thread fails with `RecorderOpen` instead of waiting for a lock that the thread holds itself; other threads wait
    /// for the transaction as they always do in LMDB. In async code, do not await while it is open: the transaction
    /// holds up every writer.
    ///
    /// # Errors
    /// [`RecorderError::Master`] if the master was shut down or fenced; [`RecorderError::Store`] if the store has opened
    /// its environment itself.
    ///
    /// # Panics
    /// As heed does, if the transaction is of another environment.
    fn begin<'t, 'e>(&self, wtxn: &'t mut RwTxn<'e>) -> Result<Recorder<'t, 'e, Self::Store>, RecorderError>;
}

impl<S: ReplicaStore + Borrow<LmdbStore>> LmdbMaster for Master<S> {
    type Store = S;

    fn begin<'t, 'e>(&self, wtxn: &'t mut RwTxn<'e>) -> Result<Recorder<'t, 'e, S>, RecorderError> {
        let store: &LmdbStore = self.store().borrow();
        let scribe = store.scribe(self.limits())?;
        let recording = self.begin_recording(scribe.read(wtxn, Keyspace::Meta, Head::KEY)?)?;
        Ok(Recorder { recording, scribe, wtxn })
    }
}

/// Writes to the tables of a store in a transaction of the application's, and notes what it writes.
///
/// Reads go to the transaction, [`txn`](Self::txn). Dropped without [`finish`](Self::finish), it records nothing:
/// abort the transaction then, or its changes bypass the log.
#[must_use = "nothing is recorded until it is finished"]
pub struct Recorder<'t, 'e, S = LmdbStore> {
    recording: Recording<S>,
    scribe: Scribe,
    wtxn: &'t mut RwTxn<'e>,
}

impl<'t, 'e, S: ReplicaStore> Recorder<'t, 'e, S> {
    /// Sets `key` to `value` in one of the application's databases, as heed's `put` does.
    ///
    /// # Errors
    /// [`RecorderError`]. `KeyTooLong` counts the prefix of the table as well.
    pub fn put<'a, KC, DC, C, CDUP>(
        &mut self,
        database: &Database<'_, KC, DC, C, CDUP>,
        key: &'a KC::EItem,
        value: &'a DC::EItem,
    ) -> Result<(), RecorderError>
    where
        KC: BytesEncode<'a>,
        DC: BytesEncode<'a>,
    {
        Ok(self.scribe.put(self.wtxn, database, key, value)?)
    }

    /// Removes `key` from one of the application's databases, as heed's `delete` does. False if it was not there.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub fn delete<'a, KC, DC, C, CDUP>(
        &mut self,
        database: &Database<'_, KC, DC, C, CDUP>,
        key: &'a KC::EItem,
    ) -> Result<bool, RecorderError>
    where
        KC: BytesEncode<'a>,
    {
        Ok(self.scribe.delete(self.wtxn, database, key)?)
    }

    /// Removes every key of `range` from one of the application's databases, as heed's `delete_range` does. False if
    /// there was none.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub fn delete_range<'a, KC, DC, C, CDUP, R>(
        &mut self,
        database: &Database<'_, KC, DC, C, CDUP>,
        range: &'a R,
    ) -> Result<bool, RecorderError>
    where
        KC: BytesEncode<'a>,
        R: RangeBounds<KC::EItem>,
    {
        Ok(self.scribe.delete_range(self.wtxn, database, range)?)
    }

    /// Attaches a note to the record, as [`Batch::note`](crate::Batch::note) does.
    pub fn note(&mut self, note: impl AsRef<[u8]>) {
        self.scribe.note(note);
    }

    /// The transaction, for reading: it shows what was written so far.
    pub fn txn(&self) -> &RoTxn<'e> {
        self.wtxn
    }

    /// The transaction, for databases that are not replicated. What is written to a table with it reaches no slave.
    pub fn txn_mut(&mut self) -> &mut RwTxn<'e> {
        self.wtxn
    }

    /// Puts the record into the transaction, which is committed next: best with [`Recorded::commit`].
    ///
    /// If nothing was written and there is no note, there is no record.
    ///
    /// # Errors
    /// [`RecorderError`]: nothing is recorded, and the transaction must be aborted.
    pub fn finish(self) -> Result<Recorded<S>, RecorderError> {
        let Self { recording, mut scribe, wtxn } = self;
        let sealed = recording.seal(scribe.take(), scribe.commits_are_synced())?;
        if let Some(writes) = sealed.writes() {
            scribe.write(wtxn, writes)?;
        }
        Ok(Recorded { token: sealed.token(), sealed: Some(sealed), scribe, txn_id: wtxn.id() })
    }
}

impl<S> std::fmt::Debug for Recorder<'_, '_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("txn", &self.wtxn.id()).field("scribe", &self.scribe).finish_non_exhaustive()
    }
}

/// A record that is in a transaction, and goes with it.
///
/// [`commit`](Self::commit) commits both. An application that must commit by other means keeps this until it has; the
/// record is published soon after this is dropped. If the transaction is aborted, drop this, and nothing has happened.
#[derive(Debug)]
#[must_use = "the transaction is still to be committed"]
pub struct Recorded<S = LmdbStore> {
    token: Token,
    sealed: Option<Sealed<S>>,
    scribe: Scribe,
    txn_id: usize,
}

impl<S> Recorded<S> {
    /// Commits the transaction, and with it the record, which is published. Returns the token of the write: what waits
    /// for it elsewhere waits until it is there.
    ///
    /// If a batch of the master's waits for the store, this waits a moment so that it gets its turn.
    ///
    /// # Errors
    /// As heed's `commit`: the transaction is not committed, or, if the disk failed, perhaps not.
    pub fn commit(self, wtxn: RwTxn<'_>) -> Result<Token, RecorderError> {
        wtxn.commit()?;
        Ok(self.token)
    }

    /// The write, once the transaction is committed.
    pub fn token(&self) -> Token {
        self.token
    }
}

impl<S> Drop for Recorded<S> {
    fn drop(&mut self) {
        if let Some(sealed) = self.sealed.take()
            && self.scribe.is_committed(self.txn_id)
        {
            sealed.ended();
        }
    }
}
