//! A cap on what is sent to one region, in bits per second.

use std::num::NonZeroU32;
use std::sync::Arc;

use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::watch;

/// governor counts cells of this many bytes: single bytes lose precision at high rates.
const CELL_BYTES: u64 = 1024;

/// A cap shared by all that is sent to one region; without a rate it costs nothing.
#[derive(Debug)]
pub struct EgressCap {
    rate: watch::Sender<Option<Arc<Rate>>>,
}

/// A rate in force.
#[derive(Debug)]
struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    burst_cells: u32,
}

impl Rate {
    /// `bits_per_second`; up to 100 ms worth, and at least 64 KiB, may leave at once.
    fn new(bits_per_second: u64) -> Option<Rate> {
        let cells_per_second = NonZeroU32::new(cells(bits_per_second / 8))?;
        let burst = NonZeroU32::new((cells_per_second.get() / 10).max(64)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(cells_per_second).allow_burst(burst);
        Some(Rate { limiter: RateLimiter::direct(quota), burst_cells: burst.get() })
    }
}

impl EgressCap {
    /// A cap of `bits_per_second`, or none.
    #[must_use]
    pub fn new(bits_per_second: Option<u64>) -> EgressCap {
        let cap = EgressCap { rate: watch::Sender::new(None) };
        cap.set(bits_per_second);
        cap
    }

    /// Another rate, or none, from now on; also for what waits just now.
    pub fn set(&self, bits_per_second: Option<u64>) {
        self.rate.send_replace(bits_per_second.and_then(Rate::new).map(Arc::new));
    }

    /// Waits until `bytes` may be sent.
    pub async fn take(&self, bytes: usize) {
        if self.rate.borrow().is_none() {
            return;
        }
        let mut rates = self.rate.subscribe();
        let mut left = cells(bytes as u64);
        while left > 0 {
            let Some(rate) = rates.borrow_and_update().clone() else { return };
            // More than a burst at once would be refused for good.
            let now = left.min(rate.burst_cells);
            let Some(wanted) = NonZeroU32::new(now) else { return };
            tokio::select! {
                biased;
                taken = rate.limiter.until_n_ready(wanted) => match taken {
                    Ok(()) => left -= now,
                    Err(_) => return,
                },
                // It goes on at the new rate.
                _ = rates.changed() => {}
            }
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

    #[tokio::test]
    async fn another_rate_holds_at_once_also_for_what_waits() {
        // A day and more at this rate.
        let cap = EgressCap::new(Some(8_192));
        let waiting = cap.take(200 << 20);
        tokio::pin!(waiting);
        let soon = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
        cap.set(None);
        tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.unwrap();
        cap.set(Some(8_192));
        assert!(tokio::time::timeout(soon, cap.take(200 << 20)).await.is_err());
    }
}
