//! What PostgreSQL's control file says, as `pg_controldata` prints it.

use std::io::Read;
use std::str::FromStr;

use proto::{Lsn, SystemId, Timeline};

use crate::wal::segment::SegmentSize;

use super::floors::{NEEDED, Need};
use super::{CONTROL_DATA, Instance, InstanceError, run};

/// The control file, below the data directory.
pub(super) const CONTROL: &str = "global/pg_control";

/// The versions of control files whose places are known here: those of PostgreSQL 15 to 18.
const CONTROL_VERSIONS: [u32; 3] = [1300, 1700, 1800];

/// `DB_SHUTDOWNED_IN_RECOVERY`, of a standby that was shut down cleanly.
const SHUT_DOWN_IN_RECOVERY: u32 = 2;

/// What `ControlFileData` begins with, in the machine's order of bytes: the system identifier, the file's
/// version, that of the catalogs, and the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ControlHead {
    system_id: SystemId,
    ended_as_a_standby: bool,
}

impl ControlHead {
    fn parse(bytes: [u8; 20]) -> Option<ControlHead> {
        let (system_id, rest) = bytes.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (_, rest) = rest.split_first_chunk::<4>()?;
        let (state, _) = rest.split_first_chunk::<4>()?;
        CONTROL_VERSIONS.contains(&u32::from_ne_bytes(*version)).then(|| ControlHead {
            system_id: SystemId(u64::from_ne_bytes(*system_id)),
            ended_as_a_standby: u32::from_ne_bytes(*state) == SHUT_DOWN_IN_RECOVERY,
        })
    }
}

/// The state of a PostgreSQL cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// It was just made.
    StartingUp,
    /// A writer was shut down cleanly.
    ShutDown,
    /// A standby was shut down cleanly.
    ShutDownInRecovery,
    /// A writer is being shut down.
    ShuttingDown,
    /// A writer that crashed reads its own redo.
    InCrashRecovery,
    /// A standby follows, or was killed.
    InArchiveRecovery,
    /// A writer works, or was killed.
    InProduction,
}

impl FromStr for ClusterState {
    type Err = InstanceError;

    fn from_str(text: &str) -> Result<ClusterState, InstanceError> {
        Ok(match text {
            "starting up" => ClusterState::StartingUp,
            "shut down" => ClusterState::ShutDown,
            "shut down in recovery" => ClusterState::ShutDownInRecovery,
            "shutting down" => ClusterState::ShuttingDown,
            "in crash recovery" => ClusterState::InCrashRecovery,
            "in archive recovery" => ClusterState::InArchiveRecovery,
            "in production" => ClusterState::InProduction,
            _ => return Err(InstanceError::ControlData("a state of the cluster that is known")),
        })
    }
}

/// The control file of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlData {
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// The state of the cluster.
    pub state: ClusterState,
    /// Where the record of the newest checkpoint begins.
    pub checkpoint_lsn: Lsn,
    /// Where the redo of the newest checkpoint begins: from there on `pg_wal` has all redo.
    pub checkpoint_redo_lsn: Lsn,
    /// The timeline of the newest checkpoint.
    pub checkpoint_timeline: Timeline,
    /// The place up to which recovery must go at least; zero where there is no such place.
    pub recovery_lsn: Lsn,
    /// The timeline up to which recovery must go at least; 0 where there is no such place.
    pub recovery_timeline: Timeline,
    /// Where a backup began whose end was not applied yet; zero where there is none.
    pub backup_start_lsn: Lsn,
    /// The size of its WAL segments.
    pub segment_size: SegmentSize,
    /// What a standby needs that applies its redo.
    pub needs: [Need; 5],
}

