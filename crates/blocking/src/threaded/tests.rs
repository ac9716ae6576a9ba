use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use replikv_core::{Op, PageBuilder};

use super::*;

/// A store that does as it is told by the values that are written to it.
#[derive(Debug, Default)]
struct Scripted {
    map: Mutex<BTreeMap<(Keyspace, Bytes), Bytes>>,
    held: Option<Arc<Held>>,
    by_threads: bool,
    _last_words: LastWords,
}

/// Panics when it is dropped, if it is told to.
#[derive(Debug, Default)]
struct LastWords(bool);

impl Drop for LastWords {
    fn drop(&mut self) {
        assert!(!self.0, "as told");
    }
}

/// Stops the writer at the value `held` until it is let go.
#[derive(Debug)]
struct Held {
    began: Mutex<Sender<()>>,
    let_go: (Mutex<bool>, Condvar),
}

impl Held {
    fn new() -> (Arc<Self>, Receiver<()>) {
        let (began, begins) = channel();
        (Arc::new(Self { began: Mutex::new(began), let_go: Default::default() }), begins)
    }

    fn stop_here(&self) {
        self.began.lock().unwrap().send(()).unwrap();
        let (gone, change) = &self.let_go;
        drop(change.wait_while(gone.lock().unwrap(), |gone| !*gone).unwrap());
    }

    fn let_go(&self) {
        *self.let_go.0.lock().unwrap() = true;
        self.let_go.1.notify_all();
    }
}

static OPENED: AtomicUsize = AtomicUsize::new(0);

impl BlockingStore for Scripted {
    fn apply(&self, writes: &WriteSet, _: Durability) -> Result<(), StoreError> {
        for (keyspace, op) in writes.ops() {
            if let Op::Put { key, value } = op {
                match value {
                    b"panic" => panic!("as told"),
                    b"held" => self.held.as_ref().unwrap().stop_here(),
                    b"slow" => thread::sleep(Duration::from_millis(50)),
                    b"unknown" => return Err(StoreError::backend_unknown("as told")),
                    _ => {}
                }
                let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                self.map.lock().unwrap().insert((keyspace, key), value);
            }
        }
        Ok(())
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        assert!(key != b"panic", "as told");
        Ok(self.map.lock().unwrap().get(&(keyspace, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        assert!(&range.start()[..] != b"panic", "as told");
        let mut page = PageBuilder::new(range.clone(), options);
        for ((of, key), value) in self.map.lock().unwrap().iter() {
            if *of == keyspace && range.contains(key) {
                let _ = page.push(key, value);
            }
        }
        Ok(page.finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        match self.get(Keyspace::Data, b"sync")? {
            Some(_) => Err(StoreError::backend("as told")),
            None => Ok(()),
        }
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits { max_key: 16, max_value: 16, max_batch: 1 << 20 }
    }

    fn reads_inline(&self) -> bool {
        !self.by_threads
    }
}

fn open() -> Threaded<Scripted> {
    Threaded::open("scripted", ThreadedOptions::default(), || {
        OPENED.fetch_add(1, Ordering::Relaxed);
        Ok(Scripted::default())
    })
    .unwrap()
}

fn put(key: &str, value: &str) -> WriteSet {
    WriteSet::builder().put(Keyspace::Data, key, value).unwrap().build()
}

#[tokio::test]
async fn a_panic_while_it_is_dropped_is_outlived() -> Result<(), StoreError> {
    let open = || Ok(Scripted { _last_words: LastWords(true), ..Scripted::default() });
    let store = Threaded::open("scripted", ThreadedOptions::default(), open)?;
    for _ in 0..3 {
        assert!(store.apply(put("k", "unknown"), Durability::Synced).await.is_err());
        assert!(matches!(store.sync().await, Err(StoreError::Fatal { .. })));
        store.reopen().await?;
        store.apply(put("k", "v"), Durability::Synced).await?;
    }
    store.close().await?;
    assert!(matches!(store.sync().await, Err(StoreError::Closed)));
    Ok(())
}

#[tokio::test]
async fn after_a_panic_everything_is_refused_until_the_store_is_reopened() {
    let store = open();
    let error = store.apply(put("k", "panic"), Durability::Synced).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Fatal { .. })));
    assert!(matches!(store.apply(put("k", "v"), Durability::Synced).await, Err(StoreError::Fatal { .. })));
    store.reopen().await.unwrap();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
}

#[tokio::test]
async fn after_an_unknown_outcome_everything_is_refused_until_the_store_is_reopened() {
    let store = open();
    let error = store.apply(put("k", "unknown"), Durability::Synced).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(matches!(
        store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await,
        Err(StoreError::Fatal { .. })
    ));
    store.reopen().await.unwrap();
    assert!(store.get(Keyspace::Data, b"k").await.unwrap().is_none());
}

#[tokio::test]
async fn a_failed_sync_is_fatal() {
    let store = open();
    store.apply(put("sync", "fails"), Durability::Synced).await.unwrap();
    assert!(matches!(store.sync().await, Err(StoreError::Fatal { .. })));
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Fatal { .. })));
}

