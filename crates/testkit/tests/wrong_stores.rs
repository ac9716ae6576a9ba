//! The suite is worth what it catches: stores that are wrong on purpose, and the laws that they break.
//!
//! Every law of the list is tried on every store; only those that need a process of their own are left out, since what
//! is here lives in memory.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ReplicaStore, ScanOptions, StoreError, StoreLimits,
    StoreStats, WriteSet, meta,
};
use replikv_testkit::{Needs, Open, laws};
use tokio::task::yield_now;

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    AppliesBackwards,
    AppliesHalfThenRefuses,
    ShowsHalf,
    LosesTheLastOp,
    ForgetsCursors,
    SkipsTheStartOfARange,
    ReadsPastTheEndOfARange,
    DeletesPastTheEndOfARange,
    TakesInvertedRangesForOpenOnes,
    RepeatsAnEntryOnTheNextPage,
    SkipsAnEntryOnTheNextPage,
    ReversesNothing,
    IgnoresPageLimits,
    SortsBytesAsSigned,
    ReadsEmptyKeys,
    TakesLongKeys,
    TakesLargeValues,
    TakesLargeSets,
    IgnoresConditions,
    ChecksTheFirstConditionOnly,
    ChecksConditionsAfterwards,
    ChecksConditionsOutsideTheTransaction,
    DropsEmptyValues,
    ManglesHighBytes,
    DeletesNoRangeOfItsOwnSet,
    DeletesRangesLast,
    DecidesDroppedAppliesLate,
    MixesKeyspaces,
    AnswersWhenClosed,
    ForgetsWhenReopened,
    OpensTwice,
    StaysBusyAfterClosing,
    FailsToSync,
    AnswersBeforeItIsVisible,
    MixesValuesUp,
    RefusesEmptySets,
    RefusesToCloseTwice,
    ForgetsWhenReopenedInPlace,
    BeginsWithAnEntry,
    LosesPieces,
    AnswersManyBackwards,
    HoldsTooLittle,
    CountsTheLogAsData,
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// What outlives a store that is closed.
#[derive(Debug, Default)]
struct Disk {
    maps: [Map; 3],
    open: bool,
}

static DISKS: Mutex<BTreeMap<PathBuf, Arc<Mutex<Disk>>>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
struct WrongStore {
    wrong: Wrong,
    disk: Arc<Mutex<Disk>>,
    closed: AtomicBool,
}

const LIMITS: StoreLimits = StoreLimits { max_key: 1 << 10, max_value: 1 << 18, max_batch: 1 << 22 };