impl ControlData {
    /// What `pg_controldata` printed in the locale `C`.
    ///
    /// # Errors
    /// Naming the line that is missing or not understood.
    pub fn parse(text: &str) -> Result<ControlData, InstanceError> {
        fn of<T: FromStr>(text: &str, name: &'static str) -> Result<T, InstanceError> {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = value.and_then(|value| value.trim().parse().ok());
            value.ok_or(InstanceError::ControlData(name))
        }
        let state: String = text
            .lines()
            .find_map(|line| line.strip_prefix("Database cluster state:"))
            .unwrap_or_default()
            .trim()
            .into();
        let segment_size = SegmentSize::new(of(text, "Bytes per WAL segment")?);
        let needs = NEEDED.map(|(name, setting)| Need { setting, least: of(text, name).unwrap_or_default() });
        Ok(ControlData {
            system_id: SystemId(of(text, "Database system identifier")?),
            state: state.parse()?,
            checkpoint_lsn: of(text, "Latest checkpoint location")?,
            checkpoint_redo_lsn: of(text, "Latest checkpoint's REDO location")?,
            checkpoint_timeline: Timeline(of(text, "Latest checkpoint's TimeLineID")?),
            recovery_lsn: of(text, "Minimum recovery ending location")?,
            backup_start_lsn: of(text, "Backup start location")?,
            recovery_timeline: Timeline(of(text, "Min recovery ending loc's timeline")?),
            segment_size: segment_size.ok_or(InstanceError::ControlData("a size of WAL segments"))?,
            needs,
        })
    }

    /// Whether a standby that was shut down cleanly could go on as a writer that has crashed, with redo up to
    /// `end_lsn` and no more: it is consistent there, and has nothing from beyond.
    #[must_use]
    pub fn could_write_on(&self, end_lsn: Lsn) -> bool {
        self.state == ClusterState::ShutDownInRecovery
            && self.backup_start_lsn == Lsn::ZERO
            && self.recovery_lsn <= end_lsn
    }

    /// Whether that standby has applied all redo up to `end_lsn`, besides: it is to be given nothing before
    /// it goes on as the writer. A control file never names a place to which it had not come.
    #[must_use]
    pub fn has_all(&self, end_lsn: Lsn) -> bool {
        self.could_write_on(end_lsn) && self.recovery_lsn == end_lsn
    }

    /// The newest timeline that the data are on for good: what a crash now leads back to.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.checkpoint_timeline.max(self.recovery_timeline)
    }
}

impl Instance {
    /// What the control file says.
    ///
    /// # Errors
    /// When there is none, or it is not understood.
    pub fn control_data(&self) -> Result<ControlData, InstanceError> {
        let options = self.options();
        let mut command = options.account.command(&self.installation().program("pg_controldata"));
        command.arg(&options.data_dir);
        ControlData::parse(&run("pg_controldata", &mut command, CONTROL_DATA)?)
    }

    /// PostgreSQL's system identifier.
    ///
    /// # Errors
    /// When there is no control file.
    pub fn system_id(&self) -> Result<SystemId, InstanceError> {
        match self.head_of_control() {
            Some(begin) => Ok(begin.system_id),
            None => self.control_data().map(|control| control.system_id),
        }
    }

    /// Whether a standby was shut down cleanly here, and nothing was started since.
    pub(super) fn ended_as_a_standby(&self) -> bool {
        match self.head_of_control() {
            Some(begin) => begin.ended_as_a_standby,
            None => {
                self.control_data().is_ok_and(|control| control.state == ClusterState::ShutDownInRecovery)
            }
        }
    }

    /// What the control file begins with, where it can be read here and is of a version whose places are
    /// known: to ask a program takes time for which a writer that is started would wait.
    fn head_of_control(&self) -> Option<ControlHead> {
        let mut bytes = [0; 20];
        self.data().ok()?.open_file(CONTROL).ok()?.read_exact(&mut bytes).ok()?;
        ControlHead::parse(bytes)
    }

