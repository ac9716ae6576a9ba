//! Writing.

use std::io::Write;

use anyhow::bail;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::args::Format;

/// Writes entries.
pub(crate) enum Writer<W: Write> {
    Ndjson(W),
    Tsv(W),
    Csv(Box<csv::Writer<W>>),
}

/// An entry as JSON: text where it is text, base64 where it is not.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
}

impl<'a> Entry<'a> {
    fn new(key: &'a [u8], value: &'a [u8]) -> Self {
        let (key, key_b64) = text_or_base64(key);
        let (value, value_b64) = text_or_base64(value);
        Self { key, key_b64, value, value_b64 }
    }
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// Adds bytes to an object as a file of entries holds them: `name` if they are text, `name_b64` if not.
pub(crate) fn add_bytes(object: &mut serde_json::Map<String, serde_json::Value>, name: &str, bytes: &[u8]) {
    let (text, encoded) = text_or_base64(bytes);
    match (text, encoded) {
        (Some(text), _) => object.insert(name.into(), text.into()),
        (None, encoded) => object.insert(format!("{name}_b64"), encoded.into()),
    };
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(format: Format, output: W) -> anyhow::Result<Self> {
        Ok(match format {
            Format::Ndjson => Self::Ndjson(output),
            Format::Tsv => Self::Tsv(output),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(output);
                writer.write_record(["key", "value"])?;
                Self::Csv(Box::new(writer))
            }
        })
    }

    /// Writes one entry, or refuses what the format cannot hold.
    pub(crate) fn write(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(output) => {
                serde_json::to_writer(&mut *output, &Entry::new(key, value)).map_err(std::io::Error::from)?;
                output.write_all(b"\n")?;
            }
            Self::Tsv(output) => {
                if key.iter().any(|byte| matches!(byte, b'\t' | b'\n')) || value.contains(&b'\n') {
                    bail!("the entry {} does not fit into TSV; use NDJSON or CSV", key.escape_ascii());
                }
                output.write_all(key)?;
                output.write_all(b"\t")?;
                output.write_all(value)?;
                output.write_all(b"\n")?;
            }
            Self::Csv(writer) => writer.write_record([key, value]).map_err(unwrap_io)?,
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(output) | Self::Tsv(output) => output.flush()?,
            Self::Csv(writer) => writer.flush()?,
        }
        Ok(())
    }
}

// So that a closed pipe is seen as one.
fn unwrap_io(error: csv::Error) -> anyhow::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        kind => anyhow::anyhow!("{kind:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{Columns, Operation, Reader};

    #[test]
    fn what_is_written_is_read_again() {
        let entries: [(&[u8], &[u8]); 4] = [(b"a", b""), (b"b,\"", b"x\r\ty"), (b"\xFF\x00", b"\xFE"), (b"z", b"\\n")];
        for format in [Format::Ndjson, Format::Csv, Format::Tsv] {
            let mut bytes = Vec::new();
            let mut writer = Writer::new(format, &mut bytes).unwrap();
            entries.iter().for_each(|(key, value)| writer.write(key, value).unwrap());
            writer.flush().unwrap();
            drop(writer);
            let mut reader = Reader::entries(format, &bytes[..], &Columns::default()).unwrap();
            for (key, value) in entries {
                let put = Operation::Put { key: key.into(), value: value.into() };
                assert_eq!(reader.next().unwrap(), Some(put), "{format:?}");
            }
            assert_eq!(reader.next().unwrap(), None);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut writer = Writer::new(Format::Tsv, Vec::new()).unwrap();
        assert!(writer.write(b"a\tb", b"").is_err());
        assert!(writer.write(b"a", b"b\nc").is_err());
    }
}
