//! Whether a slave's lag grows for good.

use std::time::Duration;

use super::status::Lag;

/// How long the lag is watched before its least is compared with the one before: whatever comes in bursts is seen at its
/// best.
const WINDOW: Duration = Duration::from_secs(60);
/// In so many windows in a row the least lag was larger than in the one before: the slave is slower than the writers.
const WINDOWS: u32 = 10;
/// Whoever is less than this behind keeps up, though it lacks more and more: the writers have more to say.
const BEHIND_MS: u64 = 10_000;

/// The least lag of a window, window after window.
#[derive(Debug, Default)]
pub(super) struct Trend {
    since: Option<Duration>,
    /// In bytes of records; of this window, and of the one before.
    least: Option<u64>,
    before: Option<u64>,
    grown: u32,
    millis: u64,
}

impl Trend {
    /// The master has told how far the slave is behind.
    pub(super) fn told(&mut self, lag: Lag, now: Duration) {
        let least = self.least.map_or(lag.bytes, |least| least.min(lag.bytes));
        if lag.seqs == 0 || self.before.is_some_and(|before| least <= before) {
            // It has gained ground: what comes is compared with this.
            *self = Self { since: Some(now), least: Some(lag.bytes), millis: lag.millis, ..Self::default() };
            return;
        }
        (self.least, self.millis) = (Some(least), lag.millis);
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) >= WINDOW {
            self.grown = self.grown.saturating_add(u32::from(self.before.is_some()));
            (self.since, self.least, self.before) = (Some(now), None, Some(least));
        }
    }

    /// For how many minutes the lag has done nothing but grow, once that is for good as far as anybody can tell.
    pub(super) fn minutes(&self) -> Option<u64> {
        let grows = self.grown >= WINDOWS && self.millis >= BEHIND_MS;
        grows.then(|| u64::from(self.grown) * WINDOW.as_secs() / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The master tells every other second, as it does by default.
    const BEAT: u64 = 2;

    /// Tells `lags`, one a beat, of `bytes` and so many seconds of age. Returns after how many seconds the slave was first
    /// said to be outpaced.
    fn outpaced_after(trend: &mut Trend, lags: impl Iterator<Item = (u64, u64)>) -> Option<u64> {
        let begun = trend.since.unwrap_or_default().as_secs();
        let mut first = None;
        for (beat, (bytes, seconds)) in lags.enumerate() {
            let at = begun + (beat as u64 + 1) * BEAT;
            trend.told(Lag { seqs: bytes, bytes, millis: seconds * 1000 }, Duration::from_secs(at));
            first = first.or_else(|| trend.minutes().map(|_| at - begun));
        }
        first
    }

    const HOUR: u64 = 3600 / BEAT;

    #[test]
    fn a_lag_that_only_grows_is_told_after_eleven_minutes_and_until_it_shrinks() {
        let mut trend = Trend::default();
        let grows = (0..HOUR).map(|beat| (1000 + beat, beat));
        let first = outpaced_after(&mut trend, grows).expect("it only grows");
        assert!((11 * 60..=12 * 60).contains(&first), "{first} s");
        assert!(trend.minutes().is_some_and(|minutes| minutes > 50), "{trend:?}");
        // Slower than before is still slower than the writers; as far behind as a window ago is not.
        let at = trend.since.unwrap_or_default() + Duration::from_secs(BEAT);
        trend.told(Lag { seqs: 1, bytes: 1000 + HOUR, millis: 60_000 }, at);
        assert!(trend.minutes().is_some());
        trend.told(Lag { seqs: 1, bytes: 1000 + HOUR / 2, millis: 60_000 }, at);
        assert_eq!(trend.minutes(), None);
    }

    #[test]
    fn a_slave_that_is_a_hundredth_too_slow_is_found_out_too() {
        let mut trend = Trend::default();
        // A second every hundred.
        let first = outpaced_after(&mut trend, (0..HOUR).map(|beat| (50_000 + beat * 20, beat * BEAT / 100)));
        assert!(first.is_some_and(|first| first < 1200), "{first:?}");
    }

    #[test]
    fn one_that_catches_up_in_bursts_is_not() {
        for minutes in [1, 2, 5, 9] {
            let every = minutes * 60 / BEAT;
            // It never catches up wholly, and is far behind between two bursts.
            let bursts = (0..6 * HOUR).map(|beat| (500 + beat % every * 100, 20 + beat % every * BEAT));
            assert_eq!(outpaced_after(&mut Trend::default(), bursts), None, "a burst every {minutes} minutes");
        }
    }

    #[test]
    fn one_that_is_always_a_little_behind_is_not_whatever_the_noise() {
        let noise = |beat: u64| beat.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        let lags = (0..24 * HOUR).map(|beat| (50_000 + noise(beat), 30 + noise(beat) % 3));
        assert_eq!(outpaced_after(&mut Trend::default(), lags), None);
    }

    // The writers have more and more to say for an hour, and it lacks more, of the last half second.
    #[test]
    fn one_that_lacks_more_and_is_no_older_is_not() {
        let lags = (0..HOUR).map(|beat| (1000 + beat, beat % 2));
        assert_eq!(outpaced_after(&mut Trend::default(), lags), None);
    }

    // What it has applied is older and older, since it was far behind, and it lacks less and less.
    #[test]
    fn one_that_goes_through_what_it_missed_is_not() {
        let lags = (0..HOUR).map(|beat| (1_000_000 - beat, 1000 + beat));
        assert_eq!(outpaced_after(&mut Trend::default(), lags), None);
    }
}
