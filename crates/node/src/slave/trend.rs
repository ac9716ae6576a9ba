//! Whether a slave's lag grows for good.

use std::time::Duration;

/// How long the lag is watched before its least is compared with the one before: whatever comes in bursts is seen at its
/// best.
const WINDOW: Duration = Duration::from_secs(60);
/// In so many windows in a row the least lag was larger than in the one before: the slave is slower than the writers.
const WINDOWS: u32 = 10;
/// Whoever applies in less than this what it lacks keeps up, though it lacks more and more: the writers have more to say.
const KEEPS_UP: Duration = Duration::from_secs(10);

/// The least lag of a window, window after window. Clocks on the wall have no part in it.
#[derive(Debug, Default)]
pub(super) struct Trend {
    /// When this window began, and how many bytes had been applied then.
    begun: Option<(Duration, u64)>,
    /// In bytes of records; of this window, and of the one before.
    least: Option<u64>,
    before: Option<u64>,
    grown: u32,
    keeps_up: bool,
}

impl Trend {
    /// The master has told how far it is: the slave lacks `lag` bytes of records, and has applied so many ever.
    pub(super) fn told(&mut self, lag: u64, applied: u64, now: Duration) {
        let least = self.least.map_or(lag, |least| least.min(lag));
        if lag == 0 || self.before.is_some_and(|before| least <= before) {
            // It has gained ground: what comes is compared with this.
            *self = Self { begun: Some((now, applied)), least: Some(lag), ..Self::default() };
            return;
        }
        self.least = Some(least);
        let (since, applied_then) = *self.begun.get_or_insert((now, applied));
        let took = now.saturating_sub(since);
        if took >= WINDOW {
            let taken = u128::from(applied.saturating_sub(applied_then));
            self.keeps_up = u128::from(least) * took.as_millis() <= taken * KEEPS_UP.as_millis();
            self.grown = self.grown.saturating_add(u32::from(self.before.is_some()));
            (self.begun, self.least, self.before) = (Some((now, applied)), None, Some(least));
        }
    }

    /// For how many minutes at least the lag has done nothing but grow, once that is for good as far as anybody can tell.
    pub(super) fn minutes(&self) -> Option<u64> {
        let grows = self.grown >= WINDOWS && !self.keeps_up;
        grows.then(|| u64::from(self.grown) * WINDOW.as_secs() / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The master tells every other second, as it does by default.
    const BEAT: u64 = 2;
    const HOUR: u64 = 3600 / BEAT;

    /// Tells `lags`, one a beat, of a slave that applies `rate` bytes a beat. Returns after how many seconds it was first
    /// said to be outpaced.
    fn outpaced_after(trend: &mut Trend, rate: u64, lags: impl Iterator<Item = u64>) -> Option<u64> {
        let mut first = None;
        for (beat, lag) in (1..).zip(lags) {
            trend.told(lag, beat * rate, Duration::from_secs(beat * BEAT));
            first = first.or_else(|| trend.minutes().map(|_| beat * BEAT));
        }
        first
    }

    #[test]
    fn a_lag_that_only_grows_is_told_after_eleven_minutes_and_until_it_shrinks() {
        let mut trend = Trend::default();
        let first = outpaced_after(&mut trend, 100, (0..HOUR).map(|beat| 1000 + beat * 100)).expect("it only grows");
        assert!((11 * 60..=12 * 60).contains(&first), "{first} s");
        assert!(trend.minutes().is_some_and(|minutes| minutes > 50), "{trend:?}");
        let now = Duration::from_secs(3600 + BEAT);
        trend.told(1000 + HOUR * 100, HOUR * 100, now);
        assert!(trend.minutes().is_some());
        // As far behind as a few windows ago.
        trend.told(1000 + HOUR * 90, HOUR * 100, now);
        assert_eq!(trend.minutes(), None);
    }

    #[test]
    fn a_slave_that_is_a_hundredth_too_slow_is_found_out_too() {
        let lags = (0..HOUR).map(|beat| beat * 10);
        let first = outpaced_after(&mut Trend::default(), 1000, lags);
        // Once it needs ten seconds for what it lacks.
        assert!(first.is_some_and(|first| (1000..1200).contains(&first)), "{first:?}");
    }

    #[test]
    fn a_slave_that_applies_nothing_is_found_out_too() {
        assert!(outpaced_after(&mut Trend::default(), 0, (1..HOUR).map(|beat| beat * 10)).is_some());
    }

    #[test]
    fn one_that_catches_up_in_bursts_is_not() {
        for minutes in [1, 2, 5, 9] {
            let every = minutes * 60 / BEAT;
            // It never catches up wholly, and is far behind between two bursts.
            let lags = (0..6 * HOUR).map(|beat| 50_000 + beat % every * 100);
            assert_eq!(outpaced_after(&mut Trend::default(), 100, lags), None, "a burst every {minutes} minutes");
        }
    }

    #[test]
    fn one_that_is_always_behind_is_not_whatever_the_noise() {
        let noise = |beat: u64| beat.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        let lags = (0..24 * HOUR).map(|beat| 50_000 + noise(beat));
        assert_eq!(outpaced_after(&mut Trend::default(), 100, lags), None);
    }

    // The writers have more and more to say for an hour, and it lacks more, of the last few seconds.
    #[test]
    fn one_that_lacks_more_and_applies_that_in_no_time_is_not() {
        let lags = (0..HOUR).map(|beat| 1000 + beat);
        assert_eq!(outpaced_after(&mut Trend::default(), 1000, lags), None);
    }

    #[test]
    fn one_that_goes_through_what_it_missed_is_not() {
        let lags = (0..HOUR).map(|beat| 1_000_000 - beat);
        assert_eq!(outpaced_after(&mut Trend::default(), 100, lags), None);
    }
}
