//! Import and export.

use crate::support::{Place, Running, contents, program, put_back_into_copy, run, run_with};

/// Keys and values that break what is not careful, in key order, as NDJSON.
const ODD: &str = r#"{"key":"\u0000","value_b64":"/wA="}
{"key":"a","value":""}
{"key":"a b","value":"comma, \"quote\" and ' too"}
{"key":"größe","value":"日本語"}
{"key":"line\nbreak","value":"x\r\ny\tz"}
{"key_b64":"/v8=","value":"text"}
{"key_b64":"//8=","value_b64":"gIE="}
"#;

fn json(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_exported_is_imported_again_in_every_format() {
    let place = Place::new();
    let first = place.lmdb("first");
    // In no order, and spaces and empty lines around.
    let shuffled: String = ODD.lines().rev().map(|line| format!("  {line}\r\n\n")).collect();
    run_with(&["import", "--store", &first, "-"], shuffled.as_bytes()).ok();
    assert_eq!(json(&contents(&first)), json(ODD), "in key order");
    for kind in ["lmdb", "sled"] {
        for extension in ["ndjson", "csv"] {
            let file = place.name(&format!("{kind}.{extension}"));
            let exported = run(&["export", "--store", &first, &file]).ok();
            assert_eq!(exported.stderr, "exported 7 entries\n");
            let second = place.url(kind, &format!("{kind}-{extension}"));
            run(&["import", "--store", &second, &file]).ok();
            assert_eq!(contents(&second), contents(&first), "{kind} {extension}");
            // Over standard output and input, with the format said.
            let piped = run(&["export", "--store", &second, "--format", extension]).ok();
            assert_eq!(piped.stdout, std::fs::read(&file).unwrap());
            let third = place.url(kind, &format!("{kind}-{extension}-piped"));
            run_with(&["import", "--store", &third, "--format", extension, "-"], &piped.stdout).ok();
            assert_eq!(contents(&third), contents(&first), "{kind} {extension}");
        }
    }
}

// As root, a rename would replace a device of that name.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_written_to() {
    use std::os::unix::fs::FileTypeExt;
    let place = Place::new();
    let store = place.lmdb("store");
    run(&["put", "--store", &store, "k", "v"]).ok();
    let pipe = place.name("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let exporting = Running::spawn(&["export", "--store", &store, "--format", "tsv", &pipe]);
    let reading = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    assert_eq!(exporting.end_by_itself().ok().stderr, "exported 1 entries\n");
    assert_eq!(reading.join().unwrap(), b"k\tv\n");
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn standard_output_is_written_to_whatever_it_is() {
    let place = Place::new();
    let store = place.lmdb("store");
    run(&["put", "--store", &store, "k", "v"]).ok();
    for (name, redirect) in [("/dev/stdout", "1>>"), ("/dev/fd/3", "3>>")] {
        let out = place.file("out", "before\n");
        let script = format!(r#""$0" export --store "$1" --format tsv {name} {redirect}"$2""#);
        let args = [program().get_program(), store.as_ref(), out.as_ref()].map(std::ffi::OsStr::to_os_string);
        assert!(std::process::Command::new("sh").arg("-c").arg(script).args(args).status().unwrap().success());
        assert_eq!(std::fs::read(&out).unwrap(), b"before\nk\tv\n", "{name}");
    }
}

#[test]
fn a_store_is_not_exported_over_itself() {
    let place = Place::new();
    let (lmdb, redb) = (place.lmdb("store"), place.url("redb", "file"));
    for (store, file) in [(lmdb, "store/data.mdb"), (redb, "file")] {
        run(&["put", "--store", &store, "k", "v"]).ok();
        let file = place.name(file);
        run(&["export", "--store", &store, "--format", "tsv", &file]).says(2, "it is a part of the store");
        assert_eq!(run(&["get", "--store", &store, "k"]).ok().text(), "v");
    }
}

#[test]
fn what_is_no_state_of_a_master_is_not_taken_for_one() {
    let place = Place::new();
    let (slave, words) = (place.lmdb("slave"), "the slave is not done with copying");
    let (_master, address) = Running::master(&place.filled("master"), &[]);
    run(&["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"]).ok();
    let whole = contents(&slave);
    put_back_into_copy(&place.path("slave"));
    run(&["export", "--store", &slave]).says(2, words);
    let part = run(&["export", "--store", &slave, "--partial"]).ok();
    assert!(part.text() == whole && part.stderr.contains(words), "{part:?}");
    let scanned = run(&["scan", "--store", &slave]).ok();
    assert!(scanned.stderr.contains("what is not found may be missing only here"), "{scanned:?}");
    let backed_up = run(&["backup", "--store", &slave, &place.name("backup")]).ok();
    assert!(backed_up.stderr.contains(words), "{backed_up:?}");
}

#[test]
fn tsv_holds_bytes_and_refuses_what_it_cannot_hold() {
    let place = Place::new();
    let store = place.lmdb("store");
    let lines = b"\x00\xFF\t\xFE\nempty\t\nkey\twith\ttabs\nend\tcr\r";
    let file = place.file("in.tsv", lines);
    run(&["import", "--store", &store, &file]).ok();
    let out = place.name("out.tsv");
    run(&["export", "--store", &store, &out]).ok();
    assert_eq!(std::fs::read(&out).unwrap(), b"\x00\xFF\t\xFE\nempty\t\nend\tcr\r\nkey\twith\ttabs\n");
    let second = place.lmdb("second");
    run(&["import", "--store", &second, &out]).ok();
    assert_eq!(contents(&second), contents(&store));

    for (key, value) in [("k", "a\nb"), ("k\nl", "v"), ("k\tl", "v")] {
        run(&["put", "--store", &second, key, value]).ok();
        let refused = run(&["export", "--store", &second, &out]).says(2, "does not fit into TSV; use NDJSON or CSV");
        assert!(refused.stderr.contains(&format!("{}", key.escape_default())), "{refused:?}");
        run(&["del", "--store", &second, key]).ok();
    }
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), 4, "no half of a file is left");
    run(&["export", "--store", &second, &out]).ok();
}

#[test]
fn csv_columns_are_found_by_name() {
    let place = Place::new();
    let store = place.lmdb("store");
    let file = place.file("towns.csv", "id,\"name\",people\r\n2,\"Bad \"\"B\"\"\",7\r\n1,Aa,\r\n");
    let import = |more: &[&str]| run(&[&["import", "--store", &store, &file], more].concat());
    import(&[]).says(2, "line 1: there is no column \"key\"");
    import(&["--key-column", "id"]).says(2, "line 1: there is no column \"value\"");
    import(&["--key-column", "id", "--value-column", "name"]).ok();
    import(&["--key-column", "name", "--value-column", "people"]).ok();
    let found = run(&["export", "--store", &store, "--format", "tsv"]).ok();
    assert_eq!(found.text(), "1\tAa\n2\tBad \"B\"\nAa\t\nBad \"B\"\t7\n");
}

#[test]
fn an_import_says_what_it_did_and_shows_no_bars_to_a_file() {
    let place = Place::new();
    let store = place.lmdb("store");
    let lines: String = (0..2500).map(|n| format!("k{n:05}\tv{n}\n")).collect();
    let file = place.file("many.tsv", lines);
    let ended = run(&["import", "--store", &store, &file]).ok();
    assert!(ended.stderr.starts_with("imported 2,500 entries in ") && ended.stderr.lines().count() == 1, "{ended:?}");
    assert!(!ended.stderr.contains(['\r', '\u{1b}']) && ended.stdout.is_empty(), "{ended:?}");
    let json = run(&["import", "--store", &store, &file, "--json"]).ok();
    assert_eq!(json.json()["entries"], 2500);
    assert_eq!(json.json()["complete"], true);
    assert!(json.stderr.is_empty(), "{json:?}");
    let out = place.name("out.tsv");
    let exported = run(&["export", "--store", &store, &out, "--json"]).ok();
    assert_eq!(exported.json()["entries"], 2500);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&file).unwrap());
    // Through the log: so few entries are one record, each time.
    assert_eq!(run(&["log", "--store", &store]).ok().text().matches(" batch ").count(), 2);
}

#[test]
fn an_empty_file_is_an_import_of_nothing() {
    let place = Place::new();
    let store = place.filled("store");
    let before = contents(&store);
    for file in [place.file("empty.ndjson", ""), place.file("empty.tsv", ""), place.file("empty.csv", "key,value\n")] {
        assert_eq!(run(&["import", "--store", &store, &file, "--json"]).ok().json()["entries"], 0);
    }
    assert_eq!(contents(&store), before);
    let empty = place.lmdb("empty");
    run_with(&["import", "--store", &empty, "-"], b"").ok();
    assert_eq!(contents(&empty), "");
    assert_eq!(run(&["export", "--store", &empty, "--format", "csv"]).ok().text(), "key,value\n");
}
