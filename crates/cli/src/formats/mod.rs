//! Files of entries: reading them with line numbers, writing them in order.

mod file;
mod read;
mod write;

use std::path::Path;

use anyhow::bail;

pub(crate) use self::file::Destination;
pub(crate) use self::read::{Columns, Operation, Reader};
pub(crate) use self::write::{Writer, add_bytes};
use crate::args::Format;

/// The format of a file: as asked for, or as its extension says. Standard input and output are NDJSON.
pub(crate) fn of(path: &Path, asked: Option<Format>) -> anyhow::Result<Format> {
    if let Some(format) = asked {
        return Ok(format);
    }
    if is_standard(path) {
        return Ok(Format::Ndjson);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ndjson" | "jsonl" | "json") => Ok(Format::Ndjson),
        Some("csv") => Ok(Format::Csv),
        Some("tsv" | "tab") => Ok(Format::Tsv),
        _ => bail!("{}: its name does not tell its format; use --format ndjson, csv or tsv", path.display()),
    }
}

/// True for `-`.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}
