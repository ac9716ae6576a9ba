//! Many masters into one store, by the program alone.

use std::io::Write;

use serde_json::json;

use crate::support::{Place, Running, contents, fill, run};

fn entries(entries: &[(&str, &str)]) -> String {
    entries.iter().map(|(key, value)| json!({ "key": key, "value": value }).to_string() + "\n").collect()
}

#[test]
fn masters_flow_into_one_store_and_slaves_hang_below_it() {
    let place = Place::new();
    let (one, two) = (place.lmdb("one"), place.url("sled", "two"));
    fill(&one, &[("a", "1"), ("b", "2")]);
    fill(&two, &[("a", "other")]);
    let ((mut first, at_one), (second, at_two)) = (Running::master(&one, &["--stdin"]), Running::master(&two, &[]));
    let centre = place.lmdb("centre");
    let (link_one, link_two) = (format!("one={at_one}"), format!("two={at_two}"));
    let links = ["--link", &link_one, "--link", &link_two, "--prefix", "two=deux:"];
    let gather = [&["gather", "--store", &centre][..], &links].concat();
    let ended = run(&[&gather[..], &["--once"]].concat()).ok();
    assert!(ended.text().contains("one: caught up at record") && ended.text().contains("two: caught up"), "{ended:?}");
    assert_eq!(contents(&centre), entries(&[("deux:a", "other"), ("one/a", "1"), ("one/b", "2")]));

    // It may become a master of all that, and go on gathering.
    let running = Running::spawn(&[&gather[..], &["--listen", "127.0.0.1:0"]].concat());
    let serving = running.line();
    let address =
        serving.strip_prefix(&format!("serving {centre} on ")).unwrap_or_else(|| panic!("{serving}")).to_string();
    let below = place.url("sled", "below");
    let mut following = [running.line(), running.line()];
    following.sort();
    assert!(
        following[0].starts_with("one: following ") && following[1].starts_with("two: following "),
        "{following:?}"
    );
    writeln!(first.input(), "{}", json!({ "key": "c", "value": "3" })).unwrap();
    loop {
        run(&["follow", "--store", &below, "--from", &address, "--id", "below", "--once"]).ok();
        if run(&["get", "--store", &below, "one/c"]).code == Some(0) {
            break;
        }
    }
    running.interrupt("TERM").ok();
    run(&["verify", "--store", &centre, "--store", &below]).ok();

    let status = run(&["status", "--store", &centre, "--json"]).ok().json();
    assert_eq!(status["role"], "master");
    assert_eq!(status["links"][0]["link"], "one");
    assert_eq!((&status["links"][1]["prefix"], &status["links"][1]["consistent"]), (&json!("deux:"), &json!(true)));
    run(&["put", "--store", &centre, "k", "v"]).says(2, "it is a centre's store");
    drop((first.interrupt("INT").ok(), second.interrupt("INT").ok()));

    run(&["unlink", "--store", &centre, "three", "--keep-data"]).says(1, "there is no link of that name");
    run(&["unlink", "--store", &one, "one", "--keep-data"]).says(2, "it is no centre's store");
    run(&["unlink", "--store", &centre, "one", "--remove-data"]).ok();
    assert_eq!(contents(&centre), entries(&[("deux:a", "other")]));
    run(&["unlink", "--store", &centre, "two", "--keep-data"]).ok();
    assert_eq!(contents(&centre), entries(&[("deux:a", "other")]));
    // Without links it is a master like any other.
    run(&["put", "--store", &centre, "k", "v"]).ok();
}

#[test]
fn links_that_want_the_same_keys_are_refused_with_both_names() {
    let place = Place::new();
    let store = place.lmdb("one");
    fill(&store, &[("a", "1")]);
    let ((_master, address), (_other, at_other)) =
        (Running::master(&store, &[]), Running::master(&place.lmdb("two"), &[]));
    let centre = place.lmdb("centre");
    let (one, two, again) = (format!("one={address}"), format!("two={at_other}"), format!("again={address}"));
    // A master knows one slave of a name.
    run(&["gather", "--store", &centre, "--link", &one, "--link", &two, "--link", &again, "--once"])
        .says(2, &format!("links one and again follow one master, {address}, which knows this centre by one name"));
    assert!(!place.path("centre").exists());
    run(&["gather", "--store", &centre, "--link", &one, "--link", &two, "--prefix", "two=one/x", "--once"])
        .says(2, "link two wants keys under \"one/x\", and link one has those under \"one/\"");
    for (link, words) in
        [("nothing", "write NAME=ADDR"), ("=127.0.0.1:1", "is no name"), ("one=nowhere", "is no address")]
    {
        run(&["gather", "--store", &place.lmdb("other"), "--link", link, "--once"]).says(2, words);
    }
    assert!(!place.path("other").exists(), "what is refused leaves nothing behind");
    run(&["unlink", "--store", &centre, "one"]).says(2, "--keep-data");
}

