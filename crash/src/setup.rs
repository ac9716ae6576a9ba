//! What is tried: a backend, a role, and how durable it is asked to be. Travels to child processes as one line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use replikv::{
    Commit, Durability, FjallOptions, FjallStore, LmdbOptions, LmdbStore, LmdbSync, MasterConfig, RedbOptions,
    RedbStore, ReplicaStore, Retention, SlaveConfig, SledOptions, SledStore, StoreError,
};

/// A store of any kind.
pub(crate) type Store = Arc<dyn ReplicaStore>;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum $name {
            $($(#[$variant_doc])* $variant),*
        }

        impl $name {
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            pub(crate) fn from_name(name: &str) -> Result<Self> {
                match name {
                    $($word => Ok(Self::$variant),)*
                    other => bail!(concat!("{} is none of:", $(" ", $word),*), other),
                }
            }
        }
    };
}

names! {
    /// Which store.
    Backend { Lmdb = "lmdb", Sled = "sled", Redb = "redb", Fjall = "fjall" }
}

names! {
    /// What it is for.
    Role { Master = "master", Slave = "slave" }
}

names! {
    /// When it is durable.
    Durable {
        /// With each group.
        Synced = "synced",
        /// With a sync every few milliseconds; LMDB without its meta page synced.
        Buffered = "buffered",
        /// As buffered; LMDB syncs nothing by itself. Must fail.
        Never = "never",
    }
}

names! {
    /// How large values are.
    Values {
        /// Up to 20 kB.
        Small = "small",
        /// Some of 200 kB: files of their own in sled.
        Large = "large",
    }
}

/// One thing to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) backend: Backend,
    pub(crate) role: Role,
    pub(crate) durable: Durable,
    pub(crate) values: Values,
    /// Of the history and of the choices of the workload.
    pub(crate) seed: u64,
    /// How many times this history was cut and taken up again before.
    pub(crate) life: u32,
}

const SYNC_EVERY: Duration = Duration::from_millis(15);
/// How much of the log is kept: so little that it is trimmed.
const LOG_BYTES: u64 = 100 << 10;
const MEMTABLE_BYTES: u64 = 48 << 10;

impl Setup {
    pub(crate) fn to_line(&self) -> String {
        let Self { backend, role, durable, values, seed, life } = self;
        format!("{} {} {} {} {seed} {life}", backend.name(), role.name(), durable.name(), values.name())
    }

    pub(crate) fn from_line(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[backend, role, durable, values, seed, life] = &words[..] else { bail!("{line:?} is no setup") };
        Ok(Self {
            backend: Backend::from_name(backend)?,
            role: Role::from_name(role)?,
            durable: Durable::from_name(durable)?,
            values: Values::from_name(values)?,
            seed: seed.parse().context("the seed")?,
            life: life.parse().context("the life")?,
        })
    }

    /// Opens the store below `files`.
    pub(crate) fn open(&self, files: &Path) -> Result<Store, StoreError> {
        let path = files.join("store");
        Ok(match self.backend {
            Backend::Lmdb => {
                let sync = match self.durable {
                    Durable::Synced => LmdbSync::Full,
                    Durable::Buffered => LmdbSync::NoMetaSync,
                    Durable::Never => LmdbSync::DangerouslyNone,
                };
                Arc::new(LmdbStore::open(path, LmdbOptions::default().sync(sync).map_size(256 << 20))?)
            }
            Backend::Sled => Arc::new(SledStore::open_with(path, SledOptions::default().cache_bytes(64 << 20))?),
            Backend::Redb => Arc::new(RedbStore::open_with(path, RedbOptions::default().cache_bytes(64 << 20))?),
            Backend::Fjall => {
                // So little that tables are written and compacted.
                let options = FjallOptions::default().cache_bytes(16 << 20).memtable_bytes(MEMTABLE_BYTES);
                Arc::new(FjallStore::open_with(path, options)?)
            }
        })
    }

    pub(crate) fn master_config(&self) -> MasterConfig {
        let commit = match self.durable {
            Durable::Synced => Commit::Synced,
            Durable::Buffered | Durable::Never => Commit::Buffered { sync_every: SYNC_EVERY },
        };
        let retention = Retention { max_bytes: LOG_BYTES, max_age_ms: None, hold_back_bytes: 64 << 20 };
        MasterConfig::default().commit(commit).retention(retention)
    }

    pub(crate) fn slave_config(&self) -> SlaveConfig {
        let durability = match self.durable {
            Durable::Synced => Durability::Synced,
            Durable::Buffered | Durable::Never => Durability::Buffered,
        };
        SlaveConfig::new("watched").durability(durability).sync_every(SYNC_EVERY)
    }
}

/// Writes the numbers of files, one a line, so that a recording can be read again.
pub(crate) fn inodes_to_text(inodes: &BTreeMap<String, u64>) -> String {
    inodes.iter().map(|(path, inode)| format!("{inode} {path}\n")).collect()
}

pub(crate) fn inodes_from_text(text: &str) -> Result<BTreeMap<String, u64>> {
    let line = |line: &str| -> Result<(String, u64)> {
        let (inode, path) = line.split_once(' ').context("a number and a path")?;
        Ok((path.into(), inode.parse()?))
    };
    text.lines().map(line).collect()
}
