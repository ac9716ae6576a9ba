//! File descriptors that run out.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Place, Running, contents, fill, run};

/// How many more the process may open.
const ROOM: usize = 6;

fn open_files(running: &Running) -> Vec<usize> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap();
    files.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_master_without_file_descriptors_serves_whom_it_has_and_then_everybody() {
    let place = Place::new();
    let (central, edge, late) = (place.lmdb("central"), place.lmdb("edge"), place.lmdb("late"));
    fill(&central, &[("a", "1")]);
    let (mut master, address) = Running::master(&central, &["--stdin"]);
    let _slave = Running::spawn(&["follow", "--store", &edge, "--from", &address, "--id", "edge"]);
    let holds = |store: &str, key: &str| run(&["get", "--store", store, key]).code == Some(0);
    until("the slave follows", || holds(&edge, "a"));

    let open = open_files(&master);
    let limit = (0..).find(|file| !open.contains(file)).unwrap() + ROOM;
    let limited = Command::new("prlimit")
        .args([format!("--pid={}", master.id()), format!("--nofile={limit}:{limit}")])
        .status()
        .expect("prlimit, of util-linux");
    assert!(limited.success());
    // The kernel completes the connections; the master cannot take all of them.
    let crowd: Vec<_> = (0..3 * ROOM).map(|_| TcpStream::connect(&address).unwrap()).collect();
    until("they run out: the lowest is taken first", || open_files(&master).contains(&(limit - 1)));

    writeln!(master.input(), "{}", json!({ "key": "meanwhile", "value": "2" })).unwrap();
    until("whoever is connected is served", || holds(&edge, "meanwhile"));
    let waiting = Running::spawn(&["follow", "--store", &late, "--from", &address, "--id", "late", "--once"]);
    sleep(Duration::from_millis(300));
    assert!(!holds(&late, "a"), "there is no room for it");

    drop(crowd);
    waiting.end().ok();
    assert_eq!(contents(&late), contents(&central));
    // It has failed at nothing else.
    master.interrupt("TERM").ok();
}
