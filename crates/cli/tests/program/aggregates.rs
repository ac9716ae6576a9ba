//! Figures of groups of keys, kept beside the data of slaves and centres.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};

use crate::support::{Place, Running, fill, run};

/// What `scan` shows, with what comes before the own key of each link's master taken off.
fn entries(store: &str, prefixes: &[&str]) -> Vec<(String, String)> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let lines = run(&["scan", "--store", store, "--json"]).ok().json_lines();
    let own = |key: String| prefixes.iter().find_map(|prefix| key.strip_prefix(prefix)).map_or(key.clone(), Into::into);
    lines.iter().map(|entry| (own(text(entry, "key")), text(entry, "value"))).collect()
}

/// Groups, and what each is of entries; `None` of one that adds nothing.
fn recomputed(
    entries: &[(String, String)],
    separator: &str,
    of: impl Fn(&str) -> Option<f64>,
) -> BTreeMap<String, f64> {
    let mut groups = BTreeMap::new();
    for (key, value) in entries {
        if let Some(figure) = of(value) {
            *groups.entry(key.split(separator).next().unwrap().to_owned()).or_default() += figure;
        }
    }
    groups
}

fn kept(store: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = run(&["aggregate", "--store", store, name, "--json"]).ok().json_lines();
    let groups: Vec<_> = lines.iter().map(|line| line["group"].as_str().unwrap().to_owned()).collect();
    assert!(groups.is_sorted(), "{groups:?}");
    groups.into_iter().zip(lines.iter().map(|line| line["figure"].as_f64().unwrap())).collect()
}

const KEPT: [&str; 6] = ["--aggregate", "n=count", "--aggregate", "size=bytes", "--aggregate", "total=sum:-"];

#[track_caller]
fn assert_as_recomputed(store: &str, prefixes: &[&str], when: &str) {
    let entries = entries(store, prefixes);
    assert_eq!(kept(store, "n"), recomputed(&entries, "/", |_| Some(1.0)), "{when}");
    assert_eq!(kept(store, "size"), recomputed(&entries, "/", |value| Some(value.len() as f64)), "{when}");
    assert_eq!(kept(store, "total"), recomputed(&entries, "-", |value| value.parse().ok()), "{when}");
}

#[test]
fn a_centre_keeps_figures_over_all_links_as_they_are_recomputed_from_its_entries() {
    let place = Place::new();
    let (one, two) = (place.lmdb("one"), place.url("sled", "two"));
    fill(
        &one,
        &[("users/a", "1.5"), ("users/b", "text"), ("orders/1-x", "12.25"), ("orders/2-x", "-2"), ("plain", "7")],
    );
    fill(&two, &[("users/a", "3"), ("users/c", "4"), ("goods/1", "0.5")]);
    let ((mut first, at_one), (second, at_two)) = (Running::master(&one, &["--stdin"]), Running::master(&two, &[]));
    let centre = place.lmdb("centre");
    let (link_one, link_two) = (format!("one={at_one}"), format!("two={at_two}"));
    let gather =
        ["gather", "--store", &centre, "--link", &link_one, "--once", "--link", &link_two, "--prefix", "two=deux:"];
    let gather = [&gather[..], &KEPT].concat();
    let prefixes = ["one/", "deux:"];
    run(&gather).ok();
    assert_as_recomputed(&centre, &prefixes, "as they are");
    assert_eq!(run(&["aggregate", "--store", &centre, "n"]).ok().text(), "goods\t1\norders\t2\nplain\t1\nusers\t4\n");
    assert_eq!(run(&["aggregate", "--store", &centre, "total", "orders/1"]).ok().text(), "12.25\n");
    let figure = run(&["aggregate", "--store", &centre, "size", "users", "--json"]).ok().json();
    assert_eq!(figure, json!({ "group": "users", "figure": 9 }));
    run(&["aggregate", "--store", &centre, "n", "nobody"]).says(1, "no such group");

    for (operation, gone) in [
        (json!({ "key": "users/a", "value": "100.25" }), None),
        (json!({ "key": "users/b", "value": "8" }), None),
        (json!({ "key": "orders/1-x", "value": "none" }), Some("orders/1")),
        (json!({ "op": "delete", "key": "plain" }), Some("plain")),
        (json!({ "op": "delete_range", "start": "orders/", "end": "orders0" }), Some("orders/2")),
    ] {
        writeln!(first.input(), "{operation}").unwrap();
        writeln!(first.input(), "{}", json!({ "key": "last", "value": operation.to_string() })).unwrap();
        while run(&["get", "--from", &at_one, "last"]).stdout != operation.to_string().as_bytes() {}
        run(&gather).ok();
        assert_as_recomputed(&centre, &prefixes, &operation.to_string());
        if let Some(gone) = gone {
            assert!(!kept(&centre, "total").contains_key(gone), "{gone}");
        }
    }

    run(&["unlink", "--store", &centre, "two", "--remove-data"]).ok();
    run(&["aggregate", "--store", &centre, "n"]).says(2, "it keeps no aggregate n;");
    let alone = ["gather", "--store", &centre, "--link", &link_one, "--once"];
    run(&[&alone[..], &KEPT].concat()).ok();
    assert_as_recomputed(&centre, &prefixes, "without two");
    assert_eq!(kept(&centre, "n").keys().collect::<Vec<_>>(), ["last", "users"]);
    second.interrupt("INT").ok();
    first.interrupt("INT").ok();
}

