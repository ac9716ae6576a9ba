//! A slave that was away goes through a log of text, over a connection that is compressed and over one that is not: bytes
//! that arrive, processor time on either side, and time.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, ensure};
use bytes::Bytes;
use replikv::{Batch, Compression};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::figure::Sample;
use super::peer::{Answer, Order, Peer, processor_time};
use super::{Place, serve};
use crate::args;

/// The system tells processor time in steps of this.
const STEP: f64 = 0.01;
/// No frame is longer.
const FAR: usize = replikv::proto::MAX_FRAME_LEN;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let paragraphs = paragraphs(&args.input)?;
    let plain = carried(place, args, &paragraphs, None).await?;
    let mut samples = figures(place.kind, "none", &plain, None);
    for &algorithm in Compression::ALL {
        let packed = carried(place, args, &paragraphs, Some(algorithm)).await?;
        samples.extend(figures(place.kind, algorithm.name(), &packed, Some(&plain)));
    }
    Ok(samples)
}

/// What it took to carry a log to a slave.
struct Carried {
    bytes: f64,
    master: f64,
    slave: f64,
    seconds: f64,
}

fn figures(kind: &str, way: &str, carried: &Carried, plain: Option<&Carried>) -> Vec<Sample> {
    let micros = |what: &str, seconds: f64, base: Option<f64>| {
        let sample = Sample::micros("compression", kind, format!("{way}, {what}"), seconds * 1e6);
        Sample { base: base.map(|seconds| seconds * 1e6), ..sample }
    };
    let bytes = Sample::bytes("compression", kind, format!("{way}, arrives at the slave"), carried.bytes);
    vec![
        Sample { base: plain.map(|plain| plain.bytes), ..bytes },
        micros("processor time of the master", carried.master, plain.map(|plain| plain.master)),
        micros("processor time of the slave", carried.slave, plain.map(|plain| plain.slave)),
        micros("until the slave has all", carried.seconds, plain.map(|plain| plain.seconds)),
    ]
}

async fn carried(
    place: &Place<'_>,
    args: &args::Bench,
    paragraphs: &[(String, Bytes)],
    algorithm: Option<Compression>,
) -> anyhow::Result<Carried> {
    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let mut slave = Peer::start(&place.url("slave"), place.buffered, algorithm)?;
    // It holds the beginning, and misses what follows.
    let until = master.put("first", "").await?.seq.as_u64();
    let there = slave.ask(&Order::Follow { from, until }).await?;
    slave.ask(&Order::Leave).await?;
    let mut until = until;
    // What was written already must be too far back for any algorithm to find it.
    let text: usize = paragraphs.iter().map(|(_, text)| text.len()).sum();
    let entries = if text < FAR { args.entries.min(paragraphs.len()) } else { args.entries };
    let numbers: Vec<usize> = (0..entries).collect();
    for numbers in numbers.chunks(args.batch) {
        let batch = numbers.iter().fold(Batch::new(), |batch, number| {
            let (place, text) = &paragraphs[number % paragraphs.len()];
            batch.put(format!("{}/{place}", number / paragraphs.len()), text.clone())
        });
        until = master.write(batch).await?.seq.as_u64();
    }
    let before = processor_time()?;
    let Answer { seconds, copies, comparisons, received, processor, .. } =
        slave.ask(&Order::Count { from, until }).await?;
    let spent = processor_time()? - before;
    ensure!((copies, comparisons) == (there.copies, there.comparisons), "the slave did not go through the log");
    slave.end().await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    place.remove("slave")?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes = received as f64;
    Ok(Carried { bytes, master: spent.max(STEP), slave: processor.max(STEP), seconds })
}

/// The paragraphs of some files, each named by its file and its number.
fn paragraphs(input: &[PathBuf]) -> anyhow::Result<Vec<(String, Bytes)>> {
    let mut files = input.to_vec();
    if files.is_empty() {
        find(Path::new("."), &mut files)?;
        files.sort();
    }
    let mut paragraphs = Vec::new();
    for file in &files {
        let text = std::fs::read(file).with_context(|| file.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        let found = text.split("\n\n").map(str::trim_end).filter(|paragraph| !paragraph.is_empty());
        paragraphs.extend(found.enumerate().map(|(number, paragraph)| {
            (format!("{}#{number}", file.display()), Bytes::copy_from_slice(paragraph.as_bytes()))
        }));
    }
    ensure!(!paragraphs.is_empty(), "there is no text here: name some with --input");
    Ok(paragraphs)
}

// Neither what is hidden nor what was built.
fn find(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let (entry, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        if entry.to_string_lossy().starts_with('.') || entry == "target" {
            continue;
        }
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            files.push(path);
        }
    }
    Ok(())
}

/// A stream that counts what is read from it.
#[derive(Debug)]
pub(super) struct Counted<T> {
    stream: T,
    bytes: Arc<AtomicU64>,
}

impl<T> Counted<T> {
    pub(super) fn new(stream: T) -> (Self, Arc<AtomicU64>) {
        let bytes = Arc::new(AtomicU64::new(0));
        (Self { stream, bytes: bytes.clone() }, bytes)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.bytes.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
