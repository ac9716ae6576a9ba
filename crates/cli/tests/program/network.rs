//! Masters and slaves, a process each.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Ended, Place, Running, contents, fill, run, tamper};

fn follow_once(store: &str, id: &str, address: &str) -> Ended {
    run(&["follow", "--store", store, "--id", id, "--from", address, "--once"])
}

#[test]
fn a_slave_of_every_backend_catches_up_with_a_master_of_every_backend() {
    let place = Place::new();
    // The beginning of the epoch, and the batches of an import: sled likes a thousand entries in one.
    for (master_kind, records) in [("lmdb", 2), ("sled", 4), ("memory", 2)] {
        let file = place.file("entries.tsv", (0..3000).map(|n| format!("k{n:05}\t{n}\n")).collect::<String>());
        let store = place.url(master_kind, master_kind);
        let (master, address) = Running::master(&store, &["--import", &file]);
        assert_eq!(master.error_line(), "imported 3,000 entries");
        for kind in ["lmdb", "sled", "memory"] {
            let name = format!("{kind}-of-{master_kind}");
            let slave = place.url(kind, &name);
            let ended = follow_once(&slave, &name, &address).ok();
            let lines = ended.lines();
            assert_eq!(lines[0], format!("following {address} into {slave} as {name}"));
            assert_eq!(lines[1], format!("caught up at record {records}, {records} records applied"));
            assert!(ended.stderr.is_empty(), "{ended:?}");
            if kind != "memory" {
                assert_eq!(contents(&slave).lines().count(), 3000, "{name}");
            }
        }
        master.interrupt("INT").ok();
        if master_kind != "memory" {
            for kind in ["lmdb", "sled"] {
                let slave = place.url(kind, &format!("{kind}-of-{master_kind}"));
                run(&["verify", "--store", &store, "--store", &slave]).ok();
            }
        }
    }
}

#[test]
fn a_slave_goes_on_where_it_stopped() {
    let place = Place::new();
    let store = place.filled("master");
    let slave = place.url("sled", "slave");
    for round in 0..3 {
        let (master, address) = Running::master(&store, &[]);
        let ended = run(&["follow", "--store", &slave, "--id", "s", "--from", &address, "--once", "--json"]).ok();
        let lines = ended.json_lines();
        assert_eq!(lines[0], json!({ "following": address, "store": slave, "id": "s" }));
        assert_eq!(lines[1]["caught_up"], true);
        assert_eq!(lines[1]["seq"], 2 + round);
        assert_eq!(lines[1]["records"], if round == 0 { 2 } else { 1 }, "only what is new");
        master.interrupt("TERM").ok();
        run(&["verify", "--store", &store, "--store", &slave]).ok();
        run(&["put", "--store", &store, "round", &round.to_string()]).ok();
        run(&["verify", "--store", &store, "--store", &slave]).code(1);
    }
    let status = run(&["status", "--store", &slave, "--json"]).ok().json();
    assert_eq!(status["role"], "slave");
    assert_eq!(status["consistent"], true);
    assert_eq!(status["position"]["seq"], 4);
}

