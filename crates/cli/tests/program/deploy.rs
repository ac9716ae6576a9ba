//! What examples/deploy runs is what the program takes.

use crate::support::{Place, Running, run};

fn file(name: &str) -> String {
    let path = format!("{}/../../examples/deploy/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The arguments of a unit's command, with stores in `place` and ports that are free.
fn unit(name: &str, place: &Place, master: &str) -> Vec<String> {
    let unit = file(name);
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/replikv ")).unwrap();
    let state = unit.lines().find_map(|line| line.strip_prefix("StateDirectory=")).unwrap();
    let here = |word: &str| {
        let word = word.replace(&format!("/var/lib/{state}"), &place.name(state)).replace("%H", "edge");
        if word == "127.0.0.1:9999" && !master.is_empty() { master.into() } else { free_port(&word) }
    };
    std::fs::create_dir(place.path(state)).unwrap();
    command.split_whitespace().map(here).collect()
}

fn free_port(word: &str) -> String {
    match word.rsplit_once(':') {
        Some((host @ ("127.0.0.1" | "0.0.0.0"), _)) => format!("{host}:0"),
        _ => word.into(),
    }
}

fn spawn(args: &[String]) -> Running {
    Running::spawn(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn the_units_run_a_master_and_a_slave_that_can_be_watched() {
    let place = Place::new();
    let master = spawn(&unit("replikv-serve.service", &place, ""));
    assert!(master.line().starts_with("metrics on "));
    let address = master.line().rsplit_once(' ').unwrap().1.to_string();
    let slave = spawn(&unit("replikv-follow.service", &place, &address));
    assert!(slave.line().starts_with("metrics on "));
    assert!(slave.line().starts_with("status on "));
    assert!(slave.line().starts_with("following "));
    run(&["status", "--from", &address, "--check"]).ok();
    slave.interrupt("TERM").ok();
    master.interrupt("TERM").ok();
}

#[test]
fn the_container_runs_a_master_and_asks_it() {
    let place = Place::new();
    let dockerfile = file("Dockerfile");
    let words = |start: &str| -> Vec<String> {
        let (_, list) = dockerfile.rsplit_once(start).unwrap();
        serde_json::from_str(list.lines().next().unwrap()).unwrap()
    };
    let command = words("\nCMD ");
    let command: Vec<_> = command.iter().map(|word| free_port(&word.replace("/data", &place.name("")))).collect();
    let master = spawn(&command);
    assert!(master.line().starts_with("metrics on "));
    let port = master.line().rsplit_once(':').unwrap().1.to_string();
    let probe = words("HEALTHCHECK --interval=10s --timeout=12s --start-period=30s CMD ");
    let probe: Vec<_> = probe.iter().skip(1).map(|word| word.replace("9999", &port)).collect();
    run(&probe.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    master.interrupt("TERM").ok();
}
