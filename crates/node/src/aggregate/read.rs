//! Reading summaries.

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use replikv_core::table::TableKey;
use replikv_core::{KeyRange, Position, ScanOptions, StoreError};
use replikv_proto::DeriveAbort;

use super::derive::{SUMMARIES, decode, summary_key};
use super::{Aggregate, Combine};
use crate::DerivedReader;

/// Why a summary cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// What is stored is no summary of this aggregate.
    #[error("aggregate {name}: {reason}")]
    Stored {
        /// The aggregate.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The store failed, or nobody derives this aggregate there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was read, and which batches are in it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Aggregated<T> {
    /// What was read, as it was at one instant.
    pub value: T,
    /// The last batch that is in it. `None` where there is no such batch, as in a centre, or where writes came too fast to
    /// tell.
    pub at: Option<Position>,
}

/// How often what was overtaken by a write is read again to tell its position.
const ATTEMPTS: u32 = 8;

impl<G: TableKey + Send + 'static, C: Combine> Aggregate<G, C> {
    /// The summary of `group`, or `None` if nothing contributes to it.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`AggregateError`].
    pub async fn get(
        &self,
        reader: &(impl DerivedReader + ?Sized),
        group: &G,
    ) -> Result<Option<C::Summary>, AggregateError> {
        let key = summary_key(&encoded(group));
        let Some(bytes) = reader.get_derived(self.name(), &key).await? else { return Ok(None) };
        let (_, summary) = decode::<(u64, C::Summary)>(&bytes).map_err(|abort| self.stored(&abort))?;
        Ok(Some(summary))
    }

    /// The summary of `group`, and of which position it is.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`AggregateError`].
    pub async fn get_at(
        &self,
        reader: &(impl DerivedReader + ?Sized),
        group: &G,
    ) -> Result<Aggregated<Option<C::Summary>>, AggregateError> {
        let mut before = reader.derived_at().await?;
        for _ in 0..ATTEMPTS {
            let value = self.get(reader, group).await?;
            let after = reader.derived_at().await?;
            if before == after {
                return Ok(Aggregated { value, at: after });
            }
            before = after;
        }
        Ok(Aggregated { value: self.get(reader, group).await?, at: None })
    }

    /// One page of groups and their summaries, in the order of groups and of one instant, and where to go on; `from` is
    /// [`groups`](Self::groups) or what an earlier page left.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`AggregateError`].
    pub async fn page(
        &self,
        reader: &(impl DerivedReader + ?Sized),
        from: KeyRange,
        options: ScanOptions,
    ) -> Result<(Vec<(G, C::Summary)>, Option<KeyRange>), AggregateError> {
        let range = from.intersect(&KeyRange::prefix(SUMMARIES));
        let page = reader.scan_derived(self.name(), range, options).await?;
        let mut groups = Vec::with_capacity(page.len());
        for (key, value) in page.iter() {
            groups.extend(self.entry(key, value).map_err(|abort| self.stored(&abort))?);
        }
        Ok((groups, page.rest().cloned()))
    }

    /// Where all groups are, for [`page`](Self::page).
    pub fn groups(&self) -> KeyRange {
        KeyRange::prefix(SUMMARIES)
    }

    /// All groups and their summaries, in the order of groups, read page by page: each page is of its own instant.
    pub fn iter<'a, R: DerivedReader + ?Sized>(
        &'a self,
        reader: &'a R,
    ) -> BoxStream<'a, Result<(G, C::Summary), AggregateError>> {
        let pages = stream::try_unfold(Some(self.groups()), move |rest| async move {
            let Some(range) = rest else { return Ok::<_, AggregateError>(None) };
            let (groups, rest) = self.page(reader, range, ScanOptions::default()).await?;
            Ok(Some((stream::iter(groups.into_iter().map(Ok)), rest)))
        });
        pages.try_flatten().boxed()
    }

    /// All groups and their summaries, in the order of groups, as they were at one instant, in memory, and of which position
    /// they are.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`AggregateError`].
    pub async fn all(
        &self,
        reader: &(impl DerivedReader + ?Sized),
    ) -> Result<Aggregated<Vec<(G, C::Summary)>>, AggregateError> {
        let whole = ScanOptions::default().max_entries(usize::MAX).max_bytes(usize::MAX);
        let mut before = reader.derived_at().await?;
        for _ in 0..ATTEMPTS {
            let (value, _) = self.page(reader, self.groups(), whole).await?;
            let after = reader.derived_at().await?;
            if before == after {
                return Ok(Aggregated { value, at: after });
            }
            before = after;
        }
        let (value, _) = self.page(reader, self.groups(), whole).await?;
        Ok(Aggregated { value, at: None })
    }

    fn stored(&self, abort: &DeriveAbort) -> AggregateError {
        AggregateError::Stored { name: self.name().to_owned(), reason: abort.to_string() }
    }
}

fn encoded(group: &impl TableKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    group.encode(&mut bytes);
    bytes
}
