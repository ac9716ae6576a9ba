//! Backups, what becomes of slaves after one was restored, and slots that nobody needs.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{HANG, Place, Running, contents, fill, run, run_with};

fn lines_of(path: &str) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn published(address: &str) -> u64 {
    run(&["status", "--from", address, "--json"]).ok().json()["published"]["seq"].as_u64().unwrap()
}

// Everything that the pipe was given before.
fn settle(master: &mut Running, address: &str, key: &str) -> u64 {
    let before = published(address);
    writeln!(master.input(), "{}", json!({ "key": key, "value": "settled" })).unwrap();
    loop {
        let now = published(address);
        if now > before {
            return now;
        }
    }
}

#[test]
fn a_backup_is_taken_beside_a_running_master_and_goes_on_as_its_slave() {
    let place = Place::new();
    let store = place.lmdb("central");
    let entries: String = (0..20_000).map(|n| format!("k{n:06}\t{n}\n")).collect();
    let (mut master, address) = Running::master(&store, &["--stdin", "--import", &place.file("entries.tsv", entries)]);
    assert_eq!(master.error_line(), "imported 20,000 entries");
    for kind in ["lmdb", "sled", "redb", "fjall"] {
        let url = place.url(kind, &format!("backup-{kind}"));
        let destination = if kind == "lmdb" { place.name("backup-lmdb") } else { url.clone() };
        let taken = run(&["backup", "--store", &store, &destination, "--json"]).ok().json();
        assert_eq!((&taken["backup"], &taken["role"]), (&json!(url), &json!("master")));
        assert_eq!(taken["seq"], published(&address));
        let status = run(&["status", "--store", &url, "--json"]).ok().json();
        assert_eq!(status["role"], "master");
        assert!(status["backup"]["taken_unix_ms"].is_u64(), "{status}");

        // Not by accident.
        for args in [
            &["serve", "--store", &url, "--listen", "127.0.0.1:0"][..],
            &["put", "--store", &url, "a", "1"],
            &["del", "--store", &url, "a"],
            &["follow", "--store", &url, "--from", &address, "--id", "copy", "--once"],
        ] {
            run(args).says(2, "it is a backup of a master").says(2, "--new-epoch");
        }
        run_with(&["import", "--store", &url, "-"], b"{\"key\":\"a\",\"value\":\"1\"}\n").says(2, "--as-slave");

        let seq = settle(&mut master, &address, kind);
        let args = ["follow", "--store", &url, "--from", &address, "--as-slave", kind, "--once", "--json"];
        let ended = run(&args).ok();
        let lines = ended.json_lines();
        assert_eq!(lines[0]["id"], kind);
        assert_eq!((&lines[1]["seq"], &lines[1]["records"]), (&json!(seq), &json!(1)), "only what came since");
        // It is a slave's now, and the flag is of no consequence any more.
        run(&["follow", "--store", &url, "--from", &address, "--id", kind, "--once"]).ok();
        run(&args).ok();
        if kind == "lmdb" {
            run(&["verify", "--store", &store, "--store", &url]).ok();
        }
    }
    for kind in ["lmdb", "sled", "redb"] {
        let copy = place.url(kind, &format!("backup-{kind}"));
        run(&["follow", "--store", &copy, "--from", &address, "--id", kind, "--once"]).ok();
    }
    master.interrupt("INT").ok();
    for kind in ["lmdb", "sled", "redb", "fjall"] {
        run(&["verify", "--store", &store, "--store", &place.url(kind, &format!("backup-{kind}"))]).ok();
    }
}

#[test]
fn a_backup_goes_where_nothing_is_and_nothing_is_left_of_one_that_failed() {
    let place = Place::new();
    let store = place.filled("central");
    let destination = place.name("backup");
    let partial = place.path(".backup.replikv-partial");
    // What a crash leaves: no store of that name, and no obstacle.
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("data.mdb"), "torn").unwrap();
    run(&["export", "--store", &place.lmdb("backup")]).says(2, "there is no such store");
    std::fs::create_dir(&destination).unwrap();
    let ended = run(&["backup", "--store", &store, &destination]).ok();
    assert!(ended.stderr.contains("backed up master's store at record 2"), "{ended:?}");
    assert!(!partial.exists());
    assert_eq!(contents(&place.lmdb("backup")), contents(&store));
    run(&["backup", "--store", &store, &destination]).says(2, "it is not empty");
    std::fs::write(place.path("file"), "words").unwrap();
    run(&["backup", "--store", &store, &place.name("file")]).code(2);
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"words");
    for (from, to, words) in [
        ("memory:", &destination[..], "only what is on a disk"),
        (&place.lmdb("none"), &place.name("other"), "there is no such store"),
        (&place.url("sled", "none"), &place.name("other"), "there is no such store"),
        (&store, "memory:", "gone with this command"),
    ] {
        run(&["backup", "--store", from, to]).says(2, words);
    }
    assert!(!Path::new(&place.name("other")).exists());
    assert_eq!(std::fs::read_dir(place.path("central")).unwrap().count(), 3, "data.mdb, lock.mdb, replikv.lock");
}

