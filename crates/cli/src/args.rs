//! What the program can be asked for.

mod words;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args as Group, Parser, Subcommand, ValueEnum};
use replikv::{Compression, KeyRange, LinkId};

use self::words::{duration, link, link_range, listening, prefix, range};
use crate::aggregates::Definition;

const CODES: &str = "\
Exit codes:
  0    done; the answer is yes
  1    the answer is no: no such key or group, stores differ, not healthy
  2    it could not be done; one line on standard error says why
  130  interrupted by Ctrl-C or SIGTERM before it was done; what runs until
       then (serve, follow without --once, log --follow) ends with 0";

/// Replication for embedded key-value stores.
///
/// A store is named by a URL: lmdb:PATH, sled:PATH, redb:FILE, fjall:PATH, or memory: for one that lives as long as the command.
#[derive(Debug, Parser)]
#[command(name = "replikv", version, after_help = CODES)]
pub(crate) struct Args {
    /// Say more on standard error: -v what happens, -vv details. REPLIKV_LOG takes a filter.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print JSON, for scripts.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows it all: a master, two slaves, a crash, and the proof that all are equal.
    Demo(Demo),
    /// Runs a master: serves a store to slaves.
    Serve(Serve),
    /// Runs a slave: follows a master into a store.
    Follow(Follow),
    /// Runs a centre: follows many masters into one store, each under a prefix of its own.
    Gather(Gather),
    /// Undoes a link of a centre, so that its keys are free.
    Unlink(Unlink),
    /// Prints the figures of groups of keys that `follow` or `gather` keeps.
    Aggregate(Aggregate),
    /// Puts the entries of a file into a store, through its log.
    Import(Import),
    /// Writes the entries of a store to a file, in key order.
    Export(Export),
    /// Prints the value of a key.
    Get(Get),
    /// Sets a key to a value, through the log.
    Put(Put),
    /// Removes a key, through the log.
    Del(Del),
    /// Prints entries, in key order.
    Scan(Scan),
    /// Says where a master or a slave stands, and how it is.
    Status(Status),
    /// Copies a store, also while a master serves it (LMDB), and marks the copy as a backup.
    Backup(Backup),
    /// Brings a backup up as a master's store, in a new epoch.
    Restore(Restore),
    /// Makes a slave's store a master's, in a new epoch: when its master is lost.
    Promote(Promote),
    /// Lifts the fence of a slave's store: when the promotion that it waits for was given up. Say it first of the slave that
    /// was to be promoted.
    Unfence(Unfence),
    /// Lets a slave take over from its master, which stops once the slave has everything: nothing is lost.
    Handover(Handover),
    /// Drops the slot of a slave that does not come back, so that the log is no longer kept for it.
    Forget(Forget),
    /// Compares two stores, or a slave's with its master's: 0 equal, 1 different, 2 could not tell.
    Verify(Verify),
    /// Prints records of a master's change log.
    Log(Log),
    /// Measures stores and replication on this machine.
    Bench(Bench),
    /// The other process of a measurement.
    #[command(hide = true)]
    BenchPeer(BenchPeer),
    /// Prints completions for a shell.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line: {"key":"k","value":"v"}; bytes that are not UTF-8 as key_b64, value_b64.
    Ndjson,
    /// A header with `key` and `value`, then one row an entry.
    Csv,
    /// Key, tab, value, bytes as they are; neither may hold a line feed, nor the key a tab.
    Tsv,
}

#[derive(Debug, Group)]
pub(crate) struct Demo {
    /// Import this file instead of the data that comes with the program.
    #[arg(long)]
    pub(crate) input: Option<PathBuf>,
    /// The format of the file. By default its extension says.
    #[arg(long, requires = "input")]
    pub(crate) format: Option<Format>,
}

