//! The files of an instance that the daemon reads and writes itself, by their names in its directories: never
//! through a link, see [`crate::below`].

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{Instance, InstanceError, at};
use crate::below::Below;
use crate::sockets::socket_path;

impl Instance {
    /// The data directory.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn data(&self) -> Result<Below, InstanceError> {
        let directory = &self.options().data_dir;
        Below::open(directory).map_err(at(directory))
    }

    /// The directory of its sockets.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn sockets(&self) -> Result<Below, InstanceError> {
        let directory = &self.options().socket_dir;
        Below::open(directory).map_err(at(directory))
    }

    /// The socket at which this instance is reached on its machine.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let options = self.options();
        socket_path(&options.socket_dir, options.listen.port())
    }

    /// Gives the socket of `port`, which was just made in the directory of the instance's sockets, to the
    /// account.
    ///
    /// # Errors
    /// When what is there is another, or the system refuses.
    pub fn give_socket(&self, port: u16) -> Result<(), InstanceError> {
        let path = socket_path(&self.options().socket_dir, port);
        let name = Path::new(path.file_name().unwrap_or_default());
        self.sockets()?.give_socket(name, self.options().account.owner()).map_err(at(&path))
    }

    /// Whether the data directory has a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        Below::open(&self.options().data_dir).is_ok_and(|data| data.exists(name))
    }

    /// What PostgreSQL's account may not write of what PostgreSQL writes, be it at a checkpoint or when it
    /// becomes a writer, or none any more; in words.
    #[must_use]
    pub fn not_writable(&self) -> Option<String> {
        const WRITTEN: [&str; 16] = [
            "",
            "base",
            "global",
            "global/pg_control",
            "pg_commit_ts",
            "pg_logical",
            "pg_logical/mappings",
            "pg_logical/snapshots",
            "pg_multixact/members",
            "pg_multixact/offsets",
            "pg_replslot",
            "pg_subtrans",
            "pg_twophase",
            "pg_wal",
            "pg_wal/archive_status",
            "pg_xact",
        ];
        let options = self.options();
        let mut find = options.account.command(Path::new("/usr/bin/find"));
        find.args(WRITTEN.map(|name| options.data_dir.join(name)));
        // One that is not there has find say so, and nothing else.
        let found = find.args(["-maxdepth", "0", "!", "-writable", "-print", "-quit"]).output().ok()?;
        let first = String::from_utf8_lossy(&found.stdout).lines().next()?.to_owned();
        Some(format!("{first}: user '{}', who runs PostgreSQL, may not write it", options.account.name))
    }

    /// A file of the data directory.
    pub(crate) fn read(&self, name: &str) -> Result<String, InstanceError> {
        self.data()?.read_to_string(name).map_err(at(&self.options().data_dir.join(name)))
    }

    /// The same, where it may not be there.
    pub(crate) fn read_if_any(&self, name: &str) -> Result<Option<String>, InstanceError> {
        if_any(self.data()?.read_to_string(name)).map_err(at(&self.options().data_dir.join(name)))
    }

    /// Replaces a file of the data directory; on disk when this returns.
    pub(crate) fn write(&self, name: impl AsRef<Path>, content: &str) -> Result<(), InstanceError> {
        let (name, options) = (name.as_ref(), self.options());
        let written = self.data()?.replace(name, content.as_bytes(), options.account.owner());
        written.map_err(at(&options.data_dir.join(name)))
    }

    /// The same, where it is not there as it is to be already: to make it durable takes time.
    pub(crate) fn write_if_other(&self, name: &str, content: &str) -> Result<(), InstanceError> {
        match self.read(name).is_ok_and(|written| written == content) {
            true => Ok(()),
            false => self.write(name, content),
        }
    }

    /// Removes a file of the data directory, if it is there.
    pub(crate) fn remove(&self, name: impl AsRef<Path>) -> Result<(), InstanceError> {
        let name = name.as_ref();
        self.data()?.remove_file(name).map_err(at(&self.options().data_dir.join(name)))
    }
}

/// What was read, or nothing where nothing is.
pub(super) fn if_any<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
