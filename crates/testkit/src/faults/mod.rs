//! [`FaultStore`]: a store whose faults are switched by a handle.
//!
//! It stands around any other store. While no fault is asked for it obeys every law that the inner store obeys. The
//! faults are those of disks and writers: a write that is refused, one whose outcome nobody knows, one that hangs, a
//! sync that fails, reads that fail or hang, a bit that rots, and power loss.
//!
//! ```
//! # use replikv_core::{Durability, Keyspace, ReplicaStore, StoreError, WriteSet};
//! # use replikv_memory::MemoryStore;
//! # use replikv_testkit::{ApplyFault, FaultStore};
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let store = FaultStore::new(MemoryStore::new());
//! let writes = WriteSet::builder().put(Keyspace::Data, "key", "value")?.build();
//! store.faults().next_apply(ApplyFault::Refuse(StoreError::StoreFull { hint: "make room".into() }));
//! assert!(store.apply(writes.clone(), Durability::Synced).await.is_err());
//! assert!(store.apply(writes, Durability::Buffered).await.is_ok());
//! let store = store.power_loss().await?;
//! assert_eq!(store.get(Keyspace::Data, b"key").await?, None, "what was not synced is gone");
//! # Ok::<(), StoreError>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod gate;
mod handle;
mod medium;
mod store;

pub use gate::Held;
pub use handle::{ApplyFault, Calls, Faults, Lost};
pub use store::FaultStore;
