//! Entries of a store into a file.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use futures_util::TryStreamExt;
use replikv::{KeyRanges, subscription};

use crate::args::{self, Format};
use crate::formats::{self, Destination, Writer};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, Store};
use crate::ui;

pub(crate) async fn run(args: args::Export, json: bool) -> anyhow::Result<ExitCode> {
    let format = formats::of(&args.file, args.format)?;
    let store = store::open_to_read(&args.store)?;
    if let Some(words) = store::unfinished(&store).await.with_context(|| args.store.clone())? {
        ensure!(args.partial, "{}: {words}: export it when that is done, or with --partial what is there", args.store);
        note!("replikv: {words}");
    }
    ensure!(!store::holds(&args.store, &args.file), "{}: it is a part of the store", args.file.display());
    let ranges = subscription(&store).await?;
    if let Some(ranges) = &ranges {
        note!("replikv: the store is a slave's that subscribes to a part of the keys: {ranges}");
    }
    let ranges = ranges.unwrap_or_default();
    if formats::is_output(&args.file) {
        write_all(&store, &args.store, &ranges, format, BufWriter::new(ui::stdout())).await?;
    } else {
        let name = || args.file.display().to_string();
        let entries = match Destination::open(&args.file).with_context(name)? {
            // It may take nothing any more: then a signal ends the program as it is.
            Destination::Stream(file) => {
                write_all(&store, &args.store, &ranges, format, BufWriter::new(file)).await.with_context(name)?
            }
            Destination::Whole(place) => {
                let mut interrupt = Interrupt::new()?;
                let mut file = place.make().with_context(name)?;
                let entries = tokio::select! {
                    biased;
                    () = interrupt.wait() => return Ok(ExitCode::from(INTERRUPTED)),
                    entries = write_all(&store, &args.store, &ranges, format, BufWriter::new(&mut file)) => {
                        entries.with_context(name)?
                    }
                };
                file.finish().with_context(name)?;
                entries
            }
        };
        if json {
            say!("{}", serde_json::json!({ "entries": entries }))?;
        } else {
            note!("exported {} entries", ui::thousands(entries));
        }
    }
    store.close().await?;
    Ok(ExitCode::SUCCESS)
}

async fn write_all(
    store: &Store,
    url: &str,
    ranges: &KeyRanges,
    format: Format,
    output: impl Write,
) -> anyhow::Result<u64> {
    let mut writer = Writer::new(format, output)?;
    let bar = ui::bar("exporting", None);
    let mut entries = 0;
    for range in ranges {
        let mut pages = store::pages(store, range.clone(), false);
        while let Some(page) = pages.try_next().await.with_context(|| url.to_owned())? {
            for (key, value) in page.iter() {
                writer.write(key, value)?;
            }
            entries += page.len() as u64;
            bar.set_position(entries);
        }
    }
    writer.flush()?;
    bar.finish_and_clear();
    Ok(entries)
}