#[derive(Debug, Group)]
pub(crate) struct Serve {
    /// The master's store; made if it is not there.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// Where to listen. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening, default_value = "127.0.0.1:9999")]
    pub(crate) listen: SocketAddr,
    /// Import this file first.
    #[arg(long, value_name = "FILE")]
    pub(crate) import: Option<PathBuf>,
    /// The format of the file. By default its extension says.
    #[arg(long, requires = "import")]
    pub(crate) format: Option<Format>,
    /// Compact the log by key, in the background: behind so many bytes of recent records only the newest change of each key
    /// is kept.
    #[arg(long, value_name = "BYTES")]
    pub(crate) compact_behind: Option<u64>,
    /// Let writes wait while a connected slave that goes through the log lacks more than so many bytes of records. One that
    /// applies nothing for eight seconds is not waited for.
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_lag_bytes: Option<u64>,
    /// Apply NDJSON operations from standard input as they come: "op" is put, delete (key), or delete_range (start, end).
    #[arg(long)]
    pub(crate) stdin: bool,
    /// The largest value that is accepted, in MiB. Slaves whose stores hold less are refused: LMDB holds 256, sled 253.
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) max_value: u16,
    /// The longest key that is accepted, in bytes. Slaves whose stores hold less are refused: LMDB holds 511, less the
    /// prefix of a link.
    #[arg(long, value_name = "BYTES", default_value_t = 480, value_parser = clap::value_parser!(u16).range(1..=511))]
    pub(crate) max_key: u16,
    /// Allow an address that is not loopback: whoever reaches it can read everything.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// The store is a backup, or restored from one: go on from it as the master, in a new epoch. Say it once. The master
    /// that it was taken of must never run again.
    #[arg(long)]
    pub(crate) new_epoch: bool,
    /// Answer GET /metrics there, in the text format of Prometheus. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening)]
    pub(crate) metrics: Option<SocketAddr>,
}

#[derive(Debug, Group)]
pub(crate) struct Follow {
    /// The slave's store; made if it is not there.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The address of the master, or of a slave that follows with --serve, HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) from: String,
    /// The name by which the master knows this slave; no two slaves share one.
    #[arg(long, value_name = "NAME", required_unless_present_any = ["as_slave", "rejoin"], conflicts_with_all = ["as_slave", "rejoin"])]
    pub(crate) id: Option<String>,
    /// As --id, and the store is a backup of a master: it becomes this slave's, and goes on from where it was taken.
    #[arg(long, value_name = "NAME")]
    pub(crate) as_slave: Option<String>,
    /// As --id, and the store is a master's whose time is over, since another one was promoted: it becomes this slave's. What
    /// it wrote that the new master never had makes it part from that one: see --on-divergence.
    #[arg(long, value_name = "NAME", conflicts_with = "as_slave")]
    pub(crate) rejoin: Option<String>,
    /// Subscribe to the keys from START on, up to but without END, and to those of every other --range and --prefix; either
    /// may be left out. Nothing else is sent, and nothing else is kept: `..` is everything. A store keeps what was said
    /// last.
    #[arg(long = "range", value_name = "START..END", value_parser = range)]
    pub(crate) ranges: Vec<KeyRange>,
    /// As --range, the keys that begin with this.
    #[arg(long = "prefix", value_name = "PREFIX")]
    pub(crate) prefixes: Vec<String>,
    /// What to do if the slave's history has parted from the master's, as when the master was restored from a backup.
    #[arg(long, value_name = "POLICY", default_value = "refuse")]
    pub(crate) on_divergence: OnDivergence,
    /// Where a resync keeps what the slave loses, as NDJSON that `import` takes. It is appended to.
    #[arg(long, value_name = "FILE", required_if_eq_any([("on_divergence", "resync"), ("on_divergence", "adopt-source")]))]
    pub(crate) quarantine: Option<PathBuf>,
    /// Ask the master to compress what it sends: lz4 or zstd. One that cannot sends it as it is.
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) compress: Option<Compression>,
    /// End when everything the master has published is here.
    #[arg(long)]
    pub(crate) once: bool,
    /// Verify so often, in the background, that the store holds what its master holds. For example 24h, 30m; one second at
    /// least. Nothing is repaired; `status` and the metrics say what came of it.
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "once")]
    pub(crate) verify_every: Option<Duration>,
    /// With --verify-every: read at most so many bytes of entries a second for it, on either side. Default: 4 MiB.
    #[arg(long, value_name = "BYTES", requires = "verify_every", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) verify_bytes_per_second: Option<u64>,
    /// Answer `replikv status --from` there. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening)]
    pub(crate) status: Option<SocketAddr>,
    /// Answer reads there: `replikv get --from`, `scan --from`, and programs; `status --from` as well. Port 0 takes a free
    /// one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening)]
    pub(crate) serve_reads: Option<SocketAddr>,
    /// Serve slaves of this slave there, and answer reads and `status --from`, as the address of a master does. Implies
    /// --keep-log. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening, conflicts_with = "once")]
    pub(crate) serve: Option<SocketAddr>,
    /// Keep the log as it is received: others go on from it if this slave is promoted, or follow this one (--serve). A log
    /// that was kept goes when the slave is run without this.
    #[arg(long)]
    pub(crate) keep_log: bool,
    /// How many bytes of the log are kept. Slaves of this one hold back four times as much. Default: 1 GiB. Implies
    /// --keep-log.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keep_log_bytes: Option<u64>,
    /// Keep a figure of each group of keys, in the transactions that change the data; once for each, and all of them each
    /// time. The group is the part of a key before the first SEPARATOR, / if none is said. The figure is the count of entries,
    /// the bytes of their values, or the sum of those values that are decimal numbers. `aggregate` prints it.
    #[arg(long = "aggregate", value_name = "NAME=count|bytes|sum[:SEPARATOR]")]
    pub(crate) aggregates: Vec<Definition>,
    /// Answer GET /metrics there, in the text format of Prometheus. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Allow addresses that are not loopback for --status, --metrics, --serve-reads and --serve: whoever reaches them can
    /// read those, and with the last two all data.
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnDivergence {
    /// End, and change nothing.
    Refuse,
    /// Become what the master is, if it is of the same source, and keep what is lost for it in the quarantine.
    Resync,
    /// As resync, and take another source as well: what this slave followed before is given up. Say it once.
    AdoptSource,
}