#[tokio::test]
async fn whoever_comes_before_it_is_reopened_is_told_the_cause() {
    let (unknown, unsynced) = (open(), open());
    drop(unknown.apply(put("k", "unknown"), Durability::Synced).await);
    unsynced.apply(put("sync", "fails"), Durability::Synced).await.unwrap();
    drop(unsynced.sync().await);
    for (store, reason) in
        [(unknown, "the store failed: as told"), (unsynced, "a sync failed: the store failed: as told")]
    {
        let error = store.get(Keyspace::Data, b"k").await.unwrap_err();
        assert_eq!(error.to_string(), format!("the store must be reopened: {reason}"));
    }
}

#[tokio::test]
async fn a_dropped_write_is_decided_before_the_next_call_answers() {
    for polls in 0..4 {
        let store = open();
        let writes = WriteSet::builder()
            .put(Keyspace::Data, "first", "slow")
            .unwrap()
            .put(Keyspace::Data, "second", "v")
            .unwrap()
            .build();
        {
            let mut apply = store.apply(writes, Durability::Synced);
            for _ in 0..polls {
                assert!(apply.as_mut().now_or_never().is_none());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let first = store.get(Keyspace::Data, b"first").await.unwrap();
        let second = store.get(Keyspace::Data, b"second").await.unwrap();
        assert_eq!(first.is_some(), second.is_some(), "after {polls} polls");
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert_eq!(store.get(Keyspace::Data, b"second").await.unwrap(), second, "decided stays decided");
    }
}

#[tokio::test]
async fn a_closed_store_refuses_everything() {
    let store = open();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Closed)));
    assert!(matches!(store.apply(put("k", "v"), Durability::Synced).await, Err(StoreError::Closed)));
    assert!(matches!(store.reopen().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn limits_are_checked_before_the_store_sees_anything() {
    let store = open();
    let long = "k".repeat(17);
    assert!(matches!(store.apply(put(&long, "v"), Durability::Synced).await, Err(StoreError::KeyTooLong { .. })));
    assert!(matches!(store.apply(put("k", &long), Durability::Synced).await, Err(StoreError::ValueTooLarge { .. })));
    assert!(matches!(store.get(Keyspace::Data, b"").await, Err(StoreError::KeyEmpty)));
    assert!(matches!(store.get(Keyspace::Data, long.as_bytes()).await, Err(StoreError::KeyTooLong { .. })));
}

#[test]
fn a_panic_while_opening_is_an_error() {
    let opened = Threaded::<Scripted>::open("broken", ThreadedOptions::default(), || panic!("bad page"));
    assert!(matches!(opened, Err(StoreError::Corrupt { what }) if what.contains("bad page")));
}

/// A store whose writer stops at the value `held`, the means to let it go, and the sign that it has stopped.
fn open_held(queue: usize) -> (Threaded<Scripted>, Arc<Held>, Receiver<()>) {
    let (held, begins) = Held::new();
    let own = held.clone();
    let options = ThreadedOptions { queue, ..ThreadedOptions::default() };
    let store =
        Threaded::open("held", options, move || Ok(Scripted { held: Some(own.clone()), ..Scripted::default() }));
    (store.unwrap(), held, begins)
}

#[tokio::test]
async fn a_panic_in_a_read_is_caught_on_whatever_thread_it_runs() {
    for by_threads in [false, true] {
        let store = Threaded::open("panics", ThreadedOptions::default(), move || {
            Ok(Scripted { by_threads, ..Scripted::default() })
        })
        .unwrap();
        // More often than there are readers: none of them is lost.
        for _ in 0..10 {
            let error = store.get(Keyspace::Data, b"panic").await.unwrap_err();
            assert!(matches!(&error, StoreError::Fatal { reason } if reason.contains("as told")), "{error}");
            assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Fatal { .. })));
            assert!(matches!(store.apply(put("k", "v"), Durability::Synced).await, Err(StoreError::Fatal { .. })));
            store.reopen().await.unwrap();
            let range = KeyRange::from_bounds("panic"..);
            let error = store.scan(Keyspace::Data, range, ScanOptions::default()).await.unwrap_err();
            assert!(matches!(&error, StoreError::Fatal { reason } if reason.contains("as told")), "{error}");
            assert!(matches!(store.sync().await, Err(StoreError::Fatal { .. })));
            store.reopen().await.unwrap();
            store.apply(put("k", "v"), Durability::Synced).await.unwrap();
            assert_eq!(store.get(Keyspace::Data, b"k").await.unwrap().unwrap(), "v");
        }
    }
}

