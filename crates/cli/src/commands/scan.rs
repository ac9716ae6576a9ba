//! A range of keys.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use futures_util::TryStreamExt;
use replikv::KeyRange;

use crate::args::{self, Format};
use crate::formats::Writer;
use crate::{store, ui};

pub(crate) async fn run(args: args::Scan, json: bool) -> anyhow::Result<ExitCode> {
    let store = store::open_to_read(&args.store)?;
    let mut range = args.prefix.as_ref().map_or_else(KeyRange::all, KeyRange::prefix);
    let bounds = KeyRange::new(args.from.unwrap_or_default(), args.to.map(Into::into));
    range = range.intersect(&bounds);
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut output = BufWriter::new(ui::stdout());
    let mut pages = store::pages(&store, range, args.reverse);
    while left > 0
        && let Some(page) = pages.try_next().await?
    {
        for (key, value) in page.iter().take(left) {
            if json {
                Writer::new(Format::Ndjson, &mut output)?.write(key, value)?;
            } else {
                writeln!(output, "{}\t{}", ui::printable(key), ui::printable(value))?;
            }
        }
        left -= left.min(page.len());
    }
    output.flush()?;
    drop((pages, output));
    store.close().await?;
    Ok(ExitCode::SUCCESS)
}
