//! Makes a data directory anew and puts it in place whole. It is made beside the old one and renamed; where
//! that is a mount point, which nothing can replace, it is made within, and moved up piece by piece.
//!
//! That is not done at once: `global`, with the control file, goes first and comes last, so that a directory
//! which was left in between is none that PostgreSQL, or [`super::Instance::exists`], would take for one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::account::Account;
use super::{InstanceError, at, remove_tree};

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
    /// an earlier one left is removed.
    ///
    /// # Errors
    /// When that cannot be removed, or the place cannot be made.
    pub(crate) fn new(data_dir: &Path, what: &str, account: &Account) -> Result<Aside, InstanceError> {
        let aside = Aside::of(data_dir, what, is_mount_point(data_dir))?;
        if aside.within {
            account.make_private(data_dir)?;
        }
        account.make_private(&aside.path)?;
        Ok(aside)
    }

    fn of(data_dir: &Path, what: &str, within: bool) -> Result<Aside, InstanceError> {
        let path = match within {
            true => data_dir.join(format!(".replicator-{what}")),
            false => data_dir.with_extension(what),
        };
        remove_tree(&path)?;
        Ok(Aside { path, data_dir: data_dir.to_owned(), within })
    }

    /// Replaces the data directory, durably.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn install(self) -> Result<(), InstanceError> {
        let Aside { path, data_dir, within } = self;
        if within {
            let control = data_dir.join(CONTROL);
            remove_tree(&control)?;
            sync(&data_dir)?;
            for name in names(&data_dir)?.into_iter().filter(|name| data_dir.join(name) != path) {
                remove_any(&data_dir.join(name))?;
            }
            for name in names(&path)?.into_iter().filter(|name| name != CONTROL) {
                std::fs::rename(path.join(&name), data_dir.join(&name)).map_err(at(&data_dir))?;
            }
            sync(&data_dir)?;
            std::fs::rename(path.join(CONTROL), &control).map_err(at(&control))?;
            remove_tree(&path)?;
            return sync(&data_dir);
        }
        remove_tree(&data_dir)?;
        std::fs::rename(&path, &data_dir).map_err(at(&data_dir))?;
        sync(data_dir.parent().unwrap_or(Path::new("/")))
    }
}

/// Whether a file system is mounted at `directory`.
fn is_mount_point(directory: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    let above = directory.parent().map(device);
    matches!((device(directory), above), (Ok(own), Some(Ok(above))) if own != above)
}

fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>, InstanceError> {
    let entries = std::fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    Ok(entries.map_err(at(directory))?.into_iter().map(|entry| entry.file_name()).collect())
}

fn remove_any(path: &Path) -> Result<(), InstanceError> {
    match std::fs::symlink_metadata(path).map_err(at(path))?.is_dir() {
        true => remove_tree(path),
        false => std::fs::remove_file(path).map_err(at(path)),
    }
}

fn sync(directory: &Path) -> Result<(), InstanceError> {
    std::fs::File::open(directory).and_then(|opened| opened.sync_all()).map_err(at(directory))
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
        for within in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let data_dir = parent.path().join("pgdata");
            make(&data_dir, "old");
            std::fs::write(data_dir.join("left"), "").unwrap();
            std::os::unix::fs::symlink("/nowhere", data_dir.join("link")).unwrap();
            let aside = Aside::of(&data_dir, "seeding", within).unwrap();
            assert_eq!(aside.path.starts_with(&data_dir), within);
            make(&aside.path, "new");
            aside.install().unwrap();
            assert_eq!(std::fs::read_to_string(data_dir.join("global/pg_control")).unwrap(), "new");
            let mut names = names(&data_dir).unwrap();
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
