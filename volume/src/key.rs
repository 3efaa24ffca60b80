//! The names of keys.

use std::fmt;
use std::str::FromStr;

/// Which key: derived from the key itself, so that another one is never taken for it. It tells nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyId, String> {
        let digits =
            Some(text).filter(|text| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()));
        let id = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(KeyId);
        id.ok_or_else(|| format!("{text:?} is no key's id, which is 16 hexadecimal digits"))
    }
}
