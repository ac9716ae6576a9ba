//! A slave that follows its old master again.

use std::process::ExitCode;

use anyhow::Context;
use replikv::lift_fence;

use super::NO;
use crate::args;
use crate::store;

pub(crate) async fn run(args: args::Unfence, json: bool) -> anyhow::Result<ExitCode> {
    let store = store::open_existing(&args.store)?;
    let lifted = lift_fence(&store).await;
    store.close().await.with_context(|| args.store.clone())?;
    let lifted = lifted.with_context(|| args.store.clone())?;
    if json {
        let epoch = lifted.as_ref().map(|fence| fence.epoch.number);
        say!("{}", serde_json::json!({ "unfenced": args.store, "epoch": epoch }))?;
    }
    let Some(fence) = lifted else {
        note!("replikv: {} is not fenced", args.store);
        return Ok(ExitCode::from(NO));
    };
    if !json {
        let rest = if fence.own { "; it cannot begin that epoch any more" } else { "" };
        note!("{} no longer waits for epoch {}{rest}", args.store, fence.epoch);
    }
    Ok(ExitCode::SUCCESS)
}
