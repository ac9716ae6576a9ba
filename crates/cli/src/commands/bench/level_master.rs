//! The same work by level-master on Node.js, in the same round: see compare/level-master.
//!
//! On disk it stands on LevelDB, which it never tells to sync.

use std::process::Stdio;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::figure::Sample;
use super::{Place, catch_up, live};
use crate::{args, ui};

/// In memory each entry takes some kilobytes on the other side.
const MOST: usize = 100_000;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let (storage, words, goal) = match place.kind {
        "lmdb" | "fjall" => ("disk", "on disk, not synced", 20.0),
        "memory" => ("memory", "in memory", 5.0),
        _ => return Ok(Vec::new()),
    };
    let args = &args::Bench { entries: args.entries.min(MOST), ..args.clone() };
    let theirs = measure(place, args, storage).await?;
    let caught_up = catch_up::through_log(place, args).await?;
    let (_, followed) = live::with_slave(place, args).await?;
    let rows = [("catch-up", caught_up, theirs.catch_up), ("live", followed, theirs.live)];
    let sample = |(what, ours, theirs)| {
        let what = format!("{what}; level-master {words}");
        Sample::rate("level-master", &place.words(), what, ours, theirs).goal(Some(goal))
    };
    Ok(rows.map(sample).into())
}

/// Entries a second.
#[derive(Debug, Deserialize)]
struct Theirs {
    catch_up: f64,
    live: f64,
}

async fn measure(place: &Place<'_>, args: &args::Bench, storage: &str) -> anyhow::Result<Theirs> {
    let there = &args.level_master;
    ensure!(
        there.join("node_modules").exists(),
        "{}: level-master is not installed there: compare/install.sh does that",
        there.display()
    );
    let dir = place.path("level-master");
    std::fs::create_dir_all(&dir)?;
    let mut command = Command::new("node");
    command.arg(there.join("bench.js")).arg(storage).arg(&dir);
    command.args([args.entries, args.batch, args.value].map(|number| number.to_string()));
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let ended = ended.context("node cannot be started: is it installed?")?;
    let words = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "level-master fails: {}", ui::one_line(&words));
    place.remove("level-master")?;
    serde_json::from_slice(&ended.stdout).context("level-master's figures cannot be read")
}
