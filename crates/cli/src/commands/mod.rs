//! The commands, one module each.

mod aggregate;
mod backup;
mod bench;
mod demo;
mod export;
mod follow;
mod forget;
mod gather;
mod handover;
mod import;
mod log;
mod nodes;
mod place;
mod point;
mod promote;
mod restore;
mod scan;
mod serve;
mod slave;
mod status;
mod unfence;
mod unlink;
mod verify;
mod verify_from;

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::CommandFactory;
use tokio::net::TcpListener;

use crate::args::{Args, Command};
use crate::{metrics, ui};

/// The answer is no.
const NO: u8 = 1;

/// Looks a name up: what cannot be an address is said to be none.
async fn check_address(address: &str) -> anyhow::Result<()> {
    check_port(address)?;
    let mut found = tokio::net::lookup_host(address).await.with_context(|| format!("{address} cannot be looked up"))?;
    anyhow::ensure!(found.next().is_some(), "{address} has no address");
    Ok(())
}

/// As [`check_address`], for who goes on trying: what cannot be looked up yet is only said. False if that is so.
async fn find_address(address: &str) -> anyhow::Result<bool> {
    check_port(address)?;
    let found = check_address(address).await;
    if let Err(error) = &found {
        note!("replikv: {}; trying again", ui::one_line(&format!("{error:#}")));
    }
    Ok(found.is_ok())
}

/// Whether an address has the shape of one.
fn check_port(address: &str) -> anyhow::Result<()> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    anyhow::ensure!(port.is_some_and(|port| port != 0), "{address:?} is no address: use HOST:PORT");
    Ok(())
}

/// Listens, on loopback unless that is waived.
async fn listen(address: SocketAddr, insecure: bool) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() && !insecure {
        bail!("{address} is not loopback: whoever reaches it can read everything; allow that with --insecure");
    }
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Answers scrapes from now on, if that is asked for. Before a node is opened: it tells whoever listens then.
async fn expose_metrics(address: Option<SocketAddr>, insecure: bool, json: bool) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    let listener = listen(address, insecure).await?;
    let address = listener.local_addr()?;
    tokio::spawn(metrics::serve(listener, metrics::install()?));
    if json {
        say!("{}", serde_json::json!({ "metrics": address.to_string() }))?;
    } else {
        say!("metrics on http://{address}/metrics")?;
    }
    Ok(())
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    match args.command {
        Command::Demo(args) => demo::run(args, json).await,
        Command::Serve(args) => serve::run(args, json).await,
        Command::Follow(args) => follow::run(args, json).await,
        Command::Gather(args) => gather::run(args, json).await,
        Command::Unlink(args) => unlink::run(args, json).await,
        Command::Aggregate(args) => aggregate::run(args, json).await,
        Command::Promote(args) => promote::run(args, json).await,
        Command::Unfence(args) => unfence::run(args, json).await,
        Command::Handover(args) => handover::run(args, json).await,
        Command::Restore(args) => restore::run(args, json).await,
        Command::Import(args) => import::run(args, json).await,
        Command::Export(args) => export::run(args, json).await,
        Command::Get(args) => point::get(args, json).await,
        Command::Put(args) => point::put(args, json).await,
        Command::Del(args) => point::del(args, json).await,
        Command::Scan(args) => scan::run(args, json).await,
        Command::Status(args) => status::run(args, json).await,
        Command::Backup(args) => backup::run(args, json).await,
        Command::Forget(args) => forget::run(args, json).await,
        Command::Verify(args) => verify::run(args, json).await,
        Command::Log(args) => log::run(args, json).await,
        Command::Bench(args) => bench::run(args, json).await,
        Command::BenchPeer(args) => bench::peer(args).await,
        Command::Completions { shell } => {
            // Into memory first: clap panics when the reader of a pipe is gone.
            let mut words = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "replikv", &mut words);
            ui::stdout().write_all(&words)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
