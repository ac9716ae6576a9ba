//! Reading.

use std::io::{BufRead, Read};

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use replikv::{Batch, KeyRange, Op, StoreError, StoreLimits};
use serde::Deserialize;

use crate::args::Format;
use crate::store::LIMITS;

/// The longest line: the largest value in the longest notation, in which each byte is six, and something beside it.
fn longest_line(limits: &StoreLimits) -> u64 {
    (limits.max_value as u64 * 6).saturating_add(1 << 20).max(256 << 20)
}

/// A buffer that grew for a longer line is given back.
const LONG_LINE: usize = 16 << 20;

/// One operation of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Put { key: Vec<u8>, value: Vec<u8> },
    Delete { key: Vec<u8> },
    DeleteRange { start: Vec<u8>, end: Option<Vec<u8>> },
}

impl Operation {
    pub(crate) fn byte_len(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
            Self::DeleteRange { start, end } => start.len() + end.as_ref().map_or(0, Vec::len),
        }
    }

    /// Its key; of a range, the first.
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::DeleteRange { start: key, .. } => key,
        }
    }

    pub(crate) fn add_to(&self, batch: &mut Batch) {
        match self {
            Self::Put { key, value } => batch.push(Op::Put { key, value }),
            Self::Delete { key } => batch.push(Op::Delete { key }),
            Self::DeleteRange { start, end } => {
                let range = KeyRange::new(start.clone(), end.clone().map(Into::into));
                batch.push(Op::delete_range(&range));
            }
        }
    }

    // What a store would refuse is refused here, where its line is known.
    fn check(&self, limits: &StoreLimits) -> anyhow::Result<()> {
        let len = match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } | Self::DeleteRange { .. } => 0,
        };
        if len > limits.max_value {
            return Err(StoreError::ValueTooLarge { len, max: limits.max_value }.into());
        }
        let mut batch = Batch::new();
        match self {
            // Its length was looked at: a large one is not copied for that.
            Self::Put { key, .. } => batch.push(Op::Put { key, value: &[] }),
            _ => self.add_to(&mut batch),
        }
        Ok(batch.check(limits)?)
    }
}

/// The columns of a CSV file.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { key: "key".into(), value: "value".into() }
    }
}

/// Reads operations. Every error names its line; nothing is skipped but empty lines of NDJSON.
pub(crate) enum Reader<R> {
    Ndjson { lines: Lines<R>, any_op: bool },
    Separated { lines: Lines<R>, separator: u8 },
    Csv(Box<CsvReader<R>>),
}

impl<R: BufRead> Reader<R> {
    /// Entries of a file.
    pub(crate) fn entries(format: Format, input: R, columns: &Columns) -> anyhow::Result<Self> {
        Ok(match format {
            Format::Ndjson => Self::Ndjson { lines: Lines::new(input), any_op: false },
            Format::Tsv => Self::Separated { lines: Lines::new(input), separator: b'\t' },
            Format::Csv => Self::Csv(Box::new(CsvReader::new(input, columns)?)),
        })
    }

    /// NDJSON with every kind of operation.
    pub(crate) fn operations(input: R) -> Self {
        Self::Ndjson { lines: Lines::new(input), any_op: true }
    }

    /// Entries may be as large as this says. Default: as large as every backend takes them.
    pub(crate) fn limits(mut self, limits: StoreLimits) -> Self {
        match &mut self {
            Self::Ndjson { lines, .. } | Self::Separated { lines, .. } => lines.limits = limits,
            Self::Csv(reader) => reader.limits = limits,
        }
        self
    }

    /// Lines whose key ends at the first `separator`.
    pub(crate) fn separated(input: R, separator: u8) -> Self {
        Self::Separated { lines: Lines::new(input), separator }
    }

    /// The next operation, or `None` at the end.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Operation>> {
        match self {
            Self::Ndjson { lines, any_op } => loop {
                let Some(line) = lines.next()? else { return Ok(None) };
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let parsed = parse_json(line, *any_op);
                return lines.at_line(parsed).map(Some);
            },
            Self::Separated { lines, separator } => {
                let Some(line) = lines.next()? else { return Ok(None) };
                let parsed = split(line, *separator);
                lines.at_line(parsed).map(Some)
            }
            Self::Csv(reader) => reader.next(),
        }
    }
}

