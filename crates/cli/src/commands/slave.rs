//! What commands share that follow a master with a slave's store.

use std::time::Duration;

use anyhow::{Context, anyhow};
use replikv::proto::layout::Head;
use replikv::{
    Ending, FollowError, KeepLog, Keyspace, OpenError, ReplicaStore, Retention, Role, Slave, SlaveConfig, role,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::aggregates::{self, Definition};
use crate::store::{self, Store};

/// How long it may take to connect.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// Opens the store of a slave that `follow` goes on with later: the log and the figures that it keeps stay.
pub(super) async fn open(
    url: &str,
    mut config: SlaveConfig,
    definitions: &[Definition],
) -> anyhow::Result<Slave<Store>> {
    let mut store = store::open_existing(url)?;
    if role(&store).await.with_context(|| url.to_owned())? == Some(Role::Slave) {
        store = aggregates::keep_on(store, url, definitions).await?;
        if store.get(Keyspace::Meta, Head::KEY).await.with_context(|| url.to_owned())?.is_some() {
            config = config.keep_log(all_of_the_log());
        }
    }
    Slave::open(store, config).await.map_err(|error| match error {
        OpenError::Backup => store::is_backup(url),
        error => anyhow::Error::new(error).context(url.to_owned()),
    })
}

// How much of it is kept is for whoever follows to say.
fn all_of_the_log() -> KeepLog {
    let everything = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    KeepLog::default().retention(everything).max_slots(usize::MAX).slot_expiry(None)
}

pub(super) async fn connect(address: &str, within: Duration) -> anyhow::Result<TcpStream> {
    let connected = timeout(within, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| anyhow!("no answer")).and_then(|stream| Ok(stream?));
    stream.with_context(|| format!("the master at {address} cannot be reached"))
}

/// Follows over a stream that has just been made, and then over others. Whoever does not get as far as to follow on the
/// first one does not try again.
pub(super) async fn follow(slave: &Slave<Store>, first: TcpStream, address: &str) -> Result<Ending, FollowError> {
    match slave.follow(first).await {
        // The connection was lost: another one goes on where it stopped.
        Ok(_) => {}
        Err(error) if error.is_retryable() && slave.status().connections > 0 => {}
        Err(error) => return Err(error),
    }
    slave.follow_tcp(address).await
}

/// Waits until everything that the master has published is here, or there is no connection to it for as long as `patience`.
pub(super) async fn catch_up(slave: &Slave<Store>, address: &str, patience: Duration) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        caught_up = slave.wait_caught_up() => Ok(caught_up?),
        () = disconnected_for(slave, patience) => {
            let reason = slave.status().health.reason;
            Err(anyhow!("there is no connection to the master at {address}: {reason}"))
        }
    }
}

async fn disconnected_for(slave: &Slave<Store>, patience: Duration) {
    let mut progress = slave.subscribe();
    loop {
        if progress.wait_for(|progress| !progress.connected).await.is_err() {
            // It was shut down: that is told by others.
            return std::future::pending().await;
        }
        if timeout(patience, progress.wait_for(|progress| progress.connected)).await.is_err() {
            return;
        }
    }
}
