//! The program `replikv`.

mod args;
mod commands;
mod formats;
mod interrupt;
mod store;
mod ui;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;

/// What the program ends with when it could not do what it was asked.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    ui::log_to_stderr(args.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(commands::run(args));
    // A reader of standard input cannot be interrupted, and must not hold up the end.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Whoever reads our output has enough of it: `replikv scan ... | head`.
    if error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let words = format!("{error:#}").replace('\n', " ");
    eprintln!("replikv: {words}");
    ExitCode::from(FAILED)
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}
