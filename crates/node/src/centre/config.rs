//! What a link is.

use replikv_core::{KeyRanges, LinkId, Placement, Subspace};

use super::LinkError;
use crate::SlaveConfig;

/// A link of a [`Centre`](super::Centre): its name, where its entries go, and how it follows.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    pub(super) link: LinkId,
    pub(super) target: Option<Subspace>,
    pub(super) strip: Subspace,
    pub(super) slave: SlaveConfig,
}

impl LinkConfig {
    /// A link named `link`, that follows as `slave` says. The slave's name is what the master knows this centre by: if two
    /// links follow one master, it must be another one for each.
    ///
    /// Its entries go under the link's name and a slash: `k` of link `edge-1` is `edge-1/k` in the centre.
    pub fn new(link: LinkId, slave: SlaveConfig) -> Self {
        Self { link, target: None, strip: Subspace::root(), slave }
    }

    /// Puts the link's entries there: every key gets that prefix. [`Subspace::root`] leaves keys as they are, and no
    /// room for another link.
    #[must_use]
    pub fn into(mut self, target: Subspace) -> Self {
        self.target = Some(target);
        self
    }

    /// Brings only what lies under this prefix of the master, and takes it off: with `strip` `users/`, the master's
    /// `users/alice` is `edge-1/alice` in the centre. The master sends nothing else. Default: [`Subspace::root`], which
    /// brings everything as it is.
    ///
    /// The link subscribes to the keys with that prefix; if its slave [subscribes](SlaveConfig::subscribe), to no others. What
    /// the link's own handle reads has the master's keys. An entry whose key is the prefix itself lies at the target itself;
    /// where that is [`Subspace::root`] there is no key for it, and the link does not subscribe to it.
    ///
    /// A link keeps the prefix that it had at first: [`unlink`](super::Centre::unlink) it before it gets another one.
    #[must_use]
    pub fn strip(mut self, prefix: Subspace) -> Self {
        self.strip = prefix;
        self
    }

    /// Where keys of the master lie, and what the slave subscribes to of those; `None` if that is what it has kept.
    pub(super) fn placement(&self) -> Result<(Placement, Option<KeyRanges>), LinkError> {
        let target = self.target.clone().unwrap_or_else(|| Self::default_target(&self.link));
        let placement = Placement::new(self.strip.clone(), target);
        let Some(ranges) = &self.slave.ranges else { return Ok((placement, None)) };
        if !ranges.without(&self.strip.range().into()).is_empty() {
            let strip = self.strip.prefix().escape_ascii().to_string();
            return Err(LinkError::NotStripped { link: self.link.clone(), strip, ranges: ranges.clone() });
        }
        let placed = ranges.intersect(&placement.range().into());
        Ok((placement, Some(placed)))
    }

    fn default_target(link: &LinkId) -> Subspace {
        Subspace::raw([link.as_str().as_bytes(), b"/"].concat())
    }
}
