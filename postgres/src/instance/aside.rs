//! Makes a data directory anew and puts it in place whole. It is made beside the old one and renamed; where
//! that is a mount point, which nothing can replace, it is made within, and moved up piece by piece.
//!
//! That is not done at once: `global`, with the control file, goes first and comes last, so that a directory
//! which was left in between is none that PostgreSQL, or [`super::Instance::exists`], would take for one.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::account::Account;
use super::{InstanceError, at};
use crate::below::Below;

/// The directory that holds the control file.
const CONTROL: &str = "global";

/// A directory that is to become a data directory.
#[derive(Debug, Clone)]
pub(crate) struct Aside {
    /// Where it is made.
    pub(crate) path: PathBuf,
    data_dir: PathBuf,
    within: bool,
}

impl Aside {
    /// A place, the account's alone, for what shall replace `data_dir`, called by `what` is done there. What
    /// an earlier one left is removed, unless `keeps` it.
    ///
    /// # Errors
    /// When that cannot be removed, or the place cannot be made.
    pub(crate) fn new(
        data_dir: &Path,
        what: &str,
        account: &Account,
        keeps: impl Fn(&Below) -> bool,
    ) -> Result<Aside, InstanceError> {
        let within = is_mount_point(data_dir);
        if within {
            account.make_private(data_dir)?;
        }
        let aside = Aside::at(data_dir, what, within);
        aside.make(account, keeps)?;
        Ok(aside)
    }

    /// The place that an earlier one may have left.
    pub(crate) fn left(data_dir: &Path, what: &str) -> Aside {
        Aside::at(data_dir, what, is_mount_point(data_dir))
    }

    fn at(data_dir: &Path, what: &str, within: bool) -> Aside {
        let path = match within {
            true => data_dir.join(format!(".replicator-{what}")),
            false => data_dir.with_extension(what),
        };
        Aside { path, data_dir: data_dir.to_owned(), within }
    }

    fn make(&self, account: &Account, keeps: impl Fn(&Below) -> bool) -> Result<(), InstanceError> {
        let make = || {
            let (holder, name) = self.holder()?;
            if !holder.directory(name).is_ok_and(|left| keeps(&left)) {
                holder.remove_any(name)?;
            }
            holder.make_below(name, account.owner()).map(drop)
        };
        make().map_err(at(&self.path))
    }

    /// Removes it, if it is there; says whether it was.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(crate) fn remove(&self) -> Result<bool, InstanceError> {
        let remove = || match self.holder() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
            Ok((holder, name)) => {
                let there = holder.exists(name);
                holder.remove_any(name).map(|()| there)
            }
        };
        remove().map_err(at(&self.path))
    }

    /// The directory that it is in, and its name there.
    fn holder(&self) -> io::Result<(Below, &Path)> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let name = self.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((Below::open(directory.unwrap_or(Path::new(".")))?, Path::new(name)))
    }

    /// The place.
    ///
    /// # Errors
    /// When it is not there any more.
    pub(crate) fn open(&self) -> io::Result<Below> {
        let (holder, name) = self.holder()?;
        holder.directory(name)
    }

    /// Replaces the data directory, durably.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn install(self) -> Result<(), InstanceError> {
        let install = if self.within { self.move_up() } else { self.rename() };
        install.map_err(at(&self.data_dir))
    }

    fn rename(&self) -> io::Result<()> {
        let (holder, name) = self.holder()?;
        let data_dir = Path::new(self.data_dir.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        holder.remove_any(data_dir)?;
        holder.rename(name, data_dir)?;
        holder.sync()
    }

    fn move_up(&self) -> io::Result<()> {
        let (data, own) = self.holder()?;
        let control = Path::new(CONTROL);
        data.remove_any(control)?;
        data.sync()?;
        for entry in data.names()?.into_iter().filter(|entry| own != Path::new(&entry.name)) {
            data.remove_any(&entry.name)?;
        }
        for entry in self.open()?.names()?.into_iter().filter(|entry| entry.name != CONTROL) {
            data.rename(&own.join(&entry.name), Path::new(&entry.name))?;
        }
        data.sync()?;
        data.rename(&own.join(control), control)?;
        data.remove_any(own)?;
        data.sync()
    }
}

/// Whether a file system is mounted at `directory`.
fn is_mount_point(directory: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    let above = directory.parent().map(device);
    matches!((device(directory), above), (Ok(own), Some(Ok(above))) if own != above)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory with a control file and a version of `content`.
    fn make(directory: &Path, content: &str) {
        std::fs::create_dir_all(directory.join(CONTROL)).unwrap();
        for file in ["PG_VERSION", "global/pg_control"] {
            std::fs::write(directory.join(file), content).unwrap();
        }
    }

    #[test]
    fn a_directory_is_replaced_whether_or_not_it_can_be_renamed() {
        let account = Account::resolve(None).unwrap();
        for within in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let data_dir = parent.path().join("pgdata");
            make(&data_dir, "old");
            std::fs::write(data_dir.join("left"), "").unwrap();
            std::os::unix::fs::symlink("/nowhere", data_dir.join("link")).unwrap();
            let aside = Aside::at(&data_dir, "seeding", within);
            aside.make(&account, |_| false).unwrap();
            assert_eq!(aside.path.starts_with(&data_dir), within);
            make(&aside.path, "left");
            aside.make(&account, |left| left.exists("PG_VERSION")).unwrap();
            assert!(aside.path.join("PG_VERSION").exists(), "kept");
            aside.make(&account, |left| !left.exists("PG_VERSION")).unwrap();
            assert!(!aside.path.join("PG_VERSION").exists(), "not kept");
            assert!(aside.remove().unwrap() && !aside.remove().unwrap());
            aside.make(&account, |_| false).unwrap();
            make(&aside.path, "new");
            aside.install().unwrap();
            assert_eq!(std::fs::read_to_string(data_dir.join("global/pg_control")).unwrap(), "new");
            let names = Below::open(&data_dir).unwrap().names().unwrap().into_iter();
            let mut names: Vec<_> = names.map(|entry| entry.name).collect();
            names.sort();
            assert_eq!(names, ["PG_VERSION", "global"]);
        }
    }

    #[test]
    fn a_mount_point_is_known() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(tempfile::tempdir().unwrap().path()));
    }
}