impl OnDivergence {
    /// A quarantine is for those that may lose something.
    pub(crate) fn check_quarantine(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self != Self::Refuse,
            "--quarantine keeps what --on-divergence resync or adopt-source takes away: give both"
        );
        Ok(())
    }
}

#[derive(Debug, Group)]
pub(crate) struct Gather {
    /// The centre's store; made if it is not there.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// A master: the name of the link to it, and its address, HOST:PORT. Its entries go under NAME/. Once for each master.
    #[arg(long = "link", value_name = "NAME=ADDR", required = true, value_parser = link)]
    pub(crate) links: Vec<Link>,
    /// Puts the entries of a link under this prefix instead. A link keeps the prefix that it had at first.
    #[arg(long = "prefix", value_name = "NAME=PREFIX", value_parser = prefix)]
    pub(crate) prefixes: Vec<(LinkId, String)>,
    /// Bring only what lies under this prefix of a link's master, and take the prefix off. A link keeps what it had at first.
    #[arg(long = "strip", value_name = "NAME=PREFIX", value_parser = prefix)]
    pub(crate) strips: Vec<(LinkId, String)>,
    /// Subscribe a link to its master's keys from START on, up to but without END, and to those of every other --range and
    /// --only of that link; either may be left out. A link keeps what was said last.
    #[arg(long = "range", value_name = "NAME=START..END", value_parser = link_range)]
    pub(crate) ranges: Vec<(LinkId, KeyRange)>,
    /// As --range, its master's keys that begin with this.
    #[arg(long = "only", value_name = "NAME=PREFIX", value_parser = prefix)]
    pub(crate) only: Vec<(LinkId, String)>,
    /// The name by which masters know this centre; no two slaves of a master share one.
    #[arg(long, value_name = "NAME", default_value = "centre")]
    pub(crate) id: String,
    /// Be a master of everything that is gathered, and listen there. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening)]
    pub(crate) listen: Option<SocketAddr>,
    /// What to do if a link's history has parted from its master's, as when that was restored from a backup.
    #[arg(long, value_name = "POLICY", default_value = "refuse")]
    pub(crate) on_divergence: OnDivergence,
    /// The directory where a resync keeps what a link loses, as NAME.ndjson, under the keys that its master has.
    #[arg(long, value_name = "DIR", required_if_eq_any([("on_divergence", "resync"), ("on_divergence", "adopt-source")]))]
    pub(crate) quarantine: Option<PathBuf>,
    /// Ask the masters to compress what they send: lz4 or zstd. One that cannot sends it as it is.
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) compress: Option<Compression>,
    /// End when everything that all masters have published is here.
    #[arg(long)]
    pub(crate) once: bool,
    /// Keep a figure of each group of keys over all links, in the transactions that change the data; once for each, and all
    /// of them each time. The group is the part of a key, without the prefix of its link, before the first SEPARATOR, / if none
    /// is said. The figure is the count of entries, the bytes of their values, or the sum of those values that are decimal
    /// numbers. `aggregate` prints it.
    #[arg(long = "aggregate", value_name = "NAME=count|bytes|sum[:SEPARATOR]")]
    pub(crate) aggregates: Vec<Definition>,
    /// Answer GET /metrics there, in the text format of Prometheus. Port 0 takes a free one; the address is printed.
    #[arg(long, value_name = "ADDR", value_parser = listening)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Allow addresses that are not loopback for --listen and --metrics: whoever reaches them can read everything.
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// A link, as it is named on the command line.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) name: LinkId,
    pub(crate) address: String,
}

