//! Tries every mutant of what decides in replikv: whether a test fails when one thing is changed.
//!
//! cargo-mutants says which mutants there are. It would build each of them by itself, which takes most of a day here; this
//! builds one copy of the workspace that holds them all as branches ([`weave`]), leaves out those that do not compile, and
//! takes one branch after the other by an environment variable. Of each mutant only those tests are run that come by it, the
//! quickest first, until one fails.

mod build;
mod list;
mod report;
mod run;
mod tree;
mod weave;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::list::Mutant;
use crate::report::{Excused, Fingerprints, Results};
use crate::run::Outcome;
use crate::tree::Tree;

const USAGE: &str = "\
Tries every mutant of replikv-core and replikv-proto: whether a test of theirs fails when one thing is changed.

replikv-mutants [--jobs N] [--only TEXT] [--also PACKAGE]... [--patience N]
    --jobs N        so many at a time (default: one for each processor)
    --only TEXT     those whose name contains it
    --also PACKAGE  whether the tests of that package notice what the others have missed
    --patience N    with tests that take no more than N seconds together, the quickest first (default: all)

What comes of it is kept in target/mutants/results: a mutant is tried again when its file has changed, or the test that
noticed it is gone, and one that was missed whenever anything has. Those that do not compile as branches are in
target/mutants/refused: `just mutants-alone` tries them. Those that are missed and known to be, with the reason, are in
mutants/missed.tsv.

Ends with 0 if every mutant that was tried is noticed or known, with 1 if not, with 2 if that could not be tried.";

/// Whose mutants, and whose tests.
const PACKAGES: [&str; 2] = ["replikv-core", "replikv-proto"];

fn main() -> ExitCode {
    match act() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("replikv-mutants: {error:#}");
            ExitCode::from(2)
        }
    }
}

struct Wishes {
    jobs: usize,
    only: String,
    also: Vec<String>,
    patience: Duration,
}

impl Wishes {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut wishes = Self { jobs, only: String::new(), also: Vec::new(), patience: Duration::MAX };
        while let Some(word) = args.next() {
            if word == "--help" || word == "-h" {
                return Ok(None);
            }
            let value = args.next().with_context(|| format!("{word} needs a value\n\n{USAGE}"))?;
            match word.as_str() {
                "--jobs" => wishes.jobs = value.parse::<std::num::NonZero<usize>>().context("--jobs")?.get(),
                "--only" => wishes.only = value,
                "--patience" => wishes.patience = Duration::from_secs(value.parse().context("--patience")?),
                "--also" => wishes.also.push(value),
                _ => bail!("what is {word}?\n\n{USAGE}"),
            }
        }
        Ok(Some(wishes))
    }
}

fn act() -> Result<bool> {
    let Some(wishes) = Wishes::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(true);
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = here.parent().context("the workspace")?;
    let scratch = workspace.join("target/mutants");

    let mutants = list::all(workspace, &PACKAGES)?;
    let mut tree = Tree::copy(workspace, scratch.join("tree"), &mutants)?;
    let built = build::build(&mut tree, &mutants, &PACKAGES, BTreeSet::new())?;
    let tests = run::survey(&built.programs, wishes.jobs, &run::emptied(scratch.join("seen"))?)?;
    eprintln!("{} tests", tests.len());

    let fingerprints = fingerprints(workspace, &mutants, &PACKAGES)?;
    let excused = Excused::read(&here.join("missed.tsv"))?;
    let compiled: Vec<(usize, &Mutant)> =
        mutants.iter().enumerate().filter(|(number, _)| !built.refused.contains(number)).collect();
    let wanted: Vec<(usize, &Mutant)> =
        compiled.iter().copied().filter(|(_, mutant)| mutant.name.contains(&wishes.only)).collect();

    if wanted.is_empty() {
        bail!("no mutant that compiles has {:?} in its name", wishes.only);
    }
    let missed = try_all(&built.programs, &tests, &wanted, &scratch.join("results"), &fingerprints, &wishes)?;
    let mut left = missed.clone();
    for package in &wishes.also {
        let fingerprints = self::fingerprints(workspace, &mutants, &[PACKAGES[0], PACKAGES[1], package])?;
        let others = build::build(&mut tree, &mutants, &[package], built.refused.clone())?;
        let tests = run::survey(&others.programs, wishes.jobs, &run::emptied(scratch.join("seen"))?)?;
        let path = scratch.join(format!("results-{package}"));
        let before = left.len();
        left = try_all(&others.programs, &tests, &left, &path, &fingerprints, &wishes)?;
        println!("{} more are noticed by tests of {package}", before - left.len());
    }

    let refused: String = built.refused.iter().map(|number| mutants[*number].name.clone() + "\n").collect();
    std::fs::write(scratch.join("refused"), refused)?;
    let missed: Vec<&Mutant> = missed.into_iter().map(|(_, mutant)| mutant).collect();
    let left: Vec<&Mutant> = left.into_iter().map(|(_, mutant)| mutant).collect();
    let unknown = excused.unknown(&left);
    for mutant in &unknown {
        println!("missed: {}", mutant.name);
    }
    if wishes.only.is_empty() {
        for name in excused.beyond(&missed) {
            println!("noticed, or gone: {name}");
        }
    }
    println!(
        "{} mutants: {} do not compile as branches (target/mutants/refused); of {}, {} are noticed; {} are missed, {} of these known",
        mutants.len(),
        built.refused.len(),
        wanted.len(),
        wanted.len() - left.len(),
        left.len(),
        left.len() - unknown.len(),
    );
    Ok(unknown.is_empty())
}

