//! A promotion that fences other slaves first, so that what `replicated(n)` has acknowledged survives.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use replikv_core::{Epoch, Keyspace, Position, ReplicaStore, Seq, StoreError};
use replikv_proto::layout::{Checkpoint, Stored};
use replikv_proto::{Against, Fence, FenceRefusal, FenceRequest, FenceTally, Fenced, Record, RequestBody};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::fence::{Standing, failed, promise, random};
use super::promote::promote_as;
use super::{PromoteError, Promoted, Slave};
use crate::ServeError;
use crate::reads::ask;

/// How often an epoch that somebody is promised to is gone beyond, in one promotion.
const ROUNDS: usize = 8;

/// Who takes part in a promotion that fences.
#[derive(Debug, Clone)]
pub struct FenceConfig {
    slaves: usize,
    replicated: usize,
    by: Option<String>,
    anew: bool,
    patience: Duration,
}

impl FenceConfig {
    /// `slaves` slaves may follow the old master itself, with all keys, the one that is promoted among them, and those
    /// that are away, and any that a master would count later: each that [`replicated`](crate::Write::replicated) may
    /// ever have counted, or may count from now on. Slaves below a relay are none of them, and must not be fenced for it
    /// either: the relay is. Writes are acknowledged by `replicated` of them.
    ///
    /// # Hazard
    /// Both are promises of whoever says them. With fewer slaves than there are, or more copies than writers wait for,
    /// writes that were acknowledged can be lost.
    pub fn new(slaves: usize, replicated: usize) -> Self {
        Self { slaves, replicated, by: None, anew: false, patience: Duration::from_secs(10) }
    }

    /// Who is promoted, for the people who read the status of a fenced slave. Default: the name of the slave, or "another
    /// slave".
    #[must_use]
    pub fn by(mut self, by: impl Into<String>) -> Self {
        self.by = Some(by.into());
        self
    }

    /// Goes beyond a promotion that was given up: begins an epoch after any that this slave, or one that is fenced, is
    /// promised to. Whoever was promoted there after all is superseded when they meet; if a write was acknowledged there,
    /// a fenced slave holds it, and this promotion is refused. Default: no, slaves that are promised to another one are
    /// not fenced.
    #[must_use]
    pub fn anew(mut self) -> Self {
        self.anew = true;
        self
    }

    /// How long each slave may take to answer. Default: 10 seconds.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How many slaves have to be fenced, the one that is promoted among them: `slaves - replicated + 1`, so that one of
    /// them is among any `replicated`.
    pub fn needed(&self) -> usize {
        FenceTally::needed_of(self.slaves, self.replicated)
    }
}

/// A slave that is fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FencedSlave {
    /// Its address, as it was given; `None` for the one that is promoted.
    pub address: Option<String>,
    /// Its name, if it has told.
    pub name: Option<String>,
    /// Where it stands.
    pub position: Position,
}

/// A slave that is not fenced, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnfencedSlave {
    /// Its address, as it was given.
    pub address: String,
    /// Why, in words.
    pub reason: String,
}

/// A slave that was promoted, and can have lost nothing that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FencedPromotion {
    /// The store that was promoted.
    pub promoted: Promoted,
    /// Those that are fenced, the promoted one first.
    pub fenced: Vec<FencedSlave>,
    /// Those that are not. They may follow the old master, until they hear of the new one.
    pub unfenced: Vec<UnfencedSlave>,
    /// How many had to be fenced.
    pub needed: usize,
}

