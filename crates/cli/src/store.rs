//! Opening stores by URL.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv::proto::layout::Backup;
use replikv::{
    Cursor, KeyRange, Keyspace, LinkId, LmdbOptions, LmdbStore, Master, MasterConfig, OpenError, OpenUrlError, Page,
    ReplicaStore, ReplicaStoreExt, Role, ScanOptions, StoreError, StoreLimits, role,
};

use crate::aggregates;

pub(crate) type Store = Arc<dyn ReplicaStore>;

/// What the program writes at most: what every backend that it contains can hold, also under a link's prefix.
pub(crate) const LIMITS: StoreLimits = StoreLimits { max_key: 480, max_value: 32 << 20, max_batch: 64 << 20 };

/// The limits of a master that takes keys of up to `max_key` bytes, and values of up to `max_value` MiB.
pub(crate) fn limits(max_key: u16, max_value: u16) -> StoreLimits {
    const BESIDE: usize = 1 << 20;
    let max_value = usize::from(max_value) << 20;
    StoreLimits { max_key: max_key.into(), max_value, max_batch: LIMITS.max_batch.max(max_value + BESIDE) }
}

/// What is in the directory of each kind of store.
const MARKERS: [(&str, &[&str]); 3] =
    [("lmdb", &["data.mdb"]), ("sled", &["conf", "db"]), ("fjall", &["version", "keyspaces"])];

/// Opens a store, and makes it if it is not there.
pub(crate) fn open(url: &str) -> anyhow::Result<Store> {
    check_kind(url)?;
    replikv::open(url).map_err(|error| match error {
        OpenUrlError::Store(StoreError::Busy { .. }) => anyhow!(
            "{url}: it is in use by another process: end that one first; \
             if it is a master, ask it with status --from ADDR, or copy it with follow --from ADDR"
        ),
        OpenUrlError::Store(error) => anyhow::Error::new(error).context(url.to_string()),
        // These name the URL themselves.
        error => error.into(),
    })
}

fn check_kind(url: &str) -> anyhow::Result<()> {
    let Some((kind, path)) = url.split_once(':').filter(|(_, path)| !path.is_empty()) else { return Ok(()) };
    let is_directory = MARKERS.iter().any(|(of, _)| *of == kind);
    if is_directory && Path::new(path).is_file() {
        bail!("{url}: it is a file, and such a store is a directory");
    }
    if (is_directory || kind == "redb")
        && let Some(other) = other_kind(kind, path)
    {
        bail!("{url}: the directory holds a store of another kind: use {other}");
    }
    Ok(())
}

// Two stores in one directory look like one.
fn other_kind(kind: &str, path: &str) -> Option<String> {
    let holds = |markers: &[&str]| markers.iter().all(|marker| Path::new(path).join(marker).exists());
    let mut there = MARKERS.iter().filter(|(_, markers)| holds(markers)).map(|(kind, _)| *kind).peekable();
    let first = *there.peek()?;
    (!there.any(|there| there == kind)).then(|| format!("{first}:{path}"))
}

/// Opens a store that is there, to change it.
pub(crate) fn open_existing(url: &str) -> anyhow::Result<Store> {
    check_kind(url)?;
    let marker = match url.split_once(':').filter(|(_, path)| !path.is_empty()) {
        Some(("lmdb", path)) => Some(Path::new(path).join("data.mdb")),
        Some(("sled", path)) => Some(Path::new(path).join("conf")),
        Some(("redb", path)) => Some(path.into()),
        Some(("fjall", path)) => Some(Path::new(path).join("version")),
        _ => None,
    };
    if marker.is_some_and(|marker| !marker.exists()) {
        bail!("{url}: there is no such store");
    }
    open(url)
}

/// Opens a store that is there, to read it: nothing is made in it or beside it. LMDB can be read while another process
/// has it open, and an environment that is no store stays as it is.
pub(crate) fn open_to_read(url: &str) -> anyhow::Result<Store> {
    match url.split_once(':').filter(|(_, path)| !path.is_empty()) {
        Some(("lmdb", path)) if Path::new(path).join("data.mdb").exists() => {
            Ok(Arc::new(LmdbStore::open_read_only(path, LmdbOptions::default()).with_context(|| url.to_string())?))
        }
        _ => open_existing(url),
    }
}

