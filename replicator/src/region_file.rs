//! What a region is, kept in `region.json`: read before anything else is touched, so that a daemon never
//! works on another cluster's data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coordination::memory::Memory;
use coordination::{Acceptor, Leadership};
use proto::{ClusterId, Epoch, NodeName, RegionName, SystemId};
use serde::{Deserialize, Serialize};
use volume::ballot::Ballot;

use crate::config::{HOME, Role};
use crate::layout::{RegionLayout, write_durably};

/// The version of the file's format.
const FORMAT: u32 = 2;

/// A region's own record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionState {
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
    /// Its name.
    pub region: RegionName,
    /// Whether its writer may have taken writes since it last had what the primary had.
    pub role: Role,
    /// What it has promised and accepted as a voter: who leads which epoch.
    pub acceptor: Acceptor,
    /// It led an epoch that is over, and may have redo that nobody else has: it is to be seeded, and keeps
    /// that aside.
    pub rejoining: bool,
    /// The PostgreSQL it holds; none before it is created or seeded.
    pub system_id: Option<SystemId>,
    /// What it knows of its memory as a voter.
    pub memory: Memory,
    /// Its directory was lost or set aside, and it was not seeded since: what redo it had is not known.
    pub forgot: bool,
    /// It has made the cluster's database, and the record of who leads may not name that yet.
    pub unnamed: bool,
    /// Its data are being set aside, into the directory of this name, to have it seeded anew.
    pub aside: Option<String>,
    /// A number for the data that it has, drawn when nodes first ask for it; 0 until then, and while it has
    /// none.
    pub data_number: u64,
    /// The writer's logical slots that its standby carries, by name, and whether their consumers can go on
    /// with them.
    pub carried: BTreeMap<String, bool>,
    /// Under which numbers this host has opened the volume since it became the region's head, where another
    /// host may be that as well.
    pub writers: Vec<u64>,
    /// The ballot with which it had the volume open first since: other hosts are told only then that they may
    /// take over.
    pub headed: Option<Ballot>,
    /// The newest record that it has known to be agreed, where orders are signed: by that it judges others
    /// before it hears what is agreed now.
    pub agreed: Option<Leadership>,
}

/// The state of a running region: in memory and on disk.
#[derive(Debug)]
pub struct RegionFile {
    /// None when it is kept in memory only, as simulations do.
    path: Option<PathBuf>,
    state: Mutex<Arc<RegionState>>,
    /// Its epoch, for those who must wait for no lock.
    epoch: Arc<AtomicU64>,
}

impl RegionFile {
    /// The record `state`, which is in `path`.
    #[must_use]
    pub fn new(path: PathBuf, state: RegionState) -> RegionFile {
        RegionFile { path: Some(path), ..RegionFile::in_memory(state) }
    }

    /// A record that is kept in memory only.
    #[must_use]
    pub fn in_memory(state: RegionState) -> RegionFile {
        let epoch = Arc::new(AtomicU64::new(state.epoch().0));
        RegionFile { path: None, state: Mutex::new(Arc::new(state)), epoch }
    }

    /// What it says now.
    #[must_use]
    pub fn get(&self) -> Arc<RegionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The highest epoch whose beginning it has accepted, as it comes to be known.
    #[must_use]
    pub fn epoch(&self) -> Arc<AtomicU64> {
        self.epoch.clone()
    }

    /// Changes it; on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub fn change(&self, change: impl FnOnce(&mut RegionState)) -> Result<(), StateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = RegionState::clone(&state);
        change(&mut changed);
        if changed != **state {
            if let Some(path) = &self.path {
                changed.save(path)?;
            }
            self.epoch.store(changed.epoch().0, Ordering::Relaxed);
            *state = Arc::new(changed);
        }
        Ok(())
    }

    /// Writes it as it is: so a promotion can know that it will be able to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rewrite(&self) -> Result<(), StateError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.path.as_ref().map_or(Ok(()), |path| state.save(path))
    }

    /// Changes it, if the primary of `epoch` leads at that moment, as far as this region has accepted;
    /// whether it does. No vote comes between the two.
    ///
    /// # Errors
    /// As [`RegionFile::change`].
    pub fn change_while_led(
        &self,
        epoch: Epoch,
        change: impl FnOnce(&mut RegionState),
    ) -> Result<bool, StateError> {
        let mut led = false;
        self.change(|state| {
            led = state.is_led(epoch);
            if led {
                change(state);
            }
        })?;
        Ok(led)
    }
}

