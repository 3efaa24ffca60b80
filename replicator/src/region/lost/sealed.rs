//! WAL segments that are kept sealed.
//!
//! | bytes | |
//! |---|---|
//! | 0-7 | `RPLLOST` and the format's version, 1 |
//! | 8-15 | the id of the region's key, little-endian |
//! | 16-31 | drawn at random for this file: its own key is derived with it |
//! | 32- | the segment in parts of 1 MiB, each followed by a tag of 16 bytes |

use std::io::Write;
use std::path::{Path, PathBuf};

use runtime::private;
use volume::seal::{FileSealer, KeyId, Keys, RegionKey};

use super::{LostError, io};

const MAGIC: &[u8; 8] = b"RPLLOST\x01";

const HEADER_BYTES: usize = 32;

/// The bytes of a part before it is sealed.
const PART_BYTES: usize = 1 << 20;

const TAG_BYTES: usize = 16;

fn wrong(path: &Path) -> impl Fn(String) -> LostError + use<> {
    let path = path.display().to_string();
    move |what| LostError::Sealed { path: path.clone(), what }
}

/// What a file is called by its tags: it cannot be put in another's place.
fn name(path: &Path) -> String {
    let names = [path.parent().and_then(Path::file_name), path.file_name()];
    names.map(|name| name.unwrap_or_default().to_string_lossy().into_owned()).join("/")
}

/// Writes a file anew. On disk when this returns.
///
/// # Errors
/// When the disk fails.
pub(super) fn write(path: &Path, bytes: &[u8], key: &RegionKey) -> Result<(), LostError> {
    let salt: [u8; 16] = runtime::random::draw();
    let sealer =
        FileSealer::new(key, salt, &name(path)).ok_or_else(|| wrong(path)("it cannot be sealed".into()))?;
    let mut file = private::create_new(path).map_err(io(path))?;
    let header = [&MAGIC[..], &key.id().0.to_le_bytes(), &salt].concat();
    file.write_all(&header).map_err(io(path))?;
    let count = bytes.len().div_ceil(PART_BYTES).max(1);
    let mut part = Vec::with_capacity(PART_BYTES + TAG_BYTES);
    for (number, clear) in bytes.chunks(PART_BYTES).enumerate() {
        part.clear();
        part.extend_from_slice(clear);
        sealer.seal(number as u64, number + 1 == count, &mut part).map_err(wrong(path))?;
        file.write_all(&part).map_err(io(path))?;
    }
    file.sync_all().map_err(io(path))
}

/// What is sealed in a file.
///
/// # Errors
/// When the key is not among `keys`, or the file is not what was written.
pub fn read(path: &Path, keys: &Keys) -> Result<Vec<u8>, LostError> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let wrong = wrong(path);
    let header = bytes.first_chunk::<HEADER_BYTES>().filter(|header| header.starts_with(MAGIC));
    let header = header.ok_or_else(|| wrong("it is no sealed redo, or of a later version".into()))?;
    let [_, _, _, _, _, _, _, _, k0, k1, k2, k3, k4, k5, k6, k7, salt @ ..] = *header;
    let id = KeyId(u64::from_le_bytes([k0, k1, k2, k3, k4, k5, k6, k7]));
    let key = keys.get(id).ok_or_else(|| wrong(format!("it is sealed with key {id}, which is not here")))?;
    let sealer =
        FileSealer::new(key, salt, &name(path)).ok_or_else(|| wrong("it cannot be opened".into()))?;
    let parts: Vec<&[u8]> = bytes[HEADER_BYTES..].chunks(PART_BYTES + TAG_BYTES).collect();
    let mut clear = Vec::with_capacity(bytes.len());
    for (number, part) in parts.iter().enumerate() {
        let mut part = part.to_vec();
        sealer.open(number as u64, number + 1 == parts.len(), &mut part).map_err(&wrong)?;
        clear.append(&mut part);
    }
    if parts.is_empty() { Err(wrong("it is cut short".into())) } else { Ok(clear) }
}

/// Opens all that is kept in `directory` into another one, for programs that read WAL segments.
///
/// # Errors
/// As [`read`], or when it cannot be written there.
pub fn open_into(directory: &Path, into: &Path, keys: &Keys) -> Result<(), LostError> {
    let entries = std::fs::read_dir(directory).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    let files: Vec<PathBuf> = entries.map_err(io(directory))?;
    for path in files.iter().filter(|path| path.extension().is_none()) {
        let clear = into.join(path.file_name().unwrap_or_default());
        let mut file = private::create_new(&clear).map_err(io(&clear))?;
        file.write_all(&read(path, keys)?).map_err(io(&clear))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn what_is_kept_shows_nothing_and_is_read_in_its_place_alone() {
        let directory = tempfile::tempdir().unwrap();
        let key = |byte| RegionKey::new([byte; 32].into(), Bytes::new());
        let text = b"a row that a failover cut off";
        let mut bytes = vec![0; 2 * PART_BYTES + 5];
        bytes[PART_BYTES - 10..PART_BYTES - 10 + text.len()].copy_from_slice(text);
        let (path, other) = (directory.path().join("0001"), directory.path().join("0002"));
        write(&path, &bytes, &key(1)).unwrap();
        let written = std::fs::read(&path).unwrap();
        assert!(!written.windows(8).any(|window| text.windows(8).any(|part| part == window)));
        let keys = Keys::new([key(1)], None);
        assert_eq!(read(&path, &keys).unwrap(), bytes);
        assert!(
            read(&path, &Keys::new([key(2)], None))
                .unwrap_err()
                .to_string()
                .contains(&key(1).id().to_string())
        );
        // In another's place, cut where a part ends, with parts that changed places, with a bit changed.
        let cut = HEADER_BYTES + PART_BYTES + TAG_BYTES;
        let mut swapped = written.clone();
        swapped[HEADER_BYTES..HEADER_BYTES + 2 * (PART_BYTES + TAG_BYTES)]
            .rotate_left(PART_BYTES + TAG_BYTES);
        let mut changed = written.clone();
        changed[HEADER_BYTES + 7] ^= 1;
        std::fs::write(&other, &written).unwrap();
        assert!(read(&other, &keys).is_err());
        for bad in [&written[..cut], &written[..HEADER_BYTES], &swapped, &changed] {
            std::fs::write(&path, bad).unwrap();
            assert!(read(&path, &keys).is_err());
        }
    }
}