#[test]
fn sled_is_backed_up_while_nobody_has_it_open_and_says_so() {
    is_backed_up_while_nobody_has_it_open("sled");
}

#[test]
fn redb_is_backed_up_while_nobody_has_it_open_and_says_so() {
    is_backed_up_while_nobody_has_it_open("redb");
}

#[test]
fn fjall_is_backed_up_while_nobody_has_it_open_and_says_so() {
    is_backed_up_while_nobody_has_it_open("fjall");
}

fn is_backed_up_while_nobody_has_it_open(kind: &str) {
    let place = Place::new();
    let store = place.url(kind, "central");
    fill(&store, &[("apple", "1"), ("banana", "2")]);
    let (master, address) = Running::master(&store, &[]);
    let backup = place.url(kind, "backup");
    run(&["backup", "--store", &store, &backup]).says(2, "it is in use by another process");
    assert!(!place.path("backup").exists());
    master.interrupt("TERM").ok();
    // What a crash leaves is no obstacle.
    std::fs::write(place.path(".backup.replikv-partial"), "half of a file").unwrap();
    run(&["backup", "--store", &store, &backup]).ok();
    assert!(!place.path(".backup.replikv-partial").exists());
    assert_eq!(contents(&backup), contents(&store));
    run(&["backup", "--store", &store, &backup]).says(2, "choose another place");
    run(&["restore", &backup, &place.name("restored")]).ok();
    assert_eq!(contents(&place.url(kind, "restored")), contents(&store));
    run(&["serve", "--store", &backup, "--listen", &address]).says(2, "it is a backup of a master");
    // A slave's, too.
    let (master, address) = Running::master(&store, &[]);
    let slave = place.url(kind, "slave");
    run(&["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"]).ok();
    let taken = run(&["backup", "--store", &slave, &place.lmdb("copy"), "--json"]).ok().json();
    assert_eq!((&taken["role"], &taken["seq"]), (&json!("slave"), &json!(2)));
    run(&["follow", "--store", &place.lmdb("copy"), "--from", &address, "--id", "copy", "--once"]).ok();
    master.interrupt("TERM").ok();
    run(&["verify", "--store", &store, "--store", &place.lmdb("copy")]).ok();
}

#[test]
fn of_two_backups_to_one_place_one_is_refused_and_the_other_one_is_whole_lmdb() {
    one_is_refused_and_the_other_one_is_whole("lmdb");
}

#[test]
fn of_two_backups_to_one_place_one_is_refused_and_the_other_one_is_whole_sled() {
    one_is_refused_and_the_other_one_is_whole("sled");
}

#[test]
fn of_two_backups_to_one_place_one_is_refused_and_the_other_one_is_whole_redb() {
    one_is_refused_and_the_other_one_is_whole("redb");
}

#[test]
fn of_two_backups_to_one_place_one_is_refused_and_the_other_one_is_whole_fjall() {
    one_is_refused_and_the_other_one_is_whole("fjall");
}

