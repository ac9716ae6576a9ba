//! A planned change of masters, from both sides: what `replikv-node` does, step by step.
//!
//! A slave asks its master to hand over, on a connection beside the one that it follows. The question and the answer can
//! be lost, and either side can die in between: then it is asked again, or nobody knows for a while.

use std::collections::VecDeque;

use replikv_core::Position;
use replikv_proto::layout::Superseded;

use super::context::{Context, Happening, MILLI, Moment, Node, SECOND};
use super::serving::{Served, Sessions};
use super::world::World;
use super::{DriverBug, Fault, Scene};

/// A question and its answer on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handing {
    /// A master is asked.
    Asked(u64),
    /// It has answered.
    Answered(u64),
    /// It has not.
    Late(u64, u32),
}

/// A slave that takes over.
#[derive(Debug)]
pub(super) struct TakeOver {
    slave: usize,
    life: u64,
    master: usize,
    patience: Moment,
    /// Until when it asks again.
    until: Moment,
    attempt: u32,
}

/// What a master says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    HandedOver(Position),
    /// The slave does not follow it just now, or has not confirmed the last record yet.
    NotYet,
    No,
}

/// What a master knows of those who want to take over.
#[derive(Debug, Default)]
pub(super) struct Handovers {
    asked: VecDeque<Asked>,
    /// To whom this master hands over, from where there is no way back; and whether the store says that it has stopped.
    begun: Option<(String, bool)>,
    /// Whether that could be kept, when it was last tried.
    kept: Option<bool>,
    /// Another one was promoted beside it.
    gone: bool,
}

#[derive(Debug)]
struct Asked {
    question: u64,
    by: String,
    patience: Moment,
    /// Until when the slave is waited for.
    until: Moment,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Step {
    /// The slave is to have nearly everything.
    Nears,
    /// What was handed to the store is to be decided. Writers wait from here on.
    Decides,
    /// And published.
    Publishes,
    /// The slave is to have everything.
    Reaches,
    Stops,
    Stopping,
    Confirms,
}

impl Handovers {
    fn ask(&mut self, question: u64, by: String, patience: Moment, now: Moment) {
        self.asked.push_back(Asked { question, by, patience, until: now + patience, step: Step::Nears });
    }

    /// Whether writers wait.
    pub(super) fn pauses(&self) -> bool {
        self.asked.front().is_some_and(|asked| asked.step > Step::Nears)
    }

    /// The reign has ended, or that could not be kept.
    pub(super) fn stopped(&mut self, mark: Superseded, kept: bool) {
        self.gone |= mark.by.is_some();
        self.kept = Some(kept);
        if let Some((_, stopped)) = &mut self.begun {
            *stopped |= kept && mark.by.is_none();
        }
    }

    /// Goes on as far as it can. `idle` says that nothing is in flight.
    pub(super) fn drive(&mut self, ctx: &mut Context, sessions: &mut Sessions, served: &Served, idle: bool) {
        while let Some(mut asked) = self.asked.pop_front() {
            let Some(answer) = self.next(ctx, sessions, served, (&mut asked, idle)) else {
                if asked.until > ctx.now {
                    ctx.wake_at(sessions.node, asked.until);
                }
                return self.asked.push_front(asked);
            };
            ctx.tell(|| format!("{} is told {answer:?}", asked.by));
            let delay = ctx.plan_rng.u64(1..=ctx.sizes.net_delay);
            ctx.answers.insert(asked.question, answer);
            ctx.after(delay, Happening::Handing(Handing::Answered(asked.question)));
            // Writers go on, or are told that this one has stopped.
            ctx.wake(sessions.node);
        }
    }

    fn next(
        &mut self,
        ctx: &mut Context,
        sessions: &mut Sessions,
        served: &Served,
        (asked, idle): (&mut Asked, bool),
    ) -> Option<Answer> {
        loop {
            let late = ctx.now >= asked.until;
            let all_published = served.view.published == served.view.handed;
            let holds = sessions.holds(&asked.by) >= Some(served.view.published.seq);
            asked.step = match asked.step {
                Step::Nears if self.begun.is_some() => Step::Stops,
                Step::Nears if sessions.reign_over => return Some(Answer::No),
                Step::Nears if !sessions.names.contains_key(&asked.by) => return Some(Answer::NotYet),
                Step::Nears | Step::Reaches if late && !holds => return Some(Answer::No),
                Step::Nears if holds => Step::Decides,
                Step::Decides if idle => Step::Publishes,
                Step::Publishes if all_published || late => Step::Reaches,
                Step::Reaches if holds => Step::Stops,
                Step::Stops => {
                    let begun = self.begun.get_or_insert_with(|| (asked.by.clone(), false));
                    if begun.0 != asked.by || self.gone {
                        return Some(Answer::No);
                    }
                    if begun.1 {
                        ctx.coverage.met(Scene::HandedOverBefore);
                        Step::Confirms
                    } else if ctx.planted(DriverBug::HandedOverUnmarked) {
                        Step::Confirms
                    } else {
                        self.kept = None;
                        sessions.met = Some(Superseded { by: None });
                        ctx.wake(sessions.node);
                        Step::Stopping
                    }
                }
                Step::Stopping if self.kept == Some(true) => Step::Confirms,
                Step::Stopping if self.kept == Some(false) => return Some(Answer::No),
                Step::Confirms if self.gone => return Some(Answer::No),
                Step::Confirms if all_published && holds => return Some(Answer::HandedOver(served.view.published)),
                Step::Confirms if late => return Some(Answer::NotYet),
                _ => return None,
            };
            asked.until = ctx.now + asked.patience;
        }
    }
}

impl World {
    /// A slave takes over from its master, with the consent of that.
    pub(super) fn take_over_one(&mut self) {
        let fit: Vec<usize> = self.active_slaves().filter(|node| self.takes_part(*node)).collect();
        if fit.is_empty() || !self.known.contains(&Fault::TakeOver) || !self.ctx.inject(Fault::TakeOver) {
            return;
        }
        let slave = fit[self.ctx.plan_rng.usize(0..fit.len())];
        let patience = self.ctx.plan_rng.u64(20..1_500) * MILLI;
        let (life, master) = (self.slaves[slave].lives, self.slaves[slave].target);
        let until = self.ctx.now + patience;
        self.questions += 1;
        self.takeovers.insert(self.questions, TakeOver { slave, life, master, patience, until, attempt: 0 });
        self.ask(self.questions, 0);
    }

