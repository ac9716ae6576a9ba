//! A slave that takes over from its master, which agrees.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use replikv::{LinkId, PromoteError, SlaveConfig, TakeOverError};

use super::slave;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::{aggregates, args, ui};

pub(crate) async fn run(args: args::Handover, json: bool) -> anyhow::Result<ExitCode> {
    LinkId::new(args.id.as_str())?;
    let mut interrupt = Interrupt::new()?;
    aggregates::check(&args.aggregates)?;
    let patience = Duration::from_secs(args.patience);
    super::check_address(&args.from).await?;
    let first = slave::connect(&args.from, patience.min(slave::CONNECT)).await?;
    let config = SlaveConfig::new(args.id.as_str()).handshake_timeout(patience.min(slave::CONNECT));
    let taker = slave::open(&args.store, config, &args.aggregates).await?;
    let spinner = ui::bar("taking over", None);
    let taking_over = async {
        // The master waits for as long; what was missed before comes first, while its writers go on.
        slave::catch_up(&taker, &args.from, patience).await?;
        taker.take_over_tcp(&args.from, patience).await.map_err(anyhow::Error::new)
    };
    let following = async {
        match slave::follow(&taker, first, &args.from).await {
            // It ends when the slave is promoted, which is told by the other one.
            Ok(_) => std::future::pending().await,
            Err(error) => anyhow!(error),
        }
    };
    let result = tokio::select! {
        biased;
        () = interrupt.wait() => {
            spinner.finish_and_clear();
            drop(taker.shutdown().await);
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
            drop(taker.shutdown().await);
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
