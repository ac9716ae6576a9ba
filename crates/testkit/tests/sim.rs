//! The simulator, over fixed seeds and those that the environment asks for.

use replikv_testkit::sim::{Config, Simulation};

#[test]
fn the_seed_of_the_environment_holds() {
    let seed: u64 = std::env::var("REPLIKV_SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let config = Config::from_env().unwrap();
    let t = std::time::Instant::now();
    let n: u64 = std::env::var("N").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut events = 0;
    let mut cov = replikv_testkit::sim::Coverage::default();
    let mut millis = 0;
    for seed in seed..seed + n {
        let report = Simulation::run(seed, &config);
        events += report.events;
        millis += report.millis;
        cov.add(&report.coverage);
        if report.violation.is_some() { println!("{report}"); } 
    }
    println!("{events} events {millis} ms in {:?}\nmissing {:?}\n{cov:#?}", t.elapsed(), cov.missing());
}
