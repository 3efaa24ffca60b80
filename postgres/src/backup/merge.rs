//! Makes one tar archive of those of a base backup: what is in a tablespace's has `pg_tblspc/<oid>` before
//! its names, and links are left out. Pure.
//!
//! PostgreSQL sends the data directory's archive last, so the end of that one is the end of all.
//!
//! Source: `basebackup.c` and `tar.c` of PostgreSQL, and POSIX's ustar: a name is what stands in `prefix`, a
//! slash, and what stands in `name`. PostgreSQL leaves `prefix` empty.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::PathBuf;

use bytes::{Buf, Bytes};

use crate::tablespaces::link_of;

/// The unit of an archive, bytes.
const BLOCK: usize = 512;

/// Where a header has its prefix.
const PREFIX: std::ops::Range<usize> = 345..500;

/// No file is larger, bytes.
const FILE_BYTES_MAX: u64 = 1 << 60;

/// Archives on their way to become one.
#[derive(Debug, Default)]
pub struct Merge {
    /// What stands before the names of the present archive; nothing for the data directory's.
    prefix: String,
    /// The beginning of a header.
    header: Vec<u8>,
    /// So much follows before the next header, bytes.
    left: u64,
    /// The present archive is over.
    over: bool,
    /// The tablespaces whose archives have begun, by their directories' names.
    tablespaces: HashSet<PathBuf>,
}

impl Merge {
    /// An archive begins: that of the tablespace `of`, or the data directory's. Appends to `out` what comes
    /// out.
    ///
    /// # Errors
    /// When the one before is not over.
    pub fn begin(&mut self, of: Option<u32>, out: &mut VecDeque<Bytes>) -> io::Result<()> {
        if self.left > 0 || !self.header.is_empty() {
            return Err(io::Error::other("an archive of the base backup ends in the middle of a file"));
        }
        self.over = false;
        self.prefix = of.map_or_else(String::new, |oid| link_of(oid).display().to_string());
        if let Some(oid) = of {
            self.tablespaces.insert(link_of(oid));
            out.push_back(directory(&self.prefix));
        }
        Ok(())
    }

    /// Takes the next bytes of the present archive.
    pub fn take(&mut self, mut bytes: Bytes, out: &mut VecDeque<Bytes>) {
        while !bytes.is_empty() {
            if self.over {
                // Zeroes follow. They are of use only at the end of all.
                if self.prefix.is_empty() {
                    out.push_back(bytes);
                }
                return;
            }
            if self.left > 0 {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= count as u64;
                out.push_back(bytes.split_to(count));
                continue;
            }
            let count = (BLOCK - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..count]);
            bytes.advance(count);
            if self.header.len() == BLOCK {
                let header = std::mem::take(&mut self.header);
                out.extend(self.header(header));
            }
        }
    }

    /// A header as it is passed on; none where it is left out.
    fn header(&mut self, mut bytes: Vec<u8>) -> Option<Bytes> {
        if bytes.iter().all(|byte| *byte == 0) {
            self.over = true;
            return self.prefix.is_empty().then(|| bytes.into());
        }
        let header = tar::Header::from_byte_slice(&bytes);
        match header.entry_type() {
            // What makes them knows where they are to lead.
            tar::EntryType::Symlink => return None,
            tar::EntryType::Regular => {
                // One that says no length is refused by whoever reads it.
                let length = header.entry_size().unwrap_or(0).min(FILE_BYTES_MAX);
                self.left = length.next_multiple_of(BLOCK as u64);
            }
            // From 16 on a tablespace in the data directory has its directory in the archive of that, too.
            tar::EntryType::Directory
                if self.prefix.is_empty()
                    && header.path().is_ok_and(|name| self.tablespaces.contains(name.as_ref())) =>
            {
                return None;
            }
            _ => {}
        }
        if !self.prefix.is_empty() {
            let prefix = self.prefix.as_bytes();
            bytes[PREFIX].fill(0);
            bytes[PREFIX][..prefix.len()].copy_from_slice(prefix);
            let mut header = tar::Header::from_byte_slice(&bytes).clone();
            header.set_cksum();
            bytes = header.as_bytes().to_vec();
        }
        Some(bytes.into())
    }
}

