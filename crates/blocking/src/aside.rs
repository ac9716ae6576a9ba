//! Something new, made beside its place.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{create_directory, sync_directory};

/// What is held by whoever makes something.
const LOCK: &str = "replikv.lock";
/// How often one that goes while it is taken is looked for again.
const ATTEMPTS: u32 = 100;
/// How many were taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// A directory in which one at a time makes something new, which gets its name once it is whole: power loss, and a kill,
/// leave nothing of that name that is half of one.
///
/// Whoever has it holds a lock on a file in it, which ends with the process: what a kill left goes when the next one takes
/// it. It goes when it is dropped.
#[derive(Debug)]
pub struct Aside {
    directory: PathBuf,
    place: PathBuf,
    lock: File,
}

impl Aside {
    /// Takes the directory `path`, and makes it, with those above it, if it is not there. The name must be one that nobody
    /// gives to something of his own: what has it goes. `None` if it is taken, in this or another process.
    ///
    /// # Errors
    /// Of the file system, also if it knows no locks.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let lock = match open(path) {
                // It may have gone just now.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
                    last = Some(error);
                    continue;
                }
                opened => opened?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it may have removed it between: then the lock is on a file that nobody else finds.
            if is_at(&lock, &path.join(LOCK))? {
                // What is still written by threads of one that was dropped goes nowhere else.
                let number = TAKEN.fetch_add(1, Ordering::Relaxed);
                let place = path.join(format!("{}.{number}", std::process::id()));
                let aside = Self { directory: path.to_path_buf(), place, lock };
                aside.clear()?;
                return Ok(Some(aside));
            }
        }
        last.map_or(Ok(None), Err)
    }

    /// Where to make it, a file or a directory. Nothing is there.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Gives what was made, and is synced, the name `path`, in the same file system, and brings the name to stable storage.
    ///
    /// # Errors
    /// Of the file system; if a file is there, or a directory that is not empty: that stays.
    pub fn give_name(&self, path: &Path) -> io::Result<()> {
        if self.place.is_dir() {
            fs::rename(&self.place, path)?;
        } else {
            name_file(&self.place, path)?;
        }
        sync_directory(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            }
            let removed = entry.file_type().and_then(|found| match found.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            });
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let lock = self.directory.join(LOCK);
        // Somebody may have removed it by hand, and another one may have made it anew.
        if !is_at(&self.lock, &lock).unwrap_or_default() {
            return;
        }
        drop(self.clear());
        // Elsewhere than on Unix it could not be told from another one that has got its name.
        if cfg!(unix) {
            drop(fs::remove_file(lock));
            // Stays if somebody else has begun to take it.
            drop(fs::remove_dir(&self.directory));
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
        fs::remove_file(path)?;
    }
    create_directory(path)?;
    File::options().read(true).write(true).create(true).truncate(false).open(path.join(LOCK))
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

// A rename would replace what is there. Whoever makes it in this way waits for the lock; of others nothing is seen that comes
// between these two.
fn name_file(made: &Path, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(made, path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_nothing_is_left_of_it() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("above/.store.new");
        let aside = Aside::take(&path)?.expect("it is free");
        fs::write(aside.place(), "made")?;
        assert!(Aside::take(&path)?.is_none());
        assert_eq!(fs::read(aside.place())?, b"made");
        let named = dir.path().join("above/store");
        aside.give_name(&named)?;
        drop(aside);
        assert_eq!(fs::read(&named)?, b"made");
        assert_eq!(fs::read_dir(dir.path().join("above"))?.count(), 1);
        drop(Aside::take(&path)?.expect("it is free again"));
        assert_eq!(fs::read_dir(dir.path().join("above"))?.count(), 1);
        Ok(())
    }

    #[test]
    fn what_is_there_stays() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, named) = (dir.path().join(".new"), dir.path().join("named"));
        let file = Aside::take(&path)?.expect("it is free");
        fs::write(file.place(), "made")?;
        fs::write(&named, "theirs")?;
        assert_eq!(file.give_name(&named).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&named)?, b"theirs");
        drop(file);
        let directory = Aside::take(&path)?.expect("it is free");
        fs::create_dir(directory.place())?;
        assert!(directory.give_name(&named).is_err());
        fs::remove_file(&named)?;
        fs::create_dir_all(named.join("theirs"))?;
        assert!(directory.give_name(&named).is_err());
        assert!(named.join("theirs").exists());
        Ok(())
    }

    #[test]
    fn what_a_kill_left_goes_whatever_it_is() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(".new");
        fs::write(&path, "half of a file")?;
        drop(Aside::take(&path)?.expect("it is free"));
        assert!(!path.exists());
        fs::create_dir_all(path.join("below/it"))?;
        fs::write(path.join("half"), "of a file")?;
        fs::write(path.join(LOCK), "")?;
        let aside = Aside::take(&path)?.expect("it is free");
        assert_eq!(fs::read_dir(&path)?.count(), 1, "the lock");
        drop(aside);
        assert!(!path.exists());
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn one_that_was_removed_by_hand_takes_nothing_of_the_next_one() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(".new");
        let removed = Aside::take(&path)?.expect("it is free");
        fs::remove_dir_all(&path)?;
        let next = Aside::take(&path)?.expect("it is free again");
        fs::write(next.place(), "made")?;
        assert!(removed.give_name(&dir.path().join("named")).is_err());
        drop(removed);
        assert_eq!(fs::read(next.place())?, b"made");
        assert!(Aside::take(&path)?.is_none());
        Ok(())
    }

    // One that is about to take it while another one removes it must not hold a lock on a file without a name.
    #[test]
    fn threads_that_take_it_in_turn_never_have_it_together() {
        let dir = tempfile::tempdir().unwrap();
        let (path, holders) = (dir.path().join(".new"), AtomicU64::new(0));
        let turns = std::thread::scope(|scope| {
            let take = || {
                let mut turns = 0;
                for _ in 0..300 {
                    let Some(aside) = Aside::take(&path).unwrap() else { continue };
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                    fs::write(aside.place(), "made").unwrap();
                    assert_eq!(fs::read(aside.place()).unwrap(), b"made");
                    holders.fetch_sub(1, Ordering::SeqCst);
                    turns += 1;
                }
                turns
            };
            let taking: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            taking.into_iter().map(|taking| taking.join().unwrap()).sum::<u32>()
        });
        assert!(turns > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