#[test]
fn a_longer_key_is_taken_if_the_master_says_so_and_then_fits_under_no_prefix_of_lmdb() {
    let place = Place::new();
    let store = place.lmdb("one");
    let key = "k".repeat(500);
    let file = place.file("long.tsv", format!("{key}\tv\n"));
    run(&["import", "--store", &store, &file]).says(2, "the key has 500 bytes, the store holds keys of up to 480");
    run(&["import", "--store", &store, "--max-key", "511", &file]).ok();
    let (_master, address) = Running::master(&store, &["--max-key", "511"]);
    let link = format!("one={address}");
    run(&["gather", "--store", &place.lmdb("centre"), "--link", &link, "--once"]).says(2, "lower the master's limits");
    run(&["gather", "--store", &place.url("sled", "centre-sled"), "--link", &link, "--once"]).ok();
    run(&["gather", "--store", &place.lmdb("root"), "--link", &link, "--prefix", "one=", "--once"]).ok();
    assert_eq!(contents(&place.lmdb("root")), entries(&[(&key, "v")]));
}

#[test]
fn a_prefix_under_which_no_key_fits_is_not_the_links_afterwards() {
    let place = Place::new();
    let store = place.lmdb("one");
    fill(&store, &[("a", "1")]);
    let (_master, address) = Running::master(&store, &[]);
    let (link, centre) = (format!("one={address}"), place.lmdb("centre"));
    let gather = ["gather", "--store", &centre, "--link", &link, "--once"];
    let under = |len: usize| run(&[&gather[..], &["--prefix", &format!("one={}", "p".repeat(len))]].concat());
    under(600).says(2, "link one puts 600 bytes before its keys, and the store holds keys of up to 511");
    // Too long for the keys that this master takes: only the master can tell.
    under(40).says(2, "lower the master's limits");
    run(&gather).ok();
    assert_eq!(contents(&centre), entries(&[("one/a", "1")]));
    under(4).says(2, "link one has its entries under \"one/\", not under \"pppp\"");
}

#[test]
fn a_link_brings_what_lies_under_a_prefix_and_strips_it() {
    let place = Place::new();
    let store = place.lmdb("one");
    fill(&store, &[("orders/7", "o"), ("users/a", "1"), ("users/b", "2"), ("usersz", "z")]);
    let (mut master, address) = Running::master(&store, &["--stdin"]);
    let centre = place.lmdb("centre");
    let (edge, root) = (format!("edge={address}"), format!("root={address}"));
    let gather = ["gather", "--store", &centre, "--link", &edge, "--once"];
    let strip = [&gather[..], &["--strip", "edge=users/"]].concat();
    run(&strip).ok();
    assert_eq!(contents(&centre), entries(&[("edge/a", "1"), ("edge/b", "2")]));
    let status = run(&["status", "--store", &centre, "--json"]).ok().json();
    assert_eq!((&status["links"][0]["prefix"], &status["links"][0]["strip"]), (&json!("edge/"), &json!("users/")));

    let across = json!({ "op": "delete_range", "start": "orders/", "end": "users/b" });
    writeln!(master.input(), "{across}").unwrap();
    while run(&["get", "--from", &address, "users/a"]).code != Some(1) {}
    run(&strip).ok();
    assert_eq!(contents(&centre), entries(&[("edge/b", "2")]));

    run(&gather).says(2, "link edge strips \"users/\" off its master's keys, not \"\"; --strip NAME=PREFIX says");
    run(&[&strip[..], &["--only", "edge=orders/"]].concat()).says(2, "some of orders/..orders0 do not begin with that");
    run(&[&strip[..], &["--strip", "edge=orders/"]].concat()).says(2, "link edge has more than one --strip");
    for option in ["--strip", "--prefix", "--only"] {
        run(&[&gather[..], &[option, "two=users/"]].concat()).says(2, "there is no link two");
    }
    let into_root = ["--link", &root, "--strip", "root=users/", "--prefix", "root=", "--once"];
    run(&[&["gather", "--store", &place.lmdb("root")][..], &into_root].concat()).ok();
    assert_eq!(contents(&place.lmdb("root")), entries(&[("b", "2")]));
    master.interrupt("INT").ok();
}
