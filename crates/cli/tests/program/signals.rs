//! Ctrl-C and SIGTERM end everything orderly.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::support::{HANG, Place, Running, appears, contents, run};

#[test]
fn serve_and_follow_end_well_by_either_signal() {
    let place = Place::new();
    for signal in ["INT", "TERM"] {
        let store = place.filled(&format!("master-{signal}"));
        let before = contents(&store);
        let slave = place.url("sled", &format!("slave-{signal}"));
        let (master, address) = Running::master(&store, &["--stdin"]);
        let following = Running::spawn(&["follow", "--store", &slave, "--id", "s", "--from", &address]);
        following.line();
        let ended = following.interrupt(signal).ok();
        assert!(ended.stderr.is_empty(), "{ended:?}");
        // Standard input is open, and is not waited for.
        let ended = master.interrupt(signal).ok();
        assert!(ended.stderr.is_empty(), "{ended:?}");
        assert_eq!(contents(&store), before);
        run(&["scan", "--store", &slave]).ok();
    }
}

#[test]
fn a_slave_that_is_interrupted_says_goodbye_to_its_master() {
    let place = Place::new();
    let (_master, address) = Running::master(&place.filled("master"), &["--stdin"]);
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let from = between.local_addr().unwrap().to_string();
    let following = Running::spawn(&["follow", "--store", &place.lmdb("slave"), "--id", "s", "--from", &from]);
    let relaying = std::thread::spawn(move || {
        let (mut slave, _) = between.accept().unwrap();
        let mut master = TcpStream::connect(address).unwrap();
        let (mut to_slave, mut from_master) = (slave.try_clone().unwrap(), master.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from_master, &mut to_slave));
        let mut said = Vec::new();
        let mut part = [0; 4096];
        // A connection that breaks ends it too: what was said until then counts.
        while let Ok(read @ 1..) = slave.read(&mut part) {
            said.extend_from_slice(&part[..read]);
            if master.write_all(&part[..read]).is_err() {
                break;
            }
        }
        said
    });
    following.line();
    following.interrupt("INT").ok();
    let said = relaying.join().unwrap();
    let words = b"the slave was shut down";
    assert!(said.windows(words.len()).any(|part| part == words), "{}", said.escape_ascii());
}

#[test]
fn a_slave_that_waits_for_its_master_ends_well() {
    let place = Place::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let slave = place.lmdb("slave");
    let following = Running::spawn(&["follow", "--store", &slave, "--id", "s", "--from", &nobody]);
    let said = following.error_line();
    assert!(said.starts_with(&format!("replikv: no connection to {nobody} yet (")), "{said}");
    following.interrupt("INT").ok();
    assert_eq!(contents(&slave), "");
}

#[test]
fn a_slave_that_was_to_catch_up_says_that_it_was_interrupted() {
    let place = Place::new();
    for signal in ["INT", "TERM"] {
        // Takes connections, and never says a word.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = mute.local_addr().unwrap().to_string();
        let slave = place.lmdb(signal);
        let following = Running::spawn(&["follow", "--store", &slave, "--id", "s", "--from", &address, "--once"]);
        let _connection = mute.accept().unwrap();
        following.interrupt(signal).code(130);
        appears(&place.path(signal));
    }
}

#[test]
fn an_interrupted_import_keeps_whole_batches_and_says_how_many() {
    let place = Place::new();
    // So many entries are a batch; sled prefers small ones.
    for (kind, signal, batch) in [("lmdb", "INT", 50_000), ("sled", "TERM", 1_000)] {
        let store = place.url(kind, kind);
        let mut importing = Running::spawn(&["import", "--store", &store, "-", "--json"]);
        // More than the pipe and the queue hold: when this returns, some of it is written, or being written.
        let lines: String =
            (0..10 * batch + 10_000).map(|n| format!("{{\"key\":\"{n:06}\",\"value\":\"v\"}}\n")).collect();
        importing.input().write_all(lines.as_bytes()).unwrap();
        let ended = importing.interrupt(signal).code(130);
        let said = ended.json();
        assert_eq!(said["complete"], false);
        let entries = said["entries"].as_u64().unwrap();
        assert!(entries >= batch && entries.is_multiple_of(batch), "{ended:?}");
        assert_eq!(contents(&store).lines().count() as u64, entries);
        // The store is whole: it goes on.
        run(&["put", "--store", &store, "more", "v"]).ok();
    }
}

#[test]
fn an_interrupted_export_leaves_no_half_of_a_file() {
    let place = Place::new();
    let store = place.lmdb("store");
    std::fs::create_dir(place.path("out")).unwrap();
    let lines: String = (0..100_000).map(|n| format!("{n:06}\t{}\n", "v".repeat(100))).collect();
    run(&["import", "--store", &store, &place.file("in.tsv", &lines)]).ok();
    let exporting = Running::spawn(&["export", "--store", &store, &place.name("out/all.ndjson")]);
    // Its temporary file shows that it has begun.
    while std::fs::read_dir(place.path("out")).unwrap().next().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let ended = exporting.interrupt("TERM");
    let left: Vec<_> = std::fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    match ended.code {
        Some(130) => assert!(left.is_empty(), "{left:?}"),
        // It was done before the signal came.
        _ => assert_eq!((ended.code, &left[..]), (Some(0), &["all.ndjson".into()][..]), "{ended:?}"),
    }
}

#[test]
fn an_import_that_is_interrupted_while_it_checks_has_written_nothing() {
    let place = Place::new();
    let store = place.lmdb("store");
    run(&["put", "--store", &store, "k", "v"]).ok();
    let lines: String = (0..200_000).map(|n| format!("{n:06}\tv\n")).collect();
    let file = place.file("in.tsv", &lines);
    let importing = Running::spawn(&["import", "--store", &store, &file]);
    // Signals are listened for before the file is opened.
    let descriptors = format!("/proc/{}/fd", importing.id());
    let is_open = || {
        let entries = std::fs::read_dir(&descriptors).into_iter().flatten().flatten();
        entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|open| open.ends_with("in.tsv"))
    };
    let start = std::time::Instant::now();
    while !is_open() {
        assert!(start.elapsed() < HANG, "it does not open the file");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let ended = importing.interrupt("TERM");
    match (ended.code, contents(&store).lines().count()) {
        (Some(130), 1) | (Some(0), 200_001) => {}
        // It was done with that before the signal came.
        (Some(130), _) if ended.stderr.contains("interrupted") => {}
        _ => panic!("{ended:?}"),
    }
}
