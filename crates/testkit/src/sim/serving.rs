//! What a node serves to those who follow it: a master its history, a slave that keeps the log what it has of it.

use std::collections::{BTreeMap, BTreeSet};

use replikv_core::{Position, Seq, SourceId, StoreLimits};
use replikv_proto::layout::{Checkpoint, Head, Superseded};
use replikv_proto::{EpochStart, LogEntry, LogParts, Openings, PathNode, Progress, Subscribers, View};

use super::Scene;
use super::context::{Context, Node};
use super::ring::Ring;
use super::session::Session;
use super::slots::SlotBook;
use super::store::Reply;

/// A history, as sessions see it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) source: SourceId,
    pub(super) epochs: Vec<EpochStart>,
    pub(super) limits: StoreLimits,
    pub(super) view: View,
    /// Grows whenever the view changes.
    pub(super) version: u64,
    /// Grows whenever what was handed to the store came to nothing.
    pub(super) setbacks: u64,
    pub(super) ring: Ring,
    /// The sessions that need not look at every record, and those of them that must look.
    pub(super) subscribers: Subscribers<u64>,
    pub(super) concerned: BTreeSet<u64>,
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Where the parts of the log begin and end, as its owner has last read or changed them.
    pub(super) parts: LogParts,
    pub(super) damaged: Option<Seq>,
    pub(super) book: SlotBook,
    /// The relays above, and this one; `None` if it is a master.
    pub(super) path: Option<Vec<PathNode>>,
}

impl Served {
    /// What a store says, to be served from now on by a master, or by a relay of that path.
    pub(super) fn begin(
        ctx: &Context,
        (head, parts): (&Head, LogParts),
        (epochs, limits): (Vec<EpochStart>, StoreLimits),
        checkpoints: Vec<Checkpoint>,
        path: Option<Vec<PathNode>>,
    ) -> Self {
        let view = View {
            published: head.position,
            handed: head.position,
            floor: parts.begins().position,
            log_bytes: head.log_bytes,
            retained_bytes: head.log_bytes.saturating_sub(parts.missing_bytes()),
        };
        Self {
            source: head.position.source,
            epochs,
            limits,
            view,
            version: 0,
            setbacks: 0,
            ring: Ring::new(ctx.sizes.ring),
            subscribers: Subscribers::passing(ctx.sizes.least_passed),
            concerned: BTreeSet::new(),
            checkpoints,
            parts,
            damaged: None,
            book: SlotBook::none(ctx.now),
            path,
        }
    }

    /// The store holds the log in these parts.
    pub(super) fn change_parts(&mut self, parts: LogParts) {
        self.parts = parts;
        self.change(|view| {
            view.floor = parts.begins().position;
            view.retained_bytes = view.log_bytes.saturating_sub(parts.missing_bytes());
        });
    }

    /// Records after this one are there in full.
    pub(super) fn full_after(&self) -> Position {
        let full = self.parts.full_after().position;
        if full.seq > self.view.floor.seq { full } else { self.view.floor }
    }

    /// A record up to here is damaged: the log is to begin after it.
    pub(super) fn cut_after(&mut self, seq: Seq) {
        self.damaged = self.damaged.max(Some(seq));
    }

    /// Points of the history that a slave is told to keep, oldest first.
    pub(super) fn newest_checkpoints(&self) -> Vec<Position> {
        let published = self.view.published.seq;
        let positions = self.checkpoints.iter().map(|checkpoint| checkpoint.position);
        let mut positions: Vec<Position> = positions.filter(|position| position.seq <= published).collect();
        positions.drain(..positions.len().saturating_sub(64));
        positions
    }

    /// These records are published: `change` says so in the view.
    pub(super) fn publish(&mut self, entries: Vec<LogEntry>, change: impl FnOnce(&mut View)) {
        self.change(change);
        for entry in entries {
            self.subscribers.publish(&entry, |session| {
                self.concerned.insert(*session);
            });
            self.ring.push(entry);
        }
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut View)) {
        let before = self.view;
        change(&mut self.view);
        if self.view != before {
            self.version += 1;
        }
        if self.view.handed.seq < before.handed.seq {
            self.setbacks += 1;
        }
    }
}

/// Everybody who is connected to a process of a node.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) node: Node,
    pub(super) life: u64,
    pub(super) store: usize,
    pub(super) wall_offset_ms: i64,
    pub(super) map: BTreeMap<u64, Session>,
    /// The newest session of each name, and how far it is.
    pub(super) names: BTreeMap<String, (u64, Progress)>,
    pub(super) openings: Openings,
    /// What the oracle knows of these: the nonces that were welcomed under each name, in the order in which they came.
    pub(super) came: BTreeMap<String, Vec<u64>>,
    /// A newer epoch was met, and that is to be kept.
    pub(super) met: Option<Superseded>,
    /// It is kept, or is being kept: nothing more is written.
    pub(super) reign_over: bool,
    /// What is committed here is durable.
    pub(super) synced: bool,
}

impl Sessions {
    pub(super) fn new(node: Node, life: u64, store: usize, synced: bool) -> Self {
        Self {
            node,
            life,
            store,
            wall_offset_ms: 0,
            map: BTreeMap::new(),
            names: BTreeMap::new(),
            openings: Openings::default(),
            came: BTreeMap::new(),
            met: None,
            reign_over: false,
            synced,
        }
    }

    /// Somebody has connected.
    pub(super) fn enter(&mut self, ctx: &mut Context, id: u64, link: usize, served: &Served) {
        self.map.insert(id, Session::new(ctx, link, served, self.wall_offset_ms));
        ctx.wake(self.node);
    }

    /// Lets every session do what it can.
    pub(super) fn run(&mut self, ctx: &mut Context, served: &mut Served) {
        let ids: Vec<u64> = self.map.keys().copied().collect();
        for id in ids {
            self.run_session(ctx, served, id);
        }
    }

    pub(super) fn answered(&mut self, ctx: &mut Context, served: Option<&mut Served>, session: u64, reply: Reply) {
        if let Some(served) = served {
            self.session_answered(ctx, served, session, reply);
        }
    }

    /// What was served has ended.
    pub(super) fn close_all(&mut self, ctx: &mut Context) {
        for mut session in std::mem::take(&mut self.map).into_values() {
            session.close(ctx);
        }
        self.names.clear();
    }

    /// The process is gone.
    pub(super) fn die(&mut self, ctx: &mut Context, power: bool) {
        for session in self.map.values_mut() {
            if session.copies() {
                ctx.coverage.met(Scene::MasterDiedInCopy);
            }
            session.die(ctx, power);
        }
    }

    /// Up to where the one who is furthest behind has applied.
    pub(super) fn held(&self) -> Option<Seq> {
        self.names.values().map(|(_, progress)| progress.applied).min()
    }

    /// What a slave of that name holds on stable storage, if it holds every key and a state of the master.
    pub(super) fn holds(&self, name: &str) -> Option<Seq> {
        let (session, progress) = self.names.get(name)?;
        let whole = self.map.get(session).is_some_and(|session| !session.is_filtered());
        (whole && progress.consistent).then_some(progress.durable)
    }

    /// Where those are connected who take bytes.
    pub(super) fn listening(&mut self) -> Vec<usize> {
        let listening = self.map.values_mut().filter(|session| session.listens());
        listening.map(|session| session.conn().link).collect()
    }
}
