//! Bugs that can be planted, to see that the simulator finds them.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// In a simulated driver.
    Driver(DriverBug),
    /// In what decides.
    #[cfg(feature = "planted-bugs")]
    Proto(replikv_proto::planted::Bug),
}

/// Bugs of drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverBug {
    /// The moment of reading is taken before the page is read.
    ReadAtBeforeRead,
    /// What is handed to the store is told after it was committed.
    HandedToldLate,
    /// A slave tells that a group is durable before the sync.
    AckBeforeDurable,
    /// A slave tells that a record is applied when it has arrived.
    AckOnArrival,
    /// A session whose next record was trimmed is given what there is.
    TrimmedWithoutTelling,
    /// Positions are compared by their numbers alone.
    LocatedByNumber,
    /// Positions are compared by epoch and number, without the digest.
    LocatedWithoutDigest,
    /// A checkpoint that tells that histories parted is not looked at.
    CheckpointIgnored,
    /// A commit whose outcome is unknown is taken as failed.
    UnknownTakenAsFailure,
    /// A commit whose outcome is unknown is taken as done.
    UnknownTakenAsSuccess,
    /// Records are published once they are readable.
    PublishedBeforeDurable,
    /// Records that the store has lost are published after the next sync.
    LostRecordsPublished,
    /// A failed read is an empty page.
    ReadErrorIsEmptyPage,
    /// Stored records are sent unchecked.
    DamagedRecordSent,
    /// A master publishes what it finds at open, without a sync.
    OpenedWithoutSync,
    /// A slave takes what it finds at open as durable.
    SlaveOpenedWithoutSync,
    /// A slave does not sync what a failure has left in its store, and waits for the next group.
    LeftUnsynced,
    /// A slave of a second connection begins before the first one's write set is decided, and from what it remembers.
    FollowedFromMemory,
    /// A slave goes on with the rest of its queue after a group has failed.
    WentOnAfterFailure,
    /// A slave that is ahead is served from where it is.
    AheadIsServed,
    /// A slave whose next record is gone is served from where it is.
    BelowIsServed,
    /// Where the content of a copy was read is not looked up in the history.
    CoverageNotLocated,
    /// A slave does not look whether its store holds data.
    DataNotLookedFor,
    /// A slave never gives up a master that is silent.
    SilenceUnnoticed,
    /// A slave that another one has taken the name from is served when it comes back.
    TakeoverForgotten,
    /// A page is sent although another master has written to the store.
    TakeoverUnnoticed,
    /// A page is sent although a commit that it may show came to nothing while it was read.
    SetbackUnnoticed,
    /// A slave whose position differs from a stored record is taken for diverged, though the record is damaged.
    DamageTakenForDivergence,
    /// A page is taken for what is there at one point of the history, though the head moved while it was read.
    ProbeHeadNotCompared,
    /// An answer to a probe is compared before the group that was folded ahead of it is written.
    ProbeBeforeFolded,
    /// What a slave no longer subscribes to stays in its store.
    DroppedRangesStay,
    /// A master that met a newer epoch forgets that when it is opened again.
    MarkNotKept,
    /// Epochs are compared by their numbers alone.
    EpochsByNumber,
    /// What a resync takes away is quarantined once it is gone.
    QuarantinedTooLate,
    /// A relay tells what was handed to its store after it was committed.
    RelayHandsLate,
    /// A relay that copies or compares goes on serving what it had before.
    RelayServesOn,
    /// A relay passes on what it has not committed.
    RelayedBeforeCommitted,
    /// Of links whose write sets are refused together, each is told that its own is there.
    GroupedFailureUnseen,
    /// A range without an end goes on behind the keys of its link.
    RangeOutOfLink,
    /// A master says that it has handed over, and goes on.
    HandedOverUnmarked,
    /// A slave that is not answered takes over nevertheless.
    TookOverUnanswered,
    /// A slave is promoted though one that it has fenced is more advanced.
    AgainstIgnored,
    /// A slave follows whom it followed before, whatever it has promised.
    FenceForgotten,
    /// Entries of a link that is undone stay, though they were to go.
    UnlinkedDataStays,
    /// Entries of a link that is undone go before its cursor is durably gone.
    ForgottenUnsynced,
    /// A link goes on though the store was opened anew after another one's failure.
    SetbackOfLinkUnnoticed,
    /// A touched key whose lookup fails is taken for deleted.
    LookupFailureIsDelete,
    /// The moment of looking up touched keys is taken before.
    LookedUpAtBefore,
    /// A slot is set by what a slave says in its hello, before that is looked up.
    SlotFromHello,
    /// A master that is opened drops the slots that the log does not reach.
    LostSlotsDropped,
    /// A slave says that it holds a state of its master until its store has answered that it does not.
    ConsistentUntilAnswered,
    /// A slave says that it holds a state of its master when what is durable is none yet.
    ConsistentUnsynced,
    /// A writer is told that a condition does not hold before it is known what becomes of the batch that it saw.
    ConflictToldEarly,
    /// Data that was there before a store became a master's is in no base record, and slaves go through the log.
    BaseLeftOut,
}

