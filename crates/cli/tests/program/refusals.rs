//! What cannot be done is said in one line, with an exit code, and changes nothing.

use std::net::TcpListener;

use crate::support::{Ended, Place, Running, contents, fill, run, run_with};

#[track_caller]
fn refused(args: &[&str], words: &str) -> Ended {
    run(args).says(2, words)
}

#[test]
fn a_wrong_command_line_is_refused_in_one_line() {
    for (args, words) in [
        (&["put", "--store", "lmdb:x", "k"][..], "not provided: <VALUE>; see --help"),
        (&["get", "k"], "--store <URL>"),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
        (&["scan", "--store", "lmdb:x", "--sideways"], "unexpected argument '--sideways'"),
        (&["scan", "--store", "lmdb:x", "--limit", "few"], "'few'"),
        (&["import", "--store", "lmdb:x", "--format", "xml", "-"], "possible values: ndjson, csv, tsv"),
        (&["serve", "--store", "lmdb:x", "--listen", "localhost"], "'localhost'"),
        (&["status"], "not provided: <--from <ADDR>|--store <URL>>"),
        (&["status", "--from", "127.0.0.1:1", "--store", "lmdb:x"], "cannot be used with"),
        (&["unlink", "--store", "lmdb:x", "one"], "not provided: <--keep-data|--remove-data>"),
        (&["unlink", "--store", "lmdb:x", "one", "--keep-data", "--remove-data"], "cannot be used with"),
        (&["serve", "--store", "lmdb:x", "--listen", "no.such.host.invalid:1"], "write HOST:PORT"),
        (&["status", "--from", "127.0.0.1:1", "--check", "--max-lag", "5d"], "write 500ms, 5s, 2m or 24h"),
        (&["status", "--store", "lmdb:x", "--check"], "cannot be used with '--check'"),
        (&["verify", "--store", "lmdb:x"], "give --store twice"),
        (&["verify", "--store", "lmdb:x", "--store", "lmdb:x"], "given twice"),
        (&["completions", "tcsh-for-sure"], "'tcsh-for-sure'"),
        (&["bench", "--rounds", "0"], "at least one of everything"),
    ] {
        refused(args, words);
    }
    // Help is not an error of one line, and ends with the code of a command that was not done.
    let ended = run(&[]).code(2);
    assert!(ended.stderr.contains("Usage: replikv") && ended.stderr.contains("Exit codes:"), "{ended:?}");
    let ended = run(&["help"]).ok();
    assert!(ended.text().contains("130  interrupted"), "{ended:?}");
}

#[test]
fn every_command_refuses_what_is_no_store() {
    let place = Place::new();
    let file = place.file("file", "words");
    std::fs::create_dir(place.path("garbage")).unwrap();
    place.file("garbage/data.mdb", vec![0x5A; 10_000]);
    place.file("entries.tsv", "k\tv\n");
    let entries = place.name("entries.tsv");
    let commands: [&[&str]; 11] = [
        &["get", "k"],
        &["put", "k", "v"],
        &["del", "k"],
        &["scan"],
        &["export"],
        &["import", &entries],
        &["log"],
        &["log", "--follow"],
        &["status"],
        &["serve", "--listen", "127.0.0.1:0"],
        &["verify", "--store", "memory:"],
    ];
    let lmdb_file = format!("lmdb:{file}");
    let sled_file = format!("sled:{file}");
    let garbage = place.lmdb("garbage");
    let urls = [
        ("redis:x", "use lmdb:PATH, sled:PATH, redb:PATH, fjall:PATH or memory:"),
        ("nonsense", "use lmdb:PATH, sled:PATH, redb:PATH, fjall:PATH or memory:"),
        ("lmdb:", "names no path"),
        ("sled:", "names no path"),
        (&lmdb_file, "it is a file"),
        (&sled_file, "it is a file"),
        (&garbage, "holds no LMDB environment"),
    ];
    for command in commands {
        for (url, words) in urls {
            let ended = refused(&[&command[..1], &["--store", url], &command[1..]].concat(), words);
            assert!(ended.stderr.matches(url).count() <= 2, "{ended:?}");
        }
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"words", "the file is as it was");
}

