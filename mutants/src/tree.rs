//! A copy of the workspace whose sources hold all mutants.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::list::Mutant;
use crate::weave::{Region, weave};

/// Where [`ACTIVE`] is added: what every other crate depends on.
const LIB: &str = "crates/core/src/lib.rs";

/// Says which mutant is tried, and notes which of them a run came by.
const ACTIVE: &str = r#"
#[doc(hidden)]
#[allow(missing_docs)]
pub mod mutant {
    use std::io::Write;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    static TRIED: LazyLock<usize> =
        LazyLock::new(|| std::env::var("REPLIKV_MUTANT").ok().and_then(|number| number.parse().ok()).unwrap_or(usize::MAX));
    static NOTED: LazyLock<Option<std::fs::File>> = LazyLock::new(|| {
        let path = std::env::var_os("REPLIKV_MUTANTS_SEEN")?;
        Some(std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file for what is seen"))
    });
    static SEEN: [AtomicBool; 1 << 14] = [const { AtomicBool::new(false) }; 1 << 14];

    #[inline(never)]
    pub fn active(number: usize) -> bool {
        if !SEEN[number].load(Ordering::Relaxed) && !SEEN[number].swap(true, Ordering::Relaxed) && let Some(mut file) = NOTED.as_ref() {
            file.write_all(format!("{number}\n").as_bytes()).expect("what is seen");
        }
        *TRIED == number
    }
}
"#;

/// Where the copy is, and what is where in it.
pub(crate) struct Tree {
    workspace: PathBuf,
    root: PathBuf,
    regions: HashMap<String, Vec<Region>>,
}

impl Tree {
    /// A copy of what is under version control below `workspace`, at `root`; what is there and has not changed is left alone.
    /// Files that hold `mutants` are not in it before they are [woven](Self::weave).
    pub(crate) fn copy(workspace: &Path, root: PathBuf, mutants: &[Mutant]) -> Result<Self> {
        let woven: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.file.as_str()).chain([LIB]).collect();
        ensure!(mutants.len() < 1 << 14, "so many mutants have no place in the copy: see ACTIVE");
        let listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let listed = Command::new("git").current_dir(workspace).args(listed).output().context("git")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        let listed = String::from_utf8(listed.stdout)?;
        // One that is deleted, and not committed yet, is listed.
        let names: BTreeSet<&str> =
            listed.split_terminator('\0').filter(|name| workspace.join(name).is_file()).collect();
        for name in names.difference(&woven) {
            write(&root.join(name), &fs::read(workspace.join(name))?)?;
        }
        remove_all_but(&names, &root, &root)?;
        Ok(Self { workspace: workspace.to_owned(), root, regions: HashMap::new() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes all `mutants` but those of `without`, and returns those that cannot be a branch.
    pub(crate) fn weave(&mut self, mutants: &[Mutant], without: &BTreeSet<usize>) -> Result<Vec<usize>> {
        let mut files: HashMap<&str, Vec<(usize, &Mutant)>> = HashMap::from([(LIB, Vec::new())]);
        for (number, mutant) in mutants.iter().enumerate() {
            let of_file = files.entry(&mutant.file).or_default();
            if !without.contains(&number) {
                of_file.push((number, mutant));
            }
        }
        let mut apart = Vec::new();
        for (name, mutants) in files {
            let source = fs::read_to_string(self.workspace.join(name)).with_context(|| name.to_owned())?;
            let active =
                if name.starts_with("crates/core/") { "crate::mutant::active" } else { "replikv_core::mutant::active" };
            let mut woven = weave(&source, &mutants, active).with_context(|| name.to_owned())?;
            if name == LIB {
                woven.text.push_str(ACTIVE);
            }
            write(&self.root.join(name), woven.text.as_bytes())?;
            self.regions.insert(name.to_owned(), woven.regions);
            apart.extend(woven.apart);
        }
        Ok(apart)
    }

    /// The mutants that brought what is at `at` in the file of that name.
    pub(crate) fn brought(&self, file: &str, at: usize) -> &[usize] {
        self.regions(file).iter().find(|region| region.at.contains(&at)).map_or(&[], |region| &region.numbers)
    }

    /// The mutants of the narrowest branch around `at`.
    pub(crate) fn around(&self, file: &str, at: usize) -> &[usize] {
        let regions = self.regions(file);
        let mut narrowest: Option<(usize, &[usize])> = None;
        for (which, begins) in regions.iter().enumerate() {
            let Some(ends) = regions[which + 1..].iter().find(|other| other.numbers == begins.numbers) else {
                continue;
            };
            let len = ends.at.end - begins.at.start;
            if (begins.at.start..ends.at.end).contains(&at) && narrowest.is_none_or(|(before, _)| len < before) {
                narrowest = Some((len, &begins.numbers));
            }
        }
        narrowest.map_or(&[], |(_, numbers)| numbers)
    }

    fn regions(&self, file: &str) -> &[Region] {
        self.regions.get(file).map_or(&[], Vec::as_slice)
    }
}

/// Removes what was in the workspace once.
fn remove_all_but(names: &BTreeSet<&str>, root: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_all_but(names, root, &path)?;
        } else if !path.strip_prefix(root)?.to_str().is_some_and(|name| names.contains(name)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Leaves a file alone that holds `bytes`: nothing is built anew for it.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}
