//! The simulator, over fixed seeds and those that the environment asks for.

use std::time::Duration;

use replikv_testkit::sim::{Campaign, Config, Fault, Report, Simulation, Totals, shrink};

/// Fixed, so that a red build is red again. They are few enough for a build, and many enough to meet every situation:
/// a test holds them to that.
const SEEDS: u64 = 60;

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
    assert_eq!(report.violation, None, "{}", report.reproduce());
}

#[test]
fn what_must_hold_holds_and_every_situation_is_met() {
    let halves = [0, SEEDS / 2]
        .map(|first| std::thread::spawn(move || Campaign { first, config: Config::default() }.seeds(SEEDS / 2)));
    let mut totals = Totals::default();
    for half in halves {
        totals.merge(half.join().unwrap());
    }
    all_hold(&totals);
    assert_eq!(totals.seeds, SEEDS);
    assert_eq!(totals.coverage.missing(), Vec::<&str>::new(), "never met in {SEEDS} seeds");
    assert!(totals.converged > SEEDS && totals.refused > 0, "{} and {}", totals.converged, totals.refused);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 14, 15, 92] {
        let config = Config::default().millis(6_000);
        let (one, other) = (Simulation::run(seed, &config), Simulation::run(seed, &config));
        assert_eq!(one, other, "seed {seed}");
        assert_ne!(one.trace, Simulation::run(seed + 1, &config).trace, "the trace tells runs apart");
    }
}

#[test]
fn without_faults_every_slave_comes_to_equal_its_master() {
    for seed in 0..4 {
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

/// `REPLIKV_SIM_SECONDS=600 cargo test --release -p replikv-testkit --test sim -- --ignored --nocapture campaign`
#[test]
#[ignore = "runs for as long as REPLIKV_SIM_SECONDS says"]
fn campaign() {
    let seconds = env("REPLIKV_SIM_SECONDS").unwrap_or(60);
    let first = env("REPLIKV_SIM_SEED").unwrap_or(1_000_000);
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let campaign = Campaign { first, config: Config::from_env().unwrap() };
    let began = std::time::Instant::now();
    let totals = campaign.time(Duration::from_secs(seconds), threads);
    let real = began.elapsed().as_secs_f64();
    println!("{} seeds from {first} on, {threads} threads, {real:.0} s", totals.seeds);
    println!("{} events, {:.0} a second", totals.events, totals.events as f64 / real);
    println!("{:.0} simulated seconds, {:.0} a second", totals.millis as f64 / 1e3, totals.millis as f64 / 1e3 / real);
    println!("{} records, {} faults", totals.records, totals.coverage.injected());
    println!("{} slaves came to equal their master, {} were refused rightly", totals.converged, totals.refused);
    println!("never met: {:?}\n{:#?}", totals.coverage.missing(), totals.coverage);
    all_hold(&totals);
}
