//! Every bug that can be planted is found. A bug that is not is a hole in the simulator.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use replikv_testkit::sim::{Bug, Config, Fault, Invariant, Simulation, Topology};

/// A planted bug that is not found within so many seeds is a hole.
const SEEDS: u64 = 1_000;

/// What broke, after how many runs and how long, and in which event of the last run.
struct Found {
    invariant: Invariant,
    runs: u64,
    events: u64,
    took: Duration,
}

/// Without the bug the run that shows it must hold: nothing else was found.
fn find(bug: Bug) -> Option<Found> {
    let config = config_for(bug);
    let planted = config.clone().bug(bug);
    let began = Instant::now();
    let mut reports = (0..SEEDS).map(|seed| Simulation::run(seed, &planted));
    let (invariant, last) = reports.find_map(|report| Some((report.violation.as_ref()?.invariant, report)))?;
    let took = began.elapsed();
    let control = Simulation::run(last.seed, &config);
    assert_eq!(control.violation, None, "without {bug} as well: {}", control.reproduce());
    Some(Found { invariant, runs: last.seed + 1, events: last.events, took })
}

// Where a coincidence is needed, the faults that can lead to it strike more often when they are alone.
fn config_for(bug: Bug) -> Config {
    let default = Config::default();
    match bug.to_string().as_str() {
        "SetbackUnnoticed" => {
            let failures = [Fault::SyncFailure, Fault::Wiped, Fault::Cut];
            default.topology(Topology::Star).only(&failures).pace(25).millis(2_000)
        }
        "UnverifiedPage" => default.only(&[Fault::SyncFailure, Fault::Wiped]).pace(15).millis(5_000),
        // It shows if nothing is written after the failure.
        "LeftUnsynced" => default.only(&[Fault::UnknownOutcome, Fault::SyncFailure, Fault::Cut]).pace(5).millis(300),
        "HandedToldLate" => default.only(&[Fault::Wiped]).pace(20).millis(5_000),
        "ReadAtBeforeRead" => default.only(&[Fault::Wiped, Fault::Cut]).pace(20).millis(5_000),
        "RecordsWhilePageWaits" => default.only(&[Fault::SlowStore, Fault::Wiped, Fault::Cut]),
        "LocatedWithoutDigest" | "CoverageNotLocated" | "CheckpointIgnored" => {
            default.only(&[Fault::Restore, Fault::ClonedMaster, Fault::Repoint, Fault::Wiped, Fault::Cut])
        }
        "DamageTakenForDivergence" => default.only(&[Fault::FlipStored, Fault::Cut, Fault::SlaveCrash]).pace(30),
        "SilenceUnnoticed" => default.only(&[Fault::HalfOpen, Fault::MasterPower, Fault::SlavePower]),
        "WentOnAfterFailure" => default.only(&[Fault::Full, Fault::Transient, Fault::Wiped]),
        "PageNotChecked" => default.only(&[Fault::LostMessage, Fault::DuplicateMessage, Fault::Wiped]).pace(20),
        "MarkNotKept" | "QuarantinedTooLate" | "PromotedInMidCopy" | "EpochsForgotten" | "ChangedIsNotDisplaced" => {
            default.topology(Topology::Failover)
        }
        "DeadBranchWaits" => default.topology(Topology::Dynasty),
        "HandedOverUnmarked" | "TookOverUnanswered" => default.topology(Topology::Failover),
        // Who cannot promise goes on where it is.
        "FewerFenced" => {
            let failures = [Fault::FencedPromotion, Fault::ReadError, Fault::Full, Fault::SlowStore];
            let moves = [Fault::Demotion, Fault::Moved];
            default.topology(Topology::Failover).only(&[&failures[..], &moves].concat()).pace(40).millis(6_000)
        }
        "AgainstIgnored" | "FenceForgotten" => {
            let moves = [Fault::FencedPromotion, Fault::LostAnswer, Fault::Demotion, Fault::Moved, Fault::SlaveCrash];
            default.topology(Topology::Failover).only(&moves).pace(40).millis(3_500)
        }
        "RangeOutOfLink" | "UnlinkedDataStays" | "NestedClaimFree" => default.topology(Topology::Centre),
        "ForgottenUnsynced" => {
            let failures = [Fault::Unlinked, Fault::SyncFailure];
            default.topology(Topology::Centre).only(&failures).pace(60).millis(3_000)
        }
        "GroupedFailureUnseen" => {
            let refused = [Fault::Transient, Fault::Full, Fault::UnknownOutcome];
            default.topology(Topology::Centre).only(&refused).pace(60).millis(3_000)
        }
        // Syncs must succeed in between: what was lost is acknowledged by one of these.
        "SetbackOfLinkUnnoticed" => {
            default.topology(Topology::Centre).only(&[Fault::SyncFailure]).pace(100).millis(3_000)
        }
        "VerdictsOfAnyRange" => {
            let moves = [Fault::LostMessage, Fault::Promotion, Fault::Demotion, Fault::Moved];
            default.topology(Topology::Failover).only(&moves).pace(12).millis(2_500)
        }
        "EpochsByNumber" => default.topology(Topology::Failover).pace(100).millis(6_000),
        "ConsistentUntilAnswered" => {
            default.only(&[Fault::SlowStore, Fault::HalfOpen, Fault::Wiped]).pace(60).millis(6_000)
        }
        "LookupFailureIsDelete" => default.only(&[Fault::ReadError, Fault::Wiped, Fault::Cut]).pace(15).millis(4_000),
        "RunNotChecked" => default.only(&[Fault::FlipStored, Fault::Wiped]).pace(150).millis(5_000),
        "LostSlotsDropped" => {
            let others = [Fault::MasterCrash, Fault::SlaveCrash, Fault::Transient, Fault::Cut];
            default.only(&others).pace(40).millis(4_000)
        }
        "SlotNeverLowered" => {
            let others = [Fault::SameName, Fault::MasterCrash, Fault::SlaveCrash, Fault::Cut];
            default.only(&others).pace(20).millis(5_000)
        }
        "RelayHandsLate" => default.topology(Topology::Tree).only(&[Fault::Wiped]).pace(60).millis(4_000),
        "RelayServesOn" | "RelayedBeforeCommitted" | "KeptAcrossGap" | "NobodyWaits" | "CircleUnnoticed" => {
            default.topology(Topology::Tree)
        }
        _ => default,
    }
}