#[test]
fn figures_are_read_while_the_centre_gathers_and_serves() {
    let place = Place::new();
    let (one, centre) = (place.filled("one"), place.lmdb("centre"));
    let (mut master, at_one) = Running::master(&one, &["--stdin"]);
    let link = format!("one={at_one}");
    let args = ["gather", "--store", &centre, "--link", &link, "--listen", "127.0.0.1:0", "--aggregate", "all=sum:"];
    let gathering = Running::spawn(&args);
    let ready = gathering.line();
    let address = ready.rsplit_once(' ').unwrap().1;
    let all = |store: &str| run(&["aggregate", "--store", store, "all", ""]).stdout;
    while all(&centre) != b"10\n" {}
    writeln!(master.input(), "{}", json!({ "key": "elder", "value": "0.5" })).unwrap();
    while all(&centre) != b"10.5\n" {}
    // It is no part of the data: whoever follows the centre keeps figures of its own.
    let below = place.lmdb("below");
    let follow =
        ["follow", "--store", &below, "--from", address, "--id", "below", "--once", "--aggregate", "n=count:e"];
    run(&follow).ok();
    run(&["verify", "--store", &centre, "--store", &below]).ok();
    run(&["aggregate", "--store", &below, "all"]).says(2, "it keeps no aggregate all, but n;");
    let listed = run(&["aggregate", "--store", &below, "n"]).ok();
    assert_eq!(listed.text(), "on\t5\n", "keys begin with one/");
    gathering.interrupt("TERM").ok();
    master.interrupt("TERM").ok();
    assert_eq!(all(&centre), b"10.5\n");
}

#[test]
fn another_definition_is_derived_anew_and_what_is_left_out_goes() {
    let place = Place::new();
    let slave = place.url("sled", "slave");
    let (master, address) = Running::master(&place.filled("master"), &[]);
    let follow = |more: &[&str]| {
        run(&[&["follow", "--store", &slave, "--from", &address, "--id", "edge", "--once"], more].concat())
    };
    let print = |name| run(&["aggregate", "--store", &slave, name]);
    follow(&["--aggregate", "n=count:", "--aggregate", "letters=count:a"]).ok();
    assert_eq!(print("n").ok().text(), "\t4\n");
    assert_eq!(print("letters").ok().text(), "\t1\nb\t1\ncherry\t1\nd\t1\n");
    follow(&["--aggregate", "n=sum:"]).ok();
    assert_eq!(print("n").ok().text(), "\t10\n");
    print("letters")
        .says(2, "it keeps no aggregate letters, but n; follow or gather with --aggregate letters=... makes it");
    follow(&[]).ok();
    print("n").says(2, "it keeps no aggregate n; follow or gather");
    follow(&["--aggregate", "n=bytes:"]).ok();
    assert_eq!(print("n").ok().text(), "\t4\n");
    master.interrupt("INT").ok();
}

