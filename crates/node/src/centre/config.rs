//! What a link is.

use replikv_core::{LinkId, Subspace};

use crate::SlaveConfig;

/// A link of a [`Centre`](super::Centre): its name, where its entries go, and how it follows.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    pub(super) link: LinkId,
    pub(super) target: Option<Subspace>,
    pub(super) slave: SlaveConfig,
}

impl LinkConfig {
    /// A link named `link`, that follows as `slave` says. The slave's name is what the master knows this centre by: if two
    /// links follow one master, it must be another one for each.
    ///
    /// Its entries go under the link's name and a slash: `k` of link `edge-1` is `edge-1/k` in the centre.
    pub fn new(link: LinkId, slave: SlaveConfig) -> Self {
        Self { link, target: None, slave }
    }

    /// Puts the link's entries there: every key gets that prefix. [`Subspace::root`] leaves keys as they are, and no
    /// room for another link.
    #[must_use]
    pub fn into(mut self, target: Subspace) -> Self {
        self.target = Some(target);
        self
    }

    pub(super) fn default_target(link: &LinkId) -> Subspace {
        Subspace::raw([link.as_str().as_bytes(), b"/"].concat())
    }
}
