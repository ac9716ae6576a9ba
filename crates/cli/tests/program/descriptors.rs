//! What runs out: file descriptors, and disks.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Place, Running, contents, fill, program, run, run_with};

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

// A bound on the size of its files is a full disk to a process.
#[test]
fn a_slave_on_a_full_disk_says_so_and_does_not_wait_for_ever_to_catch_up() {
    let place = Place::new();
    let (central, edge) = (place.lmdb("central"), place.lmdb("edge"));
    let lines: String = (0..20_000).map(|n| format!("{n:06}\t{}\n", "v".repeat(500))).collect();
    run_with(&["import", "--store", &central, "--format", "tsv", "-"], lines.as_bytes()).ok();
    let (_master, address) = Running::master(&central, &[]);
    let follow =
        r#"trap '' XFSZ; ulimit -f 2048; exec timeout 100 "$0" follow --store "$1" --from "$2" --id edge --once"#;
    let following =
        Command::new("sh").args(["-c", follow]).arg(program().get_program()).args([&edge, &address]).output();
    let ended = following.unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert_eq!(said.matches(&format!("replikv: {edge} is blocked (")).count(), 1, "{said}");
    // There is room again.
    run(&["follow", "--store", &edge, "--from", &address, "--id", "edge", "--once"]).ok();
    assert_eq!(contents(&edge), contents(&central));
}
