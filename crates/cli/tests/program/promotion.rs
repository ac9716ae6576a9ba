//! Losing a master, and going on with a slave; by the program alone.

use serde_json::json;

use crate::support::{Place, Running, contents, fill, run, run_with};

#[test]
fn a_slave_is_promoted_and_the_old_master_comes_back_as_its_slave() {
    let place = Place::new();
    let (old, standby, edge) = (place.lmdb("old"), place.url("sled", "standby"), place.lmdb("edge"));
    fill(&old, &[("a", "1"), ("b", "2")]);
    {
        let (_master, address) = Running::master(&old, &[]);
        run(&["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"]).ok();
        run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
        run(&["promote", "--store", &place.lmdb("none")]).says(2, "there is no such store");
    }
    // What nobody else has.
    run(&["put", "--store", &old, "lost", "never replicated"]).ok();
    run(&["promote", "--store", &old]).says(2, "is no slave's");
    let promoted = run(&["promote", "--store", &standby, "--json"]).ok().json();
    assert_eq!(promoted["epoch"], 2);
    run(&["promote", "--store", &standby]).says(2, "is no slave's");
    run(&["put", "--store", &standby, "c", "3"]).ok();
    let (_new, address) = Running::master(&standby, &[]);
    run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
    assert_eq!(run(&["get", "--store", &edge, "c"]).ok().text(), "3");

    // The old one learns of it from whoever has moved over, and never writes again.
    {
        let (mut master, at_old) = Running::master(&old, &["--stdin"]);
        run(&["follow", "--store", &edge, "--from", &at_old, "--id", "edge", "--once"])
            .says(2, "another one was promoted");
        use std::io::Write;
        writeln!(master.input(), "{}", json!({ "key": "late", "value": "1" })).unwrap();
        let ended = master.end_by_itself().code(2);
        assert!(ended.stderr.contains("superseded in epoch 2"), "{ended:?}");
    }
    run(&["put", "--store", &old, "late", "1"]).says(2, "another master was promoted, in epoch 2");
    run(&["serve", "--store", &old, "--listen", "127.0.0.1:0", "--new-epoch"]).says(2, "--rejoin");

    let rejoin = ["follow", "--store", &old, "--from", &address, "--rejoin", "old", "--once"];
    let kept = place.name("lost.ndjson");
    run(&[&rejoin[..], &["--on-divergence", "resync", "--quarantine", &kept]].concat()).ok();
    let kept = std::fs::read_to_string(&kept).unwrap();
    assert!(kept.contains("never replicated") && kept.lines().count() == 1, "{kept}");
    assert_eq!(contents(&old), contents(&edge));
}

#[test]
fn a_backup_is_restored_in_a_new_epoch_before_it_accepts_writes() {
    let place = Place::new();
    let store = place.lmdb("central");
    fill(&store, &[("a", "1")]);
    run(&["restore", &store, &place.name("other")]).says(2, "it is no backup");
    let backup = place.lmdb("backup");
    run(&["backup", "--store", &store, &place.name("backup")]).ok();
    for (kind, name) in [("lmdb", "restored"), ("sled", "restored-sled")] {
        let restored = place.url(kind, name);
        let told = run(&["restore", &backup, &restored, "--json"]).ok().json();
        assert_eq!((&told["restored"], &told["epoch"]), (&json!(restored), &json!(2)));
        assert_eq!(contents(&restored), contents(&store));
        run(&["put", "--store", &restored, "b", "2"]).ok();
        run(&["restore", &backup, &restored]).says(2, "it is not empty");
    }
    // The backup is one as before.
    run_with(&["import", "--store", &backup, "-"], b"{\"key\":\"a\",\"value\":\"1\"}\n").says(2, "it is a backup");
}

