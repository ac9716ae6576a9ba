//! A copy of a store, taken while it is used.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use replikv::blocking::{Aside, sync_directory};
use replikv::{BackedUp, BackupError, LmdbOptions, LmdbStore, ReplicaStore, backup, mark_backup};
use tokio::time::interval;

use crate::args;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::{store, ui};

pub(crate) async fn run(args: args::Backup, json: bool) -> anyhow::Result<ExitCode> {
    let Some((taken, destination)) = take_whole(&args, "backup").await? else { return Ok(ExitCode::from(INTERRUPTED)) };
    let seq = taken.position.map(|position| position.seq.as_u64());
    if json {
        say!("{}", serde_json::json!({ "backup": destination, "role": taken.role, "seq": seq }))?;
    } else {
        let seq = seq.map_or_else(|| "before any record".into(), |seq| format!("at record {}", ui::thousands(seq)));
        note!("backed up {}'s store {seq} to {destination}", taken.role);
    }
    Ok(ExitCode::SUCCESS)
}

/// As [`run`], and says nothing unless it fails: of a restore.
pub(super) async fn take_quietly(args: args::Backup) -> anyhow::Result<ExitCode> {
    Ok(take_whole(&args, "restore").await?.map_or_else(|| ExitCode::from(INTERRUPTED), |_| ExitCode::SUCCESS))
}

// None if it was interrupted.
async fn take_whole(args: &args::Backup, what: &str) -> anyhow::Result<Option<(BackedUp, String)>> {
    let mut interrupt = Interrupt::new()?;
    let Some((kind, source)) = args.store.split_once(':').filter(|(_, path)| !path.is_empty()) else {
        bail!("{}: only what is on a disk can be backed up", args.store);
    };
    let destination = Destination::new(kind, &args.destination)?;
    destination.check()?;
    // Made beside, and given its name when it is whole: what a crash leaves has another name, and the next backup to the
    // same place removes it.
    let aside = destination.aside(what)?;
    // Another one may have come to its end meanwhile.
    destination.check()?;
    let taken = tokio::select! {
        biased;
        () = interrupt.wait() => return Ok(None),
        taken = take((kind, source), &args.store, &destination, aside.place()) => taken?,
    };
    destination.take_name(&aside)?;
    Ok(Some((taken, destination.url())))
}

async fn take(
    (kind, source): (&str, &str),
    url: &str,
    destination: &Destination,
    aside: &Path,
) -> anyhow::Result<BackedUp> {
    let taken = match (kind, destination.kind.as_str()) {
        // At one instant, whoever writes meanwhile, and whatever else is in the environment.
        ("lmdb", "lmdb") => {
            ensure!(Path::new(source).join("data.mdb").exists(), "{url}: there is no such store");
            let from = LmdbStore::open_read_only(source, LmdbOptions::default()).with_context(|| url.to_string())?;
            let copied = copy(from, aside).await.with_context(|| url.to_string())?;
            let taken = mark_backup(&copied).await;
            let noted = note_what_it_is(&copied, url).await;
            copied.close().await?;
            noted.and(Ok(taken))?
        }
        _ => {
            let from = store::open_to_read(url)?;
            let to = store::open(&format!("{}:{}", destination.kind, aside.display()))?;
            let bar = ui::bar("backing up", None);
            let taken = backup(&from, &to, |entries| bar.set_position(entries)).await;
            bar.finish_and_clear();
            let noted = if taken.is_ok() { note_what_it_is(&to, url).await } else { Ok(()) };
            to.close().await?;
            from.close().await?;
            noted.and(Ok(taken))?
        }
    };
    taken.map_err(|error| match error {
        BackupError::Changed if kind == "lmdb" => {
            anyhow!("{url}: it is a slave's that follows: stop it, or back it up to LMDB as well")
        }
        error => anyhow::Error::new(error).context(url.to_string()),
    })
}

// Any of it may be what is wanted.
async fn note_what_it_is(copy: &impl ReplicaStore, url: &str) -> anyhow::Result<()> {
    if let Some(mark) = super::status::superseded(copy).await? {
        note!("replikv: {url}: {}: restore refuses its backup, and follow --as-slave takes it", mark.words());
    }
    if let Some(words) = store::unfinished(copy).await? {
        note!("replikv: {url}: {words}: its backup holds a part, and goes on copying");
    }
    Ok(())
}

// How far it is can be seen in the file that grows.
async fn copy(from: LmdbStore, aside: &Path) -> anyhow::Result<LmdbStore> {
    let (file, path) = (aside.join("data.mdb"), aside.to_path_buf());
    let bar = ui::bytes_bar("backing up");
    let mut copying = tokio::task::spawn_blocking(move || {
        from.copy_to(&path)?;
        LmdbStore::open(&path, LmdbOptions::default())
    });
    let mut look = interval(Duration::from_millis(200));
    let copied = loop {
        tokio::select! {
            biased;
            copied = &mut copying => break copied?,
            _ = look.tick() => bar.set_position(std::fs::metadata(&file).map_or(0, |file| file.len())),
        }
    };
    bar.finish_and_clear();
    Ok(copied?)
}

/// Stores on a disk.
pub(super) const KINDS: [&str; 4] = ["lmdb", "sled", "redb", "fjall"];

/// Where the backup goes.
#[derive(Debug)]
struct Destination {
    kind: String,
    path: PathBuf,
}

impl Destination {
    fn new(kind: &str, words: &str) -> anyhow::Result<Self> {
        let (kind, path) = match words.split_once(':') {
            Some((kind, path)) if KINDS.contains(&kind) => (kind, path),
            Some(("memory", _)) => bail!("{words}: a backup in memory is gone with this command"),
            _ => (kind, words),
        };
        ensure!(KINDS.contains(&kind), "{kind:?} names no store: use lmdb:PATH, sled:PATH, redb:PATH or fjall:PATH");
        ensure!(!path.is_empty(), "{words:?} names no path: use {kind}:PATH");
        Ok(Self { kind: kind.into(), path: path.into() })
    }

    fn url(&self) -> String {
        format!("{}:{}", self.kind, self.path.display())
    }

    fn check(&self) -> anyhow::Result<()> {
        let name = || self.path.display().to_string();
        // A file, not a directory.
        if self.kind == "redb" {
            ensure!(!self.path.exists(), "{}: it is there already: choose another place", name());
            return Ok(());
        }
        match std::fs::read_dir(&self.path) {
            Ok(mut entries) => ensure!(entries.next().is_none(), "{}: it is not empty: choose another place", name()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(name),
        }
        Ok(())
    }

    fn aside(&self, what: &str) -> anyhow::Result<Aside> {
        let path = self.path.display();
        let name = self.path.file_name().with_context(|| format!("{path}: it has no name"))?;
        let aside = self.path.with_file_name(format!(".{}.replikv-partial", name.to_string_lossy()));
        let taken = Aside::take(&aside).with_context(|| aside.display().to_string())?;
        taken.with_context(|| format!("another {what} to {path} is under way"))
    }

    // An empty directory gives way; one that is not does not.
    fn take_name(&self, aside: &Aside) -> anyhow::Result<()> {
        self.check()?;
        let named = sync_directory(aside.place()).and_then(|()| aside.give_name(&self.path));
        named.with_context(|| self.path.display().to_string())
    }
}
