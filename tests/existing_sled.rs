//! An application's sled database becomes a master's: what it holds is copied, what is written is followed, and slaves
//! of every kind hold the same; those with trees of their own are read by the program as it was before.

use std::path::Path;
use std::time::Duration;

use crate::support::{self, Error, Store, assert_equal, contents, open, print_seed, seed, soon};
use fastrand::Rng;
use replikv::sled::{self, Db};
use replikv::{
    Batch, KeyRange, Master, MasterConfig, MemoryStore, Slave, SlaveConfig, SledOptions, SledStore, StoreError,
    Subspace, WriteError,
};
use tokio::net::TcpListener;

#[path = "../examples/existing_sled/main.rs"]
#[allow(dead_code, unreachable_pub, reason = "an example is a program, and here a module")]
mod after;
#[path = "../examples/existing_sled/before.rs"]
#[allow(dead_code, unreachable_pub, reason = "an example is a program, and here a module")]
mod before;

const TREES: [&str; 3] = ["customers", "orders", "portraits"];
const OLD: &str = r#"
{"event":"joined","name":"alice","customer":{"email":"alice@example.org","discount":5},"portrait":[1,2,3]}
{"event":"joined","name":"bob","customer":{"email":"bob@example.org","discount":null},"portrait":[1]}
{"event":"ordered","number":9,"what":"too old to be printed"}
{"event":"ordered","number":10,"what":"a lamp"}
"#;
const NEW: &str = r#"
{"event":"left","name":"bob"}
{"event":"joined","name":"carol","customer":{"email":"carol@example.org","discount":7},"portrait":[]}
{"event":"ordered","number":256,"what":"a chair"}
"#;

/// What was dropped a moment ago is open until its threads have ended: sled has no event for that.
async fn again<T, E: std::fmt::Display>(open: impl Fn() -> Result<T, E>) -> T {
    let lasting = async {
        loop {
            match open() {
                Ok(opened) => return opened,
                Err(error) if error.to_string().contains("could not acquire lock") => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon(lasting).await
}

async fn printed(dir: &Path) -> String {
    let shop = again(|| before::Shop::open(dir)).await;
    let mut output = Vec::new();
    before::print(&shop, &mut output).unwrap();
    String::from_utf8(output).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_before_reads_what_the_program_after_replicates() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let (central, edge) = (dir.path().join("central"), dir.path().join("edge"));
    let shop = before::Shop::open(&central)?;
    before::take(&shop, OLD.trim().as_bytes()).await?;
    drop(shop);
    let old = printed(&central).await;
    assert_eq!(
        old,
        "alice <alice@example.org>, Some(5), a portrait of 3 bytes\nbob <bob@example.org>, None, a portrait of 1 bytes\norder 10: a lamp\n"
    );

    let shop = again(|| after::Shop::open(&central)).await;
    let master = Master::open(after::store(&shop)?, MasterConfig::default()).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(master.clone().serve_tcp(listener));
    let slave_shop = after::Shop::open(&edge)?;
    let slave = Slave::open(after::store(&slave_shop)?, SlaveConfig::new("shop")).await?;
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow_tcp(address).await }
    });
    after::take(&master, NEW.trim().as_bytes()).await?;
    soon(slave.wait_applied(master.write(Batch::new().note("the end")).await?)).await?;
    slave.shutdown().await?;
    soon(following).await??;
    master.shutdown().await?;
    soon(serving).await??;
    drop((slave, slave_shop, master, shop));

    let new = printed(&edge).await;
    assert_eq!(
        new,
        "alice <alice@example.org>, Some(5), a portrait of 3 bytes\ncarol <carol@example.org>, Some(7), a portrait of 0 bytes\norder 10: a lamp\norder 256: a chair\n"
    );
    assert_eq!(printed(&central).await, new);
    Ok(())
}

#[test]
fn what_reads_is_the_same_before_and_after() {
    let [before, after] = ["before.rs", "main.rs"].map(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/existing_sled").join(name);
        std::fs::read_to_string(path).unwrap()
    });
    for (from, to) in [("/// Prints what there is.", "#[tokio::main]"), ("/// The trees of the shop.", "\n}\n\n")] {
        let part = |source: &str| {
            let part = &source[source.find(from).unwrap()..];
            part[..part.find(to).unwrap()].to_string()
        };
        assert!(part(&before).lines().count() > 5);
        assert_eq!(part(&before), part(&after));
    }
}

fn application(dir: &Path) -> Result<Db, sled::Error> {
    sled::open(dir)
}

