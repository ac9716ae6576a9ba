//! How a database is opened, and what of it is replicated.

use bytes::Bytes;
use replikv_core::Subspace;

/// What sled calls its default tree.
pub(crate) const DEFAULT_TREE: &[u8] = b"__sled__default";

/// The settings of a [`SledStore`](crate::SledStore). Each has a default.
#[derive(Debug, Clone)]
pub struct SledOptions {
    pub(crate) cache_bytes: u64,
    pub(crate) own_tree: Option<Bytes>,
    pub(crate) trees: Vec<TreeOption>,
}

/// A subspace in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeOption {
    pub(crate) space: Subspace,
    pub(crate) name: Bytes,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, own_tree: None, trees: Vec::new() }
    }
}

impl SledOptions {
    /// How much memory sled's page cache takes, in bytes. Default: 256 MiB. An application's own database keeps what it
    /// was opened with.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// The tree in which replikv keeps what is its own: the log, the meta data, and data that lies in no
    /// [`tree`](Self::tree). Nobody else may use it.
    ///
    /// Default: the one that is there already; in a database that holds no store yet, `replikv` in an application's
    /// database, and the default tree in one that [`SledStore::open`](crate::SledStore::open) creates.
    #[must_use]
    pub fn own_tree(mut self, name: impl AsRef<[u8]>) -> Self {
        self.own_tree = Some(Bytes::copy_from_slice(name.as_ref()));
        self
    }

    /// Keeps a subspace in a tree of its own, with keys that do without the prefix: a tree that the application has
    /// already becomes a part of what is replicated. One that is not there is created.
    ///
    /// The whole key counts: a prefix and a key of the tree have up to 65,536 bytes together, and the empty key of a
    /// tree is the prefix itself. Subspaces must not overlap. [`Subspace::root`] makes one tree hold all the data.
    ///
    /// A store remembers its trees: one that was named once is a part of it from then on, named or not. A tree that
    /// holds entries can be made part of a store only when that is new: later, no record would tell slaves of them.
    ///
    /// Write sets that touch several trees are sled transactions, and as atomic as those that touch one.
    #[must_use]
    pub fn tree(mut self, subspace: Subspace, tree: impl AsRef<[u8]>) -> Self {
        self.trees.push(TreeOption { space: subspace, name: Bytes::copy_from_slice(tree.as_ref()) });
        self
    }

    /// Makes a [`tree`](Self::tree) of each of these, in the [`Subspace::named`] as the tree is.
    #[must_use]
    pub fn trees<N: AsRef<[u8]>>(self, trees: impl IntoIterator<Item = N>) -> Self {
        trees.into_iter().fold(self, |options, tree| options.tree(Subspace::named(&tree), tree))
    }

    /// As [`tree`](Self::tree), for the default tree of an application's database: the one that a `sled::Db` is
    /// without a name.
    #[must_use]
    pub fn default_tree(self, subspace: Subspace) -> Self {
        self.tree(subspace, DEFAULT_TREE)
    }
}
