//! Slaves below slaves; by the program alone.

use std::io::Write;

use serde_json::json;

use crate::support::{HANG, Place, Running, contents, run};

/// A slave that runs, and what it says until it follows.
fn follow(store: &str, from: &str, id: &str, more: &[&str]) -> Running {
    Running::spawn(&[&["follow", "--store", store, "--from", from, "--id", id], more].concat())
}

fn relay(store: &str, from: &str, id: &str) -> (Running, String) {
    let relay = follow(store, from, id, &["--serve", "127.0.0.1:0"]);
    let ready = relay.line();
    let address = ready.strip_prefix(&format!("serving {store} on ")).unwrap_or_else(|| panic!("{ready}"));
    let address = address.to_string();
    assert!(relay.line().starts_with("following "));
    (relay, address)
}

#[test]
fn a_leaf_moves_to_the_master_when_its_relay_is_killed() {
    let place = Place::new();
    let (top, middle, leaf) = (place.lmdb("top"), place.url("sled", "middle"), place.lmdb("leaf"));
    let (mut master, at_master) = Running::master(&top, &["--stdin"]);
    let mut write = |from: u32, to: u32| {
        for n in from..to {
            writeln!(master.input(), "{}", json!({ "key": format!("k{n:04}"), "value": n.to_string() })).unwrap();
        }
    };
    write(0, 500);
    let (relay, at_relay) = relay(&middle, &at_master, "middle");
    // Through the relay, to the end of what it has.
    run(&["follow", "--store", &leaf, "--from", &at_relay, "--id", "leaf", "--once"]).ok();
    let leaf_runs = follow(&leaf, &at_relay, "leaf", &["--status", "127.0.0.1:0"]);
    let at_leaf = leaf_runs.line().strip_prefix("status on ").map(String::from).unwrap();
    assert!(leaf_runs.line().starts_with("following "));
    let told = run(&["status", "--from", &at_leaf, "--json"]).ok().json();
    assert_eq!((&told["path"], &told["copies"]), (&json!(["middle", "leaf"]), &json!(0)));
    assert!(run(&["status", "--from", &at_leaf]).ok().text().contains("path: middle -> leaf\n"));
    // The same port answers reads, and the status of the relay with its slaves.
    assert!(run(&["get", "--from", &at_relay, "k0001"]).ok().text().starts_with('1'));
    let told = run(&["status", "--from", &at_relay, "--json"]).ok().json();
    assert_eq!(told["relay"]["slaves"][0]["name"], "leaf", "{told}");
    // Its parent dies while it is written to.
    write(500, 700);
    drop(relay);
    write(700, 900);
    leaf_runs.interrupt("TERM").ok();
    // From the master it goes on where it was.
    let told = run(&["follow", "--store", &leaf, "--from", &at_master, "--id", "leaf", "--once", "--json"]).ok();
    assert_eq!(told.json_lines().last().unwrap()["caught_up"], true);
    master.close_input();
    run(&["follow", "--store", &leaf, "--from", &at_master, "--id", "leaf", "--once"]).ok();
    // And the relay, which has its log still, goes on below the leaf's own log.
    run(&["follow", "--store", &middle, "--from", &at_master, "--id", "middle", "--once", "--keep-log"]).ok();
    master.interrupt("TERM").ok();
    assert_eq!(contents(&leaf), contents(&top));
    assert_eq!(contents(&middle), contents(&top));
    let log = |store: &str| run(&["log", "--store", store, "--json"]).ok().text().to_string();
    assert_eq!(log(&middle), log(&top), "the log of the relay is that of the master");
    run(&["log", "--store", &leaf]).says(2, "keeps no log");
    let told = run(&["status", "--store", &middle, "--json"]).ok().json();
    assert_eq!(told["kept_log"]["floor"]["seq"], 0, "{told}");
}

#[test]
fn a_slave_that_would_follow_itself_is_told_so_and_addresses_are_guarded() {
    let place = Place::new();
    let (top, a, b) = (place.filled("top"), place.lmdb("a"), place.lmdb("b"));
    let (_master, at_master) = Running::master(&top, &[]);
    let (first, at_a) = relay(&a, &at_master, "a");
    let (second, at_b) = relay(&b, &at_a, "b");
    // Another process is another node: only what runs can go in a circle, and this one has moved.
    first.interrupt("TERM").ok();
    let moved = follow(&a, &at_b, "a", &["--serve", &at_a]);
    assert!(moved.line().starts_with("serving "));
    // It is accepted, or the other one is: whoever finds the circle first ends with the reason.
    let ended = Running::first_to_end([moved, second]);
    assert!(ended.stderr.contains("circle"), "{ended:?}");
    run(&["follow", "--store", &place.lmdb("c"), "--from", &at_master, "--id", "c", "--serve", "0.0.0.0:0"])
        .says(2, "not loopback");
    run(&[
        "follow",
        "--store",
        &place.lmdb("c"),
        "--from",
        &at_master,
        "--id",
        "c",
        "--serve",
        "127.0.0.1:0",
        "--once",
    ])
    .says(2, "cannot be used with");
}

#[test]
fn whoever_catches_up_with_a_relay_that_has_lost_its_master_is_told_so() {
    let place = Place::new();
    let (middle, leaf) = (place.lmdb("middle"), place.lmdb("leaf"));
    let (master, at_master) = Running::master(&place.filled("top"), &[]);
    let (_relay, at_relay) = relay(&middle, &at_master, "middle");
    let once = || run(&["follow", "--store", &leaf, "--from", &at_relay, "--id", "leaf", "--once"]).ok();
    let words = "is a relay that has lost its master";
    while contents(&middle).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let before = once();
    assert!(!before.stderr.contains(words), "{before:?}");
    drop(master);
    // It hears of that at once, and says so from then on.
    let start = std::time::Instant::now();
    while !once().stderr.contains(words) {
        assert!(start.elapsed() < HANG);
    }
}
