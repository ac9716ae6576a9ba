//! The key ranges that a slave subscribes to, as its store keeps them, and what a change of them takes.

use replikv_core::{Coverage, Cursor, KeyRanges};
use serde::{Deserialize, Serialize};

use crate::layout::Stored;
use crate::planted::{self, Bug};

/// The key ranges that a slave subscribes to. A store without one holds, or is to hold, every key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// What the slave is to hold.
    pub ranges: KeyRanges,
    /// What it held before, and may still be there in part. It goes before anything else happens.
    pub dropping: KeyRanges,
}

/// Why a set of ranges is none that a slave can subscribe to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSubscription {
    /// No key lies in it.
    #[error("a slave cannot subscribe to nothing: no key lies in the key ranges")]
    Empty,
    /// There are too many ranges in it.
    #[error("a slave can subscribe to {max} key ranges that do not touch each other, not to {ranges}")]
    TooMany {
        /// How many there are.
        ranges: usize,
        /// The most.
        max: usize,
    },
    /// Its bounds are too long.
    #[error("the bounds of the key ranges have {bytes} bytes, at most {max} are taken")]
    TooLong {
        /// What they come to.
        bytes: usize,
        /// The most.
        max: usize,
    },
}

/// What a store must be brought to when it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resubscribing {
    /// What it is to keep; `None` if that is every key.
    pub subscription: Option<Subscription>,
    /// Where the slave then stands; `None` if it never followed.
    pub cursor: Option<Cursor>,
}

impl Subscription {
    /// Its key.
    pub const KEY: &'static [u8] = b"subscription";
    /// The most ranges.
    pub const MAX_RANGES: usize = 64;
    /// The most bytes that their bounds have.
    pub const MAX_BYTES: usize = 16 << 10;

    /// Checks that a slave can subscribe to `ranges`.
    ///
    /// # Errors
    /// [`InvalidSubscription`].
    pub fn check(ranges: &KeyRanges) -> Result<(), InvalidSubscription> {
        let (count, bytes) = (ranges.as_slice().len(), ranges.bound_len());
        if ranges.is_empty() {
            Err(InvalidSubscription::Empty)
        } else if count > Self::MAX_RANGES {
            Err(InvalidSubscription::TooMany { ranges: count, max: Self::MAX_RANGES })
        } else if bytes > Self::MAX_BYTES {
            Err(InvalidSubscription::TooLong { bytes, max: Self::MAX_BYTES })
        } else {
            Ok(())
        }
    }

    /// What becomes of a store that has kept `stored` and stands at `cursor`, when `wanted` is what it is to hold. The
    /// write set that brings it there must require both as they were. `None` if nothing is to be written.
    ///
    /// What is new counts as missing from then on, and what is no longer wanted is [`dropping`](Self::dropping): nothing of
    /// it is told to anybody, and it goes before the slave follows again. Where that is interrupted, and what is dropping
    /// is wanted after all, it is missing: whatever is left of it is replaced.
    pub fn change(stored: Option<&Self>, cursor: Option<&Cursor>, wanted: &KeyRanges) -> Option<Resubscribing> {
        let whole = Self { ranges: KeyRanges::all(), dropping: KeyRanges::none() };
        let was = stored.unwrap_or(&whole);
        if was.ranges == *wanted {
            return None;
        }
        // A slave that never followed holds nothing.
        let unwanted = if cursor.is_some() { was.ranges.without(wanted) } else { KeyRanges::none() };
        let dropping = was.dropping.union(&unwanted).without(wanted);
        let moved = |cursor: &Cursor| {
            let coverage = match planted::is(Bug::NewRangesForgotten) {
                true => cursor.coverage.clone(),
                false => cursor.coverage.moved(&was.ranges, wanted),
            };
            Cursor { position: cursor.position, coverage: finished(coverage, cursor) }
        };
        let subscription = Self { ranges: wanted.clone(), dropping };
        Some(Resubscribing { subscription: (!wanted.is_all()).then_some(subscription), cursor: cursor.map(moved) })
    }

    /// What is kept once all that was dropping has gone.
    #[must_use]
    pub fn settled(&self) -> Self {
        Self { ranges: self.ranges.clone(), dropping: KeyRanges::none() }
    }
}

