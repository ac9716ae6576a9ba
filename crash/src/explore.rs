//! Records workloads and cuts the power at many points of each.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::check::{Expected, Finding};
use crate::disk::{Image, Mode};
use crate::pool::Looker;
use crate::record::{Heritage, Recorded};
use crate::recording::{Note, Step};
use crate::report::Tally;
use crate::setup::{Backend, Durable, Role, Setup, Values};

/// What to explore.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How many distinct states of each backend and role.
    pub(crate) states: usize,
    pub(crate) seed: u64,
    pub(crate) backends: Vec<Backend>,
    pub(crate) roles: Vec<Role>,
    pub(crate) durable: Vec<Durable>,
    /// What differs from what the backend can bear.
    pub(crate) values: Option<Values>,
    pub(crate) modes: Option<Vec<Mode>>,
    /// Syncs of files whose paths end in this do not count.
    pub(crate) deaf: Option<String>,
    /// Where recordings and states live while they are looked at.
    pub(crate) scratch: PathBuf,
    /// Where recordings with failures are kept.
    pub(crate) failures: PathBuf,
    /// How many processes look.
    pub(crate) lookers: usize,
}

/// One power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut {
    /// After so many steps of the recording.
    pub(crate) point: usize,
    pub(crate) mode: Mode,
    /// What the disk kept is drawn from this.
    pub(crate) draw: u64,
}

/// At most so many states of one recording.
const OF_ONE_RECORDING: usize = 1500;
/// A history is cut and taken up again so often, then a new one begins.
const LIVES: u32 = 3;
/// Steps in which a store is made, or recovers.
const BEGINNING: usize = 60;
/// One state of so many is gone on from.
const DEEP: u64 = 6;

impl Backend {
    // sled writes values of more than 128 KiB into files of their own, and their names into its log before anybody can
    // sync those files.
    fn keeps(self) -> Values {
        match self {
            Self::Lmdb | Self::Redb | Self::Fjall => Values::Large,
            Self::Sled => Values::Small,
        }
    }

    // sled names a snapshot and removes the one before it without a sync in between.
    fn modes(self) -> &'static [Mode] {
        match self {
            Self::Lmdb | Self::Redb | Self::Fjall => &Mode::ALL,
            Self::Sled => &Mode::ALL[..Mode::ALL.len() - 1],
        }
    }
}

/// Explores everything that `plan` names.
pub(crate) fn explore(plan: &Plan) -> Result<Tally> {
    let mut tally = Tally::default();
    for backend in &plan.backends {
        for role in &plan.roles {
            explore_one(plan, *backend, *role, &mut tally)?;
        }
    }
    Ok(tally)
}

fn explore_one(plan: &Plan, backend: Backend, role: Role, tally: &mut Tally) -> Result<()> {
    let values = plan.values.unwrap_or(backend.keeps());
    let modes = backend.modes();
    // What is known to be damaged, also where nobody has seen it, is not gone on from.
    let lives = if plan.deaf.is_some() || plan.durable.contains(&Durable::Never) { 1 } else { LIVES };
    let (mut left, mut round) = (plan.states, 0u32);
    let mut heritage: Option<Heritage> = None;
    while left > 0 {
        let (history, life) = (round / lives, round % lives);
        let durable = plan.durable[history as usize % plan.durable.len()];
        let setup = Setup { backend, role, durable, values, seed: plan.seed + u64::from(history), life };
        let name = format!("{}-{}-{}-{}-{life}", backend.name(), role.name(), durable.name(), setup.seed);
        let folder = plan.scratch.join(name);
        let given = heritage.take().filter(|_| life > 0);
        // Nobody is there to inherit from where every state was at fault.
        let setup = if given.is_none() { Setup { life: 0, ..setup } } else { setup };
        let recorded = Recorded::record(setup, &folder, given.as_ref())?;
        // A few states of every life come into small explorations too.
        let lives_left = (lives - life) as usize;
        let wanted = left.div_ceil(lives_left).min(OF_ONE_RECORDING);
        let explored = explore_recording(plan, &recorded, wanted, plan.modes.as_deref().unwrap_or(modes), tally)?;
        ensure!(explored.states > 0, "there is nothing to explore in {}", folder.display());
        left = left.saturating_sub(explored.states);
        heritage = explored.heir.filter(|_| life + 1 < lives);
        if let Some(old) = given {
            remove(old.master.parent())?;
        }
        if heritage.is_none() {
            remove(Some(&folder))?;
        }
        round += 1;
    }
    remove(heritage.as_ref().and_then(|heritage| heritage.master.parent()))
}

