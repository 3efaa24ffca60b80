//! Where an instance's tablespaces lie. Each is a link below `pg_tblspc` that we make ourselves, before the
//! redo or the files that belong there come: a standby is given no path
//! ([`crate::wal::tablespaces::without_paths`]).
//!
//! A tablespace has the place that it has on the writer, where that is nobody else's here: it is made, as
//! PostgreSQL's account, and claimed by a file in it. Otherwise, as where instances share a machine, it is
//! *mapped*: it lies beside the data directory. Its link says which; once made it stays.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::below::{Below, Owner};
use crate::instance::{Instance, InstanceError, at, run};

/// Where the links are, below the data directory.
pub const LINKS: &str = "pg_tblspc";

/// Where mapped tablespaces lie, beside the data directory.
const MAPPED: &str = "tablespaces";

/// The file in a place that says whose it is: which instance's data directory.
const CLAIM: &str = "replicator.place";

/// What the names of PostgreSQL's own directories in a place begin with: the major version follows.
const OF_POSTGRESQL: &[u8] = b"PG_";

/// How long a directory may take to be made.
const MAKE: Duration = Duration::from_secs(5);

/// A tablespace that is a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its object id, which is its name below `pg_tblspc`.
    pub oid: u32,
    /// The directory that it leads to.
    pub path: PathBuf,
}

/// Why a tablespace can have no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The account may not make it.
    #[error(
        "{path} is not there, and cannot be made: {source}; make it: install -d -m 700 -o {account} {path}"
    )]
    Make {
        /// The directory.
        path: String,
        /// Who is to own it.
        account: String,
        /// Why not.
        source: InstanceError,
    },
    /// It cannot be used.
    #[error(transparent)]
    Instance(#[from] InstanceError),
}

