//! A hundred masters and their centre, with kills.

use std::time::Duration;

use bytes::Bytes;
use replikv_core::Batch;
use replikv_node::aggregate::{Again, Aggregate, FloatSum, Max, Sum};
use replikv_node::{Centre, DerivedStore, LinkConfig, Master, MasterConfig, Slave, SlaveConfig};

use crate::centre::inside;
use crate::kinds::{Kinds, contributions, groups, target, value};
use crate::master::own;
use crate::slave::{Deriving, connect};
use crate::support::{Error, Following, Serving, Store, contents, soon, store};
use crate::{rng, support};

const MASTERS: usize = 100;
/// Of each batch.
const OPERATIONS: usize = 40;

fn operations() -> usize {
    std::env::var("REPLIKV_OPERATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000)
}

/// What masters aggregate, and the centre over them.
struct Aggregates {
    kinds: Kinds,
    sums: Aggregate<u8, Again<Sum>>,
    greatest: Aggregate<u8, Again<Max<i64>>>,
    floats: Aggregate<(String, u8), FloatSum>,
}

impl Aggregates {
    fn new() -> Self {
        let kinds = Kinds::new();
        let (sums, greatest) =
            (kinds.sum.again("sums", 1, inside("sum")), kinds.max.again("greatest", 1, inside("max")));
        let floats = Aggregate::new("floats", 1, FloatSum, |key, value, emit| {
            let link = key.split(|&byte| byte == b'/').next().unwrap_or_default();
            for (group, number) in contributions(key, value) {
                emit.to((String::from_utf8_lossy(link).into_owned(), group), number as f64 * 0.1);
            }
            Ok(())
        });
        Self { sums, greatest, floats, kinds }
    }

    fn config(&self) -> MasterConfig {
        let config = MasterConfig::default().derive(target("sum"), self.kinds.sum.clone());
        config.derive(target("max"), self.kinds.max.clone())
    }

    async fn centre(&self, central: &Store) -> Result<Centre<Deriving>, Error> {
        let builder = DerivedStore::builder(central.clone()).derive(self.sums.clone());
        let builder = builder.derive(self.greatest.clone()).derive(self.floats.clone());
        Ok(Centre::open(builder.open().await?).await?)
    }
}

struct Edge {
    name: String,
    store: Store,
    master: Master<Store>,
    link: Slave<replikv_node::LinkStore<Deriving>>,
    connection: (Serving, Following),
}

async fn link(centre: &Centre<Deriving>, name: &str) -> Result<Slave<replikv_node::LinkStore<Deriving>>, Error> {
    let config = LinkConfig::new(replikv_core::LinkId::new(name)?, SlaveConfig::new("centre"));
    Ok(centre.link(config).await?)
}

impl Edge {
    /// The power goes, and comes back.
    async fn kill_master(&mut self, aggregates: &Aggregates) -> Result<(), Error> {
        self.store = self.store.power_loss().await?;
        self.master = support::master(&self.store, aggregates.config()).await;
        self.reconnect().await
    }

    async fn kill_link(&mut self, centre: &Centre<Deriving>) -> Result<(), Error> {
        self.disconnect().await?;
        soon(self.link.shutdown()).await?;
        self.link = link(centre, &self.name).await?;
        self.connection = connect(&self.master, &self.link);
        Ok(())
    }

    async fn disconnect(&mut self) -> Result<(), Error> {
        self.connection.0.abort();
        self.connection.1.abort();
        drop((&mut self.connection.1).await);
        Ok(())
    }

    async fn reconnect(&mut self) -> Result<(), Error> {
        self.disconnect().await?;
        // The last write set of the connection before may still be under way.
        self.connection = connect(&self.master, &self.link);
        while self.connection.1.is_finished() {
            self.connection = connect(&self.master, &self.link);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn catch_up(&mut self) -> Result<(), Error> {
        let seq = self.master.status().published.seq;
        soon(async {
            loop {
                let waiting = self.link.wait_applied(seq);
                tokio::select! {
                    biased;
                    applied = waiting => return applied,
                    _ = &mut self.connection.1 => {}
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.connection = connect(&self.master, &self.link);
            }
        })
        .await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_masters_and_their_centre_come_to_what_an_offline_recomputation_does() -> Result<(), Error> {
    let mut rng = rng("a_hundred_masters_and_their_centre_come_to_what_an_offline_recomputation_does");
    let aggregates = Aggregates::new();
    let mut central = store();
    let mut centre = aggregates.centre(&central).await?;
    let mut edges = Vec::new();
    for n in 0..MASTERS {
        let name = format!("edge-{n:02}");
        let store = store();
        let master = support::master(&store, aggregates.config()).await;
        let link = link(&centre, &name).await?;
        let connection = connect(&master, &link);
        edges.push(Edge { name, store, master, link, connection });
    }
    let (wanted, mut written, mut kills) = (operations(), 0, 0);
    while written < wanted {
        let edge = &mut edges[rng.usize(..MASTERS)];
        let mut batch = Batch::new();
        for _ in 0..OPERATIONS {
            let key = [b'a' + rng.u8(..6), rng.u8(b'a'..=b'z'), rng.u8(b'a'..=b'f')];
            batch = match rng.u8(..20) {
                0 => batch.delete_range(key..[key[0], key[1] + 1, 0]),
                1..=4 => batch.delete(key),
                _ => batch.put(key, value(&mut rng)),
            };
        }
        written += OPERATIONS;
        edge.master.write(batch).await?;
        match rng.u16(..400) {
            0..=3 => edge.kill_master(&aggregates).await?,
            4..=7 => edge.kill_link(&centre).await?,
            8 => {
                // The centre itself, with all its links.
                for edge in &mut edges {
                    edge.disconnect().await?;
                }
                central = central.power_loss().await?;
                centre = aggregates.centre(&central).await?;
                for edge in &mut edges {
                    edge.link = link(&centre, &edge.name).await?;
                    edge.connection = connect(&edge.master, &edge.link);
                }
            }
            _ => continue,
        }
        kills += 1;
    }
    assert!(kills > wanted / 8_000, "{kills} kills");
    let mut all: Vec<(Bytes, Bytes)> = Vec::new();
    let bits = |((link, group), sum): ((String, u8), f64)| (link, group, sum.to_bits());
    let mut floats = Vec::new();
    for edge in &mut edges {
        edge.catch_up().await?;
        let data = own(&edge.store).await;
        for (group, values) in groups(&data) {
            let sum = values.iter().fold(0.0, |sum, &value| sum + value as f64 * 0.1);
            floats.push(bits(((edge.name.clone(), group), sum)));
        }
        let of = groups(&data).into_iter();
        let sums: Vec<_> = of.map(|(group, all)| (group, all.iter().copied().map(i128::from).sum::<i128>())).collect();
        assert_eq!(aggregates.kinds.sum.all(&edge.master).await?.value, sums, "{}", edge.name);
        let space = replikv_core::Subspace::raw(format!("{}/", edge.name));
        all.extend(data.into_iter().map(|(key, value)| (space.key(key), value)));
    }
    // From what masters hold, not from what the centre does; and it holds just that.
    let there = contents(centre.store()).await.into_iter().filter(|(key, _)| !key.contains(&b'~'));
    assert!(there.eq(all.iter().cloned()), "the centre differs from its masters");
    let of_all = groups(&all);
    let sums = of_all.iter().map(|(group, all)| (*group, all.iter().copied().map(i128::from).sum::<i128>()));
    assert_eq!(aggregates.sums.all(&centre).await?.value, sums.collect::<Vec<_>>());
    let greatest = of_all.iter().map(|(group, all)| (*group, *all.iter().max().unwrap_or(&0)));
    assert_eq!(aggregates.greatest.all(&centre).await?.value, greatest.collect::<Vec<_>>());
    assert_eq!(
        aggregates.floats.all(&centre).await?.value.into_iter().map(bits).collect::<Vec<_>>(),
        floats,
        "bit for bit"
    );
    println!("{written} operations, {kills} kills, {} entries", all.len());
    Ok(())
}
