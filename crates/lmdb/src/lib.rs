//! LMDB, through heed, as a replikv store.
//!
//! The keyspaces are named databases of one environment, and the user's data is kept exactly as written: any LMDB tool,
//! in any language, reads it in place, also while a master or a slave is running.

mod env;
mod options;
mod store;
mod write;

pub use options::{LmdbOptions, LmdbSync};
pub use store::LmdbStore;
