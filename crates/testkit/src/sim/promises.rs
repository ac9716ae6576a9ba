//! What slaves have promised, and what follows from that for writes that enough of them had acknowledged.

use std::collections::BTreeSet;

use replikv_core::{Cursor, Epoch, Position, Seq};
use replikv_proto::layout::{Role, Superseded};
use replikv_proto::{Fence, Subscription};

use super::Topology;
use super::context::Context;
use super::oracle::{Invariant, Oracle};
use super::serving::{Served, Sessions};
use super::store::ModelStore;

/// Writes that as many slaves have acknowledged as a writer waits for, and epochs that enough slaves wait for.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// The newest of such writes for each set of slaves that acknowledged it, by their stores.
    replicated: Vec<(Position, BTreeSet<usize>)>,
    /// Epochs that enough slaves have promised to wait for.
    begun: Vec<Awaited>,
}

/// An epoch, the last record before it, and the store that is to begin it.
#[derive(Debug)]
struct Awaited {
    epoch: Epoch,
    last: Position,
    candidate: usize,
    /// The stores that wait for it.
    fenced: BTreeSet<usize>,
    /// Those that waited for it until somebody lifted that: what they acknowledge, together with such that never waited, breaks
    /// no promise.
    lifted: BTreeSet<usize>,
}

impl Sessions {
    /// A slave has told how far it is: what as many have as a writer waits for is acknowledged.
    pub(super) fn counted(&self, ctx: &mut Context, open: &Served) {
        if ctx.topology != Topology::Failover || open.path.is_some() {
            return;
        }
        // Nodes have the numbers of their stores.
        let store = |session: &u64| self.map.get(session).map(|session| session.slave(ctx));
        let held = self.names.iter().filter_map(|(name, (session, _))| Some((self.holds(name)?, store(session)?)));
        let mut held: Vec<(Seq, usize)> = held.collect();
        held.sort_unstable_by(|one, other| other.cmp(one));
        held.truncate(ctx.replicated);
        let Some((seq, _)) = held.last().filter(|_| held.len() == ctx.replicated) else { return };
        let Context { oracle, stores, .. } = ctx;
        let Some(point) = oracle.model.at(&open.view.published, *seq) else { return };
        let (position, holders) = (point.position, held.iter().map(|(_, store)| *store).collect());
        oracle.replicated(stores, position, holders);
    }
}

impl Oracle {
    /// A master counts so many slaves that hold a record, and all before it, on stable storage.
    pub(super) fn replicated(&mut self, stores: &[ModelStore], position: Position, holders: BTreeSet<usize>) {
        if !self.all_hold(stores, &position, &holders) {
            return;
        }
        // A record of the epochs that are over, which is not in the history that goes on.
        let over = |Awaited { epoch, last, fenced, lifted, .. }: &&Awaited| {
            let numbers = last.epoch.number..epoch.number;
            last.source == position.source
                && numbers.contains(&position.epoch.number)
                && (lifted.is_disjoint(&holders) || !fenced.is_disjoint(&holders))
        };
        let lost = self.promises.begun.iter().filter(over).find(|begun| !self.model.leads_to(&position, &begun.last));
        if let Some(Awaited { epoch, last, .. }) = lost {
            let words = format!("{position} was acknowledged by {holders:?}; epoch {epoch} goes on after {last}");
            return self.fail(Invariant::Acknowledged, words);
        }
        let model = &self.model;
        self.promises.replicated.retain(|(before, by)| *by != holders || !model.leads_to(before, &position));
        self.promises.replicated.push((position, holders));
    }

    /// Enough slaves have promised to follow nobody but the master of this epoch, which begins after `last`.
    pub(super) fn promised(&mut self, stores: &[ModelStore], candidate: usize, (last, epoch): (Position, Epoch)) {
        // What an earlier promotion left behind is none of this one's.
        let of_it = |position: &Position| position.source == last.source && position.epoch.number == last.epoch.number;
        let lost = self.promises.replicated.iter().find(|(position, holders)| {
            of_it(position) && !self.model.leads_to(position, &last) && self.all_hold(stores, position, holders)
        });
        if let Some((position, holders)) = lost {
            let words = format!("{position}, which {holders:?} hold, is lost: epoch {epoch} begins after {last}");
            return self.fail(Invariant::Acknowledged, words);
        }
        let waits = |store: &ModelStore| {
            waits_for(store).is_some_and(|fence| fence.source == last.source && fence.epoch.number >= epoch.number)
        };
        let fenced = (0..stores.len()).filter(|store| waits(&stores[*store])).collect();
        self.promises.begun.push(Awaited { epoch, last, candidate, fenced, lifted: BTreeSet::new() });
    }

    /// Somebody has lifted the fence of this store: with that go its promises in whose place it was, to epochs that the store
    /// has not come to. What was to begin there never will.
    pub(super) fn lifted(&mut self, stores: &[ModelStore], store: usize, fence: &Fence) {
        let stands = stores[store].visible.cursor().map_or(0, |cursor| cursor.position.epoch.number);
        let numbers = stands + 1..=fence.epoch.number;
        let ends = |begun: &Awaited| begun.last.source == fence.source && numbers.contains(&begun.epoch.number);
        self.promises.begun.retain(|begun| !(ends(begun) && begun.candidate == store));
        for begun in self.promises.begun.iter_mut().filter(|begun| ends(begun)) {
            begun.lifted.extend(begun.fenced.take(&store));
        }
    }

    // Whoever lost its store, or has joined another history since, holds it no more: nobody promised that.
    fn all_hold(&self, stores: &[ModelStore], position: &Position, holders: &BTreeSet<usize>) -> bool {
        holders.iter().all(|store| {
            let maps = &stores[*store].durable;
            let reigns = stores[*store].identity().is_some_and(|identity| identity.role == Role::Master);
            let stands = if reigns {
                stores[*store].durable_head()
            } else {
                let whole = maps.stored::<Subscription>(Subscription::KEY).is_none();
                maps.cursor().filter(|cursor| whole && Cursor::is_consistent(cursor)).map(|cursor| cursor.position)
            };
            stands.is_some_and(|stands| self.model.leads_to(position, &stands))
        })
    }

    /// A slave takes over from a master that has handed over to it.
    pub(super) fn takes_over(&mut self, successor: &ModelStore, master: &ModelStore) {
        let reigns = master.identity().is_some_and(|identity| identity.role == Role::Master);
        let stopped = master.durable.stored::<Superseded>(Superseded::KEY).is_some();
        let stands = successor.visible.cursor().filter(Cursor::is_consistent).map(|cursor| cursor.position);
        let last = master.head().map(|head| head.position);
        if reigns && !(stopped && stands == last) {
            let words =
                format!("it takes over at {stands:?}, its master stands at {last:?}, and has stopped: {stopped}");
            self.fail(Invariant::HandedOver, words);
        }
    }
}

fn waits_for(store: &ModelStore) -> Option<Fence> {
    store.durable.stored(Fence::KEY)
}