impl Instance {
    /// The tablespaces that are links, by their object ids; none where there are no data.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn tablespaces(&self) -> Result<Vec<Place>, InstanceError> {
        let links = self.options().data_dir.join(LINKS);
        places_in(&self.options().data_dir).map_err(at(&links))
    }

    /// The tablespaces that PostgreSQL has files of, which others are to have as well: those that are links,
    /// and the object ids of those that are directories below `pg_tblspc`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn tablespaces_in_use(&self) -> Result<(Vec<Place>, BTreeSet<u32>), InstanceError> {
        let links = self.options().data_dir.join(LINKS);
        let is_used =
            |place: &Place| Below::open(&place.path).and_then(|opened| used(&opened)).unwrap_or(false);
        let places = self.tablespaces()?.into_iter().filter(is_used).collect();
        let names = self.data()?.directory(Path::new(LINKS)).and_then(|links| links.names());
        let directories = names.map_err(at(&links))?.into_iter().filter(|name| name.is_directory);
        let oids = directories.filter_map(|name| name.name.to_str()?.parse().ok());
        Ok((places, oids.collect()))
    }

    /// Where the tablespace `oid` lies, as far as its link is made.
    #[must_use]
    pub fn tablespace(&self, oid: u32) -> Option<PathBuf> {
        let data = Below::open(&self.options().data_dir).ok()?;
        data.read_link(&link_of(oid)).ok().filter(|path| path.is_absolute())
    }

    /// What others are told of a place: its path, or nothing where that is of no use to them.
    #[must_use]
    pub fn told(&self, place: &Place) -> String {
        let own = if place.path.starts_with(self.mapped()) { None } else { place.path.to_str() };
        own.unwrap_or_default().to_owned()
    }

    /// Where mapped tablespaces lie.
    #[must_use]
    pub fn mapped(&self) -> PathBuf {
        self.options().data_dir.with_file_name(MAPPED)
    }

    /// The directory for the tablespace `oid`, which is made where it is not there: that of its link, or the
    /// one that it has on the writer, `told`, or a mapped one. Blocks.
    ///
    /// # Errors
    /// When it cannot be made, or is another account's.
    pub fn place(&self, oid: u32, told: &Path) -> Result<Place, PlaceError> {
        if let Some(path) = self.tablespace(oid) {
            self.make_place(&path)?;
            return Ok(Place { oid, path });
        }
        if told.is_absolute() && self.claim(told)? {
            return Ok(Place { oid, path: told.to_owned() });
        }
        let (mapped, owner) = (self.mapped(), self.options().account.owner());
        let path = mapped.join(oid.to_string());
        let made = Below::make(&mapped, owner).and_then(|mapped| {
            mapped.make_below(Path::new(&oid.to_string()), owner).map(drop)?;
            mapped.sync()
        });
        made.map_err(at(&path))?;
        Ok(Place { oid, path })
    }

    /// Links a tablespace to its place, where there is nothing yet.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn link(&self, place: &Place) -> Result<(), InstanceError> {
        let name = link_of(place.oid);
        let link = || {
            let data = self.data().map_err(io::Error::other)?;
            match data.link(&name, &place.path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
                linked => linked.and_then(|()| data.directory(Path::new(LINKS))?.sync()),
            }
        };
        link().map_err(at(&self.options().data_dir.join(&name)))
    }

    /// Removes a link that no redo has put anything behind; says whether it did.
    ///
    /// # Errors
    /// When it cannot be looked at or removed.
    pub fn unlink_unused(&self, place: &Place) -> Result<bool, InstanceError> {
        let name = link_of(place.oid);
        let unlink = || {
            let data = self.data().map_err(io::Error::other)?;
            let is_used = match Below::open(&place.path) {
                Err(e) if e.kind() == ErrorKind::NotFound => false,
                opened => used(&opened?)?,
            };
            if is_used || data.read_link(&name).ok().as_ref() != Some(&place.path) {
                return Ok(false);
            }
            data.remove_file(&name).map(|()| true)
        };
        unlink().map_err(at(&place.path))
    }

    /// Gives up the claim to a place.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn release(&self, path: &Path) -> Result<(), InstanceError> {
        let release = || {
            let place = match Below::open_owned(path, self.options().account.owner()) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                place => place?,
            };
            match place.read(CLAIM) {
                Ok(claim) if claim == self.claims() => place.remove_file(CLAIM),
                _ => Ok(()),
            }
        };
        release().map_err(at(path))
    }

    /// Removes the mapped places that no link leads to and that are empty: PostgreSQL leaves them when a
    /// tablespace is dropped.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn drop_unused_places(&self) -> Result<Vec<PathBuf>, InstanceError> {
        let (path, owner) = (self.mapped(), self.options().account.owner());
        let linked: BTreeSet<PathBuf> = self.tablespaces()?.into_iter().map(|place| place.path).collect();
        let drop = || {
            let mapped = match Below::open_owned(&path, owner) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                mapped => mapped?,
            };
            let mut dropped = Vec::new();
            for name in mapped.names()?.into_iter().filter(|name| name.is_directory) {
                let place = path.join(&name.name);
                if !linked.contains(&place) && mapped.remove_empty(Path::new(&name.name))? {
                    dropped.push(place);
                }
            }
            Ok(dropped)
        };
        drop().map_err(at(&path))
    }

    /// Claims `path` for this instance; false where another's tablespace is there.
    fn claim(&self, path: &Path) -> Result<bool, PlaceError> {
        self.make_place(path)?;
        self.options().account.check_reach(path).map_err(InstanceError::from)?;
        let owner = self.options().account.owner();
        let claim = || {
            let place = Below::open_owned(path, owner)?;
            if used(&place)? {
                return Ok(false);
            }
            let name = Path::new(CLAIM);
            match place.create_new(name, owner) {
                Ok(mut file) => {
                    file.write_all(&self.claims())?;
                    file.sync_all()?;
                    place.sync()?;
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    return Ok(place.read(CLAIM)? == self.claims());
                }
                Err(e) => return Err(e),
            }
            // Somebody may have come meanwhile who claims nothing.
            let is_used = used(&place)?;
            if is_used {
                place.remove_file(CLAIM)?;
            }
            Ok(!is_used)
        };
        Ok(claim().map_err(at(path))?)
    }

    fn claims(&self) -> Vec<u8> {
        claims(&self.options().data_dir)
    }

    /// Makes a directory where there is none, as the account, and those above it that are missing: where a
    /// path of the database's leads is nowhere that only we may write.
    fn make_place(&self, path: &Path) -> Result<(), PlaceError> {
        if path.is_dir() {
            return Ok(());
        }
        let account = &self.options().account;
        let mut make = account.command(Path::new("mkdir"));
        make.args(["-p", "-m", "0700", "--"]).arg(path);
        run("mkdir", &mut make, MAKE).map(drop).map_err(|source| PlaceError::Make {
            path: path.display().to_string(),
            account: account.name.clone(),
            source,
        })
    }
}

