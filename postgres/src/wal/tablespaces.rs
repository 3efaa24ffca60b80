//! Where redo makes a tablespace. Its record names a directory by an absolute path, and a standby that
//! applies it uses that very directory: it ends where there is none, and writes another's files where
//! PostgreSQLs share a machine.
//!
//! A record is found by the shape of its header, wherever it lies, and proven by its checksum.
//!
//! Source: `xlogrecord.h`, `tablespace.h` and `rmgrlist.h` of PostgreSQL.

use proto::Lsn;

use super::records::PAGE_BYTES;

/// A record's header, bytes: the checksum is the last four.
const HEADER_BYTES: usize = 24;
const CHECKSUM_AT: usize = 20;

/// Where in a header it says what kind of record it is, and two bytes that are zeroes.
const KIND_AT: usize = 16;

/// `xl_rmid`: the resource manager of tablespaces.
const TABLESPACES: u8 = 5;

/// `xl_info`, the upper half: a tablespace is created.
const CREATE: u8 = 0x00;
const KIND_MASK: u8 = 0xF0;

/// The longest such record: a path has at most 1,023 bytes.
const RECORD_BYTES_MAX: usize = 2048;

/// `xlp_info`: the page has the longer header of a segment's first page.
const LONG_HEADER: u16 = 0x0002;

/// Marks of what is in a record.
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_TRANSACTION: u8 = 252;

/// A tablespace that redo makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Its object id, which is its name below `pg_tblspc`.
    pub oid: u32,
    /// Its directory; empty for one that lies in the data directory.
    pub path: String,
}

/// The tablespaces that whole records in `redo` make, which begins at `begin_lsn`.
#[must_use]
pub fn created(begin_lsn: Lsn, redo: &[u8]) -> Vec<Created> {
    let to_record = begin_lsn.0.next_multiple_of(8) - begin_lsn.0;
    let first = usize::try_from(to_record).unwrap_or(usize::MAX);
    let places = (first..redo.len()).step_by(8);
    places
        .filter(|at| has_the_shape(begin_lsn, redo, *at))
        .filter_map(|at| read(begin_lsn, redo, at))
        .collect()
}

fn has_the_shape(begin_lsn: Lsn, redo: &[u8], at: usize) -> bool {
    let is_it = |kind: &[u8]| kind[0] & KIND_MASK == CREATE && kind[1..] == [TABLESPACES, 0, 0];
    let on_this_page = PAGE_BYTES - (begin_lsn + at as u64).0 % PAGE_BYTES;
    match on_this_page >= CHECKSUM_AT as u64 {
        true => redo.get(at + KIND_AT..at + CHECKSUM_AT).is_some_and(is_it),
        false => {
            across_pages(begin_lsn, redo, at, CHECKSUM_AT).is_some_and(|header| is_it(&header[KIND_AT..]))
        }
    }
}

fn read(begin_lsn: Lsn, redo: &[u8], at: usize) -> Option<Created> {
    let length = usize::try_from(u32::from_le_bytes(*redo.get(at..)?.first_chunk()?)).ok()?;
    if !(HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length) {
        return None;
    }
    let record = across_pages(begin_lsn, redo, at, length)?;
    let checksum = u32::from_le_bytes(*record[CHECKSUM_AT..].first_chunk()?);
    let counted = crc32c::crc32c_append(crc32c::crc32c(&record[HEADER_BYTES..]), &record[..CHECKSUM_AT]);
    if checksum != counted {
        return None;
    }
    let data = data(&record[HEADER_BYTES..])?;
    let oid = u32::from_le_bytes(*data.first_chunk()?);
    let path = data[4..].split(|byte| *byte == 0).next()?;
    Some(Created { lsn: begin_lsn + at as u64, oid, path: String::from_utf8_lossy(path).into_owned() })
}

/// What a record is about, of all that is in it; none when it has blocks.
fn data(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (mark, behind) = rest.split_first()?;
        rest = match *mark {
            ORIGIN => behind.get(2..)?,
            TOP_TRANSACTION => behind.get(4..)?,
            DATA_SHORT => {
                let (length, data) = behind.split_first()?;
                return (data.len() == usize::from(*length)).then_some(data);
            }
            DATA_LONG => {
                let (length, data) = behind.split_first_chunk()?;
                return (data.len() as u64 == u64::from(u32::from_le_bytes(*length))).then_some(data);
            }
            _ => return None,
        };
    }
}