#[derive(Debug, Group)]
#[command(group(ArgGroup::new("data").args(["keep_data", "remove_data"]).required(true)))]
pub(crate) struct Unlink {
    /// The centre's store, which nobody has open.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The name of the link, as `status` shows it.
    #[arg(value_name = "NAME")]
    pub(crate) link: String,
    /// Its entries stay, as data that no link claims.
    #[arg(long)]
    pub(crate) keep_data: bool,
    /// Its entries are removed first.
    #[arg(long)]
    pub(crate) remove_data: bool,
}

#[derive(Debug, Group)]
pub(crate) struct Aggregate {
    /// The store of a slave or a centre. But for LMDB, one which nobody has open.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The name that --aggregate gave it.
    pub(crate) name: String,
    /// Print the figure of this group only.
    pub(crate) group: Option<String>,
}

#[derive(Debug, Group)]
pub(crate) struct Backup {
    /// The store. But for LMDB, one which nobody has open.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// Where the backup goes: a directory that is not there, or is empty; of redb, a file that is not there; or a URL. A path is of the store's own kind.
    #[arg(value_name = "DEST")]
    pub(crate) destination: String,
}

#[derive(Debug, Group)]
pub(crate) struct Restore {
    /// The backup.
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
    /// Where the master's store goes: a directory that is not there, or is empty; of redb, a file that is not there; or a URL.
    #[arg(value_name = "DEST")]
    pub(crate) destination: String,
}

#[derive(Debug, Group)]
pub(crate) struct Promote {
    /// The slave's store, which nobody has open. Choose the slave that is furthest, as `status` tells.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// Fence this slave first, where it answers reads (follow --serve-reads or --serve), HOST:PORT; once for each. It then
    /// follows nobody of the old epoch any more. With enough of them fenced, every write that `replicated` has acknowledged
    /// survives; with fewer, nobody is promoted. Not one that follows a relay: the relay itself.
    #[arg(long = "fence", value_name = "ADDR", requires_all = ["slaves", "replicated"])]
    pub(crate) fence: Vec<String>,
    /// How many slaves there are that follow the old master itself, or may, this one among them: all that `replicated` may
    /// count.
    #[arg(long, value_name = "N", requires = "replicated")]
    pub(crate) slaves: Option<usize>,
    /// On how many of them a write is that was acknowledged: what writers wait for. N - n + 1 slaves have to be fenced, this
    /// one among them.
    #[arg(long, value_name = "n", requires = "slaves")]
    pub(crate) replicated: Option<usize>,
    /// Go beyond a promotion that was given up, and that this slave, or one that is fenced, is promised to.
    #[arg(long, requires = "slaves")]
    pub(crate) anew: bool,
    /// How long a slave may take to answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "slaves")]
    pub(crate) patience: u64,
}

