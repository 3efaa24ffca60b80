//! The lines of an audit, each chained to the one before it by a hash, and what is wrong with a chain. Pure.
//!
//! A line is JSON. Its last member is `hash`: the SHA-256 of all that stands before it, of which `before`,
//! the hash of the line before, is a part. So no line can be changed, taken out, or put elsewhere without
//! the one after it saying so; and the last one is said by the head, which is kept apart.

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::units::show_hex;

/// What the first line follows.
pub const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The longest text in a line, characters. What is beyond is cut off.
const TEXT_CHARS_MAX: usize = 500;

/// What somebody did, or was not let do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Deed {
    /// Of who did it: region, witness, node, operator or monitor, as the certificate says; `local` for
    /// whoever has an account on the machine; `record` for what the voters agreed on.
    pub role: String,
    /// Its name.
    pub name: String,
    /// The serial number of the certificate.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// From where, an address with a port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// What was asked, as docs/PROTOCOL.md calls it.
    pub what: String,
    /// What is to be known besides.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What came of it.
    pub outcome: String,
}

impl Deed {
    /// The same with texts that are not too long, and on one line.
    fn bounded(mut self) -> Deed {
        for text in [
            &mut self.role,
            &mut self.name,
            &mut self.serial,
            &mut self.from,
            &mut self.what,
            &mut self.detail,
            &mut self.outcome,
        ] {
            if let Some((at, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
                text.truncate(at);
                text.push('…');
            }
        }
        self
    }
}

/// A line of an audit, but for its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up, from 1.
    #[serde(rename = "n")]
    pub number: u64,
    /// Microseconds since 1970, by the daemon's clock.
    pub at_us: i64,
    /// Who did what.
    #[serde(flatten)]
    pub deed: Deed,
    /// The hash of the line before.
    pub before: String,
}

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of its last line; zero where there is none.
    #[serde(rename = "n")]
    pub number: u64,
    /// The hash of it.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Head {
        Head { number: 0, hash: BEGINNING.into() }
    }
}

/// What stands between a line's content and its hash.
const HASH: &str = ",\"hash\":\"";

/// The line that follows `head`, without its end, and where the chain ends with it.
///
/// # Errors
/// Never, as far as is known: texts are JSON.
pub fn line(head: &Head, at_us: i64, deed: Deed) -> serde_json::Result<(String, Head)> {
    let number = head.number + 1;
    let entry = Entry { number, at_us, deed: deed.bounded(), before: head.hash.clone() };
    let content = serde_json::to_string(&entry)?;
    let hash = hash_of(&content);
    let open = content.strip_suffix('}').unwrap_or(&content);
    Ok((format!("{open}{HASH}{hash}\"}}"), Head { number, hash }))
}

fn hash_of(content: &str) -> String {
    show_hex(digest(&SHA256, content.as_bytes()).as_ref())
}

/// A line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// What it says.
    pub entry: Entry,
    /// The hash that it has.
    pub hash: String,
    /// Whether that is the hash of what it says.
    pub is_whole: bool,
}

/// The line that `text` is, if it is one.
#[must_use]
pub fn parse(text: &str) -> Option<Read> {
    let (open, rest) = text.rsplit_once(HASH)?;
    let hash = rest.strip_suffix("\"}")?;
    let content = format!("{open}}}");
    let entry = serde_json::from_str(&content).ok()?;
    Some(Read { entry, is_whole: hash_of(&content) == hash, hash: hash.to_owned() })
}

/// Follows a chain line by line, and names what is wrong with it.
#[derive(Debug, Default)]
pub struct Verifier {
    last: Option<Head>,
    lines: u64,
    first: u64,
    faults: Vec<String>,
}

/// The most faults that are named.
const FAULTS_MAX: usize = 100;

impl Verifier {
    /// The next line, as it stands in the file.
    pub fn take(&mut self, text: &str) {
        self.lines += 1;
        let Some(Read { entry, hash, is_whole }) = parse(text) else {
            let after = self.last.as_ref().map_or(0, |last| last.number);
            return self.fault(format!("after line {after}: something that is no line of an audit"));
        };
        let number = entry.number;
        if !is_whole {
            self.fault(format!("line {number}: it was changed, its hash is that of something else"));
        }
        match self.last.take() {
            // What is older is not kept any more.
            None => self.first = number,
            Some(last) if number <= last.number => {
                self.fault(format!("line {number}: it stands after line {}", last.number));
            }
            Some(last) if number > last.number + 1 => {
                self.fault(missing(last.number + 1, number - 1));
            }
            Some(last) if last.hash != entry.before && is_whole => {
                let before = last.number;
                self.fault(format!("line {before}: it was changed, line {number} follows another one"));
            }
            Some(_) => {}
        }
        if number == 1 && entry.before != BEGINNING && is_whole {
            self.fault("line 1: it follows another one".into());
        }
        self.last = Some(Head { number, hash });
    }

