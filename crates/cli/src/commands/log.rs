//! The change log.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use replikv::{Op, Record, Seq, read_log};

use crate::args;
use crate::{store, ui};

const PAGE: usize = 1000;

pub(crate) async fn run(args: args::Log, json: bool) -> anyhow::Result<ExitCode> {
    let store = store::open_existing(&args.store)?;
    let mut after = Seq::new(args.from.saturating_sub(1));
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut output = BufWriter::new(std::io::stdout().lock());
    while left > 0 {
        let records = read_log(&store, after, left.min(PAGE)).await?;
        let Some(last) = records.last() else { break };
        after = last.header().seq;
        left -= records.len();
        for record in &records {
            print(record, json, &mut output)?;
        }
    }
    output.flush()?;
    drop(output);
    store.close().await?;
    Ok(ExitCode::SUCCESS)
}

fn print(record: &Record, json: bool, output: &mut impl Write) -> anyhow::Result<()> {
    let header = record.header();
    let ops = record.body().iter().map(|op| match op {
        Op::Put { key, value } => ("put", ui::printable(key), Some(ui::printable(value))),
        Op::Delete { key } => ("delete", ui::printable(key), None),
        Op::DeleteRange { start, end } => ("delete_range", ui::printable(start), end.map(ui::printable)),
    });
    if json {
        let ops = ops.map(|(op, key, value)| match (op, value) {
            ("put", value) => serde_json::json!({ "op": op, "key": key, "value": value }),
            ("delete_range", end) => serde_json::json!({ "op": op, "start": key, "end": end }),
            (op, _) => serde_json::json!({ "op": op, "key": key }),
        });
        let ops: Vec<_> = ops.collect();
        let note = ui::printable(&header.note);
        let line = serde_json::json!({
            "seq": header.seq, "epoch": header.epoch.number, "time": header.time, "digest": header.digest,
            "kind": format!("{:?}", header.kind).to_lowercase(), "note": note, "bytes": record.bytes().len(), "ops": ops,
        });
        writeln!(output, "{line}")?;
        return Ok(());
    }
    let kind = format!("{:?}", header.kind).to_lowercase();
    write!(
        output,
        "{} {kind} epoch {} time {} digest {}",
        header.seq, header.epoch.number, header.time, header.digest
    )?;
    if !header.note.is_empty() {
        write!(output, " note {:?}", ui::printable(&header.note))?;
    }
    writeln!(output)?;
    for (op, key, value) in ops {
        writeln!(output, "    {op} {key}{}", value.map(|value| format!("  {value}")).unwrap_or_default())?;
    }
    Ok(())
}
