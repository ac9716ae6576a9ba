//! One round on one store, in a process of its own: what earlier ones leave of its memory would slow down later ones.

use std::process::Stdio;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use tokio::process::Command;

use super::figure::Sample;
use crate::args::{self, Scenario};

pub(super) async fn apart(
    scenario: Scenario,
    kind: &str,
    number: usize,
    args: &args::Bench,
) -> anyhow::Result<Vec<Sample>> {
    // Removed by this process also if the other one is killed.
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("replikv-bench-").tempdir_in(parent).context("no place to measure")?;
    let name = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
    let scenario = name(scenario.to_possible_value()).context("a scenario without a name")?;
    let keys = name(args.keys.to_possible_value()).context("an order without a name")?;
    let sizes: Vec<_> = args.sizes.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe().context("the program cannot find itself")?);
    command.args(["bench", &scenario, "--stores", kind, "--keys", &keys, "--sizes", &sizes.join(",")]);
    for (option, value) in [
        ("--round", number),
        ("--entries", args.entries),
        ("--batch", args.batch),
        ("--value", args.value),
        ("--rounds", args.rounds),
    ] {
        command.args([option, &value.to_string()]);
    }
    command.arg("--dir").arg(dir.path()).arg("--level-master").arg(&args.level_master);
    if !args.input.is_empty() {
        command.arg("--input").args(&args.input);
    }
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.spawn().context("a process for the round cannot be started")?.wait_with_output().await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", words.trim().trim_start_matches("error: "));
    Ok(serde_json::from_slice(&output.stdout)?)
}
