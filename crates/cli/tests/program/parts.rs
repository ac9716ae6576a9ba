//! What `log` and `status` tell of a log that is not whole any more.

use std::time::Duration;

use replikv::{
    Batch, Compaction, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, Retention, Slave, SlaveConfig,
};
use serde_json::{Value, json};

use crate::support::{Place, run};

const HANG: Duration = Duration::from_secs(60);

/// Makes a master's store with the library, and writes to it until `done`.
async fn made(
    path: &std::path::Path,
    config: MasterConfig,
    writes: u32,
    done: impl Fn(&Master<LmdbStore>) -> bool,
) -> u64 {
    let store = LmdbStore::open(path, LmdbOptions::default()).unwrap();
    let master = Master::open(store, config).await.unwrap();
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await.unwrap();
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    let following = tokio::spawn(async move { following.follow(there).await });
    tokio::time::timeout(HANG, slave.wait_caught_up()).await.unwrap().unwrap();
    slave.shutdown().await.unwrap();
    drop(following.await);
    for n in 0..100u32 {
        master.put(format!("key {}", n % 3), n.to_string()).await.unwrap();
    }
    master.write(Batch::new().delete_range("old".."older")).await.unwrap();
    for n in 0..writes {
        master.put(format!("key {}", n % 3), vec![b'x'; 100]).await.unwrap();
    }
    let written = tokio::time::timeout(HANG, async {
        while !done(&master) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    written.await.unwrap();
    let seq = master.status().published.seq.as_u64();
    master.shutdown().await.unwrap();
    seq
}

#[tokio::test]
async fn compacted_parts_are_shown_with_what_they_touched() {
    let place = Place::new();
    let compaction = Compaction { window_bytes: 1_000, window_records: 4 };
    let config = MasterConfig::default().compaction(compaction);
    let compacted = |master: &Master<LmdbStore>| {
        master.status().compacted.is_some_and(|compacted| compacted.position.seq.as_u64() > 150)
    };
    let last = made(&place.path("central"), config, 100, compacted).await;
    let store = place.lmdb("central");
    let lines = run(&["log", "--store", &store]).ok();
    let text = lines.text();
    assert!(text.starts_with("1-"), "{text}");
    assert!(text.contains(" compacted epoch 1 ") && text.contains("    delete_range old  older  by 102"), "{text}");
    for key in ["key 0", "key 1", "key 2"] {
        // Once in the compacted part, however often it was written.
        let touched = text.lines().filter(|line| line.starts_with(&format!("    touched {key}"))).count();
        assert_eq!(touched, 1, "{key}: {text}");
    }
    let parts = run(&["log", "--store", &store, "--json"]).ok().json_lines();
    let (runs, records): (Vec<&Value>, Vec<&Value>) = parts.iter().partition(|part| part["part"] == "compacted");
    assert_eq!(runs[0]["from"], 1);
    assert_eq!(records.last().unwrap()["seq"], last);
    // They follow one another without a gap.
    assert_eq!(records[0]["seq"].as_u64(), runs.last().unwrap()["seq"].as_u64().map(|end| end + 1));
    let ops: Vec<_> = runs.iter().flat_map(|run| run["ops"].as_array().unwrap()).collect();
    assert!(ops.contains(&&json!({ "op": "delete_range", "start": "old", "end": "older", "by": 102 })), "{ops:?}");

    let status = run(&["status", "--store", &store, "--json"]).ok().json();
    assert_eq!(status["compacted"]["position"]["seq"], runs.last().unwrap()["seq"]);
    assert_eq!(status["compacted"]["entries"].as_u64(), Some(ops.len() as u64));
    let slot = &status["slots"][0];
    assert_eq!((&slot["name"], &slot["holds_log"], &slot["state"]), (&json!("edge"), &json!(true), &json!("lagging")));
    let said = run(&["status", "--store", &store]).ok();
    assert!(said.text().contains("compacted:") && said.text().contains("holds_log: true"), "{said:?}");
}

#[tokio::test]
async fn a_trimmed_part_is_said_to_be_trimmed() {
    let place = Place::new();
    let retention = Retention { max_bytes: 3_000, max_age_ms: None, hold_back_bytes: 3_000 };
    let config = MasterConfig::default().retention(retention);
    let trimmed = |master: &Master<LmdbStore>| master.status().floor.seq.as_u64() > 100;
    // It is cut where there are checkpoints, every 256 records.
    made(&place.path("central"), config, 600, trimmed).await;
    let store = place.lmdb("central");
    let status = run(&["status", "--store", &store, "--json"]).ok().json();
    let floor = status["floor"]["seq"].as_u64().unwrap();
    assert_eq!(status["slots"][0]["state"], "lost", "the log goes past a slave that is away, at the cap");
    let text = run(&["log", "--store", &store, "--from", "7"]).ok();
    assert_eq!(text.lines()[0], format!("1-{floor} trimmed"));
    let parts = run(&["log", "--store", &store, "--json"]).ok().json_lines();
    assert_eq!(parts[0], json!({ "part": "trimmed", "until": floor }));
    assert_eq!(parts[1]["seq"], floor + 1);
}
