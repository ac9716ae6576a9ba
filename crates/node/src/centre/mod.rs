//! The centre: one store that gathers what many masters write.

mod claims;
mod config;
mod error;
mod gather;
mod store;
mod unlink;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Cursor, DataReader, KeyRange, KeyRanges, Keyspace, LinkId, Outcome, Page, Placement, ReplicaStore, ScanOptions,
    Seq, SourceId, StoreError, StoreLimits,
};
use replikv_proto::ClaimState;
use replikv_proto::layout::{Checkpoint, Identity, Role};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub(crate) use self::claims::Claims;
use self::claims::Links;
pub use self::config::LinkConfig;
pub use self::error::LinkError;
pub use self::store::LinkStore;
pub use self::unlink::Unlinked;
use self::writer::Writer;
use crate::{Master, MasterConfig, OpenError, Slave, stored};

/// One store that many masters flow into: each over a link of its own, into a part of the key space that is the link's
/// alone.
///
/// A link is a [`Slave`] in everything: it copies, follows, compares, resyncs and verifies, has a cursor, a status and
/// metrics of its own, and its data and its cursor commit together. What links hand over at the same time is committed
/// in one transaction of the store, one group of each: none of them waits longer than one turn of all the others.
///
/// Handles are cheap to clone and share one centre. The picture is level-master's "slave in the middle".
#[derive(Debug)]
#[doc(alias = "hub")]
#[doc(alias = "center")]
#[doc(alias = "aggregator")]
pub struct Centre<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Centre<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

/// What links share.
#[derive(Debug)]
pub(super) struct Inner<S> {
    store: Arc<S>,
    writer: Writer<S>,
    links: Arc<Links>,
    setbacks: Setbacks,
    /// Held by whoever changes claims.
    claims: tokio::sync::Mutex<Claims>,
    closing: CancellationToken,
}

impl<S: ReplicaStore> Inner<S> {
    /// How often the store was opened anew after a failure, by a link or by the master that the centre may be.
    fn setbacks(&self) -> u64 {
        let by_master = match &self.writer {
            Writer::Master(master) => master.inner().reopened(),
            Writer::Gathering { .. } => 0,
        };
        self.setbacks.count.load(Ordering::Acquire) + by_master
    }

    /// What fits into the store, and into a record of the master that it may be.
    fn limits(&self) -> StoreLimits {
        match &self.writer {
            Writer::Master(master) => master.limits(),
            Writer::Gathering { .. } => self.store.limits(),
        }
    }
}

/// How often links have opened the store anew after a failure: what any link had not synced may be gone since.
#[derive(Debug, Default)]
struct Setbacks {
    count: AtomicU64,
    broken: AtomicBool,
}

