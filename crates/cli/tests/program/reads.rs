//! Reading from a process that has the store.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Place, Running, run, tamper};

fn entries(place: &Place) -> String {
    let lines = (0..25_000).map(|n| format!("k{n:05}\tvalue {n}\n")).collect::<String>();
    place.file("entries.tsv", lines)
}

#[test]
fn a_master_and_a_slave_are_read_over_the_network_as_their_stores_are() {
    let place = Place::new();
    let (store, copy) = (place.lmdb("master"), place.lmdb("slave"));
    let (master, address) = Running::master(&store, &["--import", &entries(&place)]);
    assert_eq!(master.error_line(), "imported 25,000 entries");
    run(&["follow", "--store", &copy, "--id", "edge", "--from", &address, "--once"]).ok();
    let args = ["follow", "--store", &copy, "--id", "edge", "--from", &address, "--serve-reads", "127.0.0.1:0"];
    let slave = Running::spawn(&args);
    let reads = slave.line().strip_prefix("reads on ").map(String::from).expect("it says where it answers");

    for address in [&address, &reads] {
        assert_eq!(run(&["get", "--from", address, "k00007"]).ok().text(), "value 7");
        let found = run(&["get", "--from", address, "k00007", "--json"]).ok().json();
        assert_eq!(found, json!({ "key": "k00007", "value": "value 7" }));
        run(&["get", "--from", address, "nothing"]).says(1, "no such key");
        run(&["get", "--from", address, ""]).says(2, "the key is empty");
        for more in [
            &[][..],
            &["--json"],
            &["--reverse", "--limit", "12345"],
            &["--prefix", "k0001", "--start", "k00012", "--end", "k00018"],
        ] {
            let here = run(&[&["scan", "--store", &copy], more].concat()).ok();
            let there = run(&[&["scan", "--from", address], more].concat()).ok();
            assert_eq!(here.text(), there.text(), "{more:?}");
        }
    }
    // Whoever reads data is told the status, too.
    let status = run(&["status", "--from", &reads, "--json"]).ok().json();
    assert_eq!((&status["name"], &status["consistent"]), (&json!("edge"), &json!(true)));
    slave.interrupt("TERM").ok();
    master.interrupt("TERM").ok();
    run(&["get", "--from", &address, "k00007"]).says(2, "cannot be asked");
}

#[test]
fn an_address_that_tells_the_status_alone_answers_no_reads() {
    let place = Place::new();
    let (store, copy) = (place.filled("master"), place.lmdb("slave"));
    let (_master, address) = Running::master(&store, &[]);
    let slave =
        Running::spawn(&["follow", "--store", &copy, "--id", "edge", "--from", &address, "--status", "127.0.0.1:0"]);
    let status = slave.line().strip_prefix("status on ").map(String::from).expect("it says where it answers");
    run(&["get", "--from", &status, "k"]).says(2, "nothing of its data");
    run(&["scan", "--from", &status]).says(2, "nothing of its data");
}

#[test]
fn reads_over_the_network_are_refused_in_one_line_that_says_why() {
    let place = Place::new();
    let store = place.filled("master");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().to_string();
    run(&["get", "--from", &free, "k"]).says(2, "cannot be asked");
    run(&["get", "--from", "nowhere", "k"]).says(2, "is no address");
    run(&["get", "--from", &free, "--store", &store, "k"]).says(2, "cannot be used with");
    run(&["get", "k"]).says(2, "--store");
    run(&["get", "--from", &free, "--from", "nowhere", "k"]).says(2, "is no address");
    run(&["get", "--store", &store, "--max-lag", "1s", "apple"]).says(2, "cannot be used with");
    run(&["scan", "--from", &free, "--max-lag", "soon"]).says(2, "is no time");
    let args = ["follow", "--store", &store, "--id", "x", "--from", &free, "--serve-reads", "0.0.0.0:0"];
    run(&args).says(2, "is not loopback");
}

/// A slave that answers reads, which holds its own name besides what its master has, and its address.
fn reader(place: &Place, name: &str, from: &str) -> (Running, String) {
    let store = place.lmdb(name);
    let follow = ["follow", "--store", &store, "--id", name, "--from", from];
    run(&[&follow[..], &["--once"]].concat()).ok();
    tamper(&place.path(name), "name", name);
    let slave = Running::spawn(&[&follow[..], &["--serve-reads", "127.0.0.1:0"]].concat());
    let reads = slave.line().strip_prefix("reads on ").map(String::from).expect("it says where it answers");
    // It knows how far it is behind.
    assert!(slave.line().starts_with("following "));
    while run(&["status", "--from", &reads, "--check"]).code != Some(0) {}
    (slave, reads)
}

