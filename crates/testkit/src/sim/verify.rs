//! A simulated slave verifies: it asks about one range after the other, and compares at the point of the history that the
//! answer names. Under whatever faults, it must find nothing, and what is changed behind its back, by its key.

use bytes::{Bytes, BytesMut};
use replikv_core::{EncodedOps, KeyRange, KeyRanges, Keyspace, Op, ScanOptions};
use replikv_proto::{DifferenceKind, Differing, Probe, ProbeCheck, Probed, SlaveSession};

use super::context::{Context, MILLI, Moment, Node};
use super::oracle::Invariant;

const EVERY: Moment = 15 * MILLI;

/// What one connection asks.
#[derive(Debug)]
pub(super) struct Verifying {
    ask_at: Moment,
    from: Bytes,
    /// What may be asked about.
    ranges: KeyRanges,
    /// Sums and entries take turns.
    entries: bool,
}

impl Verifying {
    /// In one run of four: the others have the connection for themselves.
    pub(super) fn new(ctx: &Context, ranges: &KeyRanges) -> Option<Self> {
        let verifying = Self { ask_at: ctx.now, from: Bytes::new(), ranges: ranges.clone(), entries: false };
        ctx.verifies.then_some(verifying)
    }

    pub(super) fn ask(&mut self, ctx: &mut Context, node: usize, session: &mut SlaveSession) {
        if !session.may_probe() {
            return;
        }
        if self.ask_at > ctx.now {
            ctx.wake_at(Node::Slave(node), self.ask_at);
            return;
        }
        self.ask_at = ctx.now + EVERY;
        let max_bytes = u32::try_from(ctx.sizes.chunk).unwrap_or(u32::MAX);
        let rest = KeyRange::new(self.from.clone(), None);
        // Behind the last one the first one comes again.
        let next = self.ranges.clip(&rest).next().or_else(|| self.ranges.iter().next().cloned());
        if let Some(range) = next {
            session.probe(Probe { range, max_bytes, entries: self.entries });
        }
    }

    pub(super) fn answered(&mut self, probed: &Probed) {
        self.from = probed.range.end().cloned().unwrap_or_default();
        self.entries = !self.entries;
    }
}

/// Compares what the store holds with the answer, and then once more as if one entry had been changed.
pub(super) fn check(ctx: &mut Context, store: usize, probed: &Probed) {
    let all = ScanOptions::default().max_entries(usize::MAX).max_bytes(usize::MAX);
    let page = ctx.stores[store].visible.page(Keyspace::Data, &probed.range, all);
    let (found, equal) = compare(probed, page.ops());
    if !equal || !found.is_empty() {
        let words = format!("a false alarm in {:?} at {}: {found:?}", probed.range, probed.at);
        ctx.oracle.fail(Invariant::VerifiedRightly, words);
    }
    let Some((altered, key, kind)) = altered(page.ops()) else { return };
    let (found, equal) = compare(probed, &altered);
    let told = matches!(probed.held, replikv_proto::Held::Entries(_));
    let wanted = if told { vec![(key, kind)] } else { Vec::new() };
    if equal || found != wanted {
        let words = format!("a changed entry is not found in {:?}: {found:?} instead of {wanted:?}", probed.range);
        ctx.oracle.fail(Invariant::VerifiedRightly, words);
    }
}

fn compare(probed: &Probed, own: &EncodedOps) -> (Vec<(Bytes, DifferenceKind)>, bool) {
    let mut found = Vec::new();
    let mut tell = |differing: Differing<'_>| {
        found.push((Bytes::copy_from_slice(differing.key), differing.kind));
        Ok::<_, std::convert::Infallible>(())
    };
    let mut check = ProbeCheck::new(probed);
    let Ok(()) = check.push_page(own, &mut tell);
    let Ok(checked) = check.finish(&mut tell);
    (found, checked.equal)
}

// The entry in the middle is gone, or holds something else, or has a neighbour.
fn altered(ops: &EncodedOps) -> Option<(EncodedOps, Bytes, DifferenceKind)> {
    let count = ops.iter().count();
    let kinds = [DifferenceKind::Missing, DifferenceKind::Value, DifferenceKind::Extra];
    let kind = kinds[ops.byte_len() % kinds.len()];
    let (mut out, mut at) = (BytesMut::new(), None);
    for (n, op) in ops.iter().enumerate() {
        let Op::Put { key, value } = op else { continue };
        if n != count / 2 {
            if at.as_deref() == Some(key) {
                return None;
            }
            op.encode_into(&mut out);
            continue;
        }
        // No key lies between this one and its neighbour.
        let neighbour = [key, &[0]].concat();
        at = Some(Bytes::copy_from_slice(if kind == DifferenceKind::Extra { &neighbour } else { key }));
        match kind {
            DifferenceKind::Missing => {}
            DifferenceKind::Value => Op::Put { key, value: &[value, b"!"].concat() }.encode_into(&mut out),
            _ => {
                op.encode_into(&mut out);
                Op::Put { key: &neighbour, value }.encode_into(&mut out);
            }
        }
    }
    Some((EncodedOps::from_bytes(out.freeze()).ok()?, at?, kind))
}