fn split(line: &[u8], separator: u8) -> anyhow::Result<Operation> {
    let middle = line.iter().position(|byte| *byte == separator);
    let middle = middle.ok_or_else(|| anyhow!("there is no {:?} after the key", char::from(separator)))?;
    Ok(Operation::Put { key: line[..middle].into(), value: line[middle + 1..].into() })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: Option<String>,
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    value_b64: Option<String>,
    start: Option<String>,
    start_b64: Option<String>,
    end: Option<String>,
    end_b64: Option<String>,
    /// Of a quarantine: how the entry came to be there. It says nothing of what to do with it.
    #[serde(rename = "quarantine")]
    _quarantine: Option<serde::de::IgnoredAny>,
}

fn parse_json(line: &[u8], any_op: bool) -> anyhow::Result<Operation> {
    let text = std::str::from_utf8(line).map_err(|_| anyhow!("it is not UTF-8; write bytes as key_b64, value_b64"))?;
    let line: Line = serde_json::from_str(text).map_err(|error| anyhow!("it is no entry: {}", short(&error)))?;
    let op = line.op.as_deref().unwrap_or("put");
    if !any_op && op != "put" {
        bail!("an import holds entries, not {op:?}");
    }
    let need = |name: &str, value: Option<Vec<u8>>| value.ok_or_else(|| anyhow!("{op} needs {name:?}"));
    let key = bytes("key", line.key, line.key_b64)?;
    let value = bytes("value", line.value, line.value_b64)?;
    let start = bytes("start", line.start, line.start_b64)?;
    let end = bytes("end", line.end, line.end_b64)?;
    match (op, &value, &key, start.is_some() || end.is_some()) {
        ("put", _, _, false) => Ok(Operation::Put { key: need("key", key)?, value: need("value", value)? }),
        ("delete", None, _, false) => Ok(Operation::Delete { key: need("key", key)? }),
        ("delete_range", None, None, _) => {
            // Without an end, as a log shows it, it reaches to the last key.
            Ok(Operation::DeleteRange { start: need("start", start)?, end })
        }
        ("put" | "delete" | "delete_range", ..) => bail!("{op} has a member that it does not take"),
        _ => bail!("{op:?} is no operation: put, delete or delete_range"),
    }
}

// serde_json counts lines and columns of this line alone.
fn short(error: &serde_json::Error) -> String {
    let words = error.to_string();
    words.rsplit_once(" at line ").map_or(words.clone(), |(words, _)| words.into())
}

fn bytes(name: &str, text: Option<String>, encoded: Option<String>) -> anyhow::Result<Option<Vec<u8>>> {
    match (text, encoded) {
        (Some(_), Some(_)) => bail!("both {name} and {name}_b64"),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(encoded)) => {
            STANDARD.decode(encoded).map(Some).map_err(|error| anyhow!("{name}_b64 is no base64: {error}"))
        }
        (None, None) => Ok(None),
    }
}

/// Lines of bytes, counted.
pub(crate) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
    limits: StoreLimits,
}

impl<R: BufRead> Lines<R> {
    fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0, limits: LIMITS }
    }

    fn next(&mut self) -> anyhow::Result<Option<&[u8]>> {
        self.line.clear();
        if self.line.capacity() > LONG_LINE {
            self.line = Vec::new();
        }
        self.number += 1;
        let mut capped = (&mut self.input).take(longest_line(&self.limits));
        if capped.read_until(b'\n', &mut self.line).with_context(|| format!("line {}", self.number))? == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if capped.limit() == 0 {
            bail!("line {}: it is longer than any entry", self.number);
        }
        Ok(Some(&self.line))
    }

    fn at_line(&self, parsed: anyhow::Result<Operation>) -> anyhow::Result<Operation> {
        let checked = parsed.and_then(|operation| operation.check(&self.limits).map(|()| operation));
        checked.with_context(|| format!("line {}", self.number))
    }
}

pub(crate) struct CsvReader<R> {
    reader: csv::Reader<Quotes<R>>,
    row: csv::ByteRecord,
    key: usize,
    value: usize,
    limits: StoreLimits,
}

