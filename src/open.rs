//! Choosing a store at run time.

use std::sync::Arc;

use replikv_core::{ReplicaStore, StoreError};

/// Why a store URL cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenUrlError {
    /// It does not begin with a known kind of store.
    #[error("{url:?} names no store: use lmdb:PATH, sled:PATH, redb:PATH, fjall:PATH or memory:")]
    Unknown {
        /// The URL.
        url: String,
    },
    /// It names no path.
    #[error("{url:?} names no path: use {scheme}:PATH")]
    NoPath {
        /// The URL.
        url: String,
        /// The kind of store.
        scheme: &'static str,
    },
    /// This build does not contain the backend.
    #[error("this build has no {feature}: build it with feature {feature}")]
    NotBuilt {
        /// The feature that brings it.
        feature: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opens `lmdb:PATH`, `sled:PATH`, `redb:PATH`, `fjall:PATH` or `memory:`, with default settings, and creates it if it is not there.
///
/// # Errors
/// [`OpenUrlError`].
pub fn open(url: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    let path = |scheme| match url.split_once(':') {
        Some((_, "")) | None => Err(OpenUrlError::NoPath { url: url.into(), scheme }),
        Some((_, path)) => Ok(path),
    };
    match url.split_once(':').map_or(url, |(scheme, _)| scheme) {
        "lmdb" => lmdb(path("lmdb")?),
        "sled" => sled(path("sled")?),
        "redb" => redb(path("redb")?),
        "fjall" => fjall(path("fjall")?),
        "memory" if url == "memory:" => Ok(Arc::new(replikv_memory::MemoryStore::new())),
        _ => Err(OpenUrlError::Unknown { url: url.into() }),
    }
}

#[cfg(feature = "lmdb")]
fn lmdb(path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Ok(Arc::new(replikv_lmdb::LmdbStore::open(path, replikv_lmdb::LmdbOptions::default())?))
}

#[cfg(not(feature = "lmdb"))]
fn lmdb(_path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Err(OpenUrlError::NotBuilt { feature: "lmdb" })
}

#[cfg(feature = "sled")]
fn sled(path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Ok(Arc::new(replikv_sled::SledStore::open(path)?))
}

#[cfg(not(feature = "sled"))]
fn sled(_path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Err(OpenUrlError::NotBuilt { feature: "sled" })
}

#[cfg(feature = "redb")]
fn redb(path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Ok(Arc::new(replikv_redb::RedbStore::open(path)?))
}

#[cfg(not(feature = "redb"))]
fn redb(_path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Err(OpenUrlError::NotBuilt { feature: "redb" })
}

#[cfg(feature = "fjall")]
fn fjall(path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Ok(Arc::new(replikv_fjall::FjallStore::open(path)?))
}

#[cfg(not(feature = "fjall"))]
fn fjall(_path: &str) -> Result<Arc<dyn ReplicaStore>, OpenUrlError> {
    Err(OpenUrlError::NotBuilt { feature: "fjall" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_name_no_store_are_refused_with_what_to_write() {
        for url in ["", "redis:x", "lmdb", "lmdb:", "sled:", "memory", "memory:x", "/tmp/x"] {
            let error = open(url).map(drop).unwrap_err().to_string();
            assert!(error.contains("use"), "{url}: {error}");
        }
        assert!(open("memory:").is_ok());
    }
}
