//! Aggregates are what a recomputation from the data beside them comes to, on every path, and after every crash.

mod centre;
mod crash;
mod kinds;
mod many;
mod master;
mod paths;
mod slave;
#[path = "../support/mod.rs"]
mod support;

fn seed() -> u64 {
    std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_128)
}

fn rng(test: &str) -> fastrand::Rng {
    let seed = seed();
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test aggregate {test}");
    fastrand::Rng::with_seed(seed)
}
