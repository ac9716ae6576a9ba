//! Cuts the power under replikv's stores, over and over, and looks at what is left.
//!
//! A workload runs under a recorder that sees every file operation. Then, at many points of the recording, the files
//! are rebuilt as a power loss could have left them, and a process opens the store and checks all that replikv
//! promises. The recorder sees calls of the C library: what is written through a map is not seen (LMDB without
//! `MDB_WRITEMAP`, sled, redb and fjall write by calls; a recording in which a data file is mapped for writing is refused).

mod check;
mod disk;
mod dump;
mod explore;
mod history;
mod pool;
mod record;
mod recording;
mod report;
mod setup;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::disk::Mode;
use crate::explore::{Cut, Plan};
use crate::setup::{Backend, Durable, Role, Setup, Values};

const USAGE: &str = "\
Cuts the power under replikv's stores, over and over, and looks at what is left.

replikv-crash [--states N] [--seed S] [--backend lmdb|sled|redb|fjall] [--role master|slave]
              [--durability synced|buffered|never] [--ignore-sync NAME]
              [--values small|large] [--mode kept|dropped|subset|reordered|torn-512|torn-4096|names|any-names]
              [--scratch DIR] [--failures DIR] [--jobs N]
    N distinct states (default 2000) of each backend and role. `--durability never` is LMDB without syncs, and
    `--ignore-sync db` is sled without replikv's own sync of its file, `--ignore-sync store` redb without its syncs,
    `--ignore-sync jnl` fjall without those of its journal: all must fail.
    All modes; sled without `any-names` and with small values, since it bears neither (docs/reliability.md).
replikv-crash again FOLDER --point P --mode M --draw D [--ignore-sync NAME]
    Looks at one state again, as a failure says.

Ends with 0 if every state is well, with 1 if one is not, with 2 if it could not be tried.";

fn main() -> ExitCode {
    match act() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("replikv-crash: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn act() -> Result<bool> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        // Child processes.
        Some("run") => {
            let folder = PathBuf::from(args.get(1).context("a folder")?);
            let setup = Setup::from_line(&std::fs::read_to_string(folder.join("setup"))?)?;
            let (files, notes, master) = (folder.join("files"), folder.join("notes"), folder.join("master"));
            runtime(2)?.block_on(workload::run(&setup, &files, &notes, &master))?;
            // Nothing is closed that the workload did not close.
            std::process::exit(0);
        }
        Some("look") => {
            let (recorded, folder) = (args.get(1).context("a folder")?, args.get(2).context("a folder")?);
            runtime(1)?.block_on(pool::answer(Path::new(recorded), Path::new(folder)))?;
            std::process::exit(0);
        }
        Some("again") => {
            args.remove(0);
            if args.is_empty() {
                bail!("which folder?\n\n{USAGE}");
            }
            let folder = PathBuf::from(args.remove(0));
            let (plan, cut) = parse(args)?;
            let [Some(point), Some(mode), Some(draw)] = cut else { bail!("--point, --mode and --draw are needed") };
            let cut = Cut { point: point.parse()?, mode: Mode::from_name(&mode)?, draw: draw.parse()? };
            let finding = explore::again(&plan, &folder, cut)?;
            match &finding {
                Some(finding) => println!("{}: {}", finding.fault.name(), finding.words),
                None => println!("it is well"),
            }
            println!("the state is in {}", plan.scratch.join("kept").display());
            Ok(finding.is_none())
        }
        Some("--help" | "-h") => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => {
            let (plan, _) = parse(args)?;
            let tally = explore::explore(&plan);
            // Also after an error.
            drop(std::fs::remove_dir_all(&plan.scratch));
            let tally = tally?;
            tally.print();
            Ok(tally.faults() == 0)
        }
    }
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?)
}

fn parse(args: Vec<String>) -> Result<(Plan, [Option<String>; 3])> {
    let mut plan = Plan {
        states: 2000,
        seed: 20_240_917,
        backends: vec![Backend::Lmdb, Backend::Sled, Backend::Redb, Backend::Fjall],
        roles: vec![Role::Master, Role::Slave],
        durable: vec![Durable::Synced, Durable::Buffered],
        values: None,
        modes: None,
        deaf: None,
        scratch: default_scratch(),
        failures: PathBuf::from("target/failures"),
        lookers: std::thread::available_parallelism().map_or(2, usize::from),
    };
    let mut cut = [None, None, None];
    let mut args = args.into_iter();
    while let Some(name) = args.next() {
        let value = args.next().with_context(|| format!("{name} needs a value, or is unknown\n\n{USAGE}"))?;
        match name.as_str() {
            "--states" => plan.states = value.parse().context("--states")?,
            "--seed" => plan.seed = value.parse().context("--seed")?,
            "--backend" => plan.backends = vec![Backend::from_name(&value)?],
            "--role" => plan.roles = vec![Role::from_name(&value)?],
            "--durability" => plan.durable = vec![Durable::from_name(&value)?],
            "--ignore-sync" => plan.deaf = Some(value),
            "--scratch" => plan.scratch = PathBuf::from(value),
            "--failures" => plan.failures = PathBuf::from(value),
            "--jobs" => plan.lookers = value.parse().context("--jobs")?,
            "--point" => cut[0] = Some(value),
            "--values" => plan.values = Some(Values::from_name(&value)?),
            "--mode" => {
                plan.modes = Some(vec![Mode::from_name(&value)?]);
                cut[1] = Some(value);
            }
            "--draw" => cut[2] = Some(value),
            other => bail!("{other} is unknown\n\n{USAGE}"),
        }
    }
    std::fs::create_dir_all(&plan.scratch)?;
    // The recorder knows files by their real paths.
    plan.scratch = plan.scratch.canonicalize()?;
    Ok((plan, cut))
}

// In memory where that is possible: nothing here has to survive.
fn default_scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    base.join(format!("replikv-crash-{}", std::process::id()))
}
