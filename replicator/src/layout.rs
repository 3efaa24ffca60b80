//! Where things lie below the data directory.
//!
//! ```text
//! <data>/authority/            the cluster's certificate authority; only where certificates are made
//! <data>/operator/             the operator's certificate: what `status`, `url` and `down` show to daemons
//! <data>/operators/<name>/     a person's, to be given to that person
//! <data>/monitors/<name>/      one that may look on, for monitoring
//! <data>/regions/<region>/     everything of one region:
//!     identity/                its certificate
//!     region.json              what it is: cluster, role, epoch, PostgreSQL's system identifier
//!     superuser.password       PostgreSQL's superuser password, mode 0600; superuser.pgpass has it for libpq
//!     redo.keys                the keys that redo is sealed with, mode 0600; only where that is on
//!     superuser.next           the password that it is to be, while it is given another one
//!     daemon.lock, daemon.log  the running daemon
//!     *.1.log, *.2.log, …      logs that were put aside, of the daemon, its zones and PostgreSQL
//!     az-<zone>.lock, .log     a zone's process, where it has its own
//!     events.jsonl, .old.jsonl what happened here: the daemon's journal, mode 0600
//!     configuration.seen       the configuration of the daemon's last start, to tell what changed
//!     audit.jsonl, .1.jsonl, … who did what here, each line chained to the one before; audit.head is its end
//!     volume/az-<zone>/        the redo log: two copies in each zone; a mount point or a link of its own, if you like
//!     drill/, drill.lock       a rehearsal under way; nothing of it stays
//!     lost/                    redo that a failover cut off, until an operator discards it
//!     rewind/                  WAL segments for a rewind under way
//!     pgdata/, postgresql.log  PostgreSQL's own
//!     tablespaces/<oid>/       tablespaces whose place on the writer is another PostgreSQL's here
//!     nodes/<node>/            everything of a node, but its zone's copies, which are in volume/:
//!         identity/            its certificate
//!         node.json            what its data are; the daemon's host, beside another head: daemon.node.json
//!         node.region.json     what the region is, where this node is its head, or was it last
//!         node.heard.json      the head that was heard last; daemon.heard.json of the daemon's host
//!         node.lock, node.log  its running process
//!         events.jsonl         what happened there
//!         pgdata/, postgresql.log   its PostgreSQL's own
//!     aside/<time>/            pgdata, tablespaces, volume and lost of before a `replicator reseed`, until an operator deletes them
//! ```
//!
//! All of it is the daemon's account's alone, mode 0600 and 0700, but `pgdata`, `tablespaces`, `run` and
//! `rewind`, which are PostgreSQL's, and the directories above those, which it may pass through: see
//! [`make_passable`].

use std::io;
use std::path::{Path, PathBuf};

use proto::{NodeName, RegionName};
use runtime::private;

use crate::config::HOME;

/// Paths below the data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    data: PathBuf,
    identity: Option<PathBuf>,
}

impl Layout {
    /// The layout below `data`.
    #[must_use]
    pub fn new(data: PathBuf) -> Layout {
        Layout { data, identity: None }
    }

    /// The same, where commands show daemons the certificate in `identity` instead of the operator's.
    #[must_use]
    pub fn showing(self, identity: Option<PathBuf>) -> Layout {
        Layout { identity, ..self }
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The certificate authority's directory.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.data.join("authority")
    }

    /// The identity that commands show to daemons: the operator's, unless another was named.
    #[must_use]
    pub fn shown(&self) -> PathBuf {
        self.identity.clone().unwrap_or_else(|| self.operator())
    }

    /// The operator's identity.
    #[must_use]
    pub fn operator(&self) -> PathBuf {
        self.data.join("operator")
    }

    /// Where the identities of people are that are operators, each in a directory of its name.
    #[must_use]
    pub fn operators(&self) -> PathBuf {
        self.data.join("operators")
    }

