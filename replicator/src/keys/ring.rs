//! The file of a region's keys, as text. Pure.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use volume::seal::KeyId;
use zeroize::Zeroizing;

/// The first line.
const FORMAT: &str = "replicator keys 1";

/// The most keys that a file may have.
const KEYS_MAX: usize = 10_000;

/// What is kept of one key. It is not shown: it may be the key itself.
#[derive(Clone)]
pub struct Entry {
    /// Which.
    pub id: KeyId,
    /// When it was made, microseconds since 1970.
    pub made_us: i64,
    /// Who can open it.
    pub provider: String,
    /// What the provider needs for that.
    pub kept: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key {} of {}", self.id, self.provider)
    }
}

/// The keys of a region as they are kept, oldest first, and the one that is used for new redo.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    entries: Vec<Entry>,
    active: Option<KeyId>,
}

impl Ring {
    /// All of them.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The one that new segments are sealed with.
    #[must_use]
    pub fn active(&self) -> Option<KeyId> {
        self.active
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(&self, id: KeyId) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    /// Adds one.
    pub fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// New segments are to be sealed with this one.
    pub fn activate(&mut self, id: KeyId) {
        self.active = Some(id);
    }

    /// The file's content.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        // Long enough not to grow: what a string leaves behind when it does is not overwritten.
        let long = self.entries.iter().map(|entry| entry.kept.len() * 2 + 100).sum::<usize>();
        let mut text = Zeroizing::new(String::with_capacity(long + 200));
        let _ = writeln!(text, "{FORMAT}");
        for Entry { id, made_us, provider, kept } in &self.entries {
            let kept = Zeroizing::new(BASE64_STANDARD.encode(&kept[..]));
            let _ = writeln!(text, "key {id} {made_us} {provider} {}", *kept);
        }
        if let Some(active) = self.active {
            let _ = writeln!(text, "active {active}");
        }
        let crc = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "crc {crc:08x}");
        text
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// What is wrong with it; never what is in it.
    pub fn parse(text: &str) -> Result<Ring, String> {
        let mut lines = text.lines().enumerate();
        match lines.next() {
            Some((_, FORMAT)) => {}
            Some((_, line)) if line.starts_with("replicator keys ") => {
                return Err(format!(
                    "it is of another format than '{FORMAT}': a later version of this program wrote it"
                ));
            }
            _ => return Err(format!("it is no file of keys: those begin with '{FORMAT}'")),
        }
        let mut ring = Ring::default();
        let (body, crc) =
            text.rsplit_once("crc ").ok_or("it has no checksum at its end: it was cut short")?;
        if format!("{:08x}", crc32c::crc32c(body.as_bytes())) != crc.trim() {
            return Err("it does not match its checksum: it was changed, or cut short. Take the copy of it that you keep".into());
        }
        for (number, line) in lines {
            let number = number + 1;
            let bad = |what: &str| format!("line {number}: {what}");
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next(), words.next(), words.next()) {
                (Some("key"), Some(id), Some(made), Some(provider), Some(kept), None) => {
                    let id: KeyId = id.parse().map_err(|_| bad("no key's id"))?;
                    if ring.has(id) || ring.entries.len() >= KEYS_MAX {
                        return Err(bad("one key more than once, or too many"));
                    }
                    let made_us = made.parse().map_err(|_| bad("no time"))?;
                    let kept = BASE64_STANDARD.decode(kept).map_err(|_| bad("no base64"))?;
                    ring.add(Entry {
                        id,
                        made_us,
                        provider: provider.to_owned(),
                        kept: Zeroizing::new(kept),
                    });
                }
                (Some("active"), Some(id), None, ..) => {
                    let id = id.parse().map_err(|_| bad("no key's id"))?;
                    if !ring.has(id) {
                        return Err(bad("the key that is to be used is not there"));
                    }
                    ring.active = Some(id);
                }
                (Some("crc"), Some(_), None, ..) => {}
                _ => return Err(bad("it is not understood")),
            }
        }
        Ok(ring)
    }
}
