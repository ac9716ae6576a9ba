//! Stores of several trees obey every law: opened by us, adopted, and with one tree for all the data.

use std::path::Path;
use std::sync::Arc;

use crate::support::application;
use replikv_core::{ReplicaStore, StoreError, Subspace};
use replikv_sled::{SledOptions, SledStore};

/// What the laws write falls into these, between them, and is one of them.
fn options() -> SledOptions {
    let prefixes: [&[u8]; 9] = [b"\0\0\0\0\0\0\0\x02", b"a", b"b\xFF", b"e", b"k", b"m", b"some", b"\xFE", b"\xFF\xFF"];
    prefixes.into_iter().fold(SledOptions::default(), |options, prefix| {
        options.tree(Subspace::raw(prefix), [b"tree ", prefix].concat())
    })
}

mod opened {
    use super::*;

    fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        Ok(Arc::new(SledStore::open_with(dir, options())?))
    }

    replikv_testkit::conformance_suite!(open, persistent);
}

mod adopted {
    use super::*;

    fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        let options = options().default_tree(Subspace::raw("c"));
        Ok(Arc::new(SledStore::from_db(application(dir)?, options)?))
    }

    replikv_testkit::conformance_suite!(open, persistent);
}

mod one_tree_for_all_the_data {
    use super::*;

    fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        let options = SledOptions::default().default_tree(Subspace::root());
        Ok(Arc::new(SledStore::from_db(application(dir)?, options)?))
    }

    replikv_testkit::conformance_suite!(open, persistent);
}