/// Its trees, and one that is nobody else's business.
fn fill(db: &Db, rng: &mut Rng) {
    for name in TREES {
        let tree = db.open_tree(name).unwrap();
        for _ in 0..700 {
            let len = if rng.u16(..300) == 0 { 300_000 } else { rng.usize(..200) };
            tree.insert(support::key(rng), vec![rng.u8(..); len]).unwrap();
        }
    }
    db.insert("settings", "of the application").unwrap();
}

/// Writes into every tree, and between them; deletes over their bounds.
fn batch(rng: &mut Rng) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..12) {
        let space = Subspace::named(TREES[rng.usize(..3)]);
        let key = support::key(rng);
        batch = match rng.u8(..20) {
            0..=12 => batch.put(space.key(key), vec![rng.u8(..); rng.usize(..300)]),
            13 => batch.put(key, "in no tree"),
            14..=17 => batch.delete(space.key(key)),
            18 => batch.delete_range(space.range_of(&KeyRange::prefix(&key))),
            _ => batch.delete_range(space.key(key)..Subspace::named(TREES[rng.usize(..3)]).key(support::key(rng))),
        };
    }
    batch
}

fn slaves(dir: &Path) -> Vec<(&'static str, Store)> {
    let options = || SledOptions::default().trees(TREES);
    let adopted = application(&dir.join("adopted")).unwrap();
    vec![
        ("memory", std::sync::Arc::new(MemoryStore::new())),
        ("lmdb", open("lmdb", &dir.join("lmdb"))),
        ("sled", open("sled", &dir.join("sled"))),
        ("sled, trees", std::sync::Arc::new(SledStore::open_with(dir.join("trees"), options()).unwrap())),
        ("sled, some trees", {
            let some = SledOptions::default().tree(Subspace::named("orders"), "o").tree(Subspace::named("else"), "e");
            std::sync::Arc::new(SledStore::open_with(dir.join("some"), some).unwrap())
        }),
        ("sled, adopted", std::sync::Arc::new(SledStore::from_db(adopted, options()).unwrap())),
    ]
}

fn tree_entries(db: &Db, name: &str) -> Vec<(sled::IVec, sled::IVec)> {
    db.open_tree(name).unwrap().iter().collect::<Result<_, _>>().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applications_trees_reach_slaves_of_every_kind() -> Result<(), Error> {
    let seed = seed();
    print_seed("--test integration existing_sled::an_applications_trees_reach_slaves_of_every_kind", seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let db = application(&dir.path().join("master"))?;
    fill(&db, &mut rng);
    let held: usize = TREES.iter().map(|name| db.open_tree(name).unwrap().len()).sum();
    let store: Store = std::sync::Arc::new(SledStore::from_db(db.clone(), SledOptions::default().trees(TREES))?);
    let master = Master::open(store, MasterConfig::default().chunk_bytes(20_000)).await?;
    assert_eq!(contents(master.store()).await.len(), held, "all of the trees, and nothing else, is data");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(master.clone().serve_tcp(listener));

    let mut following = Vec::new();
    for (name, store) in slaves(dir.path()) {
        let id = name.replace([',', ' '], "-");
        let slave = Slave::open(store, SlaveConfig::new(&id)).await?;
        let task = tokio::spawn({
            let slave = slave.clone();
            async move { slave.follow_tcp(address).await }
        });
        following.push((name, slave, task));
    }
    let mut token = None;
    for _ in 0..200 {
        token = Some(master.write(batch(&mut rng)).await?);
    }
    let token = token.ok_or("nothing was written")?;
    for (name, slave, task) in following {
        println!("{name}");
        soon(slave.wait_applied(token)).await?;
        assert_equal(master.store(), slave.store()).await;
        slave.shutdown().await?;
        soon(task).await??;
    }
    master.shutdown().await?;
    soon(serving).await??;
    // The application's own view of both, which are the same.
    let edge = again(|| application(&dir.path().join("adopted"))).await;
    for name in TREES {
        let here = tree_entries(&db, name);
        assert!(!here.is_empty() && here == tree_entries(&edge, name), "tree {name}");
    }
    assert_eq!(db.iter().count(), 1, "the default tree has what the application put there");
    assert_eq!(edge.iter().count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_too_long_with_its_prefix_is_refused_by_the_master() -> Result<(), Error> {
    let db = sled::Config::new().temporary(true).open()?;
    let store = SledStore::from_db(db, SledOptions::default().trees(TREES))?;
    let master = Master::open(store, MasterConfig::default()).await?;
    let orders = Subspace::named("orders");
    let max = master.limits().max_key - orders.prefix().len();
    master.put(orders.key(vec![7; max]), "fits").await?;
    let error = master.put(orders.key(vec![7; max + 1]), "").await.unwrap_err();
    assert!(matches!(error, WriteError::Store(StoreError::KeyTooLong { .. })), "{error:?}");
    Ok(master.shutdown().await?)
}