impl DriverBug {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::ReadAtBeforeRead,
        Self::HandedToldLate,
        Self::AckBeforeDurable,
        Self::AckOnArrival,
        Self::TrimmedWithoutTelling,
        Self::LocatedByNumber,
        Self::LocatedWithoutDigest,
        Self::CheckpointIgnored,
        Self::UnknownTakenAsFailure,
        Self::UnknownTakenAsSuccess,
        Self::PublishedBeforeDurable,
        Self::LostRecordsPublished,
        Self::ReadErrorIsEmptyPage,
        Self::DamagedRecordSent,
        Self::OpenedWithoutSync,
        Self::SlaveOpenedWithoutSync,
        Self::LeftUnsynced,
        Self::FollowedFromMemory,
        Self::WentOnAfterFailure,
        Self::AheadIsServed,
        Self::BelowIsServed,
        Self::CoverageNotLocated,
        Self::DataNotLookedFor,
        Self::SilenceUnnoticed,
        Self::TakeoverForgotten,
        Self::TakeoverUnnoticed,
        Self::SetbackUnnoticed,
        Self::DamageTakenForDivergence,
        Self::ProbeHeadNotCompared,
        Self::ProbeBeforeFolded,
        Self::DroppedRangesStay,
        Self::MarkNotKept,
        Self::EpochsByNumber,
        Self::QuarantinedTooLate,
        Self::RelayHandsLate,
        Self::RelayServesOn,
        Self::RelayedBeforeCommitted,
        Self::GroupedFailureUnseen,
        Self::RangeOutOfLink,
        Self::HandedOverUnmarked,
        Self::TookOverUnanswered,
        Self::AgainstIgnored,
        Self::FenceForgotten,
        Self::UnlinkedDataStays,
        Self::ForgottenUnsynced,
        Self::SetbackOfLinkUnnoticed,
        Self::LookupFailureIsDelete,
        Self::LookedUpAtBefore,
        Self::ConsistentUntilAnswered,
        Self::ConsistentUnsynced,
        Self::ConflictToldEarly,
        Self::BaseLeftOut,
        Self::SlotFromHello,
        Self::LostSlotsDropped,
    ];
}

impl Bug {
    /// That of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|bug| bug.to_string() == name)
    }

    /// All of them.
    pub fn all() -> Vec<Self> {
        let drivers = DriverBug::ALL.iter().map(|bug| Self::Driver(*bug));
        #[cfg(feature = "planted-bugs")]
        let drivers = drivers.chain(replikv_proto::planted::Bug::ALL.iter().map(|bug| Self::Proto(*bug)));
        drivers.collect()
    }

    /// Plants it in this thread, if it belongs to what decides; a driver asks for itself.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn plant(self) -> Option<replikv_proto::planted::Planted> {
        match self {
            Self::Proto(bug) => Some(bug.plant()),
            Self::Driver(_) => None,
        }
    }
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Driver(bug) => write!(f, "{bug:?}"),
            #[cfg(feature = "planted-bugs")]
            Self::Proto(bug) => write!(f, "{bug:?}"),
        }
    }
}