    /// What is wrong, in the order of the file, where the chain is to end with `head`; nothing if it is
    /// whole.
    #[must_use]
    pub fn end(mut self, head: &Head) -> Verified {
        let last = self.last.take().unwrap_or_default();
        if last.number < head.number {
            self.fault(missing(last.number + 1, head.number));
        } else if last.number == head.number && last.hash != head.hash {
            self.fault(format!("line {}: it was changed, another one was written last", last.number));
        }
        Verified { lines: self.lines, first: self.first, last, faults: self.faults }
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(what);
        }
    }
}

fn missing(from: u64, to: u64) -> String {
    if from == to { format!("line {from} is missing") } else { format!("lines {from} to {to} are missing") }
}

/// What a chain turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many lines it has.
    pub lines: u64,
    /// The number of the first: what is older is not kept.
    pub first: u64,
    /// Where it ends.
    pub last: Head,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn deed(what: &str) -> Deed {
        let deed = Deed { role: "operator".into(), name: "ann".into(), what: what.into(), ..Deed::default() };
        Deed { outcome: "done".into(), ..deed }
    }

    fn chain(count: u64) -> (Vec<String>, Head) {
        let (mut lines, mut head) = (Vec::new(), Head::default());
        for n in 0..count {
            let (text, next) = line(&head, 7, deed(&format!("order {n}"))).unwrap();
            lines.push(text);
            head = next;
        }
        (lines, head)
    }

    fn faults(lines: &[String], head: &Head) -> Vec<String> {
        let mut verifier = Verifier::default();
        lines.iter().for_each(|line| verifier.take(line));
        verifier.end(head).faults
    }

    #[test]
    fn a_line_that_is_changed_missing_or_elsewhere_is_named() {
        let (lines, head) = chain(6);
        assert_eq!(faults(&lines, &head), Vec::<String>::new());
        // The oldest are not kept for ever.
        assert_eq!(faults(&lines[3..], &head), Vec::<String>::new());

        let mut changed = lines.clone();
        changed[2] = changed[2].replace("order 2", "order 9");
        assert_eq!(faults(&changed, &head), ["line 3: it was changed, its hash is that of something else"]);
        // With a hash that fits what it says now: then the next one gives it away, or the head.
        for (at, words) in
            [(2, "line 3: it was changed, line 4 follows another one"), (5, "another one was written last")]
        {
            let before =
                Head { number: at, hash: parse(&lines[usize::try_from(at).unwrap() - 1]).unwrap().hash };
            let mut forged = lines.clone();
            forged[usize::try_from(at).unwrap()] = line(&before, 7, deed("order 9")).unwrap().0;
            let found = faults(&forged, &head);
            assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        }
        let mut without = lines.clone();
        without.remove(2);
        assert_eq!(faults(&without, &head), ["line 3 is missing"]);
        assert_eq!(faults(&lines[..4], &head), ["lines 5 to 6 are missing"]);
        let mut swapped = lines.clone();
        swapped.swap(2, 3);
        let found = faults(&swapped, &head);
        assert!(found.iter().any(|fault| fault == "line 3: it stands after line 4"), "{found:?}");
        let mut odd = lines;
        odd.insert(1, "{}".into());
        assert_eq!(faults(&odd, &head), ["after line 1: something that is no line of an audit"]);
        assert_eq!(faults(&[], &head), ["lines 1 to 6 are missing"]);
    }

    proptest! {
        #[test]
        fn every_deed_takes_one_line_and_is_read_back(texts in proptest::collection::vec(any::<String>(), 7)) {
            let [role, name, serial, from, what, detail, outcome] =
                <[String; 7]>::try_from(texts).unwrap();
            let deed = Deed { role, name, serial, from, what, detail, outcome };
            let (text, head) = line(&Head::default(), 1, deed.clone()).unwrap();
            prop_assert!(!text.contains('\n'));
            let read = parse(&text).unwrap();
            prop_assert!(read.is_whole && read.hash == head.hash);
            prop_assert_eq!(read.entry.deed, deed.bounded());
        }

        /// Whichever byte is another, something is said.
        #[test]
        fn any_change_of_a_byte_is_found(at in 0_usize..2000, by in 1_u8..128) {
            let (lines, head) = chain(4);
            let mut bytes = lines.join("\n").into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= by;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let changed: Vec<String> = text.split('\n').map(str::to_owned).collect();
            prop_assert!(!faults(&changed, &head).is_empty());
        }

        #[test]
        fn any_text_is_read(text in ".*") {
            let _ = parse(&text);
            let mut verifier = Verifier::default();
            verifier.take(&text);
            let _ = verifier.end(&Head::default());
        }
    }
}
