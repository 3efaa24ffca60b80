//! The one place in this crate that reads a clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in microseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "drivers read the clock here and pass it on")]
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
