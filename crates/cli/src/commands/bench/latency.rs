//! From the moment at which a write is wanted to the moment at which it can be read on a slave, in another process; and
//! until a writer who waits for one slave is told.
//!
//! *Closed*: the next write begins when a slave holds the one before. *Open*: writes are wanted at a fixed rate, and late
//! ones are counted from when they were wanted, so that a stall is seen by all that it delays.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use replikv::{Batch, Master, Seq};

use super::figure::Sample;
use super::peer::{Order, Peer, Quantiles, key, now};
use super::{Place, serve};
use crate::args;
use crate::store::Store;

const WRITES: u64 = 2_000;
/// Writes a second of the open loop: far below what any store takes.
const RATE: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let (master, mut slave, first) = pair(place).await?;
    let mut samples = Vec::new();
    let mut tell = |what: &str, quantiles: Quantiles| {
        for (name, micros) in quantiles.named() {
            samples.push(Sample::micros("latency", place.kind, format!("{what}, {name}"), micros));
        }
    };
    let (readable, told) = closed(&master, &mut slave, first, WRITES, args).await?;
    tell("closed loop, readable", readable);
    tell("closed loop, replicated(1)", told);
    let first = first + WRITES;
    slave.tell(&Order::Watch { first, last: first + WRITES - 1 }).await?;
    open_loop(&master, first, args).await?;
    tell("open loop, readable", slave.hear().await?.micros.unwrap_or_default());
    slave.end().await?;
    master.shutdown().await?;
    Ok(samples)
}

/// How long writes take until they can be read, one after the other.
pub(super) async fn closed_loop(place: &Place<'_>, args: &args::Bench, writes: u64) -> anyhow::Result<Quantiles> {
    let (master, mut slave, first) = pair(place).await?;
    let (readable, _) = closed(&master, &mut slave, first, writes, args).await?;
    slave.end().await?;
    master.shutdown().await?;
    Ok(readable)
}

// A master, a slave that follows, and the number of the next record.
async fn pair(place: &Place<'_>) -> anyhow::Result<(Master<Store>, Peer, u64)> {
    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let until = master.put("first", "").await?.seq.as_u64();
    let mut slave = place.peer("slave")?;
    slave.ask(&Order::Follow { from, until }).await?;
    Ok((master, slave, until + 1))
}

// Until each can be read on the slave, and until its writer is told that the slave holds it.
async fn closed(
    master: &Master<Store>,
    slave: &mut Peer,
    first: u64,
    writes: u64,
    args: &args::Bench,
) -> anyhow::Result<(Quantiles, Quantiles)> {
    let mut told = Histogram::<u64>::new(3)?;
    slave.tell(&Order::Watch { first, last: first + writes - 1 }).await?;
    for seq in first..first + writes {
        let start = Instant::now();
        let write = master.write(Batch::new().put(key(seq), value(now(), args)));
        expect(write.replicated(1, PATIENCE).await?.seq, seq)?;
        told.record(u64::try_from(start.elapsed().as_nanos())?)?;
    }
    Ok((slave.hear().await?.micros.unwrap_or_default(), Quantiles::of(&told)))
}

// One write after the other, since their order is their numbers'; none before its time.
async fn open_loop(master: &Master<Store>, first: u64, args: &args::Bench) -> anyhow::Result<()> {
    let (start, began) = (Instant::now(), now());
    for index in 0..u32::try_from(WRITES)? {
        let after = Duration::from_secs(1) / RATE * index;
        tokio::time::sleep_until((start + after).into()).await;
        let wanted = began + u64::try_from(after.as_nanos())?;
        let seq = first + u64::from(index);
        expect(master.put(key(seq), value(wanted, args)).await?.seq, seq)?;
    }
    Ok(())
}

fn value(wanted: u64, args: &args::Bench) -> Bytes {
    let mut value = wanted.to_be_bytes().to_vec();
    value.resize(args.value.max(8), 0x5A);
    value.into()
}

fn expect(found: Seq, wanted: u64) -> anyhow::Result<()> {
    anyhow::ensure!(found.as_u64() == wanted, "somebody else writes to the measured master");
    Ok(())
}
