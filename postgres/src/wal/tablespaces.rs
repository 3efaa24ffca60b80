//! Where redo makes a tablespace. Its record names a directory by an absolute path, and a standby that
//! applies it uses that very directory: it ends where there is none, and writes another's files where
//! PostgreSQLs share a machine. So standbys are given such a record without its path, of the same length: a
//! standby then uses what is below `pg_tblspc` already, be it a link, and makes a directory there otherwise.
//!
//! A record is found by the shape of its header, wherever it lies, and proven by its checksum.
//!
//! Source: `xlogrecord.h`, `tablespace.h`, `rmgrlist.h` and `create_tablespace_directories` of PostgreSQL.

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

/// What its record is about begins with its object id, bytes.
const OID_BYTES: usize = 4;

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
    // Also of redo that a peer says lies at the very end of what 64 bits can say.
    let to_record = (8 - begin_lsn.0 % 8) % 8;
    let first = usize::try_from(to_record).unwrap_or(usize::MAX);
    let places = (first..redo.len()).step_by(8);
    places
        .filter(|at| has_the_shape(begin_lsn, redo, *at))
        .filter_map(|at| read(begin_lsn, redo, at))
        .collect()
}

/// The redo that begins at `begin_lsn`, with no path in the records that make tablespaces; none where nothing
/// is to be taken out. It is as long, and each record has the checksum of what it holds.
#[must_use]
pub fn without_paths(begin_lsn: Lsn, redo: &[u8]) -> Option<Vec<u8>> {
    let made: Vec<Created> =
        created(begin_lsn, redo).into_iter().filter(|created| !created.path.is_empty()).collect();
    if made.is_empty() {
        return None;
    }
    let mut given = redo.to_vec();
    for Created { lsn, .. } in made {
        // It was read just now.
        let at = usize::try_from(lsn - begin_lsn).ok()?;
        let length = usize::try_from(u32::from_le_bytes(*redo.get(at..)?.first_chunk()?)).ok()?;
        let places = places(begin_lsn, redo, at, length)?;
        let mut record: Vec<u8> = places.iter().map(|at| redo[*at]).collect();
        let path_at = length - data(&record[HEADER_BYTES..])?.len() + OID_BYTES;
        record[path_at..].fill(0);
        let checksum = checksum(&record).to_le_bytes();
        record[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum);
        places.iter().zip(record).for_each(|(at, byte)| given[*at] = byte);
    }
    Some(given)
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
    if u32::from_le_bytes(*record[CHECKSUM_AT..].first_chunk()?) != checksum(&record) {
        return None;
    }
    let data = data(&record[HEADER_BYTES..])?;
    let oid = u32::from_le_bytes(*data.first_chunk()?);
    let path = data[OID_BYTES..].split(|byte| *byte == 0).next()?;
    Some(Created { lsn: begin_lsn + at as u64, oid, path: String::from_utf8_lossy(path).into_owned() })
}

/// The checksum of a whole record: of what follows its header, and then of that up to where it lies.
fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[HEADER_BYTES..]), &record[..CHECKSUM_AT])
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
fn across_pages(begin_lsn: Lsn, redo: &[u8], at: usize, length: usize) -> Option<Vec<u8>> {
    Some(places(begin_lsn, redo, at, length)?.into_iter().map(|at| redo[at]).collect())
}

/// Where these bytes lie.
fn places(begin_lsn: Lsn, redo: &[u8], mut at: usize, length: usize) -> Option<Vec<usize>> {
    let mut places = Vec::with_capacity(length);
    while places.len() < length {
        let into_page = (begin_lsn + at as u64).0 % PAGE_BYTES;
        if into_page == 0 {
            let info = u16::from_le_bytes(*redo.get(at + 2..)?.first_chunk()?);
            at += if info & LONG_HEADER == 0 { 24 } else { 40 };
            continue;
        }
        let on_this_page = usize::try_from(PAGE_BYTES - into_page).unwrap_or(usize::MAX);
        let now = on_this_page.min(length - places.len());
        if at + now > redo.len() {
            return None;
        }
        places.extend(at..at + now);
        at += now;
    }
    Some(places)
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

    #[test]
    fn redo_at_the_very_end_of_what_can_be_said_is_read() {
        for before in 0..40 {
            let (begin_lsn, redo) = (Lsn(u64::MAX - before), vec![5; usize::try_from(before).unwrap()]);
            assert_eq!((created(begin_lsn, &redo), without_paths(begin_lsn, &redo)), (vec![], None));
        }
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
            let lsn = Lsn(begin + at as u64);
            let made = |path: String| [Created { lsn, oid: 7, path }];
            prop_assert_eq!(created(Lsn(begin), &redo), made(path));
            // Without its path it is as long, and right; what is around it stays, and nothing else is to go.
            let given = without_paths(Lsn(begin), &redo).unwrap();
            prop_assert_eq!(created(Lsn(begin), &given), made(String::new()));
            prop_assert_eq!(without_paths(Lsn(begin), &given), None);
            let kept = redo.iter().zip(&given).filter(|(before, after)| before != after).count();
            prop_assert!(redo.len() == given.len() && kept <= length + 1 + 4);
        }

        #[test]
        fn any_bytes_are_read_without_fear(begin in any::<u32>(), redo in proptest::collection::vec(prop_oneof![Just(0_u8), Just(5_u8), any::<u8>()], 0..3000)) {
            let _ = (created(Lsn(begin.into()), &redo), without_paths(Lsn(begin.into()), &redo));
        }
    }
}
