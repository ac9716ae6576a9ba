//! How nodes stand to one another.

use super::Fault;

/// How nodes stand to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One or two masters, and slaves of theirs.
    Star,
    /// One master and its slaves, which change their places: slaves are promoted, masters come back as slaves.
    Failover,
    /// One master, and slaves that serve slaves of their own, which find other parents.
    Tree,
}

impl Topology {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Star, Self::Failover, Self::Tree];

    /// What a seed stands for, if the settings do not say.
    pub const fn of(seed: u64) -> Self {
        match seed % 100 {
            0..60 => Self::Star,
            60..80 => Self::Failover,
            _ => Self::Tree,
        }
    }

    /// Whether a run of it knows this kind of fault.
    pub(super) fn knows(self, fault: Fault) -> bool {
        let moves = matches!(fault, Fault::Promotion | Fault::Demotion | Fault::Moved);
        let single = !matches!(
            fault,
            Fault::Restore
                | Fault::EmptyMaster
                | Fault::SecondMaster
                | Fault::ClonedMaster
                | Fault::Repoint
                | Fault::SameName
                | Fault::SharedStore
                | Fault::StrangeData
        );
        match self {
            Self::Star => !moves && fault != Fault::Reparented,
            Self::Tree => !moves && single,
            // Whoever loses a master's store, or has two of it, does not know any more who is the newest.
            Self::Failover => single && fault != Fault::Reparented,
        }
    }

    /// In one word: for the environment.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Star => "star",
            Self::Failover => "failover",
            Self::Tree => "tree",
        }
    }
}
