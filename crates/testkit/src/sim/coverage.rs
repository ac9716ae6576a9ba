//! What happened in a run, counted: a scenario that no seed reaches is a hole in the tests.

use std::collections::BTreeMap;

use super::Topology;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// In one word: for reports and the environment.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

named! {
    /// Kinds of faults. Each can be switched off.
    Fault {
        /// A connection ends, after any byte of what was under way.
        Cut = "cut",
        /// One direction of a connection stops, for a while or for ever, and nobody is told.
        HalfOpen = "half-open",
        /// A bit is flipped in flight.
        FlipInFlight = "flip-in-flight",
        /// A message arrives twice.
        DuplicateMessage = "duplicate-message",
        /// A message does not arrive, though later ones do.
        LostMessage = "lost-message",
        /// A connection says nothing, or nonsense, instead of hello.
        Stranger = "stranger",
        /// A slave's process is killed.
        SlaveCrash = "slave-crash",
        /// A slave's machine loses power.
        SlavePower = "slave-power",
        /// A master's process is killed.
        MasterCrash = "master-crash",
        /// A master's machine loses power.
        MasterPower = "master-power",
        /// A store is busy for a moment.
        Transient = "transient",
        /// A store is full for a while.
        Full = "full",
        /// A write fails, and nobody knows whether it is there.
        UnknownOutcome = "unknown-outcome",
        /// A sync fails.
        SyncFailure = "sync-failure",
        /// A read fails.
        ReadError = "read-error",
        /// A store takes its time.
        SlowStore = "slow-store",
        /// A bit of a stored record is flipped.
        FlipStored = "flip-stored",
        /// A wall clock jumps.
        ClockJump = "clock-jump",
        /// A master is restored from an older image of its store.
        Restore = "restore",
        /// A master loses its store, and begins anew with an empty one.
        EmptyMaster = "empty-master",
        /// A second master is opened on a store that has one.
        SecondMaster = "second-master",
        /// A copy of a master's disk is opened as a master of its own.
        ClonedMaster = "cloned-master",
        /// A slave is sent to another master.
        Repoint = "repoint",
        /// A second slave takes the name of a first.
        SameName = "same-name",
        /// A second slave is opened on a store that has one.
        SharedStore = "shared-store",
        /// Following is dropped in the middle of whatever it does.
        DroppedFollow = "dropped-follow",
        /// A slave is given an empty store.
        Wiped = "wiped",
        /// A slave is given a store that holds data which came from no master.
        StrangeData = "strange-data",
        /// A slave is started with other key ranges to subscribe to.
        Resubscribed = "resubscribed",
        /// A slave is promoted, while its master is gone, or goes on.
        Promotion = "promotion",
        /// A master that another one has taken over from is made a slave.
        Demotion = "demotion",
        /// A slave is sent to the newest master, or to an older one.
        Moved = "moved",
        /// A slave takes over from its master, which hands over to it.
        TakeOver = "take-over",
        /// A slave is promoted if enough of the others promise to wait for its epoch.
        FencedPromotion = "fenced-promotion",
        /// What a node answers to whoever wants to take over, or to be waited for, is lost.
        LostAnswer = "lost-answer",
        /// A slave is sent to another parent of its tree, or in a circle.
        Reparented = "reparented",
        /// A link of a centre is undone, whatever it is in the middle of.
        Unlinked = "unlinked",
    }
}

