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
    /// A slave of a second connection begins before the first one's write set is decided, and from what it remembers.
    FollowedFromMemory,
    /// A slave goes on with the rest of its queue after a group has failed.
    WentOnAfterFailure,
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
        Self::FollowedFromMemory,
        Self::WentOnAfterFailure,
    ];
}
