//! sled obeys every law.

mod support;
mod trees_conformance;

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};
use replikv_sled::SledStore;

fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(SledStore::open(dir)?))
}

replikv_testkit::conformance_suite!(open, persistent);
