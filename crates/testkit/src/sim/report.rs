//! What a run comes to.

use super::{Config, Coverage, Violation};

/// What a run comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The settings.
    pub config: Config,
    /// A fingerprint of everything that happened, in order: equal for equal seeds and settings.
    pub trace: u64,
    /// How many events were handled.
    pub events: u64,
    /// How much virtual time passed, in milliseconds.
    pub millis: u64,
    /// How many records masters committed.
    pub records: u64,
    /// How many slaves ended equal to their master.
    pub converged: usize,
    /// How many slaves ended in the refusal that their situation demands.
    pub refused: usize,
    /// What happened.
    pub coverage: Coverage,
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
}

impl Report {
    /// The command that repeats this run.
    pub fn reproduce(&self) -> String {
        format!(
            "REPLIKV_SIM_SEED={} {}cargo test -p replikv-testkit{} --test sim -- --exact \
             the_seed_of_the_environment_holds --nocapture",
            self.seed,
            self.config.to_env(),
            if self.config.bug.is_some() { " --features planted-bugs" } else { "" }
        )
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seed, events, millis) = (self.seed, self.events, self.millis);
        match &self.violation {
            None => write!(f, "seed {seed}: {events} events in {millis} ms, all held"),
            Some(violation) => {
                write!(f, "seed {seed}: after {events} events, at {millis} ms: {violation}\n{}", self.reproduce())
            }
        }
    }
}
