//! Readers that lag, fail, copy and come back, by a seed, and what is read through them against what was written.

use std::collections::HashSet;

use replikv_core::{Digest, EncodedOps, Epoch, Position, Seq, SourceId, Token};
use replikv_proto::{Lag, ReadAt};
use tokio::sync::Notify;

use super::*;

const EPOCH: Epoch = Epoch { number: 1, nonce: 9 };

fn position(seq: u64) -> Position {
    let (source, digest) = (SourceId::from_bytes([7; 16]), Digest::from_bytes([3; 16]));
    Position { source, epoch: EPOCH, seq: Seq::new(seq), digest }
}

fn token(seq: u64) -> Token {
    position(seq).into()
}

/// What a reader is like at the moment.
#[derive(Debug, Clone, Copy)]
struct Nature {
    /// What it holds: the value of every key is the number of the last record.
    seq: u64,
    /// What it says that its lag is.
    lag: Option<Lag>,
    silent_ms: u64,
    consistent: bool,
    /// Every read fails.
    broken: bool,
    /// Every read hangs.
    hangs: bool,
    /// What its status says where it is, so many records ago.
    status_is_old: u64,
    /// Records that are readable a moment before it says so.
    ahead: u64,
    /// The number of the epoch that it is in.
    reign: u64,
    /// It says that another master goes on in its place.
    replaced: bool,
}

impl Nature {
    fn at(seq: u64) -> Self {
        Self {
            seq,
            lag: Some(Lag { seqs: 0, bytes: 0, millis: 0 }),
            silent_ms: 0,
            consistent: true,
            broken: false,
            hangs: false,
            status_is_old: 0,
            ahead: 0,
            reign: 1,
            replaced: false,
        }
    }
}

impl Nature {
    fn position(&self, seq: u64) -> Position {
        Position { epoch: Epoch { number: self.reign, ..EPOCH }, ..position(seq) }
    }
}

struct Fake {
    nature: Mutex<Nature>,
    changed: Notify,
    asked: AtomicUsize,
}

impl Fake {
    fn new(seq: u64) -> Arc<Self> {
        let (nature, changed) = (Mutex::new(Nature::at(seq)), Notify::new());
        Arc::new(Self { nature, changed, asked: AtomicUsize::new(0) })
    }

    fn now(&self) -> Nature {
        *lock(&self.nature)
    }

    fn become_(&self, change: impl FnOnce(&mut Nature)) {
        change(&mut lock(&self.nature));
        self.changed.notify_waiters();
    }
}

#[async_trait]
impl DataReader for Fake {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read(key, None).await?.value)
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        Ok(self.read_page(range, options, None).await?.value)
    }
}

#[async_trait]
impl Reader for Fake {
    async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if key.is_empty() {
            return Err(StoreError::KeyEmpty.into());
        }
        let nature = self.now();
        if nature.hangs {
            std::future::pending::<()>().await;
        }
        if nature.broken {
            return Err(ReadError::Unreachable { reason: "it is broken".into() });
        }
        if after.is_some_and(|after| after.seq().as_u64() > nature.seq || !nature.consistent) {
            return Err(ReadError::Behind { at: Seq::new(nature.seq) });
        }
        let shown = nature.seq + nature.ahead;
        let at = ReadAt {
            includes: Some(nature.position(nature.seq)),
            shows: Some(nature.position(shown)),
            consistent: nature.consistent,
            lag: nature.lag,
            last_contact_ms: Some(nature.silent_ms),
        };
        Ok(Reading { value: Some(Bytes::from(shown.to_string())), at })
    }

    async fn read_page(
        &self,
        range: KeyRange,
        _options: ScanOptions,
        after: Option<WaitFor>,
    ) -> Result<Reading<Page>, ReadError> {
        let read = self.read(b"k", after).await?;
        let page = Page::received(&range, false, EncodedOps::default(), None);
        Ok(Reading { value: page.map_err(|error| StoreError::backend(error.to_string()))?, at: read.at })
    }

    async fn changes(&self, _from: ChangesFrom, _ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
        Err(ChangesError::Unsupported)
    }

    async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError> {
        loop {
            let changed = self.changed.notified();
            if self.now().consistent && self.now().seq >= write.seq().as_u64() {
                return Ok(());
            }
            changed.await;
        }
    }

    fn status(&self) -> ReaderStatus {
        let nature = self.now();
        let state = if nature.replaced { HealthState::Replaced } else { HealthState::Ready };
        let health = Health { state, reason: String::new(), since_unix_ms: 0 };
        let position = Some(nature.position(nature.seq.saturating_sub(nature.status_is_old)));
        let (lag, last_contact_ms) = (nature.lag, Some(nature.silent_ms));
        ReaderStatus { health, position, consistent: nature.consistent, lag, last_contact_ms }
    }
}

