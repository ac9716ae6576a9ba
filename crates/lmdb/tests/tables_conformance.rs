//! A store whose data lies in several databases obeys every law as well.

use std::path::Path;
use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError, Subspace};
use replikv_lmdb::{LmdbOptions, LmdbOrder, LmdbStore};

/// The keys of the laws begin with these bytes, or lie between them: `k` alone has the longest keys, `a` and `z` the
/// commonest, `0xFF` is the last prefix there is.
fn options() -> LmdbOptions {
    let tables = LmdbOptions::default()
        .table(Subspace::raw(&b"a"[..]), "plain")
        .table_in_order(Subspace::raw(&b"b"[..]), "reversed", LmdbOrder::ReverseKeys)
        .table_in_order(Subspace::raw(&b"k"[..]), "long", LmdbOrder::ReverseKeys);
    tables.table(Subspace::raw(&b"\xFF"[..]), "last").table(Subspace::raw(&b"\0\0"[..]), "first")
}

fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    Ok(Arc::new(LmdbStore::open(dir, options())?))
}

replikv_testkit::conformance_suite!(open, persistent);

mod adopted {
    use replikv_lmdb::heed::{self, Env, EnvOpenOptions, WithTls};

    use super::*;

    // Opened once in a process: a second store finds it in use, as it should.
    #[allow(unsafe_code, reason = "heed asks its caller to vouch for the file")]
    fn environment(dir: &Path) -> Result<Env<WithTls>, StoreError> {
        std::fs::create_dir_all(dir).map_err(StoreError::backend)?;
        let mut open = EnvOpenOptions::new();
        open.map_size(1 << 30).max_dbs(16).max_readers(1024);
        // SAFETY: nothing but LMDB touches the file.
        let opened = unsafe { open.open(dir) };
        opened.map_err(|error| match error {
            heed::Error::EnvAlreadyOpened => StoreError::Busy { holder: "this process".into() },
            error => StoreError::backend(error.to_string()),
        })
    }

    fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        Ok(Arc::new(LmdbStore::from_env(environment(dir)?, options())?))
    }

    replikv_testkit::conformance_suite!(open, persistent);
}