/// The header of a directory.
fn directory(name: &str) -> Bytes {
    let mut header = tar::Header::new_ustar();
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o700);
    header.set_size(0);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::backup::archive::{Part, Reader};
    use proptest::prelude::*;

    /// With `top`, the data directory's: it has a link to one tablespace, and another's directory.
    fn archive(files: &[(&str, usize)], top: bool) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        if top {
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header.clone(), "pg_tblspc/7", "/elsewhere").unwrap();
            header.set_entry_type(tar::EntryType::Directory);
            for name in ["pg_tblspc/", "pg_tblspc/4294967295/"] {
                builder.append_data(&mut header.clone(), name, &[][..]).unwrap();
            }
        }
        header.set_entry_type(tar::EntryType::Regular);
        for (name, length) in files {
            header.set_size(*length as u64);
            builder.append_data(&mut header.clone(), name, &vec![b'x'; *length][..]).unwrap();
        }
        builder.into_inner().unwrap().into()
    }

    fn merged(archives: &[(Option<u32>, Bytes)], piece: usize) -> io::Result<Vec<u8>> {
        let (mut merge, mut out) = (Merge::default(), VecDeque::new());
        for (of, archive) in archives {
            merge.begin(*of, &mut out)?;
            for at in (0..archive.len()).step_by(piece) {
                merge.take(archive.slice(at..archive.len().min(at + piece)), &mut out);
            }
        }
        Ok(out.into_iter().flatten().collect())
    }

    fn names(bytes: Vec<u8>) -> Vec<(PathBuf, u64)> {
        let (mut reader, mut bytes, mut names) = (Reader::default(), Bytes::from(bytes), Vec::new());
        while let Some(part) = reader.next(&mut bytes).unwrap() {
            match part {
                Part::Directory(name) => names.push((name, 0)),
                Part::File(name, length) => names.push((name, length)),
                Part::Content(_) | Part::Whole => {}
            }
        }
        reader.finish().unwrap();
        names
    }

    #[test]
    fn a_tablespace_s_files_are_below_its_link_s_name_and_links_are_left_out() {
        let archives = [
            (Some(7), archive(&[("PG_15_1/5/16385", 700), ("PG_15_1/5/empty", 0)], false)),
            (Some(u32::MAX), archive(&[], false)),
            (None, archive(&[("base/1/1259", 512), ("global/pg_control", 9)], true)),
        ];
        let wanted = [
            ("pg_tblspc/7", 0),
            ("pg_tblspc/7/PG_15_1/5/16385", 700),
            ("pg_tblspc/7/PG_15_1/5/empty", 0),
            ("pg_tblspc/4294967295", 0),
            ("pg_tblspc", 0),
            ("base/1/1259", 512),
            ("global/pg_control", 9),
        ];
        let wanted = wanted.map(|(name, length)| (PathBuf::from(name), length));
        for piece in [1, 7, 511, 512, 513, 100_000] {
            assert_eq!(names(merged(&archives, piece).unwrap()), wanted, "in pieces of {piece}");
        }
        let whole = archives[0].1.clone();
        let cut = (Some(7), whole.slice(..600));
        assert!(merged(&[cut, (None, whole)], 512).is_err(), "it ends in a file");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_fear(
            mut bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..3000),
            at in any::<prop::sample::Index>(),
        ) {
            let _ = merged(&[(Some(7), bytes.clone().into())], 700);
            let mut archive = archive(&[("a", 600)], true).to_vec();
            let at = at.index(archive.len());
            archive[at] = bytes.pop().unwrap_or(1);
            let _ = merged(&[(Some(7), archive.into()), (None, bytes.into())], 700);
        }
    }
}
