//! The simulator, over fixed seeds and those that the environment asks for.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use replikv_testkit::sim::{Campaign, Config, Fault, Report, Scene, Simulation, Topology, Totals, shrink};

/// Fixed, so that a red build is red again. They are few enough for a build, and many enough to meet every situation:
/// a test holds them to that.
const SEEDS: u64 = 139;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

// One line that reproduces it, and the smallest run that shows the same.
fn explain(report: &Report) -> String {
    println!("{report}");
    format!("{report}\nmade smaller:\n{}", shrink(report))
}

fn all_hold(totals: &Totals) {
    let failures: Vec<String> = totals.failures.iter().map(explain).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_seed_of_the_environment_holds() {
    let seed = env("REPLIKV_SIM_SEED").unwrap_or(20_240_917);
    let config = Config::from_env().unwrap();
    let report = Simulation::run(seed, &config);
    println!("{report}");
    let smaller = || if env("REPLIKV_SIM_SHRINK").is_some() { explain(&report) } else { report.reproduce() };
    assert_eq!(report.violation, None, "{}", smaller());
}

#[test]
fn what_must_hold_holds_and_every_situation_is_met() {
    // Those of one topology follow one another.
    let parts = [(0, 20), (20, 20), (40, 20), (60, 14), (74, 13), (87, 13), (187, 13), (287, 13), (130, 13)].map(
        |(first, seeds)| {
            let campaign = Campaign { first, config: Config::default() };
            (Topology::of(first), std::thread::spawn(move || campaign.seeds(seeds)))
        },
    );
    let mut each = Topology::ALL.iter().map(|topology| (*topology, Totals::default())).collect::<Vec<_>>();
    for (topology, part) in parts {
        let part = part.join().unwrap();
        each.iter_mut().filter(|(other, _)| *other == topology).for_each(|(_, totals)| totals.merge(part.clone()));
    }
    let mut totals = Totals::default();
    for (topology, part) in each {
        assert_eq!(part.coverage.missing_of(topology), Vec::<&str>::new(), "never met in a {}", topology.word());
        totals.merge(part);
    }
    all_hold(&totals);
    assert_eq!(totals.seeds, SEEDS);
    assert_eq!(totals.coverage.missing(), Vec::<&str>::new(), "never met in {SEEDS} seeds");
    assert!(totals.converged > SEEDS && totals.refused > 0, "{} and {}", totals.converged, totals.refused);
}

// Campaigns found them, and they are cut soon after. Three have a log that is weighed against the data; in the fifth one a
// slave was down while one of two others left its store; then a slave came to a master that was about to begin an epoch, and one to
// a master whose log another one on the store had compacted. In the next two no handshake came to its end in time, and a master
// was empty for a moment, of which the oracle had not heard. Then records before a compacted stretch were lost, and not the
// stretch; and in the last one another master on the store had trimmed what lay before a run, which was served for all of it.
#[test]
fn seeds_that_failed_once_hold() {
    let seeds = [
        (1883130819313677, 7),
        (1883130821214230, 12),
        (1883126526705668, 10),
        (1883126525263899, 3),
        (1883130822197249, 14),
        (1883289597771858, 7),
        (1883285302411411, 3),
        (1883291756134600, 19),
        (1883296050970668, 15),
        (1883296051953713, 19),
        (1883294007754816, 2),
    ];
    let runs = seeds.map(|(seed, seconds)| {
        let config = Config::default().topology(Topology::Star).millis(seconds * 1_000);
        std::thread::spawn(move || Simulation::run(seed, &config))
    });
    for report in runs.map(|run| run.join().unwrap()) {
        assert_eq!(report.violation, None, "{}", report.reproduce());
    }
}

// A campaign of quick promotions found them. In the first one the record that would have told that a slave had parted was
// damaged; the rest were mistakes of the simulator. In the last five a promotion was taken back by a failed sync, or whoever
// took over had lost everything, and somebody had to be promoted in the end. The two at the end are of a later campaign: a
// promotion that fences failed at its last step, shortly before it was given up; or its epoch had begun, and in the end
// all were sent to a twin of it.
#[test]
fn promotions_that_failed_once_hold() {
    let mended = [600030, 731356, 796796, 4295567533, 4295763939];
    let seeds = [600107, 665655, 731133, 4295567450, 4295567509].into_iter().chain(mended);
    // They are of a time when nobody changed masters in order.
    let config = Config::default().topology(Topology::Failover).pace(40).millis(6_000);
    let unplanned = [Fault::TakeOver, Fault::FencedPromotion, Fault::LostAnswer];
    let config = unplanned.into_iter().fold(config, Config::without);
    let planned = Config::default().topology(Topology::Failover);
    let later = [1883296051167261, 1883294008475760];
    for (seed, config) in seeds.map(|seed| (seed, config.clone())).chain(later.map(|seed| (seed, planned.clone()))) {
        let report = Simulation::run(seed, &config);
        assert_eq!(report.violation, None, "{}", report.reproduce());
    }
}

// All of them mistakes of the simulator. In the first two a master went on that was opened while a failed sync took its
// promotion back; in the others nobody was left to be a slave, and a master woke for ever that waited for what was in flight.
#[test]
fn dynasties_that_failed_once_hold() {
    let config = Config::default().topology(Topology::Dynasty);
    let apart = config.clone().without(Fault::TakeOver);
    let runs = [
        (1883242379608103, apart.clone().millis(3_000)),
        (1883246674640922, apart.millis(7_000)),
        (1883241388703744, config.clone().millis(3_000)),
        (1883245683736578, config.clone().millis(2_000)),
        (1883267867410548, config.clone()),
        (1883263572508740, config.clone()),
        (1883267867344932, config),
    ];
    for (seed, config) in runs {
        let report = Simulation::run(seed, &config);
        assert_eq!(report.violation, None, "{}", report.reproduce());
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let seeds = [3, 14, 15, 61, 80, 92, 131];
    for topology in Topology::ALL {
        assert!(seeds.iter().any(|seed| Topology::of(*seed) == *topology), "no seed of a {}", topology.word());
    }
    for seed in seeds {
        let config = Config::default().millis(6_000);
        let (one, other) = (Simulation::run(seed, &config), Simulation::run(seed, &config));
        assert_eq!(one, other, "seed {seed}");
        assert_ne!(one.trace, Simulation::run(seed + 1, &config).trace, "the trace tells runs apart");
    }
}

#[test]
fn without_faults_every_slave_comes_to_equal_its_master() {
    for seed in (0..4).chain([60, 61, 80, 81, 130, 131]) {
        let report = Simulation::run(seed, &Config::default().only(&[]).millis(3_000));
        assert_eq!(report.violation, None, "{}", explain(&report));
        assert_eq!((report.coverage.injected(), report.records > 10), (0, true));
    }
}

#[test]
fn a_failing_run_is_made_smaller_and_still_fails() {
    use replikv_testkit::sim::{Bug, DriverBug};
    let config = Config::default().bug(Bug::Driver(DriverBug::AckBeforeDurable));
    let failing = (0..50).map(|seed| Simulation::run(seed, &config)).find(|report| report.violation.is_some()).unwrap();
    let small = shrink(&failing);
    let (wanted, found) = (failing.violation.unwrap(), small.violation.clone().unwrap());
    assert_eq!(wanted.invariant, found.invariant);
    assert!(Fault::ALL.iter().all(|fault| !small.config.allows(*fault)), "no fault is needed for this one: {small}");
    assert_eq!(Simulation::run(small.seed, &small.config), small);
}

#[test]
fn the_line_of_a_failing_run_fails_in_the_same_way_again() {
    use replikv_testkit::sim::{Bug, DriverBug};
    let config = Config::default().millis(3_000).without(Fault::Cut).bug(Bug::Driver(DriverBug::AckOnArrival));
    let failing = (0..50).map(|seed| Simulation::run(seed, &config)).find(|report| report.violation.is_some()).unwrap();
    let line = failing.reproduce();
    let (settings, test) = line.split_once("cargo test").unwrap();
    let settings = settings.split_whitespace().map(|setting| setting.split_once('=').unwrap());
    let (_, arguments) = test.split_once(" -- ").unwrap();
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .args(arguments.split_whitespace())
        .envs(settings)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(!again.status.success() && said.contains(&failing.to_string()), "{line}\n{said}");
}

/// `REPLIKV_SIM_SECONDS=600 cargo test --release -p replikv-testkit --test sim -- --ignored --nocapture campaign`
///
/// New seeds, or those from `REPLIKV_SIM_SEED` on, on `REPLIKV_SIM_THREADS` threads. Says every minute how far it is;
/// what fails is written to `REPLIKV_SIM_FAILURES` as well, with the line that repeats it.
#[test]
#[ignore = "runs for as long as REPLIKV_SIM_SECONDS says"]
fn campaign() {
    let seconds = Duration::from_secs(env("REPLIKV_SIM_SECONDS").unwrap_or(60));
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = env("REPLIKV_SIM_SEED").unwrap_or(since_epoch.as_secs() << 20);
    let threads = env("REPLIKV_SIM_THREADS");
    let threads =
        threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64));
    println!("seeds from {first} on, {threads} threads, {seconds:?}");
    let (began, mut totals) = (Instant::now(), Totals::default());
    for round in 0.. {
        let left = seconds.saturating_sub(began.elapsed());
        if left.is_zero() || totals.failures.len() >= ENOUGH {
            break;
        }
        let campaign = Campaign { first: first + (round << 16), config: Config::from_env().unwrap() };
        let found = campaign.time(left.min(Duration::from_secs(60)), threads);
        found.failures.iter().for_each(write_down);
        totals.merge(found);
        say(&totals, began.elapsed().as_secs_f64());
    }
    println!("never met: {:?}\n{:#?}", totals.coverage.missing(), totals.coverage);
    all_hold(&totals);
}

