//! An operator's order as the record has it: bytes that somebody else reads and verifies.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// So many promotions that are over have their orders beside them, the newest. A voter that has slept through
/// more believes those before.
pub const KEPT: usize = 6;

/// The most bytes of a signed order. Those of one record have to fit into one message.
pub const BYTES_MAX: usize = 8 << 10;

/// An operator's order with the signature and the certificate that it is verified by, as `proto` encodes it.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedOrder(Vec<u8>);

impl SignedOrder {
    /// The order that is encoded so; none in no bytes, or in too many.
    #[must_use]
    pub fn of(bytes: Vec<u8>) -> Option<SignedOrder> {
        (!bytes.is_empty() && bytes.len() <= BYTES_MAX).then_some(SignedOrder(bytes))
    }

    /// As it is encoded.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SignedOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedOrder({} bytes)", self.0.len())
    }
}

impl Serialize for SignedOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SignedOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SignedOrder, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        SignedOrder::of(bytes).ok_or_else(|| serde::de::Error::custom("it is no signed order"))
    }
}
