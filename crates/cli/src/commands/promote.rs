//! A slave's store that becomes a master's.

use std::process::ExitCode;

use anyhow::Context;
use replikv::promote;

use crate::args;
use crate::store;
use crate::ui;

pub(crate) async fn run(args: args::Promote, json: bool) -> anyhow::Result<ExitCode> {
    let store = store::open_existing(&args.store)?;
    let promoted = promote(&store).await;
    store.close().await.with_context(|| args.store.clone())?;
    let promoted = promoted.with_context(|| args.store.clone())?;
    let (last, epoch) = (promoted.last.seq.as_u64(), promoted.first.epoch.number);
    if json {
        say!("{}", serde_json::json!({ "promoted": args.store, "epoch": epoch, "last": last }))?;
    } else {
        let last = ui::thousands(last);
        note!("promoted {}: it holds record {last} and all before, and goes on in epoch {epoch}; serve it", args.store);
    }
    Ok(ExitCode::SUCCESS)
}
