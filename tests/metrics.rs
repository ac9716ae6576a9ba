//! What masters and slaves tell a recorder, and what the documentation says of it.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use replikv::metrics::{ALL, Metric, MetricKind, MetricUnit, describe};
use replikv::{
    Batch, Compression, Durability, KeepLog, Keyspace, Master, MasterConfig, MemoryStore, ReplicaStore, Seq, Slave,
    SlaveConfig, VerifyOptions, WriteSet,
};
use tokio::time::{sleep, timeout};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Turns a hang into a failure.
const LONG: Duration = Duration::from_secs(60);

/// Runs `test` with a recorder that only it sees: one thread does everything.
fn recorded<F: Future<Output = Result>>(test: impl FnOnce(Scrape) -> F) -> Result {
    let recorder = PrometheusBuilder::new().build_recorder();
    let scrape = Scrape(recorder.handle());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    metrics::with_local_recorder(&recorder, || {
        describe();
        runtime.block_on(async { timeout(LONG, test(scrape)).await? })
    })
}

struct Scrape(PrometheusHandle);

impl Scrape {
    /// Every sample, by its name and labels other than the source.
    fn now(&self) -> BTreeMap<String, f64> {
        let text = self.0.render();
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        samples.map(|(series, value)| (without_source(series), value.parse().expect("a number"))).collect()
    }

    fn value(&self, series: &str) -> f64 {
        self.now().get(series).copied().unwrap_or_else(|| panic!("there is no {series} in {:#?}", self.now()))
    }

    /// Waits until a gauge says so: it is set once a second.
    async fn until(&self, series: &str, wanted: impl Fn(f64) -> bool) {
        while !self.now().get(series).is_some_and(|value| wanted(*value)) {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn without_source(series: &str) -> String {
    let Some((name, labels)) = series.split_once('{') else { return series.into() };
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.starts_with("source="));
    let labels: Vec<_> = labels.collect();
    if labels.is_empty() { name.into() } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// 16 MiB of text, to slaves that tail: what they cost in compression does not depend on how many they are.
#[test]
fn what_sixteen_slaves_are_sent_is_compressed_once() -> Result {
    for (algorithm, threads) in [(Compression::Lz4, 1), (Compression::Lz4, 4), (Compression::Zstd, 4)] {
        let recorder = PrometheusBuilder::new().build_recorder();
        let scrape = Scrape(recorder.handle());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async { timeout(LONG, sixteen_slaves(&scrape, algorithm)).await? })
        })?;
    }
    Ok(())
}