/// `length` bytes of records from `at` on, without the headers of pages between them; none when they are not
/// all there.
fn across_pages(begin_lsn: Lsn, redo: &[u8], mut at: usize, length: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let into_page = (begin_lsn + at as u64).0 % PAGE_BYTES;
        if into_page == 0 {
            let info = u16::from_le_bytes(*redo.get(at + 2..)?.first_chunk()?);
            at += if info & LONG_HEADER == 0 { 24 } else { 40 };
            continue;
        }
        let on_this_page = usize::try_from(PAGE_BYTES - into_page).unwrap_or(usize::MAX);
        let now = on_this_page.min(length - bytes.len());
        bytes.extend_from_slice(redo.get(at..at + now)?);
        at += now;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(oid: u32, path: &str, before: &[u8]) -> Vec<u8> {
        let mut about = oid.to_le_bytes().to_vec();
        about.extend(path.as_bytes());
        about.push(0);
        let mut body = before.to_vec();
        match u8::try_from(about.len()) {
            Ok(length) => body.extend([DATA_SHORT, length]),
            Err(_) => {
                body.push(DATA_LONG);
                body.extend(u32::try_from(about.len()).unwrap().to_le_bytes());
            }
        }
        body.extend(about);
        let mut header = u32::try_from(HEADER_BYTES + body.len()).unwrap().to_le_bytes().to_vec();
        header.extend([9; 4]);
        header.extend(64_u64.to_le_bytes());
        header.extend([CREATE, TABLESPACES, 0, 0]);
        header.extend(crc32c::crc32c_append(crc32c::crc32c(&body), &header).to_le_bytes());
        header.extend(body);
        header
    }

    /// Redo that ends some bytes behind `record`, which begins `at` bytes after `begin`, as it lies on pages.
    fn laid_out(begin: u64, at: usize, record: &[u8]) -> Vec<u8> {
        let mut redo = vec![0; at];
        let mut left = record;
        while !left.is_empty() {
            let lsn = begin + redo.len() as u64;
            if lsn.is_multiple_of(PAGE_BYTES) {
                let long = lsn.is_multiple_of(16 << 20);
                redo.extend(0xD110_u16.to_le_bytes());
                redo.extend(if long { LONG_HEADER } else { 1 }.to_le_bytes());
                redo.resize(redo.len() + if long { 36 } else { 20 }, 0);
                continue;
            }
            let room = usize::try_from(PAGE_BYTES - lsn % PAGE_BYTES).unwrap();
            let (now, later) = left.split_at(room.min(left.len()));
            redo.extend(now);
            left = later;
        }
        redo.resize(redo.len() + 40, 0);
        redo
    }

    #[test]
    fn what_is_in_a_record_besides_is_passed_over() {
        let long = format!("/{}", "x".repeat(900));
        for (before, path) in
            [(&[][..], "/a"), (&[ORIGIN, 1, 2], ""), (&[TOP_TRANSACTION, 1, 2, 3, 4], &long)]
        {
            let redo = laid_out(80, 16, &record(16387, path, before));
            assert_eq!(created(Lsn(80), &redo), [Created { lsn: Lsn(96), oid: 16387, path: path.into() }]);
        }
    }

    #[test]
    fn a_record_that_is_not_right_is_none() {
        let mut redo = laid_out(80, 16, &record(16387, "/a", &[]));
        redo[47] ^= 1;
        assert_eq!(created(Lsn(80), &redo), []);
        // Of another kind: a tablespace is dropped.
        let mut redo = laid_out(80, 16, &record(16387, "/a", &[]));
        redo[32] = 0x10;
        assert_eq!(created(Lsn(80), &redo), []);
    }

    proptest! {
        #[test]
        fn it_is_found_wherever_it_lies(
            page in 2045_u64..2050, into in 3..1020_u64, at in 0..4000_usize, length in 0..600_usize,
        ) {
            let (begin, at) = (page * PAGE_BYTES + into * 8, at * 8);
            // No record begins where a page does, nor within its header.
            let place = (begin + at as u64) % PAGE_BYTES;
            prop_assume!(place >= 40);
            let path = format!("/{}", "p".repeat(length));
            let redo = laid_out(begin, at, &record(7, &path, &[]));
            prop_assert_eq!(created(Lsn(begin), &redo), [Created { lsn: Lsn(begin + at as u64), oid: 7, path }]);
        }

        #[test]
        fn any_bytes_are_read_without_fear(begin in any::<u32>(), redo in proptest::collection::vec(prop_oneof![Just(0_u8), Just(5_u8), any::<u8>()], 0..3000)) {
            let _ = created(Lsn(begin.into()), &redo);
        }
    }
}
