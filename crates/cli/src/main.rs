//! The program `replikv`.

#[macro_use]
mod ui;
mod aggregates;
mod args;
mod commands;
mod formats;
mod interrupt;
mod metrics;
mod store;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Args;

// What a slave takes in is allocated on threads of the runtime. The allocator of glibc asks the kernel for each page that such a
// thread's heap grows by, and takes a lock on all of the process's memory for it.
#[cfg(all(feature = "jemalloc", not(target_env = "msvc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the program ends with when it could not do what it was asked.
pub(crate) const FAILED: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return answer_of_clap(&error),
    };
    ui::log_to_stderr(args.verbose);
    // Two at least: a command that waits for a reader of its output must hold up nobody else.
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    // On a worker: what runs where `block_on` was called is another thread to be woken for each answer of a task.
    let running = runtime.spawn(commands::run(args));
    let ended = runtime.block_on(running);
    // A reader of standard input cannot be interrupted, and must not hold up the end.
    runtime.shutdown_background();
    let result = match ended {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Whoever reads our output has enough of it: `replikv scan ... | head`.
    if ui::is_reader_gone(error) {
        return ExitCode::SUCCESS;
    }
    note!("replikv: {}", ui::one_line(&in_words(error)));
    ExitCode::from(FAILED)
}

// An error that wraps another one of its own words says them once.
fn in_words(error: &anyhow::Error) -> String {
    let mut words: Vec<_> = error.chain().map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

// Help as it is; what is wrong in one line, like every other error.
fn answer_of_clap(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        drop(error.print());
        return ExitCode::from(FAILED);
    }
    let words = error.to_string();
    let words = words.strip_prefix("error: ").unwrap_or(&words);
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|mark| words.find(mark)).min();
    note!("replikv: {}; see --help", ui::one_line(&words[..end.unwrap_or(words.len())]));
    ExitCode::from(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_in_its_own_words_is_said_once() {
        let error = anyhow::anyhow!("the disk is full").context("the store failed").context("the store failed");
        assert_eq!(in_words(&error.context("lmdb:x")), "lmdb:x: the store failed: the disk is full");
    }
}
