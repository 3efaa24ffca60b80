//! The tar archive of a base backup: only directories and plain files with names that stay inside. Pure:
//! bytes go in as they come, in pieces of any size, and parts of the archive come out.
//!
//! Names are read from the headers alone, as PostgreSQL writes them. Extensions of tar that name a file in a
//! body of any length, or stand for another file, are refused.

use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::{Buf, Bytes};

/// The unit of an archive: a header, and what contents are filled up to, bytes.
const BLOCK: usize = 512;

/// Where a header has its checksum.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// No file is larger, bytes.
const FILE_BYTES_MAX: u64 = 1 << 60;

/// What an archive holds next.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// A directory; its name is relative and has nothing but plain components, or is empty for the root.
    Directory(PathBuf),
    /// A file begins: its name, which is never empty, and its length in bytes.
    File(PathBuf, u64),
    /// The next bytes of the file.
    Content(Bytes),
    /// The file is whole.
    Whole,
}

/// Reads an archive. Memory is bounded whatever comes.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a header.
    header: Vec<u8>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Header,
    /// In a file, with so many bytes to come, and then so many of filling.
    Content(u64, usize),
    Filling(usize),
    /// What follows the archive's end is passed over.
    Over,
}

impl Reader {
    /// Takes the next part out of `bytes`; none when all of them were taken.
    ///
    /// # Errors
    /// When it is no such archive.
    pub fn next(&mut self, bytes: &mut Bytes) -> io::Result<Option<Part>> {
        loop {
            match self.state {
                State::Content(0, filling) => {
                    self.state = State::Filling(filling);
                    return Ok(Some(Part::Whole));
                }
                _ if bytes.is_empty() => return Ok(None),
                State::Content(left, filling) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    self.state = State::Content(left - count as u64, filling);
                    return Ok(Some(Part::Content(bytes.split_to(count))));
                }
                State::Filling(0) => self.state = State::Header,
                State::Filling(left) => {
                    let count = left.min(bytes.len());
                    bytes.advance(count);
                    self.state = State::Filling(left - count);
                }
                State::Over => bytes.clear(),
                State::Header => {
                    let count = (BLOCK - self.header.len()).min(bytes.len());
                    self.header.extend_from_slice(&bytes.split_to(count));
                    if self.header.len() == BLOCK {
                        let header = std::mem::take(&mut self.header);
                        if let Some(part) = self.begin(&header)? {
                            return Ok(Some(part));
                        }
                    }
                }
            }
        }
    }

    /// How much of the present file is still to come, bytes; zero outside of files.
    #[must_use]
    pub fn left(&self) -> u64 {
        if let State::Content(left, _) = self.state { left } else { 0 }
    }

    /// So many bytes of the present file come from elsewhere, and not through here.
    ///
    /// # Errors
    /// When the present file has not so many left.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self.state {
            State::Content(left, filling) if bytes <= left => {
                self.state = State::Content(left - bytes, filling);
                Ok(())
            }
            _ => Err(io::Error::other("the archive has no file there with so much left")),
        }
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// When the archive ends in the middle of something.
    pub fn finish(&self) -> io::Result<()> {
        let ends = match self.state {
            State::Header => self.header.is_empty(),
            State::Filling(left) => left == 0,
            State::Content(..) => false,
            State::Over => true,
        };
        if ends { Ok(()) } else { Err(io::Error::other("the archive ends in the middle of a file")) }
    }

    /// What begins with a header; none at the archive's end.
    fn begin(&mut self, bytes: &[u8]) -> io::Result<Option<Part>> {
        if bytes.iter().all(|byte| *byte == 0) {
            self.state = State::Over;
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(bytes);
        let summed = |(at, byte): (usize, &u8)| u32::from(if CHECKSUM.contains(&at) { b' ' } else { *byte });
        if header.cksum()? != bytes.iter().enumerate().map(summed).sum::<u32>() {
            return Err(io::Error::other("the archive is damaged: a header's checksum is wrong"));
        }
        let name = inside(&header.path()?)?;
        match header.entry_type() {
            // Its size says nothing.
            tar::EntryType::Directory => Ok(Some(Part::Directory(name))),
            tar::EntryType::Regular if name != Path::new("") => {
                let length = header.entry_size()?;
                if length > FILE_BYTES_MAX {
                    return Err(io::Error::other(format!("the archive holds {} bytes at once", length)));
                }
                let over = usize::try_from(length % BLOCK as u64).unwrap_or(0);
                self.state = State::Content(length, (BLOCK - over) % BLOCK);
                Ok(Some(Part::File(name, length)))
            }
            other => Err(io::Error::other(format!("the archive holds {} as a {other:?}", name.display()))),
        }
    }
}

