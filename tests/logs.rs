//! What docs/metrics.md says of logs holds for every event in the source.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Fewer could only mean that the source is not read as it is written.
const AT_LEAST: usize = 20;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The arguments of every event, up to its words.
fn events(source: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for level in ["error", "warn", "info", "debug", "trace"] {
        for call in source.split(&format!("tracing::{level}!(")).skip(1) {
            let mut arguments = Vec::new();
            let mut rest = call.trim_start();
            while !rest.starts_with('"') {
                let end = end_of_argument(rest);
                arguments.push(rest[..end].trim().to_string());
                rest = rest[end..].trim_start_matches(',').trim_start();
            }
            found.push(arguments);
        }
    }
    found
}

fn end_of_argument(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => return at,
            _ => {}
        }
        assert!(depth >= 0, "an event without words: {text:.80}");
    }
    text.len()
}

/// The names in backticks in the first column of the table under a header.
fn column(page: &str, header: &str) -> BTreeSet<String> {
    let table = page.split_once(&format!("| {header} | ")).map(|(_, table)| table).unwrap_or_default();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(String::from).collect()
}

#[test]
fn every_event_has_a_documented_target_and_documented_fields() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/metrics.md")).expect("docs/metrics.md is there");
    let (targets, fields) = (column(&page, "target"), column(&page, "field"));
    assert!(targets.contains("replikv::master") && fields.contains("error"), "{targets:?} {fields:?}");
    let mut paths = Vec::new();
    let crates = std::fs::read_dir(root.join("crates")).expect("there are crates").flatten();
    crates.for_each(|krate| sources(&krate.path().join("src"), &mut paths));
    let mut seen = BTreeSet::new();
    let mut count = 0;
    for path in paths {
        let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for event in events(&source) {
            count += 1;
            let (target, rest) = event.split_first().unwrap_or_else(|| panic!("{}: no target", path.display()));
            let target = target.strip_prefix("target: \"").and_then(|target| target.strip_suffix('"'));
            let target = target.unwrap_or_else(|| panic!("{}: no target in {event:?}", path.display()));
            assert!(targets.contains(target), "{}: {target} is not documented", path.display());
            seen.insert(target.to_string());
            for field in rest {
                let name = field.split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?']);
                assert!(fields.contains(name), "{}: the field {name} is not documented", path.display());
            }
        }
    }
    assert!(count >= AT_LEAST, "only {count} events were found");
    assert_eq!(seen, targets, "every target is used");
}
