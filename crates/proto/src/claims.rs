//! Which link may write where in a store that gathers from several masters.

use bytes::Bytes;
use replikv_core::{KeyRange, LinkId, StoreError, Subspace};
use serde::{Deserialize, Serialize};

use crate::layout::{self, LAYOUT_FORMAT, Stored};
use crate::planted::{self, Bug};

/// The format of the claim of a link that strips a prefix. Programs that cannot do that refuse it by name.
const STRIPS: u8 = 2;

/// What one link has to itself: nobody else writes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What its keys begin with, in the store.
    prefix: Vec<u8>,
    /// Whether it is being given up.
    pub state: ClaimState,
    /// What is taken off its master's keys. Stored behind the rest, where it is not empty.
    #[serde(skip)]
    strip: Vec<u8>,
}

/// Whether a claim stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ClaimState {
    /// The link can be opened.
    Held,
    /// The link is being undone, and its data stays: then anybody may write there.
    Leaving,
    /// The link is being undone, and its data goes first.
    Removing,
}

impl Claim {
    /// What the keys of claims begin with.
    pub const PREFIX: &'static [u8] = b"claim/";

    /// A claim of `target`.
    pub fn new(target: &Subspace) -> Self {
        Self { prefix: target.prefix().to_vec(), state: ClaimState::Held, strip: Vec::new() }
    }

    /// The claim of a link that takes `strip` off its master's keys.
    #[must_use]
    pub fn stripping(mut self, strip: &Subspace) -> Self {
        self.strip = strip.prefix().to_vec();
        self
    }

    /// The key of the claim of `link`.
    pub fn key(link: &LinkId) -> Bytes {
        Bytes::from([Self::PREFIX, link.as_str().as_bytes()].concat())
    }

    /// What is claimed.
    pub fn target(&self) -> Subspace {
        Subspace::raw(self.prefix.clone())
    }

    /// What is taken off the keys of the link's master; the root if nothing is.
    pub fn strip(&self) -> Subspace {
        Subspace::raw(self.strip.clone())
    }

    /// The claim, being given up.
    #[must_use]
    pub fn given_up(&self, state: ClaimState) -> Self {
        Self { state, ..self.clone() }
    }

    /// Where a link keeps what it knows, in `Meta`: apart from every other link, whatever their names.
    pub fn knowledge(link: &LinkId) -> Subspace {
        Subspace::raw(&b"link/"[..]).child(link.as_str())
    }

    /// True if some key could lie in `range` and be claimed.
    pub fn meets(&self, range: &KeyRange) -> bool {
        !self.target().range().intersect(range).is_empty()
    }
}

impl Stored for Claim {
    const WHAT: &'static str = "the claim of a link";

    fn to_bytes(&self) -> Bytes {
        if self.strip.is_empty() {
            layout::encoded(LAYOUT_FORMAT, self)
        } else {
            layout::encoded(STRIPS, &(self, &self.strip))
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.first() == Some(&LAYOUT_FORMAT) {
            return layout::decoded(Self::WHAT, LAYOUT_FORMAT, bytes);
        }
        let (claim, strip): (Self, Vec<u8>) = layout::decoded(Self::WHAT, STRIPS, bytes)?;
        Ok(Self { strip, ..claim })
    }
}

/// The link of `claims` whose claim would meet one of `link` to `target`, if there is one.
pub fn rival<'a>(
    claims: impl IntoIterator<Item = (&'a LinkId, &'a Claim)>,
    link: &LinkId,
    target: &Subspace,
) -> Option<&'a LinkId> {
    let mut others = claims.into_iter().filter(|(other, _)| *other != link);
    let nested = |claim: &Claim| planted::is(Bug::NestedClaimFree) && claim.target() != *target;
    others.find(|(_, claim)| claim.target().overlaps(target) && !nested(claim)).map(|(other, _)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str) -> LinkId {
        LinkId::new(name).unwrap()
    }

    #[test]
    fn claims_that_share_a_key_are_rivals() {
        let held = [(link("one"), Claim::new(&Subspace::raw("a/"))), (link("two"), Claim::new(&Subspace::named("b")))];
        let found = |name: &str, target: Subspace| {
            rival(held.iter().map(|(link, claim)| (link, claim)), &link(name), &target).map(LinkId::as_str)
        };
        assert_eq!(found("new", Subspace::raw("a/b/")), Some("one"));
        assert_eq!(found("new", Subspace::raw("a")), Some("one"));
        assert_eq!(found("new", Subspace::named("b").child("c")), Some("two"));
        assert_eq!(found("new", Subspace::root()), Some("one"));
        assert_eq!(found("new", Subspace::raw("c/")), None);
        assert_eq!(found("one", Subspace::raw("a/")), None);
    }

    #[test]
    fn what_links_know_is_apart_whatever_their_names() {
        for (one, two) in [("a", "a/checkpoint"), ("a", "ab"), ("a/", "a")] {
            assert!(!Claim::knowledge(&link(one)).overlaps(&Claim::knowledge(&link(two))), "{one} {two}");
        }
    }

    #[test]
    fn each_link_has_a_claim_of_its_own_below_the_prefix_of_claims() {
        assert_eq!(&Claim::key(&link("edge-1"))[..], b"claim/edge-1");
        assert!(KeyRange::prefix(Claim::PREFIX).contains(&Claim::key(&link("edge-2"))));
    }

    #[test]
    fn a_claim_is_stored_as_it_was_before() {
        let claim = Claim::new(&Subspace::raw("edge/"));
        assert_eq!(&claim.to_bytes()[..], b"\x01\x05edge/\x00");
        assert_eq!(Claim::from_bytes(&claim.to_bytes()).unwrap(), claim);
        let removing = claim.given_up(ClaimState::Removing);
        assert_eq!(&removing.to_bytes()[..], b"\x01\x05edge/\x02");
    }

    #[test]
    fn what_is_stripped_is_stored_in_a_format_of_its_own() {
        let claim = Claim::new(&Subspace::raw("edge/")).stripping(&Subspace::raw("users/"));
        assert_eq!(&claim.to_bytes()[..], b"\x02\x05edge/\x00\x06users/");
        assert_eq!(Claim::from_bytes(&claim.to_bytes()).unwrap(), claim);
        let removing = claim.given_up(ClaimState::Removing);
        assert_eq!(Claim::from_bytes(&removing.to_bytes()).unwrap().strip(), Subspace::raw("users/"));
        let found = |bytes: &[u8]| Claim::from_bytes(bytes).unwrap_err();
        assert!(matches!(found(b"\x03\x05edge/\x00"), StoreError::NewerFormat { found: 3, supported: 2, .. }));
        for damaged in [&b""[..], b"\x00", b"\x02\x05edge/\x00", b"\x02\x05edge/\x00\x06user", b"\x01\x05edge/\x00\x00"]
        {
            assert!(matches!(found(damaged), StoreError::Corrupt { .. }), "{damaged:?}");
        }
    }

    #[test]
    fn a_claim_meets_the_ranges_that_hold_one_of_its_keys() {
        let claim = Claim::new(&Subspace::raw("b/"));
        for (range, meets) in [
            (KeyRange::all(), true),
            (KeyRange::only("b/key"), true),
            (KeyRange::from_bounds("a".."b/"), false),
            (KeyRange::from_bounds("b0"..), false),
        ] {
            assert_eq!(claim.meets(&range), meets, "{range:?}");
        }
    }
}