fn readers(fakes: &[Arc<Fake>]) -> Vec<Arc<dyn Reader>> {
    fakes.iter().map(|fake| fake.clone() as Arc<dyn Reader>).collect()
}

fn config() -> BalanceConfig {
    BalanceConfig::default().seed(Some(1))
}

fn number(value: Option<Bytes>) -> u64 {
    String::from_utf8_lossy(&value.expect("it is there")).parse().expect("a number")
}

#[tokio::test(start_paused = true)]
async fn reads_are_spread_and_go_to_the_less_busy_of_two() {
    let fakes = [Fake::new(5), Fake::new(5), Fake::new(5)];
    let balanced = BalancedReader::new(readers(&fakes), config());
    for _ in 0..300 {
        assert_eq!(number(balanced.get(b"k").await.unwrap()), 5);
    }
    assert!(balanced.shares().iter().all(|share| share.reads > 50 && share.asked == 0), "{:?}", balanced.shares());
    // One that has much to do is drawn, and not taken.
    let _busy: Vec<_> = (0..3).map(|_| Asking::begin(&balanced.inner.readers[1])).collect();
    let before = balanced.shares()[1].reads;
    for _ in 0..100 {
        balanced.get(b"k").await.unwrap();
    }
    assert_eq!(balanced.shares()[1].reads, before);
}

