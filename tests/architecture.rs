//! The arrows between the crates point one way, and every file of tests is built.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// What each crate may depend on, of this project.
const ARROWS: [(&str, &[&str]); 12] = [
    ("replikv-core", &[]),
    ("replikv-proto", &["replikv-core"]),
    ("replikv-node", &["replikv-core", "replikv-proto"]),
    ("replikv-blocking", &["replikv-core"]),
    ("replikv-memory", &["replikv-core"]),
    ("replikv-lmdb", &["replikv-core", "replikv-blocking"]),
    ("replikv-sled", &["replikv-core", "replikv-blocking"]),
    ("replikv-redb", &["replikv-core", "replikv-blocking"]),
    ("replikv-fjall", &["replikv-core", "replikv-blocking"]),
    ("replikv-testkit", &["replikv-core", "replikv-proto", "replikv-node"]),
    (
        "replikv",
        &[
            "replikv-core",
            "replikv-proto",
            "replikv-node",
            "replikv-blocking",
            "replikv-memory",
            "replikv-lmdb",
            "replikv-sled",
            "replikv-redb",
            "replikv-fjall",
        ],
    ),
    ("replikv-cli", &["replikv"]),
];

/// What the deciding crates must never reach: runtimes, stores, sockets, randomness.
const FORBIDDEN: [&str; 10] =
    ["tokio", "mio", "heed", "sled", "redb", "fjall", "rand", "fastrand", "getrandom", "socket2"];

fn metadata() -> Metadata {
    MetadataCommand::new().no_deps().other_options(["--offline".into()]).exec().unwrap()
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let normal = |package: &cargo_metadata::Package| {
        let kept = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        kept.map(|dependency| dependency.name.clone()).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), normal(package))).collect()
}

#[test]
fn crates_depend_only_on_those_below_them() {
    let found = dependencies();
    assert_eq!(found.len(), ARROWS.len(), "every crate of the workspace has its place: {:?}", found.keys());
    for (name, allowed) in ARROWS {
        let own = found[name].iter().filter(|dependency| dependency.starts_with("replikv"));
        for dependency in own {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn what_decides_reaches_no_runtime_no_store_and_no_randomness() {
    let found = dependencies();
    for name in ["replikv-core", "replikv-proto"] {
        for dependency in &found[name] {
            assert!(!FORBIDDEN.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn planted_bugs_are_switched_on_by_the_tests_of_the_simulator_alone() {
    let metadata = metadata();
    let mut switches = Vec::new();
    for package in &metadata.packages {
        for (feature, leads_to) in &package.features {
            let plants = leads_to.iter().any(|other| other.contains("planted-bugs"));
            switches.extend(plants.then(|| format!("{}/{feature}", package.name)));
        }
        for dependency in &package.dependencies {
            let plants = dependency.features.iter().any(|feature| feature.contains("planted-bugs"));
            assert!(!plants, "{} must not ask {} for planted bugs", package.name, dependency.name);
        }
    }
    assert_eq!(switches, ["replikv-testkit/planted-bugs"]);
}

#[test]
fn every_file_of_tests_is_part_of_a_program() {
    let mut files = 0;
    for package in &metadata().packages {
        let tests = package.manifest_path.with_file_name("tests");
        let programs = package.targets.iter().map(|target| target.src_path.as_std_path());
        let programs: BTreeSet<&Path> = programs.filter(|path| path.starts_with(&tests)).collect();
        let declared: String = programs.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        for entry in std::fs::read_dir(&tests).into_iter().flatten() {
            let path = entry.unwrap().path();
            let Some(name) = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(".rs")) else {
                continue;
            };
            let is_built = programs.contains(&*path) || declared.contains(&format!("\nmod {name};\n"));
            assert!(is_built, "{} is not tested: no program declares it", path.display());
            files += 1;
        }
    }
    assert!(files > 50, "only {files} files of tests were found");
}
