//! A slave.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use replikv::proto::Retention;
use replikv::{
    FollowError, HealthState, KeepLog, KeyRange, KeyRanges, LinkId, OpenError, QuarantineFile, Role, Slave,
    SlaveConfig, SlaveState,
};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::aggregates;
use crate::args::{self, OnDivergence};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, Store};
use crate::ui;

pub(crate) async fn run(args: args::Follow, json: bool) -> anyhow::Result<ExitCode> {
    // Before anything else: a bad name leaves nothing behind.
    LinkId::new(args.name())?;
    aggregates::check(&args.aggregates)?;
    let config = config(&args)?;
    let mut interrupt = Interrupt::new()?;
    // Before the store is made: what is no address leaves nothing behind, and with --once a name that leads nowhere.
    let (found, first) = if args.once {
        super::check_address(&args.from).await?;
        (true, Some(super::slave::connect(&args.from, super::slave::CONNECT).await?))
    } else {
        (super::find_address(&args.from).await?, None)
    };
    let probes = match args.status {
        Some(address) => Some(super::listen(address, args.insecure).await?),
        None => None,
    };
    let reads = match args.serve_reads {
        Some(address) => Some(super::listen(address, args.insecure).await?),
        None => None,
    };
    let slaves = match args.serve {
        Some(address) => Some(super::listen(address, args.insecure).await?),
        None => None,
    };
    super::expose_metrics(args.metrics, args.insecure, json).await?;
    // A backup is there, and so is what was a master's.
    let there = args.as_slave.is_some() || args.rejoin.is_some();
    let store = if there { store::open_existing(&args.store)? } else { store::open(&args.store)? };
    let store = tokio::select! {
        biased;
        () = interrupt.wait() => return Ok(ExitCode::from(if args.once { INTERRUPTED } else { 0 })),
        store = keeping(store, &args, there) => store?,
    };
    let slave = Slave::open(store, config).await.map_err(|error| match error {
        OpenError::Backup => store::is_backup(&args.store),
        error => anyhow::Error::new(error).context(args.store.clone()),
    })?;
    if let Some(listener) = probes {
        let address = listener.local_addr()?;
        tokio::spawn(slave.clone().serve_status_tcp(listener));
        if json {
            say!("{}", serde_json::json!({ "status": address.to_string() }))?;
        } else {
            say!("status on {address}")?;
        }
    }
    if let Some(listener) = reads {
        let address = listener.local_addr()?;
        tokio::spawn(slave.clone().serve_reads_tcp(listener));
        if json {
            say!("{}", serde_json::json!({ "reads": address.to_string() }))?;
        } else {
            say!("reads on {address}")?;
        }
    }
    if let Some(listener) = slaves {
        let address = listener.local_addr()?;
        tokio::spawn(slave.clone().serve_tcp(listener));
        if json {
            say!("{}", serde_json::json!({ "serving": args.store, "address": address.to_string() }))?;
        } else {
            say!("serving {} on {address}", args.store)?;
        }
    }
    let mut following = pin!(follow(&slave, &args, first));
    let mut ended = false;
    let result = tokio::select! {
        biased;
        () = interrupt.wait() => Ok(Some(ExitCode::from(if args.once { INTERRUPTED } else { 0 }))),
        result = &mut following => {
            ended = true;
            result.map(|()| None)
        }
        result = announce(&slave, &args, found, json) => result.map(|()| None),
    };
    let progress = slave.status();
    // The connection is polled on, for the last ack and the goodbye. What it ends with now is what it was told.
    let goodbye = async {
        if !ended {
            drop(following.await);
        }
    };
    let (closed, ()) = tokio::join!(slave.shutdown(), goodbye);
    let closed = closed.with_context(|| args.store.clone());
    let code = result?;
    closed?;
    if progress.resyncs > 0
        && let Some(path) = &args.quarantine
    {
        let (entries, path) = (ui::thousands(progress.quarantined), path.display());
        note!("replikv: the slave's history had parted from its master's; {entries} entries are kept in {path}");
    }
    if args.once && code.is_none() {
        let seq = progress.position.map_or(0, |position| position.seq.as_u64());
        if json {
            say!("{}", serde_json::json!({ "caught_up": true, "seq": seq, "records": progress.records }))?;
        } else {
            say!("caught up at record {seq}, {} records applied", ui::thousands(progress.records))?;
        }
    }
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

async fn keeping(store: Store, args: &args::Follow, there: bool) -> anyhow::Result<Store> {
    if !there && !store::is_of(&store, &[Role::Slave]).await? {
        return Ok(store);
    }
    aggregates::keep(store, &args.store, &args.aggregates, Vec::new()).await
}

fn config(args: &args::Follow) -> anyhow::Result<SlaveConfig> {
    let mut config = SlaveConfig::new(args.name());
    if args.once {
        config = config.temporary();
    }
    if args.keep_log || args.keep_log_bytes.is_some() || args.serve.is_some() {
        let mut keep = KeepLog::default();
        if let Some(bytes) = args.keep_log_bytes {
            let hold_back_bytes = bytes.saturating_mul(4);
            keep = keep.retention(Retention { max_bytes: bytes, max_age_ms: None, hold_back_bytes });
        }
        config = config.keep_log(keep);
    }
    if args.as_slave.is_some() {
        config = config.from_backup();
    }
    if args.rejoin.is_some() {
        config = config.rejoin();
    }
    config = config.compression(args.compress);
    if let Some(every) = args.verify_every {
        config = config.verify_every(every);
    }
    if let Some(bytes) = args.verify_bytes_per_second {
        config = config.verify_bytes_per_second(bytes);
    }
    let prefixes = args.prefixes.iter().map(KeyRange::prefix);
    let ranges: KeyRanges = args.ranges.iter().cloned().chain(prefixes).collect();
    if !ranges.is_empty() {
        config = config.subscribe(ranges);
    }
    let Some(path) = &args.quarantine else { return Ok(config) };
    args.on_divergence.check_quarantine()?;
    let quarantine = QuarantineFile::new(path);
    // Before anything else: not when the first entry is to be kept.
    quarantine.check().with_context(|| path.display().to_string())?;
    Ok(match args.on_divergence {
        OnDivergence::Refuse => config,
        OnDivergence::Resync => config.resync(quarantine),
        OnDivergence::AdoptSource => config.adopt_source(quarantine),
    })
}

impl args::Follow {
    fn name(&self) -> &str {
        self.as_slave.as_deref().or(self.rejoin.as_deref()).or(self.id.as_deref()).unwrap_or_default()
    }
}

async fn follow(slave: &Slave<Store>, args: &args::Follow, first: Option<TcpStream>) -> anyhow::Result<()> {
    let ended = match first {
        Some(stream) => super::slave::follow(slave, stream, &args.from).await,
        None => slave.follow_tcp(&args.from).await,
    };
    ended.map(drop).map_err(|error| refused(error, args))
}

fn refused(error: FollowError, args: &args::Follow) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("{} cannot follow {}", args.store, args.from))
}