async fn sixteen_slaves(scrape: &Scrape, algorithm: Compression) -> Result {
    // One that were further behind than what is kept would cost a compression of its own.
    let config = MasterConfig::default().max_lag(2 << 20);
    let master = Master::open(MemoryStore::new(), config).await?;
    let mut slaves = Vec::new();
    for n in 0..16 {
        let slave =
            Slave::open(MemoryStore::new(), SlaveConfig::new(format!("edge-{n}")).compression(algorithm)).await?;
        // Buffers of their own lengths: no two of them read at one pace.
        let (here, there) = tokio::io::duplex(1 << (10 + n));
        let serving = master.clone();
        tokio::spawn(async move { serving.serve(here).await });
        let following = slave.clone();
        tokio::spawn(async move { following.follow(there).await });
        slave.wait_caught_up().await?;
        slaves.push(slave);
    }
    let before = master.status().log_bytes;
    let mut random = fastrand::Rng::with_seed(11);
    let mut token = None;
    while master.status().log_bytes - before < 16 << 20 {
        // Now a few at once, now a large one, now a pause.
        let writes = (0..random.usize(1..8)).map(|_| {
            let number = random.u32(..);
            let value = format!("what is written at {number}, by a seed; ").repeat(random.usize(1..400));
            master.put(number.to_be_bytes(), value)
        });
        for written in futures_util::future::join_all(writes).await {
            token = Some(written?);
        }
        if random.u8(..) < 8 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    let token = token.ok_or("nothing was written")?;
    for slave in &slaves {
        slave.wait_applied(token).await?;
    }
    #[allow(clippy::cast_precision_loss, reason = "megabytes")]
    let log = (master.status().log_bytes - before) as f64;
    let (from, to) = (
        scrape.value("replikv_source_compressed_bytes_total"),
        scrape.value("replikv_source_compressed_to_bytes_total"),
    );
    assert!(from > 0.5 * log && from <= 1.2 * log, "{algorithm}: {from} bytes of {log}");
    assert!(to > 0.0 && to < 0.2 * from, "{algorithm}: {from} bytes became {to}");
    let sent = scrape.value("replikv_source_sent_bytes_total");
    assert!(sent > 15.0 * to && sent < 20.0 * to, "{algorithm}: {sent} bytes were sent, of {to}");
    master.shutdown().await?;
    Ok(())
}

#[test]
fn what_happens_is_counted_on_both_sides() -> Result {
    recorded(|scrape| async move {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let before = master.status().log_bytes;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn({
            let master = master.clone();
            async move { master.serve(here).await }
        });
        let following = tokio::spawn({
            let slave = slave.clone();
            async move { slave.follow(there).await }
        });
        for n in 0..10u32 {
            master.write(Batch::new().put(n.to_be_bytes(), [0; 100]).put("same", "")).await?;
        }
        assert!(master.write(Batch::new().expect("same", "other").put("same", "")).await.is_err());
        assert!(master.put("", "").await.is_err());
        assert!(master.transact(|_, _| Err(replikv::Abort::refuse("no"))).await.is_err());
        let token = master.put("last", "").await?;
        slave.wait_applied(token).await?;

        let status = master.status();
        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        let float = |number: u64| number as f64;
        assert_eq!(scrape.value("replikv_source_records_total"), 11.0);
        assert_eq!(scrape.value("replikv_source_groups_total"), float(status.groups));
        assert_eq!(scrape.value("replikv_source_log_bytes_total"), float(status.log_bytes - before));
        assert_eq!(scrape.value("replikv_source_commit_seconds_count"), float(status.groups));
        assert_eq!(scrape.value("replikv_source_group_records_sum"), 11.0);
        for (kind, count) in [("conflict", 1.0), ("limits", 1.0), ("aborted", 1.0), ("store_full", 0.0)] {
            assert_eq!(
                scrape.value(&format!("replikv_source_writes_refused_total{{kind=\"{kind}\"}}")),
                count,
                "{kind}"
            );
        }
        assert_eq!(scrape.value("replikv_source_sessions_accepted_total"), 1.0);
        let applied = slave.status();
        assert_eq!(scrape.value("replikv_follower_records_total{follower=\"edge\"}"), float(applied.records));
        assert_eq!(scrape.value("replikv_follower_groups_total{follower=\"edge\"}"), float(applied.groups));
        assert_eq!(scrape.value("replikv_follower_apply_seconds_count{follower=\"edge\"}"), float(applied.groups));
        assert_eq!(scrape.value("replikv_follower_connections_total{follower=\"edge\"}"), 1.0);

        let seq = float(token.seq.as_u64());
        scrape.until("replikv_source_published_seq", |value| value == seq).await;
        scrape.until("replikv_follower_applied_seq{follower=\"edge\"}", |value| value == seq).await;
        scrape.until("replikv_follower_durable_seq{follower=\"edge\"}", |value| value == seq).await;
        scrape.until("replikv_follower_health{follower=\"edge\",state=\"ready\"}", |value| value == 1.0).await;
        scrape.until("replikv_follower_lag_bytes{follower=\"edge\"}", |value| value == 0.0).await;
        scrape.until("replikv_source_followers", |value| value == 1.0).await;
        for lag in ["seqs", "bytes", "seconds"] {
            let series = format!("replikv_source_follower_lag_{lag}{{follower=\"edge\"}}");
            scrape.until(&series, |value| value == 0.0).await;
        }
        let retained = float(status.retained_bytes);
        assert_eq!(scrape.value("replikv_source_log_retained_bytes"), retained);

        // What was never verified is nobody's to tell.
        let different = "replikv_follower_verify_different_entries{follower=\"edge\"}";
        let verified = "replikv_follower_verified_seconds{follower=\"edge\"}";
        assert!(scrape.value(different).is_nan() && scrape.value(verified).is_nan());
        let outcome = |outcome: &str| {
            scrape.value(&format!("replikv_follower_verifications_total{{follower=\"edge\",outcome=\"{outcome}\"}}"))
        };
        let report = slave.verify(VerifyOptions::default()).await?;
        assert!(report.is_equal());
        let compared = scrape.value("replikv_follower_verified_bytes_total{follower=\"edge\"}");
        assert_eq!(compared, float(report.bytes));
        scrape.until(different, |value| value == 0.0).await;
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Data, "mine", "1")?.put(Keyspace::Data, "same", "other")?;
        slave.store().apply(writes.build(), Durability::Buffered).await?;
        slave.verify(VerifyOptions::default().repair()).await?;
        scrape.until(different, |value| value == 2.0).await;
        scrape.until(verified, |value| value < 60.0).await;
        assert!(scrape.value("replikv_follower_verified_bytes_total{follower=\"edge\"}") > 2.0 * compared);
        assert_eq!([outcome("equal"), outcome("different"), outcome("unfinished")], [1.0, 1.0, 0.0]);

        // A lag of somebody who is gone is not 0, and not what it was.
        slave.shutdown().await?;
        following.await??;
        serving.await??;
        assert_eq!(scrape.value("replikv_follower_health{follower=\"edge\",state=\"stopped\"}"), 1.0);
        assert_eq!(scrape.value("replikv_follower_health{follower=\"edge\",state=\"ready\"}"), 0.0);
        assert!(scrape.value("replikv_follower_lag_seqs{follower=\"edge\"}").is_nan());
        scrape.until("replikv_source_follower_connected{follower=\"edge\"}", |value| value == 0.0).await;
        assert!(scrape.value("replikv_source_follower_lag_seconds{follower=\"edge\"}").is_nan());
        assert_eq!(scrape.value("replikv_source_followers"), 0.0);

        // What one side has sent, the other has received, up to last words.
        let (sent, received) =
            (scrape.value("replikv_source_sent_bytes_total"), scrape.value("replikv_source_received_bytes_total"));
        assert_eq!(scrape.value("replikv_follower_sent_bytes_total{follower=\"edge\"}"), received);
        let received = scrape.value("replikv_follower_received_bytes_total{follower=\"edge\"}");
        assert!(received <= sent && received > float(status.log_bytes - before), "{received} of {sent}");
        master.shutdown().await?;
        scrape.until("replikv_source_health{state=\"stopped\"}", |value| value == 1.0).await;
        Ok(())
    })
}

