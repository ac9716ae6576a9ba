//! Commands that print data.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::json;

use crate::support::{Place, contents, fill, program, run, run_with};

#[test]
fn get_put_and_del_are_about_one_key() {
    let place = Place::new();
    for kind in ["lmdb", "sled"] {
        let store = place.url(kind, kind);
        let put = run(&["put", "--store", &store, "key", "value"]).ok();
        assert!(put.stdout.is_empty() && put.stderr.is_empty(), "{put:?}");
        assert_eq!(run(&["get", "--store", &store, "key"]).ok().text(), "value");
        assert_eq!(
            run(&["get", "--store", &store, "key", "--json"]).ok().json(),
            json!({ "key": "key", "value": "value" })
        );
        let put = run(&["put", "--store", &store, "key", "", "--json"]).ok().json();
        assert_eq!(put["seq"], 3);
        assert_eq!(put["source"].as_str().map(str::len), Some(32));
        assert_eq!(run(&["get", "--store", &store, "key"]).ok().text(), "", "an empty value is one");
        run(&["get", "--store", &store, "other"]).says(1, "no such key");
        run(&["get", "--store", &store, "other", "--json"]).says(1, "no such key");
        assert_eq!(run(&["del", "--store", &store, "key", "--json"]).ok().json()["seq"], 4);
        run(&["get", "--store", &store, "key"]).says(1, "no such key");
        run(&["del", "--store", &store, "key"]).ok();
    }
    // Bytes as they are.
    let store = place.lmdb("bytes");
    run_with(&["import", "--store", &store, "-"], br#"{"key":"k","value_b64":"AP8K"}"#).ok();
    assert_eq!(run(&["get", "--store", &store, "k"]).ok().stdout, b"\x00\xFF\x0A");
    let json = run(&["get", "--store", &store, "k", "--json"]).ok().json();
    assert_eq!(json, json!({ "key": "k", "value_b64": "AP8K" }));
}

#[test]
fn scan_prints_what_was_asked_for() {
    let place = Place::new();
    let store = place.lmdb("store");
    fill(&store, &[("b/1", "1"), ("a", "0"), ("b/2", "2"), ("b/3", "3"), ("c", "4")]);
    let keys = |more: &[&str]| {
        let ended = run(&[&["scan", "--store", &store], more].concat()).ok();
        ended.lines().iter().map(|line| line.split('\t').next().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(run(&["scan", "--store", &store, "--limit", "2"]).ok().text(), "a\t0\nb/1\t1\n");
    assert_eq!(keys(&[]), ["a", "b/1", "b/2", "b/3", "c"]);
    assert_eq!(keys(&["--reverse"]), ["c", "b/3", "b/2", "b/1", "a"]);
    assert_eq!(keys(&["--prefix", "b/"]), ["b/1", "b/2", "b/3"]);
    assert_eq!(keys(&["--prefix", "b/", "--reverse", "--limit", "1"]), ["b/3"]);
    assert_eq!(keys(&["--start", "b/2"]), ["b/2", "b/3", "c"]);
    assert_eq!(keys(&["--end", "b/2"]), ["a", "b/1"]);
    assert_eq!(keys(&["--start", "b/2", "--end", "c", "--limit", "9"]), ["b/2", "b/3"]);
    assert_eq!(keys(&["--prefix", "b/", "--start", "b/2", "--end", "b/3"]), ["b/2"]);
    assert!(keys(&["--start", "c", "--end", "a"]).is_empty());
    assert!(keys(&["--limit", "0"]).is_empty());
    assert!(keys(&["--prefix", "none"]).is_empty());
    let json = run(&["scan", "--store", &store, "--prefix", "b/", "--json"]).ok().json_lines();
    assert_eq!(json[0], json!({ "key": "b/1", "value": "1" }));
    assert_eq!(json.len(), 3);
    // What could move the cursor is escaped.
    run(&["put", "--store", &store, "z\u{1b}", "a\nb"]).ok();
    assert_eq!(run(&["scan", "--store", &store, "--start", "z"]).ok().text(), "z\\x1b\ta\\nb\n");
}

#[test]
fn pages_of_a_scan_join_without_a_gap() {
    let place = Place::new();
    let store = place.lmdb("store");
    let lines: String = (0..25_000).map(|n| format!("{n:06}\t{n}\n")).collect();
    let file = place.file("many.tsv", &lines);
    run(&["import", "--store", &store, &file]).ok();
    let all = run(&["scan", "--store", &store]).ok();
    assert!(all.text() == lines, "25,000 entries in order");
    let reverse = run(&["scan", "--store", &store, "--reverse", "--limit", "12345"]).ok();
    let expected: Vec<_> = lines.lines().rev().take(12_345).collect();
    assert!(reverse.lines() == expected);
}

#[test]
fn verify_answers_by_its_exit_code_and_says_where() {
    let place = Place::new();
    let one = place.filled("one");
    let two = place.url("sled", "two");
    let exported = run(&["export", "--store", &one]).ok();
    run_with(&["import", "--store", &two, "-"], &exported.stdout).ok();
    let verify = |more: &[&str]| run(&[&["verify", "--store", &one, "--store", &two], more].concat());
    assert_eq!(verify(&[]).ok().text(), "equal: 4 entries\n");
    let equal = verify(&["--json"]).ok().json();
    assert_eq!(equal["equal"], true);
    assert_eq!(equal["counts"]["equal"], 4);

    run(&["put", "--store", &two, "banana", "other"]).ok();
    run(&["put", "--store", &two, "elder", "5"]).ok();
    run(&["del", "--store", &two, "apple"]).ok();
    run_with(&["import", "--store", &two, "-"], br#"{"key_b64":"/w==","value":"x"}"#).ok();
    let ended = verify(&[]).code(1);
    let expected = [
        format!("apple: only in {one}"),
        "banana: values differ".into(),
        format!("elder: only in {two}"),
        format!("\\xff: only in {two}"),
        format!("different: 2 equal, 1 values differ, 1 only in {one}, 2 only in {two}"),
    ];
    assert_eq!(ended.lines(), expected);
    assert!(ended.stderr.is_empty());
    assert_eq!(verify(&["--show", "1"]).code(1).lines().len(), 2);
    let json = verify(&["--json"]).code(1).json();
    let differences = json!([
        { "key": "apple", "kind": "only_first" }, { "key": "banana", "kind": "values" },
        { "key": "elder", "kind": "only_second" }, { "key_b64": "/w==", "kind": "only_second" },
    ]);
    assert_eq!(json["differences"], differences);
    assert_eq!(json["equal"], false);
    run(&["verify", "--store", &one, "--store", &place.lmdb("none")]).says(2, "there is no such store");
}

#[test]
fn the_log_is_printed_from_where_it_was_asked_for() {
    let place = Place::new();
    let store = place.lmdb("store");
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        run(&["put", "--store", &store, key, value]).ok();
    }
    run(&["del", "--store", &store, "b"]).ok();
    run_with(&["import", "--store", &store, "-"], br#"{"key_b64":"/w==","value_b64":"/g=="}"#).ok();
    let log = |more: &[&str]| run(&[&["log", "--store", &store], more].concat()).ok();
    let all = log(&["--json"]).json_lines();
    let seqs: Vec<_> = all.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    assert_eq!(all[0]["kind"], "epoch");
    assert_eq!(all[1]["ops"], json!([{ "op": "put", "key": "a", "value": "1" }]));
    assert_eq!(all[4]["ops"], json!([{ "op": "delete", "key": "b" }]));
    assert_eq!(all[5]["ops"], json!([{ "op": "put", "key_b64": "/w==", "value_b64": "/g==" }]));
    assert_eq!(all[5]["digest"].as_str().map(str::len), Some(32));
    let words = log(&["--from", "2", "--limit", "1"]);
    assert!(
        words.text().starts_with("2 batch epoch 1 time ") && words.text().ends_with("\n    put a  1\n"),
        "{words:?}"
    );
    assert_eq!(log(&["--from", "5", "--json"]).json_lines().len(), 2);
    assert_eq!(log(&["--from", "1", "--limit", "4", "--json"]).json_lines().len(), 4);
    assert!(log(&["--from", "7"]).stdout.is_empty());
    assert!(log(&["--limit", "0"]).stdout.is_empty());
    // Ends by itself when it has printed what it was asked for.
    assert_eq!(log(&["--follow", "--limit", "2"]).text().matches(" time ").count(), 2);
}

#[test]
fn status_of_a_store_says_its_role() {
    let place = Place::new();
    let store = place.filled("store");
    let status = run(&["status", "--store", &store, "--json"]).ok().json();
    assert_eq!(status["role"], "master");
    assert_eq!(status["head"]["seq"], 2);
    assert_eq!(status["source"].as_str().map(str::len), Some(32));
    assert_eq!(status["head"]["source"], status["source"]);
    let words = run(&["status", "--store", &store]).ok();
    assert!(
        words.text().contains("role: master\n") && words.text().contains("head: record 2, epoch 1, digest "),
        "{words:?}"
    );
    assert!(!words.text().contains("\n\n"), "{words:?}");
    let nobody = run(&["status", "--store", "memory:", "--json"]).ok().json();
    assert_eq!(nobody["role"], serde_json::Value::Null);
}

#[test]
fn a_reader_that_has_enough_ends_a_command_quietly() {
    let place = Place::new();
    let store = place.lmdb("store");
    let lines: String = (0..20_000).map(|n| format!("{n:06}\tvalue {n}\n")).collect();
    run(&["import", "--store", &store, &place.file("many.tsv", &lines)]).ok();
    let large = place.file("large.tsv", format!("large\t{}\n", "v".repeat(1 << 20)));
    run(&["import", "--store", &store, &large]).ok();
    let before = contents(&store);
    let commands: [&[&str]; 9] = [
        &["scan", "--store", &store],
        &["scan", "--store", &store, "--json", "--reverse"],
        &["export", "--store", &store],
        &["export", "--store", &store, "--format", "csv"],
        &["export", "--store", &store, "--format", "tsv"],
        &["log", "--store", &store],
        &["log", "--store", &store, "--json", "--follow"],
        &["get", "--store", &store, "large"],
        &["completions", "bash"],
    ];
    for command in commands {
        let pipe = Stdio::piped;
        let mut child = program().args(command).stdin(Stdio::null()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
        let mut output = BufReader::with_capacity(16, child.stdout.take().unwrap());
        assert!(!output.fill_buf().unwrap().is_empty());
        drop(output);
        let mut words = String::new();
        child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{command:?}: {words}");
        assert_eq!(words, "", "{command:?}");
    }
    assert!(contents(&store) == before);
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = run(&["completions", shell]).ok();
        for command in ["demo", "serve", "follow", "import", "export", "verify", "status", "bench"] {
            assert!(ended.text().contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn a_benchmark_prints_a_row_for_each_store() {
    let place = Place::new();
    std::fs::create_dir(place.path("dir")).unwrap();
    let dir = place.name("dir");
    let small = ["bench", "--entries", "300", "--rounds", "1", "--dir", &dir];
    let json = run(&[&small[..], &["--json"]].concat()).ok().json();
    let stores: Vec<_> = json.as_array().unwrap().iter().map(|row| row["store"].as_str().unwrap()).collect();
    assert_eq!(stores, ["lmdb", "sled", "redb", "fjall", "memory"]);
    assert!(json[0]["raw"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_dir(place.path("dir")).unwrap().next().is_none(), "nothing is left behind");
}
