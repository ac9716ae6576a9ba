//! Making a failing run small.

use super::{Config, Fault, Report, Simulation};

/// So many runs at most are spent on one failure.
const PATIENCE: usize = 150;

/// The smallest run, as far as that can be found by leaving things out one by one, in which the same thing does not
/// hold: kinds of faults, time, slaves, all but plain puts. Another seed is tried as well, since a run that does less is
/// another run.
pub fn shrink(failing: &Report) -> Report {
    let mut best = failing.clone();
    let mut runs = 0;
    // What had to stay once has to stay: each thing is tried once, but time, which is cut as often as it helps.
    let mut steps: Vec<Step> = vec![Step::Quiet, Step::Slaves];
    steps.extend(Fault::ALL.iter().map(|fault| Step::Fault(*fault)));
    let half = |millis| [millis / 4, millis / 2, millis * 4 / 5];
    loop {
        let millis = best.config.millis;
        let shorter = half(millis).into_iter().filter(|shorter| *shorter >= 100);
        let shorter = shorter.map(|shorter| best.config.clone().millis(shorter));
        match shorter.into_iter().find_map(|config| fails_alike(&best, &config, &mut runs)) {
            Some(smaller) => best = smaller,
            None => break,
        }
    }
    for step in steps {
        if let Some(smaller) = step.of(&best.config).and_then(|config| fails_alike(&best, &config, &mut runs)) {
            best = smaller;
        }
    }
    best
}

/// Something to leave out.
enum Step {
    Quiet,
    Slaves,
    Fault(Fault),
}

impl Step {
    fn of(&self, config: &Config) -> Option<Config> {
        match self {
            Self::Quiet => (!config.quiet).then(|| config.clone().quiet()),
            Self::Slaves => (config.max_slaves > 1).then(|| config.clone().max_slaves(1)),
            Self::Fault(fault) => config.allows(*fault).then(|| config.clone().without(*fault)),
        }
    }
}

fn fails_alike(report: &Report, config: &Config, runs: &mut usize) -> Option<Report> {
    let wanted = report.violation.as_ref()?.invariant;
    let fails = |run: &Report| run.violation.as_ref().is_some_and(|found| found.invariant == wanted);
    [report.seed, report.seed + 1].into_iter().find_map(|seed| {
        *runs += 1;
        Some(Simulation::run(seed, config)).filter(|run| *runs <= PATIENCE && fails(run))
    })
}