#[test]
fn commands_that_read_leave_nothing_behind() {
    let place = Place::new();
    for kind in ["lmdb", "sled"] {
        let url = place.url(kind, "nowhere");
        for command in [&["get", "k"][..], &["del", "k"], &["scan"], &["export"], &["log"], &["status"]] {
            refused(&[&command[..1], &["--store", &url], &command[1..]].concat(), "there is no such store");
        }
        refused(&["verify", "--store", &url, "--store", "memory:"], "there is no such store");
        assert!(!place.path("nowhere").exists());
    }
}

#[test]
fn an_environment_that_is_no_store_is_read_by_nobody_and_stays_as_it_is() {
    use replikv::heed::types::Str;
    use replikv::heed::{CommitOrAbort, EnvOpenOptions};
    let place = Place::new();
    let directory = place.path("foreign");
    std::fs::create_dir(&directory).unwrap();
    #[allow(unsafe_code, reason = "heed asks its caller to vouch for the map")]
    // SAFETY: nobody else has this file open.
    let env = unsafe { EnvOpenOptions::new().max_dbs(1).open(&directory) }.unwrap();
    let created = env.create_databases_and_commit(env.write_txn().unwrap(), |opener, txn| {
        let users = opener.database_options().types::<Str, Str>().name("users").create(txn)?;
        Ok::<_, replikv::heed::Error>(CommitOrAbort::<_, ()>::Commit(users))
    });
    created.unwrap();
    drop(env);
    let before = std::fs::read(directory.join("data.mdb")).unwrap();
    let url = place.lmdb("foreign");
    for command in [&["get", "k"][..], &["scan"], &["export"], &["log"], &["status"], &["verify", "--store", "memory:"]]
    {
        refused(&[&command[..1], &["--store", &url], &command[1..]].concat(), "holds no store");
    }
    assert!(std::fs::read(directory.join("data.mdb")).unwrap() == before, "no database was made in it");
    assert!(!directory.join("replikv.lock").exists());
}

#[test]
fn a_missing_file_or_a_directory_is_named() {
    let place = Place::new();
    let store = place.filled("store");
    let before = contents(&store);
    let missing = place.name("missing.csv");
    let directory = place.name("");
    let nameless = place.file("entries", "k\tv\n");
    for command in
        [&["import", "--store", &store][..], &["serve", "--listen", "127.0.0.1:0", "--store", &store, "--import"]]
    {
        refused(&[command, &[&missing]].concat(), "missing.csv: No such file");
        refused(&[command, &[&directory, "--format", "csv"]].concat(), "is a directory");
        refused(&[command, &[&nameless]].concat(), "use --format ndjson, csv or tsv");
    }
    refused(&["export", "--store", &store, &place.name("no/such/dir.csv")], "dir.csv: No such file");
    refused(&["export", "--store", &store, "--format", "csv", &place.name("store")], "store: Is a directory");
    refused(&["demo", "--input", &missing], "missing.csv: No such file");
    refused(&["bench", "--dir", &missing], "no place to measure");
    assert_eq!(contents(&store), before);
}

