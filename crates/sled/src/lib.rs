//! sled 0.34 as a replikv store.
//!
//! An application that has a database already keeps it: [`SledStore::from_db`] takes it as it is, and
//! [`SledOptions::tree`] makes its own trees part of what is replicated.
//!
//! # sled
//! sled's types are part of this crate's interface: [`sled`] is re-exported, and is version 0.34. Another minor version
//! of sled comes only with another minor version of this crate.

mod blocking;
mod database;
mod layout;
mod names;
mod options;
mod store;
mod trees;

pub use options::SledOptions;
pub use sled;
pub use store::SledStore;
