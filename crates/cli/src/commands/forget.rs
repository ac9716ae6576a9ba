//! A slot that nobody needs.

use std::process::ExitCode;

use anyhow::{Context, bail};
use replikv::proto::SlotKind;
use replikv::{MasterConfig, Role, role};

use super::NO;
use crate::args;
use crate::store;

pub(crate) async fn run(args: args::Forget, json: bool) -> anyhow::Result<ExitCode> {
    // Only whoever has the store open knows its slots: a master that serves would write its own over what is done here.
    let store = store::open_existing(&args.store)?;
    if role(&store).await? != Some(Role::Master) {
        bail!("{}: it is no master's store, and keeps no slots", args.store);
    }
    let master = store::open_master(store, &args.store, MasterConfig::default()).await?;
    let kind = if args.consumer { SlotKind::Consumer } else { SlotKind::Slave };
    let found = master.forget(kind, &args.id);
    // The slot is gone from the store when this returns.
    master.shutdown().await.with_context(|| args.store.clone())?;
    if json {
        say!("{}", serde_json::json!({ "forgotten": found }))?;
    }
    if !found {
        note!("replikv: there is no slot of that name");
        return Ok(ExitCode::from(NO));
    }
    Ok(ExitCode::SUCCESS)
}
