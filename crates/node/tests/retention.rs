//! The log is trimmed, in the background and in small steps. Time is simulated.

use std::time::Duration;

use crate::support::{self, Error, Store, assert_equal, connect, entries, master, serve, slave, soon, store};
use futures_util::SinkExt;
use replikv_core::{Keyspace, StoreLimits};
use replikv_node::{Codec, HealthState, Master, MasterConfig};
use replikv_proto::layout::Checkpoint;
use replikv_proto::{DecoderLimits, Hello, Message, OnDivergence, Retention};
use tokio::io::DuplexStream;
use tokio::time::sleep;
use tokio_util::codec::Framed;

const KEPT: u64 = 50_000;
const NONE: Retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };

async fn write(master: &Master<Store>, records: u32) {
    for n in 0..records {
        master.put(n.to_be_bytes(), [1; 100]).await.unwrap();
    }
}

async fn log_bytes(store: &Store) -> usize {
    entries(store, Keyspace::Log).await.iter().map(|(_, record)| record.len()).sum()
}

// With simulated time, long enough for every step that is due.
async fn trimmed() {
    sleep(Duration::from_secs(600)).await;
}

#[tokio::test(start_paused = true)]
async fn bytes_bound_the_log_on_disk() -> Result<(), Error> {
    let store = store();
    let retention = Retention { max_bytes: KEPT, ..NONE };
    let master = master(&store, MasterConfig::default().retention(retention)).await;
    for round in 1..=4u64 {
        write(&master, 2_000).await;
        trimmed().await;
        let status = master.status();
        let log = entries(&store, Keyspace::Log).await;
        assert_eq!(log.len() as u64, status.published.seq.since(status.floor.seq), "what is below the floor is gone");
        // A step goes from checkpoint to checkpoint.
        let step = 256 * (log_bytes(&store).await / log.len()) as u64;
        assert!(status.retained_bytes <= KEPT + step, "{}", status.retained_bytes);
        assert_eq!(log_bytes(&store).await as u64, status.retained_bytes);
        assert!(status.floor.seq.as_u64() >= 2_000 * (round - 1) && status.floor.seq.as_u64() % Checkpoint::EVERY == 0);
        assert_eq!(status.health.state, HealthState::Ready);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn age_bounds_the_log_by_running_time() -> Result<(), Error> {
    let store = store();
    let retention = Retention { max_age_ms: Some(3_600_000), ..NONE };
    let master = master(&store, MasterConfig::default().retention(retention)).await;
    write(&master, 600).await;
    trimmed().await;
    assert_eq!(master.status().floor.seq.as_u64(), 0, "ten minutes are no hour");
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(master.status().floor.seq.as_u64(), 512);
    write(&master, 600).await;
    sleep(Duration::from_secs(1_800)).await;
    // What is in the log now is half an hour old, which is noted with the next write; the rest of the hour passes for
    // the next master on this store.
    write(&master, 1).await;
    master.shutdown().await?;
    let store = replikv_testkit::FaultStore::new(store.inner().open_again());
    let master = support::master(&store, MasterConfig::default().retention(retention)).await;
    sleep(Duration::from_secs(1_000)).await;
    assert_eq!(master.status().floor.seq.as_u64(), 512);
    sleep(Duration::from_secs(1_000)).await;
    assert_eq!(master.status().floor.seq.as_u64(), 1_024);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_trimmed_while_a_slave_reads_it_leaves_no_gap() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let retention = Retention { max_bytes: KEPT, hold_back_bytes: 0, ..NONE };
    let config = MasterConfig::default().retention(retention).ring_bytes(0).chunk_bytes(3_000);
    let master = master(&store, config).await;
    let slave = slave(&copy, "edge").await;
    let mut ends = 0;
    let mut following = connect(&master, &slave).1;
    for n in 0..6_000u32 {
        master.put(n.to_be_bytes(), [1; 100]).await?;
        if n % 50 == 0 {
            sleep(Duration::from_millis(500)).await;
        }
        if following.is_finished() {
            // Told that the log was trimmed past it, or refused: whatever it holds is a state that the master had.
            ends += 1;
            following = connect(&master, &slave).1;
        }
    }
    trimmed().await;
    assert!(master.status().floor.seq.as_u64() > 5_000);
    println!("{ends} connections ended");
    let position = slave.status().position.unwrap().seq.as_u64();
    // Record n + 2 writes key n: every key up to the position, and none above.
    let keys: Vec<_> = entries(&copy, Keyspace::Data).await.into_iter().map(|(key, _)| key.to_vec()).collect();
    let expected: Vec<_> = (0..position as u32 - 1).map(|n| n.to_be_bytes().to_vec()).collect();
    assert!(keys == expected, "{} keys at position {position}", keys.len());
    if ends == 0 {
        assert_equal(&master, &slave).await;
    }
    Ok(())
}

// A slave that says hello, and then does not read.
async fn stalled(master: &Master<Store>) -> Framed<DuplexStream, Codec> {
    let (here, there) = tokio::io::duplex(1024);
    serve(master, there);
    let mut stream = Framed::new(here, Codec::new(DecoderLimits::default()));
    let limits = StoreLimits { max_key: 1 << 16, max_value: 1 << 30, max_batch: 1 << 30 };
    let hello = Hello {
        slave: "stalled".into(),
        nonce: 1,
        cursor: None,
        holds_data: false,
        checkpoints: Vec::new(),
        limits,
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
    };
    soon(stream.send(Message::Hello(hello))).await.unwrap();
    stream
}

#[tokio::test(start_paused = true)]
async fn a_session_holds_the_log_back_up_to_the_cap() -> Result<(), Error> {
    let store = store();
    let retention = Retention { max_bytes: KEPT, hold_back_bytes: 10 * KEPT, ..NONE };
    // A heartbeat so slow that a silent slave is not given up.
    let config = MasterConfig::default().retention(retention).heartbeat(Duration::from_secs(24 * 3600));
    let master = master(&store, config).await;
    let stream = stalled(&master).await;
    while master.status().slaves.is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    write(&master, 2_000).await;
    trimmed().await;
    assert_eq!(master.status().floor.seq.as_u64(), 0, "a slave that is served holds the log back");
    assert!(master.status().retained_bytes > 2 * KEPT);
    write(&master, 4_000).await;
    trimmed().await;
    let status = master.status();
    assert!(status.floor.seq.as_u64() > 0, "but not for ever");
    assert!(status.retained_bytes <= 10 * KEPT + 100_000 && status.retained_bytes > 5 * KEPT);
    drop(stream);
    trimmed().await;
    assert!(master.status().retained_bytes < 2 * KEPT, "nobody holds it back any more");
    Ok(())
}
