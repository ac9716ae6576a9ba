//! Entries of a file into a store, through its log.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use replikv::{Batch, Commit, Master, MasterConfig, ReplicaStore, StoreLimits};
use tokio::sync::{mpsc, oneshot, oneshot::error::TryRecvError};

use crate::args::{self, Format};
use crate::formats::{self, Columns, Operation, Reader};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, LIMITS, Store};
use crate::ui;

/// How much makes a batch. A store pays for the pages that a transaction touches: a large one in key order touches each
/// of them once.
const BATCH_ENTRIES: usize = 50_000;
const BATCH_BYTES: usize = 4 << 20;

/// What a batch holds at most, but for one entry.
#[derive(Clone, Copy)]
struct Most {
    entries: usize,
    bytes: usize,
}

impl Most {
    fn of(store: &impl ReplicaStore) -> Self {
        Self {
            entries: BATCH_ENTRIES.min(store.preferred_operations()),
            bytes: BATCH_BYTES.min(store.preferred_write_set()),
        }
    }
}

pub(crate) async fn run(args: args::Import, json: bool) -> anyhow::Result<ExitCode> {
    let columns = Columns { key: args.key_column, value: args.value_column };
    let limits = store::limits(args.max_key, args.max_value);
    let mut interrupt = Interrupt::new()?;
    let source = tokio::select! {
        biased;
        () = interrupt.wait() => return Ok(ExitCode::from(INTERRUPTED)),
        source = Source::open(&args.file, args.format, columns, limits) => source?,
    };
    let config = MasterConfig::default().commit(Commit::Buffered { sync_every: Duration::from_millis(500) });
    let master = store::open_master(store::open(&args.store)?, &args.store, config.limits(limits)).await?;
    let start = Instant::now();
    let bar = ui::bar("importing", source.entries);
    let result = import(&master, &args.store, source, &mut interrupt, |entries| bar.set_position(entries)).await;
    bar.finish_and_clear();
    // Whatever was written is on disk before anything is said.
    let closed = master.shutdown().await.with_context(|| args.store.clone());
    let imported = result?;
    closed?;
    let took = start.elapsed();
    if json {
        let entries = imported.entries;
        say!(
            "{}",
            serde_json::json!({ "entries": entries, "complete": imported.complete, "seconds": took.as_secs_f64() })
        )?;
    } else {
        let (entries, rate) = (ui::thousands(imported.entries), ui::rate_words(ui::rate(imported.entries, took)));
        let stopped = if imported.complete { "" } else { ", interrupted" };
        note!("imported {entries} entries in {} ({rate}){stopped}", ui::time_words(took));
    }
    Ok(if imported.complete { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// What to import: known to be good, as far as it can be known before.
#[derive(Debug)]
pub(crate) struct Source {
    input: Input,
    name: String,
    /// How many entries, where that is known.
    pub(crate) entries: Option<u64>,
    limits: StoreLimits,
}

#[derive(Debug)]
enum Input {
    File { file: File, format: Format, columns: Columns },
    Standard { format: Format, columns: Columns },
    Included { text: &'static [u8], separator: u8 },
}

pub(crate) struct Imported {
    pub(crate) entries: u64,
    pub(crate) complete: bool,
    /// The last write.
    pub(crate) token: Option<replikv::Token>,
}

impl Source {
    /// Opens a file and reads it through: a broken line is found before anything is written. Standard input cannot be
    /// read twice, and is checked as it comes.
    pub(crate) async fn open(
        path: &Path,
        format: Option<Format>,
        columns: Columns,
        limits: StoreLimits,
    ) -> anyhow::Result<Self> {
        let format = formats::of(path, format)?;
        if formats::is_input(path) {
            let input = Input::Standard { format, columns };
            return Ok(Self { input, name: "standard input".into(), entries: None, limits });
        }
        let name = path.display().to_string();
        let open = |path: &Path| File::open(path).with_context(|| name.clone());
        let mut file = open(path)?;
        if file.metadata().with_context(|| name.clone())?.is_dir() {
            bail!("{name}: is a directory");
        }
        if !file.metadata().with_context(|| name.clone())?.is_file() {
            // A named pipe: as standard input.
            return Ok(Self { input: Input::File { file, format, columns }, name, entries: None, limits });
        }
        let bar = ui::bar("checking", None);
        let check_columns = columns.clone();
        let (_waits, mut waited_for) = oneshot::channel::<()>();
        let checked = tokio::task::spawn_blocking(move || -> anyhow::Result<(File, u64)> {
            let mut reader =
                Reader::entries(format, BufReader::with_capacity(1 << 20, &file), &check_columns)?.limits(limits);
            let mut entries = 0;
            while reader.next()?.is_some() {
                entries += 1;
                if entries % 10_000 == 0 {
                    ensure!(waited_for.try_recv() == Err(TryRecvError::Empty), "nobody waits for it any more");
                    bar.set_position(entries);
                }
            }
            bar.finish_and_clear();
            drop(reader);
            std::io::Seek::rewind(&mut file)?;
            Ok((file, entries))
        });
        let (file, entries) = checked.await?.with_context(|| name.clone())?;
        Ok(Self { input: Input::File { file, format, columns }, name, entries: Some(entries), limits })
    }

    /// Text that the program contains.
    pub(crate) fn included(name: &str, text: &'static [u8], separator: u8) -> Self {
        let entries = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        Self {
            input: Input::Included { text, separator },
            name: name.into(),
            entries: Some(entries as u64),
            limits: LIMITS,
        }
    }

    // On a thread of its own: reading blocks.
    fn read(self, batches: &mpsc::Sender<(Batch, u64)>, most: Most) -> anyhow::Result<()> {
        let name = self.name;
        match self.input {
            Input::File { file, format, columns } => {
                Reader::entries(format, BufReader::with_capacity(1 << 20, file), &columns)
                    .and_then(|reader| send_all(reader.limits(self.limits), batches, most))
            }
            Input::Standard { format, columns } => Reader::entries(format, BufReader::new(std::io::stdin()), &columns)
                .and_then(|reader| send_all(reader.limits(self.limits), batches, most)),
            Input::Included { text, separator } => send_all(Reader::separated(text, separator), batches, most),
        }
        .context(name)
    }
}

fn send_all(
    mut reader: Reader<impl std::io::BufRead>,
    batches: &mpsc::Sender<(Batch, u64)>,
    most: Most,
) -> anyhow::Result<()> {
    let (mut waiting, mut bytes) = (Vec::new(), 0);
    loop {
        let read = reader.next();
        // What came before a broken line goes as well.
        let is_end = !matches!(read, Ok(Some(_)));
        if let Ok(Some(operation)) = &read {
            bytes += operation.byte_len();
        }
        let failed = read.map(|operation| waiting.extend(operation)).err();
        if waiting.len() >= most.entries || bytes >= most.bytes || (is_end && !waiting.is_empty()) {
            let entries = waiting.len() as u64;
            // Nobody takes it any more: the import was interrupted, or failed for another reason.
            if batches.blocking_send((in_key_order(&mut waiting), entries)).is_err() {
                return Ok(());
            }
            bytes = 0;
        }
        if is_end {
            return failed.map_or(Ok(()), Err);
        }
    }
}

// Entries only, so that their order does not matter but for one key's: the last one stays last.
fn in_key_order(entries: &mut Vec<Operation>) -> Batch {
    entries.sort_by(|a, b| a.key().cmp(b.key()));
    let mut batch = Batch::new();
    entries.drain(..).for_each(|entry| entry.add_to(&mut batch));
    batch
}

/// Writes everything to the master, in whole batches, until the end or an interruption.
pub(crate) async fn import(
    master: &Master<Store>,
    url: &str,
    source: Source,
    interrupt: &mut Interrupt,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Imported> {
    let (sender, mut batches) = mpsc::channel(8);
    let most = Most::of(master.store());
    let reading = tokio::task::spawn_blocking(move || source.read(&sender, most));
    let mut imported = Imported { entries: 0, complete: true, token: None };
    loop {
        let batch = tokio::select! {
            biased;
            () = interrupt.wait() => {
                imported.complete = false;
                return Ok(imported);
            }
            batch = batches.recv() => batch,
        };
        let Some((batch, entries)) = batch else { break };
        match master.write(batch).await {
            Ok(token) => imported.token = Some(token),
            Err(error) => {
                return Err(stopped(error.into(), imported.entries).context(url.to_owned()));
            }
        }
        imported.entries += entries;
        progress(imported.entries);
    }
    match reading.await? {
        Ok(()) => Ok(imported),
        // Only what cannot be checked before ends here.
        Err(error) => Err(stopped(error, imported.entries)),
    }
}

fn stopped(error: anyhow::Error, entries: u64) -> anyhow::Error {
    error.context(format!("stopped; the {} entries before are imported", ui::thousands(entries)))
}