#[derive(Debug, Group)]
pub(crate) struct Unfence {
    /// The slave's store, which nobody has open.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
}

#[derive(Debug, Group)]
pub(crate) struct Handover {
    /// The slave's store, which nobody has open: stop its `follow` first.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The name by which the master knows this slave.
    #[arg(long, value_name = "NAME")]
    pub(crate) id: String,
    /// The master's address, HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) from: String,
    /// How long the master waits for the slave, in seconds, at most 600; its writers wait as long at most, if it comes to
    /// nothing. And how long a master that cannot be reached is tried.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) patience: u64,
    /// A figure that the store keeps, as it was said to `follow`, once for each. It is kept up until the slave has taken over; a
    /// store that keeps one that is not said is refused.
    #[arg(long = "aggregate", value_name = "NAME=count|bytes|sum[:SEPARATOR]")]
    pub(crate) aggregates: Vec<Definition>,
}

#[derive(Debug, Group)]
pub(crate) struct Forget {
    /// The master's store, which nobody has open.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The name of the slave, as `status` shows it.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// It is the name of a consumer, and not of a slave.
    #[arg(long)]
    pub(crate) consumer: bool,
}

#[derive(Debug, Group)]
pub(crate) struct Import {
    /// The store; made if it is not there.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The format. By default the file's extension says; standard input is NDJSON.
    #[arg(long)]
    pub(crate) format: Option<Format>,
    /// The column of keys in CSV.
    #[arg(long, default_value = "key")]
    pub(crate) key_column: String,
    /// The column of values in CSV.
    #[arg(long, default_value = "value")]
    pub(crate) value_column: String,
    /// The largest value that is accepted, in MiB. Slaves whose stores hold less are refused: LMDB holds 256, sled 253.
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) max_value: u16,
    /// The longest key that is accepted, in bytes. Slaves whose stores hold less are refused: LMDB holds 511, less the
    /// prefix of a link.
    #[arg(long, value_name = "BYTES", default_value_t = 480, value_parser = clap::value_parser!(u16).range(1..=511))]
    pub(crate) max_key: u16,
    /// The file, or - for standard input. A file is checked as a whole before anything is written.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Group)]
pub(crate) struct Export {
    /// The store.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The format. By default the file's extension says; standard output is NDJSON.
    #[arg(long)]
    pub(crate) format: Option<Format>,
    /// Also of a slave, or a centre, that is not done with copying or comparing: what is there.
    #[arg(long)]
    pub(crate) partial: bool,
    /// The file, or - for standard output. A file appears only when it is complete.
    #[arg(default_value = "-")]
    pub(crate) file: PathBuf,
}

/// Where to read.
#[derive(Debug, Group)]
#[group(required = true, multiple = false)]
pub(crate) struct Place {
    /// The store.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Ask the master that serves at this address, or the slave that follows with --serve-reads or --serve, HOST:PORT. Given
    /// more than once, one of the slaves that are close enough behind is asked, and another one if that fails; the master
    /// only if no slave can answer.
    #[arg(long, value_name = "ADDR")]
    pub(crate) from: Vec<String>,
}

/// How stale what is read may be.
#[derive(Debug, Group)]
pub(crate) struct Bound {
    /// What a slave tells may be so old at most. For example 5s, 500ms, 2m. A slave hears of its master every two seconds
    /// while nobody writes. With more than one --from 10s by default, or any age if none of them has a master any more.
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "store")]
    pub(crate) max_lag: Option<Duration>,
    /// What a slave tells may lack so many records at most. By default any number.
    #[arg(long, value_name = "RECORDS", conflicts_with = "store")]
    pub(crate) max_lag_records: Option<u64>,
}