#[test]
fn a_broken_line_is_named_and_nothing_of_its_file_is_imported() {
    let place = Place::new();
    let store = place.filled("store");
    let before = contents(&store);
    let long = "k".repeat(512);
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("a.ndjson", b"{\"key\":\"k\",\"value\":\"v\"}\n{\"key\":\n".into(), "a.ndjson: line 2: it is no entry"),
        ("b.ndjson", b"{\"key\":\"k\",\"value\":\"v\"}\n\n\xFF\n".into(), "b.ndjson: line 3: it is not UTF-8"),
        ("c.ndjson", b"{\"key_b64\":\"??\",\"value\":\"v\"}".into(), "line 1: key_b64 is no base64"),
        ("d.ndjson", b"{\"key\":\"\",\"value\":\"v\"}".into(), "line 1: the key is empty"),
        ("e.ndjson", b"{\"op\":\"delete\",\"key\":\"k\"}".into(), "line 1: an import holds entries"),
        ("f.ndjson", format!("{{\"key\":\"{long}\",\"value\":\"\"}}").into(), "line 1: the key has 512 bytes"),
        ("a.tsv", b"k\tv\nno tab\n".into(), "a.tsv: line 2: there is no '\\t' after the key"),
        ("b.tsv", b"k\tv\n\tv\n".into(), "line 2: the key is empty"),
        ("c.tsv", b"k\tv\n\n".into(), "line 2: there is no '\\t'"),
        ("a.csv", b"key,value\nk,v\nk,v,w\n".into(), "a.csv: line 3: it has 3 columns, the header 2"),
        ("b.csv", b"key,amount\nk,1\n".into(), "line 1: there is no column \"value\""),
        ("c.csv", b"".into(), "line 1: there is no column \"key\""),
        ("d.csv", b"key,value\n\"a\nb\",v\n,w\n".into(), "line 4: the key is empty"),
        ("e.csv", b"key,value\nk,v\na,\"b\nc,d\n".into(), "e.csv: line 3: a quote is opened and never closed"),
    ];
    for (name, content, words) in cases {
        let file = place.file(name, content);
        refused(&["import", "--store", &store, &file], words);
        refused(&["serve", "--listen", "127.0.0.1:0", "--store", &store, "--import", &file], words);
        assert_eq!(contents(&store), before, "{name}");
    }
}

#[test]
fn what_came_before_a_broken_line_of_a_pipe_is_counted() {
    let place = Place::new();
    let store = place.lmdb("store");
    let mut lines: String = (0..50_500).map(|n| format!("k{n:05}\tv\n")).collect();
    lines.push_str("no tab\n");
    let args = ["import", "--store", &store, "--format", "tsv", "-"];
    let ended = run_with(&args, lines.as_bytes()).says(2, "standard input: line 50501: there is no '\\t'");
    assert!(ended.stderr.contains("the 50,500 entries before are imported"), "{ended:?}");
    assert_eq!(contents(&store).lines().count(), 50_500);
}

#[test]
fn a_key_or_a_value_that_is_too_large_is_refused_before_anything_is_written() {
    let place = Place::new();
    let store = place.filled("store");
    let before = contents(&store);
    let key = "k".repeat(512);
    refused(&["put", "--store", &store, &key, "v"], "the key has 512 bytes, the store holds keys of up to 480");
    refused(&["put", "--store", &store, "", "v"], "the key is empty");
    refused(&["del", "--store", &store, &key], "the key has 512 bytes");
    refused(&["del", "--store", &store, ""], "the key is empty");
    refused(&["get", "--store", &store, ""], "the key is empty");
    refused(&["get", "--store", &store, &key], "the key has 512 bytes");
    let mut large = b"k\t".to_vec();
    large.resize(2 + (32 << 20) + 1, b'v');
    let file = place.file("large.tsv", &large);
    refused(&["import", "--store", &store, &file], "line 1: the value has 33554433 bytes");
    assert_eq!(contents(&store), before);
    // As large as may be fits, over the log and back.
    large.pop();
    let file = place.file("large.tsv", &large);
    run(&["import", "--store", &store, &file]).ok();
    assert_eq!(run(&["get", "--store", &store, "k"]).ok().stdout.len(), 32 << 20);
    let key = &key[..480];
    run(&["put", "--store", &store, key, "v"]).ok();
    assert_eq!(run(&["get", "--store", &store, key]).ok().text(), "v");
}

