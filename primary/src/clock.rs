//! The one place in this crate that reads a clock.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Now, in microseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "drivers read the clock here and pass it on")]
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Microseconds on a clock that never steps, since this process first asked.
#[allow(clippy::disallowed_methods, reason = "drivers read the clock here and pass it on")]
pub(crate) fn steady_us() -> i64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    i64::try_from(BEGIN.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(i64::MAX)
}
