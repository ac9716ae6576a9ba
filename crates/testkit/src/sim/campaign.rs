//! Many seeds, one after the other.

use std::time::{Duration, Instant};

use super::{Config, Coverage, Report, Simulation};

/// Runs seeds from a first one on.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The first seed.
    pub first: u64,
    /// The settings of every run.
    pub config: Config,
}

/// What a campaign came to.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Seeds that ran.
    pub seeds: u64,
    /// Events handled.
    pub events: u64,
    /// Virtual time that passed, in milliseconds.
    pub millis: u64,
    /// Records committed.
    pub records: u64,
    /// Slaves that ended equal to their master.
    pub converged: u64,
    /// Slaves that ended in the refusal that their situation demands.
    pub refused: u64,
    /// What happened.
    pub coverage: Coverage,
    /// Runs in which something did not hold.
    pub failures: Vec<Report>,
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.events += report.events;
        self.millis += report.millis;
        self.records += report.records;
        self.converged += report.converged as u64;
        self.refused += report.refused as u64;
        self.coverage.add(&report.coverage);
        if report.violation.is_some() {
            self.failures.push(report);
        }
    }

    /// Adds what others ran.
    pub fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.millis += other.millis;
        self.records += other.records;
        self.converged += other.converged;
        self.refused += other.refused;
        self.coverage.add(&other.coverage);
        self.failures.extend(other.failures);
    }
}

impl Campaign {
    /// Runs `seeds` seeds.
    pub fn seeds(&self, seeds: u64) -> Totals {
        self.until(|done| done >= seeds)
    }

    /// Runs seeds for about so long, in real time, on so many threads. Which seeds are run depends on the machine; what
    /// each of them comes to does not.
    pub fn time(&self, time: Duration, threads: u64) -> Totals {
        let began = Instant::now();
        let threads = threads.max(1);
        let mut totals = Totals::default();
        std::thread::scope(|scope| {
            let runners: Vec<_> = (0..threads)
                .map(|thread| {
                    let campaign = Self { first: self.first + (thread << 32), config: self.config.clone() };
                    scope.spawn(move || campaign.until(|_| began.elapsed() >= time))
                })
                .collect();
            for runner in runners {
                // A run catches its own panics: a thread that died has nothing to tell.
                totals.merge(runner.join().unwrap_or_default());
            }
        });
        totals
    }

    fn until(&self, enough: impl Fn(u64) -> bool) -> Totals {
        let mut totals = Totals::default();
        // A few failures tell as much as many.
        while !enough(totals.seeds) && totals.failures.len() < 3 {
            totals.add(Simulation::run(self.first + totals.seeds, &self.config));
        }
        totals
    }
}