#[test]
fn a_store_that_is_open_elsewhere_is_said_to_be() {
    let place = Place::new();
    for kind in ["lmdb", "sled"] {
        let store = place.url(kind, kind);
        fill(&store, &[("k", "v")]);
        let before = contents(&store);
        let (master, address) = Running::master(&store, &[]);
        let words = "it is in use by another process: end that one first";
        for command in [&["put", "k", "w"][..], &["del", "k"]] {
            refused(&[&command[..1], &["--store", &store], &command[1..]].concat(), words);
        }
        refused(&["serve", "--store", &store, "--listen", "127.0.0.1:0"], words);
        refused(&["follow", "--store", &store, "--from", &address, "--id", "x", "--once"], words);
        let reading = [&["get", "k"][..], &["scan"], &["export"], &["status"], &["log"]];
        if kind == "lmdb" {
            for command in reading {
                run(&[&command[..1], &["--store", &store], &command[1..]].concat()).ok();
            }
            assert_eq!(contents(&store), before, "it is read while its master serves it");
            assert!(
                run(&["verify", "--store", &store, "--store", "memory:"]).code(1).text().contains("1 only in lmdb:")
            );
        } else {
            // sled waits a while for one that is about to close, so few commands have to do.
            refused(&["log", "--store", &store, "--follow"], words);
            let ended = refused(&["verify", "--store", &store, "--store", "memory:"], words);
            assert!(ended.stderr.contains("ask it with status --from ADDR"), "{ended:?}");
        }
        master.interrupt("INT").ok();
        assert_eq!(contents(&store), before);
    }
}

#[test]
fn a_slaves_store_is_written_by_its_master_alone() {
    let place = Place::new();
    let (master, address) = Running::master(&place.filled("master"), &[]);
    let file = place.file("entries.tsv", "k\tv\n");
    for kind in ["lmdb", "sled"] {
        let slave = place.url(kind, kind);
        run(&["follow", "--store", &slave, "--from", &address, "--id", kind, "--once"]).ok();
        let before = contents(&slave);
        let words = "it is a slave's store, and only its master changes it: write to the master instead";
        for command in
            [&["put", "k", "v"][..], &["del", "apple"], &["import", &file], &["serve", "--listen", "127.0.0.1:0"]]
        {
            refused(&[&command[..1], &["--store", &slave], &command[1..]].concat(), words);
        }
        refused(&["log", "--store", &slave], "keeps no log: ask its master");
        assert_eq!(contents(&slave), before);
        assert_eq!(before.lines().count(), 4);
    }
    master.interrupt("TERM").ok();
    // And a master's is never overwritten by another master's.
    let store = place.lmdb("master");
    let other = place.lmdb("other");
    fill(&other, &[("other", "v")]);
    let before = contents(&store);
    let (_other, address) = Running::master(&other, &[]);
    let words = "the store is a master's, it cannot be opened as a slave";
    refused(&["follow", "--store", &store, "--from", &address, "--id", "x", "--once"], words);
    assert_eq!(contents(&store), before);
}

#[test]
fn an_address_that_cannot_be_had_is_refused_before_a_store_is_made() {
    let place = Place::new();
    let store = place.lmdb("store");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(
        &["serve", "--store", &store, "--listen", &address],
        &format!("cannot listen on {address}: Address already in use"),
    );
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9999"] {
        let ended = refused(&["serve", "--store", &store, "--listen", open], "is not loopback");
        assert!(ended.stderr.contains("--insecure"), "{ended:?}");
    }
    assert!(!place.path("store").exists());
    let serving = Running::spawn(&["serve", "--store", &store, "--listen", "0.0.0.0:0", "--insecure"]);
    assert!(serving.line().starts_with(&format!("serving {store} on 0.0.0.0:")));
    serving.interrupt("INT").ok();
    let serving = Running::spawn(&["serve", "--store", &store, "--listen", "localhost:0"]);
    let ready = serving.line();
    run(&["status", "--from", ready.rsplit_once(' ').unwrap().1]).ok();
    serving.interrupt("INT").ok();
}