named! {
    /// Situations that a run can get into.
    Scene {
        /// A slave began to copy.
        CopyStarted = "copy-started",
        /// A slave went on with a copy on another connection.
        CopyResumed = "copy-resumed",
        /// A copy that could not be gone on with became a comparison.
        CopyBecameComparison = "copy-became-comparison",
        /// A copy became a state of the master.
        CopyFinished = "copy-finished",
        /// A slave that fell behind the log began to compare.
        ComparisonStarted = "comparison-started",
        /// A slave went on with a comparison on another connection.
        ComparisonResumed = "comparison-resumed",
        /// A comparison that could not be gone on with began again.
        ComparisonRestarted = "comparison-restarted",
        /// A comparison became a state of the master.
        ComparisonFinished = "comparison-finished",
        /// A range turned out to be equal, and was kept.
        EqualKept = "equal-kept",
        /// A range turned out to differ, and was replaced.
        DifferenceReplaced = "difference-replaced",
        /// A slave compared what it held with what its master held at that point of the history, and it was the same.
        Verified = "verified",
        /// It did so while more had arrived already.
        VerifiedUnderWrites = "verified-under-writes",
        /// The head moved while a master read for that, and it was read again.
        ProbeReadAgain = "probe-read-again",
        /// A slave died in the middle of a copy.
        CrashInCopy = "crash-in-copy",
        /// A master died while a slave copied.
        MasterDiedInCopy = "master-died-in-copy",
        /// A slave in the middle of a copy found another master.
        CopyElsewhere = "copy-elsewhere",
        /// Records were applied between pages.
        RecordsInCopy = "records-in-copy",
        /// A range delete arrived between pages.
        RangeDeleteInCopy = "range-delete-in-copy",
        /// Something was committed between a page's moment of reading and its arrival at the session.
        WriteDuringPage = "write-during-page",
        /// A commit came to nothing while a page was read.
        SetbackDuringPage = "setback-during-page",
        /// A page waited until what it may show was published.
        PageWaited = "page-waited",
        /// A page was read again, because the commit that it may have shown had failed.
        PageReadAgain = "page-read-again",
        /// A slave resumed.
        Resumed = "resumed",
        /// Records came from the stored log, not from the ring.
        ServedFromLog = "served-from-log",
        /// Records that did not concern a slave were passed by.
        PassedBy = "passed-by",
        /// The log was trimmed.
        Trimmed = "trimmed",
        /// The log was trimmed past a slave that was being served.
        TrimmedUnderSlave = "trimmed-under-slave",
        /// A session held the log back.
        HeldBack = "held-back",
        /// A step of compaction folded records into a run.
        Compacted = "compacted",
        /// A step of it was refused, or failed.
        CompactionRefused = "compaction-refused",
        /// What touched keys hold was looked up, and sent.
        TouchLookedUp = "touch-looked-up",
        /// A range delete of the compacted log was sent.
        RangeTouched = "range-touched",
        /// A lookup failed, and the session ended.
        TouchLookupFailed = "touch-lookup-failed",
        /// A slave that had gone through what is compacted held a state of its master again.
        TouchesPassed = "touches-passed",
        /// Touches expired, and what they told of nobody can tell any more.
        TombstoneExpired = "tombstone-expired",
        /// A master died while they were being removed, and went on with it.
        ExpiryResumed = "expiry-resumed",
        /// A slave below the tombstone floor began to compare.
        BelowTombstoneFloor = "below-tombstone-floor",
        /// A damaged run was found.
        RunDamaged = "run-damaged",
        /// A slave has a slot from its first durable ack on.
        SlotBegun = "slot-begun",
        /// There were too many slots already.
        SlotsFull = "slots-full",
        /// A slave that came back stood before its slot.
        SlotLowered = "slot-lowered",
        /// A slot was not heard of for too long.
        SlotExpired = "slot-expired",
        /// The log was held back for a slave that was away.
        HeldForAway = "held-for-away",
        /// A damaged record was found, and the log cut after it.
        DamageFound = "damage-found",
        /// A slave committed several records at once.
        Folded = "folded",
        /// A record larger than a chunk was sent.
        LargeRecord = "large-record",
        /// A message was held back because the connection did not drain.
        Backpressure = "backpressure",
        /// A slave stopped reading, because its store was behind.
        BacklogFull = "backlog-full",
        /// An ack told of records that were readable and not durable yet.
        AckBeforeDurable = "ack-before-durable",
        /// A master gave up a peer that was silent.
        MasterHeardNothing = "master-heard-nothing",
        /// A slave gave up a peer that was silent.
        SlaveHeardNothing = "slave-heard-nothing",
        /// A connection never said hello, and was closed.
        NoHello = "no-hello",
        /// Damage on the way was noticed.
        DamageInFlight = "damage-in-flight",
        /// A record that did not continue the history was refused.
        ChainBroken = "chain-broken",
        /// A newer connection took the place of an older one of the same name.
        Replaced = "replaced",
        /// A slave was refused: another one had taken its name.
        RefusedDuplicate = "refused-duplicate",
        /// A master noticed that another one writes to its store.
        MasterFenced = "master-fenced",
        /// A slave noticed that another one writes to its store.
        SlaveFenced = "slave-fenced",
        /// An outcome was unknown, and the write was there.
        UnknownThere = "unknown-there",
        /// An outcome was unknown, and the write was not there.
        UnknownGone = "unknown-gone",
        /// A master found that its head had gone back.
        HeadWentBack = "head-went-back",
        /// A slave found that its cursor had gone back.
        CursorWentBack = "cursor-went-back",
        /// Power loss took write sets.
        PowerTookWrites = "power-took-writes",
        /// A write that was under way when its process died was there afterwards.
        WroteAfterDeath = "wrote-after-death",
        /// A connection ended while a write set of it was under way.
        EndedInApply = "ended-in-apply",
        /// A condition did not hold.
        Conflict = "conflict",
        /// A condition saw an earlier batch of its own group.
        ConditionOnGroup = "condition-on-group",
        /// A transaction refused.
        Aborted = "aborted",
        /// A batch was a note alone.
        NoteAlone = "note-alone",
        /// Several batches were committed at once.
        GroupCommit = "group-commit",
        /// An epoch began.
        NewEpoch = "new-epoch",
        /// A store that already held data became a master's.
        BaseRecord = "base-record",
        /// A wall clock went back between two records.
        TimeWentBack = "time-went-back",
        /// A slave was refused: it follows another source.
        RefusedForeign = "refused-foreign",
        /// A slave was refused: the histories parted.
        RefusedDiverged = "refused-diverged",
        /// A slave was refused: a checkpoint below the floor told that the histories parted.
        RefusedByCheckpoint = "refused-by-checkpoint",
        /// A slave was refused: it is ahead of its master.
        RefusedAhead = "refused-ahead",
        /// A slave was refused: it holds data of its own.
        RefusedData = "refused-data",
        /// A slave was refused: its store is too small.
        RefusedLimits = "refused-limits",
        /// A record was sent without what lies outside of a slave's ranges.
        Filtered = "filtered",
        /// A run of records that touch nothing of a slave's ranges was told by its end alone.
        RunSkipped = "run-skipped",
        /// A slave that followed subscribed to more than before.
        RangesAdded = "ranges-added",
        /// A slave dropped what it no longer subscribes to.
        RangesDropped = "ranges-dropped",
        /// It was interrupted, and went on with it, or with other ranges.
        DroppingResumed = "dropping-resumed",
        /// A slave was promoted.
        Promoted = "promoted",
        /// A promotion was interrupted, and was there afterwards.
        PromotionInterrupted = "promotion-interrupted",
        /// A slave that was not through with a copy, a comparison or a resync was not promoted.
        PromotionCatchingUp = "promotion-catching-up",
        /// A slave that subscribes to key ranges was not promoted.
        PromotionFiltered = "promotion-filtered",
        /// A slave took over from a master that had handed over to it.
        TookOver = "took-over",
        /// A master that had handed over before said the same again.
        HandedOverBefore = "handed-over-before",
        /// A master had stopped for a slave that never heard of it.
        HandoverUnknown = "handover-unknown",
        /// A master did not hand over, and went on.
        HandoverFailed = "handover-failed",
        /// A slave promised to wait for an epoch that was to begin.
        Pledged = "pledged",
        /// A slave was promoted that enough others had promised to wait for.
        PromotedFenced = "promoted-fenced",
        /// Too few had.
        FencingTooFew = "fencing-too-few",
        /// One of them was more advanced, or had parted.
        FencingAgainst = "fencing-against",
        /// A slave that is promised to somebody else, or holds no state of its master, fenced nobody.
        FencingUnfit = "fencing-unfit",
        /// A promotion that was given up was gone beyond.
        FencedAnew = "fenced-anew",
        /// A slave that is promised to another one was not promoted.
        PromotionFenced = "promotion-fenced",
        /// A slave refused to follow a master of an earlier epoch.
        FencedRefused = "fenced-refused",
        /// A promise was over: its slave had come to that epoch.
        FenceOver = "fence-over",
        /// A relay was promoted that had slaves of its own.
        RelayPromoted = "relay-promoted",
        /// A slave of a relay went on below it when that had become a master.
        WentOnBelow = "went-on-below",
        /// A slave of a master went on below it when that had become a relay.
        BelowFormer = "below-former",
        /// A slave of an epoch that is over found a relay of a newer one, which had not come as far.
        DeadBranchBelow = "dead-branch-below",
        /// A slave was refused by a relay: its epoch is newer.
        RefusedByOlderRelay = "refused-by-older-relay",
        /// A relay that held batches which are no longer part of the history resynced.
        RelayResynced = "relay-resynced",
        /// A slave of an earlier epoch resumed with a master of a later one.
        MovedOver = "moved-over",
        /// A master committed after another one had been promoted.
        WroteBeside = "wrote-beside",
        /// A slave was refused: its epoch is newer than its master's.
        RefusedSuperseded = "refused-superseded",
        /// A master that met a newer epoch has stopped for good.
        Superseded = "superseded",
        /// It was opened again, and refused.
        SupersededAtOpen = "superseded-at-open",
        /// A master became a slave.
        SteppedDown = "stepped-down",
        /// Two that were promoted to epochs of one number met.
        TwinsMet = "twins-met",
        /// A slave whose history had parted began to resync.
        ResyncStarted = "resync-started",
        /// It held a state of its master again.
        ResyncFinished = "resync-finished",
        /// Something was quarantined.
        Quarantined = "quarantined",
        /// A relay sent records that it had kept.
        Relayed = "relayed",
        /// A slave at the third level or deeper was welcomed.
        Deep = "deep",
        /// A slave that is ahead of a relay was told to wait.
        Waited = "waited",
        /// It waited until the relay had come as far.
        WaitedEnough = "waited-enough",
        /// A slave was refused: it is above the relay that it wants to follow.
        RefusedCircle = "refused-circle",
        /// A relay that holds no state of its master served nobody.
        RelayServesNobody = "relay-serves-nobody",
        /// A relay stopped serving, because it copies, compares, or follows somebody else.
        RelayClosed = "relay-closed",
        /// A kept log was begun anew, after a copy or a comparison.
        LogBegunAnew = "log-begun-anew",
        /// A kept log was trimmed.
        KeptLogTrimmed = "kept-log-trimmed",
        /// What several links handed over was committed in one write set.
        LinksTogether = "links-together",
        /// Something in it was refused, and each was committed for itself.
        LinksApart = "links-apart",
        /// A link was undone in the middle of a copy or a comparison.
        UnlinkedInCopy = "unlinked-in-copy",
        /// A link was undone that held a state of its master.
        UnlinkedWhole = "unlinked-whole",
        /// A link subscribed to more than before, beside the others.
        LinkRangesAdded = "link-ranges-added",
        /// A link dropped what it no longer subscribes to, beside the others.
        LinkRangesDropped = "link-ranges-dropped",
        /// Nothing is left of a link that was undone, and another one may have its keys.
        LinkUndone = "link-undone",
        /// It was interrupted, and gone on with.
        UnlinkingResumed = "unlinking-resumed",
        /// Its entries may have come back with another link's failure, and it was done again.
        UnlinkedAgain = "unlinked-again",
        /// A link looked again where it stands, because another one's failure may have taken what it had not synced.
        LinkSetBack = "link-set-back",
        /// A claim was refused that would have shared keys with another one.
        ClaimRefused = "claim-refused",
        /// A claim was not.
        ClaimFree = "claim-free",
    }
}

