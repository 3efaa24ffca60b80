//! Files below a directory that another account may write to: PostgreSQL's data and sockets, while the daemon
//! is root.
//!
//! Who can write there, and so whoever is a superuser of the database, can put a link in the place of any
//! file or directory. So nothing below such a directory is reached by a path that begins elsewhere: the
//! directory is opened once, and what is below it is reached from that descriptor, following no link. What is
//! written is a new file under a name that nothing had; what is given away is what a descriptor leads to.
//! This is the only module that opens, makes, renames, removes or gives away anything there.
//!
//! Source: `openat2(2)`, with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`; where the kernel or its filter
//! does not have it, each directory on the way is opened by itself with `O_NOFOLLOW`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use runtime::private::{DIRECTORY_MODE, FILE_MODE};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid, chownat,
    fchmod, fchown, fstat, mkdirat, open, openat, openat2, readlinkat, renameat, renameat_with, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

/// No file that is read whole is larger, bytes.
const READ_BYTES_MAX: u64 = 16 << 20;

/// What ends the name of a file that is being written.
const NEW: &str = ".replicator-new";

/// Whose what is made becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user id.
    pub user_id: u32,
    /// The group id.
    pub group_id: u32,
    /// It is not this process's own: what is made is given away.
    pub given: bool,
}

/// A directory, held open.
#[derive(Debug)]
pub struct Below {
    directory: OwnedFd,
    path: PathBuf,
}

/// What is in a directory: a name, and whether it is a directory or a plain file; anything else is neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: OsString,
    /// It is a directory.
    pub is_directory: bool,
    /// It is a plain file.
    pub is_file: bool,
}

impl Below {
    /// Opens the directory at `path`. The directory that this is in must be ours, or such that others cannot
    /// replace what is in it: so a link in its place is an operator's, and is followed.
    ///
    /// # Errors
    /// When it cannot be opened, or is no directory.
    pub fn open(path: &Path) -> io::Result<Below> {
        let directory = open(path, DIRECTORY, Mode::empty())?;
        Ok(Below { directory, path: path.to_owned() })
    }

    /// Opens the directory at `path`, wherever links on the way to it lead, if it is the account's: who owns
    /// it could write there by themselves.
    ///
    /// # Errors
    /// When it cannot be opened, is no directory, or belongs to somebody else.
    pub fn open_owned(path: &Path, owner: Owner) -> io::Result<Below> {
        let opened = Below::open(path)?;
        let found = fstat(&opened.directory)?;
        if found.st_uid != owner.user_id {
            return Err(io::Error::other(format!(
                "it belongs to the user id {}, and is to belong to {}, who runs PostgreSQL: chown it",
                found.st_uid, owner.user_id
            )));
        }
        Ok(opened)
    }

    /// Opens the directory at `path`, which is made with mode 0700 for the account alone where there is none.
    /// The directory above must be there.
    ///
    /// # Errors
    /// When it cannot be made or opened, is a link, or belongs to neither the account nor us.
    pub fn make(path: &Path, owner: Owner) -> io::Result<Below> {
        made(mkdirat(CWD, path, Mode::from_raw_mode(DIRECTORY_MODE)))?;
        let directory = open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(no_link)?;
        take(&directory, owner)?;
        Ok(Below { directory, path: path.to_owned() })
    }

    /// The same of a directory below this one.
    ///
    /// # Errors
    /// As [`Below::make`].
    pub fn make_below(&self, name: &Path, owner: Owner) -> io::Result<Below> {
        let (parent, last) = self.parent(name)?;
        made(mkdirat(&parent, last, Mode::from_raw_mode(DIRECTORY_MODE)))?;
        let directory = self.resolve(name, DIRECTORY)?;
        take(&directory, owner)?;
        Ok(Below { directory, path: self.path.join(name) })
    }

    /// Where it was opened; for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory below this one.
    ///
    /// # Errors
    /// When there is none, or a link is on the way.
    pub fn directory(&self, name: &Path) -> io::Result<Below> {
        let directory = self.resolve(name, DIRECTORY)?;
        Ok(Below { directory, path: self.path.join(name) })
    }

    /// Whether something has this name, be it a link that leads nowhere.
    #[must_use]
    pub fn exists(&self, name: impl AsRef<Path>) -> bool {
        self.stat(name.as_ref()).is_ok()
    }

