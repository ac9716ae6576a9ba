//! Why a store cannot be opened as a master or a slave.

use replikv_core::{InvalidLinkId, LinkId, StoreError};
use replikv_proto::InvalidSubscription;
use replikv_proto::layout::{Role, Superseded};

/// Why a store cannot be opened as a master or a slave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store has the other role.
    #[error("the store is a {found}'s, it cannot be opened as a {wanted}")]
    Role {
        /// What the store is.
        found: Role,
        /// What it was opened as.
        wanted: Role,
    },
    /// The store follows under another link: one store has one lineage.
    #[error("the store follows under link {other}, it cannot follow under {wanted} as well")]
    OtherLink {
        /// The link that is there.
        other: String,
        /// The link that was asked for.
        wanted: String,
    },
    /// The store is a backup of a master: which goes on, or not, and nobody but its owner knows. Say how this one goes on.
    #[error(
        "the store is a backup of a master: to follow its master with it, open it as a slave that takes a backup \
         (--as-slave NAME); to go on from it as the master, open it in a new epoch (--new-epoch), and never run the old \
         one again"
    )]
    Backup,
    /// The store is what is left of a backup that was never complete.
    #[error("the store is a backup that was never completed: remove it, and take another one")]
    UnfinishedBackup,
    /// Links write to the store: it is a centre's, and is opened as one.
    #[error("links write to the store, {link} among them: open it as a centre")]
    Links {
        /// One of them.
        link: LinkId,
    },
    /// The store is a master's whose history has gone on with another one. It can follow that one, if it is opened as a
    /// slave that [rejoins](crate::SlaveConfig::rejoin).
    #[error("{}: follow that one (--rejoin NAME)", mark.words())]
    Superseded {
        /// By whom.
        mark: Superseded,
    },
    /// A derive cannot be had as it is configured, or cannot derive from what is there.
    #[error("{name} cannot be derived: {reason}")]
    Derive {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The slave's name is none.
    #[error(transparent)]
    Name(#[from] InvalidLinkId),
    /// No slave can subscribe to these key ranges.
    #[error(transparent)]
    Subscription(#[from] InvalidSubscription),
    /// It cannot keep the log for slaves of its own.
    #[error("it cannot keep the log for others: {reason}")]
    NoRelay {
        /// Why.
        reason: &'static str,
    },
    /// The store cannot hold what the configuration accepts.
    #[error("the store is too small for a master: {reason}")]
    Limits {
        /// What does not fit.
        reason: String,
    },
    /// The system gives no random numbers, and an identity must not be guessed.
    #[error("no random numbers: {reason}")]
    Random {
        /// What the system said.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.ends_with(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}
