//! What a store can hold.

use serde::{Deserialize, Serialize};

/// The longest keys and the largest values and write sets of a store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLimits {
    /// The longest key.
    pub max_key: usize,
    /// The largest value.
    pub max_value: usize,
    /// The largest write set, as encoded operations.
    pub max_batch: usize,
}

impl StoreLimits {
    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            max_key: self.max_key.min(other.max_key),
            max_value: self.max_value.min(other.max_value),
            max_batch: self.max_batch.min(other.max_batch),
        }
    }

    /// True if whatever fits into `other` fits here.
    pub fn holds(&self, other: &Self) -> bool {
        self.max_key >= other.max_key && self.max_value >= other.max_value && self.max_batch >= other.max_batch
    }
}
