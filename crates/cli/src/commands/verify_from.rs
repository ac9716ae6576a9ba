//! Does a slave's store hold what its master holds, while writes go on?

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use replikv::{DifferenceKind, QuarantineFile, SlaveConfig, VerifyOptions, VerifyReport};
use tokio::sync::watch;

use super::{NO, slave};
use crate::aggregates;
use crate::args;
use crate::formats::add_bytes;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::ui;

/// How long a connection that was lost may stay away: as long as verifying itself waits for it.
const RECONNECT: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: &args::Verify, from: &str, json: bool) -> anyhow::Result<ExitCode> {
    let [url] = &args.stores[..] else { bail!("give --store once: it is compared with the master's") };
    let mut interrupt = Interrupt::new()?;
    aggregates::check(&args.aggregates)?;
    super::check_address(from).await?;
    let first = slave::connect(from, slave::CONNECT).await?;
    // It keeps no slot, and so its name is free.
    let mut config = SlaveConfig::new(format!("verify-{}", std::process::id())).temporary().compression(args.compress);
    if let Some(path) = &args.quarantine {
        let quarantine = QuarantineFile::new(path);
        // Before anything else: not when the first entry is to be kept.
        quarantine.check().with_context(|| path.display().to_string())?;
        config = config.quarantine(quarantine);
    }
    let slave = slave::open(url, config, &args.aggregates).await?;
    // Nothing is copied into a store that is nobody's.
    if slave.status().position.is_none() {
        slave.shutdown().await?;
        bail!("{url} has never followed a master: there is nothing to compare");
    }
    let mut following = pin!(slave::follow(&slave, first, from));
    let verifying = async {
        slave::catch_up(&slave, from, RECONNECT).await?;
        let bar = ui::bar("comparing", None);
        let (progress, mut told) = watch::channel(VerifyReport::default());
        let mut options = VerifyOptions::default().max_differences(args.show).progress(progress);
        if args.repair {
            options = options.repair();
        }
        if let Some(bytes) = args.bytes_per_second {
            options = options.bytes_per_second(bytes);
        }
        let mut verifying = pin!(slave.verify(options));
        let report = loop {
            tokio::select! {
                biased;
                report = &mut verifying => break report,
                Ok(()) = told.changed() => bar.set_position(told.borrow_and_update().entries),
            }
        };
        bar.finish_and_clear();
        anyhow::Ok(report?)
    };
    let mut ended = false;
    let result = tokio::select! {
        biased;
        () = interrupt.wait() => Ok(None),
        followed = &mut following => {
            ended = true;
            Err(match followed {
                Ok(_) => anyhow::anyhow!("following {from} has ended"),
                Err(error) => anyhow::Error::new(error).context(format!("{url} cannot follow {from}")),
            })
        }
        report = verifying => report.map(Some),
    };
    // The connection is polled on, for the last ack and the goodbye.
    let goodbye = async {
        if !ended {
            drop(following.await);
        }
    };
    let (closed, ()) = tokio::join!(slave.shutdown(), goodbye);
    let report = result?;
    closed.with_context(|| url.clone())?;
    let Some(report) = report else { return Ok(ExitCode::from(INTERRUPTED)) };
    tell(&report, from, json)?;
    Ok(if report.is_equal() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn tell(report: &VerifyReport, from: &str, json: bool) -> anyhow::Result<()> {
    let seq = report.position.map_or(0, |position| position.seq.as_u64());
    if json {
        let list = report.differences.iter().map(|found| {
            let mut difference = serde_json::Map::new();
            add_bytes(&mut difference, "key", &found.key);
            difference.insert("kind".into(), serde_json::json!(found.kind));
            difference
        });
        let differences: Vec<_> = list.collect();
        say!(
            "{}",
            serde_json::json!({
                "equal": report.is_equal(),
                "seq": seq,
                "ranges": report.ranges,
                "entries": report.entries,
                "bytes": report.bytes,
                "different": report.different,
                "healed": report.healed,
                "repaired": report.repaired,
                "differences": differences,
            })
        )?;
        return Ok(());
    }
    for found in &report.differences {
        let words = match found.kind {
            DifferenceKind::Missing => format!("only at {from}"),
            DifferenceKind::Extra => "only in the slave's store".into(),
            DifferenceKind::Value => "values differ".into(),
            _ => "differs".into(),
        };
        say!("{}: {words}", ui::printable(&found.key))?;
    }
    let (entries, different) = (ui::thousands(report.entries), ui::thousands(report.different));
    if report.is_equal() {
        say!("equal: {entries} entries, the last of them at record {seq}")?;
    } else {
        let (healed, repaired) = (ui::thousands(report.healed), ui::thousands(report.repaired));
        say!(
            "different: {different} of {entries} entries, {repaired} repaired; {healed} ranges were overwritten by the \
             master before their keys could be told"
        )?;
    }
    Ok(())
}