#[test]
fn of_several_addresses_slaves_are_asked_then_the_master_and_one_that_is_down_is_passed_over() {
    let place = Place::new();
    let store = place.filled("master");
    let (master, at_master) = Running::master(&store, &[]);
    let ((one, at_one), (two, at_two)) = (reader(&place, "one", &at_master), reader(&place, "two", &at_master));
    let all = ["--from", &at_master, "--from", &at_one, "--from", &at_two];
    let get = |from: &[&str], key| run(&[&["get", key][..], from].concat());
    for _ in 0..5 {
        let name = get(&all, "name").ok();
        assert!(["one", "two"].contains(&name.text()), "a slave is asked: {name:?}");
    }
    let scanned = |from: &[&str]| run(&[&["scan", "--end", "name"][..], from].concat()).ok().text().to_owned();
    assert_eq!(scanned(&all), scanned(&["--store", &store]));
    // Nobody but the master is never behind, and its answer needs no bound.
    get(&[&all[..], &["--max-lag", "0s", "--max-lag-records", "0"]].concat(), "apple").ok();

    one.interrupt("KILL");
    for _ in 0..5 {
        assert_eq!(get(&all, "name").ok().text(), "two");
    }
    let without_two = ["--from", &at_one, "--from", &at_master];
    assert_eq!(get(&without_two, "apple").ok().text(), "1");
    get(&without_two, "name").says(1, "no such key");

    // Without a master nobody knows how old it is: it will do, unless that was asked for.
    master.interrupt("KILL");
    while get(&[&all[..], &["--max-lag", "1h"]].concat(), "name").code != Some(2) {}
    let bounded = get(&[&all[..], &["--max-lag", "1h"]].concat(), "name");
    bounded.says(2, "no reader is within the bound: nobody knows how far it is behind");
    assert_eq!(get(&all, "name").ok().text(), "two");
    assert_eq!(scanned(&all), scanned(&["--store", &place.lmdb("two")]));
    two.interrupt("KILL");
    let said = get(&all, "name").says(2, "cannot be asked");
    assert!([&at_master, &at_one, &at_two].iter().all(|address| said.stderr.contains(*address)), "{said:?}");
}

#[test]
fn nodes_of_two_masters_are_not_mixed_and_a_master_that_was_replaced_is_not_read() {
    let place = Place::new();
    let (one, two) = (place.filled("one"), place.filled("two"));
    let ((_one, at_one), (_two, at_two)) = (Running::master(&one, &[]), Running::master(&two, &[]));
    let (slave, at_slave) = reader(&place, "slave", &at_two);
    for other in [&at_slave, &at_two] {
        run(&["get", "--from", other, "--from", &at_one, "apple"]).says(2, "hold the data of two masters");
        run(&["scan", "--from", &at_one, "--from", other]).says(2, "hold the data of two masters");
    }
    slave.interrupt("KILL");
    let standby = place.lmdb("standby");
    run(&["follow", "--store", &standby, "--id", "standby", "--from", &at_two, "--once"]).ok();
    run(&["handover", "--store", &standby, "--id", "standby", "--from", &at_two]).ok();
    // It still runs, and answers whoever asks for it and nobody else.
    run(&["get", "--from", &at_two, "apple"]).ok();
    run(&["get", "--from", &at_two, "--from", &at_slave, "apple"]).says(2, "another master goes on in its place");
    let check = run(&["status", "--from", &at_two, "--check"]).code(1);
    assert!(check.stderr.contains("not healthy: replaced: "), "{check:?}");
}

#[test]
fn a_slave_that_has_not_heard_of_its_master_for_longer_than_was_asked_for_is_not_well() {
    let place = Place::new();
    let (_master, at_master) = Running::master(&place.filled("master"), &[]);
    let (_slave, reads) = reader(&place, "edge", &at_master);
    let check = |max_lag| run(&["status", "--from", &reads, "--check", "--max-lag", max_lag]);
    check("1h").ok();
    // Its master says something every other second.
    let silent = std::iter::repeat_with(|| check("1ms")).find(|answer| answer.code != Some(0)).unwrap();
    assert!(silent.stderr.contains("nothing was heard of its master for"), "{silent:?}");
}

#[test]
fn a_node_that_stays_silent_is_given_up_long_before_it_hangs_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                thread::sleep(Duration::from_secs(30));
                drop(stream);
            });
        }
    });
    let bound = ["--max-lag", "5s"];
    let asked =
        [&["get", "k"][..], &["scan"]].into_iter().flat_map(|command| [command.to_vec(), [command, &bound].concat()]);
    let asking: Vec<_> = asked.map(|command| Running::spawn(&[&command[..], &["--from", &address]].concat())).collect();
    for asking in asking {
        let ended = asking.end();
        let silent =
            ["no answer", "nothing was heard of it for too long"].iter().any(|words| ended.stderr.contains(words));
        assert!(silent, "{ended:?}");
        assert!(ended.stderr.matches("the reader cannot be reached").count() <= 1, "{ended:?}");
        ended.says(2, &format!("the node at {address} cannot be asked"));
    }
}
