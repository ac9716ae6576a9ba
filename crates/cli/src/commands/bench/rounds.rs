//! One round on one store, in a process of its own: what earlier ones leave in memory would slow down later ones.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::figure::Sample;
use crate::args::{self, Scenario};

pub(super) async fn apart(
    scenario: Scenario,
    kind: &str,
    number: usize,
    args: &args::Bench,
) -> anyhow::Result<Vec<Sample>> {
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
    command.arg("--level-master").arg(&args.level_master);
    if let Some(dir) = &args.dir {
        command.arg("--dir").arg(dir);
    }
    if !args.input.is_empty() {
        command.arg("--input").args(&args.input);
    }
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().context("a process for the round cannot be started")?);
    let pipes = process.0.stdout.take().zip(process.0.stderr.take());
    let (mut stdout, mut stderr) = pipes.context("a process for the round has no pipes")?;
    let (mut said, mut words) = (Vec::new(), String::new());
    tokio::try_join!(stdout.read_to_end(&mut said), stderr.read_to_string(&mut words))?;
    let status = process.0.wait().await?;
    ensure!(status.success(), "{}", words.trim().trim_start_matches("error: "));
    Ok(serde_json::from_slice(&said)?)
}

/// In the process of a round: returns once nobody waits for it any more.
pub(super) async fn abandoned() {
    let (gone, told) = oneshot::channel::<()>();
    // Standard input blocks.
    std::thread::spawn(move || {
        drop(std::io::stdin().lock().read_to_end(&mut Vec::new()));
        drop(gone);
    });
    drop(told.await);
}

/// The process of a round. It ends with its input, and takes its stores and whom it has started along.
#[derive(Debug)]
struct Process(Child);

impl Process {
    const PATIENCE: u32 = 500;
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        for _ in 0..Self::PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.0.start_kill());
    }
}
