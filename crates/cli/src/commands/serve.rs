//! A master.

use std::process::ExitCode;

use anyhow::Context;
use replikv::{Batch, Compaction, Master, MasterConfig, StoreLimits};
use tokio::sync::mpsc;

use super::import::{Source, import};
use crate::args;
use crate::formats::{Columns, Operation, Reader};
use crate::interrupt::Interrupt;
use crate::store::{self, Store};
use crate::ui;

/// How many waiting operations of a pipe go into one batch.
const PIPE_BATCH: usize = 1000;

pub(crate) async fn run(args: args::Serve, json: bool) -> anyhow::Result<ExitCode> {
    let listener = super::listen(args.listen, args.insecure).await?;
    let limits = store::limits(args.max_key, args.max_value);
    let source = match &args.import {
        Some(path) => Some(Source::open(path, args.format, Columns::default(), limits).await?),
        None => None,
    };
    let address = listener.local_addr()?;
    // Before anything is said: whoever reads it may end this at once.
    let mut interrupt = Interrupt::new()?;
    let mut end = Interrupt::new()?;
    super::expose_metrics(args.metrics, args.insecure, json).await?;
    let compaction = args.compact_behind.map(|bytes| Compaction { window_bytes: bytes, ..Compaction::default() });
    let config = MasterConfig::default().limits(limits).compaction(compaction).max_lag(args.max_lag_bytes);
    let (store, config) = match args.new_epoch {
        // Of what was there before, or of nothing: a new store begins with an epoch anyway.
        true => (store::open_existing(&args.store)?, config.new_epoch()),
        false => (store::open(&args.store)?, config),
    };
    let master = store::open_master(store, &args.store, config).await?;
    let serving = tokio::spawn(master.clone().serve_tcp(listener));
    let feeding = async {
        if json {
            say!("{}", serde_json::json!({ "serving": args.store, "address": address.to_string() }))?;
        } else {
            say!("serving {} on {address}", args.store)?;
        }
        if let Some(source) = source {
            let bar = ui::bar("importing", source.entries);
            let imported =
                import(&master, &args.store, source, &mut interrupt, |entries| bar.set_position(entries)).await?;
            bar.finish_and_clear();
            note!("imported {} entries", ui::thousands(imported.entries));
        }
        if args.stdin {
            let operations = apply_pipe(&master, &args.store, limits).await?;
            tracing::info!(target: "replikv::program", operations, "standard input has ended");
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    let result = tokio::select! {
        biased;
        () = end.wait() => Ok(()),
        result = feeding => result,
    };
    let closed = master.shutdown().await.with_context(|| args.store.clone());
    serving.await??;
    result?;
    closed?;
    Ok(ExitCode::SUCCESS)
}

// Operations are applied in order, and those that wait together are one batch. What came before a broken line stays.
async fn apply_pipe(master: &Master<Store>, url: &str, limits: StoreLimits) -> anyhow::Result<u64> {
    let (sender, mut operations) = mpsc::channel::<anyhow::Result<Operation>>(4 * PIPE_BATCH);
    std::thread::spawn(move || {
        let mut reader = Reader::operations(std::io::BufReader::new(std::io::stdin())).limits(limits);
        while let Some(read) = reader.next().transpose() {
            let broken = read.is_err();
            if sender.blocking_send(read).is_err() || broken {
                return;
            }
        }
    });
    let mut applied = 0;
    let mut waiting = Vec::new();
    while operations.recv_many(&mut waiting, PIPE_BATCH).await > 0 {
        let mut batch = Batch::new();
        let mut broken = None;
        for operation in waiting.drain(..) {
            match operation {
                Ok(operation) => operation.add_to(&mut batch),
                Err(error) => broken = Some(error),
            }
            if batch.byte_len() > 1 << 20 {
                applied += batch.len() as u64;
                master.write(std::mem::take(&mut batch)).await.with_context(|| url.to_owned())?;
            }
        }
        if !batch.is_empty() {
            applied += batch.len() as u64;
            master.write(batch).await.with_context(|| url.to_owned())?;
        }
        if let Some(error) = broken {
            let words = format!("standard input; the {} operations before are applied", ui::thousands(applied));
            return Err(error.context(words));
        }
    }
    Ok(applied)
}
