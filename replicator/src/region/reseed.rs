//! A region that an operator has seeded anew: what it has is moved aside, and nothing is deleted. Its
//! certificate, its vote and the lost writes that it keeps stay.
//!
//! The daemon notes that in `region.json` and ends; the next one moves the data before anything uses them,
//! and goes on where a crash has left off.

use std::io;
use std::path::Path;
use std::time::Duration;

use coordination::region::Part;
use proto::messages::{Refusal, refusal::Kind};
use runtime::private;

use super::Region;
use crate::config::Role;
use crate::layout::RegionLayout;
use crate::region_file::{RegionState, StateError};

/// How long the answer to the operator may take to leave.
const ANSWER: Duration = Duration::from_millis(200);

impl Region {
    /// Has this region's data set aside; returns where they will be.
    ///
    /// # Errors
    /// When it leads or shall lead, or that is not known.
    pub(super) fn reseed(&self) -> Result<String, Refusal> {
        let me = &self.own.name;
        self.voter.able()?;
        let no = |why: String| Refusal::new(Kind::NotAllowed, format!("{why}; nothing was changed"));
        let record = self.voter.accepted();
        let agreed = self.voter.agreed().map(|agreed| agreed.record);
        let agreed = agreed
            .ok_or_else(|| no(format!("region {me} has not heard yet who leads: ask again in a moment")))?;
        let plays = !matches!(self.owner.part(), Part::Starting | Part::Following);
        if plays || record.primary == *me || agreed.primary == *me {
            return Err(no(format!(
                "region {me} is the primary: promote another region first (replicator promote --region R)"
            )));
        }
        if let Some(promotion) = record.promotion.or(agreed.promotion) {
            return Err(no(format!("a {} to {} is in progress", promotion.mode, promotion.to)));
        }
        if let [zone] = self.own.zones_apart()[..] {
            // Two copies with the old log beside four without one choose neither.
            return Err(no(format!(
                "the copies of zone {zone} are another process', and would keep the old log alone: stop that process, move volume/az-{zone} \
                 aside on its host, take it out of the file (`own_process`, or the node's `zone`), restart this region's daemon, and reseed then"
            )));
        }
        let name = name_of(time::OffsetDateTime::now_utc());
        let noted = self.file.change(|state| {
            state.aside.get_or_insert(name);
        });
        noted.map_err(|e| Refusal::new(Kind::Failed, e.to_string()))?;
        let place = self.layout.aside(self.file.get().aside.as_deref().unwrap_or_default());
        tracing::warn!("region {me}: sets its data aside in {}, to be seeded anew", place.display());
        self.again.cancel();
        Ok(place.display().to_string())
    }

    /// Returns once this daemon is to end and be started again, and whoever ordered that has its answer.
    pub(super) async fn starts_again(&self) {
        self.again.cancelled().await;
        tokio::time::sleep(ANSWER).await;
    }
}

/// The directory's name: the time, to the second.
fn name_of(at: time::OffsetDateTime) -> String {
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}-{:02}-{:02}Z", at.hour(), at.minute(), at.second())
}

