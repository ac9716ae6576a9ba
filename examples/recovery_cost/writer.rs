//! What a comparison costs writers: the 99th percentile of their latency while one runs, against idle.

use std::path::Path;
use std::time::{Duration, Instant};

use replikv::{Batch, Master, MasterConfig, Retention, Slave, SlaveConfig, SlaveState};

use super::wire::{Connected, Heard};
use super::{Res, Store, VALUE, behind, open, write};

const PAIRS: usize = 5;
/// How many writers there are, each of which waits for its write before the next.
const WRITERS: usize = 4;
/// How long one measurement takes at most.
const WINDOW: Duration = Duration::from_secs(5);
/// A shorter comparison has no 99th percentile to speak of: the next one is counted with it.
const SAMPLES: usize = 1500;

pub(crate) async fn run(entries: usize, kind: &str, budgets: &[u64], dir: &Path) -> Res<()> {
    // What a slave that is connected needs is kept; what one that is away needs is not.
    let retention = Retention { max_bytes: 1, max_age_ms: None, hold_back_bytes: 4 << 30 };
    let config = || MasterConfig::default().retention(retention);
    let store = || open(kind, &dir.join("master"));
    let master = Master::open(store()?, config()).await?;
    let mut rng = fastrand::Rng::with_seed(7);
    let keys: Vec<[u8; 16]> = (0..entries).map(|_| rng.u128(..).to_be_bytes()).collect();
    write(&master, keys.iter(), 0).await?;
    master.shutdown().await?;
    drop(master);
    // Elsewhere: what its disk does is not the master's.
    let slave = Slave::open(replikv::open("memory:")?, SlaveConfig::new("edge")).await?;

    println!("{entries} entries of {} bytes, {kind}; {WRITERS} writers", 16 + VALUE);
    println!("| bytes a second | p99 idle | p99 comparing | ratio, {PAIRS} pairs | median |");
    println!("| --- | --- | --- | --- | --- |");
    for budget in budgets {
        let config = if *budget == 0 { config() } else { config().compare_bytes_per_second(*budget) };
        let master = Master::open(store()?, config).await?;
        let (mut idle, mut comparing, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let before = p99(latencies(&master, &keys, || false).await?);
            let during = p99(while_comparing(&master, &slave, &keys).await?);
            eprintln!("{budget}: {before:.2?} idle, {during:.2?} comparing");
            idle.push(before);
            comparing.push(during);
            ratios.push(during.as_secs_f64() / before.as_secs_f64());
        }
        let told: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!(
            "| {budget} | {:.2?} | {:.2?} | {} | {:.2} |",
            median(idle),
            median(comparing),
            told.join(" "),
            median(ratios)
        );
        master.shutdown().await?;
    }
    Ok(())
}

async fn while_comparing(master: &Master<Store>, slave: &Slave<Store>, keys: &[[u8; 16]]) -> Res<Vec<Duration>> {
    let mut all = Vec::new();
    while all.len() < SAMPLES {
        let from = slave.status().position.map_or(0, |position| position.seq.as_u64());
        if from > 0 {
            write(master, fastrand::choose_multiple(keys, keys.len() / 1000).into_iter(), fastrand::u8(..)).await?;
            behind(master, from).await?;
        }
        let compared = slave.status().comparisons;
        let connected = Connected::new(master, slave, Heard::AtOnce);
        if from == 0 {
            // A copy, which is not what is measured.
            slave.wait_caught_up().await?;
            connected.close().await;
            continue;
        }
        while slave.status().state != SlaveState::Comparing && slave.status().comparisons == compared {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        all.extend(latencies(master, keys, || slave.status().state != SlaveState::Comparing).await?);
        slave.wait_caught_up().await?;
        connected.close().await;
    }
    Ok(all)
}

/// How long writes take, until `ended` or for so long.
async fn latencies(master: &Master<Store>, keys: &[[u8; 16]], ended: impl Fn() -> bool) -> Res<Vec<Duration>> {
    let begun = Instant::now();
    let one = || async {
        let mut took = Vec::new();
        while begun.elapsed() < WINDOW && !ended() {
            let at = Instant::now();
            let key = fastrand::choice(keys).ok_or("no keys")?;
            master.write(Batch::new().put(key, [1; VALUE])).await?;
            took.push(at.elapsed());
        }
        Res::Ok(took)
    };
    let all = futures_util::future::try_join_all((0..WRITERS).map(|_| one())).await?;
    Ok(all.concat())
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values[values.len() / 2]
}
