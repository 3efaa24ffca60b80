//! What whoever takes a seed has already: the pieces of its files, each known by its SHA-256. A piece that
//! the new backup has at the same place of the same file is not sent. Pure.
//!
//! It does not matter where the pieces are from, or how much has happened since: what a piece holds is
//! compared, and the redo from the new backup's beginning makes the whole consistent, as with any backup.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::{Bytes, BytesMut};
use proto::messages::{SeedFile, SeedInventory};

use super::archive::{Part, Reader, inside};

/// The shortest pieces, bytes: eight pages of PostgreSQL's. Longer ones where there are too many of them …
pub const PIECE_BYTES_MIN: u32 = 64 << 10;

/// … up to this.
pub const PIECE_BYTES_MAX: u32 = 16 << 20;

/// The most pieces of an inventory: 32 MiB of hashes. More of what is there does not count.
pub const PIECES_MAX: usize = 1 << 20;

/// The most that the names of an inventory's files take together, bytes.
const NAMES_BYTES_MAX: usize = 32 << 20;

/// The longest name, bytes: what tar's header holds.
const NAME_BYTES_MAX: usize = 256;

/// The most pieces in one message: half a MiB of hashes.
const MESSAGE_PIECES: usize = 1 << 14;

/// The most files in one message, so that their names fit as well.
const MESSAGE_FILES: usize = 1 << 10;

/// A run of pieces that are the same is told at the latest after so many bytes: whoever looks sees progress.
const RUN_BYTES_MAX: u64 = 64 << 20;

/// A piece's hash.
pub type Hash = [u8; 32];

/// The hash of a piece.
#[must_use]
pub fn hash(piece: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, piece).as_ref());
    hash
}

/// Why a peer's inventory is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what is there already, as the other side says: {0}")]
pub struct InventoryError(&'static str);

/// What is there, of each file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    piece_bytes: u32,
    files: BTreeMap<PathBuf, Held>,
    pieces: usize,
    names_bytes: usize,
}

/// What is there of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    length: u64,
    pieces: Vec<Hash>,
}

impl Default for Inventory {
    fn default() -> Inventory {
        Inventory::new(PIECE_BYTES_MIN)
    }
}

impl Inventory {
    /// Nothing is there; pieces are to be of so many bytes.
    #[must_use]
    pub fn new(piece_bytes: u32) -> Inventory {
        Inventory { piece_bytes, files: BTreeMap::new(), pieces: 0, names_bytes: 0 }
    }

    /// How long pieces are to be where files have so many bytes together.
    #[must_use]
    pub fn piece_bytes_for(total_bytes: u64) -> u32 {
        let mut piece_bytes = PIECE_BYTES_MIN;
        // Half of them for the last pieces of files, which are shorter.
        while piece_bytes < PIECE_BYTES_MAX && total_bytes / u64::from(piece_bytes) > (PIECES_MAX / 2) as u64
        {
            piece_bytes *= 2;
        }
        piece_bytes
    }

