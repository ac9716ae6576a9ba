//! Connections that are compressed: only if both sides want it, and then everything that is data.

use std::sync::{Arc, Mutex};

use crate::support::{self, Error, Store, assert_equal, follow, master, serve, soon, store, store_with, until};
use replikv_core::{Batch, KeyRange, Seq};
use replikv_node::{Compression, KeepLog, Master, MasterConfig, Slave, SlaveConfig, SlaveState, VerifyOptions};
use replikv_proto::{FRAME_HEADER_LEN, PREAMBLE_LEN, Retention};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const COMPRESSED: u8 = 0x04;
const RECORDS: u8 = 6;
const RANGES: u8 = 10;
const PROBED: u8 = 17;
const FILTERED: u8 = 19;

/// What passed from a master to its slave.
#[derive(Debug, Clone, Default)]
struct Tap(Arc<Mutex<Vec<u8>>>);

impl Tap {
    /// Two ends of a connection, the master's first.
    fn connection() -> (DuplexStream, DuplexStream, Self) {
        let (masters, mut near) = tokio::io::duplex(64 << 10);
        let (mut far, slaves) = tokio::io::duplex(64 << 10);
        let tap = Self::default();
        let kept = tap.clone();
        tokio::spawn(async move {
            let (mut from_master, mut to_master) = tokio::io::split(&mut near);
            let (mut from_slave, mut to_slave) = tokio::io::split(&mut far);
            let down = async {
                let mut buffer = [0; 8192];
                while let Ok(len @ 1..) = from_master.read(&mut buffer).await {
                    kept.0.lock().unwrap().extend(&buffer[..len]);
                    if to_slave.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = down => {}
                _ = tokio::io::copy(&mut from_slave, &mut to_master) => {}
            }
        });
        (masters, slaves, tap)
    }

    /// Kind, flags and length of the payload of each whole frame.
    fn frames(&self) -> Vec<(u8, u8, usize)> {
        let bytes = self.0.lock().unwrap();
        let (mut rest, mut frames) = (bytes.get(PREAMBLE_LEN..).unwrap_or_default(), Vec::new());
        while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
            let [l0, l1, l2, l3, kind, flags, ..] = *header;
            let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            let Some(after) = after.get(len..) else { break };
            frames.push((kind, flags, len));
            rest = after;
        }
        frames
    }

    fn compressed(&self, of: u8) -> usize {
        self.frames().iter().filter(|(kind, flags, _)| *kind == of && flags & COMPRESSED != 0).count()
    }

