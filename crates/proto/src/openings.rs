//! Two slaves of one name: the one that came last is served, and the one before it never again.

use std::collections::{BTreeMap, VecDeque};

use crate::{Refusal, RejectCode};

/// How many names are remembered beside those of slaves that are connected.
const NAMES: usize = 1024;
/// How many openings of one name are remembered to be fenced.
const FENCED: usize = 16;

/// Which opening of a slave has which name: known by the nonce that is drawn when a slave is opened.
///
/// An opening that another one took the name from is fenced. It is refused whenever it comes again: two slaves that
/// connect in turn would each undo what the other waits for. The last 16 fenced ones of a name are known, and 1,024 names
/// beside those of slaves that are connected; of the rest, the last one to connect has the name.
#[derive(Debug, Default)]
pub struct Openings {
    names: BTreeMap<String, Opening>,
    joins: u64,
}

#[derive(Debug)]
struct Opening {
    nonce: u64,
    /// Those that had the name before, oldest first.
    fenced: VecDeque<u64>,
    /// Which join was the last one.
    joined: u64,
}

impl Openings {
    /// Gives the name to the opening with that nonce, which fences the one that had it. `connected` tells which names
    /// must not be forgotten.
    ///
    /// # Errors
    /// A [`Refusal`] if it is fenced; nothing has changed then.
    pub fn join(&mut self, slave: &str, nonce: u64, connected: impl Fn(&str) -> bool) -> Result<(), Refusal> {
        let joined = self.joins;
        match self.names.get_mut(slave) {
            Some(opening) if opening.fenced.contains(&nonce) => return Err(fenced(slave)),
            Some(opening) => opening.take(nonce, joined),
            None => {
                self.names.insert(slave.into(), Opening { nonce, fenced: VecDeque::new(), joined });
                self.forget(|name| name == slave || connected(name));
            }
        }
        self.joins += 1;
        Ok(())
    }

    fn forget(&mut self, needed: impl Fn(&str) -> bool) {
        if self.names.len() <= NAMES {
            return;
        }
        let idle = self.names.iter().filter(|(name, _)| !needed(name));
        let mut joined: Vec<u64> = idle.map(|(_, opening)| opening.joined).collect();
        joined.sort_unstable();
        if let Some(oldest) = joined.iter().rev().nth(NAMES - 1).copied() {
            self.names.retain(|name, opening| needed(name) || opening.joined >= oldest);
        }
    }
}

impl Opening {
    fn take(&mut self, nonce: u64, joined: u64) {
        self.joined = joined;
        if self.nonce == nonce {
            return;
        }
        if self.fenced.len() == FENCED {
            self.fenced.pop_front();
        }
        self.fenced.push_back(std::mem::replace(&mut self.nonce, nonce));
    }
}

fn fenced(slave: &str) -> Refusal {
    let words = format!(
        "another slave has connected as `{slave}` since, and is served in the place of this one: give each slave a name of \
         its own; if the other one is gone for good, open this one again"
    );
    Refusal::new(RejectCode::DuplicateSlave, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: fn(&str) -> bool = |_| false;

    fn is_fenced(openings: &mut Openings, slave: &str, nonce: u64) -> bool {
        let joined = openings.join(slave, nonce, NOBODY);
        joined.is_err_and(|refusal| refusal.code == RejectCode::DuplicateSlave && !refusal.retry)
    }

    #[test]
    fn an_opening_is_fenced_once_another_one_has_its_name() {
        let mut openings = Openings::default();
        for nonce in [1, 1, 2, 2, 3] {
            assert_eq!(openings.join("edge", nonce, NOBODY), Ok(()));
        }
        assert!(is_fenced(&mut openings, "edge", 1) && is_fenced(&mut openings, "edge", 2));
        assert!(!is_fenced(&mut openings, "edge", 3), "those that were refused took nothing from it");
        assert!(!is_fenced(&mut openings, "other", 1), "names are apart");
    }

    #[test]
    fn the_last_of_those_that_are_fenced_are_remembered() {
        let mut openings = Openings::default();
        let last = FENCED as u64 + 1;
        for nonce in 0..=last {
            assert_eq!(openings.join("edge", nonce, NOBODY), Ok(()));
        }
        assert!((1..last).all(|nonce| is_fenced(&mut openings, "edge", nonce)));
        assert!(!is_fenced(&mut openings, "edge", 0));
    }

    #[test]
    fn names_are_forgotten_in_the_order_in_which_they_came_unless_they_are_connected() {
        let mut openings = Openings::default();
        let come = |openings: &mut Openings, name: &str, nonce| {
            assert_eq!(openings.join(name, nonce, |name| name == "connected"), Ok(()));
        };
        for name in ["connected", "first", "second"] {
            come(&mut openings, name, 1);
            come(&mut openings, name, 2);
        }
        for n in 0..NAMES {
            come(&mut openings, &n.to_string(), 1);
        }
        assert_eq!(openings.names.len(), NAMES + 2, "the one that comes, and the one that is connected");
        assert!(is_fenced(&mut openings, "connected", 1) && is_fenced(&mut openings, "second", 1));
        assert!(!openings.names.contains_key("first"));
    }
}
