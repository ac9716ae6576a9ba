//! What a run is given besides its seed.

use super::{Bug, Fault, Topology};

/// The settings of a run. What is not set here is drawn from the seed: sizes, rates, the number of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub(super) millis: u64,
    pub(super) heal_millis: u64,
    pub(super) off: Vec<Fault>,
    pub(super) max_slaves: usize,
    pub(super) quiet: bool,
    pub(super) pace: Option<u64>,
    pub(super) topology: Option<Topology>,
    pub(super) bug: Option<Bug>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            millis: 20_000,
            heal_millis: 120_000,
            off: Vec::new(),
            max_slaves: 4,
            quiet: false,
            pace: None,
            topology: None,
            bug: None,
        }
    }
}

impl Config {
    /// For how long faults and writes go on, in milliseconds of virtual time. Default: 20 seconds.
    #[must_use]
    pub fn millis(mut self, millis: u64) -> Self {
        self.millis = millis.max(1);
        self
    }

    /// Never injects this fault.
    #[must_use]
    pub fn without(mut self, fault: Fault) -> Self {
        if !self.off.contains(&fault) {
            self.off.push(fault);
        }
        self
    }

    /// Injects no other faults than these.
    #[must_use]
    pub fn only(mut self, faults: &[Fault]) -> Self {
        self.off = Fault::ALL.iter().copied().filter(|fault| !faults.contains(fault)).collect();
        self
    }

    /// At most so many slaves; the seed draws how many. Default: 4.
    #[must_use]
    pub fn max_slaves(mut self, slaves: usize) -> Self {
        self.max_slaves = slaves.max(1);
        self
    }

    /// Plain puts, one at a time.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// About how long it is from one fault to the next, in milliseconds of virtual time. Default: the seed draws it.
    #[must_use]
    pub fn pace(mut self, millis: u64) -> Self {
        self.pace = Some(millis.max(1));
        self
    }

    /// How nodes stand to one another. Default: the seed says ([`Topology::of`]).
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = Some(topology);
        self
    }

    /// Plants a bug, to see that it is found.
    #[must_use]
    pub fn bug(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }

    /// Whether a fault may be injected.
    pub fn allows(&self, fault: Fault) -> bool {
        !self.off.contains(&fault)
    }

    /// The default, changed by `REPLIKV_SIM_MILLIS`, `REPLIKV_SIM_SLAVES`, `REPLIKV_SIM_QUIET`, `REPLIKV_SIM_PACE`,
    /// `REPLIKV_SIM_TOPOLOGY`, `REPLIKV_SIM_BUG` (the name of one that can be planted) and `REPLIKV_SIM_OFF` (words of faults, separated by commas): what the line that reproduces a failure sets.
    ///
    /// # Errors
    /// The words of what does not parse.
    pub fn from_env() -> Result<Self, String> {
        let mut config = Self::default();
        if let Some(millis) = number("REPLIKV_SIM_MILLIS")? {
            config = config.millis(millis);
        }
        if let Some(slaves) = number("REPLIKV_SIM_SLAVES")? {
            config = config.max_slaves(usize::try_from(slaves).unwrap_or(usize::MAX));
        }
        if let Some(millis) = number("REPLIKV_SIM_PACE")? {
            config = config.pace(millis);
        }
        if let Ok(word) = std::env::var("REPLIKV_SIM_TOPOLOGY") {
            let topology = Topology::ALL.iter().find(|topology| topology.word() == word);
            config = config.topology(*topology.ok_or_else(|| format!("REPLIKV_SIM_TOPOLOGY: {word} is none"))?);
        }
        config.quiet = std::env::var_os("REPLIKV_SIM_QUIET").is_some();
        if let Ok(name) = std::env::var("REPLIKV_SIM_BUG") {
            let bug = Bug::named(&name);
            config = config.bug(bug.ok_or_else(|| format!("REPLIKV_SIM_BUG: {name} cannot be planted in this build"))?);
        }
        let off = std::env::var("REPLIKV_SIM_OFF").unwrap_or_default();
        for word in off.split(',').filter(|word| !word.is_empty()) {
            let fault = Fault::ALL.iter().find(|fault| fault.word() == word);
            config = config.without(*fault.ok_or_else(|| format!("REPLIKV_SIM_OFF: {word} is no fault"))?);
        }
        Ok(config)
    }

    /// The environment that leads [`from_env`](Self::from_env) here, for a command line.
    pub fn to_env(&self) -> String {
        let default = Self::default();
        let mut env = String::new();
        if self.millis != default.millis {
            env += &format!("REPLIKV_SIM_MILLIS={} ", self.millis);
        }
        if self.max_slaves != default.max_slaves {
            env += &format!("REPLIKV_SIM_SLAVES={} ", self.max_slaves);
        }
        if self.quiet {
            env += "REPLIKV_SIM_QUIET=1 ";
        }
        if let Some(bug) = self.bug {
            env += &format!("REPLIKV_SIM_BUG={bug} ");
        }
        if let Some(millis) = self.pace {
            env += &format!("REPLIKV_SIM_PACE={millis} ");
        }
        if let Some(topology) = self.topology {
            env += &format!("REPLIKV_SIM_TOPOLOGY={} ", topology.word());
        }
        if !self.off.is_empty() {
            let words: Vec<_> = self.off.iter().map(|fault| fault.word()).collect();
            env += &format!("REPLIKV_SIM_OFF={} ", words.join(","));
        }
        env
    }
}

fn number(name: &str) -> Result<Option<u64>, String> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name}: {text} is no number"))
}
