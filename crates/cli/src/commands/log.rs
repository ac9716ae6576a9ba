//! The change log.

use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use replikv::proto::layout::Floor;
use replikv::{Keyspace, LogPart, Op, Record, Role, Run, RunPart, Seq, read_log_parts, role};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::args;
use crate::formats::add_bytes;
use crate::interrupt::Interrupt;
use crate::store::{self, Store};
use crate::ui;

const PAGE: usize = 1000;
/// How often a log is looked at for new records.
const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: args::Log, json: bool) -> anyhow::Result<ExitCode> {
    let store = store::open_to_read(&args.store)?;
    let role = role(&store).await?;
    if store.get(Keyspace::Meta, Floor::KEY).await?.is_none() {
        match role {
            Some(Role::Slave) => bail!("{}: it is the store of a slave that keeps no log: ask its master", args.store),
            Some(Role::Centre) => {
                bail!("{}: it is a centre's store, which has no log: ask the links' masters", args.store)
            }
            None => bail!("{}: it was never a master's or a slave's store, and has no log", args.store),
            // It lacks what it must have.
            _ => {}
        }
    }
    if args.follow {
        let mut interrupt = Interrupt::new()?;
        tokio::select! {
            biased;
            () = interrupt.wait() => {}
            printed = print_all(&store, &args, json) => printed?,
        }
    } else {
        print_all(&store, &args, json).await?;
    }
    store.close().await?;
    Ok(ExitCode::SUCCESS)
}

async fn print_all(store: &Store, args: &args::Log, json: bool) -> anyhow::Result<()> {
    let mut after = Seq::new(args.from.saturating_sub(1));
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut output = BufWriter::new(ui::stdout());
    let begins = super::status::log_parts(store).await.with_context(|| args.store.clone())?.begins().position.seq;
    if begins > after {
        print_trimmed(begins, json, &mut output)?;
        // Below the tombstone floor something is missing: nobody is shown it as if it were whole.
        after = begins;
    }
    while left > 0 {
        let parts = read_log_parts(store, after, left.min(PAGE)).await.with_context(|| args.store.clone())?;
        for part in &parts {
            match part {
                LogPart::Full(record) => print(record, json, &mut output)?,
                LogPart::Compacted { run, touched } => {
                    print_run(after, run, touched, json, &mut output)?;
                }
                _ => {}
            }
            after = part.end().seq;
        }
        left -= parts.len();
        match parts.last() {
            Some(last) => after = last.end().seq,
            None if args.follow => {
                output.flush()?;
                sleep(POLL).await;
            }
            None => break,
        }
    }
    Ok(output.flush()?)
}

fn print_trimmed(until: Seq, json: bool, output: &mut impl Write) -> std::io::Result<()> {
    if json {
        writeln!(output, "{}", json!({ "part": "trimmed", "until": until }))
    } else {
        writeln!(output, "1-{until} trimmed")
    }
}

// In the order in which the keys were touched.
fn print_run(
    after: Seq,
    run: &Run,
    touched: &[(Seq, RunPart)],
    json: bool,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let mut touched: Vec<_> = touched.iter().collect();
    touched.sort_by_key(|(seq, _)| *seq);
    let first = after.as_u64() + 1;
    if json {
        let ops: Vec<Value> = touched.iter().map(|(seq, part)| part_as_json(*seq, part)).collect();
        let line = json!({ "part": "compacted", "from": first, "seq": run.end.seq, "epoch": run.end.epoch.number,
            "time": run.time, "digest": run.end.digest.to_string(), "bytes": run.bytes, "ops": ops });
        writeln!(output, "{line}")?;
        return Ok(());
    }
    writeln!(
        output,
        "{first}-{} compacted epoch {} time {} digest {}",
        run.end.seq, run.end.epoch.number, run.time, run.end.digest
    )?;
    for (seq, part) in touched {
        match part {
            RunPart::Touched(key) => writeln!(output, "    touched {}  by {seq}", ui::printable(key))?,
            RunPart::Deleted(range) => {
                let end = range.end().map_or_else(|| "the end".into(), |end| ui::printable(end));
                writeln!(output, "    delete_range {}  {end}  by {seq}", ui::printable(range.start()))?;
            }
        }
    }
    Ok(())
}

fn part_as_json(seq: Seq, part: &RunPart) -> Value {
    let mut object = match part {
        RunPart::Touched(key) => {
            let mut object = Map::new();
            add_bytes(&mut object, "key", key);
            object.insert("op".into(), "touched".into());
            object
        }
        RunPart::Deleted(range) => match op_as_json(Op::delete_range(range)) {
            Value::Object(object) => object,
            _ => Map::new(),
        },
    };
    object.insert("by".into(), json!(seq));
    Value::Object(object)
}

fn print(record: &Record, json: bool, output: &mut impl Write) -> anyhow::Result<()> {
    let header = record.header();
    let kind = format!("{:?}", header.kind).to_lowercase();
    if json {
        let ops: Vec<Value> = record.body().iter().map(op_as_json).collect();
        let mut line = Map::new();
        line.insert("seq".into(), json!(header.seq));
        line.insert("epoch".into(), json!(header.epoch.number));
        line.insert("time".into(), json!(header.time));
        line.insert("digest".into(), json!(header.digest.to_string()));
        line.insert("kind".into(), json!(kind));
        add_bytes(&mut line, "note", &header.note);
        line.insert("bytes".into(), json!(record.bytes().len()));
        line.insert("ops".into(), json!(ops));
        writeln!(output, "{}", Value::Object(line))?;
        return Ok(());
    }
    write!(
        output,
        "{} {kind} epoch {} time {} digest {}",
        header.seq, header.epoch.number, header.time, header.digest
    )?;
    if !header.note.is_empty() {
        write!(output, " note {:?}", ui::printable(&header.note))?;
    }
    writeln!(output)?;
    for op in record.body() {
        match op {
            Op::Put { key, value } => writeln!(output, "    put {}  {}", ui::printable(key), ui::printable(value))?,
            Op::Delete { key } => writeln!(output, "    delete {}", ui::printable(key))?,
            Op::DeleteRange { start, end } => {
                let end = end.map_or_else(|| "the end".into(), ui::printable);
                writeln!(output, "    delete_range {}  {end}", ui::printable(start))?;
            }
        }
    }
    Ok(())
}

// As `serve --stdin` takes it.
fn op_as_json(op: Op<'_>) -> Value {
    let mut object = Map::new();
    let name = match op {
        Op::Put { key, value } => {
            add_bytes(&mut object, "key", key);
            add_bytes(&mut object, "value", value);
            "put"
        }
        Op::Delete { key } => {
            add_bytes(&mut object, "key", key);
            "delete"
        }
        Op::DeleteRange { start, end } => {
            add_bytes(&mut object, "start", start);
            if let Some(end) = end {
                add_bytes(&mut object, "end", end);
            }
            "delete_range"
        }
    };
    object.insert("op".into(), name.into());
    Value::Object(object)
}