fn remove(folder: Option<&Path>) -> Result<()> {
    match folder {
        Some(folder) if folder.exists() => Ok(std::fs::remove_dir_all(folder)?),
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct Explored {
    states: usize,
    heir: Option<Heritage>,
}

struct Job {
    cut: Cut,
    image: Image,
    expected: Expected,
}

fn explore_recording(
    plan: &Plan,
    recorded: &Recorded,
    wanted: usize,
    modes: &[Mode],
    tally: &mut Tally,
) -> Result<Explored> {
    let mut rng = Rng::with_seed(recorded.setup.seed ^ (u64::from(recorded.setup.life) << 50) ^ 0xC0FF_EE00);
    let mut cuts: Vec<Cut> =
        (0..wanted).map(|number| draw(&recorded.steps, modes[number % modes.len()], &mut rng)).collect();
    if recorded.setup.backend == Backend::Sled && plan.modes.is_none() {
        cuts.retain(|cut| cut.mode != Mode::Names || !is_recovering(&recorded.steps[..cut.point]));
    }
    cuts.sort();
    let heirs: BTreeSet<usize> = (0..3).map(|_| rng.usize(..wanted)).collect();
    let (jobs, taken) = mpsc::sync_channel::<Job>(plan.lookers);
    let (results, outcomes) = mpsc::channel();
    let taken = Arc::new(Mutex::new(taken));
    let workers: Vec<_> = (0..plan.lookers)
        .map(|number| {
            let (taken, results) = (taken.clone(), results.clone());
            let state = plan.scratch.join(format!("state-{number}"));
            let mut looker = Looker::new(&recorded.folder, &state, false);
            thread::spawn(move || -> Result<()> {
                loop {
                    let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return Ok(()) };
                    let finding = looker.look(&job.image, job.expected)?;
                    results.send((job, finding))?;
                }
            })
        })
        .collect();
    drop((results, taken));

    let mut heir = None;
    let mut kept_recording = false;
    let mut seen = BTreeSet::new();
    let mut heir_cuts = BTreeSet::new();
    let mut take = |(job, finding): (Job, Option<Finding>), heir_cuts: &BTreeSet<Cut>| -> Result<()> {
        if finding.is_none() && heir.is_none() && heir_cuts.contains(&job.cut) {
            heir = Some(Heritage { image: job.image, durable: job.expected.durable, master: recorded.master() });
        }
        if finding.is_some() && !kept_recording {
            keep(recorded, &plan.failures)?;
            kept_recording = true;
        }
        tally.add(plan, recorded, job.cut, finding);
        Ok(())
    };
    for (number, (cut, image, durable)) in States::new(plan, recorded, &cuts)?.enumerate() {
        let mut hasher = DefaultHasher::new();
        (&image, durable.durable, durable.consistent).hash(&mut hasher);
        let deep = cut.draw % DEEP == 0;
        if !seen.insert(hasher.finish()) {
            continue;
        }
        if heirs.contains(&number) {
            heir_cuts.insert(cut);
        }
        // An error is a worker's that has ended; its own words say why.
        if jobs.send(Job { cut, image, expected: Expected { durable, deep } }).is_err() {
            break;
        }
        while let Ok(outcome) = outcomes.try_recv() {
            take(outcome, &heir_cuts)?;
        }
    }
    drop(jobs);
    while let Ok(outcome) = outcomes.recv() {
        take(outcome, &heir_cuts)?;
    }
    for worker in workers {
        worker.join().ok().context("a worker has panicked")??;
    }
    Ok(Explored { states: seen.len(), heir })
}

// Every mode as often; most points anywhere or right after something was acknowledged, some while the store is made.
fn draw(steps: &[Step], mode: Mode, rng: &mut Rng) -> Cut {
    let point = match rng.u8(..8) {
        0 => {
            let within = rng.usize(1..=steps.len().min(BEGINNING));
            rng.usize(1..=within)
        }
        1..=3 => rng.usize(1..=steps.len()),
        _ => {
            let from = rng.usize(1..=steps.len());
            let after = steps[from - 1..].iter().position(|step| matches!(step, Step::Note(_)));
            from + after.unwrap_or(0)
        }
    };
    Cut { point, mode, draw: rng.u64(..) }
}

// While sled opens a database it names a snapshot, and clears away what that has made superfluous, without a sync of the
// directory in between. Where names do not come with the sync of their files, nothing can mend that.
fn is_recovering(steps: &[Step]) -> bool {
    let last = steps.iter().rev().find(|step| match step {
        Step::Note(_) => true,
        Step::Create { path, .. } => path.ends_with(".generating"),
        _ => false,
    });
    matches!(last, Some(Step::Create { .. }))
}

/// The states that cuts leave, in the order of the recording.
struct States<'a> {
    recorded: &'a Recorded,
    disk: crate::disk::Disk,
    durable: Note,
    at: usize,
    cuts: std::slice::Iter<'a, Cut>,
}

