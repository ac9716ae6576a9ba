//! Every bug that can be planted is found. A bug that is not is a hole in the simulator.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use replikv_testkit::sim::{Bug, Config, Report, Simulation};

/// So long at most is looked for one bug, on one core.
const PATIENCE: Duration = Duration::from_secs(120);

fn find(bug: Bug) -> Option<(u64, Report)> {
    let began = Instant::now();
    let config = Config::default().bug(bug);
    let reports = (0..).take_while(|_| began.elapsed() < PATIENCE).map(|seed| Simulation::run(seed, &config));
    let mut runs = 0;
    let found = reports.inspect(|_| runs += 1).find(|report| report.violation.is_some());
    found.map(|report| (runs, report))
}

#[test]
fn every_planted_bug_is_found() {
    let wanted = std::env::var("REPLIKV_SIM_BUG").ok();
    let mut bugs = Bug::all();
    bugs.retain(|bug| wanted.as_ref().is_none_or(|wanted| *wanted == bug.to_string()));
    bugs.reverse();
    let (queue, found) = (Mutex::new(bugs), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(bug) = { queue.lock().unwrap().pop() } {
                    let began = Instant::now();
                    let line = find(bug).map(|(runs, report)| {
                        let violation = report.violation.unwrap();
                        let (invariant, events) = (violation.invariant, report.events);
                        format!("{invariant:?} | {runs} | {events} | {:.1} s", began.elapsed().as_secs_f64())
                    });
                    println!("| {bug} | {} |", line.as_deref().unwrap_or("NOT FOUND"));
                    found.lock().unwrap().insert(bug.to_string(), line);
                }
            });
        }
    });
    let missed: Vec<_> = found.into_inner().unwrap().into_iter().filter(|(_, line)| line.is_none()).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