    // It follows a master itself, with all keys; and nobody is about to take over there.
    fn takes_part(&self, node: usize) -> bool {
        let slave = &self.slaves[node];
        let free = !self.takeovers.values().any(|takeover| takeover.slave == node);
        free && slave.parent.is_none() && slave.process.is_some() && slave.ranges.is_all() && !slave.is_promoting()
    }

    fn ask(&mut self, question: u64, after: Moment) {
        let Some(takeover) = self.takeovers.get_mut(&question) else { return };
        takeover.attempt += 1;
        let late = Handing::Late(question, takeover.attempt);
        let (on_its_way, patience) = (self.ctx.plan_rng.u64(1..=self.ctx.sizes.net_delay), takeover.patience);
        self.ctx.after(after + on_its_way, Happening::Handing(Handing::Asked(question)));
        self.ctx.after(after + 3 * patience + ANSWER, Happening::Handing(late));
    }

    pub(super) fn handing(&mut self, handing: Handing) {
        let (Handing::Asked(question) | Handing::Answered(question) | Handing::Late(question, _)) = handing;
        let Some(takeover) = self.takeovers.get(&question) else { return };
        let (slave, master, attempt) = (takeover.slave, takeover.master, takeover.attempt);
        if self.slaves[slave].lives != takeover.life || self.ctx.healing {
            self.takeovers.remove(&question);
            return;
        }
        match handing {
            Handing::Asked(_) => {
                let (by, patience) = (self.slaves[slave].name.clone(), takeover.patience);
                if let Some(open) = self.masters[master].process.as_mut().and_then(|process| process.open.as_mut()) {
                    open.handovers.ask(question, by, patience, self.ctx.now);
                    self.wake(Node::Master(master));
                }
            }
            Handing::Answered(_) => {
                let lost = self.known.contains(&Fault::LostAnswer) && self.ctx.plan_rng.u8(0..3) == 0;
                let told = self.ctx.answers.remove(&question).unwrap_or(Answer::NotYet);
                // The connection ends without it.
                let answer = if lost && self.ctx.inject(Fault::LostAnswer) { Answer::NotYet } else { told };
                self.handed_over(question, answer);
            }
            Handing::Late(_, late) if late == attempt => self.handed_over(question, Answer::NotYet),
            Handing::Late(..) => {}
        }
    }

    fn handed_over(&mut self, question: u64, answer: Answer) {
        let Some(takeover) = self.takeovers.get(&question) else { return };
        let (slave, master) = (takeover.slave, takeover.master);
        match answer {
            Answer::NotYet if self.ctx.now < takeover.until => return self.ask(question, PAUSE),
            Answer::NotYet => {
                let stopped = self.masters[master].is_fenced() || self.masters[master].superseded;
                self.ctx.coverage.met(if stopped { Scene::HandoverUnknown } else { Scene::HandoverFailed });
                if self.ctx.planted(DriverBug::TookOverUnanswered) {
                    self.take_over(slave, master);
                }
            }
            Answer::No => self.ctx.coverage.met(Scene::HandoverFailed),
            Answer::HandedOver(position) if self.slaves[slave].stands() == Some(position) => {
                self.ctx.coverage.met(Scene::TookOver);
                self.take_over(slave, master);
            }
            // It has moved since.
            Answer::HandedOver(_) => {}
        }
        self.takeovers.remove(&question);
    }

    fn take_over(&mut self, slave: usize, master: usize) {
        let stays =
            |other: &usize| *other != slave && !self.slaves[*other].is_promoting() && !self.slaves[*other].promoted;
        if !self.active_slaves().any(|other| stays(&other)) {
            return;
        }
        let Context { oracle, stores, .. } = &mut self.ctx;
        oracle.takes_over(&stores[self.slaves[slave].store], &stores[self.masters[master].store]);
        self.slaves[slave].promote(&mut self.ctx);
    }
}

const PAUSE: Moment = 10 * MILLI;
/// How long an answer may take beyond what the master waits for.
const ANSWER: Moment = SECOND / 10;
