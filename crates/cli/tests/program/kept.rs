//! What a slave's store keeps beside the data stays, whatever is done with the slave.

use std::io::{Read, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use serde_json::json;

use crate::support::{Place, Running, run};

#[track_caller]
fn assert_keeps(slave: &str, log: &str) {
    assert_eq!(run(&["log", "--store", slave]).ok().text(), log);
    assert_eq!(run(&["aggregate", "--store", slave, "n"]).ok().text(), "\t4\n");
}

// A port that nobody listens on: it was free a moment ago.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn verifying_and_taking_over_leave_the_log_and_the_figures_that_a_slave_keeps() {
    let place = Place::new();
    let (store, slave) = (place.filled("master"), place.lmdb("slave"));
    let (_master, address) = Running::master(&store, &[]);
    let follow = ["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"];
    run(&[&follow[..], &["--keep-log", "--aggregate", "n=count:"]].concat()).ok();
    let log = run(&["log", "--store", &store]).ok().text().to_owned();
    assert_keeps(&slave, &log);

    let verify = |from: &str, more: &[&str]| run(&[&["verify", "--store", &slave, "--from", from], more].concat());
    let take_over = |from: &str, more: &[&str]| {
        run(&[&["handover", "--store", &slave, "--id", "edge", "--from", from, "--patience", "30"], more].concat())
    };
    let said = ["--aggregate", "n=count:"];
    let nobody = nobody();
    for more in [&[][..], &said] {
        verify(&nobody, more).says(2, &format!("the master at {nobody} cannot be reached: Connection refused"));
        take_over(&nobody, more).says(2, &format!("the master at {nobody} cannot be reached: Connection refused"));
    }
    // Another figure of the same name is another one.
    for more in [&[][..], &["--aggregate", "n=sum:"], &["--aggregate", "m=count:"]] {
        verify(&address, more).says(2, "it keeps the aggregate n, which would go: say --aggregate");
        take_over(&address, more).says(2, "it keeps the aggregate n, which would go: say --aggregate");
    }
    assert_keeps(&slave, &log);
    assert!(verify(&address, &said).ok().text().starts_with("equal: 4 entries"));
    assert_keeps(&slave, &log);
    take_over(&address, &said).ok();
    let after = run(&["log", "--store", &slave]).ok().text().to_owned();
    assert!(after.starts_with(&log) && after.len() > log.len(), "{after}");
    assert_eq!(run(&["aggregate", "--store", &slave, "n"]).ok().text(), "\t4\n");
    // A master keeps no figures, and says so.
    let put = run(&["put", "--store", &slave, "k", "v"]).ok();
    assert!(put.stderr.contains("keeps no longer what was aggregated as n"), "{put:?}");
    run(&["aggregate", "--store", &slave, "n"]).says(2, "it keeps no aggregate n;");
}

#[test]
fn a_slave_that_keeps_nothing_keeps_nothing_afterwards() {
    let place = Place::new();
    let slave = place.lmdb("slave");
    let (_master, address) = Running::master(&place.filled("master"), &[]);
    run(&["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"]).ok();
    run(&["verify", "--store", &slave, "--from", &address]).ok();
    assert_eq!(run(&["status", "--store", &slave, "--json"]).ok().json()["kept_log"], json!(null));
}

#[test]
fn a_peer_that_is_silent_is_not_waited_for_longer_than_patience() {
    let place = Place::new();
    let slave = place.lmdb("slave");
    {
        let (_master, address) = Running::master(&place.filled("master"), &[]);
        run(&["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"]).ok();
    }
    // It is connected to, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    run(&["handover", "--store", &slave, "--id", "edge", "--from", &address, "--patience", "1"])
        .says(2, &format!("the master at {address} has not handed over to edge: "));
}

/// Passes one connection on to a master, and cuts it after so many bytes of what that says. Nobody else gets through.
fn cut_after(bytes: u64, master: &str) -> String {
    let (listener, master) = (TcpListener::bind("127.0.0.1:0").unwrap(), master.to_owned());
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (slave, _) = listener.accept().unwrap();
        drop(listener);
        let master = TcpStream::connect(master).unwrap();
        let (mut from, mut to) = (slave.try_clone().unwrap(), master.try_clone().unwrap());
        thread::spawn(move || copy(&mut from, &mut to));
        drop(copy(&mut (&master).take(bytes), &mut &slave));
        for end in [slave, master] {
            drop(end.shutdown(Shutdown::Both));
        }
    });
    address
}

#[test]
fn a_master_that_is_lost_while_a_slave_catches_up_is_not_waited_for_longer_than_patience() {
    let place = Place::new();
    let (store, slave) = (place.filled("master"), place.lmdb("slave"));
    let more: String = (0..8000).map(|n| format!("k{n}\t{}\n", "v".repeat(1000))).collect();
    let more = place.file("more.tsv", more);
    {
        let (_master, address) = Running::master(&store, &[]);
        run(&["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"]).ok();
    }
    run(&["import", "--store", &store, &more]).ok();
    let (_master, address) = Running::master(&store, &[]);
    let cut = cut_after(1 << 20, &address);
    let words = format!("has not handed over to edge: there is no connection to the master at {cut}: ");
    run(&["handover", "--store", &slave, "--id", "edge", "--from", &cut, "--patience", "1"]).says(2, &words);
    // It is a slave as before.
    run(&["handover", "--store", &slave, "--id", "edge", "--from", &address, "--patience", "30"]).ok();
}