/// Why a slave was not promoted. It is a slave as before; what is fenced stays so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FencedPromoteError {
    /// The numbers make no sense. Nobody was asked.
    #[error("{replicated} of {slaves} slaves, and {others} others to fence: that cannot be")]
    Numbers {
        /// How many slaves there are.
        slaves: usize,
        /// How many hold each write.
        replicated: usize,
        /// How many others are to be fenced.
        others: usize,
    },
    /// This slave cannot be promoted, or not yet; or it is promised to another promotion.
    #[error(transparent)]
    Promote(#[from] PromoteError),
    /// Too few are fenced. Run the promotion again when more can be reached: it fences the others, and goes on.
    #[error("{} of {needed} slaves are fenced: {}", fenced.len(), words(fenced, unfenced))]
    TooFew {
        /// Those that are, this one first.
        fenced: Vec<FencedSlave>,
        /// Those that are not.
        unfenced: Vec<UnfencedSlave>,
        /// How many have to be.
        needed: usize,
    },
    /// Another slave is more advanced: promote that one, [anew](FenceConfig::anew).
    #[error(
        "the slave at {address} is more advanced: it stands at record {}, epoch {}, and this one at record {}, epoch {}",
        position.seq, position.epoch.number, own, own_epoch.number
    )]
    Ahead {
        /// Its address.
        address: String,
        /// Where it stands.
        position: Position,
        /// The last record of this one.
        own: Seq,
        /// The epoch of that record.
        own_epoch: Epoch,
    },
    /// Another slave holds other records under the same numbers: there are two histories of one name. Find out which one is
    /// to go on.
    #[error(
        "the slave at {address} has parted from this one: it stands at record {}, epoch {}, in another history",
        position.seq, position.epoch
    )]
    Parted {
        /// Its address.
        address: String,
        /// Where it stands.
        position: Position,
    },
}

impl From<StoreError> for FencedPromoteError {
    fn from(error: StoreError) -> Self {
        Self::Promote(error.into())
    }
}

fn words(fenced: &[FencedSlave], unfenced: &[UnfencedSlave]) -> String {
    let there = fenced.iter().map(|slave| {
        let name = slave.address.as_deref().unwrap_or("this one");
        format!("{name} at record {}", slave.position.seq)
    });
    let not = unfenced.iter().map(|UnfencedSlave { address, reason }| format!("not {address}: {reason}"));
    there.chain(not).collect::<Vec<_>>().join("; ")
}

impl<S: ReplicaStore> Slave<S> {
    /// Stops following, fences this slave and others, and [promotes](Self::promote) this one if enough are fenced and none of
    /// them is more advanced: then every write that `replicated(n)` has acknowledged in the old epoch is in the history
    /// that goes on, and none is acknowledged in the old epoch any more. The store is closed.
    ///
    /// As [`promote_fenced`], which tells the rest.
    ///
    /// # Cancel safety
    /// As there; the slave has stopped.
    ///
    /// # Errors
    /// As there.
    pub async fn promote_fenced<T, F>(
        &self,
        config: FenceConfig,
        others: &[String],
        connect: impl Fn(String) -> F + Send + Sync,
    ) -> Result<FencedPromotion, FencedPromoteError>
    where
        T: AsyncRead + AsyncWrite + Send,
        F: Future<Output = io::Result<T>> + Send,
    {
        let _following = self.end_following().await;
        let by = config.by.unwrap_or_else(|| self.inner.config.name.clone());
        let config = FenceConfig { by: Some(by), ..config };
        let promoted = promote_fenced(&*self.inner.store, &config, others, connect).await;
        self.inner.store.close().await?;
        promoted
    }
}

