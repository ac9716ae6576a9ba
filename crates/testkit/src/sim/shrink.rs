//! Making a failing run small.

use super::{Config, Fault, Report, Simulation};

/// The smallest run, as far as that can be found by leaving things out one by one, in which the same thing does not
/// hold: kinds of faults, time, slaves, all but plain puts. Other seeds near by are tried as well, since a run that does
/// less is another run.
pub fn shrink(failing: &Report) -> Report {
    let mut best = failing.clone();
    while let Some(smaller) = candidates(&best.config).into_iter().find_map(|config| fails_alike(&best, &config)) {
        best = smaller;
    }
    best
}

fn candidates(config: &Config) -> Vec<Config> {
    let mut candidates = Vec::new();
    for part in [1, 4, 8] {
        let shorter = config.millis * part / (part + 1);
        if shorter >= 100 {
            candidates.push(config.clone().millis(shorter));
        }
    }
    if config.max_slaves > 1 {
        candidates.push(config.clone().max_slaves(config.max_slaves - 1));
    }
    if !config.quiet {
        candidates.push(config.clone().quiet());
    }
    let on = Fault::ALL.iter().filter(|fault| config.allows(**fault));
    candidates.extend(on.map(|fault| config.clone().without(*fault)));
    candidates
}

fn fails_alike(report: &Report, config: &Config) -> Option<Report> {
    let wanted = report.violation.as_ref()?.invariant;
    let seeds = std::iter::once(report.seed).chain(0..4);
    let fails = |run: &Report| run.violation.as_ref().is_some_and(|found| found.invariant == wanted);
    seeds.map(|seed| Simulation::run(seed, config)).find(fails)
}
