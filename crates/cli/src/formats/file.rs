//! The file that entries are exported to.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use replikv::blocking::sync_directory;
use tempfile::NamedTempFile;

#[derive(Debug)]
pub(crate) enum Destination {
    /// A pipe or a device, which is written to.
    Stream(File),
    Whole(Place),
}

/// Where a file goes. Nothing is made there yet.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    before: Option<fs::Metadata>,
}

/// A file that is seen once it is whole: it is made beside its place, and replaces what has the name, with the permissions of
/// that.
#[derive(Debug)]
pub(crate) struct WholeFile {
    made: NamedTempFile,
    path: PathBuf,
}

impl Destination {
    /// Opens it. A pipe that nobody reads is waited for.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (path, before) = match fs::metadata(path) {
            // What is in the file stays before.
            Ok(_) if is_descriptor(path) => {
                return File::options().append(true).open(path).map(Self::Stream);
            }
            Ok(found) if found.is_file() => (path.canonicalize()?, Some(found)),
            Ok(_) => return File::options().write(true).open(path).map(Self::Stream),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) if path.is_symlink() => return Err(io::Error::other("it is a link to nothing")),
            Err(_) => (path.to_path_buf(), None),
        };
        Ok(Self::Whole(Place { path, before }))
    }
}

impl Place {
    /// Makes the file, which goes again if it is not finished. A signal that is not listened for would leave it.
    pub(crate) fn make(self) -> io::Result<WholeFile> {
        let Self { path, before } = self;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".replikv-export-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let made = builder.tempfile_in(directory(&path))?;
        if let Some(before) = before {
            be_like(made.as_file(), &before)?;
        }
        Ok(WholeFile { made, path })
    }
}

impl WholeFile {
    /// Gives it its name, and brings both to stable storage.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.made.as_file().sync_all()?;
        self.made.persist(&self.path).map_err(|error| error.error)?;
        sync_directory(directory(&self.path))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.made.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.made.flush()
    }
}

// The names of what the process has open, whatever that is.
fn is_descriptor(path: &Path) -> bool {
    let names = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];
    names.iter().any(|name| path == Path::new(name))
        || path.starts_with("/dev/fd")
        || (path.starts_with("/proc") && path.parent().is_some_and(|parent| parent.ends_with("fd")))
}

// Only root can give it to its owner. Data is nothing to run as somebody else.
#[cfg(unix)]
fn be_like(file: &File, before: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    drop(fchown(file, Some(before.uid()), Some(before.gid())));
    file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o777))
}

#[cfg(not(unix))]
fn be_like(file: &File, before: &fs::Metadata) -> io::Result<()> {
    file.set_permissions(before.permissions())
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> io::Result<WholeFile> {
        match Destination::open(path)? {
            Destination::Whole(place) => place.make(),
            Destination::Stream(_) => panic!("{} is a file", path.display()),
        }
    }

    fn export(path: &Path, text: &str) -> io::Result<()> {
        let mut file = open(path)?;
        file.write_all(text.as_bytes())?;
        file.finish()
    }

    #[test]
    fn a_file_is_replaced_once_the_new_one_is_whole() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("all.ndjson");
        export(&path, "one")?;
        let mut dropped = open(&path)?;
        dropped.write_all(b"half")?;
        drop(dropped);
        assert_eq!(fs::read(&path)?, b"one");
        export(&path, "two")?;
        assert_eq!(fs::read(&path)?, b"two");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_the_one_before_it_but_runs_as_nobody_else() -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        let mode = |path: &Path| Ok::<_, io::Error>(fs::metadata(path)?.permissions().mode() & 0o7777);
        let (path, other) = (dir.path().join("all.ndjson"), dir.path().join("other"));
        export(&path, "one")?;
        fs::write(&other, "as any program writes it")?;
        assert_eq!(mode(&path)?, mode(&other)?);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640))?;
        export(&path, "two")?;
        assert_eq!(mode(&path)?, 0o640);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o4755))?;
        export(&path, "three")?;
        assert_eq!(mode(&path)?, 0o755);
        Ok(())
    }

    #[test]
    fn descriptors_are_told_from_files_of_other_file_systems() {
        for (path, is) in [
            ("/dev/stdout", true),
            ("/dev/fd/3", true),
            ("/proc/self/fd/1", true),
            ("/proc/17/fd/1", true),
            ("/dev/shm/all.ndjson", false),
            ("/dev/null", false),
            ("all.ndjson", false),
        ] {
            assert_eq!(is_descriptor(Path::new(path)), is, "{path}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_one_and_one_to_nothing_is_refused() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, link) = (dir.path().join("below/all.ndjson"), dir.path().join("latest"));
        fs::create_dir(dir.path().join("below"))?;
        std::os::unix::fs::symlink("below/all.ndjson", &link)?;
        assert!(Destination::open(&link).is_err());
        assert_eq!(fs::read_dir(dir.path().join("below"))?.count(), 0);
        fs::write(&path, "one")?;
        export(&link, "two")?;
        assert_eq!(fs::read(&path)?, b"two");
        assert!(link.is_symlink());
        Ok(())
    }
}
