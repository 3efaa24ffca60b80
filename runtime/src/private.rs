//! Files and directories that are their owner's alone from the moment they are there: nothing is made first
//! and narrowed afterwards.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of a file that is its owner's alone.
pub const FILE_MODE: u32 = 0o600;

/// The mode of a directory that is its owner's alone.
pub const DIRECTORY_MODE: u32 = 0o700;

/// The mode of a directory that others may pass through.
const PASSABLE_MODE: u32 = 0o711;

/// The permissions that no file of this process gets, whoever makes it: all of group and others. To be taken
/// away as the first thing a program does.
pub fn restrict_process() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// How to open a file that is private if this makes it. Nothing that is no plain file, such as a named pipe,
/// holds up whoever opens it.
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    options
}

/// Reads a plain file.
///
/// # Errors
/// When it cannot be read, or is something else: a named pipe would never end.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = options().read(true).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file: move away what is there in its place"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Makes a file anew, to be written. One of the name is removed first, and is not written to, nor what it
/// leads to.
///
/// # Errors
/// When the old one cannot be removed, or the new one cannot be made.
pub fn create_new(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => options().write(true).create_new(true).open(path),
    }
}

/// Makes a directory, and those above it that are missing; all of them private. One that is there stays as it
/// is.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Makes a directory, and those above it that are missing, which others may pass through (0711) and neither
/// read nor write. One that is there stays as it is.
///
/// # Errors
/// When it cannot be made.
pub fn make_passable(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_passable)?;
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        // Whatever the process may not give away: this is ours, and nothing is in it.
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(PASSABLE_MODE)),
        // Another process was quicker.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Replaces a file so that after a crash it holds either the old content or the new; durable when this
/// returns. Only one may do so at a time.
///
/// # Errors
/// When the file or its directory cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_made(path, content, |_| Ok(()))
}

/// The same of a file that is there and is the user's: its mode and its owner stay what they are.
///
/// # Errors
/// When there is none, it is not ours to give to its owner, or it or its directory cannot be written.
pub fn replace_content(path: &Path, content: &[u8]) -> io::Result<()> {
    let now = std::fs::metadata(path)?;
    replace_made(path, content, |new| {
        std::os::unix::fs::fchown(new, Some(now.uid()), Some(now.gid()))?;
        new.set_permissions(Permissions::from_mode(now.mode() & 0o777))
    })
}

fn replace_made(path: &Path, content: &[u8], make: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = create_new(&temporary)?;
    make(&file)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_made_is_private_and_what_it_replaces_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let [victim, target, made] = ["victim", "target", "made"].map(|name| directory.path().join(name));
        std::fs::write(&victim, "theirs").unwrap();
        // Somebody who is quicker: with the temporary name, with a file that all can read, with a link.
        symlink(&victim, directory.path().join("target.new")).unwrap();
        replace(&target, b"ours").unwrap();
        assert_eq!((std::fs::read(&target).unwrap(), mode(&target)), (b"ours".to_vec(), FILE_MODE));
        std::fs::hard_link(&victim, &made).unwrap();
        create_new(&made).unwrap().write_all(b"ours").unwrap();
        assert_eq!((std::fs::read(&victim).unwrap(), mode(&made)), (b"theirs".to_vec(), FILE_MODE));
        assert_eq!(std::fs::metadata(&victim).unwrap().nlink(), 1);
        let deep = directory.path().join("a/b");
        make_directory(&deep).unwrap();
        make_directory(&deep).unwrap();
        assert_eq!((mode(&deep), mode(&directory.path().join("a"))), (DIRECTORY_MODE, DIRECTORY_MODE));
        let passable = directory.path().join("p/q");
        make_passable(&passable).unwrap();
        make_passable(&passable).unwrap();
        assert_eq!((mode(&passable), mode(&directory.path().join("p"))), (PASSABLE_MODE, PASSABLE_MODE));
        // What is the user's stays as open as it was.
        std::fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
        replace_content(&target, b"other").unwrap();
        assert_eq!((std::fs::read(&target).unwrap(), mode(&target)), (b"other".to_vec(), 0o640));
        assert!(replace_content(&directory.path().join("none"), b"").is_err());
        assert!(!directory.path().join("target.new").exists());
    }

    #[test]
    fn a_named_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let [pipe, file] = ["pipe", "file"].map(|name| directory.path().join(name));
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
        assert!(read(&pipe).unwrap_err().to_string().contains("no plain file"));
        assert!(options().append(true).open(&pipe).is_err(), "nobody reads it");
        assert!(read(directory.path()).is_err());
        std::fs::write(&file, "text").unwrap();
        assert_eq!(read(&file).unwrap(), b"text");
        assert_eq!(read(&directory.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