/// Why a region's record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a region's record.
    #[error(
        "{path} is not a region's record of format {FORMAT}: {what}. Put a whole copy of this file back; or move this one file \
         aside, and nothing else: its voter then asks the others what it has promised, and a secondary is seeded anew"
    )]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The directory belongs to another cluster.
    #[error(
        "{path} belongs to cluster {found}, and the certificate here is of cluster {expected}. \
         Give this cluster a data directory of its own with --data"
    )]
    OtherCluster {
        /// The file.
        path: String,
        /// The cluster in the file.
        found: ClusterId,
        /// The cluster of the certificate.
        expected: ClusterId,
    },
    /// The directory belongs to another region.
    #[error("{path} is the record of region {found}, not of {expected}")]
    OtherRegion {
        /// The file.
        path: String,
        /// The region in the file.
        found: RegionName,
        /// The region that was asked for.
        expected: RegionName,
    },
}

/// The file as it is on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    cluster_id: String,
    region: String,
    role: String,
    acceptor: Acceptor,
    #[serde(default)]
    rejoining: bool,
    system_id: Option<u64>,
    #[serde(default)]
    memory: Memory,
    #[serde(default)]
    forgot: bool,
    #[serde(default)]
    unnamed: bool,
    #[serde(default)]
    aside: Option<String>,
    #[serde(default)]
    carried: BTreeMap<String, bool>,
    #[serde(default, skip_serializing_if = "is_zero")]
    data_number: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    writers: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    headed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreed: Option<Leadership>,
}

/// An older daemon reads a file without what it does not know.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl RegionState {
    /// That of a directory which was just made, whose id is `id`: it has neither data nor a memory.
    #[must_use]
    pub fn new(
        cluster_id: ClusterId,
        region: RegionName,
        role: Role,
        first: Leadership,
        id: u64,
    ) -> RegionState {
        RegionState {
            cluster_id,
            region,
            role,
            acceptor: Acceptor::new(first),
            rejoining: false,
            system_id: None,
            memory: Memory::none(id),
            forgot: false,
            unnamed: false,
            aside: None,
            carried: BTreeMap::new(),
            data_number: 0,
            writers: Vec::new(),
            headed: None,
            agreed: None,
        }
    }

    /// It has data of `system_id`, from a seed or a rewind.
    pub fn was_given(&mut self, system_id: SystemId) {
        (self.system_id, self.rejoining, self.forgot) = (Some(system_id), false, false);
    }

    /// Its data are about to be replaced: it has none from now on, and its redo may be gone at any moment, so
    /// that it is not heard either until it is given others.
    pub fn gives_data_up(&mut self) {
        self.has_no_data();
        self.forgot = true;
    }

    /// It has no data that it could go on with.
    pub fn has_no_data(&mut self) {
        (self.system_id, self.data_number) = (None, 0);
    }

    /// The highest epoch whose beginning it has accepted.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.acceptor.record().epoch
    }

    /// Whether the primary of `epoch` leads, as far as this region has accepted.
    #[must_use]
    pub fn is_led(&self, epoch: Epoch) -> bool {
        self.acceptor.record().supports(self.primary(), epoch)
    }

    /// The primary of that epoch.
    #[must_use]
    pub fn primary(&self) -> &RegionName {
        &self.acceptor.record().primary
    }

    /// Reads the record, or `None` when there is none yet.
    ///
    /// # Errors
    /// When it cannot be read or is not a record.
    pub fn load(path: &Path) -> Result<Option<RegionState>, StateError> {
        match runtime::private::read(path) {
            Ok(content) => RegionState::parse(&content)
                .map(Some)
                .map_err(|what| StateError::Malformed { path: path.display().to_string(), what }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { path: path.display().to_string(), source }),
        }
    }

    /// Writes the record; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let file = File {
            format: FORMAT,
            cluster_id: self.cluster_id.to_string(),
            region: self.region.to_string(),
            role: self.role.to_string(),
            acceptor: self.acceptor.clone(),
            rejoining: self.rejoining,
            system_id: self.system_id.map(|s| s.0),
            memory: self.memory.clone(),
            forgot: self.forgot,
            unnamed: self.unnamed,
            aside: self.aside.clone(),
            carried: self.carried.clone(),
            data_number: self.data_number,
            writers: self.writers.clone(),
            headed: self.headed.map(|ballot| ballot.to_string()),
            agreed: self.agreed.clone(),
        };
        serde_json::to_vec_pretty(&file)
            .map_err(std::io::Error::from)
            .and_then(|content| write_durably(path, &content))
            .map_err(|source| StateError::Io { path: path.display().to_string(), source })
    }

    /// Checks that this is the record of `region` in `cluster_id`.
    ///
    /// # Errors
    /// When it is another's.
    pub fn verify(&self, path: &Path, cluster_id: ClusterId, region: &RegionName) -> Result<(), StateError> {
        let path = path.display().to_string();
        if self.cluster_id != cluster_id {
            return Err(StateError::OtherCluster { path, found: self.cluster_id, expected: cluster_id });
        }
        if self.region != *region {
            return Err(StateError::OtherRegion {
                path,
                found: self.region.clone(),
                expected: region.clone(),
            });
        }
        Ok(())
    }

    /// The record in the content of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(content: &[u8]) -> Result<RegionState, String> {
        let file: File = serde_json::from_slice(content).map_err(|e| e.to_string())?;
        if file.format != FORMAT {
            return Err(format!("its format is {}", file.format));
        }
        let role = match file.role.as_str() {
            "primary" => Role::Primary,
            "secondary" => Role::Secondary,
            other => return Err(format!("'{other}' is no role")),
        };
        Ok(RegionState {
            cluster_id: file.cluster_id.parse().map_err(|e| format!("{e}"))?,
            region: file.region.parse().map_err(|e| format!("{e}"))?,
            role,
            acceptor: file.acceptor,
            rejoining: file.rejoining,
            system_id: file.system_id.map(SystemId),
            memory: file.memory,
            forgot: file.forgot,
            unnamed: file.unnamed,
            aside: file.aside,
            carried: file.carried,
            data_number: file.data_number,
            writers: file.writers,
            headed: file.headed.map(|ballot| ballot.parse()).transpose()?,
            agreed: file.agreed,
        })
    }
}