/// What the claim of the instance with these data says.
fn claims(data_dir: &Path) -> Vec<u8> {
    [data_dir.as_os_str().as_bytes(), b"\n"].concat()
}

/// Removes what PostgreSQL had in a place of the data in `data_dir` that these have no tablespace in any
/// more, and the claim. False where nothing says that it is theirs.
pub(crate) fn drop_content(data_dir: &Path, path: &Path, owner: Owner) -> io::Result<bool> {
    let place = match Below::open_owned(path, owner) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        place => place?,
    };
    let is_mapped = path.parent() == Some(data_dir.with_file_name(MAPPED).as_path());
    if !is_mapped && !place.read(CLAIM).is_ok_and(|claim| claim == claims(data_dir)) {
        return Ok(!used(&place)?);
    }
    for name in place.names()?.into_iter().filter(|name| is_of_postgresql(&name.name)) {
        place.remove_any(&name.name)?;
    }
    place.remove_file(CLAIM)?;
    Ok(true)
}

/// The link of a tablespace, below the data directory.
#[must_use]
pub fn link_of(oid: u32) -> PathBuf {
    Path::new(LINKS).join(oid.to_string())
}

/// The tablespaces of the data in `data_dir` that are links, by their object ids.
///
/// # Errors
/// When they cannot be read.
pub fn places_in(data_dir: &Path) -> io::Result<Vec<Place>> {
    let links = match Below::open(data_dir).and_then(|data| data.directory(Path::new(LINKS))) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        links => links?,
    };
    let mut places = Vec::new();
    for name in links.names()?.into_iter().filter(|name| !name.is_directory && !name.is_file) {
        let oid = name.name.to_str().and_then(|name| name.parse().ok());
        let path = links.read_link(Path::new(&name.name)).ok().filter(|path| path.is_absolute());
        places.extend(oid.zip(path).map(|(oid, path)| Place { oid, path }));
    }
    places.sort();
    Ok(places)
}

/// The tablespaces of the data in `data_dir` whose files are not where their links lead, as when what held
/// them was unmounted. One that the database does not have yet, or any more, has none either.
#[must_use]
pub fn lost_in(data_dir: &Path) -> Vec<Place> {
    let lost = |place: &Place| match Below::open(&place.path).and_then(|below| used(&below)) {
        Ok(used) => !used,
        Err(e) => e.kind() == ErrorKind::NotFound,
    };
    let places = places_in(data_dir).unwrap_or_default().into_iter();
    places.filter(lost).collect()
}

/// Whether PostgreSQL has a tablespace's files in a place.
fn used(place: &Below) -> io::Result<bool> {
    Ok(place.names()?.iter().any(|name| is_of_postgresql(&name.name)))
}

