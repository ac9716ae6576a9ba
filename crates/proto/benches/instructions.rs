//! How many instructions the hot paths take, as callgrind counts them: `cargo bench -p replikv-proto --bench instructions`.
//!
//! Unlike time, the count is the same in every run of one build, also on a busy machine. It is compared with that of
//! `instructions.csv`: more than a tenth above is a failure; more than twice as many, where another compiler or another
//! processor was counted with. The history of that file is the trend. With `-- --update` it is written anew.

mod paths;

use std::any::Any;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::{env, fs};

use paths::{PATHS, Path, Run};

/// Which path a process that runs under valgrind is to run.
const PATH: &str = "REPLIKV_COUNTED_PATH";
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.csv");
/// How many times the baseline a count may be.
const TOLERATED: f64 = 1.10;
/// And if it was counted with another compiler, or on a processor that hashes with other instructions.
const TOLERATED_ELSEWHERE: f64 = 2.0;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if let Ok(name) = env::var(PATH) {
        let path = PATHS.iter().find(|path| path.name == name).expect("the path has been listed");
        let run = (path.prepare)();
        drop(black_box(counted_part(run)));
        return ExitCode::SUCCESS;
    }
    match compare(env::args().any(|argument| argument == "--update")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

// Counting begins where this is entered, and ends where it is left. Named in `--toggle-collect`.
#[inline(never)]
fn counted_part(run: Run) -> Box<dyn Any> {
    run()
}

fn compare(update: bool) -> Result<bool, Failure> {
    let machine = machine()?;
    let mut csv = format!("# {machine}\npath,instructions\n");
    let baseline = if update { String::new() } else { fs::read_to_string(BASELINE)? };
    let elsewhere = !update && baseline.lines().next() != csv.lines().next();
    let tolerated = if elsewhere { TOLERATED_ELSEWHERE } else { TOLERATED };
    println!("{:<32} {:>12} {:>22} {:>12} {:>8}", "path", "instructions", "per item", "before", "change");
    let mut held = true;
    for path in PATHS {
        let counted = count(path)?;
        writeln!(csv, "{},{counted}", path.name)?;
        let before = before(&baseline, path.name);
        let ratio = before.map(|before| counted as f64 / before as f64);
        let change = ratio.map_or_else(String::new, |ratio| format!("{:+.1} %", (ratio - 1.0) * 100.0));
        let per_item = format!("{:.1} per {}", counted as f64 / path.items as f64, path.unit);
        let before = before.map_or_else(|| "new".to_owned(), |before| before.to_string());
        println!("{:<32} {counted:>12} {per_item:>22} {before:>12} {change:>8}", path.name);
        held &= update || ratio.is_some_and(|ratio| ratio <= tolerated);
    }
    if update {
        fs::write(BASELINE, csv)?;
        return Ok(true);
    }
    if elsewhere {
        let before = baseline.lines().next().unwrap_or_default().trim_start_matches("# ");
        println!("counted with {machine}, before with {before}: twice as many are tolerated");
    }
    if !held {
        println!(
            "a path takes over {:.0} % more than before, or is new: if that is meant to be, \
             `cargo bench -p replikv-proto --bench instructions -- --update`",
            (tolerated - 1.0) * 100.0
        );
    }
    Ok(held)
}

fn before(baseline: &str, name: &str) -> Option<u64> {
    let line = baseline.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(','))?;
    line.parse().ok()
}

/// What counts depend on, but for this code.
fn machine() -> Result<String, Failure> {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?;
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::arch::is_x86_feature_detected!("avx2") { ", avx2" } else { "" };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "";
    Ok(format!("{}, {}{vectors}", version.trim(), env::consts::ARCH))
}

fn count(path: &Path) -> Result<u64, Failure> {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_part*"])
        .arg(env::current_exe()?)
        .env(PATH, path.name)
        .output()
        .map_err(|error| format!("valgrind cannot be started ({error}): it must be installed"))?;
    let said = String::from_utf8_lossy(&run.stderr);
    let counted = said.lines().find_map(|line| line.split_once("Collected :")).map(|(_, counted)| counted.trim());
    match counted.map(str::parse) {
        Some(Ok(counted)) if counted > 0 && run.status.success() => Ok(counted),
        _ => Err(format!("{} was not counted:\n{said}", path.name).into()),
    }
}
