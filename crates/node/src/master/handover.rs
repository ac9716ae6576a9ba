//! A planned change of masters: this one stops, once a slave has everything.
//!
//! Nobody else can take over before that, and this one cannot go on after it: there are never two. What is lost if
//! something fails in between is time.

use std::time::Duration;

use replikv_core::{Position, ReplicaStore, Seq};
use replikv_proto::RequestBody;
use replikv_proto::layout::Superseded;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::{Inner, Master, ServeError, WriteError};
use crate::reads::ask;

/// A master that has handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HandedOver {
    /// The last record that it wrote. The successor holds it, and all before, on stable storage.
    pub position: Position,
    /// How long its writers had waited by then, in microseconds.
    pub pause_us: u64,
}

/// Why a master has not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HandoverError {
    /// Nobody of that name follows. The master goes on.
    #[error("no slave of the name {name} follows this master")]
    NotFollowing {
        /// The name.
        name: String,
    },
    /// The slave subscribes to a part of the keys: it has no state that a master could go on from. The master goes on.
    #[error("slave {name} subscribes to a part of the keys: it cannot take over")]
    Filtered {
        /// The name.
        name: String,
    },
    /// The slave did not have everything in time. The master goes on.
    #[error("slave {name} did not have everything in time: it holds record {durable}, the last one is {head}")]
    TooFarBehind {
        /// The name.
        name: String,
        /// What it holds on stable storage.
        durable: Seq,
        /// What it was to hold.
        head: Seq,
    },
    /// The master has stopped for good, and its last records, which came when it was stopping, have not reached the
    /// slave in time. Ask again: once they have, it is told.
    #[error("the master writes no more, and slave {name} has not confirmed its last record, {head}, yet: ask again")]
    Unconfirmed {
        /// The name.
        name: String,
        /// The last record.
        head: Seq,
    },
    /// The history goes on elsewhere already: with another slave, or with a master that was promoted.
    #[error("this master writes no more already: its history goes on with {with}")]
    Gone {
        /// In words.
        with: String,
    },
    /// The master was shut down, or its store failed: whether it goes on is for whoever opens it to see.
    #[error("the master did not hand over: {reason}")]
    Failed {
        /// In words.
        reason: String,
    },
}

impl<S: ReplicaStore> Master<S> {
    /// Ends this master's reign in favour of the slave named `successor`: waits until that has nearly everything, lets
    /// writers wait until it has everything, and stops for good, which is kept in the store. Then the slave is to be
    /// promoted, where it stands: [`Slave::take_over`](crate::Slave::take_over) does both.
    ///
    /// Writers that wait meanwhile go on if it comes to nothing, and fail with [`WriteError::Superseded`] if not. The
    /// master goes on serving slaves and reads: the others can get its last record before they move over. Asked again
    /// for the same slave, it says the same again.
    ///
    /// `patience` bounds each wait for the slave: the first one, in which writers go on, and the second, in which they
    /// do not.
    ///
    /// # Cancel safety
    /// If dropped before it stops, writers go on; once it is stopping, it stops.
    ///
    /// # Errors
    /// [`HandoverError`]: each says whether the master goes on.
    pub async fn hand_over(&self, successor: &str, patience: Duration) -> Result<HandedOver, HandoverError> {
        let inner = &*self.inner;
        let mut handed_over = inner.handed_over.lock().await;
        if handed_over.is_none() {
            inner.still_reigns()?;
            if !inner.sessions.is_connected(successor) {
                return Err(HandoverError::NotFollowing { name: successor.into() });
            }
            if inner.sessions.is_filtered(successor) {
                return Err(HandoverError::Filtered { name: successor.into() });
            }
            inner.reaches(successor, inner.view().published.seq, patience).await?;
        }
        let paused = Paused::new(inner);
        if handed_over.is_none() {
            self.all_decided().await.map_err(|error| failed(&error))?;
            inner.everything_published(patience).await;
            inner.reaches(successor, inner.view().published.seq, patience).await?;
        }
        // From here on there is no way back.
        let begun = handed_over.get_or_insert_with(|| Begun { to: successor.into(), at: paused.at, kept: false });
        if begun.to != successor {
            return Err(HandoverError::Gone { with: format!("slave {}", begun.to) });
        }
        if !begun.kept {
            inner.still_reigns()?;
            self.end_reign(Superseded { by: None }).await.map_err(|error| failed(&error))?;
            begun.kept = true;
        }
        inner.still_reigns()?;
        inner.everything_published(patience).await;
        let view = inner.view();
        let reached = inner.reaches(successor, view.published.seq, patience).await;
        // What was handed to the store and is not published is nobody's yet.
        if reached.is_err() || view.published != view.handed {
            return Err(HandoverError::Unconfirmed { name: successor.into(), head: view.handed.seq });
        }
        let pause_us = u64::try_from(begun.at.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::warn!(
            target: "replikv::master", source = %inner.source, follower = successor, seq = %view.published.seq,
            "this master has handed over"
        );
        Ok(HandedOver { position: view.published, pause_us })
    }
}

/// To whom this master hands over, from where there is no way back.
#[derive(Debug)]
pub(super) struct Begun {
    to: String,
    /// Since when writers wait.
    at: Instant,
    /// Whether the store says that it has stopped.
    kept: bool,
}

/// While it lives, writers wait.
struct Paused<'a, S> {
    inner: &'a Inner<S>,
    at: Instant,
}

