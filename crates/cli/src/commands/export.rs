//! Entries of a store into a file.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use futures_util::TryStreamExt;
use replikv::{KeyRanges, subscription};

use crate::args::{self, Format};
use crate::formats::{self, Writer};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, Store};
use crate::ui;

pub(crate) async fn run(args: args::Export, json: bool) -> anyhow::Result<ExitCode> {
    let format = formats::of(&args.file, args.format)?;
    let store = store::open_to_read(&args.store)?;
    let ranges = subscription(&store).await?;
    if let Some(ranges) = &ranges {
        note!("replikv: the store is a slave's that subscribes to a part of the keys: {ranges}");
    }
    let ranges = ranges.unwrap_or_default();
    if formats::is_standard(&args.file) {
        write_all(&store, &args.store, &ranges, format, BufWriter::new(ui::stdout())).await?;
    } else {
        let mut interrupt = Interrupt::new()?;
        let name = || args.file.display().to_string();
        // A file that is there is whole: it gets its name when it is complete.
        let dir = args.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".replikv-export-").tempfile_in(dir).with_context(name)?;
        let entries = tokio::select! {
            biased;
            // The file goes with its guard.
            () = interrupt.wait() => return Ok(ExitCode::from(INTERRUPTED)),
            entries = write_all(&store, &args.store, &ranges, format, BufWriter::new(file.as_file_mut())) => {
                entries.with_context(name)?
            }
        };
        file.as_file().sync_all().with_context(name)?;
        #[cfg(unix)]
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .with_context(name)?;
        file.persist(&args.file).map_err(|error| error.error).with_context(name)?;
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
