//! The places of tablespaces: made and linked before the region's standby is given the redo that makes them,
//! or takes files of them, and never shared with another PostgreSQL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::Instance;
use postgres::tablespaces::{Place, PlaceError};
use postgres::wal::tablespaces::Created;
use proto::Lsn;
use proto::messages::Tablespace;
use runtime::task::{Ended, blocking};
use secondary::feed::Places;
use tokio::sync::watch;

use super::Region;

/// How often it is looked whether places are of no use any more.
const LOOK: Duration = Duration::from_secs(5);

/// The places of this region's own PostgreSQL.
#[derive(Debug)]
pub(crate) struct OwnPlaces {
    instance: Instance,
    made: Mutex<Made>,
}

/// What is known of places since the daemon began.
#[derive(Debug, Default)]
struct Made {
    /// Made for redo that the standby may have applied before, in the last life of it: then it makes nothing
    /// there, as where the tablespace was dropped since.
    unused: Vec<(Lsn, Place)>,
    /// Those that were there when it was looked last.
    seen: BTreeMap<u32, PathBuf>,
}

impl Places for OwnPlaces {
    fn make(&self, tablespace: &Created) -> Result<(), String> {
        let Created { lsn, oid, path } = tablespace;
        // One in the data directory has no path.
        if path.is_empty() {
            return Ok(());
        }
        let about =
            |what: &dyn std::fmt::Display| format!("the redo makes tablespace {oid} in {path}: {what}");
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // What has a link has a place.
        if self.instance.tablespace(*oid).is_some() {
            return Ok(());
        }
        let place = self.instance.place(*oid, Path::new(path)).map_err(|e| about(&e))?;
        self.instance.link(&place).map_err(|e| about(&e))?;
        tracing::info!("the redo makes tablespace {oid} in {path}: here it lies in {}", place.path.display());
        made.unused.push((*lsn, place));
        Ok(())
    }
}

impl OwnPlaces {
    pub(super) fn new(instance: Instance) -> OwnPlaces {
        OwnPlaces { instance, made: Mutex::default() }
    }

    /// Makes the places of what comes by a seed, with the bytes that are to come; blocks.
    pub(super) fn of_seed(&self, tablespaces: &[Tablespace]) -> Result<Vec<(Place, u64)>, PlaceError> {
        let place = |of: &Tablespace| Ok((self.instance.place(of.oid, Path::new(&of.path))?, of.bytes));
        tablespaces.iter().map(place).collect()
    }

    /// Makes and links the places of what a rewind is to find; blocks.
    pub(super) fn of_rewind(&self, tablespaces: &[Tablespace]) -> Result<(), PlaceError> {
        for of in tablespaces {
            let place = self.instance.place(of.oid, Path::new(&of.path))?;
            self.instance.link(&place)?;
        }
        Ok(())
    }

    /// Removes the links and places that are of no use any more, where the standby has applied redo up to
    /// `applied_lsn`; blocks.
    fn tidy(&self, applied_lsn: Lsn) -> Result<(), postgres::instance::InstanceError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = made.unused.extract_if(.., |(lsn, _)| *lsn < applied_lsn).collect::<Vec<_>>();
        // Made and dropped since it was looked last, it would never have been there.
        made.seen.extend(applied.iter().map(|(_, place)| (place.oid, place.path.clone())));
        let unlinked = applied.iter().map(|(_, place)| self.instance.unlink_unused(place));
        unlinked.collect::<Result<Vec<bool>, _>>()?;
        let there: BTreeMap<u32, PathBuf> =
            self.instance.tablespaces()?.into_iter().map(|place| (place.oid, place.path)).collect();
        let gone = std::mem::replace(&mut made.seen, there.clone()).into_iter();
        for (oid, path) in gone.filter(|(oid, _)| !there.contains_key(oid)) {
            self.instance.release(&path)?;
            if !path.starts_with(self.instance.mapped()) {
                tracing::info!(
                    "tablespace {oid} is dropped; its directory {} stays, as PostgreSQL leaves it: remove it if nobody needs it",
                    path.display()
                );
            }
        }
        for path in self.instance.drop_unused_places()? {
            tracing::info!(
                "{}: the tablespace that was here is dropped, and the directory removed",
                path.display()
            );
        }
        Ok(())
    }
}

impl Region {
    /// Removes places that are of no use any more, for ever.
    pub(super) async fn tidy_places(self: Arc<Self>) {
        let mut failed = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let cluster = self.owner.cluster();
            let tidied = match (cluster.leader(), cluster.follower()) {
                (Some(_), _) => self.tidy_up_to(Lsn::ZERO).await,
                // While data are replaced places are made that nothing leads to yet.
                (None, Some(follower)) => match follower.seeding.try_lock() {
                    Ok(_turn) => self.tidy_up_to(follower.applied().unwrap_or(Lsn::ZERO)).await,
                    Err(_) => continue,
                },
                (None, None) => continue,
            };
            let why = match tidied {
                Ok(Ok(())) => String::new(),
                Ok(Err(e)) => e.to_string(),
                Err(e) => e.to_string(),
            };
            if failed != why && !why.is_empty() {
                tracing::warn!("places of tablespaces that are dropped stay: {why}");
            }
            failed = why;
        }
    }

    async fn tidy_up_to(
        &self,
        applied_lsn: Lsn,
    ) -> Result<Result<(), postgres::instance::InstanceError>, Ended> {
        let places = self.places.clone();
        blocking("tidy the places of tablespaces", move || places.tidy(applied_lsn)).await
    }
}

/// Those of a node's standby: they lie in its data directory, where PostgreSQL makes them.
#[derive(Debug)]
pub(super) struct BelowData;

impl Places for BelowData {
    fn make(&self, _: &Created) -> Result<(), String> {
        Ok(())
    }
}

/// Those of a node of an earlier version, whose PostgreSQL would not start with them again: it is copied anew
/// without the tablespace once that is dropped.
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
            "the redo makes tablespace {oid} in {path}, and the node is of an earlier version, which has no tablespaces: update it"
        ))
    }
}