    /// Where the last record of a writer begins that was shut down cleanly, a checkpoint's; none when it was
    /// not. A volume that has redo beyond it has that record whole, and so everything.
    ///
    /// # Errors
    /// When there is no control file.
    pub fn shutdown_checkpoint_lsn(&self) -> Result<Option<Lsn>, InstanceError> {
        let control = self.control_data()?;
        Ok((control.state == ClusterState::ShutDown).then_some(control.checkpoint_lsn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
pg_control version number:            1300
Database system identifier:           7576183645720837364
Database cluster state:               in archive recovery
Latest checkpoint location:           0/4000060
Latest checkpoint's REDO location:    0/4000028
Latest checkpoint's REDO WAL file:    000000010000000000000004
Latest checkpoint's TimeLineID:       1
Latest checkpoint's PrevTimeLineID:   1
Minimum recovery ending location:     0/40CDF90
Min recovery ending loc's timeline:   3
Backup start location:                0/0
Bytes per WAL segment:                16777216
max_connections setting:              250
";

    #[test]
    fn as_pg_controldata_prints_it() {
        let control = ControlData::parse(TEXT).unwrap();
        assert_eq!(
            control,
            ControlData {
                system_id: SystemId(7_576_183_645_720_837_364),
                state: ClusterState::InArchiveRecovery,
                checkpoint_lsn: Lsn(0x400_0060),
                checkpoint_redo_lsn: Lsn(0x400_0028),
                checkpoint_timeline: Timeline(1),
                recovery_lsn: Lsn(0x40C_DF90),
                recovery_timeline: Timeline(3),
                backup_start_lsn: Lsn::ZERO,
                segment_size: SegmentSize::new(16 << 20).unwrap(),
                needs: NEEDED.map(|(_, setting)| Need {
                    setting,
                    least: if setting == "max_connections" { 250 } else { 0 },
                }),
            }
        );
        assert_eq!(control.timeline(), Timeline(3));
        let stopped = ControlData { state: ClusterState::ShutDownInRecovery, ..control };
        assert!(stopped.could_write_on(Lsn(0x40C_DF90)) && !control.could_write_on(Lsn(0x40C_DF90)));
        assert!(!stopped.could_write_on(Lsn(0x40C_DF8F)), "it has something from beyond");
        assert!(stopped.has_all(Lsn(0x40C_DF90)) && !control.has_all(Lsn(0x40C_DF90)));
        assert!(!stopped.has_all(Lsn(0x40C_DF91)), "it lacks a byte");
        let within = ControlData { backup_start_lsn: Lsn(0x400_0028), ..stopped };
        assert!(!within.could_write_on(Lsn(0x40C_DF90)), "the end of its backup is not applied");
    }

    #[test]
    fn what_a_control_file_begins_with() {
        let bytes = |version: u32, state: u32| {
            let [version, catalogs, state] = [version, 202_209_061, state].map(u32::to_ne_bytes);
            let begin = [&7_576_183_645_720_837_364_u64.to_ne_bytes()[..], &version, &catalogs, &state];
            <[u8; 20]>::try_from(begin.concat()).unwrap()
        };
        let begin = |ended_as_a_standby| {
            Some(ControlHead { system_id: SystemId(7_576_183_645_720_837_364), ended_as_a_standby })
        };
        assert_eq!(ControlHead::parse(bytes(1300, 2)), begin(true));
        // Shut down as a writer, and in archive recovery.
        assert_eq!([1, 5].map(|state| ControlHead::parse(bytes(1800, state))), [begin(false); 2]);
        assert_eq!(ControlHead::parse(bytes(1900, 2)), None, "whoever wrote that is asked");
    }

    #[test]
    fn a_line_that_is_missing_is_named() {
        for line in TEXT.lines().filter(|line| !line.starts_with("pg_control") && !line.contains("WAL file"))
        {
            let without = TEXT.replace(&format!("{line}\n"), "");
            let parsed = ControlData::parse(&without);
            let needed = !["Prev", "max_"].iter().any(|part| line.contains(part));
            assert_eq!(parsed.is_err(), needed, "{line}");
        }
        let strange = TEXT.replace("in archive recovery", "on holiday");
        assert!(matches!(ControlData::parse(&strange), Err(InstanceError::ControlData(_))));
    }
}