// Says once that the connection stands, shows progress, and returns when everything is here if that is what is asked.
async fn announce(slave: &Slave<Store>, args: &args::Follow, found: bool, json: bool) -> anyhow::Result<()> {
    let bar = ui::bar("following", None);
    let mut unreachable_said = args.once || !found;
    let mut progress = slave.subscribe();
    while !progress.borrow_and_update().connected {
        tokio::select! {
            biased;
            changed = progress.changed() => if changed.is_err() {
                return Ok(());
            },
            () = sleep(Duration::from_secs(1)), if !unreachable_said => {
                unreachable_said = true;
                let reason = slave.status().health.reason;
                note!("replikv: no connection to {} yet ({reason}); trying again", args.from);
            }
        }
    }
    if json {
        say!("{}", serde_json::json!({ "following": args.from, "store": args.store, "id": args.name() }))?;
    } else {
        say!("following {} into {} as {}", args.from, args.store, args.name())?;
    }
    let show = async {
        let mut trouble = Trouble::default();
        loop {
            let status = slave.status();
            if let Some(reason) = trouble.look(status.health.state, &status.health.reason) {
                note!("replikv: {} is blocked ({reason}); trying again", args.store);
            }
            ensure!(!args.once || trouble.lasted < PATIENCE, "{}: {}", args.store, status.health.reason);
            let state = match status.state {
                SlaveState::Copying => "copying",
                SlaveState::Comparing => "comparing",
                SlaveState::Following => "up to date",
                _ => "catching up",
            };
            bar.set_message(state);
            bar.set_position(status.position.map_or(0, |position| position.seq.as_u64()));
            sleep(LOOK).await;
        }
    };
    let caught_up = async {
        if !args.once || slave.wait_caught_up().await.is_err() {
            std::future::pending::<()>().await;
        }
        if timeout(Duration::from_secs(2), is_below_a_gap(slave)).await == Ok(true) {
            note!("replikv: {} is a relay that has lost its master, which may have more", args.from);
        }
    };
    let shown = tokio::select! {
        biased;
        () = caught_up => Ok(()),
        shown = show => shown,
    };
    bar.finish_and_clear();
    shown
}

// Whether it follows a relay that has lost its master, which a relay says at once.
async fn is_below_a_gap(slave: &Slave<Store>) -> bool {
    loop {
        let status = slave.status();
        if status.path.len() <= 1 || status.lag.is_some() {
            return false;
        }
        if status.health.state == HealthState::Disconnected {
            return slave.subscribe().borrow().connected;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// How often a slave is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long `--once` waits for somebody to do something about what blocks it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What blocks a slave, a full disk for instance, and does not pass by itself. It is said once, until the slave is well again.
#[derive(Default)]
struct Trouble {
    said: Option<String>,
    /// Each attempt looks better for a moment: that takes as much off this as being blocked adds to it.
    lasted: Duration,
}

impl Trouble {
    /// What is to be said, of what has been seen more than once.
    fn look(&mut self, state: HealthState, reason: &str) -> Option<String> {
        if state != HealthState::Blocked {
            self.lasted = self.lasted.saturating_sub(LOOK);
            self.said.take_if(|_| state == HealthState::Ready);
            return None;
        }
        self.lasted += LOOK;
        let is_news = self.lasted > LOOK && self.said.as_deref() != Some(reason);
        is_news.then(|| self.said.insert(reason.to_owned()).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_once_and_what_passes_never() {
        let mut trouble = Trouble::default();
        assert_eq!(trouble.look(HealthState::Blocked, "full"), None, "it may pass");
        assert_eq!(trouble.look(HealthState::CatchingUp, ""), None);
        let full = Some("full".to_owned());
        for said in [None, full.clone(), None, None] {
            assert_eq!(trouble.look(HealthState::Blocked, "full"), said);
        }
        // The next attempt.
        assert_eq!(trouble.look(HealthState::CatchingUp, ""), None);
        assert_eq!(trouble.look(HealthState::Blocked, "full"), None, "it was said");
        assert_eq!(trouble.lasted, 4 * LOOK);
        assert_eq!(trouble.look(HealthState::Ready, ""), None);
        assert_eq!(trouble.look(HealthState::Blocked, "full"), full, "it was well in between");
    }
}
