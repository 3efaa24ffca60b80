//! What an interrupted seed leaves beside the data directory, and what older data serve as the same: the next
//! seed begins with that. Nothing in it is trusted: it is read, and its pieces are compared.

use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use proto::SystemId;

use super::pieces::{Inventory, hash};
use crate::below::{Below, Owner};
use crate::instance::InstanceError;
use crate::instance::aside::Aside;

/// What is done beside the data directory.
pub(super) const SEEDING: &str = "seeding";

/// The file beside a seed's that says of which database it is.
pub(super) const NOTE: &str = "replicator.seed";

/// What the note's only line begins with; PostgreSQL's system identifier follows.
const NOTE_BEGINS: &str = "replicator seed 1, of the database with system identifier ";

/// Where older data have what a backup has as well, and what is large.
const WORTH: [&str; 4] = ["base", "global", "pg_xact", "pg_multixact"];

/// PostgreSQL's control file. Its first eight bytes are the system identifier.
const CONTROL: &str = "global/pg_control";

/// So much of a file system is left free when older data are taken over: a twentieth.
const LEFT_FREE: u64 = 20;

/// How deep directories are looked into: PostgreSQL's files lie at most three deep.
const DEPTH_MAX: usize = 8;

/// Removes what an interrupted seed of `data_dir` left, if there is something; says whether there was.
///
/// # Errors
/// When it cannot be removed.
pub fn drop_remains(data_dir: &Path) -> Result<bool, InstanceError> {
    Aside::left(data_dir, SEEDING).remove()
}

/// Whether an interrupted seed of `data_dir` left something, and whether the file system that it lies on is
/// nearly full: less than a twentieth is free.
#[must_use]
pub fn remains(data_dir: &Path) -> Option<bool> {
    let left = Aside::left(data_dir, SEEDING).open().ok()?;
    Some(left.room().is_ok_and(|(free, all)| free < all / LEFT_FREE))
}

/// Whether what is in `left` is a seed's of this database.
pub(super) fn are_of(left: &Below, system_id: SystemId) -> bool {
    left.read_to_string(NOTE).is_ok_and(|note| note == note_of(system_id))
}

/// Notes of which database the seed is.
pub(super) fn note(to: &Below, system_id: SystemId, owner: Owner) -> io::Result<()> {
    to.replace(Path::new(NOTE), note_of(system_id).as_bytes(), owner)
}

fn note_of(system_id: SystemId) -> String {
    format!("{NOTE_BEGINS}{}\n", system_id.0)
}

/// Copies what `old` data of the same database have and `to` has not, as far as there is room. PostgreSQL may
/// run on them: what it changes meanwhile will differ, and is sent.
pub(super) fn take_over(old: &Below, to: &Below, system_id: SystemId, owner: Owner) -> io::Result<()> {
    let mut found = [0; 8];
    old.open_file(CONTROL)?.read_exact(&mut found)?;
    if u64::from_ne_bytes(found) != system_id.0 {
        return Ok(());
    }
    for name in WORTH.map(Path::new) {
        if let Ok(directory) = old.directory(name) {
            copy(&directory, to, name, owner, 1)?;
        }
    }
    Ok(())
}

fn copy(old: &Below, to: &Below, name: &Path, owner: Owner, depth: usize) -> io::Result<()> {
    if to.directory(name).is_err() {
        to.remove_any(name)?;
    }
    to.make_below(name, owner)?;
    for entry in old.names()? {
        let below = name.join(&entry.name);
        if entry.is_directory && depth < DEPTH_MAX {
            if let Ok(directory) = old.directory(Path::new(&entry.name)) {
                copy(&directory, to, &below, owner, depth + 1)?;
            }
        } else if entry.is_file && !to.exists(&below) && below != Path::new(CONTROL) {
            // What is gone by now is not there.
            let Ok(mut from) = old.open_file(&entry.name) else { continue };
            let (free, all) = to.room()?;
            if free.saturating_sub(from.metadata()?.len()) < all / LEFT_FREE {
                return Err(ErrorKind::StorageFull.into());
            }
            io::copy(&mut from, &mut to.create_new(&below, owner)?)?;
        }
    }
    Ok(())
}

/// What there is in `left`.
///
/// # Errors
/// When it cannot be read. A file that cannot is not there.
pub(super) fn inventory(left: &Below) -> io::Result<Inventory> {
    let mut inventory = Inventory::new(Inventory::piece_bytes_for(left.bytes()?));
    look(left, Path::new(""), &mut inventory, 0)?;
    Ok(inventory)
}

/// False once there is no room for more.
fn look(directory: &Below, name: &Path, inventory: &mut Inventory, depth: usize) -> io::Result<bool> {
    for entry in directory.names()? {
        let own = Path::new(&entry.name);
        let below: PathBuf = name.join(own);
        if below.to_str().is_none() || below == Path::new(NOTE) {
            continue;
        }
        if entry.is_directory && depth < DEPTH_MAX {
            if !look(&directory.directory(own)?, &below, inventory, depth + 1)? {
                return Ok(false);
            }
        } else if entry.is_file
            && let Ok(file) = directory.open_file(own)
            && !add(file, &below, inventory)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn add(mut file: std::fs::File, name: &Path, inventory: &mut Inventory) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let (mut left, mut piece) = (length, Vec::new());
    while left > 0 {
        let next = left.min(inventory.piece_bytes().into());
        piece.resize(usize::try_from(next).unwrap_or(usize::MAX), 0);
        // A page that the disk does not give back is sent.
        if file.read_exact(&mut piece).is_err() {
            return Ok(true);
        }
        if !inventory.add(name, length, &[hash(&piece)]).map_err(io::Error::other)? {
            return Ok(false);
        }
        left -= next;
    }
    Ok(true)
}