// Long enough for everybody else to see what should not be seen.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl WrongStore {
    fn open(dir: &Path, wrong: Wrong) -> Result<Arc<dyn ReplicaStore>, StoreError> {
        let disk = lock(&DISKS).entry(dir.to_path_buf()).or_default().clone();
        let mut opening = lock(&disk);
        if opening.open && wrong != Wrong::OpensTwice {
            return Err(StoreError::Busy { holder: "this process".into() });
        }
        if wrong == Wrong::ForgetsWhenReopened {
            opening.maps = Default::default();
        }
        if wrong == Wrong::BeginsWithAnEntry {
            opening.maps[2].entry(b"made by".to_vec()).or_default();
        }
        opening.open = true;
        drop(opening);
        Ok(Arc::new(Handle(Arc::new(Self { wrong, disk, closed: AtomicBool::new(false) }))))
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(()) }
    }

    fn index(&self, keyspace: Keyspace) -> usize {
        match keyspace {
            Keyspace::Data => 0,
            Keyspace::Meta => 2,
            Keyspace::Log => 1 + usize::from(self.is(Wrong::MixesKeyspaces)),
        }
    }

    fn check(&self, writes: &WriteSet) -> Result<(), StoreError> {
        let any = usize::MAX;
        writes.check(&match self.wrong {
            Wrong::TakesLongKeys => StoreLimits { max_key: any, ..LIMITS },
            Wrong::TakesLargeValues => StoreLimits { max_value: any, ..LIMITS },
            Wrong::TakesLargeSets => StoreLimits { max_batch: any, ..LIMITS },
            _ => LIMITS,
        })
    }

    fn conditions_hold(&self, maps: &[Map; 3], writes: &WriteSet) -> bool {
        let counted = match self.wrong {
            Wrong::IgnoresConditions => 0,
            Wrong::ChecksTheFirstConditionOnly => 1,
            _ => usize::MAX,
        };
        let map = &maps[self.index(Keyspace::Meta)];
        let mut conditions = writes.preconditions().iter().take(counted);
        conditions.all(|required| map.get(&required.key[..]).map(|value| &value[..]) == required.value.as_deref())
    }

    fn ops<'a>(&self, writes: &'a WriteSet) -> Vec<(Keyspace, Op<'a>)> {
        let mut ops: Vec<_> = match self.wrong {
            // It goes through what lies in one buffer.
            Wrong::LosesPieces => {
                let joined = writes.chunks().iter().filter(|chunk| chunk.ops.is_joined());
                joined.flat_map(|chunk| chunk.ops.iter().map(|op| (chunk.keyspace, op))).collect()
            }
            _ => writes.ops().collect(),
        };
        match self.wrong {
            Wrong::AppliesBackwards => ops.reverse(),
            Wrong::LosesTheLastOp if ops.len() > 1 => drop(ops.pop()),
            Wrong::DeletesRangesLast => ops.sort_by_key(|(_, op)| matches!(op, Op::DeleteRange { .. })),
            _ => {}
        }
        ops
    }

    fn change(&self, maps: &mut [Map; 3], before: &[Map; 3], keyspace: Keyspace, op: Op<'_>) {
        let index = self.index(keyspace);
        let map = &mut maps[index];
        match op {
            Op::Put { key, .. } if self.is(Wrong::ForgetsCursors) && key.starts_with(meta::CURSOR_PREFIX) => {}
            Op::Put { key, value: [] } if self.is(Wrong::DropsEmptyValues) => drop(map.remove(key)),
            Op::Put { key, value } => drop(map.insert(self.mangled(key), self.mangled(value))),
            Op::Delete { key } => drop(map.remove(&self.mangled(key))),
            Op::DeleteRange { start, end } => {
                let end = end.filter(|end| *end > start || !self.is(Wrong::TakesInvertedRangesForOpenOnes));
                let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                let past = |key: &[u8]| self.is(Wrong::DeletesPastTheEndOfARange) && end == Some(key);
                let kept =
                    |key: &Vec<u8>| self.is(Wrong::DeletesNoRangeOfItsOwnSet) && !before[index].contains_key(key);
                map.retain(|key, _| !(range.contains(key) || past(key)) || kept(key));
            }
        }
    }

    fn mangled(&self, bytes: &[u8]) -> Vec<u8> {
        let mangle = |byte: u8| if self.is(Wrong::ManglesHighBytes) && byte > 0x7F { b'?' } else { byte };
        bytes.iter().copied().map(mangle).collect()
    }

    fn apply_all(&self, maps: &mut [Map; 3], ops: &[(Keyspace, Op<'_>)]) {
        let before = if self.is(Wrong::DeletesNoRangeOfItsOwnSet) { maps.clone() } else { Default::default() };
        ops.iter().for_each(|(keyspace, op)| self.change(maps, &before, *keyspace, *op));
    }

    // One transaction, but for the stores that have none.
    async fn apply_now(&self, writes: WriteSet) -> Result<(), StoreError> {
        self.check_open()?;
        if self.is(Wrong::ChecksConditionsOutsideTheTransaction) {
            if !self.conditions_hold(&lock(&self.disk).maps, &writes) {
                return Err(StoreError::HeadMoved);
            }
            pause().await;
            self.check(&writes)?;
            self.apply_all(&mut lock(&self.disk).maps, &self.ops(&writes));
            return Ok(());
        }
        if self.is(Wrong::ShowsHalf) {
            let half = self.ops(&writes).len() / 2;
            self.transaction(&writes, ..half)?;
            pause().await;
            // The conditions held before the first half.
            self.apply_all(&mut lock(&self.disk).maps, &self.ops(&writes)[half..]);
            return Ok(());
        }
        self.transaction(&writes, ..usize::MAX)
    }

    fn transaction(&self, writes: &WriteSet, part: std::ops::RangeTo<usize>) -> Result<(), StoreError> {
        let ops = self.ops(writes);
        let ops = &ops[..part.end.min(ops.len())];
        let maps = &mut lock(&self.disk).maps;
        if self.is(Wrong::AppliesHalfThenRefuses) {
            self.apply_all(maps, &ops[..ops.len() / 2]);
        }
        self.check(writes)?;
        if self.is(Wrong::ChecksConditionsAfterwards) {
            let mut after = maps.clone();
            self.apply_all(&mut after, ops);
            if !self.conditions_hold(&after, writes) {
                return Err(StoreError::HeadMoved);
            }
            *maps = after;
            return Ok(());
        }
        if !self.conditions_hold(maps, writes) {
            return Err(StoreError::HeadMoved);
        }
        self.apply_all(maps, ops);
        Ok(())
    }

    fn page(&self, map: &Map, range: &KeyRange, mut options: ScanOptions) -> Page {
        let range = match range.end() {
            Some(end) if end <= range.start() && self.is(Wrong::TakesInvertedRangesForOpenOnes) => {
                KeyRange::new(range.start().clone(), None)
            }
            _ => range.clone(),
        };
        if self.is(Wrong::IgnoresPageLimits) {
            (options.max_entries, options.max_bytes) = (usize::MAX, usize::MAX);
        }
        // Where the next page of a forward scan begins.
        let resumed = range.start().strip_suffix(&[0][..]);
        let seen = |key: &[u8]| match self.wrong {
            Wrong::SkipsTheStartOfARange => range.contains(key) && key != &range.start()[..],
            Wrong::ReadsPastTheEndOfARange => range.contains(key) || range.end().is_some_and(|end| end == key),
            Wrong::RepeatsAnEntryOnTheNextPage => range.contains(key) || resumed == Some(key),
            _ => range.contains(key),
        };
        let mut entries: Vec<_> = map.iter().filter(|(key, _)| seen(key)).collect();
        if self.is(Wrong::SkipsAnEntryOnTheNextPage) && resumed.is_some() && !entries.is_empty() {
            entries.remove(0);
        }
        if self.is(Wrong::SortsBytesAsSigned) {
            entries.sort_by_key(|(key, _)| key.iter().map(|byte| byte.cast_signed()).collect::<Vec<_>>());
        }
        if options.reverse && !self.is(Wrong::ReversesNothing) {
            entries.reverse();
        }
        if self.is(Wrong::MixesValuesUp) {
            let values: Vec<_> = entries.iter().map(|(_, value)| *value).collect();
            entries.iter_mut().zip(values.into_iter().rev()).for_each(|(entry, value)| entry.1 = value);
        }
        // What lies outside is only pushed by stores that are wrong: the builder itself would refuse it.
        let mut page = PageBuilder::new(if self.strays() { KeyRange::all() } else { range.clone() }, options);
        for (key, value) in entries {
            if page.push(key, value).is_full() {
                break;
            }
        }
        page.finish()
    }

    fn strays(&self) -> bool {
        matches!(self.wrong, Wrong::ReadsPastTheEndOfARange | Wrong::RepeatsAnEntryOnTheNextPage)
    }

    fn may_read(&self) -> Result<(), StoreError> {
        if self.is(Wrong::AnswersWhenClosed) { Ok(()) } else { self.check_open() }
    }
}

/// What is dropped may still be at work: see [`Wrong::DecidesDroppedAppliesLate`].
#[derive(Debug, Clone)]
struct Handle(Arc<WrongStore>);

#[async_trait]
impl ReplicaStore for Handle {
    async fn apply(&self, writes: WriteSet, _durability: Durability) -> Result<(), StoreError> {
        if self.0.is(Wrong::DecidesDroppedAppliesLate) {
            let handle = self.clone();
            let late = tokio::spawn(async move {
                pause().await;
                handle.0.apply_now(writes).await
            });
            return late.await.unwrap_or_else(|error| Err(StoreError::backend(error)));
        }
        if self.0.is(Wrong::RefusesEmptySets) && writes.is_empty() {
            return Err(StoreError::backend("nothing to do"));
        }
        if self.0.is(Wrong::AnswersBeforeItIsVisible) {
            self.0.check(&writes)?;
            let handle = self.clone();
            tokio::spawn(async move {
                pause().await;
                handle.0.apply_now(writes).await
            });
            return Ok(());
        }
        yield_now().await;
        self.0.apply_now(writes).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        yield_now().await;
        self.0.may_read()?;
        match key.len() {
            0 if self.0.is(Wrong::ReadsEmptyKeys) => return Ok(None),
            0 => return Err(StoreError::KeyEmpty),
            len if len > LIMITS.max_key && !self.0.is(Wrong::TakesLongKeys) => {
                return Err(StoreError::KeyTooLong { len, max: LIMITS.max_key });
            }
            _ => {}
        }
        let disk = lock(&self.0.disk);
        Ok(disk.maps[self.0.index(keyspace)].get(&self.0.mangled(key)).map(|value| Bytes::copy_from_slice(value)))
    }

    async fn get_many(&self, keyspace: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut values = Vec::new();
        for key in keys {
            values.push(self.get(keyspace, key).await?);
        }
        if self.0.is(Wrong::AnswersManyBackwards) {
            values.reverse();
        }
        Ok(values)
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        yield_now().await;
        self.0.may_read()?;
        Ok(self.0.page(&lock(&self.0.disk).maps[self.0.index(keyspace)], &range, options))
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.0.check_open()?;
        if self.0.is(Wrong::FailsToSync) { Err(StoreError::Fatal { reason: "no reason".into() }) } else { Ok(()) }
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        if self.0.is(Wrong::ForgetsWhenReopenedInPlace) {
            lock(&self.0.disk).maps = Default::default();
        }
        self.0.check_open()
    }

    async fn close(&self) -> Result<(), StoreError> {
        let mut disk = lock(&self.0.disk);
        if self.0.is(Wrong::RefusesToCloseTwice) {
            self.0.check_open()?;
        }
        if !self.0.closed.swap(true, Ordering::AcqRel) && !self.0.is(Wrong::StaysBusyAfterClosing) {
            disk.open = false;
        }
        Ok(())
    }

    fn limits(&self) -> StoreLimits {
        if self.0.is(Wrong::HoldsTooLittle) { StoreLimits { max_key: 64, ..LIMITS } } else { LIMITS }
    }

    fn stats(&self) -> StoreStats {
        let maps = &lock(&self.0.disk).maps;
        let counted = if self.0.is(Wrong::CountsTheLogAsData) { &maps[..2] } else { &maps[..1] };
        let entries = counted.iter().flatten();
        StoreStats::default().with_data_bytes(entries.map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}

thread_local! {
    static TRYING: AtomicBool = const { AtomicBool::new(false) };
}

// Laws that are meant to be broken panic without a word.
fn be_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_a_law = std::thread::current().name().is_none_or(|name| name.starts_with("tokio"));
            if !of_a_law && !TRYING.with(|trying| trying.load(Ordering::Relaxed)) {
                loud(panic);
            }
        }));
    });
}

