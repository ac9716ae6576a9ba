//! What deriving costs the writer: batches through a master that derives from them, against the same ones through one that
//! does not.

use bytes::Bytes;
use replikv::aggregate::{Aggregate, Count, Max};
use replikv::{Derive, DeriveAbort, DeriveView, Derived, DerivedChange, MasterConfig, Subspace};

use super::figure::Sample;
use super::workload::{Entries, write};
use super::{Place, keeping};
use crate::{args, store};

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let before = if place.base_first { Some(written(place, keeping(), args).await?) } else { None };
    for (what, config) in deriving() {
        samples.push((what, written(place, config, args).await?));
    }
    let base = match before {
        Some(base) => base,
        None => written(place, keeping(), args).await?,
    };
    let sample = |(what, rate)| Sample::rate("derive", place.kind, what, rate, base);
    Ok(samples.into_iter().map(sample).collect())
}

async fn written(place: &Place<'_>, config: MasterConfig, args: &args::Bench) -> anyhow::Result<f64> {
    let master = store::open_master(place.open("master")?, place.kind, config).await?;
    let (rate, _) = write(&master, Entries::new(args).take(args.entries), args.batch).await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    Ok(rate)
}

/// From the least to the most that is written with each entry.
fn deriving() -> [(&'static str, MasterConfig); 3] {
    let count = Aggregate::new("count", 1, Count, |key: &[u8], _, emit| {
        emit.to(group(key), ());
        Ok(())
    });
    let greatest = Aggregate::new("greatest", 1, Max::<Vec<u8>>::default(), |key: &[u8], value, emit| {
        emit.to(group(key), beginning(value).to_vec());
        Ok(())
    });
    [
        ("a count of 256 groups", keeping().derive(target(), count)),
        ("an index", keeping().derive(target(), Index)),
        ("the greatest of 256 groups", keeping().derive(target(), greatest)),
    ]
}

// Longer than any key of the entries, so that none of these lies in it.
fn target() -> Subspace {
    Subspace::raw("derived, of what is measured/")
}

fn group(key: &[u8]) -> u8 {
    key.last().copied().unwrap_or_default()
}

fn beginning(value: &[u8]) -> &[u8] {
    &value[..value.len().min(8)]
}

/// Each entry by the beginning of its value.
#[derive(Debug)]
struct Index;

impl Derive for Index {
    fn name(&self) -> &'static str {
        "index"
    }

    fn version(&self) -> u32 {
        1
    }

    fn derive(&self, changes: &[DerivedChange], _: &DeriveView<'_>, out: &mut Derived) -> Result<(), DeriveAbort> {
        for DerivedChange { key, old, new } in changes {
            let place = |value: &Bytes| [beginning(value), key].concat();
            if let Some(old) = old {
                out.delete(place(old));
            }
            if let Some(new) = new {
                out.put(place(new), Bytes::new());
            }
        }
        Ok(())
    }
}
