//! What an interrupted seed leaves beside the data directory and in the places of tablespaces, and what older
//! data serve as the same: the next seed begins with that. Nothing in it is trusted: it is read, and its
//! pieces are compared.

use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use proto::SystemId;

use super::pieces::{Inventory, hash};
use super::seed::To;
use crate::below::{Below, Owner};
use crate::instance::account::Account;
use crate::instance::aside::Aside;
use crate::instance::{InstanceError, at};
use crate::tablespaces::{LINKS, Place, is_of_postgresql, link_of};

/// What is done beside the data directory.
pub(super) const SEEDING: &str = "seeding";

/// What a seed is unpacked into in the place of a tablespace.
pub(super) const SEEDING_PLACE: &str = "replicator.seeding";

/// The file beside a seed's that says of which database it is.
pub(super) const NOTE: &str = "replicator.seed";

/// What the note's first line begins with; PostgreSQL's system identifier follows.
const NOTE_BEGINS: &str = "replicator seed 1, of the database with system identifier ";

/// What each further line begins with, which tells the place of a tablespace: its path follows.
const NOTE_PLACE: &str = "in ";

/// Where older data have what a backup has as well, and what is large.
const WORTH: [&str; 5] = ["base", "global", "pg_xact", "pg_multixact", LINKS];

/// PostgreSQL's control file. Its first eight bytes are the system identifier.
const CONTROL: &str = "global/pg_control";

/// So much of a file system is left free when older data are taken over: a twentieth.
const LEFT_FREE: u64 = 20;

/// How deep directories are looked into: PostgreSQL's files lie at most five deep.
const DEPTH_MAX: usize = 8;

/// Removes what an interrupted seed of `data_dir` left, if there is something; says whether there was.
///
/// # Errors
/// When it cannot be removed.
pub fn drop_remains(data_dir: &Path, account: &Account) -> Result<bool, InstanceError> {
    let left = Aside::left(data_dir, SEEDING);
    if let Ok(main) = left.open() {
        for place in noted(&main) {
            drop_of_place(&place, account.owner()).map_err(at(&place))?;
        }
    }
    left.remove()
}

/// The places with what an interrupted seed left that serves the next one of `system_id` nothing: it does not
/// go there, or is of another database.
pub(super) fn left_in_places(data_dir: &Path, system_id: SystemId, places: &[(Place, u64)]) -> Vec<PathBuf> {
    let Ok(main) = Aside::left(data_dir, SEEDING).open() else { return Vec::new() };
    let goes_on = are_of(&main, system_id);
    let serves = |path: &Path| goes_on && places.iter().any(|(place, _)| place.path == path);
    noted(&main).into_iter().filter(|path| !serves(path)).collect()
}

/// Removes what an interrupted seed left in places.
pub(super) fn drop_in_places(places: &[PathBuf], owner: Owner) {
    for place in places {
        if let Err(e) = drop_of_place(place, owner) {
            tracing::warn!("{}: what an interrupted seed left stays there: {e}", place.display());
        }
    }
}

/// Removes what an interrupted seed left in a place. The account could by itself: it owns the place, and may
/// have written the note.
fn drop_of_place(place: &Path, owner: Owner) -> io::Result<()> {
    match Below::open_owned(place, owner) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        place => place?.remove_any(SEEDING_PLACE),
    }
}

/// Whether an interrupted seed of `data_dir` left something, and whether a file system that it lies on is
/// nearly full: less than a twentieth is free.
#[must_use]
pub fn remains(data_dir: &Path) -> Option<bool> {
    let left = Aside::left(data_dir, SEEDING).open().ok()?;
    let is_full = |below: &Below| below.room().is_ok_and(|(free, all)| free < all / LEFT_FREE);
    let of_places = || noted(&left).iter().any(|place| Below::open(place).is_ok_and(|place| is_full(&place)));
    Some(is_full(&left) || of_places())
}

/// Whether what is in `left` is a seed's of this database.
pub(super) fn are_of(left: &Below, system_id: SystemId) -> bool {
    left.read_to_string(NOTE).is_ok_and(|note| note.lines().next() == Some(&note_of(system_id)))
}

/// The places of tablespaces that the seed in `left` went to.
fn noted(left: &Below) -> Vec<PathBuf> {
    let note = left.read_to_string(NOTE).unwrap_or_default();
    note.lines().skip(1).filter_map(|line| line.strip_prefix(NOTE_PLACE)).map(PathBuf::from).collect()
}

/// Notes of which database the seed is, and which places it goes to.
pub(super) fn note(to: &Below, system_id: SystemId, places: &[(Place, u64)], owner: Owner) -> io::Result<()> {
    let mut note = note_of(system_id) + "\n";
    note.extend(places.iter().map(|(place, _)| format!("{NOTE_PLACE}{}\n", place.path.display())));
    to.replace(Path::new(NOTE), note.as_bytes(), owner)
}

fn note_of(system_id: SystemId) -> String {
    format!("{NOTE_BEGINS}{}", system_id.0)
}

/// Copies what `old` data of the same database have and `to` has not, as far as there is room. PostgreSQL may
/// run on them: what it changes meanwhile will differ, and is sent.
pub(super) fn take_over(
    old: &Below,
    to: &To,
    system_id: SystemId,
    places: &[(Place, u64)],
    owner: Owner,
) -> io::Result<()> {
    let mut found = [0; 8];
    old.open_file(CONTROL)?.read_exact(&mut found)?;
    if u64::from_ne_bytes(found) != system_id.0 {
        return Ok(());
    }
    for name in WORTH.map(Path::new) {
        if let Ok(directory) = old.directory(name) {
            copy(&directory, &to.main, name, owner, 1)?;
        }
    }
    for (place, _) in places {
        // Of a link that leads elsewhere it is not the same tablespace.
        if !old.read_link(&link_of(place.oid)).is_ok_and(|path| path == place.path) {
            continue;
        }
        let (Some(to), old) = (to.places.get(&place.oid), Below::open_owned(&place.path, owner)?) else {
            continue;
        };
        for entry in old.names()?.into_iter().filter(|entry| is_of_postgresql(&entry.name)) {
            let name = Path::new(&entry.name);
            copy(&old.directory(name)?, to, name, owner, 1)?;
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
pub(super) fn inventory(left: &To) -> io::Result<Inventory> {
    let mut bytes = 0_u64;
    for (_, below) in left.all() {
        bytes = bytes.saturating_add(below.bytes()?);
    }
    let mut inventory = Inventory::new(Inventory::piece_bytes_for(bytes));
    for (name, below) in left.all() {
        if !look(below, &name, &mut inventory, 0)? {
            break;
        }
    }
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