impl<'a> States<'a> {
    fn new(plan: &Plan, recorded: &'a Recorded, cuts: &'a [Cut]) -> Result<Self> {
        let disk = recorded.disk(plan.deaf.clone())?;
        Ok(Self { recorded, disk, durable: recorded.durable, at: 0, cuts: cuts.iter() })
    }
}

impl Iterator for States<'_> {
    type Item = (Cut, Image, Note);

    fn next(&mut self) -> Option<Self::Item> {
        let cut = *self.cuts.next()?;
        let steps = &self.recorded.steps;
        for step in &steps[self.at..cut.point] {
            self.disk.take(step);
            if let Step::Note(note) = step {
                self.durable = later(self.durable, *note);
            }
        }
        self.at = cut.point;
        let image = self.disk.lose_power(steps.get(cut.point), cut.mode, &mut Rng::with_seed(cut.draw));
        Some((cut, image, self.durable))
    }
}

// Notes of several writers need not come in order.
fn later(one: Note, other: Note) -> Note {
    let consistent = one.consistent || other.consistent;
    let digest = |note: Note| (note.durable, note.digest.is_some());
    let later = if digest(other) >= digest(one) { other } else { one };
    Note { consistent, ..later }
}

/// Looks at one state again, and says what is wrong with it.
pub(crate) fn again(plan: &Plan, folder: &Path, cut: Cut) -> Result<Option<Finding>> {
    let recorded = Recorded::read(folder)?;
    ensure!(cut.point <= recorded.steps.len(), "the recording has {} steps", recorded.steps.len());
    let cuts = [cut];
    let (_, image, durable) = States::new(plan, &recorded, &cuts)?.next().context("one state")?;
    for (path, content) in &image {
        let size = content.as_ref().map_or("directory".into(), |bytes| format!("{} bytes", bytes.len()));
        println!("{path}: {size}");
    }
    println!("durable: {durable:?}");
    for (number, step) in recorded.steps.iter().enumerate().take(cut.point + 1).skip(cut.point.saturating_sub(12)) {
        println!("step {number}: {}", step.in_short());
    }
    // Kept as it was, for whoever wants to look.
    crate::record::write_image(&image, &plan.scratch.join("kept"))?;
    Looker::new(folder, &plan.scratch.join("state"), true).look(&image, Expected { durable, deep: true })
}

fn keep(recorded: &Recorded, failures: &Path) -> Result<()> {
    let to = kept_at(recorded, failures);
    std::fs::create_dir_all(&to)?;
    for name in ["setup", "inodes", "durable", "log", "master"] {
        let from = recorded.folder.join(name);
        if from.exists() {
            std::fs::copy(from, to.join(name))?;
        }
    }
    crate::record::write_image(&recorded.base, &to.join("base"))
}

/// Where a recording with failures is kept.
pub(crate) fn kept_at(recorded: &Recorded, failures: &Path) -> PathBuf {
    failures.join(recorded.folder.file_name().unwrap_or_default())
}
