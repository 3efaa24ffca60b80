//! The places of tablespaces: made before the region's standby is given the redo that names them, and never
//! shared with another PostgreSQL.

use std::path::{Path, PathBuf};

use postgres::instance::Instance;
use postgres::wal::tablespaces::Created;
use proto::Lsn;
use secondary::feed::Places;
use tokio::sync::watch;

/// The places of this region's own standby.
#[derive(Debug)]
pub(super) struct OwnPlaces {
    pub(super) instance: Instance,
}

impl Places for OwnPlaces {
    fn make(&self, tablespace: &Created) -> Result<(), String> {
        let Created { oid, path, .. } = tablespace;
        let place = PathBuf::from(path);
        // One in the data directory has no path; one that this standby has made before is its own.
        if path.is_empty() || self.instance.tablespace(*oid).is_some_and(|made| made == place) {
            return Ok(());
        }
        let about = |what: &str| format!("the redo makes tablespace {oid} in {path}, {what}");
        match used(&place) {
            Some(by) => Err(about(&format!(
                "and {by} there is another PostgreSQL's: regions that share a machine would write each other's files. Drop the tablespace on \
                 the primary, or run this region on a machine of its own; where that PostgreSQL is gone for good, move {by} away"
            ))),
            None if place.is_dir() => Ok(()),
            // As PostgreSQL's account: where a path of the database's leads is nowhere that only the
            // daemon may write.
            None => self.instance.make_directory(&place).map_err(|e| {
                about(&format!(
                    "which is not there, and cannot be made: {e}; make it: install -d -m 700 -o {} {path}",
                    self.instance.options().account.name
                ))
            }),
        }
    }
}

/// What is in `place` that a tablespace of some PostgreSQL is.
fn used(place: &Path) -> Option<String> {
    let names = std::fs::read_dir(place).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().find(|name| name.starts_with("PG_"))
}

/// Those of a node's standby, which are on another host, or on this one: it is copied anew without the
/// tablespace once that is dropped.
#[derive(Debug)]
pub(super) struct NoPlaces {
    pub(super) missing: watch::Sender<Option<Lsn>>,
}

impl Places for NoPlaces {
    fn make(&self, tablespace: &Created) -> Result<(), String> {
        let Created { lsn, oid, path } = tablespace;
        if path.is_empty() {
            return Ok(());
        }
        self.missing.send_replace(Some(*lsn));
        Err(format!(
            "the redo makes tablespace {oid} in {path}, and replicas have no tablespaces: it is copied anew once that is dropped"
        ))
    }
}
