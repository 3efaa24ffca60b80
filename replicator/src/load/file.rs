//! The format of what is kept: records that are appended, each with its length and checksum.
//!
//! A file is self-contained: it begins with [`MAGIC`], and a name is written out where it is used first;
//! after that its number in the file stands for it. Of a record, four bytes are the length of its body, four
//! the CRC-32C of that, both least significant first; the body is protobuf. The first record that is not
//! whole ends the file.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;

use super::{Group, Key, Look, Machine};

/// How a file begins.
pub const MAGIC: &[u8; 8] = b"RPLLOAD1";

/// The largest body of a record: a minute of as many groups as there may be, all names new, takes less.
pub const BODY_BYTES_MAX: usize = 512 << 10;

const HEAD_BYTES: usize = 8;

#[derive(Clone, PartialEq, Message)]
struct Record {
    /// Names that come for the first time in this file. They get the next numbers.
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
    #[prost(sint64, tag = "2")]
    at_s: i64,
    #[prost(uint32, tag = "3")]
    looks: u32,
    #[prost(uint32, tag = "4")]
    cores: u32,
    #[prost(message, repeated, tag = "5")]
    groups: Vec<GroupRecord>,
    #[prost(message, optional, tag = "6")]
    machine: Option<Machine>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct GroupRecord {
    #[prost(uint32, tag = "1")]
    wait: u32,
    #[prost(uint32, tag = "2")]
    statement: u32,
    #[prost(uint32, tag = "3")]
    user: u32,
    #[prost(uint32, tag = "4")]
    application: u32,
    #[prost(uint32, tag = "5")]
    host: u32,
    #[prost(uint32, tag = "6")]
    sum: u32,
    #[prost(sfixed64, tag = "7")]
    query_id: i64,
}

/// The names of a file that is written.
#[derive(Debug, Default)]
pub struct Encoder(HashMap<Arc<str>, u32>);

impl Encoder {
    /// An encoder that goes on with a file of these names.
    #[must_use]
    pub fn go_on(names: Vec<Arc<str>>) -> Encoder {
        Encoder(names.into_iter().zip(0..).collect())
    }

    /// The bytes of `look` as the next record.
    #[must_use]
    pub fn encode(&mut self, look: &Look) -> Vec<u8> {
        let mut names = Vec::new();
        let mut number = |name: &Arc<str>| {
            let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
            *self.0.entry(name.clone()).or_insert_with(|| {
                names.push(name.to_string());
                next
            })
        };
        let groups = look.groups.iter().map(|Group { key, sum }| GroupRecord {
            wait: number(&key.wait),
            statement: number(&key.statement),
            user: number(&key.user),
            application: number(&key.application),
            host: number(&key.host),
            sum: *sum,
            query_id: key.query_id,
        });
        let groups = groups.collect();
        let Look { at_s, looks, cores, machine, .. } = look;
        let body = Record { names, at_s: *at_s, looks: *looks, cores: *cores, groups, machine: *machine }
            .encode_to_vec();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        bytes
    }
}

/// What a file held.
#[derive(Debug, Default)]
pub struct Read {
    /// Its names, by number.
    pub names: Vec<Arc<str>>,
    /// How many of its bytes are whole: what follows was torn, or rotted. 0 where it is no such file.
    pub whole_bytes: usize,
}

/// Reads a file's bytes, and hands every look to `take`, in the file's order.
pub fn read(bytes: &[u8], mut take: impl FnMut(Look)) -> Read {
    let mut read = Read::default();
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return read };
    loop {
        read.whole_bytes = bytes.len() - rest.len();
        let Some((look, after)) = next(rest, &mut read.names) else { return read };
        take(look);
        rest = after;
    }
}