    /// Opens a plain file for reading.
    ///
    /// # Errors
    /// When there is none, a link is on the way, or it is something else or has more than one name: then it
    /// may be a file of ours that is none of PostgreSQL's business.
    pub fn open_file(&self, name: impl AsRef<Path>) -> io::Result<File> {
        // Not blocking: what is opened may be a pipe.
        let file = self.resolve(name.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let found = fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_nlink > 1 {
            return Err(io::Error::other("it is no plain file with one name: not opened"));
        }
        Ok(file.into())
    }

    /// A file's content.
    ///
    /// # Errors
    /// As [`Below::open_file`]; when it is larger than any that is read whole, or cannot be read.
    pub fn read(&self, name: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let (file, mut content) = (self.open_file(name)?, Vec::new());
        file.take(READ_BYTES_MAX + 1).read_to_end(&mut content)?;
        match content.len() as u64 > READ_BYTES_MAX {
            true => Err(io::Error::other("it is larger than any such file is")),
            false => Ok(content),
        }
    }

    /// The same as text.
    ///
    /// # Errors
    /// As [`Below::read`], and when it is no text.
    pub fn read_to_string(&self, name: impl AsRef<Path>) -> io::Result<String> {
        String::from_utf8(self.read(name)?).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
    }

    /// Makes a file of mode 0600 that the account owns, to be written.
    ///
    /// # Errors
    /// When something has the name already, or it cannot be made.
    pub fn create_new(&self, name: &Path, owner: Owner) -> io::Result<File> {
        let (parent, last) = self.parent(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent, last, flags, Mode::from_raw_mode(FILE_MODE))?;
        give(&file, owner)?;
        Ok(file.into())
    }

    /// Opens a plain file that is there, to be written in place; what else has the name is removed first, and
    /// a file of mode 0600 that the account owns is made.
    ///
    /// # Errors
    /// When it can be neither opened nor made.
    pub fn open_or_create(&self, name: &Path, owner: Owner) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = self.resolve(name, flags).and_then(|file| Ok((fstat(&file)?, file)));
        if let Ok((found, file)) = opened
            && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && (found.st_nlink, found.st_uid, found.st_mode & 0o7777) == (1, owner.user_id, FILE_MODE)
        {
            return Ok(file.into());
        }
        // It is not there, or it is nothing that the account made: a link, a pipe, a name of another's file.
        self.remove_any(name)?;
        self.create_new(name, owner)
    }

    /// Makes a link that leads to `target`. It stays ours, as no descriptor leads to a link; whoever may
    /// write in its directory may remove it all the same.
    ///
    /// # Errors
    /// When something has the name already, or it cannot be made.
    pub fn link(&self, name: &Path, target: &Path) -> io::Result<()> {
        let (parent, last) = self.parent(name)?;
        Ok(symlinkat(target, &parent, last)?)
    }