/// Whether a host begins as the region's head: it was that last, as far as it knows, or nothing was ever here
/// and it is the host of the region's daemon.
#[must_use]
pub fn was_head(shared: &RegionLayout, host: &NodeName) -> bool {
    let is_new = host.as_str() == HOME && !shared.node(host).state().exists();
    is_new || remembers(&shared.headed_by(host).state())
}

/// Whether the record at `path` is that of a host that has been the head.
fn remembers(path: &Path) -> bool {
    match RegionState::load(path) {
        Ok(found) => found.is_some_and(|state| state.headed.is_some()),
        // Whoever reads it next says what is wrong with it.
        Err(_) => true,
    }
}

/// Takes away the record at `path` where it is of a host that only stood, and was killed meanwhile: it has
/// nothing to remember. The host's lock is held.
pub fn forget_a_stand(path: &Path) {
    if path.exists() && !remembers(path) {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::error!("{}: {e}; it is looked into again at the next start", path.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> RegionState {
        RegionState {
            cluster_id: ClusterId([7; 16]),
            region: "eu-west".parse().unwrap(),
            role: Role::Secondary,
            acceptor: Acceptor::new(Leadership::first(Epoch(3), "us-east".parse().unwrap())),
            rejoining: false,
            system_id: Some(SystemId(42)),
            memory: Memory { id: 3, together: [("a".parse().unwrap(), 9)].into(), ..Memory::default() },
            forgot: true,
            unnamed: false,
            aside: None,
            carried: BTreeMap::new(),
            data_number: 7,
            writers: vec![3, 4],
            headed: Some("3.5-9f3a".parse().unwrap()),
            agreed: Some(Leadership::first(Epoch(2), "us-east".parse().unwrap())),
        }
    }

    #[test]
    fn round_trips_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("region.json");
        assert_eq!(RegionState::load(&path).unwrap(), None);
        state().save(&path).unwrap();
        assert_eq!(RegionState::load(&path).unwrap(), Some(state()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn another_clusters_data_is_refused_with_a_remedy() {
        let path = Path::new("region.json");
        let region = state().region;
        let other = state().verify(path, ClusterId([8; 16]), &region).unwrap_err();
        assert!(other.to_string().contains("--data"), "{other}");
        assert!(state().verify(path, ClusterId([7; 16]), &"us-east".parse().unwrap()).is_err());
        state().verify(path, ClusterId([7; 16]), &region).unwrap();
    }

    #[test]
    fn a_file_of_an_earlier_version_is_read_and_its_voter_remembers() {
        let earlier = r#"{"format":2,"cluster_id":"07070707070707070707070707070707","region":"eu-west","role":"secondary",
            "acceptor":{"promised":{"round":4,"proposer":1},"accepted":{"number":{"round":3,"proposer":1},
            "record":{"epoch":1,"primary":"us-east","promotion":null,"history":[]}}},"rejoining":false,"system_id":42}"#;
        let state = RegionState::parse(earlier.as_bytes()).unwrap();
        assert!(state.memory.remembers && state.memory.may_create);
        assert_eq!((state.forgot, state.unnamed, state.aside), (false, false, None));
        assert_eq!(state.acceptor.record().system_id, None);
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        for bad in [
            "",
            "{}",
            "[1]",
            r#"{"format":1,"cluster_id":"","region":"a","role":"primary","epoch":1,"system_id":null}"#,
        ] {
            assert!(RegionState::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