impl<'a, S> Paused<'a, S> {
    fn new(inner: &'a Inner<S>) -> Self {
        inner.paused.send_replace(true);
        Self { inner, at: Instant::now() }
    }
}

impl<S> Drop for Paused<'_, S> {
    fn drop(&mut self) {
        self.inner.paused.send_replace(false);
    }
}

impl<S: ReplicaStore> Inner<S> {
    /// Waits while the master is about to hand over.
    pub(super) async fn wait_for_handover(&self) -> Result<(), WriteError> {
        let mut paused = self.paused.subscribe();
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(WriteError::Closed),
            _ = paused.wait_for(|paused| !paused) => Ok(()),
        }
    }

    // That nobody was promoted beside it.
    fn still_reigns(&self) -> Result<(), HandoverError> {
        match self.superseded.load().as_ref().and_then(|mark| mark.by) {
            Some(epoch) => Err(HandoverError::Gone { with: format!("the master of epoch {}", epoch.number) }),
            None => Ok(()),
        }
    }

    // Until the slave holds the record on stable storage.
    async fn reaches(&self, name: &str, head: Seq, patience: Duration) -> Result<(), HandoverError> {
        let mut acks = self.sessions.acks();
        let arrives = async {
            while self.sessions.durable_of(name) < Some(head) {
                if acks.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.closing.cancelled() => return Err(failed(&WriteError::Closed)),
            waited = timeout(patience, arrives) => if waited.is_ok() {
                return Ok(());
            },
        }
        Err(match self.sessions.durable_of(name) {
            Some(durable) => HandoverError::TooFarBehind { name: name.into(), durable, head },
            None if self.sessions.is_connected(name) => {
                HandoverError::TooFarBehind { name: name.into(), durable: Seq::ZERO, head }
            }
            None => HandoverError::NotFollowing { name: name.into() },
        })
    }

    // Until nothing is on its way to the store or from there: recorders publish when the application has committed.
    async fn everything_published(&self, patience: Duration) {
        let mut views = self.view.subscribe();
        let published = views.wait_for(|view| view.published == view.handed);
        // If not, the last record is not confirmed, and whoever asked is told.
        drop(timeout(patience, published).await);
    }
}

fn failed(error: &WriteError) -> HandoverError {
    HandoverError::Failed { reason: error.to_string() }
}

/// Asks the master at the other end of `stream` to hand over to the slave `successor`, which follows it on a connection
/// of its own. If this is dropped or fails it is not known whether it has: it says so when it is asked again.
pub(crate) async fn ask_to_hand_over<T>(
    stream: T,
    successor: &str,
    patience: Duration,
) -> Result<Result<HandedOver, HandoverError>, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
{
    let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    ask(stream, RequestBody::HandOver { slave: successor.into(), patience_ms }).await
}