#[test]
fn operations_from_a_pipe_arrive_live_on_a_slave_and_in_a_log_that_is_followed() {
    let place = Place::new();
    let store = place.lmdb("master");
    let (mut master, address) = Running::master(&store, &["--stdin"]);
    let slave = place.lmdb("slave");
    let following = Running::spawn(&["follow", "--store", &slave, "--id", "live", "--from", &address]);
    assert!(following.line().starts_with("following "));
    let log = Running::spawn(&["log", "--store", &store, "--follow", "--json", "--from", "2"]);
    let slave_log = |log: &Running| -> Value { serde_json::from_str::<Value>(&log.line()).unwrap()["ops"].take() };
    for (line, ops) in [
        (r#"{"key":"a","value":"1"}"#, json!([{ "op": "put", "key": "a", "value": "1" }])),
        (r#"{"op":"put","key_b64":"/w==","value":"2"}"#, json!([{ "op": "put", "key_b64": "/w==", "value": "2" }])),
        (r#"{"key":"b1","value":"3"}"#, json!([{ "op": "put", "key": "b1", "value": "3" }])),
        (r#"{"key":"b2","value":"4"}"#, json!([{ "op": "put", "key": "b2", "value": "4" }])),
        (r#"{"op":"delete","key":"a"}"#, json!([{ "op": "delete", "key": "a" }])),
        (
            r#"{"op":"delete_range","start":"b","end":"b2"}"#,
            json!([{ "op": "delete_range", "start": "b", "end": "b2" }]),
        ),
        // Without an end: to the last key.
        (r#"{"op":"delete_range","start":"c"}"#, json!([{ "op": "delete_range", "start": "c" }])),
    ] {
        writeln!(master.input(), "{line}").unwrap();
        // Each is there before the next one is sent.
        assert_eq!(slave_log(&log), ops);
    }
    // The slave has what the master has published: ask the master what it has acknowledged.
    loop {
        let status = run(&["status", "--from", &address, "--json"]).ok().json();
        let seen = status["slaves"].as_array().unwrap();
        if seen.len() == 1 && seen[0]["applied"] == status["published"]["seq"] && status["published"]["seq"] == 8 {
            assert_eq!(seen[0]["name"], "live");
            break;
        }
    }
    log.interrupt("INT").ok();
    following.interrupt("INT").ok();
    assert_eq!(contents(&slave), "{\"key\":\"b2\",\"value\":\"4\"}\n");
    // The end of the pipe is not the end of the master.
    master.close_input();
    follow_once(&slave, "live", &address).ok();
    master.interrupt("TERM").ok();
    run(&["verify", "--store", &store, "--store", &slave]).ok();
}

#[test]
fn a_broken_line_of_a_pipe_ends_the_master_and_keeps_what_came_before() {
    let place = Place::new();
    let store = place.filled("master");
    for (line, words) in [
        ("{\"op\":\"drop\",\"key\":\"k\"}\n", "\"drop\" is no operation"),
        ("{\"op\":\"delete_range\",\"end\":\"a\"}\n", "delete_range needs \"start\""),
        ("{\"op\":\"delete\",\"key\":\"k\",\"value\":\"v\"}\n", "a member that it does not take"),
        ("nonsense\n", "it is no entry"),
    ] {
        let (mut master, _) = Running::master(&store, &["--stdin"]);
        master.input().write_all(b"{\"key\":\"new\",\"value\":\"v\"}\n").unwrap();
        master.input().write_all(line.as_bytes()).unwrap();
        let ended = master.end_by_itself().says(2, "standard input; the 1 operations before are applied: line 2: ");
        assert!(ended.stderr.contains(words), "{ended:?}");
        assert_eq!(run(&["get", "--store", &store, "new"]).ok().text(), "v");
        assert_eq!(contents(&store).lines().count(), 5);
        run(&["del", "--store", &store, "new"]).ok();
    }
}

#[test]
fn a_probe_asks_the_master_and_answers_by_its_exit_code() {
    let place = Place::new();
    let (master, address) = Running::master(&place.filled("master"), &[]);
    let status = run(&["status", "--from", &address, "--json"]).ok().json();
    assert_eq!(status["health"]["state"], "ready");
    assert_eq!(status["published"]["seq"], 2);
    assert_eq!(status["published"]["source"].as_str().map(str::len), Some(32));
    let words = run(&["status", "--from", &address]).ok();
    assert!(words.text().contains("health:\n  reason: takes writes\n"), "{words:?}");
    assert!(words.text().contains("slaves: 0\n"), "{words:?}");
    run(&["status", "--from", &address, "--check"]).ok();
    run(&["status", "--from", &address, "--check", "--max-lag", "1ms"]).ok();
    let following = Running::spawn(&["follow", "--store", "memory:", "--id", "probed", "--from", &address, "--json"]);
    let ready: Value = serde_json::from_str(&following.line()).unwrap();
    assert_eq!(ready["id"], "probed");
    run(&["status", "--from", &address, "--check", "--max-lag", "2m"]).ok();
    let words = run(&["status", "--from", &address]).ok();
    assert!(words.text().contains("slaves: 1\n") && words.text().contains("  name: probed\n"), "{words:?}");
    following.interrupt("INT").ok();
    master.interrupt("INT").ok();
}

#[test]
fn a_ready_line_names_the_address_that_is_really_bound() {
    let place = Place::new();
    let store = place.filled("master");
    let serving = Running::spawn(&["serve", "--store", &store, "--listen", "127.0.0.1:0", "--json"]);
    let ready: Value = serde_json::from_str(&serving.line()).unwrap();
    assert_eq!(ready["serving"], store);
    let address = ready["address"].as_str().unwrap();
    assert!(!address.ends_with(":0"));
    follow_once("memory:", "x", address).ok();
    serving.interrupt("INT").ok();
}

#[test]
fn a_slave_of_another_master_is_refused_and_keeps_what_it_has() {
    let place = Place::new();
    let (_one, first) = Running::master(&place.filled("one"), &[]);
    let two = place.lmdb("two");
    fill(&two, &[("other", "history")]);
    let (_two, second) = Running::master(&two, &[]);
    let slave = place.lmdb("slave");
    follow_once(&slave, "s", &first).ok();
    let before = contents(&slave);
    let ended = follow_once(&slave, "s", &second).code(2);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains(&format!("{slave} cannot follow {second}: ")), "{ended:?}");
    assert_eq!(contents(&slave), before);
}

#[test]
fn a_master_takes_values_as_large_as_it_is_told_to_and_slaves_get_them() {
    let place = Place::new();
    let value = "large ".repeat((40 << 20) / 6);
    let file = place.file("large.tsv", format!("a\tsmall\nb\t{value}\n"));
    let store = place.lmdb("master");
    run(&["import", "--store", &store, &file]).says(2, "line 2: the value has 41943036 bytes");
    run(&["import", "--store", &store, "--max-value", "39", &file]).says(2, "line 2: the value has 41943036 bytes");
    run(&["import", "--store", &store, "--max-value", "40", &file]).ok();
    let ndjson = place.file("more.ndjson", format!("{{\"key\":\"c\",\"value\":\"{value}\"}}\n"));
    let (master, address) = Running::master(&store, &["--max-value", "40", "--import", &ndjson]);
    master.error_line();
    let slave = place.lmdb("slave");
    follow_once(&slave, "edge", &address).ok();
    // What its store can never hold is said before anything is copied.
    let small = place.url("memory", "small");
    follow_once(&small, "memory", &address).ok();
    master.interrupt("TERM").ok();
    run(&["verify", "--store", &store, "--store", &slave]).ok();
    let (master, address) = Running::master(&store, &["--max-value", "256"]);
    follow_once(&small, "memory", &address).says(2, "lower the master's limits, or choose another store");
    let sled = place.url("sled", "sled");
    follow_once(&sled, "sled", &address).says(2, "lower the master's limits, or choose another store");
    follow_once(&slave, "edge", &address).ok();
    master.interrupt("TERM").ok();
}

#[test]
fn a_master_that_is_to_take_less_than_it_holds_tells_its_slaves_so() {
    let place = Place::new();
    let file = place.file("large.tsv", format!("a\tsmall\nb\t{}\n", "large ".repeat((72 << 20) / 6)));
    let store = place.lmdb("master");
    run(&["import", "--store", &store, "--max-value", "80", &file]).ok();
    let slave = place.lmdb("slave");
    let (master, address) = Running::master(&store, &[]);
    let ended = follow_once(&slave, "edge", &address).code(2);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("open it with limits that are as large as they were"), "{ended:?}");
    master.interrupt("TERM").ok();
    let (master, address) = Running::master(&store, &["--max-value", "80"]);
    follow_once(&slave, "edge", &address).ok();
    master.interrupt("TERM").ok();
    run(&["verify", "--store", &store, "--store", &slave]).ok();
}

#[test]
fn a_slaves_store_is_compared_with_its_master_over_the_network_and_mended() {
    let place = Place::new();
    let store = place.filled("master");
    let slave = place.lmdb("slave");
    let (master, address) = Running::master(&store, &[]);
    let verify = |more: &[&str]| run(&[&["verify", "--store", &slave, "--from", &address, "--json"], more].concat());
    run(&["verify", "--store", &slave, "--from", &address]).code(2);
    follow_once(&slave, "edge", &address).ok();
    let equal = verify(&[]).ok().json();
    assert_eq!((&equal["equal"], &equal["different"], &equal["differences"]), (&json!(true), &json!(0), &json!([])));
    let entries = equal["entries"].as_u64().unwrap();
    assert!(entries > 0);
    tamper(&place.path("slave"), "mine", "1");
    let wanted = json!([{ "key": "mine", "kind": "extra" }]);
    for (more, repaired) in [(&[][..], 0), (&["--repair"], 1)] {
        let different = verify(more).code(1).json();
        assert_eq!((&different["equal"], &different["differences"]), (&json!(false), &wanted));
        assert_eq!((&different["entries"], &different["repaired"]), (&json!(entries + 1), &json!(repaired)));
    }
    verify(&[]).ok();
    run(&["verify", "--store", &slave, "--from", &address]).ok();
    master.interrupt("INT").ok();
    run(&["verify", "--store", &store, "--store", &slave]).ok();
    run(&["verify", "--store", &slave, "--repair"]).code(2);
}

#[test]
fn a_slave_verifies_in_the_background_and_its_status_tells_what_differs() {
    let place = Place::new();
    let (master, address) = Running::master(&place.filled("master"), &[]);
    let slave = place.lmdb("slave");
    follow_once(&slave, "edge", &address).ok();
    tamper(&place.path("slave"), "mine", "1");
    let every = ["--verify-every", "1s", "--verify-bytes-per-second", "1000000"];
    let args = ["follow", "--store", &slave, "--from", &address, "--id", "edge", "--status", "127.0.0.1:0"];
    let following = Running::spawn(&[&args[..], &every].concat());
    let status = following.line().rsplit_once(' ').unwrap().1.to_string();
    let told = (0..2_000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        let told = run(&["status", "--from", &status, "--json"]).ok().json();
        (!told["verification"].is_null()).then_some(told)
    });
    let told = told.expect("it verifies every second");
    let verification = &told["verification"];
    assert_eq!((&verification["outcome"], &verification["different"]), (&json!("different"), &json!(1)), "{told}");
    assert_eq!((&verification["different_ranges"], &verification["repaired"]), (&json!(1), &json!(0)));
    assert_eq!(verification["differences"], json!([{ "key": "mine", "kind": "extra" }]));
    assert!(verification["bytes"].as_u64().unwrap() > 0 && told["last_verified_ms"].is_u64());
    let words = run(&["status", "--from", &status]).ok();
    for line in ["verification:\n", "  outcome: different\n", "  different: 1\n", "    key: mine\n"] {
        assert!(words.text().contains(line), "{words:?}");
    }
    following.interrupt("INT").ok();
    // What was changed is mended, and kept.
    let lost = place.path("lost.ndjson").display().to_string();
    let verify = ["verify", "--store", &slave, "--from", &address, "--repair", "--quarantine", &lost];
    run(&verify).code(1);
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&lost).unwrap()).unwrap();
    assert_eq!((&kept["key"], &kept["value"]), (&json!("mine"), &json!("1")));
    assert_eq!(kept["quarantine"]["seq"], kept["quarantine"]["ancestor"]);
    run(&verify).ok();
    master.interrupt("INT").ok();
}

#[test]
fn what_comes_once_leaves_no_slot_at_its_master() {
    let place = Place::new();
    let store = place.filled("master");
    let (master, address) = Running::master(&store, &[]);
    let (slave, centre, link) = (place.lmdb("slave"), place.lmdb("centre"), format!("one={address}"));
    let once: [&[&str]; 8] = [
        &["follow", "--store", &slave, "--id", "once", "--once", "--from", &address],
        &["follow", "--store", &slave, "--id", "once", "--once", "--from", &address],
        &["verify", "--store", &slave, "--from", &address],
        &["verify", "--store", &slave, "--from", &address, "--repair"],
        &["gather", "--store", &centre, "--once", "--link", &link],
        &["get", "apple", "--from", &address],
        &["scan", "--from", &address],
        &["scan", "--from", &address, "--from", &address, "--max-lag", "5s"],
    ];
    once.iter().for_each(|command| drop(run(command).ok()));
    // What it has acknowledged becomes a slot after that of whoever came before, and has a name before its own.
    let lasting = Running::spawn(&["follow", "--store", &slave, "--id", "without end", "--from", &address]);
    let names = |of: [&str; 2]| -> Vec<Value> {
        let status = run(&[&["status", "--json"][..], &of].concat()).ok().json();
        status["slots"].as_array().unwrap().iter().map(|slot| slot["name"].clone()).collect()
    };
    let from = ["--from", &address];
    while !names(from).contains(&json!("without end")) {}
    assert_eq!(names(from), [json!("without end")]);
    lasting.interrupt("TERM").ok();
    run(once[2]).ok();
    master.interrupt("TERM").ok();
    assert_eq!(names(["--store", &store]), [json!("without end")]);
}

#[test]
fn who_starts_before_the_name_of_its_master_leads_anywhere_goes_on_trying() {
    let place = Place::new();
    let nowhere = "no.such.host.invalid:1";
    let (slave, centre, link) = (place.lmdb("slave"), place.lmdb("centre"), format!("one={nowhere}"));
    let (follow, gather) = (
        ["follow", "--store", &slave, "--id", "edge", "--from", nowhere],
        ["gather", "--store", &centre, "--link", &link],
    );
    let verify = ["verify", "--store", &slave, "--from", nowhere];
    let take_over = ["handover", "--store", &slave, "--id", "edge", "--from", nowhere];
    let once = [&follow[..], &gather].map(|command| [command, &["--once"]].concat());
    for command in once.iter().map(|command| &command[..]).chain([
        &verify[..],
        &take_over,
        &["get", "k", "--from", nowhere],
        &["status", "--from", nowhere],
    ]) {
        run(command).says(2, "no.such.host.invalid:1 cannot be looked up");
    }
    assert!(!place.path("slave").exists() && !place.path("centre").exists(), "nothing is left behind");

    let following = Running::spawn(&[&follow[..], &["--status", "127.0.0.1:0"]].concat());
    let probe = following.line().strip_prefix("status on ").map(String::from).unwrap();
    let gathering = Running::spawn(&[&gather[..], &["--listen", "127.0.0.1:0"]].concat());
    assert!(gathering.line().starts_with("serving "));
    // It has tried again.
    while run(&["status", "--from", &probe, "--json"]).ok().json()["health"]["reason"] == "not connected yet" {}
    for running in [following, gathering] {
        let said = running.error_line();
        assert!(said.starts_with("replikv: no.such.host.invalid:1 cannot be looked up: "), "{said}");
        assert!(said.ends_with("; trying again"), "{said}");
        let ended = running.interrupt("TERM").ok();
        assert!(ended.stderr.is_empty(), "{ended:?}");
    }
    run(&["follow", "--store", &slave, "--id", "edge", "--from", "127.0.0.1:0"]).says(2, "use HOST:PORT");
    run(&["gather", "--store", &centre, "--link", "one=127.0.0.1"]).says(2, "use HOST:PORT");
}