    /// Where the identities of monitors are, each in a directory of its name.
    #[must_use]
    pub fn monitors(&self) -> PathBuf {
        self.data.join("monitors")
    }

    /// The directory of one region.
    #[must_use]
    pub fn region(&self, name: &RegionName) -> RegionLayout {
        RegionLayout { directory: self.data.join("regions").join(name.as_str()), shared: None }
    }
}

/// A process of a region that is not its daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apart {
    /// That of a zone.
    Zone(char),
    /// That of a node.
    Node(NodeName),
}

impl std::fmt::Display for Apart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Apart::Zone(zone) => write!(f, "zone {zone}"),
            Apart::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// Paths of one region.
#[derive(Debug, Clone)]
pub struct RegionLayout {
    directory: PathBuf,
    /// Where a node is the region's head: the region's own directory on that host, which has what a host has
    /// of the region whatever part it plays.
    shared: Option<PathBuf>,
}

impl RegionLayout {
    /// The region's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The region as its host `host` has it that is its head: a node has all of it in the node's directory.
    #[must_use]
    pub fn headed_by(&self, host: &NodeName) -> RegionLayout {
        if host.as_str() == HOME {
            return self.clone();
        }
        RegionLayout {
            directory: self.node(host).directory().to_owned(),
            shared: Some(self.shared().to_owned()),
        }
    }

    fn shared(&self) -> &Path {
        self.shared.as_ref().unwrap_or(&self.directory)
    }

    /// Its certificate and key.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.shared().join("identity")
    }

    /// The daemon's journal of events; what is older is beside it.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.directory.join("events.jsonl")
    }

    /// What is kept of the load of the region's PostgreSQL.
    #[must_use]
    pub fn load(&self) -> PathBuf {
        self.directory.join("load")
    }

    /// The configuration of the daemon's last start.
    #[must_use]
    pub fn configuration_seen(&self) -> PathBuf {
        self.directory.join("configuration.seen")
    }

    /// What the region is.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.join(if self.shared.is_some() { "node.region.json" } else { "region.json" })
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> PathBuf {
        self.shared().join("superuser.password")
    }

    /// What is to be the superuser's password next.
    #[must_use]
    pub fn next_password(&self) -> PathBuf {
        self.shared().join("superuser.next")
    }

    /// The superuser's password, for libpq.
    #[must_use]
    pub fn passfile(&self) -> PathBuf {
        self.directory.join("superuser.pgpass")
    }

    /// The certificate and key by which PostgreSQL's clients know it, beside the region's own.
    #[must_use]
    pub fn server_identity(&self) -> PathBuf {
        match &self.shared {
            // Its PostgreSQL is where the node's is.
            Some(_) => self.directory.join("identity/postgresql"),
            None => self.identity().join("postgresql"),
        }
    }

    /// What the page asks of those who are not on this machine.
    #[must_use]
    pub fn page_token(&self) -> PathBuf {
        self.directory.join("page.token")
    }

    /// The keys that its redo is sealed with, or what they were wrapped to.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.shared().join("redo.keys")
    }

    /// Held by the running daemon.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.directory.join(if self.shared.is_some() { "node.lock" } else { "daemon.lock" })
    }

    /// Held by the running process of a zone.
    #[must_use]
    pub fn zone_lock(&self, zone: char) -> PathBuf {
        self.directory.join(format!("az-{zone}.lock"))
    }

    /// What a zone's process started by `up` says.
    #[must_use]
    pub fn zone_log(&self, zone: char) -> PathBuf {
        self.directory.join(format!("az-{zone}.log"))
    }

    /// What a daemon started by `up` says.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.directory.join(if self.shared.is_some() { "node.log" } else { "daemon.log" })
    }

    /// Held by the running daemon, or by the process that is apart from it.
    #[must_use]
    pub fn lock_of(&self, apart: Option<&Apart>) -> PathBuf {
        match apart {
            Some(Apart::Zone(zone)) => self.zone_lock(*zone),
            Some(Apart::Node(node)) => self.node(node).lock(),
            None => self.lock(),
        }
    }

    /// What the daemon says that `up` started, or the process that is apart from it.
    #[must_use]
    pub fn log_of(&self, apart: Option<&Apart>) -> PathBuf {
        match apart {
            Some(Apart::Zone(zone)) => self.zone_log(*zone),
            Some(Apart::Node(node)) => self.node(node).log(),
            None => self.daemon_log(),
        }
    }

    /// The redo log.
    #[must_use]
    pub fn volume(&self) -> PathBuf {
        self.shared().join("volume")
    }

    /// Redo that a failover cut off.
    #[must_use]
    pub fn lost(&self) -> PathBuf {
        self.directory.join("lost")
    }

    /// What was set aside at the time `name`, to have the region seeded anew.
    #[must_use]
    pub fn aside(&self, name: &str) -> PathBuf {
        self.directory.join("aside").join(name)
    }

    /// WAL segments for a rewind under way.
    #[must_use]
    pub fn rewind(&self) -> PathBuf {
        self.directory.join("rewind")
    }

    /// A rehearsal under way.
    #[must_use]
    pub fn drill(&self) -> PathBuf {
        self.directory.join("drill")
    }

    /// Held by the command that rehearses.
    #[must_use]
    pub fn drill_lock(&self) -> PathBuf {
        self.directory.join("drill.lock")
    }

    /// PostgreSQL's data directory.
    #[must_use]
    pub fn pgdata(&self) -> PathBuf {
        self.directory.join("pgdata")
    }

    /// The tablespaces that are mapped.
    #[must_use]
    pub fn tablespaces(&self) -> PathBuf {
        self.directory.join("tablespaces")
    }

    /// What PostgreSQL says.
    #[must_use]
    pub fn postgresql_log(&self) -> PathBuf {
        self.directory.join("postgresql.log")
    }

    /// The directory of one node. The host of the region's daemon has the region's, also while another one is
    /// the head.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> NodeLayout {
        match name.as_str() == HOME {
            true => NodeLayout { directory: self.shared().to_owned(), home: true },
            false => NodeLayout { directory: self.shared().join("nodes").join(name.as_str()), home: false },
        }
    }
}