#[test]
fn a_slave_takes_over_and_nothing_is_lost() {
    let place = Place::new();
    let (old, standby, edge) = (place.lmdb("old"), place.url("sled", "standby"), place.lmdb("edge"));
    fill(&old, &[("a", "1"), ("b", "2")]);
    let take_over = |address: &str| {
        run(&["handover", "--store", &standby, "--id", "standby", "--from", address, "--patience", "30", "--json"])
    };
    {
        let (mut master, address) = Running::master(&old, &["--stdin"]);
        run(&["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"]).ok();
        run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
        use std::io::Write;
        writeln!(master.input(), "{}", json!({ "key": "c", "value": "3" })).unwrap();
        let mut came = 0;
        while came < 3 {
            came = run(&["status", "--from", &address, "--json"]).ok().json()["published"]["seq"].as_u64().unwrap();
        }
        let told = take_over(&address).ok().json();
        assert_eq!((told["epoch"].as_u64(), told["last"].as_u64()), (Some(2), Some(came)), "{told}");
        // It goes on serving, for those who need its last record.
        run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
        writeln!(master.input(), "{}", json!({ "key": "late", "value": "1" })).unwrap();
        let ended = master.end_by_itself().code(2);
        assert!(ended.stderr.contains("superseded"), "{ended:?}");
    }
    run(&["put", "--store", &old, "late", "1"]).says(2, "handed over");
    assert_eq!(contents(&standby), contents(&old));
    let (_new, address) = Running::master(&standby, &[]);
    run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
    assert_eq!(contents(&edge), contents(&old));
    // What is no slave's store takes over from nobody, and neither does one that is not there.
    run(&["handover", "--store", &old, "--id", "old", "--from", &address]).says(2, "old");
    run(&["handover", "--store", &place.lmdb("none"), "--id", "x", "--from", &address]).says(2, "no such store");
    let rejoin = ["follow", "--store", &old, "--from", &address, "--rejoin", "old", "--once"];
    run(&rejoin).ok();
    assert_eq!(contents(&edge), contents(&old));
}

#[test]
fn slaves_are_fenced_before_one_is_promoted_and_too_few_are_said_to_be() {
    let place = Place::new();
    let (old, standby, edge) = (place.lmdb("old"), place.url("sled", "standby"), place.lmdb("edge"));
    fill(&old, &[("a", "1"), ("b", "2")]);
    let (_master, address) = Running::master(&old, &[]);
    run(&["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"]).ok();
    let follow = ["follow", "--store", &edge, "--from", &address, "--id", "edge", "--serve-reads", "127.0.0.1:0"];
    let slave = Running::spawn(&follow);
    let reads = slave.line().strip_prefix("reads on ").map(String::from).unwrap();
    slave.line();
    let promote = |more: &[&str]| run(&[&["promote", "--store", &standby, "--patience", "30"], more].concat());
    promote(&["--fence", &reads]).says(2, "--slaves");
    promote(&["--slaves", "3", "--replicated", "4"]).says(2, "4 of 3 slaves");
    promote(&["--slaves", "1", "--replicated", "1", "--fence", &reads]).says(2, "others to fence");
    let failed = promote(&["--slaves", "3", "--replicated", "1", "--fence", &reads, "--fence", "127.0.0.1:1"]);
    let failed = failed.says(2, "2 of 3 slaves are fenced");
    for words in [&format!("{reads} at record"), "not 127.0.0.1:1", "nobody was promoted"] {
        assert!(failed.stderr.contains(words), "{words} is not said: {failed:?}");
    }
    // Both wait for one epoch, and say so; the old master is refused.
    let waits = run(&["status", "--from", &reads, "--json"]).ok().json();
    assert_eq!((&waits["fence"]["by"], &waits["fence"]["own"]), (&json!(standby), &json!(false)));
    assert!(waits["health"]["reason"].as_str().unwrap().contains("fenced"), "{waits}");
    let own = run(&["status", "--store", &standby, "--json"]).ok().json();
    assert_eq!((&own["fence"]["epoch"], &own["fence"]["own"]), (&waits["fence"]["epoch"], &json!(true)));
    run(&["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"]).says(2, "fenced");
    let done = promote(&["--slaves", "3", "--replicated", "2", "--fence", &reads, "--json"]).ok().json();
    assert_eq!((&done["epoch"], &done["needed"], &done["unfenced"]), (&json!(2), &json!(2), &json!([])));
    assert_eq!((&done["fenced"][0]["name"], &done["fenced"][0]["seq"]), (&json!("edge"), &done["last"]));
    slave.interrupt("TERM").ok();
    let (new, address) = Running::master(&standby, &[]);
    run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
    new.interrupt("TERM").ok();
    assert_eq!(contents(&edge), contents(&standby));
    let status = run(&["status", "--store", &edge, "--json"]).ok().json();
    assert_eq!((&status["fence"], &status["position"]["epoch"]["number"]), (&json!(null), &json!(2)));
}

#[test]
fn a_fence_that_nobody_needs_any_more_is_lifted() {
    let place = Place::new();
    let (old, standby) = (place.lmdb("old"), place.lmdb("standby"));
    fill(&old, &[("a", "1")]);
    let (_master, address) = Running::master(&old, &[]);
    let follow = ["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"];
    run(&follow).ok();
    run(&["unfence", "--store", &standby]).says(1, "is not fenced");
    let promote = ["promote", "--store", &standby, "--slaves", "2", "--replicated", "1", "--fence", "127.0.0.1:1"];
    run(&promote).says(2, "1 of 2 slaves are fenced");
    run(&follow).says(2, "fenced");
    let lifted = run(&["unfence", "--store", &standby, "--json"]).ok().json();
    assert_eq!((&lifted["unfenced"], &lifted["epoch"]), (&json!(standby), &json!(2)));
    run(&follow).ok();
    run(&["unfence", "--store", &place.lmdb("none")]).says(2, "there is no such store");
}

