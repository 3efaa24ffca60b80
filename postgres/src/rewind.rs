//! Rewinds a data directory to before what was cut off, with PostgreSQL's own pg_rewind: only pages that redo since then has changed are read
//! from the other server.

use std::path::{Path, PathBuf};
use std::process::Command;

use proto::Lsn;

use crate::instance::{Instance, InstanceError, Part, SUPERUSER, at, remove_tree};

/// The port in the name of the socket at which pg_rewind finds the other server.
pub const REWIND_PORT: u16 = 5434;

impl Instance {
    /// The socket at which this instance is reached on its machine.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let options = self.options();
        options.socket_dir.join(format!(".s.PGSQL.{}", options.listen.port()))
    }

    /// Whether it has tablespaces besides the default ones.
    #[must_use]
    pub fn has_tablespaces(&self) -> bool {
        let entries = std::fs::read_dir(self.options().data_dir.join("pg_tblspc"));
        entries.is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Where the redo of its last checkpoint begins: from there on `pg_wal` has all redo.
    ///
    /// # Errors
    /// When its control file cannot be read.
    pub fn checkpoint_redo_lsn(&self) -> Result<Lsn, InstanceError> {
        let redo = self.control_data("Latest checkpoint's REDO location")?;
        redo.parse().map_err(|_| InstanceError::ControlData("where the redo of the last checkpoint begins"))
    }

    /// The command that rewinds the data of the instance, which does not run, to where they parted from the server at [`REWIND_PORT`] in the
    /// directory of its sockets. Redo that is not in `pg_wal` any more is taken from `segments`.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn rewind(&self, segments: &Path) -> Result<Command, InstanceError> {
        let options = self.options();
        // One that crashed as a writer is recovered as one first.
        self.configure(match self.is_standby() {
            true => Part::Standby,
            false => Part::Writer { synchronous: false },
        })?;
        self.disown_stale_locks()?;
        let restore = format!("cp \"{}/%f\" \"%p\"", segments.display());
        self.add_setting("restore_command", &restore)?;
        let server = format!(
            "host={} port={REWIND_PORT} user={SUPERUSER} dbname=postgres application_name=replicator_rewind",
            options.socket_dir.display()
        );
        let mut command = options.account.command(&options.installation.program("pg_rewind"));
        command.args(["--restore-target-wal", "--source-server", &server, "--target-pgdata"]);
        command.arg(&options.data_dir);
        Ok(command)
    }

    /// What is left to do when pg_rewind has succeeded; returns from where on the data need redo.
    ///
    /// # Errors
    /// When files cannot be read or removed.
    pub fn rewound(&self) -> Result<Lsn, InstanceError> {
        let data_dir = &self.options().data_dir;
        // A slot of the time as a writer would keep redo for nobody.
        empty(&data_dir.join("pg_replslot"))?;
        let label = data_dir.join("backup_label");
        let Ok(content) = std::fs::read_to_string(&label) else {
            // It had nothing that the other one had not: it goes on from its last checkpoint.
            return self.checkpoint_redo_lsn();
        };
        // The other one's redo came along, and may not be durable in this region yet: a standby never applies what its volume does not have.
        let wal = data_dir.join("pg_wal");
        for entry in std::fs::read_dir(&wal).map_err(at(&wal))? {
            let path = entry.map_err(at(&wal))?.path();
            if path.file_name().is_some_and(|name| is_segment(&name.to_string_lossy())) {
                std::fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        empty(&wal.join("archive_status"))?;
        label_start(&content).ok_or(InstanceError::ControlData("where the redo of the rewound data begins"))
    }
}

/// Whether a file in `pg_wal` is a WAL segment, whole or not.
fn is_segment(name: &str) -> bool {
    let name = name.strip_suffix(".partial").unwrap_or(name);
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where redo begins, in a backup_label.
fn label_start(content: &str) -> Option<Lsn> {
    content.lines().find_map(|line| {
        let rest = line.strip_prefix("START WAL LOCATION:")?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

/// Removes what is in a directory, if that is there.
fn empty(directory: &Path) -> Result<(), InstanceError> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(at(directory))?.path();
        match path.is_dir() {
            true => remove_tree(&path)?,
            false => std::fs::remove_file(&path).map_err(at(&path))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_segments() {
        let label =
            "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n";
        assert_eq!(label_start(label), Some(Lsn(0x200_0028)));
        assert_eq!(label_start("CHECKPOINT LOCATION: 0/2000060\n"), None);
        for (name, segment) in [
            ("000000010000000000000002", true),
            ("000000010000000000000002.partial", true),
            ("00000002.history", false),
            ("archive_status", false),
        ] {
            assert_eq!(is_segment(name), segment, "{name}");
        }
    }
}