impl<R: Read> CsvReader<R> {
    fn new(input: R, columns: &Columns) -> anyhow::Result<Self> {
        let mut reader = csv::Reader::from_reader(Quotes::new(input));
        let header = reader.byte_headers().context("line 1")?.clone();
        reader.get_ref().check()?;
        let column = |name: &str| {
            let at = header.iter().position(|field| field == name.as_bytes());
            at.ok_or_else(|| anyhow!("line 1: there is no column {name:?}"))
        };
        let (key, value) = (column(&columns.key)?, column(&columns.value)?);
        Ok(Self { reader, row: csv::ByteRecord::new(), key, value, limits: LIMITS })
    }

    fn next(&mut self) -> anyhow::Result<Option<Operation>> {
        let line = self.reader.position().line();
        let read = self.reader.read_byte_record(&mut self.row);
        self.reader.get_ref().check()?;
        match read {
            Ok(false) => Ok(None),
            Ok(true) => {
                let line = self.row.position().map_or(line, csv::Position::line);
                let field = |index| self.row.get(index).unwrap_or_default().to_vec();
                let operation = Operation::Put { key: field(self.key), value: field(self.value) };
                operation.check(&self.limits).with_context(|| format!("line {line}"))?;
                Ok(Some(operation))
            }
            Err(error) => {
                let line = error.position().map_or(line, csv::Position::line);
                match error.into_kind() {
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        bail!("line {line}: it has {len} columns, the header {expected_len}")
                    }
                    csv::ErrorKind::Io(error) => Err(error).with_context(|| format!("line {line}")),
                    kind => bail!("line {line}: {kind:?}"),
                }
            }
        }
    }
}

/// Passes CSV on, and knows whether it ends within quotes: for the parser that is the end of the last field.
struct Quotes<R> {
    input: R,
    at: At,
    line: u64,
    /// The line of the last opening quote.
    opened: u64,
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Plain,
    Quoted,
    /// After a quote that closes, or is the first of two that stand for one.
    Closing,
}

impl<R> Quotes<R> {
    fn new(input: R) -> Self {
        Self { input, at: At::Start, line: 1, opened: 0, ended: false }
    }

    fn pass(&mut self, byte: u8) {
        self.at = match (self.at, byte) {
            (At::Start, b'"') => {
                self.opened = self.line;
                At::Quoted
            }
            // What some programs put before UTF-8.
            (At::Start, 0xEF | 0xBB | 0xBF) if self.line == 1 => At::Start,
            (At::Quoted, b'"') => At::Closing,
            (At::Closing, b'"') | (At::Quoted, _) => At::Quoted,
            (_, b',' | b'\r' | b'\n') => At::Start,
            _ => At::Plain,
        };
        self.line += u64::from(byte == b'\n');
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.ended && self.at == At::Quoted {
            bail!("line {}: a quote is opened and never closed", self.opened);
        }
        Ok(())
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.ended = len == 0;
        buffer[..len].iter().for_each(|byte| self.pass(*byte));
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, text: &[u8]) -> anyhow::Result<Vec<Operation>> {
        let mut reader = Reader::entries(format, text, &Columns::default())?;
        std::iter::from_fn(|| reader.next().transpose()).collect()
    }

    fn error(format: Format, text: &[u8]) -> String {
        format!("{:#}", read(format, text).unwrap_err())
    }

    fn put(key: &[u8], value: &[u8]) -> Operation {
        Operation::Put { key: key.into(), value: value.into() }
    }

