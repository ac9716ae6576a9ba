//! A store without faults obeys every law through a `FaultStore`, also after power was lost.

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};
use replikv_memory::MemoryStore;
use replikv_testkit::FaultStore;

fn open(_dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(FaultStore::new(MemoryStore::new())))
}

replikv_testkit::conformance_suite!(open, volatile);
