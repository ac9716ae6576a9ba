//! What a condition or a transaction sees: the store, and every batch before it, those of its own group too.

use bytes::Bytes;

use crate::derive::{Known, Overlay};

/// Why a transaction did not come to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abort {
    /// A key must be read first; the transaction runs again then. Pass it on with `?`.
    Missing(Bytes),
    /// The transaction decided against it.
    Refused(String),
}

impl Abort {
    /// Decides against it; `reason` reaches the caller.
    pub fn refuse(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "{} must be read first", key.escape_ascii()),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Abort {}

/// The data at one place in the commit order.
#[derive(Debug)]
pub struct TransactView<'a> {
    overlay: &'a Overlay,
    known: &'a Known,
}

impl<'a> TransactView<'a> {
    pub(super) fn new(overlay: &'a Overlay, known: &'a Known) -> Self {
        Self { overlay, known }
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`Abort::Missing`] if the key was not read yet: pass it on with `?`, and the transaction runs again.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Abort> {
        let key = key.as_ref();
        if let Some(change) = self.overlay.get(key) {
            return Ok(change);
        }
        self.known.get(key).ok_or_else(|| Abort::Missing(Bytes::copy_from_slice(key)))
    }
}
