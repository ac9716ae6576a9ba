//! The tokio shell over a simulated network: hosts that crash and lose power, links that are cut, held, or open in one
//! direction only. Stores are in memory and the network is [turmoil](https://docs.rs/turmoil)'s, in one thread and in
//! virtual time; what goes wrong, and when, is drawn from a seed.

mod watched;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use replikv_memory::MemoryStore;
use replikv_node::{Master, Slave, SlaveConfig};
use replikv_testkit::FaultStore;
use tokio::io::AsyncReadExt;
use turmoil::net::TcpStream;

use watched::{History, Watched};
use world::{Fault, PORT, run};

const SEEDS: u64 = 24;

#[test]
fn the_seed_of_the_environment_holds() {
    let seed = std::env::var("REPLIKV_NETWORK_SEED").map_or(20_240_917, |seed| seed.parse().unwrap());
    println!("{:?}", run(seed).unwrap_or_else(|words| panic!("{words}")));
}

#[test]
fn slaves_hold_what_their_master_held_and_end_equal_whatever_the_network_does() {
    let (mut faults, mut write_sets, mut in_the_middle) = (BTreeMap::<Fault, u64>::new(), 0, 0);
    for seed in 0..SEEDS {
        let report = run(seed).unwrap_or_else(|words| panic!("{words}"));
        report.faults.iter().for_each(|(fault, times)| *faults.entry(*fault).or_default() += times);
        write_sets += report.write_sets;
        in_the_middle += report.in_the_middle;
    }
    println!(
        "{faults:?}, {write_sets} write sets of slaves, {in_the_middle} of them in the middle of a copy or comparison"
    );
    assert!(Fault::ALL.iter().all(|fault| faults.contains_key(fault)), "{faults:?}");
    assert!(write_sets > 100 * SEEDS && in_the_middle > SEEDS, "{write_sets} and {in_the_middle}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [1, 2] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
        assert_ne!(run(seed).unwrap().trace, run(seed + 100).unwrap().trace);
    }
}

/// As many as may be served, and many times more.
const SILENT: usize = 10_000;
const SERVED: usize = 64;

#[test]
fn ten_thousand_connections_that_never_say_hello_are_let_go_and_a_slave_is_served() {
    let mut builder = turmoil::Builder::new();
    builder.rng_seed(7).simulation_duration(Duration::from_secs(600)).tcp_capacity(SILENT);
    let mut sim = builder.build();
    let history = History::default();
    let (open, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let store = |name: &str| Watched::new(FaultStore::new(MemoryStore::new()), History::default(), name.into(), 1);
    {
        let (open, most) = (open.clone(), most.clone());
        sim.host("master", move || {
            let (open, most) = (open.clone(), most.clone());
            async move {
                let master = Master::open(store("master"), world::master_config().max_sessions(SERVED)).await?;
                master.put("greeting", "hello").await?;
                let count = move |by| {
                    most.fetch_max(open.fetch_add(by, Ordering::SeqCst) + by, Ordering::SeqCst);
                };
                world::serve(master, count).await
            }
        });
    }
    sim.client("strangers", async {
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            silent.push(TcpStream::connect(("master", PORT)).await?);
        }
        // Each of them is told why, or just let go. None is left open.
        for stream in &mut silent {
            let mut words = Vec::new();
            drop(stream.read_to_end(&mut words).await);
        }
        Ok(())
    });
    sim.client("slave", async move {
        let slave = Slave::open(store("slave"), SlaveConfig::new("slave")).await?;
        let following = world::follow(&slave, &history, fastrand::Rng::with_seed(1));
        tokio::select! {
            biased;
            ended = following => return ended,
            caught_up = slave.wait_caught_up() => drop(caught_up?),
        }
        assert_eq!(slave.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
        Ok(())
    });
    sim.run().unwrap();
    let (open, most) = (open.load(Ordering::SeqCst), most.load(Ordering::SeqCst));
    println!("{SILENT} silent connections, {most} of them at once");
    assert!(open <= 1, "{open} are served still");
}