/// Tries each of `mutants` that `path` knows nothing of, and returns those that are missed.
fn try_all<'a>(
    programs: &[build::Program],
    tests: &[run::Test],
    mutants: &[(usize, &'a Mutant)],
    path: &Path,
    fingerprints: &Fingerprints,
    wishes: &Wishes,
) -> Result<Vec<(usize, &'a Mutant)>> {
    let results = Results::open(path, fingerprints)?;
    let is_there = |test: &String| tests.iter().any(|there| there.name == *test);
    let is_known = |mutant: &Mutant| match results.of(mutant) {
        Some(Outcome::Failed(test) | Outcome::TimedOut(test)) => is_there(test),
        Some(Outcome::Missed) => true,
        Some(Outcome::GivenUp) | None => false,
    };
    let (known, left): (Vec<_>, Vec<_>) = mutants.iter().copied().partition(|(_, mutant)| is_known(mutant));
    let missed =
        known.into_iter().filter(|(_, mutant)| results.of(mutant) == Some(&Outcome::Missed)).collect::<Vec<_>>();
    let state = Mutex::new((results, missed, 0, Instant::now()));
    run::each(wishes.jobs, &left, |_, (number, mutant)| {
        let outcome = run::attempt(programs, tests, *number, wishes.patience)?;
        let mut state = state.lock().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
        let (results, missed, tried, said) = &mut *state;
        *tried += 1;
        if matches!(outcome, Outcome::Missed | Outcome::GivenUp) {
            missed.push((*number, *mutant));
        }
        if said.elapsed().as_secs() >= 10 {
            eprintln!("{tried} of {} tried, {} missed", left.len(), missed.len());
            *said = Instant::now();
        }
        results.add(mutant, outcome)
    })?;
    let (_, mut missed, ..) = state.into_inner().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
    missed.sort_by_key(|(number, _)| *number);
    Ok(missed)
}

/// Of each file that is changed, and of all of `packages`.
fn fingerprints(workspace: &Path, mutants: &[Mutant], packages: &[&str]) -> Result<Fingerprints> {
    let mut files = BTreeMap::new();
    for mutant in mutants {
        if !files.contains_key(&mutant.file) {
            let source = std::fs::read_to_string(workspace.join(&mutant.file))?;
            let without_tests = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            files.insert(mutant.file.clone(), blake3::hash(without_tests.as_bytes()).to_hex().to_string());
        }
    }
    let folder = |package: &&str| workspace.join("crates").join(package.trim_start_matches("replikv-"));
    let (mut folders, mut paths): (Vec<_>, _) = (packages.iter().map(folder).collect(), BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.insert(path);
            }
        }
    }
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update(path.to_string_lossy().as_bytes());
        hasher.update(&std::fs::read(path)?);
    }
    Ok(Fingerprints { files, all: hasher.finalize().to_hex().to_string() })
}
