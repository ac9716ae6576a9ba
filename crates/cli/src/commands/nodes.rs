//! Several nodes, of which one that is fit is asked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use replikv::{
    BalanceConfig, BalancedReader, KeyRange, Page, ReadError, ReadSession, Reader, RemoteReader, ScanOptions,
};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::place::{ANSWER, WHOLE_ANSWER, reader_config};
use super::status;
use crate::args;

/// How long the others are waited for once one has said so.
const OTHERS: Duration = Duration::from_secs(1);

pub(super) struct Nodes {
    session: ReadSession,
    addresses: String,
}

/// A node that answers.
struct Met {
    reader: Arc<dyn Reader>,
    /// The epoch and the last record of a master.
    master: Option<(u64, u64)>,
    address: String,
    /// Whose history it holds, as its status says that; of an empty slave nothing.
    source: Value,
}

impl Met {
    /// Whether anybody knows how far it is behind: not once a slave has lost its master.
    fn is_told(&self) -> bool {
        self.reader.status().lag.is_some()
    }
}

impl args::Bound {
    pub(super) fn is_set(&self) -> bool {
        self.max_lag.is_some() || self.max_lag_records.is_some()
    }

    fn config(&self, met: &[Met]) -> BalanceConfig {
        let config = BalanceConfig::default().attempt_timeout(WHOLE_ANSWER).max_lag_seqs(self.max_lag_records);
        // Something old is better than nothing for whoever has not said otherwise.
        let any_age = !self.is_set() && !met.iter().any(Met::is_told);
        if any_age || self.max_lag.is_some() { config.max_lag(self.max_lag) } else { config }
    }
}

impl Nodes {
    /// Asks all where they stand. Whoever does not answer is passed over.
    pub(super) async fn meet(addresses: &[String], bound: &args::Bound) -> anyhow::Result<Self> {
        addresses.iter().try_for_each(|address| super::check_port(address))?;
        let met = meet_all(addresses).await?;
        of_one_source(&met)?;
        let config = bound.config(&met);
        let (masters, slaves): (Vec<_>, Vec<_>) = met.into_iter().partition(|met| met.master.is_some());
        let slaves = slaves.into_iter().map(|slave| slave.reader);
        // A master that was replaced does not know of the epoch of the other.
        let balanced = match masters.into_iter().max_by_key(|met| met.master) {
            Some(master) => BalancedReader::with_fallback(slaves, master.reader, config),
            None => BalancedReader::new(slaves, config),
        };
        Ok(Self { session: balanced.session(), addresses: addresses.join(", ") })
    }

    pub(super) async fn get(&self, key: &[u8]) -> anyhow::Result<Option<Bytes>> {
        self.answered(self.session.get(key).await)
    }

    /// A page that is no older than the one before it, whoever has told that.
    pub(super) async fn scan(&self, range: KeyRange, options: ScanOptions) -> anyhow::Result<Page> {
        self.answered(self.session.scan(range, options).await)
    }

    fn answered<T>(&self, answer: Result<T, ReadError>) -> anyhow::Result<T> {
        answer.with_context(|| format!("nobody at {} answers", self.addresses))
    }
}

async fn meet_all(addresses: &[String]) -> anyhow::Result<Vec<Met>> {
    let mut asked: FuturesUnordered<_> = addresses.iter().map(|address| meet(address)).collect();
    let (mut all, mut failures, mut until) = (Vec::new(), Vec::new(), None);
    loop {
        let answer = match until {
            Some(until) => timeout_at(until, asked.next()).await.ok().flatten(),
            None => asked.next().await,
        };
        match answer {
            Some(Ok(met)) => {
                all.push(met);
                until.get_or_insert_with(|| Instant::now() + OTHERS);
            }
            Some(Err(error)) => failures.push(format!("{error:#}")),
            None if all.is_empty() => bail!("{}", failures.join("; ")),
            None => return Ok(all),
        }
    }
}

async fn meet(address: &str) -> anyhow::Result<Met> {
    let status = status::ask(address).await?;
    let reader = RemoteReader::tcp(address, reader_config());
    // Its first answer comes after it has said where it stands, which the choice between readers needs.
    let probe = timeout(ANSWER, reader.read_page(KeyRange::empty(), ScanOptions::default(), None)).await;
    let probe = probe.map_err(|_| anyhow!("no answer")).and_then(|probe| match probe {
        Err(error @ (ReadError::Unreachable { .. } | ReadError::Refused { .. })) => Err(error.into()),
        _ => Ok(()),
    });
    probe.with_context(|| format!("the node at {address} cannot be asked"))?;
    let held = [&status["published"], &status["position"]].into_iter().find(|position| position.is_object());
    let source = held.map_or(Value::Null, |position| position["source"].clone());
    Ok(Met { reader: Arc::new(reader), master: master_of(&status), address: address.to_owned(), source })
}

// One of them is not meant, and nobody knows which.
fn of_one_source(met: &[Met]) -> anyhow::Result<()> {
    let mut holders = met.iter().filter(|met| !met.source.is_null());
    let Some(first) = holders.next() else { return Ok(()) };
    match holders.find(|other| other.source != first.source) {
        Some(other) => bail!("{} and {} hold the data of two masters: name nodes of one", first.address, other.address),
        None => Ok(()),
    }
}

fn master_of(status: &Value) -> Option<(u64, u64)> {
    let published = &status["published"];
    published["epoch"]["number"].as_u64().zip(published["seq"].as_u64())
}