// What is missing may have been the only thing that was.
fn finished(coverage: Coverage, before: &Cursor) -> Coverage {
    let after = Cursor { position: before.position, coverage };
    if after.is_consistent() { Coverage::default() } else { after.coverage }
}

impl Stored for Subscription {
    const WHAT: &'static str = "the subscription of the slave";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin;
    use replikv_core::{Epoch, KeyRange, SourceId};

    fn set(list: &[(&'static str, &'static str)]) -> KeyRanges {
        KeyRanges::new(list.iter().map(|(from, to)| KeyRange::from_bounds(*from..*to)))
    }

    fn cursor() -> Cursor {
        Cursor::at(origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 2 }))
    }

    #[test]
    fn what_is_new_is_missing_and_what_is_not_wanted_any_more_is_dropped() {
        let ab = set(&[("a", "b"), ("m", "n")]);
        let stored = Subscription { ranges: ab.clone(), dropping: KeyRanges::none() };
        assert_eq!(Subscription::change(Some(&stored), Some(&cursor()), &ab), None);
        let changed = Subscription::change(Some(&stored), Some(&cursor()), &set(&[("a", "c")])).unwrap();
        let next = changed.subscription.unwrap();
        assert_eq!(next, Subscription { ranges: set(&[("a", "c")]), dropping: set(&[("m", "n")]) });
        let missing = KeyRanges::new(changed.cursor.as_ref().unwrap().coverage.holes());
        assert_eq!(missing, set(&[("b", "c")]));
        // Interrupted, and changed again: what was dropping and is wanted is missing, whatever is left of it.
        let again = Subscription::change(Some(&next), changed.cursor.as_ref(), &set(&[("m", "n")])).unwrap();
        assert_eq!(again.subscription.unwrap().dropping, set(&[("a", "c")]));
        assert_eq!(KeyRanges::new(again.cursor.unwrap().coverage.holes()), set(&[("m", "n")]));
        // And back to everything.
        let all = Subscription::change(Some(&next), changed.cursor.as_ref(), &KeyRanges::all()).unwrap();
        assert_eq!(all.subscription, None);
        assert_eq!(KeyRanges::new(all.cursor.unwrap().coverage.holes()), set(&[("a", "b")]).complement());
    }

    #[test]
    fn a_slave_that_loses_the_only_range_that_was_missing_is_whole() {
        let stored = Subscription { ranges: set(&[("a", "b")]), dropping: KeyRanges::none() };
        let grown = Subscription::change(Some(&stored), Some(&cursor()), &set(&[("a", "c")])).unwrap();
        let next = grown.subscription.unwrap();
        let shrunk = Subscription::change(Some(&next), grown.cursor.as_ref(), &set(&[("a", "b")])).unwrap();
        assert_eq!(shrunk.cursor, Some(cursor()));
        assert_eq!(shrunk.subscription.unwrap().dropping, set(&[("b", "c")]));
    }

    #[test]
    fn a_whole_slave_that_subscribes_drops_the_rest_and_one_that_never_followed_has_none() {
        let wanted = set(&[("a", "b")]);
        let changed = Subscription::change(None, Some(&cursor()), &wanted).unwrap();
        assert_eq!(changed.subscription.unwrap().dropping, wanted.complement());
        assert_eq!(changed.cursor, Some(cursor()));
        let new = Subscription::change(None, None, &wanted).unwrap();
        assert_eq!((new.subscription.unwrap().dropping, new.cursor), (KeyRanges::none(), None));
        assert_eq!(Subscription::change(None, Some(&cursor()), &KeyRanges::all()), None);
    }

    #[test]
    fn sets_have_bounds() {
        assert_eq!(Subscription::check(&KeyRanges::none()), Err(InvalidSubscription::Empty));
        assert_eq!(Subscription::check(&KeyRanges::all()), Ok(()));
        let many = |count: u8| KeyRanges::new((0..count).map(|key| KeyRange::only([key, 1])));
        assert_eq!(Subscription::check(&many(64)), Ok(()));
        assert!(matches!(Subscription::check(&many(65)), Err(InvalidSubscription::TooMany { ranges: 65, .. })));
        let long = |len| KeyRanges::from(KeyRange::prefix(vec![7; len]));
        assert_eq!(Subscription::check(&long(8192)), Ok(()));
        assert!(matches!(Subscription::check(&long(8193)), Err(InvalidSubscription::TooLong { .. })));
    }
}
