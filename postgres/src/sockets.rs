//! The names and sockets by which the region's own servers and sessions find each other.

use std::path::{Path, PathBuf};

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

/// Where the sockets of the instance below `directory` lie: there, or in `/tmp` when that path is too long
/// for a socket.
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
    PathBuf::from(format!("/tmp/replicator-{hash:016x}"))
}