/// Opens a store as a master's, so that what is written goes through the log. The limits of `config` are
/// [`limits`], or those of [`MasterConfig`], which are [`LIMITS`].
pub(crate) async fn open_master(store: Store, url: &str, config: MasterConfig) -> anyhow::Result<Master<Store>> {
    let goes = aggregates::names(&store).await.with_context(|| url.to_owned())?;
    let opened = Master::open(store, config).await.map_err(|error| match error {
        OpenError::Role { found: Role::Slave, .. } => {
            anyhow!("{url}: it is a slave's store, and only its master changes it: write to the master instead")
        }
        OpenError::Role { found: Role::Centre, .. } | OpenError::Links { .. } => {
            anyhow!("{url}: it is a centre's store, and links write to it: write to their masters, or gather with it")
        }
        OpenError::Backup => is_backup(url),
        error => anyhow::Error::new(error).context(url.to_string()),
    })?;
    aggregates::note_gone(url, &goes);
    Ok(opened)
}

/// Whether a store is new, or of one of `roles`, and no backup. One that is not is refused by whoever opens it so, and is
/// left as it is.
pub(crate) async fn is_of(store: &Store, roles: &[Role]) -> anyhow::Result<bool> {
    let is_backup = store.get(Keyspace::Meta, Backup::KEY).await?.is_some();
    Ok(!is_backup && role(store).await?.is_none_or(|role| roles.contains(&role)))
}

/// Nobody but its owner knows how a backup goes on.
pub(crate) fn is_backup(url: &str) -> anyhow::Error {
    anyhow!(
        "{url}: it is a backup of a master: follow its master with it by follow --as-slave NAME, or go on from it as the \
         master, in a new epoch, by serve --new-epoch, and never run the old one again"
    )
}

/// Who has written a part of what it copies or compares, if somebody has: the slave, or a link of a centre.
pub(crate) async fn unfinished(store: &impl ReplicaStore) -> anyhow::Result<Option<String>> {
    let is_partial = |cursor: Option<&Cursor>| cursor.is_some_and(|cursor| !cursor.is_consistent());
    let words = |who: &str| Some(format!("{who} is not done with copying from its master, or comparing"));
    if role(store).await? == Some(Role::Slave) && is_partial(store.cursor(&LinkId::default()).await?.as_ref()) {
        return Ok(words("the slave"));
    }
    let links = replikv::links(store).await?;
    Ok(links
        .iter()
        .find(|seen| is_partial(seen.cursor.as_ref()))
        .and_then(|seen| words(&format!("link {}", seen.link))))
}

/// Whether the file at `path` is the store, or lies in its directory.
pub(crate) fn holds(url: &str, path: &Path) -> bool {
    let own = url.split_once(':').and_then(|(_, own)| Path::new(own).canonicalize().ok());
    own.is_some_and(|own| path.canonicalize().is_ok_and(|path| path.is_file() && path.starts_with(own)))
}

/// Reads the entries of a store in order, a page at a time.
pub(crate) fn pages(
    store: &Store,
    range: KeyRange,
    reverse: bool,
) -> impl futures_util::Stream<Item = anyhow::Result<Page>> + Unpin + '_ {
    let options = ScanOptions { max_entries: 10_000, max_bytes: 1 << 20, reverse };
    store.pages(Keyspace::Data, range, options).map_err(anyhow::Error::from)
}

/// Two stores, compared.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Comparison {
    pub(crate) equal: u64,
    pub(crate) only_first: u64,
    pub(crate) only_second: u64,
    pub(crate) different: u64,
}

impl Comparison {
    pub(crate) fn is_equal(&self) -> bool {
        self.only_first + self.only_second + self.different == 0
    }
}

/// What is wrong with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Difference {
    OnlyFirst,
    OnlySecond,
    Values,
}

/// Compares the whole contents of two stores, and tells each difference.
pub(crate) async fn compare(
    first: &Store,
    second: &Store,
    mut tell: impl FnMut(&Bytes, Difference),
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Comparison> {
    let options = ScanOptions::default().max_entries(10_000);
    let mut one = first.entries(Keyspace::Data, KeyRange::all(), options);
    let mut two = second.entries(Keyspace::Data, KeyRange::all(), options);
    let (mut a, mut b) = (one.try_next().await?, two.try_next().await?);
    let mut found = Comparison::default();
    let mut seen = 0;
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(found),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        if order.is_eq() {
            match (&a, &b) {
                (Some((_, value)), Some((_, other))) if value == other => found.equal += 1,
                (Some((key, _)), _) => {
                    found.different += 1;
                    tell(key, Difference::Values);
                }
                _ => {}
            }
        } else if let (true, Some((key, _))) = (order.is_lt(), &a) {
            found.only_first += 1;
            tell(key, Difference::OnlyFirst);
        } else if let Some((key, _)) = &b {
            found.only_second += 1;
            tell(key, Difference::OnlySecond);
        }
        if order.is_le() {
            a = one.try_next().await?;
        }
        if order.is_ge() {
            b = two.try_next().await?;
        }
        seen += 1;
        if seen % 10_000 == 0 {
            progress(seen);
        }
    }
}