    /// How long a piece is, bytes; the last one of a file may be shorter.
    #[must_use]
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The bytes of all pieces.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|held| held.length.min(held.pieces.len() as u64 * self.piece())).sum()
    }

    fn piece(&self) -> u64 {
        self.piece_bytes.into()
    }

    /// The next pieces of a file of this length; of a file that has some, more. False when there is no room.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn add(&mut self, name: &Path, length: u64, pieces: &[Hash]) -> Result<bool, InventoryError> {
        if self.pieces + pieces.len() > PIECES_MAX {
            return Ok(false);
        }
        let most = length.div_ceil(self.piece());
        if let Some(held) = self.files.get_mut(name) {
            if held.length != length || (held.pieces.len() + pieces.len()) as u64 > most {
                return Err(InventoryError("a file is named twice, or has more pieces than its length"));
            }
            held.pieces.extend_from_slice(pieces);
        } else {
            if pieces.len() as u64 > most {
                return Err(InventoryError("a file has more pieces than its length"));
            }
            let name_bytes = name.as_os_str().len();
            if name_bytes > NAME_BYTES_MAX || self.names_bytes + name_bytes > NAMES_BYTES_MAX {
                return Ok(false);
            }
            self.names_bytes += name_bytes;
            self.files.insert(name.to_owned(), Held { length, pieces: pieces.to_vec() });
        }
        self.pieces += pieces.len();
        Ok(true)
    }

    /// The messages that tell it; the last one says so. There is always one.
    pub fn messages(&self) -> impl Iterator<Item = SeedInventory> + '_ {
        let parts = self.files.iter().flat_map(|(name, held)| {
            held.pieces.chunks(MESSAGE_PIECES).map(move |pieces| (name, held.length, pieces))
        });
        let mut parts = parts.peekable();
        let mut over = false;
        std::iter::from_fn(move || {
            if over {
                return None;
            }
            let (mut files, mut count) = (Vec::new(), 0);
            while files.len() < MESSAGE_FILES {
                let fits = |(_, _, pieces): &(_, _, &[Hash])| count + pieces.len() <= MESSAGE_PIECES;
                let Some((name, length, pieces)) = parts.next_if(fits) else { break };
                count += pieces.len();
                // A name that is no text is not added.
                let name = name.to_str().unwrap_or_default().to_owned();
                files.push(SeedFile { name, length, pieces: pieces.concat().into() });
            }
            over = parts.peek().is_none();
            Some(SeedInventory { piece_bytes: self.piece_bytes, files, last: over })
        })
    }

    /// Takes what the next message of a peer tells; true once that was the last one.
    ///
    /// # Errors
    /// When no correct peer can have sent it.
    pub fn take(&mut self, message: &SeedInventory) -> Result<bool, InventoryError> {
        let piece_bytes = message.piece_bytes;
        if !piece_bytes.is_power_of_two() || !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes) {
            return Err(InventoryError("pieces of no such length"));
        }
        if self.files.is_empty() {
            self.piece_bytes = piece_bytes;
        }
        if self.piece_bytes != piece_bytes {
            return Err(InventoryError("pieces of two lengths"));
        }
        if message.files.len() > MESSAGE_FILES {
            return Err(InventoryError("more files in a message than there may be"));
        }
        for file in &message.files {
            let name =
                inside(Path::new(&file.name)).map_err(|_| InventoryError("a name that leads elsewhere"))?;
            if name != Path::new(&file.name) || file.name.is_empty() {
                return Err(InventoryError("a name that leads elsewhere"));
            }
            let (pieces, rest) = file.pieces.as_chunks::<32>();
            if !rest.is_empty() || pieces.is_empty() {
                return Err(InventoryError("a hash of no such length"));
            }
            if !self.add(&name, file.length, pieces)? {
                return Err(InventoryError("more than there may be"));
            }
        }
        Ok(message.last)
    }

    /// The hash of the piece of a file that begins at `at` and is of `length` bytes.
    fn piece_at(&self, name: &Path, at: u64, length: u64) -> Option<&Hash> {
        let held = self.files.get(name)?;
        let there = held.length.saturating_sub(at).min(self.piece());
        let index = usize::try_from(at / self.piece()).ok()?;
        held.pieces.get(index).filter(|_| at.is_multiple_of(self.piece()) && there == length && length > 0)
    }

    /// The digest of the run of whole pieces that covers `[at, at + bytes)` of a file; none when not all of
    /// them are there.
    #[must_use]
    pub fn digest(&self, name: &Path, at: u64, bytes: u64) -> Option<Hash> {
        let (mut context, mut passed) = (Context::new(&SHA256), 0);
        let held = self.files.get(name)?;
        if bytes == 0 {
            return None;
        }
        while passed < bytes {
            let begin = at.checked_add(passed)?;
            let length = held.length.checked_sub(begin)?.min(self.piece());
            context.update(self.piece_at(name, begin, length)?);
            passed += length;
        }
        (passed == bytes).then(|| finished(context))
    }
}

fn finished(context: Context) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// What is to be sent of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaner {
    /// These bytes.
    Data(Bytes),
    /// In place of so many bytes of the present file, the word that they are there. The digest is
    /// [`Inventory::digest`]'s.
    Same {
        /// How many.
        bytes: u64,
        /// Which.
        digest: Hash,
    },
}

/// Leaves out of an archive what the other side has.
pub struct Leaving {
    inventory: Inventory,
    reader: Reader,
    /// The present file: its name, its length, and how much of it was taken.
    file: Option<(PathBuf, u64, u64)>,
    /// The beginning of a piece that may be there.
    piece: BytesMut,
    /// Pieces that are there, in a row: their bytes, and their hashes.
    run: Option<(u64, Context)>,
}

