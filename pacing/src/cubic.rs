//! CUBIC's window (RFC 9438) in whole numbers: what a TCP neighbour does.
//!
//! The controller follows it beside a neighbour that fills the bottleneck's queue, as nothing else gets a
//! fair share there. The crate's simulator uses it as cross traffic and as the baseline. It never looks at
//! delay.

use crate::arithmetic::{SECOND_US, cube_root, mul_div};

/// A CUBIC window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubic {
    window: u64,
    slow_start_until: u64,
    mtu: u64,
    /// The window before the last reduction.
    window_max: u64,
    /// When the last reduction was; packets sent before do not reduce again.
    reduced_us: Option<u64>,
    /// The window that Reno would have, for short round trips.
    reno: u64,
    /// Bytes acknowledged that have not yet made a packet of growth.
    credit: u64,
}

impl Cubic {
    /// Starts with `window` bytes, in slow start up to `slow_start_until` bytes.
    #[must_use]
    pub fn new(window: u64, slow_start_until: u64, mtu: u64) -> Cubic {
        Cubic {
            window,
            slow_start_until,
            mtu: mtu.max(1),
            window_max: window,
            reduced_us: None,
            reno: window,
            credit: 0,
        }
    }

    /// Bytes that may be in flight.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }

    /// `bytes` sent at `sent_us` were acknowledged, while the window was the limit.
    pub fn acked(&mut self, now_us: u64, sent_us: u64, bytes: u64, rtt_us: u64) {
        if self.reduced_us.is_some_and(|at| sent_us <= at) {
            return;
        }
        if self.window < self.slow_start_until {
            self.window = self.window.saturating_add(bytes);
            return;
        }
        let since = *self.reduced_us.get_or_insert(now_us);
        self.reno = self.reno.saturating_add(mul_div(mul_div(bytes, self.mtu, self.window), 9, 17));
        let target = self.cubic(now_us.saturating_sub(since).saturating_add(rtt_us)).max(self.reno);
        let target = target.clamp(self.window, self.window.saturating_mul(3) / 2);
        // One window of acknowledgements brings the window to the target.
        self.credit = self.credit.saturating_add(mul_div(target - self.window, bytes, self.window));
        let growth = self.credit.min(bytes);
        self.window = self.window.saturating_add(growth);
        self.credit -= growth;
    }

    /// A packet sent at `sent_us` was lost.
    pub fn lost(&mut self, now_us: u64, sent_us: u64) {
        if self.reduced_us.is_some_and(|at| sent_us <= at) {
            return;
        }
        self.reduced_us = Some(now_us);
        // A flow that has to give way gives a little more of its place free.
        let yields = self.window < self.window_max;
        self.window_max = if yields { mul_div(self.window, 17, 20) } else { self.window };
        self.window = mul_div(self.window, 7, 10).max(2 * self.mtu);
        self.slow_start_until = self.window;
        self.reno = self.window;
        self.credit = 0;
    }

    /// The cubic function, `since_us` after the last reduction.
    fn cubic(&self, since_us: u64) -> u64 {
        // K^3 = window_max * 0.3 / 0.4 in packets and seconds; here in milliseconds.
        let packets = self.window_max / self.mtu;
        let inflection_ms = cube_root(packets.saturating_mul(750_000_000));
        let since_ms = since_us / (SECOND_US / 1000);
        let distance = since_ms.abs_diff(inflection_ms).min(1_000_000);
        // 0.4 * (t - K)^3 packets.
        let difference = mul_div(distance * distance * distance, 4 * self.mtu, 10_000_000_000);
        if since_ms < inflection_ms {
            self.window_max.saturating_sub(difference)
        } else {
            self.window_max.saturating_add(difference)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_to_the_window_of_the_loss_and_then_beyond() {
        let mut cubic = Cubic::new(100 * 1200, 0, 1200);
        cubic.lost(1000, 500);
        assert_eq!(cubic.window(), 70 * 1200);
        cubic.lost(1100, 900);
        assert_eq!(cubic.window(), 70 * 1200, "one reduction a round trip");
        let mut now_us = 2000;
        // K is the cube root of 75: 4.2 s.
        while now_us < 4_200_000 {
            now_us += 1000;
            cubic.acked(now_us, now_us - 500, 1200, 500);
        }
        assert!((95 * 1200..106 * 1200).contains(&cubic.window()), "{}", cubic.window());
        for _ in 0..4000 {
            now_us += 1000;
            cubic.acked(now_us, now_us - 500, 1200, 500);
        }
        assert!(cubic.window() > 115 * 1200, "{}", cubic.window());
    }
}
