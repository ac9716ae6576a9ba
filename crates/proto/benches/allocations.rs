//! How often the hot paths allocate, and how much: `cargo bench -p replikv-proto --bench allocations`.
//!
//! Each path runs twice, and the second run counts: what is made once in a process is not in it. What it comes to is
//! compared with `allocations.csv`: more than a tenth above is a failure, and so is more than one allocation above, if that
//! is more. With `-- --update` that file is written anew.

mod paths;

use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::{env, fs};

use divan::{AllocProfiler, Bencher, Divan};

use paths::{PATHS, Path};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Which path a process is to count. divan prints what it counts, and tells it in no other way.
const PATH: &str = "REPLIKV_COUNTED_PATH";
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/allocations.csv");
/// How many times the baseline a count may be.
const TOLERATED: f64 = 1.10;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if env::var_os(PATH).is_some() {
        Divan::default().run_benches();
        return ExitCode::SUCCESS;
    }
    match compare(env::args().any(|argument| argument == "--update")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("allocations: {error}");
            ExitCode::FAILURE
        }
    }
}

#[divan::bench(sample_count = 1, sample_size = 1)]
fn counted(bencher: Bencher<'_, '_>) {
    let name = env::var(PATH).expect("it is told");
    let path = PATHS.iter().find(|path| path.name == name).expect("the path has been listed");
    drop((path.prepare)()());
    bencher.with_inputs(path.prepare).bench_local_values(|run| run());
}

fn compare(update: bool) -> Result<bool, Failure> {
    let mut csv = "path,allocations,bytes\n".to_owned();
    let baseline = if update { String::new() } else { fs::read_to_string(BASELINE)? };
    println!("{:<32} {:>11} {:>22} {:>9} {:>20} {:>9}", "path", "allocations", "per item", "before", "bytes", "before");
    let mut held = true;
    for path in PATHS {
        let counted = count(path)?;
        let before = before(&baseline, path.name);
        writeln!(csv, "{},{},{}", path.name, counted.allocations, counted.bytes)?;
        println!("{}", line(path, counted, before));
        held &= update || before.is_some_and(|before| counted.is_tolerable(before));
    }
    if update {
        fs::write(BASELINE, csv)?;
    } else if !held {
        println!(
            "a path allocates over {:.0} % more than before, or is new: if that is meant to be, \
             `cargo bench -p replikv-proto --bench allocations -- --update`",
            (TOLERATED - 1.0) * 100.0
        );
    }
    Ok(held)
}

/// What one run of a path allocates. What it returns is boxed: one allocation is that of the benchmark.
#[derive(Clone, Copy)]
struct Counted {
    allocations: u64,
    /// To four digits.
    bytes: u64,
}

impl Counted {
    fn is_tolerable(self, before: Self) -> bool {
        let most = |before: u64| before as f64 * TOLERATED;
        (self.allocations <= before.allocations + 1 || self.allocations as f64 <= most(before.allocations))
            && self.bytes as f64 <= most(before.bytes)
    }
}

fn line(path: &Path, counted: Counted, before: Option<Counted>) -> String {
    let Counted { allocations, bytes } = counted;
    let per_item = |count: u64| count as f64 / path.items as f64;
    let before =
        |count: fn(Counted) -> u64| before.map_or_else(|| "new".to_owned(), |before| count(before).to_string());
    let each = format!("{:.3} per {}", per_item(allocations), path.unit);
    let of_bytes = format!("{bytes} ({:.1} each)", per_item(bytes));
    let (allocations_before, bytes_before) = (before(|before| before.allocations), before(|before| before.bytes));
    format!("{:<32} {allocations:>11} {each:>22} {allocations_before:>9} {of_bytes:>20} {bytes_before:>9}", path.name)
}

fn before(baseline: &str, name: &str) -> Option<Counted> {
    let line = baseline.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(','))?;
    let (allocations, bytes) = line.split_once(',')?;
    Some(Counted { allocations: allocations.parse().ok()?, bytes: bytes.parse().ok()? })
}

fn count(path: &Path) -> Result<Counted, Failure> {
    let run = Command::new(env::current_exe()?).env(PATH, path.name).output()?;
    let said = String::from_utf8_lossy(&run.stdout);
    match tally(&said, "alloc:") {
        Some(made) if run.status.success() => {
            // What grows may move, and costs as much.
            let grown = tally(&said, "grow:").unwrap_or(Counted { allocations: 0, bytes: 0 });
            Ok(Counted { allocations: made.allocations + grown.allocations, bytes: made.bytes + grown.bytes })
        }
        _ => Err(format!("{} was not counted:\n{said}{}", path.name, String::from_utf8_lossy(&run.stderr)).into()),
    }
}

// Below the name of the operation divan says how often it happened, and below that with how many bytes.
fn tally(said: &str, operation: &str) -> Option<Counted> {
    let mut cells = said.lines().map(first_cell).skip_while(|cell| *cell != operation).skip(1);
    Some(Counted { allocations: cells.next()?.parse().ok()?, bytes: bytes(cells.next()?)? })
}

fn first_cell(line: &str) -> &str {
    let row = line.trim_start_matches(['│', '├', '╰', '─', ' ']);
    row.split('│').next().unwrap_or_default().trim()
}

fn bytes(cell: &str) -> Option<u64> {
    let (number, unit) = cell.split_once(' ')?;
    let scale = match unit {
        "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * scale).round() as u64)
}
