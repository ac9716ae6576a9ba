//! A slave that takes over from its master, which agrees.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use replikv::{LinkId, PromoteError, Slave, SlaveConfig, TakeOverError};

use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::{args, store, ui};

pub(crate) async fn run(args: args::Handover, json: bool) -> anyhow::Result<ExitCode> {
    LinkId::new(args.id.as_str())?;
    let mut interrupt = Interrupt::new()?;
    super::check_address(&args.from).await?;
    let store = store::open_existing(&args.store)?;
    let slave = Slave::open(store, SlaveConfig::new(args.id.as_str())).await.with_context(|| args.store.clone())?;
    let spinner = ui::bar("taking over", None);
    let taking_over = async {
        // The master waits for as long; what was missed before comes first, while its writers go on.
        slave.wait_caught_up().await?;
        slave.take_over_tcp(&args.from, Duration::from_secs(args.patience)).await.map_err(anyhow::Error::new)
    };
    let following = async {
        match slave.follow_tcp(&args.from).await {
            // It ends when the slave is promoted, which is told by the other one.
            Ok(_) => std::future::pending().await,
            Err(error) => anyhow!(error),
        }
    };
    let result = tokio::select! {
        biased;
        () = interrupt.wait() => {
            spinner.finish_and_clear();
            drop(slave.shutdown().await);
            note!("replikv: interrupted; if the master has stopped in favour of {} by now, run this again", args.id);
            return Ok(ExitCode::from(INTERRUPTED));
        }
        result = taking_over => result,
        error = following => Err(error),
    };
    spinner.finish_and_clear();
    let took_over = match result {
        Ok(took_over) => took_over,
        Err(error) => {
            drop(slave.shutdown().await);
            let words = match error.downcast_ref::<TakeOverError>() {
                Some(TakeOverError::Promote(error)) if !matches!(error, PromoteError::Filtered { .. }) => {
                    format!("see why, and then: replikv promote --store {}", args.store)
                }
                _ => format!("the master at {} has not handed over to {}", args.from, args.id),
            };
            return Err(error.context(words));
        }
    };
    let (last, epoch) = (took_over.promoted.last.seq.as_u64(), took_over.promoted.first.epoch.number);
    let pause_ms = took_over.handed_over.pause_us.div_ceil(1000);
    if json {
        say!("{}", serde_json::json!({ "promoted": args.store, "epoch": epoch, "last": last, "pause_ms": pause_ms }))?;
    } else {
        let last = ui::thousands(last);
        note!(
            "{} has taken over: it holds record {last} and all before, and goes on in epoch {epoch}; the master at {} has \
             stopped, its writers had waited for {pause_ms} ms; serve it",
            args.store,
            args.from
        );
    }
    Ok(ExitCode::SUCCESS)
}