#[test]
fn a_relay_tells_of_its_log_and_of_its_own_slaves() -> Result {
    recorded(|scrape| async move {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let relay = Slave::open(MemoryStore::new(), SlaveConfig::new("relay").keep_log(KeepLog::default())).await?;
        let leaf = Slave::open(MemoryStore::new(), SlaveConfig::new("leaf")).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let serving = master.clone();
        tokio::spawn(async move { serving.serve(here).await });
        let following = relay.clone();
        tokio::spawn(async move { following.follow(there).await });
        let token = master.put("k", "v").await?;
        relay.wait_applied(token).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let serving = relay.clone();
        tokio::spawn(async move { serving.serve(here).await });
        let following = leaf.clone();
        tokio::spawn(async move { following.follow(there).await });
        leaf.wait_applied(token).await?;
        // Both tell under one source here, as they are in one process.
        let series = |name: &str, follower: &str| format!("replikv_source_follower_{name}{{follower=\"{follower}\"}}");
        scrape.until(&series("connected", "leaf"), |value| value == 1.0).await;
        scrape.until(&series("lag_seqs", "leaf"), |value| value == 0.0).await;
        scrape.until(&series("connected", "relay"), |value| value == 1.0).await;
        Ok(())
    })
}

#[test]
fn a_lag_is_told_in_records_in_bytes_and_in_time() -> Result {
    recorded(|scrape| async move {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        let (here, there) = tokio::io::duplex(64);
        tokio::spawn({
            let master = master.clone();
            async move { master.serve(here).await }
        });
        // It follows until the master knows that it has caught up, and then it reads no byte more: a slave that is stuck.
        let following = slave.follow(there);
        let caught_up = async {
            let told = || master.status().slaves.first().map(|slave| (slave.lag_seqs, slave.applied > Seq::ZERO));
            while told() != Some((0, true)) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::pin!(following);
        tokio::select! {
            ended = &mut following => return Err(format!("it ended: {ended:?}").into()),
            () = caught_up => {}
        }
        for n in 0..5u32 {
            master.put(n.to_be_bytes(), [0; 1000]).await?;
        }
        let series = |lag: &str| format!("replikv_source_follower_lag_{lag}{{follower=\"edge\"}}");
        scrape.until(&series("seqs"), |value| value == 5.0).await;
        scrape.until(&series("bytes"), |value| value > 5000.0 && value < 10_000.0).await;
        scrape.until(&series("seconds"), |value| value > 0.0).await;
        Ok(())
    })
}

#[test]
fn what_a_write_waits_for_a_slave_is_counted_even_if_it_is_given_up() -> Result {
    recorded(|scrape| async move {
        let master = Master::open(MemoryStore::new(), MasterConfig::default().max_lag(2000)).await?;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        let (here, there) = tokio::io::duplex(64);
        tokio::spawn({
            let master = master.clone();
            async move { master.serve(here).await }
        });
        let following = slave.follow(there);
        let consistent = async {
            while !master.status().slaves.first().is_some_and(|slave| slave.consistent) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::pin!(following);
        tokio::select! {
            ended = &mut following => return Err(format!("it ended: {ended:?}").into()),
            () = consistent => {}
        }
        // It reads no byte more.
        for n in 0..2u32 {
            master.put(n.to_be_bytes(), [0; 1000]).await?;
        }
        let count = "replikv_source_throttled_seconds_count";
        assert_eq!(scrape.value(count), 0.0, "it is not that far behind");
        tokio::select! {
            biased;
            written = master.write(Batch::new().put("k", "v")).into_future() => return Err(format!("{written:?}").into()),
            () = sleep(Duration::from_millis(20)) => {}
        }
        assert_eq!(scrape.value(count), 1.0);
        assert!(scrape.value("replikv_source_throttled_seconds_sum") >= 0.02);
        Ok(())
    })
}

#[test]
fn a_refused_slave_is_counted_by_its_code() -> Result {
    recorded(|scrape| async move {
        let master = Master::open(MemoryStore::new(), MasterConfig::default().max_sessions(0)).await?;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let (served, followed) = tokio::join!(master.serve(here), slave.follow(there));
        assert!(served.is_err() && followed.is_err());
        assert_eq!(scrape.value("replikv_source_sessions_refused_total{code=\"busy\"}"), 1.0);
        assert_eq!(scrape.value("replikv_source_sessions_accepted_total"), 0.0);
        scrape.until("replikv_follower_connected{follower=\"edge\"}", |value| value == 0.0).await;
        assert!(scrape.value("replikv_follower_lag_seqs{follower=\"edge\"}").is_nan());
        Ok(())
    })
}

fn row(metric: &Metric) -> String {
    let kind = match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram { .. } => "histogram",
        other => panic!("{other:?} has no word"),
    };
    let unit = match metric.unit {
        MetricUnit::Count => "",
        MetricUnit::Bytes => "bytes",
        MetricUnit::Seconds => "seconds",
        other => panic!("{other:?} has no word"),
    };
    let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    format!("| `{}` | {kind} | {unit} | {} | {} |", metric.name, labels.join(", "), metric.help)
}

#[test]
fn the_documentation_lists_every_metric_as_it_is() -> Result {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md"))?;
    let (_, table) = page.split_once("| name | kind | unit | labels | says |").ok_or("there is no table")?;
    let written: Vec<_> = table.lines().skip(2).take_while(|line| !line.is_empty()).collect();
    let wanted: Vec<_> = ALL.iter().map(row).collect();
    assert_eq!(written, wanted, "the table of docs/metrics.md should be\n{}\n", wanted.join("\n"));
    Ok(())
}
