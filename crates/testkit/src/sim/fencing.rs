//! Promotions that fence the others first: whoever runs one asks them, waits for their answers, and counts.

use replikv_proto::layout::Epochs;
use replikv_proto::{Fence, FenceRefusal, FenceRequest, Fenced};

use super::context::{Context, Happening, MILLI, Node, Passing};
use super::slave::Plan;
use super::world::World;
use super::{Fault, Topology};

/// A question to another node, and its answer, on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Asked(u64),
    Answered(u64),
    /// Who has not answered by now does not count.
    Late(usize, u64),
}

/// Who asks whom.
#[derive(Debug)]
pub(super) struct Asked {
    by: usize,
    life: u64,
    other: usize,
    request: FenceRequest,
}

impl World {
    /// Somebody changes masters in order.
    pub(super) fn plan(&mut self) {
        if self.ctx.healing {
            return;
        }
        let delay = self.ctx.config.pace.map_or(400, |millis| millis) * MILLI;
        let next = self.ctx.plan_rng.u64(1..=delay);
        self.ctx.after(next, Happening::Plan);
        if self.ctx.topology == Topology::Failover && self.ctx.plan_rng.bool() {
            self.fence_one();
        } else {
            self.take_over_one();
        }
    }

    /// A slave is promoted if enough of the others promise to follow it: its master is gone, or goes on.
    pub(super) fn fence_one(&mut self) {
        let fit: Vec<usize> = self.active_slaves().filter(|node| self.can_be_promoted(*node)).collect();
        let wanted = Fault::FencedPromotion;
        if fit.len() < 2 || !self.known.contains(&wanted) || !self.ctx.inject(wanted) {
            return;
        }
        // One that could not be promoted is tried again before others.
        let begun = |node: &usize| self.fence_of(*node).is_some_and(|fence| fence.own);
        let again = fit.iter().copied().find(begun).filter(|_| self.ctx.plan_rng.bool());
        let node = again.unwrap_or_else(|| fit[self.ctx.plan_rng.usize(0..fit.len())]);
        let master = self.slaves[node].target;
        if self.ctx.plan_rng.u8(0..3) == 0 && self.masters[master].process.is_some() {
            let power = self.ctx.plan_rng.bool();
            self.take_down(self.masters[master].store, power);
            let back = self.ctx.plan_rng.u64(MILLI..=1_000 * MILLI);
            self.ctx.after(back, Happening::Pass(Passing::MasterBack(master)));
        }
        let others = (0..self.slaves.len()).filter(|other| *other != node);
        let others: Vec<usize> = others.filter(|_| self.ctx.plan_rng.u8(0..3) > 0).collect();
        let plan =
            Plan { slaves: self.slaves.len(), replicated: self.ctx.replicated, anew: self.ctx.plan_rng.bool(), others };
        self.slaves[node].fence_first(&mut self.ctx, plan);
    }

    fn fence_of(&self, node: usize) -> Option<Fence> {
        self.ctx.stores[self.slaves[node].store].visible.stored(Fence::KEY)
    }

    /// Nobody waits for an epoch any more that is none of the newest master's.
    pub(super) fn lift_fences(&mut self, newest: usize) {
        let known: Option<Epochs> = self.ctx.stores[self.masters[newest].store].visible.stored(Epochs::KEY);
        let known = known.unwrap_or_default().0;
        for node in self.active_slaves().collect::<Vec<_>>() {
            let Some(fence) = self.fence_of(node) else { continue };
            if known.iter().any(|start| start.epoch == fence.epoch) {
                continue;
            }
            let store = self.slaves[node].store;
            self.take_down(store, false);
            self.ctx.delete_meta(store, Fence::KEY);
            let Context { oracle, stores, .. } = &mut self.ctx;
            oracle.lifted(stores, store, &fence);
            self.slaves[node].start(&mut self.ctx);
        }
    }

    fn can_be_promoted(&self, node: usize) -> bool {
        let slave = &self.slaves[node];
        slave.process.is_some() && !slave.is_promoting() && !slave.promoted && !slave.rejoins
    }

    /// A slave that is to be promoted knows what to ask.
    pub(super) fn ask_others(&mut self, node: usize) {
        let Some((request, others)) = self.slaves[node].asks() else { return };
        let life = self.slaves[node].lives;
        for other in others {
            self.questions += 1;
            let asked = Asked { by: node, life, other, request: request.clone() };
            self.pledging.insert(self.questions, asked);
            let delay = self.ctx.plan_rng.u64(1..=self.ctx.sizes.net_delay);
            self.ctx.after(delay, Happening::Fencing(Question::Asked(self.questions)));
        }
        let patience = self.ctx.plan_rng.u64(20..800) * MILLI;
        self.ctx.after(patience, Happening::Fencing(Question::Late(node, life)));
    }

    pub(super) fn fencing(&mut self, question: Question) {
        match question {
            Question::Asked(id) => {
                let Some(Asked { other, request, .. }) = self.pledging.get(&id) else { return };
                let (other, request) = (*other, request.clone());
                if self.slaves[other].idle {
                    let head = self.ctx.stores[self.slaves[other].store].head();
                    if let Some(head) = head.filter(|_| self.masters[other].opened().is_some()) {
                        self.fence_answered(id, Err(FenceRefusal::Master { epoch: head.position.epoch }));
                    }
                    return;
                }
                self.slaves[other].asked_to_pledge(&mut self.ctx, id, request);
                self.wake(Node::Slave(other));
            }
            Question::Answered(id) => {
                let Some(answer) = self.ctx.pledges.remove(&id) else { return };
                let lost = self.known.contains(&Fault::LostAnswer) && self.ctx.plan_rng.u8(0..6) == 0;
                if !(lost && self.ctx.inject(Fault::LostAnswer)) {
                    self.fence_answered(id, answer);
                }
            }
            Question::Late(node, life) => {
                if self.slaves[node].lives == life {
                    self.slaves[node].counted(&mut self.ctx);
                    self.wake(Node::Slave(node));
                }
            }
        }
    }

    fn fence_answered(&mut self, id: u64, answer: Result<Fenced, FenceRefusal>) {
        let Some(Asked { by, life, other, .. }) = self.pledging.remove(&id) else { return };
        if self.slaves[by].lives == life {
            self.slaves[by].told(&mut self.ctx, other, answer);
            self.wake(Node::Slave(by));
        }
    }
}