#[tokio::test]
async fn the_queue_is_bounded_and_callers_wait_for_room() {
    let (store, held, begins) = open_held(2);
    let mut first = store.apply(put("1", "held"), Durability::Synced);
    assert!(first.as_mut().now_or_never().is_none());
    begins.recv().unwrap();
    let mut queued: Vec<_> = ["2", "3"].map(|key| store.apply(put(key, "v"), Durability::Synced)).into();
    for apply in &mut queued {
        assert!(apply.as_mut().now_or_never().is_none());
    }
    let mut waiting: Vec<_> = ["4", "5"].map(|key| store.apply(put(key, "v"), Durability::Synced)).into();
    for apply in &mut waiting {
        assert!(apply.as_mut().now_or_never().is_none());
    }
    assert_eq!(store.writer.len(), 2, "what finds no room is not queued");
    // Who has not come in goes without a trace.
    drop(waiting.pop());
    held.let_go();
    first.await.unwrap();
    for apply in queued.into_iter().chain(waiting) {
        apply.await.unwrap();
    }
    for (key, there) in [("1", true), ("2", true), ("3", true), ("4", true), ("5", false)] {
        assert_eq!(store.get(Keyspace::Data, key.as_bytes()).await.unwrap().is_some(), there, "{key}");
    }
}

#[tokio::test]
async fn reads_wait_for_writes_whose_caller_is_gone_and_for_no_others() {
    let (store, held, begins) = open_held(8);
    store.apply(put("k", "old"), Durability::Synced).await.unwrap();
    let mut running = store.apply(put("k", "held"), Durability::Synced);
    assert!(running.as_mut().now_or_never().is_none());
    begins.recv().unwrap();
    let mut queued = store.apply(put("queued", "v"), Durability::Synced);
    assert!(queued.as_mut().now_or_never().is_none());
    let read = store.get(Keyspace::Data, b"k").now_or_never().expect("nobody is gone: it is answered at once");
    assert_eq!(read.unwrap().unwrap(), "old");

    drop(running);
    drop(queued);
    let mut gets = [store.get(Keyspace::Data, b"k"), store.get(Keyspace::Data, b"queued")];
    let mut scan = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default());
    for get in &mut gets {
        assert!(get.as_mut().now_or_never().is_none(), "it may still happen");
    }
    assert!(scan.as_mut().now_or_never().is_none(), "it may still happen");
    // A reader thread that did not wait would have the time to show the state before.
    tokio::time::sleep(Duration::from_millis(20)).await;
    held.let_go();
    let page = scan.await.unwrap();
    assert!(page.iter().eq([(&b"k"[..], &b"held"[..])]), "{page:?}");
    let [running, queued] = gets;
    assert_eq!(running.await.unwrap().unwrap(), "held", "what had begun was brought to its end");
    assert!(queued.await.unwrap().is_none(), "what had not begun never happens");
}