    /// Where a link leads to.
    ///
    /// # Errors
    /// When there is none.
    pub fn read_link(&self, name: &Path) -> io::Result<PathBuf> {
        let (parent, last) = self.parent(name)?;
        let target = readlinkat(&parent, last, Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    /// The file system that the directory is on, as the kernel numbers it.
    ///
    /// # Errors
    /// When the system does not say it.
    pub fn device(&self) -> io::Result<u64> {
        Ok(fstat(&self.directory)?.st_dev)
    }

    /// Removes a directory that is empty; says whether it was.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove_empty(&self, name: &Path) -> io::Result<bool> {
        let (parent, last) = self.parent(name)?;
        match unlinkat(&parent, last, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(false),
            removed => Ok(removed.map(|()| true)?),
        }
    }

    /// Keeps others of ours from working in the directory, until this is dropped. False when one does.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            locked => Ok(locked.map(|()| true)?),
        }
    }

    /// The length of a plain file, bytes.
    ///
    /// # Errors
    /// When there is none.
    pub fn length(&self, name: &Path) -> io::Result<u64> {
        let found = self.stat(name)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => Ok(u64::try_from(found.st_size).unwrap_or(0)),
            _ => Err(io::Error::other("it is no plain file")),
        }
    }

    /// The room that is left on the file system for others than root, and its size, bytes.
    ///
    /// # Errors
    /// When the system does not say it.
    pub fn room(&self) -> io::Result<(u64, u64)> {
        let room = rustix::fs::fstatvfs(&self.directory)?;
        Ok((room.f_bavail.saturating_mul(room.f_frsize), room.f_blocks.saturating_mul(room.f_frsize)))
    }

    /// Replaces a file, which the account owns then; durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace(&self, name: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
        let (parent, last) = self.parent(name)?;
        let mut temporary = last.to_owned();
        temporary.push(NEW);
        let new = name.with_file_name(&temporary);
        self.remove_file(&new)?;
        let mut file = self.create_new(&new, owner)?;
        file.write_all(content)?;
        file.sync_all()?;
        // What somebody has put in its place since is no more than what they could have put in the other's.
        renameat(&parent, &temporary, &parent, last)?;
        File::from(parent).sync_all()
    }

    /// Moves what is at `from` to where nothing is.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_parent, from), (to_parent, to)) = (self.parent(from)?, self.parent(to)?);
        match renameat_with(&from_parent, from, &to_parent, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL) => Ok(renameat(&from_parent, from, &to_parent, to)?),
            renamed => Ok(renamed?),
        }
    }

    /// Removes a file, or a link, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_file(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let removed = self
            .parent(name.as_ref())
            .and_then(|(parent, last)| unlinkat(&parent, last, AtFlags::empty()).map_err(io::Error::from));
        match removed {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Removes what is at `name`, and all below it, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_any(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        match self.stat(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => {
                return self.remove_file(name);
            }
            Ok(_) => {}
        }
        self.directory(name)?.empty()?;
        let (parent, last) = self.parent(name)?;
        match unlinkat(&parent, last, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Removes all that is in the directory.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn empty(&self) -> io::Result<()> {
        self.names()?.into_iter().try_for_each(|entry| self.remove_any(Path::new(&entry.name)))
    }

    /// What is in the directory, in no order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // What is gone by now is nothing.
                FileType::Unknown => statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |found| FileType::from_raw_mode(found.st_mode)),
                kind => kind,
            };
            let (is_directory, is_file) = (kind == FileType::Directory, kind == FileType::RegularFile);
            names.push(Name { name, is_directory, is_file });
        }
        Ok(names)
    }

    /// The bytes of all files in the directory and below.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in self.names()? {
            let name = Path::new(&entry.name);
            // What is gone by now needs no room.
            bytes += match entry.is_directory {
                true => self.directory(name).and_then(|below| below.bytes()).unwrap_or(0),
                false => self.stat(name).map_or(0, |found| u64::try_from(found.st_size).unwrap_or(0)),
            };
        }
        Ok(bytes)
    }

    /// Makes durable which files are in the directory.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    /// Gives a socket that we have just made in the directory to the account.
    ///
    /// # Errors
    /// When what is there is no socket of ours, or the system refuses.
    pub fn give_socket(&self, name: &Path, owner: Owner) -> io::Result<()> {
        let socket = self.resolve(name, OFlags::PATH)?;
        let found = fstat(&socket)?;
        let own = rustix::process::geteuid().as_raw();
        let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
        if !is_socket || found.st_uid != own || found.st_nlink > 1 {
            return Err(io::Error::other("it is not the socket that was made there: not given away"));
        }
        if owner.given {
            let (user, group) = ids(owner);
            chownat(&socket, "", user, group, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// Opens what is below, following no link.
    fn resolve(&self, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        check(name)?;
        let flags = flags | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.directory, name, flags | OFlags::NOFOLLOW, Mode::empty(), how) {
            // Not in the kernel, or held back by a container's filter.
            Err(Errno::NOSYS | Errno::PERM) => self.walk(name, flags),
            opened => opened.map_err(no_link),
        }
    }

    /// The same, one directory after the other.
    fn walk(&self, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        check(name)?;
        let (parent, last) = self.walk_to_parent(name)?;
        openat(&parent, last, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(no_link)
    }

    fn walk_to_parent<'a>(&self, name: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let mut parts = name.iter();
        let last = parts.next_back().ok_or(ErrorKind::InvalidInput)?;
        let mut at = self.directory.try_clone()?;
        for part in parts {
            at = openat(&at, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(no_link)?;
        }
        Ok((at, last))
    }

    /// The directory that `name` is in, and its last part.
    fn parent<'a>(&self, name: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        check(name)?;
        let last = name.file_name().ok_or(ErrorKind::InvalidInput)?;
        match name.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => Ok((self.resolve(parent, DIRECTORY)?, last)),
            None => Ok((self.directory.try_clone()?, last)),
        }
    }

    fn stat(&self, name: &Path) -> io::Result<Stat> {
        let (parent, last) = self.parent(name)?;
        Ok(statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// That it was there already is as good.
fn made(directory: rustix::io::Result<()>) -> io::Result<()> {
    match directory {
        Err(Errno::EXIST) => Ok(()),
        made => Ok(made?),
    }
}

/// Makes a directory that was just made, or was there before, the account's alone.
fn take(directory: &OwnedFd, owner: Owner) -> io::Result<()> {
    let found = fstat(directory)?;
    if found.st_uid != owner.user_id && found.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "it belongs to the user id {}, and not to {}: remove it, and see who made it",
            found.st_uid, owner.user_id
        )));
    }
    if found.st_mode & 0o7777 != DIRECTORY_MODE {
        fchmod(directory, Mode::from_raw_mode(DIRECTORY_MODE))?;
    }
    give(directory, owner)
}