#[tokio::test(start_paused = true)]
async fn a_reader_outside_of_the_bound_is_left_out_and_comes_back() {
    let fakes = [Fake::new(100), Fake::new(100)];
    let balanced = BalancedReader::new(readers(&fakes), config().max_lag_seqs(Some(10)));
    let lag = |seqs, millis| Some(Lag { seqs, bytes: 0, millis });
    let outside: [fn(&mut Nature); 5] = [
        |nature| nature.lag = Some(Lag { seqs: 11, bytes: 0, millis: 1 }),
        |nature| nature.lag = Some(Lag { seqs: 1, bytes: 0, millis: 10_001 }),
        |nature| nature.silent_ms = 10_001,
        |nature| nature.lag = None,
        |nature| nature.consistent = false,
    ];
    for (n, change) in outside.into_iter().enumerate() {
        fakes[0].become_(change);
        let asked = fakes[0].asked.load(Ordering::Relaxed);
        for _ in 0..20 {
            assert_eq!(number(balanced.get(b"k").await.unwrap()), 100);
        }
        assert_eq!(fakes[0].asked.load(Ordering::Relaxed), asked, "{n}");
        fakes[0].become_(|nature| *nature = Nature::at(100));
        for _ in 0..20 {
            balanced.get(b"k").await.unwrap();
        }
        assert!(fakes[0].asked.load(Ordering::Relaxed) > asked, "{n}");
    }
    // What it was not told of is seen by what the other one has: its answer is not used, and it rests.
    fakes[0].become_(|nature| nature.seq = 89);
    for _ in 0..20 {
        assert_eq!(number(balanced.get(b"k").await.unwrap()), 100);
    }
    assert_eq!(balanced.shares()[0].unfit, 1);
    sleep(Duration::from_secs(1)).await;
    // At the bound it is within it.
    fakes[0].become_(|nature| (nature.seq, nature.lag, nature.silent_ms) = (90, lag(10, 10_000), 10_000));
    let spread = async {
        let mut seen = HashSet::new();
        while seen.len() < 2 {
            seen.insert(number(balanced.get(b"k").await.unwrap()));
        }
    };
    timeout(Duration::from_secs(60), spread).await.unwrap();
    // None is within it: what each lacks is said.
    fakes[0].become_(|nature| nature.consistent = false);
    fakes[1].become_(|nature| nature.lag = None);
    let error = balanced.read(b"k", None).await.unwrap_err();
    assert!(matches!(&error, ReadError::NobodyWithin { .. }) && error.is_retryable(), "{error}");
    let words = error.to_string();
    assert!(words.contains("no state of its master") && words.contains("nobody knows"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn a_master_that_was_replaced_is_no_last_resort() {
    let (slave, old) = (Fake::new(10), Fake::new(5));
    let balanced = BalancedReader::with_fallback(readers(std::slice::from_ref(&slave)), old.clone(), config());
    slave.become_(|nature| nature.broken = true);
    assert_eq!(number(balanced.get(b"k").await.unwrap()), 5, "nobody knows better");
    // It does not know itself, and others are in a later reign.
    slave.become_(|nature| nature.reign = 2);
    let words = balanced.read(b"k", None).await.unwrap_err().to_string();
    assert!(words.contains("another master goes on in its place"), "{words}");
    slave.become_(|nature| (nature.reign, nature.broken) = (2, false));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(number(balanced.get(b"k").await.unwrap()), 10);
    // Or it says so.
    let (slave, old) = (Fake::new(5), Fake::new(10));
    let balanced = BalancedReader::with_fallback(readers(std::slice::from_ref(&slave)), old.clone(), config());
    slave.become_(|nature| nature.broken = true);
    old.become_(|nature| nature.replaced = true);
    let words = balanced.read(b"k", None).await.unwrap_err().to_string();
    assert!(words.contains("another master goes on in its place"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_outside_of_the_bound_is_not_used_though_the_reader_looked_fit() {
    // What it says of itself is old news: it looks as if it were at 100, and answers from 50.
    struct Liar(Arc<Fake>);
    #[async_trait]
    impl DataReader for Liar {
        async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get_data(key).await
        }
        async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
            self.0.scan_data(range, options).await
        }
    }
    #[async_trait]
    impl Reader for Liar {
        async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
            self.0.read(key, after).await
        }
        async fn read_page(
            &self,
            range: KeyRange,
            options: ScanOptions,
            after: Option<WaitFor>,
        ) -> Result<Reading<Page>, ReadError> {
            self.0.read_page(range, options, after).await
        }
        async fn changes(&self, from: ChangesFrom, ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
            self.0.changes(from, ranges).await
        }
        async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError> {
            self.0.wait_applied(write).await
        }
        fn status(&self) -> ReaderStatus {
            ReaderStatus { position: Some(position(100)), consistent: true, ..self.0.status() }
        }
    }
    let (old, copying, fit) = (Fake::new(50), Fake::new(100), Fake::new(100));
    copying.become_(|nature| nature.consistent = false);
    let all: [Arc<dyn Reader>; 3] = [Arc::new(Liar(old)), Arc::new(Liar(copying)), fit];
    let balanced = BalancedReader::new(all, config().max_lag_seqs(Some(10)));
    for _ in 0..50 {
        assert_eq!(number(balanced.get(b"k").await.unwrap()), 100);
    }
    let shares = balanced.shares();
    assert!(shares[0].unfit > 0 && shares[1].unfit > 0, "{shares:?}");
    assert_eq!((shares[0].reads, shares[1].reads, shares[2].reads), (0, 0, 50));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_in_the_middle_is_answered_by_another_reader() {
    let fakes = [Fake::new(5), Fake::new(5), Fake::new(5)];
    let balanced = BalancedReader::new(readers(&fakes), config());
    fakes[0].become_(|nature| nature.broken = true);
    fakes[1].become_(|nature| nature.hangs = true);
    for _ in 0..50 {
        assert_eq!(number(balanced.get(b"k").await.unwrap()), 5);
    }
    let shares = balanced.shares();
    assert!(shares[0].failures >= 1 && shares[1].failures >= 1, "{shares:?}");
    // It rests, and is not asked each time.
    assert!(shares[0].failures < 20, "{shares:?}");
    assert_eq!(shares[2].reads, 50);
    // What every reader would say is not asked of every reader.
    assert!(matches!(balanced.get(b"").await, Err(StoreError::KeyEmpty)));
    assert_eq!(balanced.shares()[2].failures, 0);
}

#[tokio::test(start_paused = true)]
async fn the_fallback_is_asked_when_nobody_else_can_answer() {
    let (slave, master) = (Fake::new(90), Fake::new(100));
    let balanced = BalancedReader::with_fallback(readers(std::slice::from_ref(&slave)), master.clone(), config());
    assert_eq!(number(balanced.get(b"k").await.unwrap()), 90);
    assert_eq!(balanced.fallback_share().map(|share| share.reads), Some(0));
    assert_eq!(balanced.get_after(token(95), "k").await.map(number).unwrap(), 100);
    slave.become_(|nature| nature.broken = true);
    assert_eq!(number(balanced.get(b"k").await.unwrap()), 100);
    assert_eq!(balanced.fallback_share().map(|share| share.reads), Some(2));
    // What the fallback has counts for how far the others are behind.
    slave.become_(|nature| *nature = Nature::at(90));
    let strict = BalancedReader::with_fallback(readers(&[slave]), master, config().max_lag_seqs(Some(9)));
    assert_eq!(number(strict.get(b"k").await.unwrap()), 100);
}

#[tokio::test(start_paused = true)]
async fn a_write_is_read_by_its_token_as_soon_as_one_reader_has_it() {
    let fakes = [Fake::new(5), Fake::new(5)];
    let balanced = BalancedReader::new(readers(&fakes), config().patience(Duration::from_secs(3600)));
    let reading = tokio::spawn({
        let balanced = balanced.clone();
        async move { balanced.get_after(token(6), "k").await }
    });
    sleep(Duration::from_secs(60)).await;
    assert!(!reading.is_finished(), "nobody has it");
    fakes[1].become_(|nature| nature.seq = 6);
    assert_eq!(number(reading.await.unwrap().unwrap()), 6);
    // A reader that has it, and whose status is old, is asked.
    fakes[0].become_(|nature| (nature.seq, nature.status_is_old) = (7, 7));
    assert_eq!(number(balanced.get_after(token(7), "k").await.unwrap()), 7);
}

#[tokio::test(start_paused = true)]
async fn after_waiting_for_a_write_every_read_includes_it() {
    let fakes = [Fake::new(5), Fake::new(6), Fake::new(5)];
    let balanced = BalancedReader::new(readers(&fakes), config());
    balanced.wait_applied(token(6).into()).await.unwrap();
    for _ in 0..50 {
        assert_eq!(number(balanced.get(b"k").await.unwrap()), 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_never_goes_back_to_what_is_older_than_what_it_saw() {
    let fakes = [Fake::new(5), Fake::new(9), Fake::new(7)];
    // What it shows lies beyond what it is sure to include.
    fakes[2].become_(|nature| nature.ahead = 1);
    let balanced = BalancedReader::new(readers(&fakes), config());
    let mut seen = HashSet::new();
    for _ in 0..50 {
        let session = balanced.session();
        let mut last = 0;
        for _ in 0..10 {
            let n = number(session.get("k").await.unwrap());
            assert!(n >= last, "{n} after {last}");
            assert_eq!(session.seen(), Some(token(n)));
            (last, _) = (n, seen.insert(n));
        }
    }
    assert_eq!(seen, HashSet::from([5, 8, 9]), "all are read");
    let session = balanced.session();
    session.saw(token(8));
    session.saw(token(3));
    assert_eq!(number(session.get("k").await.unwrap()), 9);
}

#[tokio::test(start_paused = true)]
async fn who_goes_on_in_an_earlier_reign_than_the_others_is_not_read() {
    let (slave, replaced) = (Fake::new(90), Fake::new(100));
    slave.become_(|nature| nature.reign = 2);
    let all = readers(&[slave.clone(), replaced.clone()]);
    let balanced = BalancedReader::with_fallback(all, replaced, config());
    for _ in 0..50 {
        assert_eq!(number(balanced.get(b"k").await.unwrap()), 90);
    }
    // Not even where nobody else can answer.
    slave.become_(|nature| nature.broken = true);
    let error = balanced.read(b"k", None).await.unwrap_err();
    assert!(error.to_string().contains("its history has parted"), "{error}");
}

/// One master, some slaves, and whatever happens to them; sessions, tokens and plain reads in between.
#[tokio::test(start_paused = true)]
async fn whatever_happens_to_readers_no_read_is_staler_than_its_bound_and_none_fails() {
    let only = std::env::var("REPLIKV_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = only.map_or(1..=200, |seed| seed..=seed);
    for seed in seeds {
        println!("REPLIKV_SEED={seed} cargo test -p replikv-node whatever_happens_to_readers");
        simulate(seed).await;
    }
}

async fn simulate(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let slaves: Vec<_> = (0..rng.usize(1..5)).map(|_| Fake::new(1)).collect();
    let master = Fake::new(1);
    let bound = rng.u64(0..20);
    let config = BalanceConfig::default().seed(Some(seed)).max_lag_seqs(Some(bound));
    let balanced = BalancedReader::with_fallback(readers(&slaves), master.clone(), config);
    let mut sessions = [(balanced.session(), 0), (balanced.session(), 0)];
    for _ in 0..rng.usize(50..150) {
        let head = master.now().seq;
        let slave = &slaves[rng.usize(..slaves.len())];
        match rng.u8(..10) {
            0..=2 => master.become_(|nature| nature.seq += rng.u64(1..8)),
            3 | 4 => slave.become_(|nature| {
                // It was told of some of what it lacks.
                nature.seq = rng.u64(nature.seq..=head);
                let told = rng.u64(nature.seq..=head) - nature.seq;
                nature.lag = Some(Lag { seqs: told, bytes: 0, millis: u64::from(told > 0) });
                nature.ahead = rng.u64(..=(head - nature.seq).min(2));
            }),
            5 => slave.become_(|nature| nature.broken ^= true),
            6 => slave.become_(|nature| nature.consistent ^= true),
            7 => slave.become_(|nature| nature.hangs ^= true),
            8 => slave.become_(|nature| nature.status_is_old = rng.u64(..nature.seq)),
            _ => sleep(Duration::from_millis(rng.u64(..1000))).await,
        }
        let head = master.now().seq;
        let read = balanced.read(b"k", None).await.expect("the master answers");
        let (n, includes) = (number(read.value), read.at.includes.map_or(0, |at| at.seq.as_u64()));
        assert!(includes + bound >= head, "{includes} of {head}, {bound} may be missing");
        assert!(read.at.consistent && n >= includes);
        let wanted = rng.u64(1..=head);
        let n = number(balanced.get_after(token(wanted), "k").await.expect("the master answers"));
        assert!(n >= wanted, "{n} was written before {wanted}");
        let (session, last) = &mut sessions[rng.usize(..2)];
        let n = number(session.get("k").await.expect("the master answers"));
        assert!(n >= *last, "{n} after {last}");
        *last = n;
    }
    assert!(balanced.shares().iter().all(|share| share.asked == 0));
}