fn one_is_refused_and_the_other_one_is_whole(kind: &str) {
    let place = Place::new();
    let store = large(&place);
    let backup = place.url(kind, "backup");
    let args = ["backup", "--store", &store, &backup];
    let refused = format!("another backup to {} is under way", place.name("backup"));
    let first = halfway(&place, "backup", &args);
    run(&args).says(2, &refused);
    // Of another kind, it would be made in the same place.
    run(&["backup", "--store", &store, &place.url("lmdb", "backup")]).says(2, &refused);
    // What a kill leaves is in nobody's way.
    first.interrupt("KILL");
    assert!(place.path(".backup.replikv-partial").exists());
    let second = halfway(&place, "backup", &args);
    run(&args).says(2, &refused);
    second.signal("CONT");
    second.end().ok();
    run(&args).says(2, "choose another place");
    let names = |place: &Place| -> Vec<_> {
        std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert!(!names(&place).iter().any(|name| name.to_string_lossy().starts_with('.')), "{:?}", names(&place));
    run(&["restore", &backup, &place.name("restored")]).ok();
    let same = |one: &str, two: &str| {
        run(&["verify", "--store", one, "--store", two]).ok();
    };
    same(&store, &place.url(kind, "restored"));
    // Both at once, as they come: the one that is not refused has made a backup.
    for round in 0..3 {
        let backup = place.url(kind, &format!("round-{round}"));
        let args = ["backup", "--store", &store, &backup];
        let mut codes = [Running::spawn(&args), Running::spawn(&args)].map(|one| one.end().code.unwrap());
        codes.sort_unstable();
        assert_eq!(codes, [0, 2], "round {round}");
        same(&store, &backup);
    }
}

#[test]
fn of_two_restores_to_one_place_one_is_refused() {
    let place = Place::new();
    let (store, backup, restored) = (large(&place), place.lmdb("backup"), place.lmdb("restored"));
    run(&["backup", "--store", &store, &backup]).ok();
    let args = ["restore", &backup, &restored];
    let first = halfway(&place, "restored", &args);
    run(&args).says(2, &format!("another restore to {} is under way", place.name("restored")));
    first.signal("CONT");
    first.end().ok();
    run(&["verify", "--store", &store, "--store", &restored]).ok();
}

#[test]
fn a_backup_does_not_replace_a_store_that_was_made_there_meanwhile() {
    for kind in ["redb", "lmdb"] {
        let place = Place::new();
        let store = large(&place);
        let backup = place.url(kind, "backup");
        let first = halfway(&place, "backup", &["backup", "--store", &store, &backup]);
        fill(&backup, &[("theirs", "1")]);
        first.signal("CONT");
        first.end().says(2, "choose another place");
        assert_eq!(run(&["get", "--store", &backup, "theirs"]).ok().text(), "1");
        assert!(!place.path(".backup.replikv-partial").exists());
    }
}

// So large that a copy of it is stopped before it is whole.
fn large(place: &Place) -> String {
    let store = place.lmdb("central");
    let entries: String = (0..1_500).map(|n| format!("k{n:06}\t{}\n", "v".repeat(20_000))).collect();
    run(&["import", "--store", &store, &place.file("entries.tsv", entries)]).ok();
    store
}

// Begins to make `name`, and is stopped.
fn halfway(place: &Place, name: &str, args: &[&str]) -> Running {
    let partial = place.path(&format!(".{name}.replikv-partial"));
    let left = begun(&partial);
    let start = Instant::now();
    loop {
        let running = Running::spawn(args);
        // What it makes: the lock is there before it is held, and what is left of another one until then.
        while begun(&partial).is_none_or(|found| Some(found) == left) && !place.path(name).exists() {
            assert!(start.elapsed() < HANG, "it makes nothing in {}", partial.display());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        running.signal("STOP");
        if !place.path(name).exists() {
            return running;
        }
        assert!(start.elapsed() < HANG, "it makes nothing in {}", partial.display());
        // It was too quick.
        running.signal("CONT");
        running.end().ok();
        let made = place.path(name);
        if made.is_dir() { std::fs::remove_dir_all(made) } else { std::fs::remove_file(made) }.unwrap();
    }
}

fn begun(partial: &Path) -> Option<std::ffi::OsString> {
    let names = std::fs::read_dir(partial).ok()?.filter_map(|entry| Some(entry.ok()?.file_name()));
    names.filter(|name| name != "replikv.lock").max()
}

#[test]
fn after_a_backup_is_restored_a_slave_that_was_further_resyncs_into_a_quarantine() {
    let place = Place::new();
    let store = place.filled("central");
    let (master, _) = Running::master(&store, &[]);
    let (slave, backup) = (place.url("sled", "slave"), place.lmdb("backup"));
    run(&["backup", "--store", &store, &backup]).ok();
    master.interrupt("TERM").ok();
    run(&["put", "--store", &store, "banana", "lost"]).ok();
    run_with(&["import", "--store", &store, "-"], b"{\"key_b64\":\"/w==\",\"value\":\"lost\"}\n").ok();
    let follow = |address: &str, more: &[&str]| {
        run(&[&["follow", "--store", &slave, "--from", address, "--id", "edge", "--once"], more].concat())
    };
    let (master, address) = Running::master(&store, &[]);
    follow(&address, &[]).ok();
    master.interrupt("TERM").ok();

    let (restored, address) = Running::master(&backup, &["--new-epoch"]);
    follow(&address, &[]).says(2, "this master's history ends at seq 3");
    let quarantine = place.name("lost.ndjson");
    follow(&address, &["--on-divergence", "resync"]).says(2, "--quarantine");
    follow(&address, &["--quarantine", &quarantine]).says(2, "--on-divergence resync");
    let nowhere = place.name("nowhere/lost.ndjson");
    follow(&address, &["--on-divergence", "resync", "--quarantine", &nowhere]).says(2, "nowhere");
    let before = contents(&slave);
    let ended = follow(&address, &["--on-divergence", "resync", "--quarantine", &quarantine]).ok();
    assert!(ended.stderr.contains("2 entries are kept in"), "{ended:?}");
    assert_ne!(contents(&slave), before);
    let lost = lines_of(&quarantine);
    assert_eq!((&lost[0]["key"], &lost[0]["value"]), (&json!("banana"), &json!("lost")));
    assert_eq!((&lost[1]["key_b64"], &lost[1]["value"]), (&json!("/w=="), &json!("lost")));
    assert_eq!((&lost[0]["quarantine"]["reason"], &lost[0]["quarantine"]["seq"]), (&json!("SlaveAhead"), &json!(4)));
    assert_eq!(lost.len(), 2);
    // Again, and there is nothing more to do.
    follow(&address, &["--on-divergence", "resync", "--quarantine", &quarantine]).ok();
    assert_eq!(lines_of(&quarantine), lost);
    restored.interrupt("TERM").ok();
    run(&["verify", "--store", &backup, "--store", &slave]).ok();
    // What was lost can be had back.
    run(&["import", "--store", &backup, &quarantine]).ok();
    assert_eq!(run(&["get", "--store", &backup, "banana"]).ok().text(), "lost");

    // Another source is not taken by the same words.
    let other = place.filled("other");
    let (other, address) = Running::master(&other, &[]);
    follow(&address, &["--on-divergence", "resync", "--quarantine", &quarantine]).says(2, "follows source");
    follow(&address, &["--on-divergence", "adopt-source", "--quarantine", &quarantine]).ok();
    assert!(lines_of(&quarantine).len() >= lost.len(), "appended");
    assert_eq!(lines_of(&quarantine)[..2], lost[..]);
    other.interrupt("TERM").ok();
    run(&["verify", "--store", &place.lmdb("other"), "--store", &slave]).ok();
}

// What was done to a slave behind its back is in no record: the stream goes on, and a comparison of the data finds it.
#[test]
fn a_slave_that_was_changed_behind_its_back_is_found_by_verify_and_not_by_the_stream() {
    use replikv::{Keyspace, LmdbOptions, LmdbStore, Op, ReplicaStore, ReplicaStoreExt};
    let place = Place::new();
    let store = place.filled("central");
    let slave = place.lmdb("slave");
    let follow = |address: &str| run(&["follow", "--store", &slave, "--from", address, "--id", "s", "--once"]);
    let (master, address) = Running::master(&store, &[]);
    follow(&address).ok();
    master.interrupt("TERM").ok();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let held = LmdbStore::open(place.path("slave"), LmdbOptions::default()).unwrap();
        held.apply_one(Keyspace::Data, Op::Put { key: b"banana", value: b"mine" }).await.unwrap();
        held.close().await.unwrap();
    });
    run(&["put", "--store", &store, "elder", "5"]).ok();
    let (master, address) = Running::master(&store, &[]);
    assert_eq!(follow(&address).ok().lines()[1], "caught up at record 3, 1 records applied");
    master.interrupt("TERM").ok();
    let found = run(&["verify", "--store", &store, "--store", &slave]).code(1);
    assert_eq!(found.lines()[0], "banana: values differ");
}

