//! Retention decides how much of the log is kept.

use replikv_core::{KeyRange, Keyspace, Seq, StoreError, WriteSet};

use crate::layout::{Checkpoint, Floor, Head, Stored};

/// How much of the log is kept: trimmed by bytes and by age, in bounded steps, never past a slave that is being
/// served, or a slot of one that is away, unless that holds back more than the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most about so many bytes of records.
    pub max_bytes: u64,
    /// Records older than this go: milliseconds of accumulated running time, so that no clock that jumps, and no
    /// weekend without power, empties a log. `None`: age does not matter.
    pub max_age_ms: Option<u64>,
    /// Sessions and slots hold the log back up to so many bytes.
    pub hold_back_bytes: u64,
}

/// One step of trimming.
#[derive(Debug, Clone)]
pub struct Trim {
    /// Where the log begins afterwards.
    pub floor: Floor,
    /// The write set: it requires the floor that it moves.
    pub writes: WriteSet,
}

impl Retention {
    /// The next step, or `None` if nothing is to go. A step removes what lies before one checkpoint, so that no
    /// write set is long.
    ///
    /// `checkpoints` are those above the floor, in order; `held` is the position of the slowest session or slot.
    ///
    /// # Errors
    /// None that a caller can meet: building the write set refuses empty keys.
    pub fn step(
        &self,
        floor: &Floor,
        head: &Head,
        checkpoints: &[Checkpoint],
        held: Option<Seq>,
    ) -> Result<Option<Trim>, StoreError> {
        let above = checkpoints.iter().find(|checkpoint| checkpoint.position.seq > floor.position.seq);
        let Some(next) = above.filter(|next| next.position.seq < head.position.seq) else { return Ok(None) };
        let retained = head.log_bytes.saturating_sub(floor.log_bytes);
        let too_many = retained > self.max_bytes;
        let age = head.uptime_ms.saturating_sub(next.uptime_ms);
        let too_old = self.max_age_ms.is_some_and(|max| age > max);
        let is_held = held.is_some_and(|held| held < next.position.seq) && retained <= self.hold_back_bytes;
        if !(too_many || too_old) || is_held {
            return Ok(None);
        }
        let moved = Floor { position: next.position, log_bytes: next.log_bytes };
        let mut writes = WriteSet::builder();
        writes.require(Floor::KEY, Some(floor.to_bytes()));
        writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..=next.position.seq.to_key()));
        writes.put(Keyspace::Meta, Floor::KEY, moved.to_bytes())?;
        Ok(Some(Trim { floor: moved, writes: writes.build() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikv_core::{Digest, Epoch, Position, SourceId};

    fn position(seq: u64) -> Position {
        Position {
            source: SourceId::from_bytes([1; 16]),
            epoch: Epoch { number: 1, nonce: 2 },
            seq: Seq::new(seq),
            digest: Digest::from_bytes([3; 16]),
        }
    }

    // A record has ten bytes and takes one millisecond.
    fn log(records: u64) -> (Floor, Head, Vec<Checkpoint>) {
        let checkpoint = |n| Checkpoint { position: position(n * 256), log_bytes: n * 2560, uptime_ms: n * 256 };
        let head = Head { position: position(records), log_bytes: records * 10, uptime_ms: records };
        (Floor { position: position(0), log_bytes: 0 }, head, (1..=records / 256).map(checkpoint).collect())
    }

    fn trimmed_to(retention: Retention, held: Option<u64>) -> (u64, usize) {
        let (mut floor, head, checkpoints) = log(10_000);
        let mut steps = 0;
        while let Some(trim) = retention.step(&floor, &head, &checkpoints, held.map(Seq::new)).unwrap() {
            assert!(trim.floor.position.seq.since(floor.position.seq) <= 256, "a step is bounded");
            floor = trim.floor;
            steps += 1;
        }
        (floor.position.seq.as_u64(), steps)
    }

    const NONE: Retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };

    #[test]
    fn bytes_bound_the_log_in_small_steps() {
        let (floor, steps) = trimmed_to(Retention { max_bytes: 50_000, ..NONE }, None);
        assert!((10_000 - floor) * 10 <= 50_000 && (10_000 - floor + 256) * 10 > 50_000);
        assert!(steps > 10);
        assert_eq!(trimmed_to(NONE, None), (0, 0));
    }

    #[test]
    fn age_is_running_time() {
        let (floor, _) = trimmed_to(Retention { max_age_ms: Some(3_000), ..NONE }, None);
        assert!((6_500..=7_000).contains(&floor), "{floor}");
    }

    #[test]
    fn a_session_holds_the_log_back_up_to_the_cap() {
        let small = Retention { max_bytes: 1_000, ..NONE };
        assert_eq!(trimmed_to(small, Some(5_000)).0, 4_864);
        assert_eq!(trimmed_to(small, Some(5_120)).0, 5_120, "whoever stands at a checkpoint needs nothing before it");
        let capped = Retention { hold_back_bytes: 20_000, ..small };
        assert!(trimmed_to(capped, Some(5_000)).0 >= 7_900);
    }

    #[test]
    fn what_is_just_allowed_stays_and_the_log_never_ends_where_it_begins() {
        let (floor, head, checkpoints) = log(512);
        let step = |retention: Retention, floor: &Floor| {
            let trim = retention.step(floor, &head, &checkpoints, None).unwrap();
            trim.map(|trim| trim.floor)
        };
        let moved = step(Retention { max_bytes: 5_119, ..NONE }, &floor).unwrap();
        assert_eq!(moved, Floor { position: position(256), log_bytes: 2_560 });
        assert_eq!(step(Retention { max_bytes: 5_120, ..NONE }, &floor), None);
        assert!(step(Retention { max_age_ms: Some(255), ..NONE }, &floor).is_some());
        assert_eq!(step(Retention { max_age_ms: Some(256), ..NONE }, &floor), None);
        assert_eq!(step(Retention { max_bytes: 0, ..NONE }, &moved), None, "the last checkpoint is the head");
    }
}
