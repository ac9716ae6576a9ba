//! Builds the tests, and finds out which mutants the compiler refuses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::list::Mutant;
use crate::tree::Tree;

/// A program of tests.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// The package's folder: where tests expect to be run.
    pub(crate) folder: PathBuf,
}

/// What is built, and what could not be.
pub(crate) struct Built {
    pub(crate) programs: Vec<Program>,
    /// Mutants with which nothing compiles, at least not as branches.
    pub(crate) refused: BTreeSet<usize>,
}

#[derive(Deserialize)]
struct Line {
    reason: String,
    success: Option<bool>,
    message: Option<Diagnostic>,
    profile: Option<Profile>,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Diagnostic {
    level: String,
    rendered: Option<String>,
    spans: Vec<Location>,
}

#[derive(Deserialize)]
struct Location {
    file_name: String,
    byte_start: usize,
    is_primary: bool,
}

/// The tests of `packages` with all mutants that compile. `refused` is where to begin.
pub(crate) fn build(
    tree: &mut Tree,
    mutants: &[Mutant],
    packages: &[&str],
    mut refused: BTreeSet<usize>,
) -> Result<Built> {
    loop {
        refused.extend(tree.weave(mutants, &refused)?);
        let lines = cargo(tree.root(), packages)?;
        let mut programs = Vec::new();
        let mut found = BTreeSet::new();
        let (mut unexplained, mut is_built) = (None, false);
        for line in lines {
            is_built |= line.reason == "build-finished" && line.success == Some(true);
            let is_test = line.profile.is_some_and(|profile| profile.test);
            if let (Some(path), Some(manifest), true) = (line.executable, line.manifest_path, is_test) {
                programs.push(Program { path, folder: manifest.parent().context("a folder")?.to_owned() });
            }
            let Some(error) = line.message.filter(|message| message.level == "error" && !message.spans.is_empty())
            else {
                continue;
            };
            let blamed = blamed(tree, &error);
            if blamed.is_empty() {
                unexplained.get_or_insert(error.rendered.unwrap_or_default());
            }
            found.extend(blamed);
        }
        eprintln!("{} of {} mutants do not compile as branches", refused.len() + found.len(), mutants.len());
        if found.is_empty() {
            if let Some(error) = unexplained {
                bail!("what does not compile is no mutant's doing:\n{error}");
            }
            ensure!(is_built, "cargo build has failed");
            return Ok(Built { programs, refused });
        }
        refused.extend(found);
    }
}

/// Whose doing an error is: of what it points at, of what else it names, of what is around it.
fn blamed(tree: &Tree, error: &Diagnostic) -> Vec<usize> {
    let mut spans: Vec<&Location> = error.spans.iter().collect();
    spans.sort_by_key(|span| !span.is_primary);
    for find in [Tree::brought, Tree::around] {
        for span in &spans {
            let numbers = find(tree, &span.file_name, span.byte_start);
            if !numbers.is_empty() {
                return numbers.to_vec();
            }
        }
    }
    Vec::new()
}

fn cargo(root: &Path, packages: &[&str]) -> Result<Vec<Line>> {
    let mut command = Command::new("cargo");
    command.current_dir(root).args(["build", "--lib", "--tests", "--all-features", "--locked", "--keep-going"]);
    command
        .args(["--profile", "mutants", "--message-format", "json", "--target-dir"])
        .arg(root.with_file_name("built"));
    for package in packages {
        command.args(["-p", package]);
    }
    // The lints of changed code are nobody's.
    command.env("RUSTFLAGS", "--cap-lints allow").env("CARGO_INCREMENTAL", "1").stderr(Stdio::inherit());
    let output = command.output().context("cargo build")?;
    let mut lines = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let line: Line = serde_json::from_slice(line).context("what cargo says")?;
        lines.push(line);
    }
    ensure!(lines.iter().any(|line| line.reason == "build-finished"), "cargo build ended with {}", output.status);
    Ok(lines)
}
