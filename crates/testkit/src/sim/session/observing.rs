//! What the oracle hears of a connection at a master, and which situations it is.

use replikv_core::{Coverage, Fill, KeyRanges, Op, Position};
use replikv_proto::{Message, Mode, RejectCode};

use super::Session;
use crate::sim::context::{Context, Happening, MILLI};
use crate::sim::oracle::Invariant;
use crate::sim::serving::Served;
use crate::sim::verdict::{Judged, Verdict};
use crate::sim::{Scene, Topology};

impl Session {
    // What is about to be sent is compared with what the oracle knows.
    pub(super) fn observe(
        &mut self,
        ctx: &mut Context,
        (store, witness): (usize, Option<usize>),
        open: &Served,
        message: &Message,
    ) {
        let Context { oracle, stores, coverage, sizes, .. } = &mut *ctx;
        let witness = witness.map(|store| &stores[store]);
        match message {
            Message::Records(records) => {
                if open.path.is_some() {
                    coverage.met(Scene::Relayed);
                }
                if records.parts.iter().any(|part| part.len() > sizes.chunk) {
                    coverage.met(Scene::LargeRecord);
                }
                if let Some(sent) = &mut self.sent {
                    oracle.records_sent(witness, sent, &records.parts);
                }
            }
            Message::Filtered(filtered) => {
                let ranges = self.ranges();
                if let Some(sent) = &mut self.sent {
                    oracle.filtered_sent(witness, sent, &ranges, filtered, coverage);
                }
            }
            Message::Touched(touched) => {
                oracle.content_sent(witness, &touched.read_at);
                let ranges = self.ranges();
                if let Some(sent) = &mut self.sent {
                    ctx.oracle.touched_sent((sent, &mut self.told), &ranges, &self.looked_up_from, touched);
                }
                let deletes = touched.ops.iter().any(|op| matches!(op, Op::DeleteRange { .. }));
                let keys = touched.ops.iter().any(|op| !matches!(op, Op::DeleteRange { .. }));
                if deletes {
                    ctx.coverage.met(Scene::RangeTouched);
                }
                if keys {
                    ctx.coverage.met(Scene::TouchLookedUp);
                }
            }
            Message::Ranges(content) => {
                oracle.content_within(&self.ranges(), content);
                oracle.content_sent(witness, &content.read_at);
                self.copying &= content.range.end().is_some();
                self.page_waits = false;
            }
            Message::Probed(probed) => oracle.content_sent(witness, &probed.at),
            Message::Compared(compared) => {
                oracle.content_sent(witness, &compared.read_at);
                self.page_waits = false;
            }
            Message::Welcome(welcome) => {
                let Some(hello) = &self.hello else { return };
                if welcome.mode == Mode::Wait {
                    ctx.coverage.met(Scene::Waited);
                    self.waited = true;
                    return self.judge(ctx, store, open, Verdict::Wait);
                }
                if open.path.as_ref().is_some_and(|path| path.len() > 1) {
                    ctx.coverage.met(Scene::Deep);
                }
                if self.waited {
                    ctx.coverage.met(Scene::WaitedEnough);
                }
                let (verdict, sent) = match welcome.mode {
                    Mode::Copy { from } => (Verdict::Copy, from),
                    Mode::Compare { from } => (Verdict::Compare, from),
                    Mode::Resync { from, .. } => (Verdict::Resync, from),
                    _ => (Verdict::Resume, hello.cursor.as_ref().map_or(welcome.floor, |cursor| cursor.position)),
                };
                self.sent = Some(sent);
                // Whoever has gone through a stretch of the compacted log has all of it, some of it newer than the rest.
                let coverage = hello.cursor.as_ref().map(|cursor| &cursor.coverage);
                let unfinished = coverage.filter(|coverage| coverage.rest().is_some()).and_then(Coverage::fill);
                self.copying = verdict == Verdict::Copy || (verdict, unfinished) == (Verdict::Resume, Some(Fill::Copy));
                ctx.coverage.met(match (verdict, unfinished) {
                    (Verdict::Copy, _) => Scene::CopyStarted,
                    (Verdict::Resync, _) => Scene::ResyncStarted,
                    (Verdict::Compare, Some(Fill::Copy)) => Scene::CopyBecameComparison,
                    (Verdict::Compare, Some(_)) => Scene::ComparisonRestarted,
                    (Verdict::Compare, None) => Scene::ComparisonStarted,
                    (_, Some(Fill::Copy)) => Scene::CopyResumed,
                    (_, Some(_)) => Scene::ComparisonResumed,
                    (_, None) => Scene::Resumed,
                });
                let epoch = hello.cursor.as_ref().map(|cursor| cursor.position.epoch);
                let resumes = verdict == Verdict::Resume && unfinished.is_none();
                if resumes && epoch.is_some_and(|epoch| epoch.number < open.view.published.epoch.number) {
                    ctx.coverage.met(Scene::MovedOver);
                }
                let fills = verdict != Verdict::Resume || coverage.and_then(Coverage::fill).is_some();
                if fills && !ctx.healing {
                    // It does not take long: something is to go wrong meanwhile.
                    let soon = ctx.fault_rng.u64(MILLI..100 * MILLI);
                    ctx.after(soon, Happening::OneFault);
                }
                self.judge(ctx, store, open, verdict);
            }
            Message::Reject(reject) => {
                let scene = match reject.code {
                    RejectCode::ForeignSource => Some(Scene::RefusedForeign),
                    RejectCode::Diverged => Some(Scene::RefusedDiverged),
                    RejectCode::SlaveAhead => Some(Scene::RefusedAhead),
                    // Every history here has a point to share: none is refused for that today.
                    RejectCode::NeedsCompare => None,
                    RejectCode::DataWithoutCursor => Some(Scene::RefusedData),
                    RejectCode::LimitsTooSmall => Some(Scene::RefusedLimits),
                    RejectCode::Superseded => Some(Scene::RefusedSuperseded),
                    RejectCode::Loop => Some(Scene::RefusedCircle),
                    _ => return,
                };
                if let Some(scene) = scene {
                    ctx.coverage.met(scene);
                }
                let stands =
                    self.hello.as_ref().and_then(|hello| hello.cursor.as_ref()).map(|cursor| cursor.position.seq);
                match reject.code {
                    RejectCode::Superseded if open.path.is_some() => ctx.coverage.met(Scene::RefusedByOlderRelay),
                    RejectCode::Diverged if open.path.is_some() && stands > Some(open.view.published.seq) => {
                        ctx.coverage.met(Scene::DeadBranchBelow);
                    }
                    _ => {}
                }
                self.judge(ctx, store, open, Verdict::Refuse(reject.code));
            }
            _ => {}
        }
    }

