//! What a store can say of itself.

use serde::{Deserialize, Serialize};

/// What a store can say of itself. Everything is optional: `None` if it cannot tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// How many transactions somebody else has committed to the database that holds the store, since replikv first
    /// opened it. On a master, data that such a transaction has changed is in no log and reaches no slave; a transaction
    /// that changed only what is not replicated is counted as well.
    pub foreign_commits: Option<u64>,
    /// About how many bytes the data takes, as far as that is known without reading it: at most twice as many as it has,
    /// for the most part. Pages that are half empty may be counted; what is compressed counts for less.
    pub data_bytes: Option<u64>,
}

impl StoreStats {
    /// With this many foreign commits.
    #[must_use]
    pub fn with_foreign_commits(mut self, commits: u64) -> Self {
        self.foreign_commits = Some(commits);
        self
    }

    /// With about so many bytes of data.
    #[must_use]
    pub fn with_data_bytes(mut self, bytes: u64) -> Self {
        self.data_bytes = Some(bytes);
        self
    }
}
