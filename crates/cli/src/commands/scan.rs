//! A range of keys.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use replikv::KeyRange;

use super::place::Place;
use crate::args::{self, Format};
use crate::formats::Writer;
use crate::ui;

pub(crate) async fn run(args: args::Scan, json: bool) -> anyhow::Result<ExitCode> {
    let place = Place::open(&args.place, &args.bound).await?;
    let mut range = args.prefix.as_ref().map_or_else(KeyRange::all, KeyRange::prefix);
    let bounds = KeyRange::new(args.start.unwrap_or_default(), args.end.map(Into::into));
    range = range.intersect(&bounds);
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut output = BufWriter::new(ui::stdout());
    let mut rest = Some(range);
    while left > 0
        && let Some(range) = rest
    {
        let page = place.scan(range, args.reverse).await?;
        for (key, value) in page.iter().take(left) {
            if json {
                Writer::new(Format::Ndjson, &mut output)?.write(key, value)?;
            } else {
                writeln!(output, "{}\t{}", ui::printable(key), ui::printable(value))?;
            }
        }
        left -= left.min(page.len());
        rest = page.rest().cloned();
    }
    output.flush()?;
    drop(output);
    place.close().await?;
    Ok(ExitCode::SUCCESS)
}
