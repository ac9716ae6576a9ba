//! LMDB, through heed, as a replikv store.
//!
//! The keyspaces are named databases of one environment, and the user's data is kept exactly as written: any LMDB tool,
//! in any language, reads it in place, also while a master or a slave is running.
//!
//! An application that has an environment already keeps it: [`LmdbStore::from_env`] takes it as it is, and
//! [`LmdbOptions::table`] makes its own named databases part of what is replicated.
//!
//! # heed
//! heed's types are part of this crate's interface: [`heed`] is re-exported, and is version 0.23. Another minor version
//! of heed comes only with another minor version of this crate.

mod adopt;
mod book;
mod databases;
mod entries;
mod env;
mod layout;
mod options;
mod order;
mod scribe;
mod snapshot;
mod store;
mod table;
mod write;

pub use adopt::Adopt;
pub use entries::Entries;
pub use heed;
pub use options::{LmdbOptions, LmdbOrder, LmdbSync};
pub use scribe::{Scribe, ScribeError};
pub use snapshot::Snapshot;
pub use store::LmdbStore;