#[tokio::test]
async fn closing_waits_for_what_was_queued_before() {
    let (store, held, begins) = open_held(8);
    let mut running = store.apply(put("k", "held"), Durability::Synced);
    assert!(running.as_mut().now_or_never().is_none());
    begins.recv().unwrap();
    let mut queued = store.apply(put("queued", "v"), Durability::Synced);
    assert!(queued.as_mut().now_or_never().is_none());
    let mut close = store.close();
    assert!(close.as_mut().now_or_never().is_none());
    let mut late = store.apply(put("late", "v"), Durability::Synced);
    assert!(late.as_mut().now_or_never().is_none());
    held.let_go();
    running.await.unwrap();
    queued.await.unwrap();
    close.await.unwrap();
    assert!(matches!(late.await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_store_that_cannot_be_reopened_goes_on_refusing() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = attempts.clone();
    let store =
        Threaded::open("fails", ThreadedOptions::default(), move || match counted.fetch_add(1, Ordering::Relaxed) {
            1 => Err(StoreError::Busy { holder: "as told".into() }),
            2 => panic!("as told"),
            _ => Ok(Scripted::default()),
        })
        .unwrap();
    store.apply(put("k", "unknown"), Durability::Synced).await.unwrap_err();
    assert!(matches!(store.reopen().await, Err(StoreError::Busy { .. })));
    assert!(matches!(store.get(Keyspace::Data, b"k").await, Err(StoreError::Fatal { .. })));
    assert!(matches!(store.reopen().await, Err(StoreError::Corrupt { .. })));
    assert!(matches!(store.apply(put("k", "v"), Durability::Synced).await, Err(StoreError::Fatal { .. })));
    store.reopen().await.unwrap();
    store.reopen().await.unwrap();
    assert_eq!(attempts.load(Ordering::Relaxed), 4, "a store that is well is not opened again");
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
}

/// Tells when it is dropped.
struct Watched(Sender<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl BlockingStore for Watched {
    fn apply(&self, _: &WriteSet, _: Durability) -> Result<(), StoreError> {
        Ok(())
    }

    fn get(&self, _: Keyspace, _: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        Ok(PageBuilder::new(range, options).finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits { max_key: 16, max_value: 16, max_batch: 1 << 20 }
    }
}

#[tokio::test]
async fn the_store_goes_with_its_last_handle_and_is_gone_when_close_returns() {
    let watched = || {
        let (sender, dropped) = channel();
        let sender = Mutex::new(sender);
        let open = move || Ok(Watched(sender.lock().unwrap().clone()));
        (Threaded::open("watched", ThreadedOptions::default(), open).unwrap(), dropped)
    };
    let (store, dropped) = watched();
    store.apply(put("k", "v"), Durability::Synced).await.unwrap();
    assert!(dropped.try_recv().is_err());
    drop(store);
    dropped.recv_timeout(Duration::from_secs(60)).expect("its threads let it go");
    let (store, dropped) = watched();
    store.close().await.unwrap();
    dropped.try_recv().expect("it is gone when close returns");
}

/// Leaves something to each thread that reads, which takes its time to go when the thread ends.
struct Leaving {
    events: Sender<&'static str>,
    leave: Mutex<Sender<&'static str>>,
}

struct Left(Sender<&'static str>);

impl Drop for Left {
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(30));
        let _ = self.0.send("thread");
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let _ = self.events.send("store");
    }
}

impl BlockingStore for Leaving {
    fn apply(&self, _: &WriteSet, _: Durability) -> Result<(), StoreError> {
        Ok(())
    }

    fn get(&self, _: Keyspace, _: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        thread_local!(static LEFT: std::cell::RefCell<Option<Left>> = const { std::cell::RefCell::new(None) });
        LEFT.with(|left| *left.borrow_mut() = Some(Left(self.leave.lock().unwrap().clone())));
        // Long enough that another thread takes the next.
        thread::sleep(Duration::from_millis(30));
        Ok(PageBuilder::new(range, options).finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn limits(&self) -> StoreLimits {
        StoreLimits { max_key: 16, max_value: 16, max_batch: 1 << 20 }
    }
}

#[tokio::test]
async fn the_threads_that_read_are_gone_before_the_store() -> Result<(), StoreError> {
    for closed in [false, true] {
        let (events, happened) = channel();
        let events = Mutex::new(events);
        let open = move || {
            let events = events.lock().unwrap().clone();
            Ok(Leaving { leave: Mutex::new(events.clone()), events })
        };
        let options = ThreadedOptions { readers: 2, ..ThreadedOptions::default() };
        let store = Threaded::open("leaving", options, open)?;
        let scan = || store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default());
        let (one, other) = futures_util::join!(scan(), scan());
        one.and(other)?;
        if closed {
            store.close().await?;
            assert!(matches!(scan().await, Err(StoreError::Closed)));
        }
        drop(store);
        let happened: Vec<_> = happened.iter().collect();
        assert_eq!(happened.last(), Some(&"store"), "{happened:?}");
        assert!(happened.len() > 1, "somebody has read");
    }
    Ok(())
}