/// Moves aside what `state` says is to be, before anything uses it. Zones in `apart`, which other processes
/// hold, keep their copies.
///
/// # Errors
/// When it cannot be moved; it is tried again at the next start.
pub(super) fn set_aside(
    places: &RegionLayout,
    mut state: RegionState,
    apart: &[char],
) -> Result<RegionState, StateError> {
    let Some(name) = state.aside.clone() else { return Ok(state) };
    let aside = places.aside(&name);
    let failed = |path: &Path, source: io::Error| StateError::Io { path: path.display().to_string(), source };
    let volume = aside.join("volume");
    private::make_directory(&volume).map_err(|e| failed(&aside, e))?;
    let mut moves =
        vec![(places.pgdata(), aside.join("pgdata")), (places.tablespaces(), aside.join("tablespaces"))];
    for zone in ['a', 'b', 'c'].into_iter().filter(|zone| !apart.contains(zone)) {
        let zone = format!("az-{zone}");
        let from = places.volume().join(&zone);
        // A mount point or a link of its own stays: what is in it moves within it.
        match moves_whole(&from, &aside) {
            true => moves.push((from, volume.join(&zone))),
            false => {
                let within = from.join(format!("aside-{name}"));
                private::make_directory(&within).map_err(|e| failed(&within, e))?;
                moves.extend(
                    [1, 2]
                        .map(|copy| format!("{}{copy}", &zone[3..]))
                        .map(|copy| (from.join(&copy), within.join(&copy))),
                );
            }
        }
    }
    for (from, to) in moves {
        match std::fs::rename(&from, &to) {
            Ok(()) => tracing::info!("{}: moved to {}", from.display(), to.display()),
            // Never there, or moved before a crash.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&from, e)),
        }
    }
    for directory in [places.directory(), &aside, &volume] {
        std::fs::File::open(directory).and_then(|file| file.sync_all()).map_err(|e| failed(directory, e))?;
    }
    state.has_no_data();
    (state.aside, state.rejoining, state.forgot) = (None, false, true);
    state.role = Role::Secondary;
    state.save(&places.state())?;
    Ok(state)
}

/// Whether `from` is a directory that lies where `to` does.
fn moves_whole(from: &Path, to: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::symlink_metadata(from), std::fs::metadata(to)) {
        (Ok(from), Ok(to)) => from.is_dir() && from.dev() == to.dev(),
        // There is nothing to move.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use coordination::Leadership;
    use proto::{ClusterId, Epoch, SystemId};

    use super::*;
    use crate::layout::Layout;

    #[test]
    fn the_data_are_moved_and_the_vote_and_the_certificate_stay() {
        let data = tempfile::tempdir().unwrap();
        let places = Layout::new(data.path().into()).region(&"a".parse().unwrap());
        let write = |path: &str| {
            let path = places.directory().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        for path in [
            "identity/key",
            "pgdata/PG_VERSION",
            "tablespaces/7/PG_15_1/5/6",
            "lost/epoch-1/meta",
            "volume/az-a/a1/log",
            "volume/az-b/b1/log",
        ] {
            write(path);
        }
        // Zone c is on a disk of its own.
        let disk = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(disk.path().join("c1")).unwrap();
        std::os::unix::fs::symlink(disk.path(), places.volume().join("az-c")).unwrap();
        let first = Leadership::first(Epoch(3), "b".parse().unwrap());
        let mut state = RegionState::new(ClusterId([1; 16]), "a".parse().unwrap(), Role::Primary, first, 7);
        (state.system_id, state.memory.remembers) = (Some(SystemId(4)), true);
        let unchanged = set_aside(&places, state.clone(), &[]).unwrap();
        assert_eq!(unchanged, state);
        state.aside = Some("T".into());
        // A crash after the first of them.
        std::fs::create_dir_all(places.aside("T")).unwrap();
        std::fs::rename(places.pgdata(), places.aside("T").join("pgdata")).unwrap();
        let after = set_aside(&places, state.clone(), &['b']).unwrap();
        for path in ["pgdata/PG_VERSION", "tablespaces/7/PG_15_1/5/6", "volume/az-a/a1/log"] {
            assert!(
                places.aside("T").join(path).exists() && !places.directory().join(path).exists(),
                "{path}"
            );
        }
        assert!(places.directory().join("volume/az-b/b1/log").exists(), "another process has it");
        assert!(disk.path().join("aside-T/c1").exists() && places.volume().join("az-c").is_symlink());
        assert!(places.identity().join("key").exists());
        assert!(places.lost().join("epoch-1/meta").exists(), "`replicator lost` still finds it");
        assert_eq!((after.system_id, after.forgot, after.aside.clone()), (None, true, None));
        assert_eq!((&after.acceptor, &after.memory), (&state.acceptor, &state.memory), "the vote");
        assert_eq!(RegionState::load(&places.state()).unwrap(), Some(after));
    }

    #[test]
    fn a_directory_is_named_by_its_time() {
        assert_eq!(name_of(time::OffsetDateTime::UNIX_EPOCH), "1970-01-01T00-00-00Z");
    }
}
