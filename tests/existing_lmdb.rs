//! An existing LMDB program becomes a master by a handful of lines, and reads its slave's directory as it always did.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Error, soon};
use replikv::{LmdbOptions, LmdbOrder, LmdbStore, Slave, SlaveConfig, Subspace};
use tokio::net::TcpListener;

#[allow(dead_code, reason = "the program itself is an example")]
#[path = "../examples/existing_lmdb/before.rs"]
mod before;
#[allow(dead_code, reason = "the program itself is an example")]
#[path = "../examples/existing_lmdb/main.rs"]
mod master;

const BEFORE: &str = include_str!("../examples/existing_lmdb/before.rs");
const MASTER: &str = include_str!("../examples/existing_lmdb/main.rs");

/// How many lines of `new` are not in `old`, in its order: those that were added or changed.
fn lines_that_differ(old: &str, new: &str) -> usize {
    let code = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.map(str::to_string).collect()
    };
    let (old, new) = (code(old), code(new));
    // The longest sequence of lines that both have.
    let mut common = vec![vec![0; new.len() + 1]; old.len() + 1];
    for (a, one) in old.iter().enumerate() {
        for (b, other) in new.iter().enumerate() {
            common[a + 1][b + 1] = if one == other { common[a][b] + 1 } else { common[a][b + 1].max(common[a + 1][b]) };
        }
    }
    new.len() - common[old.len()][new.len()]
}

#[test]
fn fewer_than_ten_lines_make_the_program_a_master() {
    let differing = lines_that_differ(BEFORE, MASTER);
    assert!((1..10).contains(&differing), "{differing} lines were added or changed");
    assert!(lines_that_differ(MASTER, BEFORE) < 10, "and no more were removed");
}

const CHILD: &str = "REPLIKV_EXISTING_LMDB_CHILD";

fn spawn(dir: &Path, address: SocketAddr) -> Result<Child, Error> {
    let child = Command::new(std::env::current_exe()?)
        .args(["existing_lmdb::the_slave_is_read_by_the_program_as_it_was", "--exact", "--nocapture"])
        .env(CHILD, dir)
        .env("LISTEN", address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn printed(dir: &Path) -> Result<String, Error> {
    let mut output = Vec::new();
    before::print(dir, &mut output)?;
    Ok(String::from_utf8(output)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slave_is_read_by_the_program_as_it_was() -> Result<(), Error> {
    if let Ok(dir) = std::env::var(CHILD) {
        return master::take(Path::new(&dir), std::io::stdin().lock()).await;
    }
    let root = tempfile::tempdir()?;
    let (there, here) = (root.path().join("master"), root.path().join("slave"));
    replicate(&there, &here).await?;
    let (expected, found) = (printed(&there)?, printed(&here)?);
    assert_eq!(expected, found);
    assert!(found.contains("zoe <zoe@example.org>") && found.contains("order 11700: things"), "{found}");
    assert!(!found.contains("customer 3 "), "{found}");
    assert_eq!(found.lines().count(), 15 + 39, "{found}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python with its lmdb package: PYTHON=python3 cargo test --workspace --all-features --test integration -- --ignored by_python"]
async fn the_slave_is_read_by_python() -> Result<(), Error> {
    let root = tempfile::tempdir()?;
    let (there, here) = (root.path().join("master"), root.path().join("slave"));
    replicate(&there, &here).await?;
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/existing_lmdb/read.py");
    let output = Command::new(python).arg(script).arg(&here).stderr(Stdio::inherit()).output()?;
    assert!(output.status.success(), "{:?}", output.status);
    // Python says None and 7 where Rust says None and Some(7), and leaves no order out.
    let expected = printed(&there)?.replace("Some(", "").replace("), a portrait", ", a portrait");
    let found = String::from_utf8(output.stdout)?.replace("order 0: things\n", "");
    assert_eq!(found, expected);
    Ok(())
}

/// The program in a process of its own, as a master of `there`, and a slave of it in `here` that gets everything.
async fn replicate(there: &Path, here: &Path) -> Result<(), Error> {
    // Some of its data is older than replication.
    let old =
        br#"{"event":"joined","name":"zoe","customer":{"email":"zoe@example.org","discount":null},"portrait":[1,2]}"#;
    before::take(there, &old[..]).await?;
    let options = LmdbOptions::default().tables(["customers", "portraits"]).table_in_order(
        Subspace::named("orders"),
        "orders",
        LmdbOrder::IntegerKeys,
    );
    let slave = Slave::open(LmdbStore::open(here, options)?, SlaveConfig::new("edge")).await?;
    // A port that is free.
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut child = spawn(there, address)?;
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow_tcp(address).await }
    });
    let mut input = child.stdin.take().ok_or("the child has no input")?;
    for number in 0..40u64 {
        let name = format!("customer {}", number % 15);
        let customer = format!(r#"{{"email":"{number}@example.org","discount":{}}}"#, number % 50);
        writeln!(input, r#"{{"event":"joined","name":"{name}","customer":{customer},"portrait":[7,7,{number}]}}"#)?;
        writeln!(input, r#"{{"event":"ordered","number":{},"what":"things"}}"#, number * 300)?;
    }
    writeln!(input, r#"{{"event":"left","name":"customer 3"}}"#)?;
    input.flush()?;
    // The beginning of the epoch, the base, and a record for each event.
    soon(slave.wait_applied(replikv::Seq::new(2 + 81))).await?;
    drop(input);
    assert!(soon(tokio::task::spawn_blocking(move || child.wait())).await??.success());
    following.abort();
    Ok(slave.shutdown().await?)
}
