//! A synchronous store becomes a `ReplicaStore`.
//!
//! [`BlockingStore`] is what is left to implement; [`Threaded`] brings the rest: one writer thread, a few reader
//! threads, a bounded queue, panics caught, the checks that every store owes its callers, and outcomes that are decided
//! before the next call answers. No runtime is needed. Stores on files find [`create_directory`] and [`sync_directory`]
//! here: a file whose name is not on stable storage is lost with all that was synced in it; and [`Aside`], in which one at a
//! time makes a new one.

mod aside;
mod files;
mod forward;
mod gate;
mod store;
mod threaded;

pub use aside::Aside;
pub use files::{create_directory, sync_directory};
pub use store::BlockingStore;
pub use threaded::{Threaded, ThreadedOptions};

// What `store_on_threads` expands to names these, wherever it is used.
#[doc(hidden)]
pub use {async_trait::async_trait as __async_trait, bytes::Bytes as __Bytes, replikv_core as __core};
