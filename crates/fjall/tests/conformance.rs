//! fjall obeys every law.

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};
use replikv_fjall::FjallStore;

fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(FjallStore::open(dir.join("store"))?))
}

replikv_testkit::conformance_suite!(open, persistent);