    fn plain(&self, of: u8) -> usize {
        self.frames().iter().filter(|(kind, flags, _)| *kind == of && flags & COMPRESSED == 0).count()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn tapped(master: &Master<Store>, slave: &Slave<Store>) -> Tap {
    let (masters, slaves, tap) = Tap::connection();
    serve(master, masters);
    follow(slave, slaves);
    tap
}

async fn slave(store: &Store, config: SlaveConfig) -> Slave<Store> {
    Slave::open(store.clone(), config).await.unwrap()
}

fn asking(name: &str, algorithm: Compression) -> SlaveConfig {
    SlaveConfig::new(name).compression(algorithm)
}

fn text(number: u64) -> String {
    format!("the value of the entry that is numbered {number}; ").repeat(20)
}

fn noise(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..len).map(|_| random.u8(..)).collect()
}

#[tokio::test]
async fn a_copy_the_log_and_what_is_written_meanwhile_are_compressed() -> Result<(), Error> {
    for &algorithm in Compression::ALL {
        let master = master(&store_with(20_000).await, MasterConfig::default()).await;
        for n in 0..50 {
            master.put(n.to_string(), text(n)).await?;
        }
        let slave = slave(&store(), asking("edge", algorithm)).await;
        let tap = tapped(&master, &slave);
        soon(slave.wait_caught_up()).await?;
        assert_equal(&master, &slave).await;
        assert!(tap.compressed(RANGES) > 0, "{algorithm}: {:?}", tap.frames());
        let before = tap.compressed(RECORDS);
        let token = master.put("live", text(51)).await?;
        soon(slave.wait_applied(token)).await?;
        assert_eq!(tap.compressed(RECORDS), before + 1, "{algorithm}");
        let status = master.status();
        assert_eq!(status.slaves[0].compression, Some(algorithm));
        let told = serde_json::to_value(&status)?;
        assert_eq!(told["slaves"][0]["compression"], algorithm.name());
        assert_equal(&master, &slave).await;

        // Away and back: through the log.
        slave.shutdown().await?;
        let copy = slave.store().inner().open_again();
        for n in 100..150 {
            master.put(n.to_string(), text(n)).await?;
        }
        let slave = Slave::open(replikv_testkit::FaultStore::new(copy), asking("edge", algorithm)).await?;
        let tap = tapped(&master, &slave);
        soon(slave.wait_caught_up()).await?;
        assert_equal(&master, &slave).await;
        assert_eq!((tap.plain(RANGES), tap.compressed(RANGES)), (0, 0), "{algorithm}");
        assert!(tap.compressed(RECORDS) > 0 && tap.len() < 25_000, "{algorithm}: {} {:?}", tap.len(), tap.frames());
    }
    Ok(())
}

#[tokio::test]
async fn a_value_of_several_frames_is_compressed_frame_by_frame() -> Result<(), Error> {
    for &algorithm in Compression::ALL {
        let master = master(&store(), MasterConfig::default()).await;
        let slaves = [slave(&store(), asking("a", algorithm)).await, slave(&store(), asking("b", algorithm)).await];
        let taps = slaves.each_ref().map(|slave| tapped(&master, slave));
        for slave in &slaves {
            // What was there before would be copied.
            soon(slave.wait_caught_up()).await?;
        }
        let long: Vec<u8> = text(1).into_bytes().into_iter().cycle().take(3 << 20).collect();
        // Text, noise, text.
        let mixed = [&long[..], &noise(2 << 20), &long[..]].concat();
        let token = master.put("long", mixed).await?;
        for (slave, tap) in slaves.iter().zip(&taps) {
            soon(slave.wait_applied(token)).await?;
            assert_equal(&master, slave).await;
            let lens: Vec<_> = tap.frames().into_iter().filter(|(kind, ..)| *kind == RECORDS).collect();
            assert!(tap.compressed(RECORDS) >= 5 && tap.len() < 4 << 20, "{algorithm}: {lens:?}");
            assert!(lens.iter().any(|(_, flags, len)| flags & COMPRESSED == 0 && *len == 1 << 20), "{lens:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_compressed_unless_both_sides_want_it() -> Result<(), Error> {
    let may_not = master(&store(), MasterConfig::default().compression(false)).await;
    let may = master(&store(), MasterConfig::default()).await;
    let asks = slave(&store(), asking("asks", Compression::Lz4)).await;
    let does_not = slave(&store(), SlaveConfig::new("does not")).await;
    for (master, slave) in [(may_not, asks), (may, does_not)] {
        let tap = tapped(&master, &slave);
        let token = master.put("k", text(1)).await?;
        soon(slave.wait_applied(token)).await?;
        assert_equal(&master, &slave).await;
        assert!(tap.frames().iter().all(|(_, flags, _)| flags & COMPRESSED == 0), "{:?}", tap.frames());
        assert!(tap.plain(RECORDS) > 0);
        assert_eq!(master.status().slaves[0].compression, None);
    }
    Ok(())
}

#[tokio::test]
async fn a_relay_compresses_for_its_own_slaves() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let relay = slave(&store(), SlaveConfig::new("relay").keep_log(KeepLog::default())).await;
    let above = tapped(&master, &relay);
    soon(relay.wait_caught_up()).await?;
    let leaf = slave(&store(), asking("leaf", Compression::Zstd)).await;
    let (relays, leafs, tap) = Tap::connection();
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(relays).await });
    follow(&leaf, leafs);
    let token = master.put("k", text(1)).await?;
    soon(leaf.wait_applied(token)).await?;
    assert_equal(&master, &leaf).await;
    assert_eq!((above.compressed(RECORDS), tap.compressed(RECORDS)), (0, 1));
    Ok(())
}

#[tokio::test]
async fn a_slave_of_a_part_a_comparison_and_a_verification_are_compressed() -> Result<(), Error> {
    for &algorithm in Compression::ALL {
        let retention = Retention { max_bytes: 1, max_age_ms: None, hold_back_bytes: 0 };
        let master = master(&store(), MasterConfig::default().ring_bytes(1).retention(retention)).await;
        for n in 0..2000 {
            master.put(format!("part/{n}"), text(n)).await?;
        }
        let part = slave(&store(), asking("part", algorithm).subscribe(KeyRange::prefix("part/"))).await;
        let tap = tapped(&master, &part);
        soon(part.wait_caught_up()).await?;
        let token = master.put("part/live", text(1)).await?;
        soon(part.wait_applied(token)).await?;
        assert!(tap.compressed(FILTERED) > 0, "{algorithm}: {:?}", tap.frames());

        let whole = slave(&store(), asking("whole", algorithm)).await;
        tapped(&master, &whole);
        soon(whole.wait_caught_up()).await?;
        whole.shutdown().await?;
        let copy = replikv_testkit::FaultStore::new(whole.store().inner().open_again());
        for n in 0..2000u64 {
            master.write(Batch::new().put(format!("part/{n}"), text(n + u64::from(n % 100 == 0)))).await?;
        }
        let before = master.status().published.seq;
        until(|| master.status().floor.seq > Seq::new(before.as_u64() / 2)).await;
        let whole = slave(&copy, asking("whole", algorithm)).await;
        let tap = tapped(&master, &whole);
        soon(whole.wait_caught_up()).await?;
        assert_eq!(whole.status().comparisons, 1, "{algorithm}");
        assert_eq!(whole.status().state, SlaveState::Following);
        assert!(tap.compressed(RANGES) > 0, "{algorithm}: {:?}", tap.frames());
        assert_equal(&master, &whole).await;

        support::put_raw(whole.store(), replikv_core::Keyspace::Data, b"part/7", b"damaged").await?;
        let report = soon(whole.verify(VerifyOptions::default().repair())).await?;
        assert!(!report.is_equal());
        assert!(tap.compressed(PROBED) > 0, "{algorithm}: {:?}", tap.frames());
        assert_equal(&master, &whole).await;
    }
    Ok(())
}