    #[test]
    fn entries_are_read_in_every_format() {
        let json = b"{\"key\":\"k\",\"value\":\"v\"}\n\n{\"key_b64\":\"/w==\",\"value\":\"\"}\n";
        assert_eq!(read(Format::Ndjson, json).unwrap(), [put(b"k", b"v"), put(b"\xFF", b"")]);
        assert_eq!(read(Format::Tsv, b"k\tv\tw\n\xFF\t").unwrap(), [put(b"k", b"v\tw"), put(b"\xFF", b"")]);
        let kept = b"{\"key\":\"k\",\"value\":\"v\",\"quarantine\":{\"seq\":7,\"ancestor\":null}}\n";
        assert_eq!(read(Format::Ndjson, kept).unwrap(), [put(b"k", b"v")]);
        let csv = b"id,value,key\n1,\"a,\nb\",k\n2,,l\n";
        assert_eq!(read(Format::Csv, csv).unwrap(), [put(b"k", b"a,\nb"), put(b"l", b"")]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let good = "{\"key\":\"k\",\"value\":\"v\"}\n";
        for (bad, words) in [
            ("{\"key\":\"k\"}", "line 2: put needs \"value\""),
            ("{\"key\":\"k\",\"value\":1}", "line 2: it is no entry"),
            ("{\"key\":\"k\",\"value\":\"v\"", "line 2: it is no entry"),
            ("{\"key\":\"\",\"value\":\"v\"}", "line 2: the key is empty"),
            ("{\"key\":\"k\",\"key_b64\":\"aw==\",\"value\":\"v\"}", "line 2: both key and key_b64"),
            ("{\"key_b64\":\"!\",\"value\":\"v\"}", "line 2: key_b64 is no base64"),
            ("{\"key\":\"k\",\"value\":\"v\",\"ttl\":1}", "line 2: it is no entry: unknown field `ttl`"),
            ("{\"op\":\"delete\",\"key\":\"k\"}", "line 2: an import holds entries"),
        ] {
            let found = error(Format::Ndjson, format!("{good}{bad}\n").as_bytes());
            assert!(found.starts_with(words), "{bad}: {found}");
        }
        assert!(error(Format::Tsv, b"k\tv\nno tab\n").starts_with("line 2: there is no '\\t'"));
        assert!(error(Format::Csv, b"key,value\nk,v\nk\n").starts_with("line 3: it has 1 columns"));
        assert!(error(Format::Csv, b"key,amount\nk,v\n").starts_with("line 1: there is no column \"value\""));
        for (cut, line) in [
            ("key,value\na,\"b\nc,d\ne,f\n", 2),
            ("key,value\n\"a\nb\",\"c\"\"", 3),
            ("key,value\na,\"\"\nb,\"", 3),
            ("key,\"value\na,b\n", 1),
            ("key,value\n\"a,b\n", 2),
        ] {
            let words = format!("line {line}: a quote is opened and never closed");
            assert_eq!(error(Format::Csv, cut.as_bytes()), words, "{cut:?}");
        }
        let whole = "\u{FEFF}\"key\",value\r\na\"b,\"c\"\"\r\nd\"\r\ne,\"f\"";
        assert_eq!(read(Format::Csv, whole.as_bytes()).unwrap(), [put(b"a\"b", b"c\"\r\nd"), put(b"e", b"f")]);
        let long = format!("{}\tv\n", "k".repeat(512));
        assert!(error(Format::Tsv, long.as_bytes()).starts_with("line 1: the key has 512 bytes"));
    }

    #[test]
    fn a_pipe_takes_every_operation() {
        let text = "{\"op\":\"delete\",\"key\":\"k\"}\n{\"op\":\"delete_range\",\"start\":\"a\",\"end\":\"b\"}\n";
        let mut reader = Reader::operations(text.as_bytes());
        assert_eq!(reader.next().unwrap(), Some(Operation::Delete { key: b"k".to_vec() }));
        let range = Operation::DeleteRange { start: b"a".to_vec(), end: Some(b"b".to_vec()) };
        assert_eq!(reader.next().unwrap(), Some(range));
        assert_eq!(reader.next().unwrap(), None);
        let mut open = Reader::operations("{\"op\":\"delete_range\",\"start\":\"a\"}\n".as_bytes());
        assert_eq!(open.next().unwrap(), Some(Operation::DeleteRange { start: b"a".to_vec(), end: None }));
        let mut nowhere = Reader::operations("{\"op\":\"delete_range\",\"end\":\"b\"}\n".as_bytes());
        assert!(format!("{:#}", nowhere.next().unwrap_err()).contains("delete_range needs \"start\""));
        let mut wrong = Reader::operations("{\"op\":\"drop\",\"key\":\"k\"}".as_bytes());
        assert!(format!("{:#}", wrong.next().unwrap_err()).contains("is no operation"));
    }
}