#[test]
fn a_promotion_that_names_too_few_is_refused_before_anybody_is_fenced() {
    let place = Place::new();
    let (old, standby, edge) = (place.lmdb("old"), place.lmdb("standby"), place.lmdb("edge"));
    fill(&old, &[("a", "1")]);
    let (_master, address) = Running::master(&old, &[]);
    let follow = ["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"];
    run(&follow).ok();
    let slave = Running::spawn(&[
        "follow",
        "--store",
        &edge,
        "--from",
        &address,
        "--id",
        "edge",
        "--serve-reads",
        "127.0.0.1:0",
    ]);
    let reads = slave.line().strip_prefix("reads on ").map(String::from).unwrap();
    slave.line();
    let promote = ["promote", "--store", &standby, "--slaves", "3", "--replicated", "1"];
    for (fence, named) in [(&[][..], 0), (&["--fence", &reads], 1), (&["--fence", &reads, "--fence", &reads], 1)] {
        let words = format!(
            "3 of 3 slaves have to be fenced, this one among them: name 2 others or more with --fence, not {named};"
        );
        run(&[&promote[..], fence].concat()).says(2, &words);
    }
    assert_eq!(run(&["status", "--from", &reads, "--json"]).ok().json()["fence"], json!(null));
    run(&["unfence", "--store", &standby]).says(1, "is not fenced");
    run(&follow).ok();
}

#[test]
fn a_master_that_was_replaced_says_so_and_no_backup_of_it_is_restored() {
    let place = Place::new();
    for (name, by, words) in [
        ("promoted", json!(2), "another master was promoted, in epoch 2"),
        ("handed", json!(null), "this master has handed over to another one"),
    ] {
        let path = |what: &str| format!("{name}-{what}");
        let (old, standby) = (place.lmdb(&path("old")), place.lmdb(&path("standby")));
        fill(&old, &[("a", "1")]);
        assert!(run(&["status", "--store", &old, "--json"]).ok().json().get("superseded").is_none());
        {
            let (_master, address) = Running::master(&old, &[]);
            let follow = ["follow", "--store", &standby, "--from", &address, "--id", "standby", "--once"];
            run(&follow).ok();
            if name == "handed" {
                run(&["handover", "--store", &standby, "--id", "standby", "--from", &address]).ok();
            } else {
                let edge = place.lmdb("edge");
                run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
                run(&["promote", "--store", &standby]).ok();
                let (_new, at_new) = Running::master(&standby, &[]);
                run(&["follow", "--store", &edge, "--from", &at_new, "--id", "edge", "--once"]).ok();
                run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).code(2);
            }
        }
        let status = run(&["status", "--store", &old, "--json"]).ok().json();
        assert_eq!(status["role"], "master");
        assert_eq!((&status["superseded"]["by"]["number"], &status["superseded"]["reason"]), (&by, &json!(words)));
        let told = run(&["status", "--store", &old]).ok();
        assert!(
            told.text().contains("superseded:\n") && told.text().contains(&format!("  reason: {words}\n")),
            "{told:?}"
        );
        assert!(run(&["status", "--store", &standby, "--json"]).ok().json().get("superseded").is_none());

        for kind in ["lmdb", "sled"] {
            let (backup, restored) =
                (place.url(kind, &path(kind)), place.url(kind, &path(&format!("{kind}-restored"))));
            let taken = run(&["backup", "--store", &old, &backup]).ok();
            assert!(taken.stderr.starts_with(&format!("replikv: {old}: {words}: restore refuses")), "{taken:?}");
            run(&["restore", &backup, &restored]).says(2, &format!("{backup}: {words}"));
            assert!(!place.path(&path(&format!("{kind}-restored"))).exists(), "nothing was copied");
            let (_new, address) = Running::master(&standby, &[]);
            run(&["follow", "--store", &backup, "--from", &address, "--as-slave", "back", "--once"]).ok();
            assert!(run(&["status", "--store", &backup, "--json"]).ok().json().get("superseded").is_none());
        }
        let plain = run(&["backup", "--store", &standby, &place.name(&path("plain"))]).ok();
        assert_eq!(plain.stderr.lines().count(), 1, "{plain:?}");
    }
}
