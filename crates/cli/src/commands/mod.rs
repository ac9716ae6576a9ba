//! The commands, one module each.

mod bench;
mod demo;
mod export;
mod follow;
mod import;
mod log;
mod point;
mod scan;
mod serve;
mod status;
mod verify;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Args, Command};

/// The answer is no.
const NO: u8 = 1;

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    match args.command {
        Command::Demo(args) => demo::run(args, json).await,
        Command::Serve(args) => serve::run(args, json).await,
        Command::Follow(args) => follow::run(args, json).await,
        Command::Import(args) => import::run(args, json).await,
        Command::Export(args) => export::run(args).await,
        Command::Get(args) => point::get(args, json).await,
        Command::Put(args) => point::put(args, json).await,
        Command::Del(args) => point::del(args, json).await,
        Command::Scan(args) => scan::run(args, json).await,
        Command::Status(args) => status::run(args, json).await,
        Command::Verify(args) => verify::run(args, json).await,
        Command::Log(args) => log::run(args, json).await,
        Command::Bench(args) => bench::run(args, json).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "replikv", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