/// The name without what says nothing; empty for the root.
pub(crate) fn inside(name: &Path) -> io::Result<PathBuf> {
    let outside = || io::Error::other(format!("the archive holds {}, which lies outside", name.display()));
    let components = name.components().filter(|component| *component != Component::CurDir);
    components.map(|part| matches!(part, Component::Normal(_)).then_some(part).ok_or_else(outside)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_mode(0o600);
        builder.append_data(&mut header.clone(), "base/1/1259", &b"hello"[..]).unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, "./global", io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    /// The names that an archive holds, with how much of each there was; whether it was read to its end.
    fn names(bytes: &[u8]) -> (Vec<(PathBuf, u64)>, bool) {
        names_in_pieces(bytes, bytes.len().max(1))
    }

    fn names_in_pieces(bytes: &[u8], piece: usize) -> (Vec<(PathBuf, u64)>, bool) {
        let (mut reader, mut found) = (Reader::default(), Vec::<(PathBuf, u64)>::new());
        let mut read = || -> io::Result<()> {
            for piece in bytes.chunks(piece) {
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(part) = reader.next(&mut piece)? {
                    match part {
                        Part::Directory(name) | Part::File(name, _) => found.push((name, 0)),
                        Part::Content(content) => found.last_mut().unwrap().1 += content.len() as u64,
                        Part::Whole => {}
                    }
                }
            }
            reader.finish()
        };
        let read = read().is_ok();
        (found, read)
    }

    #[test]
    fn files_and_directories_are_found() {
        let wanted = vec![(PathBuf::from("base/1/1259"), 5), (PathBuf::from("global"), 0)];
        for piece in [1, 7, 511, 512, 513, 10_000] {
            assert_eq!(names_in_pieces(&archive(), piece), (wanted.clone(), true), "in pieces of {piece}");
        }
        assert!(!names(&archive()[..516]).1, "it ends in a file");
        assert!(!names(&archive()[..100]).1, "it ends in a header");
    }

    #[test]
    fn what_comes_from_elsewhere_is_passed_over() {
        let (mut reader, mut bytes) = (Reader::default(), Bytes::from(archive()));
        assert_eq!(reader.next(&mut bytes).unwrap(), Some(Part::File("base/1/1259".into(), 5)));
        assert!(reader.skip(6).is_err());
        reader.skip(3).unwrap();
        assert_eq!(reader.left(), 2);
        bytes.advance(3);
        assert_eq!(reader.next(&mut bytes).unwrap(), Some(Part::Content(Bytes::from_static(b"lo"))));
        assert_eq!(reader.next(&mut bytes).unwrap(), Some(Part::Whole));
        assert!(reader.skip(1).is_err(), "it is in no file");
        assert_eq!(reader.next(&mut bytes).unwrap(), Some(Part::Directory("global".into())));
    }

    #[test]
    fn a_name_in_a_body_of_any_length_is_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "x".repeat(300), &b"y"[..]).unwrap();
        assert_eq!(names(&builder.into_inner().unwrap()), (Vec::new(), false));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            names(&bytes);
        }

        /// Whatever is changed in an archive whose checksums are right again: no name leads outside, and no
        /// more comes out than went in.
        #[test]
        fn nothing_lies_outside(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12)) {
            let mut bytes = archive();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for block in bytes.chunks_exact_mut(512) {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let (found, _) = names(&bytes);
            for (name, length) in &found {
                prop_assert!(name.components().all(|part| matches!(part, Component::Normal(_))), "{name:?}");
                prop_assert!(*length <= bytes.len() as u64);
            }
        }
    }
}