#[derive(Debug, Group)]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) bound: Bound,
    /// The key.
    pub(crate) key: String,
}

#[derive(Debug, Group)]
pub(crate) struct Put {
    /// The store; made if it is not there.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The key.
    pub(crate) key: String,
    /// The value.
    pub(crate) value: String,
}

#[derive(Debug, Group)]
pub(crate) struct Del {
    /// The store.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The key.
    pub(crate) key: String,
}

#[derive(Debug, Group)]
pub(crate) struct Scan {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) bound: Bound,
    /// Only keys that begin with this.
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Only this key and those after it.
    #[arg(long, value_name = "KEY")]
    pub(crate) start: Option<String>,
    /// Only keys before this one.
    #[arg(long, value_name = "KEY")]
    pub(crate) end: Option<String>,
    /// At most so many entries.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// From the last key to the first.
    #[arg(long)]
    pub(crate) reverse: bool,
}

#[derive(Debug, Group)]
#[command(group(ArgGroup::new("node").args(["from", "store"]).required(true)))]
pub(crate) struct Status {
    /// Ask the master that serves at this address, or the slave that follows with --status, --serve-reads or --serve, HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) from: Option<String>,
    /// Look into this store, which nobody has open.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Answer by exit code: 0 if all is well, 1 if not.
    #[arg(long, conflicts_with = "store")]
    pub(crate) check: bool,
    /// With --check: a slave that is further behind, that has heard of its master longer ago, or whose lag nobody knows, is
    /// not well. It hears of it every two seconds while nobody writes. For example 5s, 500ms, 2m.
    #[arg(long, value_name = "TIME", requires = "check", value_parser = duration)]
    pub(crate) max_lag: Option<Duration>,
}

#[derive(Debug, Group)]
pub(crate) struct Verify {
    /// A store; give it twice, or once with --from.
    #[arg(long = "store", value_name = "URL", required = true)]
    pub(crate) stores: Vec<String>,
    /// The store is a slave's, which nobody has open: follow the master at this address, HOST:PORT, and compare with what
    /// it holds while writes go on.
    #[arg(long, value_name = "ADDR")]
    pub(crate) from: Option<String>,
    /// Give what differs the master's values. The answer is still 1: something differed.
    #[arg(long, requires = "from")]
    pub(crate) repair: bool,
    /// With --repair: where what the slave's own entries held is kept, as NDJSON that `import` takes. It is appended to.
    #[arg(long, value_name = "FILE", requires = "repair")]
    pub(crate) quarantine: Option<PathBuf>,
    /// Read at most so many bytes of entries a second.
    #[arg(long, value_name = "BYTES", requires = "from", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) bytes_per_second: Option<u64>,
    /// Ask the master to compress what it sends: lz4 or zstd.
    #[arg(long, value_name = "ALGORITHM", requires = "from")]
    pub(crate) compress: Option<Compression>,
    /// With --from: a figure that the store keeps, as it was said to `follow`, once for each. It is kept up; a store that keeps
    /// one that is not said is refused.
    #[arg(long = "aggregate", value_name = "NAME=count|bytes|sum[:SEPARATOR]", requires = "from")]
    pub(crate) aggregates: Vec<Definition>,
    /// How many differences to print.
    #[arg(long, default_value_t = 10)]
    pub(crate) show: usize,
}

