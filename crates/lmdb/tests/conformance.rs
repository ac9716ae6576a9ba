//! LMDB obeys every law.

mod tables_conformance;

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};
use replikv_lmdb::{LmdbOptions, LmdbStore};

fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(LmdbStore::open(dir, LmdbOptions::default())?))
}

replikv_testkit::conformance_suite!(open, persistent);