/// Fences the slave of `store`, which nobody has open, and those at the addresses `others`, to which `connect` makes
/// streams; and makes the store a master's in a new epoch if enough are fenced, and none of them is more advanced. The
/// store stays open.
///
/// A fenced slave follows nobody of an epoch before the new one, and acknowledges nothing there beyond where it stands. It
/// stays so if this comes to nothing: run it again, which asks for the same epoch; or [`promote`](super::promote()) the slave without the
/// promise; or [lift](super::lift_fence) the fences, on this store first.
///
/// # Durability
/// A fence is on stable storage before it is answered, and so is the new epoch on return.
///
/// # Cancel safety
/// If dropped, slaves may be fenced, and the store is promoted or not.
///
/// # Errors
/// [`FencedPromoteError`].
pub async fn promote_fenced<S, T, F>(
    store: &S,
    config: &FenceConfig,
    others: &[String],
    connect: impl Fn(String) -> F + Send + Sync,
) -> Result<FencedPromotion, FencedPromoteError>
where
    S: ReplicaStore,
    T: AsyncRead + AsyncWrite + Send,
    F: Future<Output = io::Result<T>> + Send,
{
    let &FenceConfig { slaves, replicated, .. } = config;
    if replicated == 0 || replicated > slaves || others.len() >= slaves {
        return Err(FencedPromoteError::Numbers { slaves, replicated, others: others.len() });
    }
    let mut above = config.anew.then_some(0);
    let mut rounds = ROUNDS;
    loop {
        let (fence, own) = fence_own(store, config, above).await?;
        let request = FenceRequest { source: fence.source, epoch: fence.epoch, by: fence.by.clone() };
        let answers = join_all(others.iter().map(|address| {
            let (connect, request) = (&connect, &request);
            async move {
                let asked = async { remote_fence(connect(address.clone()).await?, request).await };
                timeout(config.patience, asked).await
            }
        }))
        .await;
        let mut round = Round::new(store, FenceTally::new(own, fence.store, slaves, replicated), own);
        let mut promised = 0;
        for (address, answer) in others.iter().zip(answers) {
            let reason = match answer {
                Ok(Ok(Ok(fenced))) => {
                    round.fenced(address, fenced).await?;
                    continue;
                }
                Ok(Ok(Err(refusal))) => {
                    if let FenceRefusal::Promised { epoch, .. } = &refusal {
                        promised = promised.max(epoch.number);
                    }
                    round.refused(address, &refusal)?;
                    refusal.to_string()
                }
                Ok(Err(error)) => crate::error_chain(&error),
                Err(_) => "no answer in time".into(),
            };
            round.unfenced.push(UnfencedSlave { address: address.clone(), reason });
        }
        rounds -= 1;
        if config.anew && promised >= request.epoch.number && rounds > 0 {
            above = Some(promised);
            continue;
        }
        let Round { tally, fenced, unfenced, .. } = round;
        let needed = tally.needed();
        if !tally.is_enough() {
            return Err(FencedPromoteError::TooFew { fenced, unfenced, needed });
        }
        let promoted = promote_as(store, Some(&fence)).await?;
        return Ok(FencedPromotion { promoted, fenced, unfenced, needed });
    }
}

/// As [`promote_fenced`], with slaves at addresses HOST:PORT, where they answer reads.
///
/// # Errors
/// As there.
#[cfg(feature = "tcp")]
pub async fn promote_fenced_tcp<S: ReplicaStore>(
    store: &S,
    config: &FenceConfig,
    others: &[String],
) -> Result<FencedPromotion, FencedPromoteError> {
    promote_fenced(store, config, others, tokio::net::TcpStream::connect).await
}

/// Asks the slave at the other end of `stream` to [promise](Slave::fence) that it follows nobody of an earlier epoch.
///
/// # Cancel safety
/// If dropped, it may have promised. Asked again, it says the same.
///
/// # Errors
/// [`ServeError`] if the connection fails, or the node is of an older version; then it may have promised. What the node
/// itself says is the inner result.
pub async fn remote_fence<T>(stream: T, request: &FenceRequest) -> Result<Result<Fenced, FenceRefusal>, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
{
    ask(stream, RequestBody::Fence(request.clone())).await
}

