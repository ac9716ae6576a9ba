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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_others_only_if_none_of_the_three_is_smaller() {
        let limits = StoreLimits { max_key: 10, max_value: 10, max_batch: 10 };
        assert!(limits.holds(&limits));
        let each: [fn(&mut StoreLimits) -> &mut usize; 3] =
            [|limits| &mut limits.max_key, |limits| &mut limits.max_value, |limits| &mut limits.max_batch];
        for one in each {
            let (mut smaller, mut larger) = (limits, limits);
            *one(&mut smaller) = 9;
            *one(&mut larger) = 11;
            assert!(limits.holds(&smaller) && !limits.holds(&larger) && larger.holds(&limits));
            assert_eq!((limits.min(smaller), limits.min(larger)), (smaller, limits));
        }
    }
}
