//! Bugs that can be switched on, one at a time and for one thread, to see that tests find them.
//!
//! Without the feature `planted-bugs` every question is answered by a constant `false`, and nothing of this is left in
//! the program.

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// Records are framed while a page waits.
    RecordsWhilePageWaits,
    /// A page is sent before what it may show is published.
    PageBeforePublished,
    /// A page that may show what was never published is sent nevertheless.
    UnverifiedPage,
    /// A slave does not check that records follow one another.
    ChainNotVerified,
    /// A slave does not check that a page continues its copy.
    PageNotChecked,
    /// A slave forgets what of a copy is done when it connects again, and takes it for whole.
    CoverageForgotten,
    /// A page of content is written after the records that came after it.
    ContentIsNoBarrier,
    /// A range delete is written after the puts that came after it.
    RangeDeleteIsNoBarrier,
    /// A range delete reaches beyond what is covered.
    RangeDeleteNotClipped,
    /// Records are applied to what is not copied yet.
    UncoveredIsApplied,
    /// The cursor is not in the write set.
    CursorLeftOut,
    /// The write set does not require the cursor before it.
    CursorNotRequired,
    /// The data is called consistent once everything is copied.
    ConsistentTooEarly,
    /// Of several changes of a key the first one wins.
    FirstChangeWins,
    /// The item that no longer fits into a group is dropped.
    GroupIsTorn,
    /// A group does not require the head that it builds upon.
    HeadNotRequired,
    /// Conditions do not see the batches of their own group.
    GroupUnseen,
    /// Conditions see what was read before the last commit.
    OldValuesKept,
    /// A group of several records is written without its last one's operations.
    LastBodyLost,
    /// A failed commit leaves what was handed as it was.
    HandedNotTakenBack,
    /// Ranges with as many entries are equal, whatever these are.
    CountsAlone,
    /// What is said of ranges is taken for the next ones, whichever it is about.
    VerdictsOfAnyRange,
    /// Content is added to what its range held before.
    ContentIsAdded,
    /// A slave that subscribes to key ranges is sent whole records.
    FilterForgotten,
    /// And pages of everything.
    FilterForgottenOnPages,
    /// A record that concerns a slave of a part of the keys wakes nobody.
    ConcernUnnoticed,
    /// What a slave newly subscribes to counts as there.
    NewRangesForgotten,
    /// A slave is promoted whatever it is in the middle of.
    PromotedInMidCopy,
    /// A new epoch forgets those before it.
    EpochsForgotten,
    /// What a resync changes is quarantined only where it goes away.
    ChangedIsNotDisplaced,
    /// A kept log goes on after a copy or a comparison as if nothing were missing.
    KeptAcrossGap,
    /// A slave that is ahead of a relay is refused.
    NobodyWaits,
    /// And one of an epoch that is over as well.
    DeadBranchWaits,
    /// A slave may follow a relay below itself.
    CircleUnnoticed,
    /// One slave fewer has to promise.
    FewerFenced,
    /// A claim within another one is free.
    NestedClaimFree,
    /// Touches go, and the tombstone floor stays where it is.
    TombstoneFloorNotRaised,
    /// A delete that is compacted leaves no touch.
    DeletesNotTouched,
    /// Touches above the tombstone floor go as well.
    ExpiredBeyondFloor,
    /// A run is read whatever its hash and its sum say.
    RunNotChecked,
    /// Records are framed while touched keys are looked up.
    RecordsWhileLookedUp,
    /// A slot stays where it is when its owner comes back from before it.
    SlotNeverLowered,
}

impl Bug {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::RecordsWhilePageWaits,
        Self::PageBeforePublished,
        Self::UnverifiedPage,
        Self::ChainNotVerified,
        Self::PageNotChecked,
        Self::CoverageForgotten,
        Self::ContentIsNoBarrier,
        Self::RangeDeleteIsNoBarrier,
        Self::RangeDeleteNotClipped,
        Self::UncoveredIsApplied,
        Self::CursorLeftOut,
        Self::CursorNotRequired,
        Self::ConsistentTooEarly,
        Self::FirstChangeWins,
        Self::GroupIsTorn,
        Self::HeadNotRequired,
        Self::GroupUnseen,
        Self::OldValuesKept,
        Self::LastBodyLost,
        Self::HandedNotTakenBack,
        Self::CountsAlone,
        Self::VerdictsOfAnyRange,
        Self::ContentIsAdded,
        Self::FilterForgotten,
        Self::FilterForgottenOnPages,
        Self::ConcernUnnoticed,
        Self::NewRangesForgotten,
        Self::PromotedInMidCopy,
        Self::EpochsForgotten,
        Self::ChangedIsNotDisplaced,
        Self::KeptAcrossGap,
        Self::NobodyWaits,
        Self::DeadBranchWaits,
        Self::CircleUnnoticed,
        Self::FewerFenced,
        Self::NestedClaimFree,
        Self::TombstoneFloorNotRaised,
        Self::DeletesNotTouched,
        Self::ExpiredBeyondFloor,
        Self::RunNotChecked,
        Self::RecordsWhileLookedUp,
        Self::SlotNeverLowered,
    ];
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// A bug is planted in this thread until this is dropped.
    #[derive(Debug)]
    #[must_use = "the bug goes when this is dropped"]
    pub struct Planted(Option<Bug>);

    impl Bug {
        /// Plants it in this thread.
        pub fn plant(self) -> Planted {
            Planted(PLANTED.replace(Some(self)))
        }
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(self.0);
        }
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::Planted;
#[cfg(feature = "planted-bugs")]
pub(crate) use switch::is;

#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