/// Whether this name in a place is one of PostgreSQL's own.
pub(crate) fn is_of_postgresql(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OF_POSTGRESQL)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::installation::Installations;
    use crate::instance::InstanceOptions;
    use crate::instance::account::Account;

    fn instance(directory: &Path, name: &str) -> Instance {
        let account = Account::resolve(Some("nobody")).or_else(|_| Account::resolve(None)).unwrap();
        let data_dir = directory.join(name).join("pgdata");
        std::fs::create_dir_all(data_dir.parent().unwrap()).unwrap();
        Below::make(&data_dir, account.owner())
            .unwrap()
            .make_below(Path::new(LINKS), account.owner())
            .unwrap();
        Instance::new(InstanceOptions {
            installations: Installations::find(None).unwrap(),
            account,
            data_dir,
            socket_dir: directory.join("run"),
            listen: "127.0.0.1:1".parse().unwrap(),
            log_file: directory.join("log"),
            name: name.into(),
            settings: Default::default(),
            hba: Vec::new(),
            ident: Vec::new(),
            authorities: None,
            certificate: None,
        })
    }

    #[test]
    fn one_place_is_one_instance_s_and_others_are_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let [a, b] = ["a", "b"].map(|name| instance(directory.path(), name));
        let owner = a.options().account.owner();
        let disk = directory.path().join("disk");
        Below::make(&disk, owner).unwrap();
        let told = disk.join("fast");
        let place = a.place(7, &told).unwrap();
        assert_eq!(place.path, told, "it is made, and taken");
        // Neither has linked it, nor has PostgreSQL made anything there yet.
        let other = b.place(7, &told).unwrap();
        assert_eq!(other.path, b.mapped().join("7"));
        assert_eq!(a.place(7, &told).unwrap().path, told, "its own still");
        a.link(&place).unwrap();
        b.link(&other).unwrap();
        b.link(&other).unwrap();
        assert_eq!(
            (a.tablespaces().unwrap(), b.tablespaces().unwrap()),
            (vec![place.clone()], vec![other.clone()])
        );
        assert_eq!((a.told(&place), b.told(&other)), (told.display().to_string(), String::new()));
        // A writer claims nothing, and has PostgreSQL's own directory there.
        let writers = disk.join("writers");
        Below::make(&writers, owner).unwrap().make_below(Path::new("PG_15_1"), owner).unwrap();
        assert_eq!(a.place(8, &writers).unwrap().path, a.mapped().join("8"));
        assert!(!writers.join(CLAIM).exists());
        // A link stays what it is, whatever is told.
        assert_eq!(b.place(7, &writers).unwrap(), other);
        // What nobody uses goes, and nothing else.
        std::fs::create_dir(b.mapped().join("7/PG_15_1")).unwrap();
        assert!(!b.unlink_unused(&other).unwrap() && a.unlink_unused(&place).unwrap());
        assert_eq!(a.drop_unused_places().unwrap(), [a.mapped().join("8")]);
        assert_eq!(b.drop_unused_places().unwrap(), Vec::<PathBuf>::new());
        b.release(&told).unwrap();
        assert!(told.join(CLAIM).exists(), "another's claim");
        a.release(&told).unwrap();
        assert_eq!(b.place(9, &told).unwrap().path, told);
    }

    #[test]
    fn a_place_of_another_account_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let instance = instance(directory.path(), "a");
        if !instance.options().account.owner().given {
            eprintln!("SKIPPED: only root runs PostgreSQL as another account");
            return;
        }
        let ours = directory.path().join("ours");
        std::fs::create_dir(&ours).unwrap();
        let link = directory.path().join("link");
        symlink(&ours, &link).unwrap();
        for told in [&ours, &link] {
            let why = instance.place(7, told).unwrap_err().to_string();
            assert!(why.contains("chown"), "{why}");
        }
        assert_eq!(std::fs::read_dir(&ours).unwrap().count(), 0);
        // Nor where the account may make nothing.
        let why = instance.place(7, &ours.join("deep")).unwrap_err().to_string();
        assert!(why.contains("install -d"), "{why}");
        assert!(instance.tablespaces().unwrap().is_empty());
    }

    #[test]
    fn a_tablespace_whose_files_are_gone_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (data_dir, place) = (directory.path().join("pgdata"), directory.path().join("place"));
        for made in [data_dir.join(LINKS), place.join("PG_15_202209061")] {
            std::fs::create_dir_all(made).unwrap();
        }
        symlink(&place, data_dir.join(LINKS).join("16400")).unwrap();
        assert_eq!(lost_in(&data_dir), []);
        // What was mounted there is not any more; and then not even the place is there.
        std::fs::remove_dir(place.join("PG_15_202209061")).unwrap();
        assert_eq!(lost_in(&data_dir), [Place { oid: 16400, path: place.clone() }]);
        std::fs::remove_dir(&place).unwrap();
        assert_eq!(lost_in(&data_dir).len(), 1);
        assert_eq!(lost_in(&directory.path().join("none")), []);
    }
}
