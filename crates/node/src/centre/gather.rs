//! The task that commits what links hand over, as much at once as waits: group commit across masters.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use replikv_core::{Durability, LinkId, Outcome, ReplicaStore, StoreError, WriteSet};
use tokio::sync::{mpsc, oneshot};

/// How links reach the task. What is handed over is decided in the order in which it came.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Option<mpsc::UnboundedSender<Handed>>>);

/// Something handed over.
#[derive(Debug)]
pub(super) enum Handed {
    /// To be committed.
    Writes(Part),
    /// Tells when everything before it is decided.
    Barrier(oneshot::Sender<()>),
}

/// What one link wants committed.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) link: LinkId,
    pub(super) writes: WriteSet,
    pub(super) durability: Durability,
    pub(super) answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Queue {
    pub(super) fn hand(&self, handed: Handed) -> Result<(), StoreError> {
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().and_then(|queue| queue.send(handed).ok()).ok_or(StoreError::Closed)
    }

    /// What was handed over before is still committed; nothing more is taken.
    pub(super) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Commits one group after the other.
#[derive(Debug)]
pub(super) struct Gatherer<S> {
    store: Arc<S>,
    handed: mpsc::UnboundedReceiver<Handed>,
    waiting: VecDeque<Handed>,
    group_bytes: usize,
}

impl<S: ReplicaStore> Gatherer<S> {
    pub(super) fn new(store: Arc<S>) -> (Queue, Self) {
        let (queue, handed) = mpsc::unbounded_channel();
        let group_bytes = store.preferred_write_set().min(store.limits().max_batch);
        (Queue(Mutex::new(Some(queue))), Self { store, handed, waiting: VecDeque::new(), group_bytes })
    }

    pub(super) async fn run(mut self) {
        while let Some(first) = self.next().await {
            match first {
                // Everything before it was decided before it was taken.
                Handed::Barrier(passed) => drop(passed.send(())),
                Handed::Writes(part) => {
                    let mut group = vec![part];
                    self.gather(&mut group);
                    self.commit(group).await;
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Handed> {
        match self.waiting.pop_front() {
            Some(handed) => Some(handed),
            None => self.handed.recv().await,
        }
    }

    // One of each link at most: that is a fair turn, and conditions of a second one are about what the first one leaves.
    fn gather(&mut self, group: &mut Vec<Part>) {
        while let Ok(handed) = self.handed.try_recv() {
            self.waiting.push_back(handed);
        }
        let mut bytes: usize = group.iter().map(|part| part.writes.byte_len()).sum();
        while let Some(Handed::Writes(part)) = self.waiting.front()
            && bytes + part.writes.byte_len() <= self.group_bytes
            && group.iter().all(|other| other.link != part.link)
        {
            bytes += part.writes.byte_len();
            if let Some(Handed::Writes(part)) = self.waiting.pop_front() {
                group.push(part);
            }
        }
    }

    async fn commit(&self, mut group: Vec<Part>) {
        if group.len() > 1 {
            let durability = if group.iter().any(|part| part.durability == Durability::Synced) {
                Durability::Synced
            } else {
                Durability::Buffered
            };
            match self.store.apply(together(&group), durability).await {
                Ok(()) => return answer(group, &Ok(())),
                Err(error) if error.outcome() == Outcome::Unknown => return answer(group, &Err(error)),
                // One of them is at fault, and nobody knows which: the others are not to suffer for it.
                Err(_) => {}
            }
        }
        for Part { writes, durability, answer, .. } in group.drain(..) {
            let result = self.store.apply(writes, durability).await;
            // Whoever dropped it does not want to know.
            drop(answer.send(result));
        }
    }
}

// No two links share a key, of data or of what they know: the order among them says nothing.
fn together(group: &[Part]) -> WriteSet {
    let mut all = WriteSet::builder();
    for part in group {
        for condition in part.writes.preconditions() {
            all.require(condition.key.clone(), condition.value.clone());
        }
        for chunk in part.writes.chunks() {
            all.append(chunk.keyspace, chunk.ops.clone());
        }
    }
    all.build()
}

fn answer(group: Vec<Part>, result: &Result<(), StoreError>) {
    for part in group {
        drop(part.answer.send(result.clone()));
    }
}

#[cfg(test)]
mod tests {
    use replikv_core::{Keyspace, LinkId};
    use replikv_memory::MemoryStore;

    use super::*;

    fn part(link: &str, requires: Option<&'static [u8]>) -> (Handed, oneshot::Receiver<Result<(), StoreError>>) {
        let (answer, answered) = oneshot::channel();
        let mut writes = WriteSet::builder();
        writes.require(link.to_owned(), requires.map(bytes::Bytes::from_static));
        writes.put(Keyspace::Meta, link, "moved").unwrap();
        let (writes, durability) = (writes.build(), Durability::Buffered);
        (Handed::Writes(Part { link: LinkId::new(link).unwrap(), writes, durability, answer }), answered)
    }

    // The condition of a second one is about what the first one leaves: together, both would hold.
    #[tokio::test]
    async fn two_write_sets_of_one_link_never_share_a_transaction() {
        let (queue, gatherer) = Gatherer::new(Arc::new(MemoryStore::new()));
        let mut answers = Vec::new();
        for (link, requires) in [("one", None), ("two", None), ("one", None), ("two", Some(&b"moved"[..]))] {
            let (handed, answered) = part(link, requires);
            queue.hand(handed).unwrap();
            answers.push(answered);
        }
        queue.close();
        gatherer.run().await;
        let mut results = Vec::new();
        for answered in answers {
            results.push(answered.await.unwrap());
        }
        assert!(matches!(&results[..], [Ok(()), Ok(()), Err(StoreError::HeadMoved), Ok(())]), "{results:?}");
    }
}