    fn ranges(&self) -> KeyRanges {
        let told = self.hello.as_ref().map(|hello| hello.ranges.clone()).filter(|ranges| !ranges.is_empty());
        told.map_or_else(KeyRanges::all, KeyRanges::new)
    }

    fn judge(&self, ctx: &mut Context, store: usize, open: &Served, verdict: Verdict) {
        let Some(hello) = &self.hello else { return };
        // Published records may have moved on while the store was asked.
        let views: Vec<_> = self.judged.iter().copied().chain([(open.view, open.parts)]).collect();
        let judged = |(view, parts)| Judged {
            model: &ctx.oracle.model,
            store: &ctx.stores[store],
            view,
            parts,
            limits: open.limits,
            epochs: Some(&open.epochs[..]).filter(|_| ctx.topology != Topology::Star),
            path: open.path.as_deref(),
            found_empty: Some(self.found_empty),
        };
        let right: Vec<Verdict> = views.iter().flat_map(|seen| judged(*seen).verdicts(hello)).collect();
        let position = hello.cursor.as_ref().map(|cursor| cursor.position);
        let diverged = verdict == Verdict::Refuse(RejectCode::Diverged);
        if diverged && position.is_some_and(|position| judged((open.view, open.parts)).by_checkpoint(&position)) {
            ctx.coverage.met(Scene::RefusedByCheckpoint);
        }
        let parted = matches!(verdict, Verdict::Resync) || diverged;
        if parted && position.is_some_and(|position| twins(&position, &open.view.published)) {
            ctx.coverage.met(Scene::TwinsMet);
        }
        let raised = open.parts.tombstones.is_some_and(|raised| raised.0.position == open.view.floor);
        if raised && verdict == Verdict::Compare && position.is_some_and(|at| at.seq < open.view.floor.seq) {
            ctx.coverage.met(Scene::BelowTombstoneFloor);
        }
        if !right.contains(&verdict) {
            let words = format!("{verdict:?} for a slave at {position:?}, of {views:?}; right would be {right:?}");
            ctx.oracle.fail(Invariant::RightDecision, words);
        }
    }
}

fn twins(one: &Position, other: &Position) -> bool {
    one.epoch.number == other.epoch.number && one.epoch.nonce != other.epoch.nonce
}