/// Gives what a descriptor leads to to the account.
pub(crate) fn give(what: impl AsFd, owner: Owner) -> io::Result<()> {
    if owner.given {
        let (user, group) = ids(owner);
        fchown(what, user, group)?;
    }
    Ok(())
}

fn ids(owner: Owner) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(owner.user_id)), Some(Gid::from_raw(owner.group_id)))
}

/// A name that leads below.
fn check(name: &Path) -> io::Result<()> {
    match name.components().all(|part| matches!(part, Component::Normal(_))) && name != Path::new("") {
        true => Ok(()),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "the name leads elsewhere")),
    }
}

/// In words what the system says of a link.
fn no_link(e: Errno) -> io::Error {
    match e {
        Errno::LOOP | Errno::XDEV => io::Error::other(
            "a link is there or on the way: none is followed in a directory that PostgreSQL's account can write to",
        ),
        // Where a directory is wanted, that is what a link is.
        e => e.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::account::Account;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    struct Place {
        _parent: tempfile::TempDir,
        inside: PathBuf,
        outside: PathBuf,
        below: Below,
        owner: Owner,
    }

    /// A directory of the account's, and one outside that it shall not get at.
    fn place() -> Place {
        let parent = tempfile::tempdir().unwrap();
        let [inside, outside] = ["inside", "outside"].map(|name| parent.path().join(name));
        let owner = Account::resolve(None).unwrap().owner();
        let below = Below::make(&inside, owner).unwrap();
        std::fs::create_dir_all(outside.join("sub")).unwrap();
        for file in ["file", "sub/file"] {
            std::fs::write(outside.join(file), "secret").unwrap();
        }
        Place { _parent: parent, inside, outside, below, owner }
    }

    impl Place {
        /// Nothing outside was read, written, made, given away or removed.
        fn assert_untouched(&self) {
            let own = std::fs::metadata(self.outside.parent().unwrap()).unwrap().uid();
            let mut names = Vec::new();
            for directory in [&self.outside, &self.outside.join("sub")] {
                for entry in std::fs::read_dir(directory).unwrap() {
                    let path = entry.unwrap().path();
                    assert_eq!(std::fs::metadata(&path).unwrap().uid(), own, "{}", path.display());
                    names.push(path);
                }
            }
            assert_eq!(names.len(), 3, "{names:?}");
            for file in ["file", "sub/file"] {
                assert_eq!(std::fs::read_to_string(self.outside.join(file)).unwrap(), "secret");
            }
        }
    }

    #[test]
    fn plain_files_are_written_read_moved_and_removed() {
        let Place { inside, below, owner, .. } = &place();
        let owner = *owner;
        for (name, content) in [("a", "1"), ("a", "2"), ("d/e/f", "3")] {
            if name.contains('/') {
                below.make_below(Path::new("d"), owner).unwrap();
                below.make_below(Path::new("d/e"), owner).unwrap();
            }
            below.replace(Path::new(name), content.as_bytes(), owner).unwrap();
            assert_eq!(below.read_to_string(name).unwrap(), content);
            let metadata = std::fs::metadata(inside.join(name)).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (FILE_MODE, owner.user_id));
        }
        let directory = std::fs::metadata(inside.join("d/e")).unwrap();
        assert_eq!((directory.mode() & 0o7777, directory.uid()), (DIRECTORY_MODE, owner.user_id));
        below.rename(Path::new("d/e/f"), Path::new("g")).unwrap();
        assert!(below.exists("g") && !below.exists("d/e/f"));
        assert_eq!(below.bytes().unwrap(), 2);
        let mut names: Vec<Name> = below.names().unwrap();
        names.sort_by(|one, other| one.name.cmp(&other.name));
        assert_eq!(
            names.iter().map(|n| (n.is_directory, n.is_file)).collect::<Vec<_>>(),
            [(false, true), (true, false), (false, true)]
        );
        below.remove_any("d").unwrap();
        below.remove_file("nothing").unwrap();
        below.remove_any("nothing").unwrap();
        below.empty().unwrap();
        assert!(below.names().unwrap().is_empty());
        assert_eq!(below.read("a").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(below.directory(Path::new("d")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn no_link_is_followed_wherever_it_is() {
        let place = place();
        let Place { inside, outside, below, owner, .. } = &place;
        let owner = *owner;
        let links = [("file", "file"), ("sub", "sub"), ("a.replicator-new", "file"), ("hanging", "new")];
        for (name, target) in links {
            symlink(outside.join(target), inside.join(name)).unwrap();
        }
        for name in ["file", "sub/file", "hanging"] {
            assert!(below.open_file(name).is_err() && below.read(name).is_err(), "{name}");
            assert!(below.walk(Path::new(name), OFlags::RDONLY).is_err(), "{name}");
        }
        let under = Path::new("sub/new");
        assert!(below.create_new(under, owner).is_err() && below.replace(under, b"x", owner).is_err());
        assert!(below.make_below(under, owner).is_err());
        assert!(below.make_below(Path::new("sub"), owner).is_err(), "a link is no directory");
        assert!(below.create_new(Path::new("hanging"), owner).is_err());
        assert!(below.create_new(Path::new("file"), owner).is_err());
        assert!(below.rename(Path::new("a.replicator-new"), under).is_err());
        assert!(below.remove_file("sub/file").is_err() && below.remove_any("sub/file").is_err());
        assert!(!below.exists("sub/file") && below.directory(Path::new("sub")).is_err());
        assert!(below.give_socket(Path::new("file"), owner).is_err());
        place.assert_untouched();
        assert!(below.open_or_create(under, owner).is_err() && below.length(Path::new("file")).is_err());
        // The names themselves are ours to replace and to remove.
        std::io::Write::write_all(&mut below.open_or_create(Path::new("hanging"), owner).unwrap(), b"x")
            .unwrap();
        assert!(!inside.join("hanging").is_symlink() && below.read_to_string("hanging").unwrap() == "x");
        below.replace(Path::new("a"), b"x", owner).unwrap();
        below.replace(Path::new("file"), b"x", owner).unwrap();
        assert!(!inside.join("file").is_symlink() && below.read_to_string("file").unwrap() == "x");
        below.remove_any("sub").unwrap();
        below.empty().unwrap();
        place.assert_untouched();
        // In the place of the directory itself.
        symlink(outside, inside.with_file_name("run")).unwrap();
        assert!(Below::make(&inside.with_file_name("run"), owner).is_err());
        assert_eq!(std::fs::metadata(outside).unwrap().permissions().mode() & 0o077, 0o055, "left as it was");
        place.assert_untouched();
    }

    #[test]
    fn a_directory_that_somebody_else_has_made_is_not_used() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: only root can give a directory to somebody else");
            return;
        }
        let Place { inside, owner, .. } = &place();
        let run = inside.with_file_name("run");
        std::fs::create_dir(&run).unwrap();
        std::os::unix::fs::chown(&run, Some(65534), Some(65534)).unwrap();
        let error = Below::make(&run, *owner).unwrap_err().to_string();
        assert!(error.contains("user id 65534") && error.contains("remove it"), "{error}");
        assert_eq!(std::fs::metadata(&run).unwrap().uid(), 65534);
    }

    #[test]
    fn what_is_no_plain_file_of_one_name_is_not_read_and_no_name_leads_up() {
        let place = place();
        let Place { inside, outside, below, owner, .. } = &place;
        let owner = *owner;
        std::fs::hard_link(outside.join("file"), inside.join("file")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(inside.join("pipe")).status().unwrap();
        assert!(made.success());
        for name in ["file", "pipe", "../outside/file", "/etc/passwd", "."] {
            assert!(below.read(name).is_err(), "{name}");
        }
        assert!(below.replace(Path::new("../outside/file"), b"x", owner).is_err());
        assert!(below.remove_any("..").is_err());
        below.replace(Path::new("file"), b"x", owner).unwrap();
        std::fs::hard_link(outside.join("file"), inside.join("other")).unwrap();
        for name in ["other", "pipe"] {
            let mut file = below.open_or_create(Path::new(name), owner).unwrap();
            file.write_all(b"not theirs").unwrap();
        }
        let mut again = below.open_or_create(Path::new("other"), owner).unwrap();
        again.write_all(b"now").unwrap();
        assert_eq!(below.read_to_string("other").unwrap(), "now theirs", "it is written in place");
        assert_eq!(below.length(Path::new("other")).unwrap(), 10);
        place.assert_untouched();
    }

    #[test]
    fn a_socket_is_given_only_if_it_is_the_one() {
        let Place { inside, below, owner, .. } = &place();
        let owner = *owner;
        let _listener = std::os::unix::net::UnixListener::bind(inside.join("s")).unwrap();
        below.give_socket(Path::new("s"), owner).unwrap();
        assert_eq!(std::fs::metadata(inside.join("s")).unwrap().uid(), owner.user_id);
        std::fs::write(inside.join("f"), "").unwrap();
        assert!(below.give_socket(Path::new("f"), owner).is_err());
    }
}
