//! Where positions lie in a history that is served: what `replikv-node` knows from memory, and what it reads.

use bytes::Bytes;
use replikv_core::{Keyspace, Position, Seq};
use replikv_proto::{EpochStart, Located, Record, Run, View, origin};

use super::context::Context;
use super::serving::Served;
use super::{DriverBug, Scene};

/// Where positions lie, as far as that can be told without the store, and what must be read to tell the rest.
pub(super) fn locate(
    ctx: &Context,
    open: &Served,
    positions: &[Position],
) -> (Vec<Option<Located>>, Vec<(Keyspace, Bytes)>) {
    let (mut known, mut wanted) = (Vec::new(), Vec::new());
    for position in positions {
        let located = locate_one(ctx, open, position);
        if located.is_none() {
            // With the one before it, which tells whether a record that differs is damaged.
            let before = Seq::new(position.seq.as_u64().saturating_sub(1));
            wanted.extend([position.seq, before].map(|seq| (Keyspace::Log, Bytes::copy_from_slice(&seq.to_key()))));
        }
        known.push(located);
    }
    (known, wanted)
}

/// Where a position lies, by what the log holds under its number, and under the one before.
pub(super) fn stored(
    ctx: &mut Context,
    open: &mut Served,
    position: &Position,
    bytes: Option<Bytes>,
    before: Option<Bytes>,
) -> Located {
    let bytes = match bytes {
        Some(bytes) if !Run::is_run(&bytes) => bytes,
        // Compacted, perhaps only meanwhile; or gone.
        run => return locate_compacted(ctx, open, position, run),
    };
    if let Ok(record) = Record::decode(bytes) {
        let located = same(ctx, &open.view, position, record.position());
        // It says so itself: a record whose digest was damaged must not make the slave look as if it had diverged.
        let full_after = Some(open.full_after()).filter(|full| full.seq.next() == Some(position.seq));
        let before =
            full_after.or_else(|| before.and_then(|bytes| Record::decode(bytes).ok()).map(|record| record.position()));
        let continues = before.is_some_and(|before| record.header().verify_after(&before).is_ok());
        if located != Located::Mismatch || continues || ctx.planted(DriverBug::DamageTakenForDivergence) {
            return located;
        }
    }
    open.cut_after(position.seq);
    // Whose epoch reigned there is known nevertheless.
    locate_below(ctx, open, position)
}

fn locate_one(ctx: &Context, open: &Served, position: &Position) -> Option<Located> {
    let View { published, floor, .. } = open.view;
    let seq = position.seq;
    if position.source != open.source {
        Some(Located::Mismatch)
    } else if seq > published.seq {
        let served = ctx.planted(DriverBug::AheadIsServed);
        Some(if served { Located::Held { log_bytes: 0 } } else { Located::Ahead })
    } else if seq == published.seq {
        Some(same(ctx, &open.view, position, published))
    } else if seq == floor.seq {
        // Before the first record there is no epoch to compare.
        let epoch = if seq == Seq::ZERO { position.epoch } else { floor.epoch };
        Some(same(ctx, &open.view, position, Position { epoch, ..floor }))
    } else if seq < floor.seq {
        Some(match locate_below(ctx, open, position) {
            Located::Below | Located::Shared if ctx.planted(DriverBug::BelowIsServed) => Located::Held { log_bytes: 0 },
            located => located,
        })
    } else if let Some(entry) = open.ring.entry(seq) {
        Some(same(ctx, &open.view, position, entry.position))
    } else if seq <= open.full_after().seq {
        known_of_compacted(ctx, open, position)
    } else {
        None
    }
}

// What follows is there, as touches. The digest of the record itself is known where something has kept it: the end of the
// compacted part and of each run, checkpoints, and slots.
fn locate_compacted(ctx: &mut Context, open: &mut Served, position: &Position, bytes: Option<Bytes>) -> Located {
    if let Some(located) = known_of_compacted(ctx, open, position) {
        return located;
    }
    let Some(bytes) = bytes else { return Located::Below };
    match Run::from_bytes(position.seq, &bytes) {
        Ok(run) => same(ctx, &open.view, position, run.end),
        Err(_) => {
            ctx.coverage.met(Scene::RunDamaged);
            open.cut_after(position.seq);
            Located::Below
        }
    }
}

fn known_of_compacted(ctx: &Context, open: &Served, position: &Position) -> Option<Located> {
    let end = open.parts.compacted().map(|compacted| compacted.position);
    match locate_below(ctx, open, position) {
        _ if end == Some(*position) => Some(same(ctx, &open.view, position, *position)),
        Located::Shared => Some(same(ctx, &open.view, position, *position)),
        Located::Below => None,
        other => Some(other),
    }
}

// What is no longer in the log is known by where epochs began, and by checkpoints.
fn locate_below(ctx: &Context, open: &Served, position: &Position) -> Located {
    if position.seq == Seq::ZERO {
        let shared = *position == origin(open.source, position.epoch);
        return if shared { Located::Shared } else { Located::Mismatch };
    }
    let reigning = open.epochs.iter().rfind(|start| start.first <= position.seq);
    let same = |start: &EpochStart| match ctx.planted(DriverBug::EpochsByNumber) {
        true => start.epoch.number == position.epoch.number,
        false => start.epoch == position.epoch,
    };
    if !reigning.is_some_and(same) {
        return Located::Mismatch;
    }
    let checkpoint = open.checkpoints.iter().find(|checkpoint| checkpoint.position.seq == position.seq);
    match checkpoint {
        Some(checkpoint) if checkpoint.position == *position => Located::Shared,
        Some(_) if !ctx.planted(DriverBug::CheckpointIgnored) => Located::Mismatch,
        _ if open.book.knows(position) => Located::Shared,
        _ => Located::Below,
    }
}

fn same(ctx: &Context, view: &View, position: &Position, held: Position) -> Located {
    let equal = if ctx.planted(DriverBug::LocatedByNumber) {
        position.seq == held.seq
    } else if ctx.planted(DriverBug::LocatedWithoutDigest) {
        (position.epoch, position.seq) == (held.epoch, held.seq)
    } else {
        *position == held
    };
    // How far behind a slave is in bytes matters from 8 MiB of log on, and here it is never worth a comparison.
    let log_bytes = if view.log_bytes >= 8 << 20 { view.log_bytes } else { 0 };
    if equal { Located::Held { log_bytes } } else { Located::Mismatch }
}
