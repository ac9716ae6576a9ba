//! redb 4 as a replikv store.
//!
//! # redb
//! redb is version 4 here, and no part of this crate's interface: a file that it wrote can be read by whatever reads
//! redb's format 3. What a master or slave holds is in the table `data`, keys and values as they were written; what is
//! replikv's own is in `replikv-log` and `replikv-meta`.

mod blocking;
mod error;
mod file;
mod options;
mod store;

pub use options::RedbOptions;
pub use store::RedbStore;
