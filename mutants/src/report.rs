//! What came of mutants, kept from one run to the next, and beside what is known of those that nothing notices.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::list::Mutant;
use crate::run::Outcome;

/// What outcomes depend on.
#[derive(Clone, Debug)]
pub(crate) struct Fingerprints {
    /// Of each file that is changed, without its tests: with another one nothing is known of its mutants.
    pub(crate) files: BTreeMap<String, String>,
    /// Of everything: with another one, a mutant that was missed may be noticed.
    pub(crate) all: String,
}

impl Fingerprints {
    fn of(&self, mutant: &Mutant) -> &str {
        self.files.get(&mutant.file).map_or("", String::as_str)
    }
}

/// The outcomes so far: lines of a mutant, the fingerprint of its file, and what came of it.
pub(crate) struct Results {
    file: File,
    fingerprints: Fingerprints,
    /// By name and fingerprint.
    known: BTreeMap<(String, String), Outcome>,
}

impl Results {
    /// What `path` has of sources with those `fingerprints`.
    pub(crate) fn open(path: &Path, fingerprints: &Fingerprints) -> Result<Self> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut known = BTreeMap::new();
        for line in text.lines() {
            // The last one of a run that was killed may be torn.
            let [name, file, word, of] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
            let key = (name.to_owned(), file.to_owned());
            let outcome = match word {
                "failed" => Outcome::Failed(of.to_owned()),
                "timed out" => Outcome::TimedOut(of.to_owned()),
                "missed" if of == fingerprints.all => Outcome::Missed,
                _ => {
                    known.remove(&key);
                    continue;
                }
            };
            known.insert(key, outcome);
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, fingerprints: fingerprints.clone(), known })
    }

    pub(crate) fn of(&self, mutant: &Mutant) -> Option<&Outcome> {
        self.known.get(&(mutant.name.clone(), self.fingerprints.of(mutant).to_owned()))
    }

    pub(crate) fn add(&mut self, mutant: &Mutant, outcome: Outcome) -> Result<()> {
        let (word, of) = match &outcome {
            Outcome::Failed(test) => ("failed", test),
            Outcome::TimedOut(test) => ("timed out", test),
            Outcome::Missed => ("missed", &self.fingerprints.all),
            // Next time there may be more.
            Outcome::GivenUp => return Ok(()),
        };
        let file = self.fingerprints.of(mutant).to_owned();
        self.file.write_all(format!("{}\t{file}\t{word}\t{of}\n", mutant.name).as_bytes())?;
        self.known.insert((mutant.name.clone(), file), outcome);
        Ok(())
    }
}

/// Mutants that nothing notices, and why that is well: lines of a name, of how many mutants it is the name, and of a reason,
/// with tabs between them.
pub(crate) struct Excused(BTreeMap<String, usize>);

impl Excused {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut excused = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let [name, count, reason] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("not three fields: {line}")
            };
            ensure!(!reason.trim().is_empty(), "no reason: {line}");
            excused.insert(name.to_owned(), count.parse().with_context(|| line.to_owned())?);
        }
        Ok(Self(excused))
    }

    /// Those of `missed` that are not known: all of a name, if there are more than are known of it.
    pub(crate) fn unknown<'a>(&self, missed: &[&'a Mutant]) -> Vec<&'a Mutant> {
        let counts = counts(missed);
        let is_known = |mutant: &Mutant| {
            let name = mutant.lasting_name();
            self.0.get(&name).is_some_and(|known| counts[&name] <= *known)
        };
        missed.iter().copied().filter(|mutant| !is_known(mutant)).collect()
    }

    /// The names of which fewer are missed than are known.
    pub(crate) fn beyond(&self, missed: &[&Mutant]) -> Vec<&str> {
        let counts = counts(missed);
        let fewer = |(name, known): &(&String, &usize)| counts.get(*name).copied().unwrap_or_default() < **known;
        self.0.iter().filter(fewer).map(|(name, _)| name.as_str()).collect()
    }
}

fn counts(mutants: &[&Mutant]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for mutant in mutants {
        *counts.entry(mutant.lasting_name()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Genre, Place, Span};

    fn mutant(name: &str) -> Mutant {
        let place = Place { line: 1, column: 1 };
        let span = Span { start: place, end: place };
        Mutant {
            name: name.to_owned(),
            file: "a.rs".to_owned(),
            genre: Genre::FnValue,
            replacement: String::new(),
            span,
            function: None,
        }
    }

    #[test]
    fn what_is_known_is_known_again_until_sources_change() {
        let folder = std::env::temp_dir().join(format!("replikv-mutants-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("results");
        let (first, second) = (mutant("a.rs:1:1: replace f with ()"), mutant("a.rs:2:2: delete ! in f"));
        let with = |file: &str, all: &str| {
            let files = BTreeMap::from([("a.rs".to_owned(), file.to_owned())]);
            Fingerprints { files, all: all.to_owned() }
        };
        let mut results = Results::open(&path, &with("one", "tests")).unwrap();
        results.add(&first, Outcome::Missed).unwrap();
        results.add(&second, Outcome::Failed("f works".to_owned())).unwrap();
        drop(results);
        // A line that a killed run has left.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"a.rs:3").unwrap();
        let results = Results::open(&path, &with("one", "tests")).unwrap();
        assert_eq!(results.of(&first), Some(&Outcome::Missed));
        assert_eq!(results.of(&second), Some(&Outcome::Failed("f works".to_owned())));
        // A test more may notice what was missed, and what was noticed stays so.
        let mut results = Results::open(&path, &with("one", "more tests")).unwrap();
        assert_eq!(results.of(&first), None);
        assert_eq!(results.of(&second), Some(&Outcome::Failed("f works".to_owned())));
        results.add(&second, Outcome::TimedOut("g".to_owned())).unwrap();
        drop(results);
        let results = Results::open(&path, &with("one", "more tests")).unwrap();
        assert_eq!(results.of(&second), Some(&Outcome::TimedOut("g".to_owned())));
        assert!(Results::open(&path, &with("two", "more tests")).unwrap().of(&second).is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_name_excuses_as_many_as_are_known_of_it() {
        let path = std::env::temp_dir().join(format!("replikv-mutants-{}.tsv", std::process::id()));
        fs::write(&path, "# why\na.rs: delete ! in f\t2\tboth lead to the same\n").unwrap();
        let excused = Excused::read(&path).unwrap();
        fs::write(&path, "a.rs: delete ! in f\t2\n").unwrap();
        assert!(Excused::read(&path).is_err(), "no reason");
        fs::remove_file(path).unwrap();
        let all: Vec<Mutant> = (1..4).map(|line| mutant(&format!("a.rs:{line}:1: delete ! in f"))).collect();
        let all: Vec<&Mutant> = all.iter().collect();
        assert_eq!((excused.unknown(&all[..1]).len(), excused.beyond(&all[..1]).len()), (0, 1));
        assert_eq!((excused.unknown(&all[..2]).len(), excused.beyond(&all[..2]).len()), (0, 0));
        assert_eq!((excused.unknown(&all).len(), excused.beyond(&all).len()), (3, 0));
    }
}
