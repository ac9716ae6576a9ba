//! LMDB applications as they are: records written in the application's own transactions.
//!
//! An application that was written against heed keeps its environment, its typed databases and its write transactions.
//! [`LmdbStore::from_env`] takes the environment, [`LmdbOptions::table`] names the databases that are to be replicated,
//! and [`LmdbMaster::begin`] makes a [`Recorder`] of a write transaction: what goes through it is in the database and in
//! the log, with one commit.
//!
//! ```
//! use replikv::heed::types::{Bytes, Str};
//! use replikv::heed::{CommitOrAbort, EnvOpenOptions};
//! use replikv::lmdb::LmdbMaster;
//! use replikv::{LmdbOptions, LmdbStore, Master, MasterConfig, Subspace};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path();
//! // The application, as it was.
//! let env = unsafe { EnvOpenOptions::new().max_dbs(10).map_size(1 << 30).open(path)? };
//! let wtxn = env.write_txn()?;
//! let users = env.create_databases_and_commit(wtxn, |opener, wtxn| {
//!     opener.create_database::<Str, Bytes>(wtxn, Some("users")).map(CommitOrAbort::<_, ()>::Commit)
//! })?.unwrap_commit();
//!
//! // It becomes a master.
//! let store = LmdbStore::from_env(env.clone(), LmdbOptions::default().table(Subspace::named("users"), "users"))?;
//! let master = Master::open(store, MasterConfig::default()).await?;
//!
//! // Its transactions are recorded.
//! let mut wtxn = env.write_txn()?;
//! let mut recorder = master.begin(&mut wtxn)?;
//! recorder.put(&users, "alice", b"...")?;
//! let token = recorder.finish()?.commit(wtxn)?;
//! # let _ = token;
//! # master.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//! - The record and what it records commit together or not at all, also when the process is killed.
//! - Records are in the order of their commits, whoever made them: recorders on any thread, [`Master::write`], or both.
//! - Nothing leaves this master before it is committed, and as durable as the master promises.
//!
//! # What is not
//! Changes that bypass the recorder reach no slave. They are counted: see
//! [`MasterStatus::foreign_commits`](crate::MasterStatus::foreign_commits).

mod error;
mod recorder;

pub use self::error::RecorderError;
pub use self::recorder::{LmdbMaster, Recorded, Recorder};
pub use replikv_lmdb::{Adopt, Entries, LmdbOptions, LmdbOrder, LmdbStore, LmdbSync, Scribe, ScribeError, Snapshot};

use crate::{Master, MasterConfig, OpenError};

/// Makes an application's environment a master with default settings: each of `databases` is replicated, in the
/// [`Subspace::named`](crate::Subspace::named) as the database is. Must be called within a tokio runtime.
///
/// # Errors
/// As [`LmdbStore::from_env`] and [`Master::open`].
pub async fn adopt<N: Into<String>>(
    env: &(impl Adopt + Clone),
    databases: impl IntoIterator<Item = N>,
) -> Result<Master<LmdbStore>, OpenError> {
    let store = LmdbStore::from_env(env.clone(), LmdbOptions::default().tables(databases))?;
    Master::open(store, MasterConfig::default()).await
}
