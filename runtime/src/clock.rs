//! The clocks. Decisions take the time as an argument; drivers read it here.
//!
//! | clock | steps | stands still while the machine is suspended | for |
//! |---|---|---|---|
//! | [`now`], [`steady_us`] | never | yes | waiting, deadlines, how long something took |
//! | [`boottime_us`] | never | no | leases: whoever was suspended has no lease left |
//! | [`wall_us`] | yes | no | what people read |

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Now, on a clock that never steps. It is virtual where tokio's time is paused.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where it is read")]
pub fn now() -> Instant {
    Instant::now()
}

/// Microseconds on the clock of [`now`], since this process first asked.
#[must_use]
pub fn steady_us() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    micros(BEGIN.get_or_init(now).elapsed())
}

/// Microseconds since the machine was started, the time that it was suspended included (CLOCK_BOOTTIME).
#[must_use]
pub fn boottime_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0) * 1_000_000 + nanos.unwrap_or(0) / 1000
}

/// Microseconds since 1970 by the wall clock, which people and time servers set. It decides nothing.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where it is read")]
pub fn wall_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A duration in whole microseconds.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clock_goes_back() {
        let (boot, steady) = (boottime_us(), steady_us());
        assert!(boottime_us() >= boot && boot > 0);
        assert!(steady_us() >= steady);
        assert!(wall_us() > 1_600_000_000_000_000, "microseconds since 1970");
    }
}
