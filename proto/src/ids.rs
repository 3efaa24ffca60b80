//! Who is who: clusters, regions, PostgreSQL systems, timelines and epochs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The leadership number of the global cluster: one primary region per epoch, and epochs only grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's timeline number; a promotion starts a new one. Valid timelines begin at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's system identifier, made by `initdb` and shared by every physical copy of that cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of one global cluster, drawn at random when its certificate authority is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// Not 32 hexadecimal digits.
    #[error("a cluster id is 32 hexadecimal digits")]
    ClusterId,
    /// Not a region's name.
    #[error(
        "'{0}' is not a region name: 1 to 32 of a-z, 0-9 and '-', starting with a letter, not ending with '-'"
    )]
    RegionName(String),
    /// Not a node's name.
    #[error(
        "'{0}' is not a node name: 1 to 32 of a-z, 0-9 and '-', starting with a letter, not ending with '-'"
    )]
    NodeName(String),
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<ClusterId, ParseIdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseIdError::ClusterId);
        }
        let value = u128::from_str_radix(text, 16).map_err(|_| ParseIdError::ClusterId)?;
        Ok(ClusterId(value.to_be_bytes()))
    }
}

impl TryFrom<&[u8]> for ClusterId {
    type Error = ParseIdError;

    fn try_from(bytes: &[u8]) -> Result<ClusterId, ParseIdError> {
        bytes.try_into().map(ClusterId).map_err(|_| ParseIdError::ClusterId)
    }
}

/// Declares the name of something: a DNS label of at most 32 bytes.
macro_rules! label {
    ($(#[$about:meta])* pub struct $name:ident;) => {
        $(#[$about])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest name.
            pub const MAX_BYTES: usize = LABEL_BYTES_MAX;

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<$name, ParseIdError> {
                match is_label(text) {
                    true => Ok($name(text.into())),
                    false => Err(ParseIdError::$name(text.chars().take(64).collect())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<$name, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The longest label, bytes.
const LABEL_BYTES_MAX: usize = 32;

fn is_label(text: &str) -> bool {
    let known = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    known && starts && !text.ends_with('-') && text.len() <= LABEL_BYTES_MAX
}

label! {
    /// A region's name, such as `us-east`. It is also the DNS name in that region's certificate, and a
    /// directory name.
    pub struct RegionName;
}

label! {
    /// The name of a region's node, such as `n1`: one within its region, and a directory name.
    pub struct NodeName;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_names_are_dns_labels() {
        for good in ["us-east", "a", "eu2"] {
            assert_eq!(good.parse::<RegionName>().unwrap().as_str(), good);
        }
        for bad in ["", "US", "-a", "a-", "1a", "a.b", "a/b", "..", "ü", &"a".repeat(33)] {
            assert!(bad.parse::<RegionName>().is_err() && bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cluster_ids_round_trip() {
        let id = ClusterId([7; 16]);
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        assert!("+0000000000000000000000000000000".parse::<ClusterId>().is_err());
    }
}
