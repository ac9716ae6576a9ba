//! Slaves that subscribe to key ranges, by the program alone.

use std::io::Write;

use serde_json::json;

use crate::support::{Place, Running, contents, fill, run};

fn entries(entries: &[(&str, &str)]) -> String {
    entries.iter().map(|(key, value)| json!({ "key": key, "value": value }).to_string() + "\n").collect()
}

const ALL: &[(&str, &str)] = &[("apple", "1"), ("banana", "2"), ("cherry", "3"), ("damson", "4")];

fn follow(store: &str, address: &str, more: &[&str]) -> crate::support::Ended {
    let args = ["follow", "--store", store, "--id", "edge", "--from", address, "--once"];
    run(&[&args[..], more].concat())
}

#[test]
fn a_slave_subscribes_and_changes_what_it_subscribes_to() {
    let place = Place::new();
    let store = place.filled("master");
    let (master, address) = Running::master(&store, &[]);
    let slave = place.url("sled", "slave");
    follow(&slave, &address, &["--range", "b..c", "--prefix", "d"]).ok();
    assert_eq!(contents(&slave), entries(&[ALL[1], ALL[3]]));
    let status = run(&["status", "--store", &slave, "--json"]).ok().json();
    assert_eq!(status["ranges"], json!([{ "start": "b", "end": "c" }, { "start": "d", "end": "e" }]));
    assert_eq!(status["consistent"], true);
    // Said once, it stays; said anew, it changes.
    follow(&slave, &address, &[]).ok();
    assert_eq!(contents(&slave), entries(&[ALL[1], ALL[3]]));
    follow(&slave, &address, &["--range", "..c"]).ok();
    assert_eq!(contents(&slave), entries(&ALL[..2]));
    run(&["verify", "--store", &slave, "--from", &address]).ok();
    follow(&slave, &address, &["--range", ".."]).ok();
    assert_eq!(contents(&slave), entries(ALL));
    assert_eq!(run(&["status", "--store", &slave, "--json"]).ok().json()["ranges"], json!(null));
    master.interrupt("INT").ok();
    run(&["verify", "--store", &store, "--store", &slave]).ok();
}

#[test]
fn what_it_does_not_subscribe_to_is_said_to_be_so() {
    let place = Place::new();
    let store = place.filled("master");
    let (master, address) = Running::master(&store, &[]);
    let slave = place.lmdb("slave");
    follow(&slave, &address, &["--prefix", "b"]).ok();
    assert_eq!(run(&["get", "--store", &slave, "banana"]).ok().text(), "2");
    run(&["get", "--store", &slave, "bilberry"]).code(1);
    let words = "lies outside of the key ranges that this slave subscribes to";
    run(&["get", "--store", &slave, "apple"]).says(2, words);
    run(&["scan", "--store", &slave]).says(2, words);
    assert_eq!(run(&["scan", "--store", &slave, "--prefix", "b"]).ok().lines().len(), 1);
    run(&["promote", "--store", &slave]).says(2, "the slave subscribes to a part of the keys, b..c");
    assert!(run(&["export", "--store", &slave]).ok().stderr.contains("a part of the keys: b..c"));
    // And so does one that runs.
    let args = ["--prefix", "b", "--serve-reads", "127.0.0.1:0"];
    let running =
        Running::spawn(&[&["follow", "--store", &slave, "--id", "edge", "--from", &address][..], &args[..]].concat());
    let lines = [running.line(), running.line()];
    let reads = lines.iter().find_map(|line| line.split_once(" on ")).map(|(_, address)| address.to_owned());
    let reads = reads.unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!(run(&["get", "--from", &reads, "banana"]).ok().text(), "2");
    run(&["get", "--from", &reads, "apple"]).says(2, words);
    let status = run(&["status", "--from", &reads, "--json"]).ok().json();
    assert_eq!(status["ranges"], json!([{ "start": "b", "end": "c" }]));
    let seen = run(&["status", "--from", &address, "--json"]).ok().json();
    assert_eq!(seen["slaves"][0]["ranges"], json!([{ "start": "b", "end": "c" }]));
    running.interrupt("INT").ok();
    master.interrupt("INT").ok();
}

#[test]
fn a_link_subscribes_to_a_part_of_its_masters_keys() {
    let place = Place::new();
    let (one, two) = (place.filled("one"), place.lmdb("two"));
    fill(&two, &[("apple", "other"), ("zucchini", "other")]);
    let ((mut first, at_one), (second, at_two)) = (Running::master(&one, &["--stdin"]), Running::master(&two, &[]));
    let centre = place.lmdb("centre");
    let (link_one, link_two) = (format!("one={at_one}"), format!("two={at_two}"));
    let links = ["gather", "--store", &centre, "--link", &link_one, "--link", &link_two, "--once"];
    run(&[&links[..], &["--only", "one=b", "--range", "one=d..e"]].concat()).ok();
    let two = [("two/apple", "other"), ("two/zucchini", "other")];
    let held = [&[("one/banana", "2"), ("one/damson", "4")][..], &two].concat();
    assert_eq!(contents(&centre), entries(&held));
    let mut seen = run(&["status", "--store", &centre, "--json"]).ok().json();
    let links_seen = seen["links"].take();
    assert_eq!(links_seen[0]["ranges"], json!([{ "start": "b", "end": "c" }, { "start": "d", "end": "e" }]));
    assert_eq!(links_seen[1]["ranges"], json!(null));
    writeln!(first.input(), "{}", json!({ "op": "delete_range", "start": "a", "end": "c" })).unwrap();
    while run(&["get", "--from", &at_one, "banana"]).code != Some(1) {}
    run(&links).ok();
    assert_eq!(contents(&centre), entries(&[&[("one/damson", "4")][..], &two].concat()));
    run(&[&links[..], &["--only", "three=b"]].concat()).says(2, "there is no link three");
    first.interrupt("INT").ok();
    second.interrupt("INT").ok();
}

#[test]
fn what_is_no_range_is_refused() {
    let place = Place::new();
    for range in ["a", "b..a", "a..a"] {
        follow(&place.lmdb("slave"), "127.0.0.1:1", &["--range", range]).code(2);
    }
    assert!(!place.path("slave").exists());
}