impl Setbacks {
    /// A call has come to `result`.
    fn note<R>(&self, result: &Result<R, StoreError>) {
        if result.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown) {
            self.broken.store(true, Ordering::Release);
        }
    }

    /// The store is about to be opened anew. One that is well loses nothing.
    fn reopening(&self) {
        if self.broken.swap(false, Ordering::AcqRel) {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// What is known of one link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LinkSeen {
    /// Its name.
    pub link: LinkId,
    /// What its keys begin with, in the store.
    #[serde(serialize_with = "as_text")]
    pub prefix: Bytes,
    /// What is stripped off its master's keys; `None` if nothing is.
    #[serde(serialize_with = "as_optional_text")]
    pub strip: Option<Bytes>,
    /// Whether it stands, or is being undone.
    pub state: ClaimState,
    /// Whether it is open here.
    pub open: bool,
    /// The source that it is bound to; `None` before its first contact with a master.
    pub source: Option<SourceId>,
    /// The keys of its master that it subscribes to, as that knows them; `None` if that is every key.
    #[serde(serialize_with = "crate::health::ranges_as_text")]
    pub ranges: Option<KeyRanges>,
    /// Where it stands, as committed.
    pub cursor: Option<Cursor>,
}

impl<S: ReplicaStore> Centre<S> {
    /// Opens `store` as a centre's: an empty one, one that gathered before, or one that holds data of its own which no
    /// link claims. Links that were being undone go on being so, in the background.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::Role`] if the store is a master's or a slave's; what the store reports.
    pub async fn open(store: S) -> Result<Self, OpenError> {
        match stored::read::<S, Identity>(&store, Identity::KEY).await? {
            None => stored::write_identity(&store, &Identity::centre()).await?,
            Some(Identity { role: Role::Centre, .. }) => {}
            Some(Identity { role, .. }) => return Err(OpenError::Role { found: role, wanted: Role::Centre }),
        }
        let claims = Claims::read(&store).await?;
        stored::derives_nothing(&store).await?;
        // What a killed process left is acknowledged as durable from here on.
        store.sync().await?;
        let store = Arc::new(store);
        let writer = Writer::gathering(&store);
        Ok(Self::begin(store, writer, claims))
    }

    /// As [`open`](Self::open), and the centre is a master of all that it gathers, in a history of its own: slaves hang
    /// below it, and see each write set of a link as one batch. [`master`](Self::master) serves them, and takes writes
    /// where no link has a claim.
    ///
    /// Its batches may have 192 MiB, or as many as `config` says if that is more, and its keys 31 bytes more than `config`
    /// says: several batches of a link's master are one, under a prefix. Its slaves must be able to hold that.
    ///
    /// A master's store can begin to gather, and a centre's to be a master: what is there already is copied by the first
    /// slaves. There is no way back.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Master::open`].
    pub async fn open_master(store: S, config: MasterConfig) -> Result<Self, OpenError> {
        let claims = Claims::read(&store).await?;
        let store = Arc::new(store);
        let master = Master::open_centre(store.clone(), config.gathering(), &claims).await?;
        master.inner().claim(claims.ranges());
        Ok(Self::begin(store, Writer::Master(master), claims))
    }

    fn begin(store: Arc<S>, writer: Writer<S>, claims: Claims) -> Self {
        let (links, closing) = (Arc::default(), CancellationToken::new());
        let leaving = claims.leaving();
        let claims = tokio::sync::Mutex::new(claims);
        let centre =
            Self { inner: Arc::new(Inner { store, writer, links, setbacks: Setbacks::default(), claims, closing }) };
        for (link, unlinked) in leaving {
            tokio::spawn(centre.clone().go_on_unlinking(link, unlinked));
        }
        centre
    }

    /// The master of what is gathered, if the centre is one.
    pub fn master(&self) -> Option<&Master<Arc<S>>> {
        match &self.inner.writer {
            Writer::Master(master) => Some(master),
            Writer::Gathering { .. } => None,
        }
    }

    /// Opens a link, and claims its part of the key space if it is new. It is bound to the first source that it meets.
    ///
    /// The handle is a slave like any other: [`follow`](Slave::follow) its master with it, and
    /// [`shutdown`](Slave::shutdown) it to close the link, which closes nothing else.
    ///
    /// # Cancel safety
    /// If dropped, the claim may be made; the link is not open.
    ///
    /// # Errors
    /// [`LinkError`]: nothing was changed. Data that lies in the claim and came from no master is found when the link
    /// follows, and stays.
    pub async fn link(&self, config: LinkConfig) -> Result<Slave<LinkStore<S>>, LinkError> {
        if config.slave.keeps_log() {
            let reason = "it is a link of a centre, which has a history of its own";
            return Err(OpenError::NoRelay { reason }.into());
        }
        let (placement, ranges) = config.placement()?;
        let LinkConfig { link, mut slave, .. } = config;
        self.check_room(&link, &placement)?;
        let placed = placement.range();
        let store = self.link_store(&link, placement).await?;
        slave.ranges = match ranges {
            None if placed != KeyRange::all() => Some(self.kept_ranges(&link).await?.unwrap_or_else(|| placed.into())),
            ranges => ranges,
        };
        Ok(Slave::open(store, slave.link(LinkId::default())).await?)
    }

    // Before anything is claimed. A slave has keys of its own, which are bounded as its master's.
    fn check_room(&self, link: &LinkId, placement: &Placement) -> Result<(), LinkError> {
        let own = Checkpoint::PREFIX.len() + size_of::<Seq>();
        let len = placement.target().prefix().len().saturating_sub(placement.strip().prefix().len());
        let max = self.inner.limits().max_key;
        if len + own > max { Err(LinkError::TooLong { link: link.clone(), len, max }) } else { Ok(()) }
    }

    async fn kept_ranges(&self, link: &LinkId) -> Result<Option<KeyRanges>, StoreError> {
        store::ranges(&*self.inner.store, link).await
    }

    async fn link_store(&self, link: &LinkId, placement: Placement) -> Result<LinkStore<S>, LinkError> {
        let mut claims = self.inner.claims.lock().await;
        if self.inner.closing.is_cancelled() {
            return Err(StoreError::Closed.into());
        }
        let lease = self.inner.links.open(link)?;
        claims.settle(&self.inner).await?;
        claims.claim(&self.inner, link, &placement).await?;
        Ok(LinkStore::new(&self.inner, link, placement, lease))
    }

    /// Undoes a link: its claim is free once this returns, and what it knew of its master is gone.
    ///
    /// It goes in bounded steps, and persistently: after a crash the next [`open`](Self::open) goes on with it. Until it
    /// is through, nobody can claim the same keys.
    ///
    /// # Cancel safety
    /// If dropped, the link is as good as undone: it cannot be opened any more, and calling this again goes on. If the last
    /// step was under way, it may be gone by then.
    ///
    /// # Errors
    /// [`LinkError::NoSuchLink`], [`LinkError::Open`] while somebody has it open, and what the store reports.
    pub async fn unlink(&self, link: &LinkId, unlinked: Unlinked) -> Result<(), LinkError> {
        let mut claims = self.inner.claims.lock().await;
        let _lease = self.inner.links.open(link)?;
        claims.settle(&self.inner).await?;
        claims.unlink(&self.inner, link, unlinked).await
    }

    async fn go_on_unlinking(self, link: LinkId, unlinked: Unlinked) {
        if let Err(error) = self.unlink(&link, unlinked).await {
            tracing::warn!(
                target: "replikv::slave", link = %link, error = %crate::error_chain(&error),
                "a link could not be undone to the end"
            );
        }
    }

    /// Every link that there is, by name: those that are not open too.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn links(&self) -> Result<Vec<LinkSeen>, StoreError> {
        links_of(&*self.inner.store, |link| self.inner.links.is_open(link)).await
    }

    /// The value of `key`, or `None`: of all that is gathered.
    ///
    /// # Errors
    /// As [`ReplicaStore::get`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StoreError> {
        self.inner.store.get(Keyspace::Data, key.as_ref()).await
    }

    /// One page of `range`, as it was at one instant: of all that is gathered.
    ///
    /// # Errors
    /// As [`ReplicaStore::scan`].
    pub async fn scan(&self, range: impl Into<KeyRange>, options: ScanOptions) -> Result<Page, StoreError> {
        self.inner.store.scan(Keyspace::Data, range.into(), options).await
    }

    /// The store. Reading it is fine; write only where no link has a claim.
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// Waits for what is in flight, and closes the store: when this returns it can be opened again. Links that are still
    /// open end with it; shut them down before, so that their masters hear the last acknowledgement.
    ///
    /// # Cancel safety
    /// If dropped, the centre ends nevertheless; the store may stay open until the last handle is gone.
    ///
    /// # Errors
    /// As [`ReplicaStore::close`].
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        self.inner.closing.cancel();
        let _claims = self.inner.claims.lock().await;
        self.inner.writer.end().await?;
        self.inner.store.close().await
    }
}