/// Paths of one node.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    directory: PathBuf,
    /// It is the host of the region's daemon.
    home: bool,
}

impl NodeLayout {
    /// The node's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its certificate and key.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.directory.join("identity")
    }

    /// The certificate and key by which PostgreSQL's clients know its replica.
    #[must_use]
    pub fn server_identity(&self) -> PathBuf {
        self.identity().join("postgresql")
    }

    /// What its data are.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.join(if self.home { "daemon.node.json" } else { "node.json" })
    }

    /// The region's head that was heard last, where that may be another host.
    #[must_use]
    pub fn heard(&self) -> PathBuf {
        self.directory.join(if self.home { "daemon.heard.json" } else { "node.heard.json" })
    }

    /// Held by its running process.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.directory.join(if self.home { "daemon.lock" } else { "node.lock" })
    }

    /// What its process says that `up` started.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join(if self.home { "daemon.log" } else { "node.log" })
    }

    /// Its journal of events; what is older is beside it.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.directory.join("events.jsonl")
    }

    /// PostgreSQL's data directory.
    #[must_use]
    pub fn pgdata(&self) -> PathBuf {
        self.directory.join("pgdata")
    }

    /// What PostgreSQL says.
    #[must_use]
    pub fn postgresql_log(&self) -> PathBuf {
        self.directory.join("postgresql.log")
    }
}

/// Makes a directory and those above it. PostgreSQL's account may pass through it (0711), and read nothing in
/// it.
///
/// # Errors
/// When the directory cannot be made.
pub fn make_passable(directory: &Path) -> io::Result<()> {
    private::make_passable(directory)
}

/// Writes `content` to `path` so that after a crash either the old or the new content is there, with mode
/// 0600.
///
/// # Errors
/// When the file or its directory cannot be written.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    private::replace(path, content)
}
