//! Figures of groups of keys, as they were kept.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use replikv::{AggregateError, InStore, ScanOptions, StoreError};
use serde_json::Map;

use super::NO;
use crate::aggregates;
use crate::args;
use crate::formats::add_bytes;
use crate::store::{self, Store};
use crate::ui;

/// So many groups are of one instant.
const PAGE: ScanOptions = ScanOptions { max_entries: 100_000, max_bytes: 16 << 20, reverse: false };

pub(crate) async fn run(args: args::Aggregate, json: bool) -> anyhow::Result<ExitCode> {
    let store = store::open_to_read(&args.store)?;
    let printed = match &args.group {
        Some(group) => print_group(&store, &args, group, json).await,
        None => print_all(&store, &args, json).await.map(|()| ExitCode::SUCCESS),
    };
    store.close().await?;
    printed
}

async fn print_group(store: &Store, args: &args::Aggregate, group: &str, json: bool) -> anyhow::Result<ExitCode> {
    let reader = InStore::new(store);
    let found = aggregates::named(&args.name).get(&reader, &group.as_bytes().to_vec()).await;
    let found = match found {
        Ok(found) => found,
        Err(error) => return Err(unread(&reader, args, error).await),
    };
    let Some(units) = found else {
        note!("replikv: no such group");
        return Ok(ExitCode::from(NO));
    };
    if json {
        say!("{}", as_json(group.as_bytes(), units)?)?;
    } else {
        say!("{}", aggregates::in_words(units))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn print_all(store: &Store, args: &args::Aggregate, json: bool) -> anyhow::Result<()> {
    let reader = InStore::new(store);
    let aggregate = aggregates::named(&args.name);
    let mut output = BufWriter::new(ui::stdout());
    let mut rest = Some(aggregate.groups());
    while let Some(range) = rest {
        let page = aggregate.page(&reader, range, PAGE).await;
        let (groups, more) = match page {
            Ok(page) => page,
            Err(error) => return Err(unread(&reader, args, error).await),
        };
        for (group, units) in groups {
            if json {
                writeln!(output, "{}", as_json(&group, units)?)?;
            } else {
                writeln!(output, "{}\t{}", ui::printable(&group), aggregates::in_words(units))?;
            }
        }
        rest = more;
    }
    Ok(output.flush()?)
}

// With the digits as they are: they may be more than JSON libraries make numbers of.
fn as_json(group: &[u8], units: i128) -> anyhow::Result<String> {
    let mut object = Map::new();
    add_bytes(&mut object, "group", group);
    let object = serde_json::to_string(&object)?;
    let open = object.strip_suffix('}').context("it is an object")?;
    Ok(format!("{open},\"figure\":{}}}", aggregates::in_words(units)))
}

async fn unread(reader: &InStore<'_, Store>, args: &args::Aggregate, error: AggregateError) -> anyhow::Error {
    let (url, name) = (&args.store, &args.name);
    if !matches!(error, AggregateError::Store(StoreError::NotDerived { .. })) {
        return anyhow::Error::new(error).context(url.clone());
    }
    let names = reader.names().await.unwrap_or_default();
    let names: Vec<&str> = names.iter().filter_map(|name| aggregates::name_of(name)).collect();
    let there = if names.is_empty() { String::new() } else { format!(", but {}", names.join(", ")) };
    anyhow!("{url}: it keeps no aggregate {name}{there}; follow or gather with --aggregate {name}=... makes it")
}