impl std::fmt::Debug for Leaving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaving").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Leaving {
    /// Leaves out what is in `inventory`.
    #[must_use]
    pub fn new(inventory: Inventory) -> Leaving {
        Leaving { inventory, reader: Reader::default(), file: None, piece: BytesMut::new(), run: None }
    }

    /// Takes the archive's next bytes; appends to `out` what is to be sent.
    ///
    /// # Errors
    /// When it is no archive.
    pub fn take(&mut self, mut bytes: Bytes, out: &mut Vec<Leaner>) -> io::Result<()> {
        if self.inventory.is_empty() {
            out.push(Leaner::Data(bytes));
            return Ok(());
        }
        loop {
            let before = bytes.clone();
            let part = self.reader.next(&mut bytes)?;
            let raw = before.slice(..before.len() - bytes.len());
            match part {
                Some(Part::Content(content)) => {
                    self.content(content, out);
                    continue;
                }
                Some(Part::File(name, length)) => {
                    self.send(raw, out);
                    self.file = self.inventory.files.contains_key(&name).then_some((name, length, 0));
                }
                Some(Part::Whole) => {
                    self.end_run(out);
                    self.file = None;
                }
                Some(Part::Directory(_)) => self.send(raw, out),
                None => {
                    self.send(raw, out);
                    return Ok(());
                }
            }
        }
    }

    /// The archive is complete.
    ///
    /// # Errors
    /// When it ends in the middle of something.
    pub fn finish(&self) -> io::Result<()> {
        if self.inventory.is_empty() { Ok(()) } else { self.reader.finish() }
    }

    fn content(&mut self, mut content: Bytes, out: &mut Vec<Leaner>) {
        let Some((name, length, mut at)) = self.file.take() else { return self.send(content, out) };
        let piece_bytes = self.inventory.piece();
        while !content.is_empty() {
            let begin = at - at % piece_bytes;
            let wanted = (length - begin).min(piece_bytes);
            let missing = usize::try_from(begin + wanted - at).unwrap_or(usize::MAX);
            let next = content.split_to(missing.min(content.len()));
            at += next.len() as u64;
            let Some(there) = self.inventory.piece_at(&name, begin, wanted).copied() else {
                // There is nothing to compare it with: nothing is held back.
                self.send(next, out);
                continue;
            };
            self.piece.extend_from_slice(&next);
            if at < begin + wanted {
                continue;
            }
            let piece = self.piece.split().freeze();
            match hash(&piece) == there {
                true => self.leave_out(wanted, &there, out),
                false => self.send(piece, out),
            }
        }
        self.file = Some((name, length, at));
    }

    fn leave_out(&mut self, bytes: u64, there: &Hash, out: &mut Vec<Leaner>) {
        let (run_bytes, context) = self.run.get_or_insert_with(|| (0, Context::new(&SHA256)));
        *run_bytes += bytes;
        context.update(there);
        if *run_bytes >= RUN_BYTES_MAX {
            self.end_run(out);
        }
    }

    fn end_run(&mut self, out: &mut Vec<Leaner>) {
        if let Some((bytes, context)) = self.run.take() {
            out.push(Leaner::Same { bytes, digest: finished(context) });
        }
    }

    fn send(&mut self, bytes: Bytes, out: &mut Vec<Leaner>) {
        self.end_run(out);
        if !bytes.is_empty() {
            out.push(Leaner::Data(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PIECE: usize = PIECE_BYTES_MIN as usize;

    type Files = Vec<(&'static str, Vec<u8>)>;

    fn archive(files: &Files) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, &content[..]).unwrap();
        }
        builder.into_inner().unwrap().into()
    }

    fn inventory(files: &Files) -> Inventory {
        let mut inventory = Inventory::default();
        for (name, content) in files {
            let pieces: Vec<Hash> = content.chunks(PIECE).map(hash).collect();
            assert!(inventory.add(Path::new(name), content.len() as u64, &pieces).unwrap());
        }
        inventory
    }

    /// As the other side has it.
    fn told(inventory: &Inventory) -> Inventory {
        let (mut told, mut over) = (Inventory::default(), false);
        for message in inventory.messages() {
            assert!(!over, "nothing follows the last one");
            over = told.take(&message).unwrap();
        }
        assert!(over);
        told
    }

    /// What comes out where `old` is there and `new` is sent in pieces of any size: the files that the other
    /// side makes of it, and how many bytes of the archive were sent.
    fn sent(old: &Files, new: &Files, step: usize) -> (Vec<(PathBuf, Vec<u8>)>, u64) {
        let there = inventory(old);
        let mut leaving = Leaving::new(told(&there));
        let mut out = Vec::new();
        let whole = archive(new);
        for at in (0..whole.len()).step_by(step) {
            leaving.take(whole.slice(at..whole.len().min(at + step)), &mut out).unwrap();
        }
        leaving.finish().unwrap();
        let (mut reader, mut made, mut bytes) = (Reader::default(), Vec::<(PathBuf, Vec<u8>)>::new(), 0);
        let take = |reader: &mut Reader, made: &mut Vec<(PathBuf, Vec<u8>)>, mut data: Bytes| {
            while let Some(part) = reader.next(&mut data).unwrap() {
                match part {
                    Part::File(name, _) => made.push((name, Vec::new())),
                    Part::Content(content) => made.last_mut().unwrap().1.extend_from_slice(&content),
                    Part::Whole | Part::Directory(_) => {}
                }
            }
        };
        for leaner in out {
            match leaner {
                Leaner::Data(data) => {
                    bytes += data.len() as u64;
                    take(&mut reader, &mut made, data);
                }
                Leaner::Same { bytes, digest } => {
                    let (name, content) = made.last_mut().unwrap();
                    let at = content.len();
                    assert_eq!(there.digest(name, at as u64, bytes), Some(digest));
                    let (_, held) = old.iter().find(|(held, _)| Path::new(held) == name).unwrap();
                    content.extend_from_slice(&held[at..at + usize::try_from(bytes).unwrap()]);
                    reader.skip(bytes).unwrap();
                    take(&mut reader, &mut made, Bytes::new());
                }
            }
        }
        reader.finish().unwrap();
        (made, bytes)
    }

    fn noise(pieces: usize, rest: usize, seed: u8) -> Vec<u8> {
        (0..pieces * PIECE + rest).map(|at| (at / 7 * 31 + at).to_le_bytes()[0] ^ seed).collect()
    }

    #[test]
    fn what_is_there_is_not_sent_and_the_files_are_the_same() {
        let mut changed = noise(4, 100, 1);
        changed[2 * PIECE + 5] ^= 1;
        let old: Files = vec![
            ("base/same", noise(3, 100, 1)),
            ("base/changed", noise(4, 100, 1)),
            ("base/grown", noise(2, 100, 1)),
            ("base/shrunk", noise(3, 0, 1)),
            ("base/gone", noise(1, 0, 1)),
        ];
        let new: Files = vec![
            ("base/same", noise(3, 100, 1)),
            ("base/changed", changed),
            ("base/grown", noise(3, 0, 1)),
            ("base/shrunk", noise(1, 7, 1)),
            ("base/new", noise(1, 1, 3)),
            ("base/empty", Vec::new()),
        ];
        let wanted: Vec<(PathBuf, Vec<u8>)> =
            new.iter().map(|(name, content)| (PathBuf::from(name), content.clone())).collect();
        for step in [977, 8192, 65_536, 1 << 20] {
            let (made, bytes) = sent(&old, &new, step);
            assert!(made == wanted, "in steps of {step}");
            // One piece of `changed`, one of `grown`, the end of `shrunk`, all of `new`.
            let differs = (3 * PIECE + 7 + 1) as u64;
            assert!((differs..differs + 8192).contains(&bytes), "{bytes} of {differs} in steps of {step}");
        }
        let (made, bytes) = sent(&Vec::new(), &new, 8192);
        assert!(made == wanted && bytes == archive(&new).len() as u64, "nothing is there");
    }

    #[test]
    fn a_run_is_known_by_its_pieces_and_nothing_else() {
        let there = inventory(&vec![("f", noise(2, 9, 1)), ("g", noise(3, 0, 1))]);
        let (piece, whole) = (PIECE as u64, 2 * PIECE as u64 + 9);
        let f = |at, bytes| there.digest(Path::new("f"), at, bytes);
        assert!(f(0, whole).is_some() && f(piece, piece).is_some() && f(piece, piece + 9).is_some());
        for (at, bytes) in
            [(0, 0), (0, 9), (1, piece), (piece, whole), (u64::MAX, 1), (0, u64::MAX), (piece, piece + 8)]
        {
            assert_eq!(f(at, bytes), None, "{bytes} at {at}");
        }
        assert_ne!(f(0, piece), f(piece, piece));
        assert_eq!(f(0, piece), there.digest(Path::new("g"), 0, piece), "the same bytes");
        assert_eq!(there.digest(Path::new("h"), 0, piece), None);
    }

    #[test]
    fn an_inventory_is_told_in_bounded_messages() {
        let mut large = Inventory::default();
        let length = (3 * MESSAGE_PIECES as u64) * u64::from(PIECE_BYTES_MIN);
        let pieces = vec![[7; 32]; 3 * MESSAGE_PIECES];
        assert!(large.add(Path::new("base/1/2"), length, &pieces).unwrap());
        for n in 0..3000 {
            assert!(large.add(Path::new(&format!("base/1/{n}_x")), 9, &[[8; 32]]).unwrap());
        }
        assert_eq!(told(&large), large);
        let bytes = |message: &SeedInventory| {
            let mut frame = BytesMut::new();
            proto::frame::encode(message, &mut frame);
            frame.len()
        };
        let longest = large.messages().map(|message| bytes(&message)).max().unwrap();
        assert!(longest <= proto::messages::MAX_STREAM_MESSAGE_BYTES, "{longest}");
        assert_eq!(told(&Inventory::default()), Inventory::default());
    }

    #[test]
    fn pieces_grow_where_there_are_too_many() {
        for (gib, kib) in [(0, 64), (32, 64), (64, 128), (1 << 10, 2048), (1 << 20, 16 << 10)] {
            assert_eq!(Inventory::piece_bytes_for(gib << 30), kib << 10, "{gib} GiB");
        }
    }

    #[test]
    fn what_no_correct_peer_says_is_refused() {
        let file = |name: &str, length, hashes: usize| SeedFile {
            name: name.into(),
            length,
            pieces: vec![1; hashes].into(),
        };
        let message = |piece_bytes, files: Vec<SeedFile>| SeedInventory { piece_bytes, files, last: false };
        let min = PIECE_BYTES_MIN;
        let take = |messages: &[SeedInventory]| {
            let mut inventory = Inventory::default();
            messages.iter().try_for_each(|message| inventory.take(message).map(drop))
        };
        assert_eq!(take(&[message(min, vec![file("a", 1, 32)])]), Ok(()));
        for (what, messages) in [
            ("short pieces", vec![message(512, vec![])]),
            ("long pieces", vec![message(PIECE_BYTES_MAX * 2, vec![])]),
            ("odd pieces", vec![message(min + 1, vec![])]),
            ("two lengths", vec![message(min, vec![file("a", 1, 32)]), message(min * 2, vec![])]),
            ("up", vec![message(min, vec![file("../a", 1, 32)])]),
            ("absolute", vec![message(min, vec![file("/a", 1, 32)])]),
            ("no name", vec![message(min, vec![file("", 1, 32)])]),
            ("a long name", vec![message(min, vec![file(&"a".repeat(300), 1, 32)])]),
            ("no hash", vec![message(min, vec![file("a", 1, 0)])]),
            ("half a hash", vec![message(min, vec![file("a", 1, 48)])]),
            ("beyond its length", vec![message(min, vec![file("a", 1, 64)])]),
            ("more later", vec![message(min, vec![file("a", 1, 32)]), message(min, vec![file("a", 1, 32)])]),
            (
                "another length",
                vec![message(min, vec![file("a", 1 << 20, 32)]), message(min, vec![file("a", 2 << 20, 32)])],
            ),
            ("many files", vec![message(min, (0..2000).map(|n| file(&n.to_string(), 1, 32)).collect())]),
        ] {
            assert!(take(&messages).is_err(), "{what}");
        }
        let mut inventory = Inventory::default();
        let full = file("a", u64::MAX, 32 * MESSAGE_PIECES);
        let more = message(min, vec![full]);
        let taken = (0..1000).take_while(|_| inventory.take(&more).is_ok()).count();
        assert_eq!(taken * MESSAGE_PIECES, PIECES_MAX, "bounded");
    }

    proptest! {
        /// Whatever a peer says: it is refused, or it stays in bounds.
        #[test]
        fn any_message_is_taken_or_refused(
            files in proptest::collection::vec(("[a-c./]{0,5}", 0_u64..400_000, 0_usize..260), 0..20),
            shift in 14_u32..26,
        ) {
            let files = files.into_iter().map(|(name, length, hashes)| SeedFile { name, length, pieces: vec![0; hashes].into() });
            let message = SeedInventory { piece_bytes: 1 << shift, files: files.collect(), last: true };
            let mut inventory = Inventory::default();
            if inventory.take(&message).is_ok() {
                prop_assert!(inventory.bytes() <= 20 * 400_000);
                prop_assert_eq!(told(&inventory), inventory);
            }
        }
    }
}