/// The next record and what follows it; none where it is not whole.
fn next<'a>(bytes: &'a [u8], names: &mut Vec<Arc<str>>) -> Option<(Look, &'a [u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    // No record is empty; where a crash left zeroes there is none.
    if length == 0 || length > BODY_BYTES_MAX || length > rest.len() {
        return None;
    }
    let (body, rest) = rest.split_at(length);
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let Record { names: new, at_s, looks, cores, groups, machine } = Record::decode(body).ok()?;
    names.extend(new.into_iter().map(Arc::from));
    let name = |number: u32| names.get(usize::try_from(number).ok()?).cloned();
    let group = |group: &GroupRecord| {
        let key = Key {
            wait: name(group.wait)?,
            query_id: group.query_id,
            statement: name(group.statement)?,
            user: name(group.user)?,
            application: name(group.application)?,
            host: name(group.host)?,
        };
        Some(Group { key, sum: group.sum })
    };
    let groups = groups.iter().map(group).collect::<Option<Vec<Group>>>()?;
    Some((Look { at_s, looks, cores, groups, machine }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tests::key;
    use proptest::prelude::*;

    fn look(at_s: i64, statements: &[&str]) -> Look {
        let group = |statement: &&str| Group { key: key("IO:DataFileRead", statement), sum: 3 };
        let machine = Some(Machine { cpu_user: 7, ..Machine::default() });
        Look { at_s, looks: 1, cores: 4, groups: statements.iter().map(group).collect(), machine }
    }

    fn written(looks: &[Look]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        let records = looks.iter().flat_map(|look| encoder.encode(look));
        MAGIC.iter().copied().chain(records).collect()
    }

    fn looks(bytes: &[u8]) -> (Vec<Look>, Read) {
        let mut looks = Vec::new();
        let read = read(bytes, |look| looks.push(look));
        (looks, read)
    }

    #[test]
    fn what_is_written_is_read_back_and_a_name_is_there_once() {
        let all = [look(-5, &[]), look(1, &["SELECT ?"]), look(2, &["SELECT ?", "UPDATE t"])];
        let bytes = written(&all);
        let (back, read) = looks(&bytes);
        assert_eq!((back.as_slice(), read.whole_bytes), (all.as_slice(), bytes.len()));
        assert_eq!(bytes.windows(8).filter(|window| window == b"SELECT ?").count(), 1);
        // Whoever goes on with a file uses its names.
        let more = Encoder::go_on(read.names).encode(&all[1]);
        let again = [bytes, more].concat();
        assert_eq!(looks(&again).0[3], all[1]);
        assert_eq!(again.windows(8).filter(|window| window == b"SELECT ?").count(), 1);
    }

    #[test]
    fn a_torn_tail_costs_what_was_torn_wherever_that_is() {
        let all = [look(1, &["SELECT ?"]), look(2, &["UPDATE t"]), look(3, &["DELETE"])];
        let bytes = written(&all);
        let mut seen = 0;
        for cut in 0..bytes.len() {
            let (back, read) = looks(&bytes[..cut]);
            assert!(back.len() >= seen && back == all[..back.len()], "{cut}");
            assert!(read.whole_bytes <= cut);
            seen = back.len();
        }
        assert_eq!(seen, 2);
        let zeroes = [bytes.clone(), vec![0; 100]].concat();
        assert_eq!(looks(&zeroes).1.whole_bytes, bytes.len(), "what a crash left of a longer file");
        let other = [b"RPLLOAD2".as_slice(), &bytes[8..]].concat();
        assert_eq!(looks(&other).1.whole_bytes, 0, "another format");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            looks(&content);
            // With a right checksum as well.
            let length = u32::try_from(content.len()).unwrap().to_le_bytes();
            let record = [&length, &crc32c::crc32c(&content).to_le_bytes(), content.as_slice()].concat();
            looks(&[MAGIC.as_slice(), &record].concat());
        }

        #[test]
        fn what_was_changed_is_left_out(at in 0..400_usize, byte: u8) {
            let all = [look(1, &["SELECT ?"]), look(2, &["UPDATE t"]), look(3, &["DELETE"])];
            let mut bytes = written(&all);
            let at = at % bytes.len();
            bytes[at] = byte;
            let (back, _) = looks(&bytes);
            prop_assert_eq!(&back[..], &all[..back.len()]);
        }
    }
}
