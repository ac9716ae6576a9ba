//! Programs that are watched: metrics and probes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use replikv::metrics::{ALL, MetricKind};

use crate::support::{Place, Running, contents, run};

/// Only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(120);

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

fn ask(address: &str, question: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(question.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn scrape(address: &str) -> String {
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.into()
}

/// Scrapes until it says so: gauges are set once a second.
fn scrape_until(address: &str, wanted: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let text = scrape(address);
        if wanted(&text) {
            return text;
        }
        assert!(start.elapsed() < HANG, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn value(text: &str, name: &str) -> Option<f64> {
    let series = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))?;
    series.rsplit_once(' ')?.1.parse().ok()
}

fn serving(place: &Place, more: &[&str]) -> (Running, String, String) {
    serving_store(&place.filled("central"), more)
}

fn serving_store(store: &str, more: &[&str]) -> (Running, String, String) {
    let args = ["serve", "--store", store, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let master = Running::spawn(&[&args, more].concat());
    let metrics = metrics_of(&master);
    let address = master.line().rsplit_once(' ').unwrap().1.to_string();
    (master, address, metrics)
}

fn metrics_of(running: &Running) -> String {
    let line = running.line();
    let address = line.strip_prefix("metrics on http://").and_then(|rest| rest.strip_suffix("/metrics"));
    address.unwrap_or_else(|| panic!("{line}")).into()
}

#[test]
fn a_slave_that_asks_for_compression_is_sent_far_less() {
    let place = Place::new();
    let text = "the same words, again and again, ".repeat(40);
    let file = place.file("entries.tsv", (0..3000).map(|n| format!("k{n:05}\t{n} {text}\n")).collect::<String>());
    let store = place.filled("central");
    run(&["import", "--store", &store, &file]).ok();
    let (master, address, metrics) = serving_store(&store, &[]);
    let mut before = 0.0;
    for (algorithm, most) in [(None, 6e6), (Some("lz4"), 6e5), (Some("zstd"), 3e5)] {
        let name = algorithm.unwrap_or("plain");
        let slave = place.lmdb(name);
        let args = ["follow", "--store", &slave, "--id", name, "--from", &address, "--once"];
        run(&[&args[..], algorithm.map_or(&[][..], |_| &["--compress"]), algorithm.as_slice()].concat()).ok();
        assert!(contents(&slave).lines().count() > 3000, "{name}");
        let sent = value(&scrape(&metrics), "replikv_source_sent_bytes_total").unwrap();
        let bytes = sent - before;
        before = sent;
        assert!(bytes < most && (algorithm.is_some() || bytes > 3e6), "{name}: {bytes}");
    }
    master.interrupt("INT").ok();
    let args = ["follow", "--store", "memory:", "--id", "x", "--from", &address, "--compress", "gzip"];
    let refused = run(&args).code(2);
    assert!(refused.stderr.contains("there is no compression \"gzip\"; this build knows: lz4, zstd"), "{refused:?}");
}

#[test]
fn every_documented_metric_is_scraped_from_a_master_and_its_slave() {
    let place = Place::new();
    let (master, address, of_master) = serving(&place, &[]);
    let store = place.lmdb("edge");
    let metrics = ["--metrics", "127.0.0.1:0"];
    let slave =
        Running::spawn(&[&["follow", "--store", &store, "--from", &address, "--id", "edge"], &metrics[..]].concat());
    let of_slave = metrics_of(&slave);
    slave.line();
    // Somebody is refused: its data came from no master.
    let foreign = place.filled("foreign");
    run(&["follow", "--store", &foreign, "--from", &address, "--id", "other", "--once"]).code(2);
    let connected = |text: &str| value(text, "replikv_source_followers") == Some(1.0);
    let master_text = scrape_until(&of_master, |text| connected(text) && text.contains("follower=\"edge\""));
    let slave_text = scrape_until(&of_slave, |text| value(text, "replikv_follower_lag_seqs") == Some(0.0));
    for metric in ALL {
        let text = if metric.name.starts_with("replikv_source") { &master_text } else { &slave_text };
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            _ => "histogram",
        };
        // A family whose members are made of what happened has none before.
        if metric.name != "replikv_source_sessions_refused_total" {
            assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{} in {text}", metric.name);
            assert!(text.contains(&format!("# TYPE {} {kind}\n", metric.name)), "{} in {text}", metric.name);
        }
        let sample =
            if kind == "histogram" { format!("{}_bucket{{", metric.name) } else { format!("{}{{", metric.name) };
        for line in text.lines().filter(|line| line.starts_with(&sample)) {
            assert!(metric.labels.iter().all(|label| line.contains(&format!("{label}=\""))), "{line}");
        }
    }
    assert_eq!(value(&master_text, "replikv_source_sessions_accepted_total"), Some(1.0));
    assert!(value(&slave_text, "replikv_follower_applied_seq") > Some(0.0));
    slave.interrupt("TERM").ok();
    scrape_until(&of_master, |text| value(text, "replikv_source_follower_connected") == Some(0.0));
    master.interrupt("TERM").ok();
}

#[test]
fn a_wrong_path_is_not_found_and_a_wrong_client_does_no_harm() {
    let place = Place::new();
    let (master, _, metrics) = serving(&place, &[]);
    assert!(ask(&metrics, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask(&metrics, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask(&metrics, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    // More of those who say nothing, or half of it, than are answered at once; and some who go away.
    let mut slow: Vec<_> = (0..40).map(|_| connect(&metrics)).collect();
    for stream in slow.iter_mut().step_by(2) {
        stream.write_all(b"GET /metr").unwrap();
    }
    for _ in 0..10 {
        let mut gone = connect(&metrics);
        drop(gone.write_all(b"GET /metrics HTTP/1.1\r\n\r\n"));
    }
    // Everybody is answered nevertheless, when the time of the slow ones is up.
    assert!(scrape(&metrics).contains("replikv_source_health"));
    drop(slow);
    scrape(&metrics);
    master.interrupt("TERM").ok();
}

#[test]
fn a_slave_is_asked_how_it_is() {
    let place = Place::new();
    let (master, address) = Running::master(&place.filled("central"), &[]);
    let store = place.url("sled", "edge");
    let args = ["follow", "--store", &store, "--from", &address, "--id", "edge", "--status", "127.0.0.1:0"];
    let slave = Running::spawn(&args);
    let probe = slave.line().strip_prefix("status on ").map(String::from).expect("it says where it answers");
    assert!(slave.line().starts_with("following "));
    let start = Instant::now();
    while run(&["status", "--from", &probe, "--check", "--max-lag", "60s"]).code != Some(0) {
        assert!(start.elapsed() < HANG, "it does not become ready");
    }
    let status = run(&["status", "--from", &probe, "--json"]).ok().json();
    assert_eq!((&status["name"], &status["health"]["state"]), (&"edge".into(), &"ready".into()));
    assert_eq!(status["lag"]["seqs"], 0);
    run(&["follow", "--store", "memory:", "--from", &probe, "--id", "lower", "--once"])
        .says(2, "this address of a slave");

    master.interrupt("TERM").ok();
    let start = Instant::now();
    loop {
        let answer = run(&["status", "--from", &probe, "--check", "--max-lag", "60s"]);
        if answer.code == Some(1) {
            assert!(answer.stderr.contains("not healthy: disconnected"), "{answer:?}");
            break;
        }
        assert!(start.elapsed() < HANG, "it does not notice");
    }
    slave.interrupt("TERM").ok();
    run(&["status", "--from", &probe]).says(2, "cannot be asked");
}

#[test]
fn whoever_watches_from_elsewhere_must_be_allowed_to() {
    let place = Place::new();
    let store = place.lmdb("central");
    let serve = ["serve", "--store", &store, "--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:0"];
    run(&serve).says(2, "not loopback");
    assert!(!place.path("central").exists(), "nothing is left behind");
    for flag in ["--metrics", "--status"] {
        let follow = ["follow", "--store", &store, "--from", "127.0.0.1:1", "--id", "edge", flag, "0.0.0.0:0"];
        run(&follow).says(2, "not loopback");
    }
    let allowed = Running::spawn(&[&serve[..], &["--insecure"]].concat());
    assert!(allowed.line().starts_with("metrics on http://0.0.0.0:"));
    allowed.interrupt("TERM").ok();
}