/// How often each fault was injected, and each situation met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    faults: BTreeMap<Fault, u64>,
    scenes: BTreeMap<Scene, u64>,
}

impl Coverage {
    /// How often a fault was injected.
    pub fn fault(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// How often a situation was met.
    pub fn scene(&self, scene: Scene) -> u64 {
        self.scenes.get(&scene).copied().unwrap_or(0)
    }

    /// All faults that were injected.
    pub fn injected(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Which faults never struck, of those that runs of this kind know.
    pub fn missing_of(&self, topology: Topology) -> Vec<&'static str> {
        let known = Fault::ALL.iter().filter(|fault| topology.knows(**fault));
        known.filter(|fault| self.fault(**fault) == 0).map(|fault| fault.word()).collect()
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let faults = Fault::ALL.iter().filter(|fault| self.fault(**fault) == 0).map(|fault| fault.word());
        faults.chain(Scene::ALL.iter().filter(|scene| self.scene(**scene) == 0).map(|scene| scene.word())).collect()
    }

    /// Adds what happened in another run.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (scene, count) in &other.scenes {
            *self.scenes.entry(*scene).or_default() += count;
        }
    }

    pub(super) fn injected_one(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub(super) fn met(&mut self, scene: Scene) {
        *self.scenes.entry(scene).or_default() += 1;
    }
}