/// The laws that do not hold.
fn broken_laws(open: Open) -> Vec<&'static str> {
    be_quiet();
    let tried = laws().into_iter().filter(|law| law.needs != Needs::Process);
    TRYING.with(|trying| trying.store(true, Ordering::Relaxed));
    let broken = tried.filter(|law| catch_unwind(AssertUnwindSafe(|| (law.check)(open, law.name))).is_err());
    let broken = broken.map(|law| law.name).collect();
    TRYING.with(|trying| trying.store(false, Ordering::Relaxed));
    broken
}

macro_rules! wrong_stores {
    ($($name:ident: $wrong:ident breaks $how:ident [$($law:ident)*];)*) => {
        $(
            #[test]
            fn $name() {
                fn open(dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
                    WrongStore::open(dir, Wrong::$wrong)
                }
                let (broken, expected): (_, Vec<&str>) = (broken_laws(open), vec![$(stringify!($law)),*]);
                println!("{} breaks {}", stringify!($wrong), broken.join(" "));
                for law in &expected {
                    assert!(broken.contains(law), "{law} has let it pass; broken are {broken:?}");
                }
                if stringify!($how) == "exactly" {
                    assert_eq!(broken, expected);
                }
            }
        )*

        #[test]
        fn every_law_is_in_the_list_once_and_every_wrong_store_is_tried() {
            let mut names: Vec<_> = laws().iter().map(|law| law.name).collect();
            assert!(names.len() > 60, "{}", names.len());
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
            let expected: Vec<&str> = vec![$($(stringify!($law),)*)*];
            for law in &expected {
                assert!(names.binary_search(law).is_ok(), "{law} is no law");
            }
            for law in laws().iter().filter(|law| law.needs != Needs::Process) {
                assert!(expected.contains(&law.name), "nothing shows that {} catches anything", law.name);
            }
            let tried = [$(Wrong::$wrong),*];
            assert_eq!(tried.len(), Wrong::CountsTheLogAsData as usize + 1, "one test for each way to be wrong");
        }
    };
}

