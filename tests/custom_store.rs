//! The store of `examples/custom_store.rs` obeys every law.

use std::path::Path;
use std::sync::Arc;

use replikv::{ReplicaStore, StoreError};

#[path = "../examples/custom_store.rs"]
#[allow(unreachable_pub, reason = "an example is a program, and here a module")]
mod example;

fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(example::open(dir)?))
}

replikv_testkit::conformance_suite!(open, persistent);