// Looks for each, and prints which invariant found it, after how many runs, in which event of the last one, and after how
// long.
fn look_for(mut bugs: Vec<Bug>) {
    if let Ok(wanted) = std::env::var("REPLIKV_SIM_BUG") {
        bugs = vec![Bug::named(&wanted).unwrap_or_else(|| panic!("{wanted} is no bug that can be planted"))];
    }
    bugs.reverse();
    let (queue, found) = (Mutex::new(bugs), Mutex::new(BTreeMap::new()));
    let next = || queue.lock().unwrap().pop();
    println!("| bug | invariant | seeds | events | took |");
    println!("| --- | --- | ---: | ---: | ---: |");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(bug) = next() {
                    let one = find(bug);
                    println!("| {bug} | {} |", one.as_ref().map_or_else(|| "not found".to_owned(), describe));
                    found.lock().unwrap().insert(bug.to_string(), one.map(|one| one.took));
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    if let Some((took, bug)) = found.iter().filter_map(|(bug, took)| Some(((*took)?, bug))).max() {
        println!("the longest: {bug}, {:.1} s", took.as_secs_f64());
    }
    let missed: Vec<_> = found.iter().filter(|(_, took)| took.is_none()).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn describe(found: &Found) -> String {
    format!("{:?} | {} | {} | {:.1} s", found.invariant, found.runs, found.events, found.took.as_secs_f64())
}

#[test]
fn planted_bugs_are_found() {
    look_for(Bug::all());
}

#[test]
fn there_are_many_bugs_to_plant() {
    assert!(Bug::all().len() >= 45, "{}", Bug::all().len());
}
