//! The explorer finds what is known to be wrong, and nothing where nothing is.

use std::process::{Command, Output};

fn explore(name: &str, args: &[&str]) -> Output {
    let failures = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    Command::new(env!("CARGO_BIN_EXE_replikv-crash"))
        .args(["--failures", &failures.to_string_lossy()])
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("the explorer does not run: {error}"))
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn lmdb_without_syncs_is_found_to_lose_and_to_damage() {
    for role in ["master", "slave"] {
        let args = ["--states", "200", "--backend", "lmdb", "--role", role, "--durability", "never"];
        let output = explore("lmdb-never", &args);
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        assert!(words(&output).contains("reproduce: replikv-crash again "), "{}", words(&output));
    }
}

#[test]
fn sled_with_its_flush_alone_is_found_to_lose_what_was_durable() {
    for role in ["master", "slave"] {
        let args = ["--states", "200", "--backend", "sled", "--role", role, "--ignore-sync", "/db"];
        let output = explore("sled-flush", &args);
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        assert!(words(&output).contains(" lost: ") || words(&output).contains(", lost"), "{}", words(&output));
    }
}

#[test]
fn redb_without_its_syncs_is_found_to_lose_what_was_durable() {
    for role in ["master", "slave"] {
        let args = ["--states", "200", "--backend", "redb", "--role", role, "--ignore-sync", "store"];
        let output = explore("redb-unsynced", &args);
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        assert!(words(&output).contains(" lost: ") || words(&output).contains(", lost"), "{}", words(&output));
    }
}

#[test]
fn fjall_without_the_syncs_of_its_journal_is_found_to_lose_what_was_durable() {
    for role in ["master", "slave"] {
        let args = ["--states", "200", "--backend", "fjall", "--role", role, "--ignore-sync", "jnl"];
        let output = explore("fjall-unsynced", &args);
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        assert!(words(&output).contains(" lost: ") || words(&output).contains(", lost"), "{}", words(&output));
    }
}

#[test]
fn a_failure_is_seen_again_from_its_line() {
    let output =
        explore("again", &["--states", "150", "--backend", "lmdb", "--role", "master", "--durability", "never"]);
    let words = words(&output);
    let line = words.lines().find_map(|line| line.split_once("replikv-crash again ")).map(|(_, line)| line);
    let line = line.unwrap_or_else(|| panic!("no failure has a line: {words}"));
    let scratch = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("again-scratch");
    let again = Command::new(env!("CARGO_BIN_EXE_replikv-crash"))
        .arg("again")
        .args(line.split_whitespace())
        .args(["--scratch", &scratch.to_string_lossy()])
        .output();
    let again = again.unwrap_or_else(|error| panic!("the explorer does not run: {error}"));
    assert_eq!(again.status.code(), Some(1), "{}", self::words(&again));
}

#[test]
fn what_the_backends_promise_is_found_to_hold() {
    let output = explore("sound", &["--states", "150"]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert!(words(&output).contains("1200 states, 0 failures"), "{}", words(&output));
}
