//! Which mutants there are: cargo-mutants says so.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One change of one place.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Mutant {
    /// `crates/proto/src/log.rs:12:5: replace + with - in Log::len`.
    pub(crate) name: String,
    /// Relative to the workspace.
    pub(crate) file: String,
    /// Of what kind.
    pub(crate) genre: Genre,
    /// What stands there instead.
    pub(crate) replacement: String,
    /// What is replaced.
    pub(crate) span: Span,
    /// In which function.
    pub(crate) function: Option<Function>,
}

/// A function, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Function {
    /// With the arrow.
    pub(crate) return_type: String,
}

impl Mutant {
    /// The name without line and column, which move with every edit above.
    pub(crate) fn lasting_name(&self) -> String {
        let what = self.name.splitn(4, ':').nth(3).unwrap_or_default();
        format!("{}:{what}", self.file)
    }
}

/// What is changed, in cargo-mutants' words.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) enum Genre {
    /// The body of a function, for a value.
    FnValue,
    /// `+` for `-`.
    BinaryOperator,
    /// `!` and `-`, left out.
    UnaryOperator,
    /// An arm, left out.
    MatchArm,
    /// The condition of an arm, for `true` and `false`.
    MatchArmGuard,
    /// A field of an expression with a base, left out.
    StructField,
}

/// From where to where, the end left out.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Span {
    pub(crate) start: Place,
    pub(crate) end: Place,
}

/// Both from 1 on, columns in characters.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// All mutants of `packages`, as `.cargo/mutants.toml` of `workspace` has them.
pub(crate) fn all(workspace: &Path, packages: &[&str]) -> Result<Vec<Mutant>> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace).args(["mutants", "--list", "--json"]);
    for package in packages {
        command.args(["-p", package]);
    }
    let listed = command.output().context("cargo mutants")?;
    if !listed.status.success() {
        bail!("cargo mutants --list: {}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    serde_json::from_slice(&listed.stdout).context("what cargo mutants lists")
}
