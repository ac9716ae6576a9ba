//! The demonstration.

use crate::support::{Place, run};

#[test]
fn the_demo_ends_with_three_equal_stores() {
    let ended = run(&["demo", "--json"]).ok();
    let figures = ended.json();
    assert_eq!(figures["equal"], true, "{ended:?}");
    assert_eq!(figures["entries"], 34_924);
    assert!(figures["killed_at"].as_u64().unwrap() <= figures["head_at_resume"].as_u64().unwrap(), "{ended:?}");
    assert!(figures["compared"].as_u64().unwrap() > 30_000, "{ended:?}");
    assert!(!ended.stderr.contains(['\r', '\u{1b}']), "{ended:?}");
}

#[test]
fn the_demo_takes_a_file_of_ones_own() {
    let place = Place::new();
    let lines: String = (0..500).map(|n| format!("key {n:04},\"value, {n}\"\n")).collect();
    let file = place.file("own.csv", format!("key,value\n{lines}"));
    let ended = run(&["demo", "--input", &file]).ok();
    assert!(ended.text().contains("master and both slaves are equal: "), "{ended:?}");
    assert!(ended.stderr.contains("- imported 500 entries into an LMDB master\n"), "{ended:?}");
    run(&["demo", "--input", &place.file("empty.ndjson", "")]).says(2, "there is nothing to import");
    run(&["demo", "--input", &place.file("broken.tsv", "k\tv\nno tab\n")]).says(2, "line 2: there is no");
}