/// Every link of a centre's store, by name.
///
/// # Errors
/// What the store reports.
pub async fn links<S: ReplicaStore>(store: &S) -> Result<Vec<LinkSeen>, StoreError> {
    links_of(store, |_| false).await
}

async fn links_of<S: ReplicaStore>(store: &S, is_open: impl Fn(&LinkId) -> bool) -> Result<Vec<LinkSeen>, StoreError> {
    let mut seen = Vec::new();
    for (link, claim) in Claims::read(store).await?.into_iter() {
        let cursor = store::cursor(store, &link).await?;
        let ranges = store::ranges(store, &link).await?;
        seen.push(LinkSeen {
            prefix: claim.target().prefix().clone(),
            strip: Some(claim.strip().prefix().clone()).filter(|strip| !strip.is_empty()),
            state: claim.state,
            open: is_open(&link),
            source: cursor.as_ref().map(|cursor| cursor.position.source),
            ranges,
            cursor,
            link,
        });
    }
    Ok(seen)
}

fn as_optional_text<S: serde::Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => as_text(bytes, serializer),
        None => serializer.serialize_none(),
    }
}

fn as_text<S: serde::Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&bytes.escape_ascii())
}

#[async_trait]
impl<S: ReplicaStore> DataReader for Centre<S> {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(key).await
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.scan(range, options).await
    }
}

