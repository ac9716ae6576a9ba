//! The memory store obeys every law, also behind two layers of `Arc<dyn ReplicaStore>`.

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};
use replikv_memory::MemoryStore;

fn open(_dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(MemoryStore::new()))
}

replikv_testkit::conformance_suite!(open, volatile);

mod behind_a_trait_object {
    use super::*;

    fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        let inner: Arc<dyn ReplicaStore> = super::open(dir)?;
        Ok(Arc::new(inner))
    }

    replikv_testkit::conformance_suite!(open, volatile);
}
