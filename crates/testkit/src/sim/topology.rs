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
    /// As a tree, in which relays and leaves are promoted, and masters come back as slaves below any node.
    Dynasty,
    /// Several masters, and one store that follows them all: over links, each under a prefix.
    Centre,
}

impl Topology {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Star, Self::Failover, Self::Tree, Self::Dynasty, Self::Centre];

    /// What a seed stands for, if the settings do not say.
    pub const fn of(seed: u64) -> Self {
        match seed % 200 {
            0..60 | 100..130 => Self::Star,
            130..160 => Self::Dynasty,
            60..74 | 160..174 => Self::Failover,
            74..87 | 174..187 => Self::Tree,
            _ => Self::Centre,
        }
    }

    /// Whether its nodes are masters at one time and slaves at another.
    pub(super) const fn passes_on(self) -> bool {
        matches!(self, Self::Failover | Self::Dynasty)
    }

    /// Whether its slaves serve slaves of their own.
    pub(super) const fn cascades(self) -> bool {
        matches!(self, Self::Tree | Self::Dynasty)
    }

    /// Whether a run of it knows this kind of fault.
    pub fn knows(self, fault: Fault) -> bool {
        let planned = matches!(fault, Fault::TakeOver | Fault::LostAnswer);
        let fences = fault == Fault::FencedPromotion;
        let moves = matches!(fault, Fault::Promotion | Fault::Demotion | Fault::Moved) || planned || fences;
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
            Self::Star => !moves && !matches!(fault, Fault::Reparented | Fault::Unlinked),
            Self::Tree => !moves && single && fault != Fault::Unlinked,
            // A link that is given an empty store is undone, which is tried in its own way.
            Self::Centre => !moves && single && !matches!(fault, Fault::Reparented | Fault::Wiped),
            // Whoever loses a master's store, or has two of it, does not know any more who is the newest.
            Self::Failover => single && !matches!(fault, Fault::Reparented | Fault::Unlinked),
            // A master counts its own slaves: what those below a relay promise would say nothing of them.
            Self::Dynasty => single && !fences && fault != Fault::Unlinked,
        }
    }

    /// In one word: for the environment.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Star => "star",
            Self::Failover => "failover",
            Self::Tree => "tree",
            Self::Dynasty => "dynasty",
            Self::Centre => "centre",
        }
    }
}