#[derive(Debug, Group)]
pub(crate) struct Log {
    /// The store.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// The first record.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(crate) from: u64,
    /// At most so many records.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// Go on: print records as they come, until interrupted.
    #[arg(long)]
    pub(crate) follow: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// What the log costs: batches of 1, 10, 100 and 1,000 through a master, against the raw store.
    Write,
    /// 512 writers of single entries, against one transaction each.
    Writers,
    /// A slave goes through the log, against the raw store.
    CatchUp,
    /// An empty slave copies, against the raw store in key order.
    Copy,
    /// A slave that fell behind the log compares, against the copy.
    Recovery,
    /// A master with a slave, against one without.
    Live,
    /// From a write to where it can be read on a slave.
    Latency,
    /// Slaves that discard what they get: how much one master can feed.
    FanOut,
    /// A thousand slaves that get nothing: what they cost their master.
    Idle,
    /// 4 and 16 masters into one centre, against one master.
    FanIn,
    /// Copies, writes and catch-up with so many entries there already, for each of --sizes. Not part of --all.
    Growth,
    /// A master that derives a count, an index, what is greatest in each group, against one that derives nothing.
    Derive,
    /// Text to a slave that asks for compressed connections, against one that does not: bytes, processor time and time.
    Compression,
    /// Copies, live replication, latency and fan-out against Redis; `redis-server` must be installed. Not part of --all.
    Redis,
    /// Catch-up, live replication and fan-in against mirrors of NATS JetStream; `nats-server` must be installed. Not part of
    /// --all.
    Nats,
    /// Catch-up and live replication against level-master on Node.js, of at most 100,000 entries; see --level-master. Not
    /// part of --all.
    LevelMaster,
}

impl Scenario {
    pub(crate) const ALL: &[Self] = &[
        Self::Write,
        Self::Writers,
        Self::CatchUp,
        Self::Copy,
        Self::Recovery,
        Self::Live,
        Self::Latency,
        Self::FanOut,
        Self::Idle,
        Self::FanIn,
        Self::Derive,
        Self::Compression,
    ];

    /// True if it measures another system beside this one.
    pub(crate) fn is_comparison(self) -> bool {
        matches!(self, Self::Redis | Self::Nats | Self::LevelMaster)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
pub(crate) enum Keys {
    Random,
    Sequential,
}

#[derive(Debug, Group)]
pub(crate) struct BenchPeer {
    #[arg(long)]
    pub(crate) store: String,
    /// Sync every second, and not with every commit.
    #[arg(long)]
    pub(crate) buffered: bool,
    /// Ask the master to compress.
    #[arg(long)]
    pub(crate) compress: Option<Compression>,
}

#[derive(Debug, Clone, Group)]
pub(crate) struct Bench {
    /// Measure these. By default a summary: writing, catching up, and the latency, in one process.
    #[arg(value_enum, conflicts_with = "all")]
    pub(crate) scenarios: Vec<Scenario>,
    /// Measure everything, masters and slaves in processes of their own.
    #[arg(long)]
    pub(crate) all: bool,
    /// The stores to measure, by commas. By default each that the program contains.
    #[arg(long, value_delimiter = ',', value_name = "STORE")]
    pub(crate) stores: Vec<String>,
    /// The order in which keys come.
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) keys: Keys,
    /// Draw what is measured into this directory, as SVG.
    #[arg(long, value_name = "DIR")]
    pub(crate) plot: Option<PathBuf>,
    /// How many entries each row writes.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) entries: usize,
    /// How many entries a batch holds.
    #[arg(long, default_value_t = 100)]
    pub(crate) batch: usize,
    /// How many bytes a value holds.
    #[arg(long, default_value_t = 100)]
    pub(crate) value: usize,
    /// How many entries are there already, where that is what is measured.
    #[arg(long, value_delimiter = ',', value_name = "ENTRIES", default_value = "1000000,10000000")]
    pub(crate) sizes: Vec<usize>,
    /// How often each row is measured; the median is printed.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Measure the round of this number only, of one scenario and one store, and print its figures as JSON.
    #[arg(long, hide = true, value_name = "NUMBER")]
    pub(crate) round: Option<usize>,
    /// With compression: the text that is written, a paragraph an entry. By default the Rust and Markdown files below the
    /// current directory.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Where the stores are put. By default the directory for temporary files.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Where level-master is installed, by `npm ci` in a copy of compare/level-master.
    #[arg(long, value_name = "DIR", default_value = "target/compare/level-master")]
    pub(crate) level_master: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