// The slave that is promoted promises first: it moves no more.
async fn fence_own<S: ReplicaStore>(
    store: &S,
    config: &FenceConfig,
    above: Option<u64>,
) -> Result<(Fence, Position), FencedPromoteError> {
    let standing = Standing::read(store).await?;
    if !standing.is_slave() {
        return Err(PromoteError::NoSlave.into());
    }
    // It could fence others, and never begin the epoch that they wait for.
    if standing.copied {
        return Err(PromoteError::Backup.into());
    }
    let fencing = async {
        let epoch = standing.candidate().begins(above, random().map_err(failed)?)?;
        let source = standing.candidate().position()?.source;
        promise(
            store,
            &FenceRequest { source, epoch, by: config.by.clone().unwrap_or_else(|| "another slave".into()) },
            true,
        )
        .await
    };
    match fencing.await {
        Ok(fenced) => Ok(fenced),
        Err(FenceRefusal::Promised { epoch, by }) => Err(PromoteError::Fenced { epoch, by }.into()),
        Err(FenceRefusal::Empty) => Err(PromoteError::Empty.into()),
        Err(FenceRefusal::CatchingUp) => Err(PromoteError::CatchingUp.into()),
        Err(FenceRefusal::Filtered) => {
            let ranges = super::subscription(store).await?.unwrap_or_default();
            Err(PromoteError::Filtered { ranges }.into())
        }
        Err(refusal) => Err(StoreError::backend(refusal).into()),
    }
}

/// What came of asking all of them once.
struct Round<'a, S> {
    store: &'a S,
    tally: FenceTally,
    own: Position,
    fenced: Vec<FencedSlave>,
    unfenced: Vec<UnfencedSlave>,
}

impl<'a, S: ReplicaStore> Round<'a, S> {
    fn new(store: &'a S, tally: FenceTally, own: Position) -> Self {
        let this = FencedSlave { address: None, name: None, position: own };
        Self { store, tally, own, fenced: vec![this], unfenced: Vec::new() }
    }

    async fn fenced(&mut self, address: &str, fenced: Fenced) -> Result<(), FencedPromoteError> {
        let (before, position) = (self.tally.count(), fenced.position);
        self.tally.fenced(&fenced);
        self.judge(address)?;
        if self.contradicts(&position).await? {
            return Err(FencedPromoteError::Parted { address: address.into(), position });
        }
        if self.tally.count() > before {
            let (address, name) = (Some(address.to_owned()), Some(fenced.name));
            self.fenced.push(FencedSlave { address, name, position });
        } else {
            let reason = "it is one of the others, by another address".into();
            self.unfenced.push(UnfencedSlave { address: address.into(), reason });
        }
        Ok(())
    }

    fn refused(&mut self, address: &str, refusal: &FenceRefusal) -> Result<(), FencedPromoteError> {
        self.tally.refused(refusal);
        self.judge(address)
    }

    // Each answer is judged when it comes, so that whoever stands against it is the one that has just answered.
    fn judge(&self, address: &str) -> Result<(), FencedPromoteError> {
        let address = address.to_owned();
        match self.tally.against() {
            None => Ok(()),
            Some(Against::Ahead(position)) => {
                let (own, own_epoch) = (self.own.seq, self.own.epoch);
                Err(FencedPromoteError::Ahead { address, position, own, own_epoch })
            }
            Some(Against::Parted(position)) => Err(FencedPromoteError::Parted { address, position }),
        }
    }

    // Where this store still tells which record it had there, that is the one.
    async fn contradicts(&self, position: &Position) -> Result<bool, StoreError> {
        let key = position.seq.to_key();
        if position.seq == Seq::ZERO || position.seq == self.own.seq {
            return Ok(false);
        }
        if let Some(bytes) = self.store.get(Keyspace::Log, &key).await?
            && let Ok(record) = Record::decode(bytes)
        {
            return Ok(record.position() != *position);
        }
        let checkpoint = self.store.get(Keyspace::Meta, &Checkpoint::at(*position).key()).await?;
        let checkpoint = checkpoint.map(|bytes| Checkpoint::from_bytes(&bytes)).transpose()?;
        Ok(checkpoint.is_some_and(|checkpoint| checkpoint.position != *position))
    }
}
