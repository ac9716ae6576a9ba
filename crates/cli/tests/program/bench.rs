//! Measurements: not what they come to, but that they measure what they say, and leave nothing behind.

use crate::support::{Place, Running, program, run};

fn rows(args: &[&str]) -> Vec<serde_json::Value> {
    let place = Place::new();
    std::fs::create_dir(place.path("dir")).unwrap();
    let dir = place.name("dir");
    let common = ["bench", "--entries", "600", "--rounds", "1", "--json", "--dir", &dir];
    let json = run(&[&common[..], args].concat()).ok().json();
    assert!(std::fs::read_dir(place.path("dir")).unwrap().next().is_none(), "nothing is left behind");
    let rows = json.as_array().unwrap().clone();
    for row in &rows {
        assert!(row["value"].as_f64().is_some_and(f64::is_normal), "{row}");
        assert!(row["unit"] != "per_second" || row["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{row}");
    }
    rows
}

fn figures(rows: &[serde_json::Value]) -> Vec<String> {
    let words = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_string();
    rows.iter()
        .map(|row| format!("{} {} {}", words(row, "scenario"), words(row, "store"), words(row, "what")))
        .collect()
}

#[test]
fn each_scenario_has_its_figures() {
    let rows = rows(&[
        "--stores",
        "lmdb,memory",
        "write",
        "catch-up",
        "copy",
        "recovery",
        "live",
        "fan-in",
        "derive",
        "compression",
    ]);
    let expected = [
        "write lmdb batches of 1",
        "write lmdb batches of 10",
        "write lmdb batches of 100",
        "write lmdb batches of 100, to each twice",
        "write lmdb batches of 1000",
        "write lmdb batches of 1000, to each twice",
        "write memory batches of 1",
        "write memory batches of 10",
        "write memory batches of 100",
        "write memory batches of 100, to each twice",
        "write memory batches of 1000",
        "write memory batches of 1000, to each twice",
        "catch-up lmdb batches of 100",
        "catch-up memory batches of 100",
        "copy lmdb into an empty slave",
        "copy memory into an empty slave",
        "recovery lmdb 0 % changed",
        "recovery lmdb 0.1 % changed",
        "recovery lmdb 1 % changed",
        "recovery memory 0 % changed",
        "recovery memory 0.1 % changed",
        "recovery memory 1 % changed",
        "live lmdb written, with a slave",
        "live lmdb until the slave has all",
        "live memory written, with a slave",
        "live memory until the slave has all",
        "fan-in lmdb 4 masters",
        "fan-in lmdb 16 masters",
        "fan-in memory 4 masters",
        "fan-in memory 16 masters",
        "derive lmdb a count of 256 groups",
        "derive lmdb an index",
        "derive lmdb the greatest of 256 groups",
        "derive memory a count of 256 groups",
        "derive memory an index",
        "derive memory the greatest of 256 groups",
        "compression lmdb none, arrives at the slave",
        "compression lmdb none, processor time of the master",
        "compression lmdb none, processor time of the slave",
        "compression lmdb none, until the slave has all",
        "compression lmdb lz4, arrives at the slave",
        "compression lmdb lz4, processor time of the master",
        "compression lmdb lz4, processor time of the slave",
        "compression lmdb lz4, until the slave has all",
        "compression lmdb zstd, arrives at the slave",
        "compression lmdb zstd, processor time of the master",
        "compression lmdb zstd, processor time of the slave",
        "compression lmdb zstd, until the slave has all",
        "compression memory none, arrives at the slave",
        "compression memory none, processor time of the master",
        "compression memory none, processor time of the slave",
        "compression memory none, until the slave has all",
        "compression memory lz4, arrives at the slave",
        "compression memory lz4, processor time of the master",
        "compression memory lz4, processor time of the slave",
        "compression memory lz4, until the slave has all",
        "compression memory zstd, arrives at the slave",
        "compression memory zstd, processor time of the master",
        "compression memory zstd, processor time of the slave",
        "compression memory zstd, until the slave has all",
    ];
    assert_eq!(figures(&rows), expected);
}

#[test]
fn what_many_cost_is_measured_in_memory() {
    let rows = rows(&["--stores", "memory", "writers", "latency", "fan-out", "idle"]);
    let figures = figures(&rows);
    for expected in [
        "writers memory 512 writers",
        "latency memory closed loop, readable, p99",
        "latency memory closed loop, replicated(1), p50",
        "latency memory open loop, readable, p99.9",
        "fan-out memory delivered to 256",
        "fan-out memory delivered to 1000",
        "idle memory written, with 1000 idle slaves",
        "idle memory memory of one slave at its master",
        "idle memory processor time of a second of one slave, at its master",
        "idle memory processor time of a second of one slave, its own",
    ] {
        assert!(figures.iter().any(|figure| figure == expected), "{expected} is not in {figures:?}");
    }
    // No percentile lies below a lower one.
    let times: Vec<f64> =
        rows.iter().filter(|row| row["scenario"] == "latency").map(|row| row["value"].as_f64().unwrap()).collect();
    assert_eq!(times.len(), 12);
    assert!(times.chunks(4).all(<[f64]>::is_sorted), "{times:?}");
}

#[test]
fn growth_is_measured_at_each_size() {
    let rows = rows(&["--stores", "lmdb,memory", "growth", "--sizes", "300,2000"]);
    let expected = ["lmdb 300", "lmdb 2,000", "memory 300", "memory 2,000"].iter().flat_map(|there| {
        ["copy", "written in batches of 100", "catch-up"].map(|what| format!("growth {there}: {what}"))
    });
    assert_eq!(figures(&rows), expected.collect::<Vec<_>>());
    run(&["bench", "growth", "--sizes", "0"]).says(2, "at least one of everything");
}

#[test]
fn charts_are_drawn_where_they_are_wanted() {
    let place = Place::new();
    let charts = place.name("charts");
    rows(&["--stores", "memory", "write", "copy", "--plot", &charts]);
    for (name, label) in [("write.svg", "memory, batches of 1000"), ("copy.svg", "memory, into an empty slave")] {
        let chart = std::fs::read_to_string(place.path("charts").join(name)).unwrap();
        assert!(chart.starts_with("<svg") && chart.contains(label), "{name}: {chart}");
    }
    run(&["bench", "--plot", &charts]).says(2, "--plot draws what scenarios measure");
    run(&["bench", "--stores", "paper"]).says(2, "paper: no store that can be measured");
    run(&["bench", "write", "--all"]).says(2, "cannot be used with");
}

#[test]
fn without_the_other_system_it_says_so() {
    let place = Place::new();
    let empty = place.name("empty");
    for (scenario, expected) in [
        ("redis", "redis-server cannot be started: is it installed?"),
        ("nats", "nats-server cannot be started: is it installed?"),
        ("level-master", "level-master is not installed there: compare/install.sh does that"),
    ] {
        let mut command = program();
        command.args(["bench", scenario, "--stores", "memory", "--rounds", "1", "--entries", "100"]);
        let ended = command.args(["--level-master", &empty]).env("PATH", "").output().unwrap();
        let words = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{words}");
        assert!(words.contains(expected) && words.lines().count() == 1, "{words}");
    }
}

#[test]
#[ignore = "needs redis-server and nats-server, which compare/install.sh installs: run by .ci/run"]
fn redis_and_nats_do_the_same_work() {
    let found = rows(&["--stores", "lmdb,fjall,memory", "redis", "nats"]);
    let expected = [
        "redis lmdb, synced copy; Redis in memory, quickest full sync",
        "redis lmdb, synced copy; Redis with AOF, synced every second, quickest full sync",
        "redis lmdb, synced copy; Redis in memory, default full sync",
        "redis lmdb, synced copy; Redis with AOF, synced every second, default full sync",
        "redis lmdb, synced live; Redis with AOF, always synced",
        "redis lmdb, synced live; Redis with AOF, synced every second",
        "redis fjall, synced every second live; Redis with AOF, synced every second",
        "redis memory live; Redis in memory",
        "redis memory write to readable, p50; Redis in memory",
        "redis memory write to readable, p99; Redis in memory",
        "redis memory delivered to 64 receivers; Redis in memory",
        "redis memory delivered to 64 slaves that check it, against receivers; Redis in memory",
        "nats lmdb, synced catch-up; NATS in files, not synced, a mirror in the same server",
        "nats lmdb, synced catch-up; NATS in files, not synced, a mirror across a leaf node",
        "nats lmdb, synced live; NATS in files, not synced, a mirror in the same server",
        "nats lmdb, synced live; NATS in files, not synced, a mirror across a leaf node",
        "nats fjall, synced every second catch-up; NATS in files, not synced, a mirror in the same server",
        "nats fjall, synced every second catch-up; NATS in files, not synced, a mirror across a leaf node",
        "nats fjall, synced every second live; NATS in files, not synced, a mirror in the same server",
        "nats fjall, synced every second live; NATS in files, not synced, a mirror across a leaf node",
        "nats memory catch-up; NATS in memory, a mirror in the same server",
        "nats memory catch-up; NATS in memory, a mirror across a leaf node",
        "nats memory live; NATS in memory, a mirror in the same server",
        "nats memory live; NATS in memory, a mirror across a leaf node",
        "nats memory fan-in; NATS in memory, 4 streams into one",
    ];
    assert_eq!(figures(&found), expected);
    let each_has = |name: &str| found.iter().all(|row| row[name].as_f64().is_some_and(f64::is_normal));
    assert!(each_has("base") && each_has("ratio"), "{found:?}");
}

#[test]
#[ignore = "needs level-master, which compare/install.sh installs from npm: run by `just compare`"]
fn level_master_does_the_same_work() {
    let there = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/compare/level-master");
    let found = rows(&["--stores", "lmdb,fjall,memory", "level-master", "--level-master", there]);
    let expected = [
        "level-master lmdb, synced catch-up; level-master on disk, not synced",
        "level-master lmdb, synced live; level-master on disk, not synced",
        "level-master fjall, synced every second catch-up; level-master on disk, not synced",
        "level-master fjall, synced every second live; level-master on disk, not synced",
        "level-master memory catch-up; level-master in memory",
        "level-master memory live; level-master in memory",
    ];
    assert_eq!(figures(&found), expected);
    let goals: Vec<_> = found.iter().map(|row| row["goal"].as_f64().unwrap()).collect();
    assert_eq!(goals, [20.0, 20.0, 20.0, 20.0, 5.0, 5.0]);
}

#[test]
fn an_interrupt_takes_the_second_process_and_the_stores_along() {
    let place = Place::new();
    std::fs::create_dir(place.path("dir")).unwrap();
    let dir = place.name("dir");
    let running = Running::spawn(&["bench", "latency", "--stores", "memory", "--rounds", "1000", "--dir", &dir]);
    // Each thread has children of its own.
    let children = |parent: &str| -> Vec<String> {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
        let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(str::to_string).collect::<Vec<_>>()).collect()
    };
    // That of the round, and below it the slave's.
    let below = || {
        let rounds = children(&running.id().to_string());
        let peers: Vec<String> = rounds.iter().flat_map(|round| children(round)).collect();
        if peers.is_empty() { Vec::new() } else { [rounds, peers].concat() }
    };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut peers = below();
    while peers.is_empty() {
        assert!(std::time::Instant::now() < until, "there is no second process");
        std::thread::sleep(std::time::Duration::from_millis(5));
        peers = below();
    }
    running.interrupt("INT").code(130);
    assert!(std::fs::read_dir(place.path("dir")).unwrap().next().is_none(), "nothing is left behind");
    let there = |peer: &String| std::path::Path::new("/proc").join(peer).exists();
    while peers.iter().any(there) {
        assert!(std::time::Instant::now() < until, "the second process is still there");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
