//! Fingerprints: of bytes, for the trace, and of maps, so that two states are compared in no time.

/// A sum over entries. Equal maps have equal prints, in whatever order they were filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Print(u128);

impl Print {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(entry(key, value));
    }

    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_sub(entry(key, value));
    }
}

fn entry(key: &[u8], value: &[u8]) -> u128 {
    let high = mix(mix(1, key), value);
    let low = mix(mix(high, value), key);
    u128::from(high) << 64 | u128::from(low)
}

/// Folds `bytes` into `state`. The same on every machine, and in every version of the standard library.
pub(super) fn mix(state: u64, bytes: &[u8]) -> u64 {
    let mut hash = number(state, bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = number(hash, u64::from_le_bytes(word));
    }
    hash
}

/// Folds a number into `state`.
pub(super) fn number(state: u64, number: u64) -> u64 {
    let mut hash = (state ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}