#[cfg(test)]
mod laws {
    //! What a link sees keeps every law of a store, at the root, under a prefix, and with one stripped, beside links that
    //! write.

    use std::path::Path;

    use replikv_core::{Batch, Durability, Subspace, WriteSet};
    use replikv_memory::MemoryStore;
    use tokio::runtime::Handle;

    use super::*;

    fn open(target: &Subspace, others: bool, master: bool) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        tokio::task::block_in_place(|| {
            let view = Handle::current().block_on(link(target.clone().into(), others, master))?;
            Ok::<Arc<dyn ReplicaStore>, _>(Arc::new(view))
        })
    }

    // What a link sees that strips a prefix has that prefix: a link of another centre on top of it puts it there.
    async fn stripping() -> Result<Arc<dyn ReplicaStore>, StoreError> {
        let strip = Subspace::raw("a/prefix/as/long/as/what/links/know/lies/under/");
        // Longer than what comes before the keys that both links know of.
        let target = Subspace::raw("under/a/prefix/of/some/length/and/then/as/much/again/or/more/");
        let below = link(Placement::new(strip.clone(), target), true, false).await?;
        let centre = Centre::open(below).await.map_err(StoreError::backend)?;
        let name = LinkId::new("above").map_err(StoreError::backend)?;
        Ok(Arc::new(centre.link_store(&name, strip.into()).await.map_err(StoreError::backend)?))
    }

    async fn link(placement: Placement, others: bool, master: bool) -> Result<LinkStore<MemoryStore>, StoreError> {
        let centre = if master {
            Centre::open_master(MemoryStore::new(), MasterConfig::default()).await
        } else {
            Centre::open(MemoryStore::new()).await
        };
        let centre = centre.map_err(StoreError::backend)?;
        let name = LinkId::new("edge").map_err(StoreError::backend)?;
        let view = centre.link_store(&name, placement).await.map_err(StoreError::backend)?;
        // Right before it, and right after it.
        for beside in [&b"under"[..], &b"under\xFF"[..]].into_iter().filter(|_| others) {
            let name = LinkId::new(beside.escape_ascii().to_string()).map_err(StoreError::backend)?;
            let other = centre.link_store(&name, Subspace::raw([beside, b"-"].concat()).into());
            let other = other.await.map_err(StoreError::backend)?;
            tokio::spawn(async move {
                for n in 0..u32::MAX {
                    let mut writes = WriteSet::builder();
                    let ops = Batch::new().put(n.to_be_bytes(), "beside").into_parts().map(|(ops, ..)| ops);
                    writes.append(Keyspace::Data, ops.unwrap_or_default());
                    if other.apply(writes.build(), Durability::Buffered).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        Ok(view)
    }

    fn at_the_root(_: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        open(&Subspace::root(), false, false)
    }

    fn under_a_prefix(_: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        // As long as what comes before the keys that a link knows of, so that their length is the same everywhere.
        open(&Subspace::raw("under/a/prefix/of/some/length/"), true, false)
    }

    fn in_a_master(_: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        open(&Subspace::raw("under/a/prefix/of/some/length/"), true, true)
    }

    fn with_a_prefix_stripped(_: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        tokio::task::block_in_place(|| Handle::current().block_on(stripping()))
    }

    mod master {
        replikv_testkit::conformance_suite!(super::in_a_master, volatile);
    }

    mod root {
        replikv_testkit::conformance_suite!(super::at_the_root, volatile);
    }

    mod prefix {
        replikv_testkit::conformance_suite!(super::under_a_prefix, volatile);
    }

    mod strip {
        replikv_testkit::conformance_suite!(super::with_a_prefix_stripped, volatile);
    }
}