wrong_stores! {
    a_store_with_nothing_wrong: Nothing breaks exactly [];
    a_store_that_applies_backwards: AppliesBackwards breaks some [
        the_last_put_of_a_key_wins a_delete_after_a_put_removes a_put_after_a_delete_stays
        a_range_delete_removes_what_the_set_has_put_before a_put_after_a_range_delete_stays
        random_sets_come_to_what_a_map_makes_of_them
    ];
    a_store_that_applies_half_then_refuses: AppliesHalfThenRefuses breaks some [
        a_key_too_long_is_refused a_value_too_large_is_refused a_set_too_large_is_refused
        a_condition_that_fails_changes_nothing a_refused_set_does_not_move_the_cursor
    ];
    a_store_that_shows_half: ShowsHalf breaks some [
        data_and_cursor_never_part a_page_never_shows_half_a_write_set a_replaced_range_is_never_seen_empty
    ];
    a_store_that_loses_the_last_op: LosesTheLastOp breaks some [
        what_is_put_is_read a_delete_removes_its_key_alone every_byte_is_kept sets_apply_one_after_the_other
    ];
    a_store_that_forgets_cursors: ForgetsCursors breaks some [
        a_cursor_is_read_as_it_was_set links_have_cursors_of_their_own a_refused_set_does_not_move_the_cursor
        data_and_cursor_never_part a_cursor_is_kept
    ];
    a_store_that_skips_the_start_of_a_range: SkipsTheStartOfARange breaks exactly [
        a_scan_keeps_to_its_bounds bounds_may_be_longer_than_any_key no_key_sorts_above_the_last_prefix
        pages_join_without_gap_or_overlap reverse_pages_join_without_gap_or_overlap
    ];
    a_store_that_reads_past_the_end_of_a_range: ReadsPastTheEndOfARange breaks exactly [
        a_scan_keeps_to_its_bounds an_inverted_range_holds_nothing a_page_holds_one_entry_at_least
        pages_join_without_gap_or_overlap reverse_pages_join_without_gap_or_overlap
    ];
    a_store_that_deletes_past_the_end_of_a_range: DeletesPastTheEndOfARange breaks exactly [
        a_range_delete_removes_what_the_set_has_put_before random_sets_come_to_what_a_map_makes_of_them
        a_range_delete_keeps_to_its_bounds an_inverted_range_deletes_nothing deletes_are_kept
    ];
    a_store_that_takes_inverted_ranges_for_open_ones: TakesInvertedRangesForOpenOnes breaks exactly [
        random_sets_come_to_what_a_map_makes_of_them a_range_delete_keeps_to_its_bounds
        a_scan_keeps_to_its_bounds an_inverted_range_deletes_nothing an_inverted_range_holds_nothing
    ];
    a_store_that_repeats_an_entry_on_the_next_page: RepeatsAnEntryOnTheNextPage breaks some [
        a_large_set_is_applied_whole a_scan_keeps_to_its_bounds bounds_may_be_longer_than_any_key
        a_page_is_bounded_in_entries a_page_is_bounded_in_bytes a_page_holds_one_entry_at_least
        pages_join_without_gap_or_overlap reverse_pages_join_without_gap_or_overlap
    ];
    a_store_that_skips_an_entry_on_the_next_page: SkipsAnEntryOnTheNextPage breaks some [
        a_large_set_is_applied_whole a_scan_keeps_to_its_bounds bounds_may_be_longer_than_any_key
        a_page_is_bounded_in_entries a_page_is_bounded_in_bytes a_page_holds_one_entry_at_least
        pages_join_without_gap_or_overlap a_scan_goes_on_behind_its_last_key
    ];
    a_store_that_reverses_nothing: ReversesNothing breaks exactly [
        a_scan_keeps_to_its_bounds a_page_holds_one_entry_at_least reverse_pages_join_without_gap_or_overlap
    ];
    a_store_that_ignores_page_limits: IgnoresPageLimits breaks exactly [
        a_page_is_bounded_in_entries a_page_is_bounded_in_bytes a_page_holds_one_entry_at_least
        a_scan_goes_on_behind_its_last_key
    ];
    a_store_that_sorts_bytes_as_signed: SortsBytesAsSigned breaks some [
        every_byte_is_kept a_large_set_is_applied_whole random_sets_come_to_what_a_map_makes_of_them
        a_range_delete_keeps_to_its_bounds a_scan_keeps_to_its_bounds a_scan_is_in_byte_order
        pages_join_without_gap_or_overlap reverse_pages_join_without_gap_or_overlap
    ];
    a_store_that_reads_empty_keys: ReadsEmptyKeys breaks exactly [
        many_keys_are_read_as_each_alone an_empty_key_is_refused
    ];
    a_store_that_takes_long_keys: TakesLongKeys breaks exactly [
        many_keys_are_read_as_each_alone a_key_too_long_is_refused a_key_too_long_cannot_be_asked_for
        a_refused_set_does_not_move_the_cursor
    ];
    a_store_that_takes_large_values: TakesLargeValues breaks exactly [a_value_too_large_is_refused];
    a_store_that_takes_large_sets: TakesLargeSets breaks exactly [a_set_too_large_is_refused];
    a_store_that_ignores_conditions: IgnoresConditions breaks some [
        a_condition_that_fails_changes_nothing every_condition_counts a_condition_is_checked_before_the_set
        a_refused_set_does_not_move_the_cursor
    ];
    a_store_that_checks_the_first_condition_only: ChecksTheFirstConditionOnly breaks exactly [every_condition_counts];
    a_store_that_checks_conditions_afterwards: ChecksConditionsAfterwards breaks some [
        a_condition_that_holds_lets_the_set_through a_condition_that_fails_changes_nothing
        a_condition_is_checked_before_the_set
    ];
    a_store_that_checks_conditions_outside_the_transaction: ChecksConditionsOutsideTheTransaction breaks some [
        two_writers_never_share_a_head
    ];
    a_store_that_drops_empty_values: DropsEmptyValues breaks some [
        a_put_replaces a_delete_removes_its_key_alone an_empty_value_is_a_value
        a_dropped_read_disturbs_nothing
    ];
    a_store_that_loses_pieces: LosesPieces breaks exactly [a_value_in_pieces_is_read_as_one];
    a_store_that_answers_many_backwards: AnswersManyBackwards breaks exactly [many_keys_are_read_as_each_alone];
    a_store_that_mangles_high_bytes: ManglesHighBytes breaks some [
        every_byte_is_kept the_largest_entries_are_kept a_large_set_is_applied_whole
        thousands_of_readers_and_writers_are_served
    ];
    a_store_that_deletes_no_range_of_its_own_set: DeletesNoRangeOfItsOwnSet breaks exactly [
        a_range_delete_removes_what_the_set_has_put_before random_sets_come_to_what_a_map_makes_of_them
    ];
    a_store_that_deletes_ranges_last: DeletesRangesLast breaks some [
        a_put_after_a_range_delete_stays random_sets_come_to_what_a_map_makes_of_them
    ];
    a_store_that_decides_dropped_applies_late: DecidesDroppedAppliesLate breaks some [
        a_dropped_apply_is_whole_or_absent
    ];
    a_store_that_mixes_keyspaces: MixesKeyspaces breaks some [
        keyspaces_are_apart random_sets_come_to_what_a_map_makes_of_them
        what_was_applied_is_there_after_reopening
    ];
    a_store_that_answers_when_closed: AnswersWhenClosed breaks exactly [
        a_closed_store_refuses_everything a_closed_store_can_be_opened_at_once
    ];
    a_store_that_forgets_when_reopened: ForgetsWhenReopened breaks exactly [
        what_was_applied_is_there_after_reopening deletes_are_kept a_cursor_is_kept
        a_closed_store_can_be_opened_at_once
    ];
    a_store_that_opens_twice: OpensTwice breaks exactly [a_second_open_is_busy];
    a_store_that_stays_busy_after_closing: StaysBusyAfterClosing breaks exactly [
        what_was_applied_is_there_after_reopening deletes_are_kept a_cursor_is_kept
        a_closed_store_can_be_opened_at_once
    ];
    a_store_that_fails_to_sync: FailsToSync breaks exactly [a_sync_succeeds];
    a_store_that_answers_before_it_is_visible: AnswersBeforeItIsVisible breaks some [
        what_is_put_is_read a_put_replaces a_delete_removes_its_key_alone what_is_applied_is_seen_by_everybody
    ];
    a_store_that_mixes_values_up: MixesValuesUp breaks exactly [
        random_sets_come_to_what_a_map_makes_of_them values_stay_with_their_keys
    ];
    a_store_that_refuses_empty_sets: RefusesEmptySets breaks exactly [an_empty_write_set_changes_nothing];
    a_store_that_refuses_to_close_twice: RefusesToCloseTwice breaks exactly [closing_twice_is_no_error];
    a_store_that_forgets_when_reopened_in_place: ForgetsWhenReopenedInPlace breaks exactly [
        reopening_a_healthy_store_changes_nothing
    ];
    a_store_that_begins_with_an_entry: BeginsWithAnEntry breaks exactly [
        a_fresh_store_holds_nothing keyspaces_are_apart a_range_delete_without_bounds_removes_everything
    ];
    a_store_that_holds_too_little: HoldsTooLittle breaks exactly [
        many_keys_are_read_as_each_alone a_key_too_long_is_refused a_key_too_long_cannot_be_asked_for the_limits_leave_room_for_replication
        a_refused_set_does_not_move_the_cursor
    ];
    a_store_that_counts_the_log_as_data: CountsTheLogAsData breaks exactly [what_is_said_of_its_size_is_about_right];
}
