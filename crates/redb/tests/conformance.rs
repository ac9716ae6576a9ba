//! redb obeys every law.

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};
use replikv_redb::RedbStore;

fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(RedbStore::open(dir.join("store.redb"))?))
}

replikv_testkit::conformance_suite!(open, persistent);
