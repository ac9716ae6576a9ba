//! Runs tests: all of them once without a mutant, then of each mutant those that came by it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build::Program;

/// More memory than any test takes, in KiB: some mutants never stop to ask for it.
const MEMORY: u64 = 6 << 20;

/// A test that came by some mutants.
pub(crate) struct Test {
    program: usize,
    pub(crate) name: String,
    took: Duration,
    seen: BTreeSet<usize>,
}

/// How a mutant ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This test failed.
    Failed(String),
    /// This test did not end in time.
    TimedOut(String),
    /// All that came by it passed.
    Missed,
    /// Those passed for which there was patience.
    GivenUp,
}

/// All tests of `programs`, with what they come by, the quickest first. Fails if one fails.
pub(crate) fn survey(programs: &[Program], jobs: usize, scratch: &Path) -> Result<Vec<Test>> {
    let mut names = Vec::new();
    for (program, built) in programs.iter().enumerate() {
        let ignored = listed(built, &["--ignored"])?;
        names
            .extend(listed(built, &[])?.into_iter().filter(|name| !ignored.contains(name)).map(|name| (program, name)));
    }
    ensure!(!names.is_empty(), "there are no tests");
    let tests = Mutex::new(Vec::new());
    each(jobs, &names, |which, (program, name)| {
        let seen = scratch.join(which.to_string());
        let began = Instant::now();
        let passed = run(&programs[*program], name, Duration::from_secs(600), |command| {
            command.env("REPLIKV_MUTANTS_SEEN", &seen);
        })?;
        let took = began.elapsed();
        ensure!(passed == Some(true), "without a mutant, {name} fails");
        let noted = fs::read_to_string(&seen).unwrap_or_default();
        let seen = noted.lines().map(str::parse).collect::<Result<_, _>>()?;
        lock(&tests).push(Test { program: *program, name: name.clone(), took, seen });
        Ok(())
    })?;
    let mut tests = tests.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    tests.sort_by_key(|test| test.took);
    Ok(tests)
}

/// Tries `mutant`, with tests that take no more than `patience` together.
pub(crate) fn attempt(programs: &[Program], tests: &[Test], mutant: usize, patience: Duration) -> Result<Outcome> {
    let (mut tried, mut took) = (false, Duration::ZERO);
    for test in tests.iter().filter(|test| test.seen.contains(&mutant)) {
        took += test.took;
        if tried && took > patience {
            return Ok(Outcome::GivenUp);
        }
        tried = true;
        let limit = Duration::from_secs(5) + test.took * 5;
        let passed = run(&programs[test.program], &test.name, limit, |command| {
            command.env("REPLIKV_MUTANT", mutant.to_string());
        })?;
        match passed {
            Some(true) => {}
            Some(false) => return Ok(Outcome::Failed(test.name.clone())),
            None => return Ok(Outcome::TimedOut(test.name.clone())),
        }
    }
    Ok(Outcome::Missed)
}

/// Calls `act` with each of `items`, on so many threads; the first failure ends it.
pub(crate) fn each<T: Sync>(jobs: usize, items: &[T], act: impl Fn(usize, &T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let which = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(which) else { return Ok(()) };
                if let Err(error) = act(which, item) {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        };
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?)
    })
}

fn listed(program: &Program, args: &[&str]) -> Result<Vec<String>> {
    let output = Command::new(&program.path).args(["--list", "--format", "terse"]).args(args).output()?;
    ensure!(output.status.success(), "{} --list: {}", program.path.display(), output.status);
    let lines = String::from_utf8(output.stdout)?;
    Ok(lines.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Whether a test passes; `None` if it takes longer than `limit`.
fn run(program: &Program, name: &str, limit: Duration, with: impl FnOnce(&mut Command)) -> Result<Option<bool>> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"")]).arg(&program.path).args(["--exact", name]);
    command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
    // A failure that a mutant has caused is none of the others.
    command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    with(&mut command);
    let mut child = command.spawn().context("a test")?;
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if began.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An empty folder.
pub(crate) fn emptied(folder: PathBuf) -> Result<PathBuf> {
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{}: {error}", folder.display()),
        _ => {}
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
