//! Records a workload: a child process under the recorder, and what it left behind.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use crate::disk::{Content, Disk, Image, Mode};
use crate::recording::{self, Inode, Note, Step};
use crate::setup::{Role, Setup, inodes_from_text, inodes_to_text};

/// The library that watches.
pub(crate) const RECORDER: &str = env!("REPLIKV_RECORDER");

/// A workload as it was recorded, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) setup: Setup,
    pub(crate) folder: PathBuf,
    /// What the disk held at first.
    pub(crate) base: Image,
    pub(crate) inodes: BTreeMap<String, Inode>,
    pub(crate) steps: Vec<Step>,
    /// What was durable at first.
    pub(crate) durable: Note,
}

/// Nothing is durable.
pub(crate) const NOTHING: Note = Note { durable: 0, digest: None, consistent: false };

/// What a life begins with.
#[derive(Debug, Clone)]
pub(crate) struct Heritage {
    pub(crate) image: Image,
    pub(crate) durable: Note,
    /// The master that a slave has followed so far.
    pub(crate) master: PathBuf,
}

const LONG: Duration = Duration::from_secs(60);

impl Recorded {
    /// Runs the workload of `setup` in `folder`, which is new, on what `heritage` left.
    pub(crate) fn record(setup: Setup, folder: &Path, heritage: Option<&Heritage>) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (files, base, master) = (folder.join("files"), folder.join("base"), folder.join("master"));
        let none = Image::new();
        let image = heritage.map_or(&none, |heritage| &heritage.image);
        let durable = heritage.map_or(NOTHING, |heritage| heritage.durable);
        write_image(image, &files)?;
        write_image(image, &base)?;
        if let Some(heritage) = heritage.filter(|heritage| heritage.master.exists()) {
            std::fs::copy(&heritage.master, &master)?;
        }
        let inodes = inodes(&files, image)?;
        std::fs::write(folder.join("setup"), setup.to_line())?;
        std::fs::write(folder.join("inodes"), inodes_to_text(&inodes))?;
        std::fs::write(folder.join("durable"), durable.to_bytes())?;
        run(&setup, folder)?;
        let recorded = Self::read(folder)?;
        recorded.check_complete(&files)?;
        std::fs::remove_dir_all(&files)?;
        Ok(recorded)
    }

    /// Reads what [`record`](Self::record) left in a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).with_context(|| format!("no {name}"));
        let setup = Setup::from_line(&text("setup")?)?;
        let steps = recording::read(&folder.join("log"))?;
        let durable = Note::from_bytes(&std::fs::read(folder.join("durable"))?)?;
        let base = read_image(&folder.join("base"))?;
        Ok(Self { setup, folder: folder.into(), base, inodes: inodes_from_text(&text("inodes")?)?, steps, durable })
    }

    pub(crate) fn disk(&self, deaf: Option<String>) -> Result<Disk> {
        Disk::new(&self.base, &self.inodes, deaf)
    }

    /// The master that a slave follows in this recording.
    pub(crate) fn master(&self) -> PathBuf {
        self.folder.join("master")
    }

    // All that was recorded must come to what is really there: a recorder that misses a write finds no fault with it.
    fn check_complete(&self, files: &Path) -> Result<()> {
        let count = |wanted: fn(&Step) -> bool| self.steps.iter().filter(|step| wanted(step)).count();
        ensure!(count(|step| matches!(step, Step::Write { .. })) > 100, "the recorder has seen next to nothing");
        ensure!(count(|step| matches!(step, Step::Note(_))) > 1, "nothing was acknowledged");
        ensure!(self.setup.role == Role::Master || self.master().exists(), "the slave's master was not kept");
        let mut disk = self.disk(None)?;
        self.steps.iter().for_each(|step| disk.take(step));
        let seen = disk.lose_power(None, Mode::Kept, &mut Rng::with_seed(0));
        let real = read_image(files)?;
        ensure!(seen.keys().eq(real.keys()), "other files are there than the recorder has seen");
        for (path, content) in &real {
            // Written through a map; it is made anew at each start.
            let same = path.ends_with("lock.mdb") || seen.get(path) == Some(content);
            ensure!(same, "{path} holds something else than the recorder has seen");
        }
        Ok(())
    }
}

fn run(setup: &Setup, folder: &Path) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(folder)
        .env("LD_PRELOAD", RECORDER)
        .env("REPLIKV_RECORD_ROOT", folder.join("files"))
        .env("REPLIKV_RECORD_LOG", folder.join("log"))
        .env("REPLIKV_RECORD_NOTES", folder.join("notes"))
        .stdin(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("the workload {:?} has failed: {status}", setup.to_line()),
            None if started.elapsed() > LONG => {
                child.kill()?;
                child.wait()?;
                bail!("the workload {:?} does not come to an end", setup.to_line());
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Makes the files of `image` below `folder`, which is emptied first.
pub(crate) fn write_image(image: &Image, folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    for (path, content) in image {
        match content {
            None => std::fs::create_dir(folder.join(path))?,
            Some(content) => {
                let mut file = std::fs::File::create(folder.join(path))?;
                file.write_all(content.bytes())?;
                file.set_len(content.len() as u64)?;
            }
        }
    }
    Ok(())
}

fn read_image(folder: &Path) -> Result<Image> {
    let mut image = Image::new();
    let mut folders = vec![String::new()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&at))? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name that is no text")?;
            let path = if at.is_empty() { name } else { format!("{at}/{name}") };
            if entry.file_type()?.is_dir() {
                image.insert(path.clone(), None);
                folders.push(path);
            } else {
                image.insert(path, Some(Content::new(std::fs::read(entry.path())?)));
            }
        }
    }
    Ok(image)
}

fn inodes(folder: &Path, image: &Image) -> Result<BTreeMap<String, Inode>> {
    let files = image.iter().filter(|(_, content)| content.is_some());
    files.map(|(path, _)| Ok((path.clone(), std::fs::metadata(folder.join(path))?.ino()))).collect()
}
