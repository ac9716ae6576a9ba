//! How nodes stand to one another.

use super::Fault;

/// How nodes stand to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One or two masters, and slaves of theirs.
    Star,
    /// One master and its slaves, which change their places: slaves are promoted, masters come back as slaves.
    Failover,
}

impl Topology {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Star, Self::Failover];

    /// What a seed stands for, if the settings do not say.
    pub const fn of(seed: u64) -> Self {
        match seed % 100 {
            0..60 => Self::Star,
            _ => Self::Failover,
        }
    }

    /// Whether a run of it knows this kind of fault.
    pub(super) fn knows(self, fault: Fault) -> bool {
        let moves = matches!(fault, Fault::Promotion | Fault::Demotion | Fault::Moved);
        match self {
            Self::Star => !moves,
            // Whoever loses a master's store, or has two of it, does not know any more who is the newest.
            Self::Failover => !matches!(
                fault,
                Fault::Restore
                    | Fault::EmptyMaster
                    | Fault::SecondMaster
                    | Fault::ClonedMaster
                    | Fault::Repoint
                    | Fault::SameName
                    | Fault::SharedStore
                    | Fault::StrangeData
            ),
        }
    }

    /// In one word: for the environment.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Star => "star",
            Self::Failover => "failover",
        }
    }
}