#[test]
fn a_master_that_is_not_there_is_said_to_be_unreachable() {
    let place = Place::new();
    let store = place.lmdb("store");
    // A port that nobody listens on: it was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let follow = |address: &str| run(&["follow", "--store", &store, "--id", "x", "--once", "--from", address]);
    follow(&nobody).says(2, &format!("the master at {nobody} cannot be reached: Connection refused"));
    follow("nonsense").says(2, "\"nonsense\" is no address: use HOST:PORT");
    follow("127.0.0.1:99999").says(2, "use HOST:PORT");
    follow("127.0.0.1:0").says(2, "use HOST:PORT");
    follow("no.such.host.invalid:1").says(2, "no.such.host.invalid:1 cannot be looked up");
    refused(&["status", "--from", &nobody], &format!("the node at {nobody} cannot be asked: Connection refused"));
    refused(&["status", "--from", &nobody, "--check"], "cannot be asked");
    refused(&["status", "--from", "nonsense"], "use HOST:PORT");
    refused(&["follow", "--store", &store, "--from", &nobody, "--id", ""], "is no name");
    assert!(!place.path("store").exists(), "nothing is left behind");
}

#[test]
fn a_peer_that_is_no_master_is_said_to_be_none() {
    let place = Place::new();
    let before = place.filled("store");
    let before = contents(&before);
    for words in ["HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever hangs up gets no answer.
                drop(std::io::Write::write_all(&mut stream.unwrap(), words.as_bytes()));
            }
        });
        refused(&["status", "--from", &address], &format!("the node at {address} cannot be asked: "));
        let slave = place.lmdb("slave");
        refused(&["follow", "--store", &slave, "--id", "x", "--once", "--from", &address], "cannot follow");
    }
    assert_eq!(contents(&place.lmdb("store")), before);
}

#[test]
fn a_directory_that_holds_a_store_of_another_kind_is_left_alone() {
    let place = Place::new();
    for held in ["lmdb", "sled", "fjall"] {
        let there = place.url(held, held);
        fill(&there, &[("k", "v")]);
        for kind in ["lmdb", "sled", "fjall", "redb"].into_iter().filter(|kind| *kind != held) {
            let url = place.url(kind, held);
            refused(&["put", "--store", &url, "k", "w"], &format!("a store of another kind: use {there}"));
        }
        assert_eq!(run(&["get", "--store", &there, "k"]).ok().text(), "v");
    }
}

#[test]
fn what_has_no_log_is_said_to_have_none() {
    let place = Place::new();
    let (_master, address) = Running::master(&place.filled("master"), &[]);
    let (centre, link) = (place.lmdb("centre"), format!("one={address}"));
    run(&["gather", "--store", &centre, "--link", &link, "--once"]).ok();
    refused(&["log", "--store", &centre], "it is a centre's store, which has no log");
    refused(&["log", "--store", "memory:"], "memory:: it was never a master's or a slave's store");
    let backup = place.lmdb("backup");
    run(&["backup", "--store", &centre, &backup]).ok();
    refused(&["restore", &backup, &place.lmdb("restored")], "it is a backup of a centre: gather with it");
    run(&["gather", "--store", &backup, "--link", &link, "--once"]).ok();
}

#[test]
fn a_key_that_no_store_holds_is_refused_before_a_node_is_asked() {
    let place = Place::new();
    let (_master, address) = Running::master(&place.filled("store"), &[]);
    let key = "k".repeat(70_000);
    let words = "the key has 70000 bytes, the store holds keys of up to 65536";
    refused(&["get", "--from", &address, &key], words);
    refused(&["get", "--from", &address, "--from", &address, &key], words);
    refused(&["scan", "--from", &address, "--start", &key], words);
    refused(&["get", "--from", &address, &key[..65_000]], "the key has 65000 bytes, the store holds keys of up to 511");
}

#[cfg(unix)]
#[test]
fn a_store_that_cannot_be_written_is_named_with_the_reason() {
    use std::process::Command;
    let place = Place::new();
    let lines: String = (0..40_000).map(|n| format!("k{n}\t{}\n", "v".repeat(1000))).collect();
    let (store, file) = (place.lmdb("store"), place.file("large.tsv", lines));
    // No file may have more than 4 MiB, or 8, as the shell counts.
    let script = "trap '' XFSZ; ulimit -f 8192; exec \"$0\" import --store \"$1\" \"$2\"";
    let ended = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_replikv"), &store, &file]).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!((ended.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.starts_with(&format!("replikv: {store}: ")) && said.contains("(os error "), "{said}");
}
