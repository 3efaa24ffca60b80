//! Which congestion controller connections have.

use std::net::IpAddr;
use std::sync::Arc;

use pacing::quinn::{FixedWindow, Paths};
use quinn::congestion::{ControllerFactory, CubicConfig};

/// The variable that chooses another controller than the default, for measurements: `pacing`, `cubic` or
/// `fixed:BYTES`.
pub const VARIABLE: &str = "REPLICATOR_CONGESTION";

/// A congestion controller. See docs/PACING.md.
#[derive(Debug, Clone)]
pub enum Congestion {
    /// This project's own; it remembers paths between connections.
    Pacing(Paths),
    /// CUBIC, as quinn has it.
    Cubic,
    /// A window that never changes: a baseline for measurements.
    Fixed(FixedWindow),
}

impl Congestion {
    /// What [`VARIABLE`] says; the default without it.
    ///
    /// # Errors
    /// When it says something else.
    pub fn from_environment() -> Result<Congestion, String> {
        match std::env::var(VARIABLE) {
            Ok(text) => Congestion::parse(&text),
            Err(_) => Ok(Congestion::default()),
        }
    }

    fn parse(text: &str) -> Result<Congestion, String> {
        let wrong =
            || format!("{VARIABLE} is \"{text}\": set it to pacing, cubic or fixed:BYTES (10000 or more)");
        match text {
            "pacing" => Ok(Congestion::Pacing(Paths::new())),
            "cubic" => Ok(Congestion::Cubic),
            _ => {
                let bytes = text.strip_prefix("fixed:").and_then(|bytes| bytes.parse().ok());
                let window = bytes.filter(|bytes| *bytes >= 10_000).map(FixedWindow);
                window.map(Congestion::Fixed).ok_or_else(wrong)
            }
        }
    }

    /// Makes the controllers of connections with the peer at `address`.
    pub(crate) fn factory(&self, address: Option<IpAddr>) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Congestion::Pacing(paths) => paths.factory(address),
            Congestion::Cubic => Arc::new(CubicConfig::default()),
            Congestion::Fixed(window) => Arc::new(*window),
        }
    }
}

impl Default for Congestion {
    fn default() -> Congestion {
        Congestion::Pacing(Paths::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(matches!(Congestion::parse("pacing"), Ok(Congestion::Pacing(_))));
        assert!(matches!(Congestion::parse("cubic"), Ok(Congestion::Cubic)));
        assert!(matches!(Congestion::parse("fixed:2097152"), Ok(Congestion::Fixed(FixedWindow(2_097_152)))));
        for wrong in ["", "bbr", "fixed:", "fixed:9", "fixed:-1"] {
            assert!(Congestion::parse(wrong).unwrap_err().contains("set it to"), "{wrong}");
        }
    }
}