#[test]
fn a_slot_that_nobody_needs_is_forgotten() {
    let place = Place::new();
    let store = place.filled("central");
    let (master, address) = Running::master(&store, &[]);
    let slave = Running::spawn(&["follow", "--store", &place.lmdb("slave"), "--from", &address, "--id", "edge"]);
    assert!(slave.line().starts_with("following "));
    let slots = || {
        let status = run(&["status", "--from", &address, "--json"]).ok().json();
        status["slots"].as_array().unwrap().iter().map(|slot| slot["name"].clone()).collect::<Vec<_>>()
    };
    while slots() != [json!("edge")] {}
    slave.interrupt("TERM").ok();
    run(&["forget", "--store", &store, "edge"]).says(2, "it is in use by another process");
    master.interrupt("TERM").ok();
    run(&["forget", "--store", &store, "--consumer", "edge"]).says(1, "there is no slot of that name");
    assert_eq!(run(&["forget", "--store", &store, "edge", "--json"]).ok().json(), json!({ "forgotten": true }));
    run(&["forget", "--store", &store, "edge"]).says(1, "there is no slot of that name");
    run(&["forget", "--store", &place.lmdb("slave"), "edge"]).says(2, "it is no master's store");
    run(&["forget", "--store", &place.lmdb("none"), "edge"]).says(2, "there is no such store");
    let (_master, address) = Running::master(&store, &[]);
    assert_eq!(run(&["status", "--from", &address, "--json"]).ok().json()["slots"], json!([]));
}