#[test]
fn what_is_no_aggregate_is_refused_before_anything_is_made() {
    let place = Place::new();
    let (store, master) = (place.lmdb("slave"), place.filled("master"));
    let follow = |store: &str, more: &[&str]| {
        run(&[&["follow", "--store", store, "--from", "127.0.0.1:1", "--id", "edge"][..], more].concat())
    };
    follow(&store, &["--aggregate", "n=most"]).says(2, "write NAME=count, NAME=bytes or NAME=sum");
    follow(&store, &["--aggregate", "=count"]).says(2, "is no name");
    follow(&store, &["--aggregate", "n=count", "--aggregate", "n=sum"]).says(2, "more than one --aggregate n");
    assert!(!place.path("slave").exists());
    run(&["aggregate", "--store", &store, "n"]).says(2, "there is no such store");
    run(&["aggregate", "--store", &master, "n"]).says(2, "it keeps no aggregate n;");
    // Whoever cannot be opened so is not derived from either.
    follow(&master, &["--aggregate", "n=count"]).says(2, "it cannot be opened as a slave");
    run(&["aggregate", "--store", &master, "n"]).says(2, "it keeps no aggregate n;");
}

#[test]
fn a_backup_that_becomes_a_slaves_store_keeps_figures_at_once() {
    let place = Place::new();
    let store = place.filled("master");
    run(&["backup", "--store", &store, &place.name("copy")]).ok();
    let (master, address) = Running::master(&store, &[]);
    let copy = place.lmdb("copy");
    let follow = ["follow", "--store", &copy, "--from", &address, "--as-slave", "edge", "--once"];
    run(&[&follow[..], &["--aggregate", "n=sum:"]].concat()).ok();
    assert_eq!(run(&["aggregate", "--store", &copy, "n", ""]).ok().text(), "10\n");
    master.interrupt("INT").ok();
}

#[test]
fn a_name_of_no_link_is_undone_by_nobody_and_the_figures_stay() {
    let place = Place::new();
    let (centre, all) = (place.lmdb("centre"), place.url("sled", "all"));
    let (master, address) = Running::master(&place.filled("one"), &[]);
    let link = format!("one={address}");
    run(&["gather", "--store", &centre, "--link", &link, "--once", "--aggregate", "n=count:"]).ok();
    // One that is a master as well.
    let gathering = Running::spawn(&[
        "gather",
        "--store",
        &all,
        "--link",
        &link,
        "--listen",
        "127.0.0.1:0",
        "--aggregate",
        "n=count:",
    ]);
    let ready = gathering.line();
    let at_all = ready.rsplit_once(' ').unwrap().1;
    while run(&["scan", "--from", at_all]).ok().lines().len() < 4 {}
    gathering.interrupt("TERM").ok();
    master.interrupt("INT").ok();
    for store in [&centre, &all] {
        let figures = run(&["aggregate", "--store", store, "n"]).ok().stdout;
        for how in ["--keep-data", "--remove-data"] {
            run(&["unlink", "--store", store, "oen", how]).says(1, "there is no link of that name");
            let told = run(&["unlink", "--store", store, "oen", how, "--json"]).code(1);
            assert_eq!(told.json(), json!({ "unlinked": false }));
        }
        assert_eq!(run(&["aggregate", "--store", store, "n"]).ok().stdout, figures);
        let undone = run(&["unlink", "--store", store, "one", "--keep-data"]).ok();
        assert!(undone.stderr.contains("keeps no longer what was aggregated as n"), "{undone:?}");
        assert_eq!(run(&["scan", "--store", store]).ok().lines().len(), 4);
    }
}
