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

/// The format of a file: as asked for, or as its extension says. Standard input and output, pipes and devices are NDJSON.
pub(crate) fn of(path: &Path, asked: Option<Format>) -> anyhow::Result<Format> {
    if let Some(format) = asked {
        return Ok(format);
    }
    if is_input(path) || is_output(path) {
        return Ok(Format::Ndjson);
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => bail!("{}: is a directory", path.display()),
        Ok(found) if !found.is_file() => return Ok(Format::Ndjson),
        _ => {}
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ndjson" | "jsonl" | "json") => Ok(Format::Ndjson),
        Some("csv") => Ok(Format::Csv),
        Some("tsv" | "tab") => Ok(Format::Tsv),
        _ => bail!("{}: its name does not tell its format; use --format ndjson, csv or tsv", path.display()),
    }
}

/// True for `-`, and for the names that standard input has elsewhere.
pub(crate) fn is_input(path: &Path) -> bool {
    ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().any(|name| path == Path::new(name))
}

/// True for `-`, and for the names that standard output has elsewhere.
pub(crate) fn is_output(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}
