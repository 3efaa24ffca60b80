//! The names and sockets by which the region's own servers and sessions find each other.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// The superuser that every instance has.
pub const SUPERUSER: &str = "postgres";

/// The port in the name of a region's own walsender's socket.
pub const WALSENDER_PORT: u16 = 5433;

/// The name under which the region's reader is the writer's synchronous standby, and of its slot.
pub const READER: &str = "replicator";

/// The `application_name` of the sessions in which the region's daemon asks its PostgreSQL how it is.
pub const WATCHER: &str = "replicator_watch";

/// The `application_name` of the connections in which PostgreSQL is asked for its vital signs.
pub const TELEMETRY: &str = "replicator_telemetry";

/// The port in the name of the socket at which pg_rewind finds the other server.
pub const REWIND_PORT: u16 = 5434;

/// The `application_name` of a clone that is fed for a rehearsal, and of its sessions: how far it is does not
/// count for the region.
pub const REHEARSAL: &str = "replicator_drill";

/// The socket of a server that listens at `port` in `socket_dir`, as clients look for it.
#[must_use]
pub fn socket_path(socket_dir: &Path, port: u16) -> PathBuf {
    socket_dir.join(format!(".s.PGSQL.{port}"))
}

/// Where the sockets of the instance below `directory` lie: there, or when that path is too long for a
/// socket, in a directory of their own. That is in `/run` where `directory` is root's, as nobody else can
/// make anything there, and in `/tmp` for others; it is used only if it is no link and nobody else's, see
/// [`crate::below::Below::make`].
#[must_use]
pub fn socket_dir_for(directory: &Path) -> PathBuf {
    /// The system allows 107 bytes for a socket's path.
    const NAME_BYTES_MAX: usize = "/.s.PGSQL.65535.lock".len();
    let wanted = directory.join("run");
    if wanted.as_os_str().len() + NAME_BYTES_MAX <= 107 {
        return wanted;
    }
    let hash =
        directory.as_os_str().as_encoded_bytes().iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3)
        });
    let owner = std::fs::metadata(directory).map_or_else(|_| Uid::effective().as_raw(), |found| found.uid());
    match owner {
        0 => PathBuf::from(format!("/run/replicator-{hash:016x}")),
        owner => PathBuf::from(format!("/tmp/replicator-{owner}-{hash:016x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_a_long_path_lie_where_nobody_else_can_have_made_the_directory() {
        let short = Path::new("/var/lib/replicator/demo/regions/r");
        assert_eq!(socket_dir_for(short), short.join("run"));
        let place = tempfile::tempdir().unwrap();
        let [one, other] = ["x", "y"].map(|name| place.path().join(name.repeat(80)));
        for directory in [&one, &other] {
            std::fs::create_dir(directory).unwrap();
        }
        let own = Uid::effective();
        let begin = if own.is_root() { "/run/replicator-".into() } else { format!("/tmp/replicator-{own}-") };
        let found = socket_dir_for(&one).display().to_string();
        assert!(found.starts_with(&begin) && found.len() < 80, "{found}");
        assert_eq!(found, socket_dir_for(&one).display().to_string());
        assert_ne!(found, socket_dir_for(&other).display().to_string());
        // A rehearsal's, which comes and goes, where the region's are.
        std::fs::create_dir(one.join("drill")).unwrap();
        assert!(socket_dir_for(&one.join("drill")).starts_with(if own.is_root() { "/run" } else { "/tmp" }));
    }
}
