//! The tar archive of a base backup, as another machine sent it: only directories and plain files with names
//! that stay inside. Pure: what is done with them is the caller's.
//!
//! Names are read from the headers alone, as PostgreSQL writes them. Extensions of tar that name a file in a
//! body of any length, or stand for another file, are refused.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// What an archive holds next.
pub enum Entry<'a> {
    /// A directory.
    Directory,
    /// A file, and its content.
    File(&'a mut dyn Read),
}

/// Reads an archive to its end; `put` is given each entry with its name, which is relative and has nothing
/// but plain components. All of `source` is read, also what follows the archive's end. Memory is bounded
/// whatever comes.
///
/// # Errors
/// When the archive is none, holds anything else, or `put` fails.
pub fn read(source: impl Read, mut put: impl FnMut(&Path, Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut archive = tar::Archive::new(source);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let name = inside(&entry.path()?)?;
        match entry.header().entry_type() {
            tar::EntryType::Directory => put(&name, Entry::Directory)?,
            tar::EntryType::Regular => put(&name, Entry::File(&mut entry))?,
            other => {
                return Err(io::Error::other(format!("the archive holds {} as a {other:?}", name.display())));
            }
        }
    }
    // The archive's end may be followed by padding, which the sender must get rid of.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

/// The name without what says nothing; empty for the root.
fn inside(name: &Path) -> io::Result<PathBuf> {
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
        let mut found = Vec::new();
        let read = read(bytes, |name, entry| {
            let length = match entry {
                Entry::Directory => 0,
                Entry::File(content) => io::copy(content, &mut io::sink())?,
            };
            found.push((name.to_owned(), length));
            Ok(())
        });
        (found, read.is_ok())
    }

    #[test]
    fn files_and_directories_are_found() {
        let wanted = vec![(PathBuf::from("base/1/1259"), 5), (PathBuf::from("global"), 0)];
        assert_eq!(names(&archive()), (wanted, true));
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
