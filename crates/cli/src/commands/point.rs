//! One key.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use replikv::{Batch, MasterConfig, Token};

use super::{NO, place};
use crate::args::{self, Format};
use crate::formats::Writer;
use crate::{store, ui};

pub(crate) async fn get(args: args::Get, json: bool) -> anyhow::Result<ExitCode> {
    let value = place::Place::open(&args.place, &args.bound).await?.get(args.key.as_bytes()).await?;
    let Some(value) = value else {
        note!("replikv: no such key");
        return Ok(ExitCode::from(NO));
    };
    let mut output = ui::stdout();
    if json {
        Writer::new(Format::Ndjson, &mut output)?.write(args.key.as_bytes(), &value)?;
    } else {
        output.write_all(&value)?;
        // Bytes as they are for a program, a line for a person.
        if std::io::stdout().is_terminal() {
            output.write_all(b"\n")?;
        }
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn put(args: args::Put, json: bool) -> anyhow::Result<ExitCode> {
    let batch = Batch::new().put(&args.key, &args.value);
    batch.check(&store::LIMITS)?;
    write(store::open(&args.store)?, &args.store, batch, json).await
}

pub(crate) async fn del(args: args::Del, json: bool) -> anyhow::Result<ExitCode> {
    let batch = Batch::new().delete(&args.key);
    batch.check(&store::LIMITS)?;
    write(store::open_existing(&args.store)?, &args.store, batch, json).await
}

async fn write(store: store::Store, url: &str, batch: Batch, json: bool) -> anyhow::Result<ExitCode> {
    let master = store::open_master(store, url, MasterConfig::default()).await?;
    let written = master.write(batch).await;
    let closed = master.shutdown().await;
    let Token { source, epoch, seq, .. } = written.with_context(|| url.to_string())?;
    closed.with_context(|| url.to_string())?;
    if json {
        say!("{}", serde_json::json!({ "source": source.to_string(), "epoch": epoch.number, "seq": seq }))?;
    }
    Ok(ExitCode::SUCCESS)
}
