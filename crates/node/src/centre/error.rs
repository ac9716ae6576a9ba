//! Why a link cannot be opened or undone.

use replikv_core::{KeyRanges, LinkId, StoreError};

use crate::OpenError;

/// Why a link cannot be opened or undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Another link has keys that this one wants. Give it another target, or undo the other one.
    #[error("link {link} wants keys under {wanted:?}, and link {other} has those under {held:?}")]
    Claimed {
        /// The link that was to be opened.
        link: LinkId,
        /// What its keys would begin with.
        wanted: String,
        /// The link that is there.
        other: LinkId,
        /// What its keys begin with.
        held: String,
    },
    /// What the centre derives lies where this link wants keys. Give it another target.
    #[error("link {link} wants keys under {wanted:?}, and what {name} derives lies under {held:?}")]
    Derived {
        /// The link that was to be opened.
        link: LinkId,
        /// What its keys would begin with.
        wanted: String,
        /// The derive.
        name: String,
        /// What the keys of its entries begin with.
        held: String,
    },
    /// The link is there, and its entries are elsewhere. Open it with the target that it has, or undo it first.
    #[error("link {link} has its entries under {held:?}, not under {wanted:?}")]
    Moved {
        /// The link.
        link: LinkId,
        /// What its keys begin with.
        held: String,
        /// What was asked for.
        wanted: String,
    },
    /// The link is there, and strips another prefix. Open it with the one that it has, or undo it first.
    #[error("link {link} strips {held:?} off its master's keys, not {wanted:?}")]
    Strips {
        /// The link.
        link: LinkId,
        /// What it strips; nothing if empty.
        held: String,
        /// What was asked for.
        wanted: String,
    },
    /// The link was to subscribe to keys that do not begin with what it strips. Ask for ranges within that.
    #[error("link {link} strips {strip:?} off its master's keys, and some of {ranges} do not begin with that")]
    NotStripped {
        /// The link that was to be opened.
        link: LinkId,
        /// What it strips.
        strip: String,
        /// What it was to subscribe to.
        ranges: KeyRanges,
    },
    /// Under the link's prefix there is no room for a key. Give it a shorter one.
    #[error("link {link} puts {len} bytes before its keys, and the store holds keys of up to {max}")]
    TooLong {
        /// The link.
        link: LinkId,
        /// How long its prefix is, less what it strips.
        len: usize,
        /// The longest key of the store.
        max: usize,
    },
    /// Somebody has the link open: shut that down first.
    #[error("link {link} is open")]
    Open {
        /// The link.
        link: LinkId,
    },
    /// The link is being undone. Wait until it is.
    #[error("link {link} is being undone")]
    Leaving {
        /// The link.
        link: LinkId,
    },
    /// There is no such link.
    #[error("there is no link {link}")]
    NoSuchLink {
        /// The name.
        link: LinkId,
    },
    /// The link's part of the store cannot be opened as a slave's.
    #[error(transparent)]
    Slave(#[from] OpenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
