//! A backup that becomes a master's store.

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use replikv::proto::layout::{Backup as Mark, Stored};
use replikv::{Keyspace, MasterConfig, Role, role};

use crate::args;
use crate::store;
use crate::ui;

pub(crate) async fn run(args: args::Restore, json: bool) -> anyhow::Result<ExitCode> {
    let kind = args.backup.split_once(':').map(|(kind, _)| kind).unwrap_or_default();
    let destination = match args.destination.split_once(':') {
        Some((kind, _)) if super::backup::KINDS.contains(&kind) => args.destination.clone(),
        _ => format!("{kind}:{}", args.destination),
    };
    check(&args.backup).await?;
    let copied = args::Backup { store: args.backup.clone(), destination: args.destination.clone() };
    let code = super::backup::take_quietly(copied).await?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    // Until this is through it is a backup as well, and opens as nothing else.
    let restored = store::open_existing(&destination)?;
    let master = store::open_master(restored, &destination, MasterConfig::default().new_epoch()).await?;
    let published = master.status().published;
    master.shutdown().await.with_context(|| destination.clone())?;
    let (seq, epoch) = (published.seq.as_u64(), published.epoch.number);
    if json {
        say!("{}", serde_json::json!({ "restored": destination, "epoch": epoch, "seq": seq }))?;
    } else {
        note!("restored to {destination}: record {}, epoch {epoch}; serve it", ui::thousands(seq));
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(url: &str) -> anyhow::Result<()> {
    let store = store::open_to_read(url)?;
    let mark = store.get(Keyspace::Meta, Mark::KEY).await?.map(|bytes| Mark::from_bytes(&bytes)).transpose()?;
    let role = role(&store).await?;
    let superseded = super::status::superseded(&store).await?;
    store.close().await?;
    let Some(mark) = mark else { bail!("{url}: it is no backup: take one with backup --store {url} DEST") };
    ensure!(mark.taken_unix_ms.is_some(), "{url}: it is a backup that was never completed");
    if let Some(mark) = superseded {
        let words = mark.words();
        bail!("{url}: {words}: restore a backup of that one, or follow it with this one by follow --as-slave NAME");
    }
    match role {
        Some(Role::Master) => Ok(()),
        Some(Role::Centre) => bail!("{url}: it is a backup of a centre: gather with it, or with a copy of it"),
        _ => bail!("{url}: it is a backup of a slave: follow a master with it, or promote it"),
    }
}
