//! Where `get` and `scan` read: a store that is here, a node that answers, or several of them.

use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use replikv::{
    KeyRange, KeyRanges, Keyspace, Page, ReadError, Reader, RemoteReader, RemoteReaderConfig, ScanOptions, StoreError,
    subscription,
};
use tokio::time::timeout;

use super::nodes::Nodes;
use crate::args;
use crate::store::{self, Store};

/// How long a node may be silent.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long an answer may take that comes bit by bit: of the largest value, from far away.
pub(super) const WHOLE_ANSWER: Duration = Duration::from_secs(60);

/// The longest key that any store holds.
const LONGEST_KEY: usize = 64 << 10;

pub(super) enum Place {
    /// And what it holds, if that is a part of the keys.
    Store {
        store: Store,
        url: String,
        ranges: Option<KeyRanges>,
    },
    Node(RemoteReader, String),
    Nodes(Nodes),
}

impl Place {
    pub(super) async fn open(args: &args::Place, bound: &args::Bound) -> anyhow::Result<Self> {
        match (&args.from[..], &args.store) {
            ([address], _) if !bound.is_set() => {
                super::check_address(address).await?;
                Ok(Self::Node(RemoteReader::tcp(address, reader_config()), address.clone()))
            }
            ([], Some(url)) => {
                let store = store::open_to_read(url)?;
                if let Some(words) = store::unfinished(&store).await.with_context(|| url.clone())? {
                    note!("replikv: {url}: {words}: what is not found may be missing only here");
                }
                let ranges = subscription(&store).await.with_context(|| url.clone())?;
                Ok(Self::Store { store, url: url.clone(), ranges })
            }
            ([], None) => Err(anyhow!("say --store URL or --from ADDR")),
            (addresses, _) => Ok(Self::Nodes(Nodes::meet(addresses, bound).await?)),
        }
    }

    pub(super) async fn get(&self, key: &[u8]) -> anyhow::Result<Option<Bytes>> {
        self.check_key(key)?;
        match self {
            Self::Store { store, url, ranges } => {
                held(ranges.as_ref(), &KeyRange::only(key)).with_context(|| url.clone())?;
                let value = store.get(Keyspace::Data, key).await.with_context(|| url.clone())?;
                self.close().await?;
                Ok(value)
            }
            Self::Node(reader, address) => Ok(asked(address, reader.read(key, None)).await?.value),
            Self::Nodes(nodes) => nodes.get(key).await,
        }
    }

    pub(super) async fn scan(&self, range: KeyRange, reverse: bool) -> anyhow::Result<Page> {
        let options = ScanOptions { max_entries: 10_000, max_bytes: 1 << 20, reverse };
        self.check_key(range.start())?;
        self.check_key(range.end().map_or(&[][..], |end| &end[..]))?;
        match self {
            Self::Store { store, url, ranges } => {
                held(ranges.as_ref(), &range).with_context(|| url.clone())?;
                store.scan(Keyspace::Data, range, options).await.with_context(|| url.clone())
            }
            Self::Node(reader, address) => Ok(asked(address, reader.read_page(range, options, None)).await?.value),
            Self::Nodes(nodes) => nodes.scan(range, options).await,
        }
    }

    // A node takes no question that is longer than any of its keys, and hangs up.
    fn check_key(&self, key: &[u8]) -> Result<(), StoreError> {
        match self {
            Self::Node(..) | Self::Nodes(_) if key.len() > LONGEST_KEY => {
                Err(StoreError::KeyTooLong { len: key.len(), max: LONGEST_KEY })
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn close(&self) -> anyhow::Result<()> {
        if let Self::Store { store, url, .. } = self {
            store.close().await.with_context(|| url.clone())?;
        }
        Ok(())
    }
}

pub(super) fn reader_config() -> RemoteReaderConfig {
    RemoteReaderConfig::default().silence(ANSWER)
}

// As a slave that runs says it: what it does not subscribe to it cannot tell.
fn held(ranges: Option<&KeyRanges>, range: &KeyRange) -> Result<(), StoreError> {
    match ranges {
        Some(ranges) if !ranges.covers(range) => {
            let what = format!("some of {}", KeyRanges::from(range.clone()));
            Err(StoreError::NotSubscribed { what })
        }
        _ => Ok(()),
    }
}

async fn asked<T>(address: &str, asking: impl Future<Output = Result<T, ReadError>>) -> anyhow::Result<T> {
    let answer = timeout(WHOLE_ANSWER, asking).await.map_err(|_| anyhow!("no answer"));
    let answer = answer.and_then(|answer| answer.map_err(anyhow::Error::from));
    answer.with_context(|| format!("the node at {address} cannot be asked"))
}
