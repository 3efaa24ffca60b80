//! A cap on what is sent to one region, in bits per second.

use std::num::NonZeroU32;

use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// governor counts cells of this many bytes: single bytes lose precision at high rates.
const CELL_BYTES: u64 = 1024;

/// A cap shared by all that is sent to one region; without a rate it costs nothing.
#[derive(Debug)]
pub struct EgressCap {
    limiter: Option<RateLimiter<NotKeyed, InMemoryState, DefaultClock>>,
    burst_cells: u32,
}

impl EgressCap {
    /// A cap of `bits_per_second`, or none. Up to 100 ms worth, and at least 64 KiB, may leave at once.
    #[must_use]
    pub fn new(bits_per_second: Option<u64>) -> EgressCap {
        let Some(cells_per_second) = bits_per_second.and_then(|bits| NonZeroU32::new(cells(bits / 8))) else {
            return EgressCap { limiter: None, burst_cells: 0 };
        };
        let burst = NonZeroU32::new((cells_per_second.get() / 10).max(64)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(cells_per_second).allow_burst(burst);
        EgressCap { limiter: Some(RateLimiter::direct(quota)), burst_cells: burst.get() }
    }

    /// Waits until `bytes` may be sent.
    pub async fn take(&self, bytes: usize) {
        let Some(limiter) = &self.limiter else { return };
        let mut left = cells(bytes as u64);
        while left > 0 {
            // More than a burst at once would be refused for good.
            let now = left.min(self.burst_cells);
            if let Some(now) = NonZeroU32::new(now)
                && limiter.until_n_ready(now).await.is_err()
            {
                return;
            }
            left -= now;
        }
    }
}

/// Whole cells that hold `bytes`.
fn cells(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(CELL_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "governor keeps real time")]
    async fn the_rate_is_kept_and_large_messages_pass() {
        let cap = EgressCap::new(Some(80_000_000));
        let begin = std::time::Instant::now();
        // 4 MB at 10 MB/s, of which the first 100 ms worth are free.
        for _ in 0..4 {
            cap.take(1_000_000).await;
        }
        assert!(begin.elapsed().as_millis() >= 290, "{:?}", begin.elapsed());
        EgressCap::new(None).take(usize::MAX).await;
    }
}