/// So many failures are enough for a campaign.
const ENOUGH: usize = 10;

fn write_down(failure: &Report) {
    println!("{failure}");
    if let Some(path) = std::env::var_os("REPLIKV_SIM_FAILURES") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{failure}\n").unwrap();
    }
}

fn say(totals: &Totals, real: f64) {
    let simulated = totals.millis as f64 / 1e3;
    let faults = totals.coverage.injected();
    println!(
        "{real:.0} s: {} seeds, {} events ({:.0} a second), {simulated:.0} simulated seconds ({:.0} a second), {} records, \
         {faults} faults ({:.0} a second), {} slaves came to equal their master, {} were refused rightly, {} failures",
        totals.seeds,
        totals.events,
        totals.events as f64 / real,
        simulated / real,
        totals.records,
        faults as f64 / real,
        totals.converged,
        totals.refused,
        totals.failures.len(),
    );
}

// docs/reliability.md says which test, kind of fault or situation stands for which scenario: `fault:cut`, `scene:resumed`.
#[test]
fn every_scenario_of_the_document_is_a_fault_or_a_situation_that_is_counted() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reliability.md");
    let document = std::fs::read_to_string(path).unwrap();
    let named = |kind: &str| -> BTreeSet<String> {
        let words = document
            .split('`')
            .skip(1)
            .step_by(2)
            .filter_map(|span| span.strip_prefix(kind))
            .filter(|word| !word.is_empty());
        words.map(String::from).collect()
    };
    let faults: BTreeSet<String> = Fault::ALL.iter().map(|fault| fault.word().into()).collect();
    let scenes: BTreeSet<String> = Scene::ALL.iter().map(|scene| scene.word().into()).collect();
    assert_eq!(named("fault:").difference(&faults).next(), None, "no such kind of fault");
    assert_eq!(named("scene:").difference(&scenes).next(), None, "no such situation");
    assert_eq!(faults.difference(&named("fault:")).next(), None, "the document does not say what it stands for");
}
