//! Names of files that survive power loss: a file that is synced is there, and without its directory nobody finds it.

use std::fs::File;
use std::io;
use std::path::Path;

/// Creates the directory `path` and those above it, as far as they are not there. On return its name is on stable
/// storage, with the names above it that were created.
///
/// # Errors
/// As [`std::fs::create_dir_all`], and of the sync.
pub fn create_directory(path: &Path) -> io::Result<()> {
    // Also where it was there: whoever made it may have come no further.
    let (mut at, mut synced) = (path, Vec::new());
    loop {
        let parent = at.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        synced.push(parent);
        if parent.exists() || parent == at {
            break;
        }
        at = parent;
    }
    std::fs::create_dir_all(path)?;
    for parent in synced {
        match sync_directory(parent) {
            // Whoever may not list a directory cannot have made anything in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
    }
    Ok(())
}

/// Brings the names in the directory `path` to stable storage: files that were made, renamed or removed there.
///
/// Does nothing on systems that open no directories.
///
/// # Errors
/// Of the sync.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(path)?.sync_all() {
        // A file system that has no such sync.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_with_all_above_it_or_found() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a/b/c");
        for _ in 0..2 {
            create_directory(&path)?;
            assert!(path.is_dir());
        }
        std::fs::write(path.join("file"), "words")?;
        sync_directory(&path)?;
        assert_eq!(create_directory(&path.join("file")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(create_directory(&path.join("file/below")).is_err());
        Ok(())
    }
}
