//! Background repair: fills copies that miss redo from their peers, reads everything back, and mends what rotted.

use std::sync::Arc;
use std::time::Duration;

use proto::Lsn;

use crate::VolumeError;
use crate::copy::{Damage, Link, Order, SegmentInfo};
use crate::head::{Head, now_us};
use crate::quorum::{CopyId, Input, Standing};

/// Segments fetched at once for one copy.
const PARALLEL: usize = 3;

/// What a copy may be sent at once when it goes over from being filled to being live, bytes.
const ATTACH_BYTES: u64 = 32 << 20;

/// The wait before a fill that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// What repair did for one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes brought from peers since the daemon started.
    pub filled_bytes: u64,
    /// Damaged segments put right since the daemon started.
    pub repaired_segments: u64,
    /// When it was last read back, microseconds since 1970; zero when it was not.
    pub scrubbed_us: i64,
    /// What the last reading found and could not be put right yet.
    pub damage: Vec<String>,
}

/// Fills a copy from `from_lsn` on until it is sent every append.
pub(crate) async fn fill(head: Arc<Head>, copy: CopyId, from_lsn: Lsn) {
    let mut said = false;
    loop {
        match fill_some(&head, copy).await {
            Ok(Filled::Live) => {
                if said {
                    tracing::info!("copy {copy} is complete again");
                }
                return;
            }
            Ok(Filled::NotMine) => return,
            Ok(Filled::More(bytes)) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!("copy {copy} is filled from its peers from {from_lsn} on");
                }
                head.lock().entry(copy).repair.filled_bytes += bytes;
                pace(&head, bytes).await;
            }
            Err(e) => {
                tracing::warn!("filling copy {copy}: {e}; trying again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

enum Filled {
    Live,
    /// The copy was lost, failed, or was told to adopt anew.
    NotMine,
    More(u64),
}

async fn fill_some(head: &Arc<Head>, copy: CopyId) -> Result<Filled, VolumeError> {
    let mut filled = head.filled.subscribe();
    let (link, from_lsn, horizon_lsn) = {
        let mut state = head.lock();
        if *state.quorum.standing(copy) != Standing::Filling {
            return Ok(Filled::NotMine);
        }
        let from_lsn = state.quorum.flushed_lsn(copy);
        let Some(link) = state.entry(copy).link.clone() else { return Ok(Filled::NotMine) };
        let (ballot, queued_lsn) = (state.quorum.ballot(), state.queued.lsn);
        let near = queued_lsn.bytes_since(from_lsn) <= ATTACH_BYTES;
        let missing: Option<Vec<_>> = match from_lsn == queued_lsn {
            true => Some(Vec::new()),
            false => state.tail.since(from_lsn).map(|entries| entries.map(|e| e.stored.clone()).collect()),
        };
        if near
            && let Some(missing) = missing
            && state.quorum.attach(copy, queued_lsn)
        {
            // Under the lock, so that no append comes in between.
            for stored in missing {
                link.order(Order::Append { ballot, stored, hurried: true });
            }
            return Ok(Filled::Live);
        }
        (link, from_lsn, state.segments.first().map_or(Lsn::ZERO, |segment| segment.begin_lsn))
    };
    if from_lsn < horizon_lsn {
        // What it lacks is gone meanwhile: it begins anew.
        again(head, copy);
        return Ok(Filled::NotMine);
    }
    let (source_id, source) =
        source_for(head, copy, from_lsn).ok_or(VolumeError::NoCopy { lsn: from_lsn })?;
    let segments = source.contents().await?.segments;
    let sealed = sealed_from(&segments, from_lsn);
    if !sealed.is_empty() {
        return put_segments(head, copy, &link, (source_id, &source), &sealed).await;
    }
    let records = read_from(head, source_id, &source, from_lsn).await?;
    let ballot = head.lock().quorum.ballot();
    let (mut bytes, mut end_lsn) = (0, from_lsn);
    for stored in records {
        bytes += stored.record.len() as u64;
        end_lsn = stored.batch.end_lsn;
        link.order(Order::Append { ballot, stored, hurried: true });
    }
    // The next is read when these are on disk: never more than one read is on its way.
    loop {
        {
            let state = head.lock();
            if *state.quorum.standing(copy) != Standing::Filling {
                return Ok(Filled::NotMine);
            }
            if state.quorum.flushed_lsn(copy) >= end_lsn {
                return Ok(Filled::More(bytes));
            }
        }
        let _ = tokio::time::timeout(AGAIN, filled.changed()).await;
    }
}

/// The sealed segments that follow each other from `from_lsn` on, as many as are fetched at once.
fn sealed_from(segments: &[SegmentInfo], from_lsn: Lsn) -> Vec<SegmentInfo> {
    let sealed = &segments[..segments.len().saturating_sub(1)];
    let first = sealed.partition_point(|segment| segment.begin_lsn < from_lsn);
    let mut next_lsn = from_lsn;
    let follows = |segment: &&SegmentInfo| {
        let follows = segment.begin_lsn == next_lsn;
        next_lsn = segment.end_lsn;
        follows
    };
    sealed[first..].iter().take_while(follows).take(PARALLEL).copied().collect()
}

async fn put_segments(
    head: &Arc<Head>,
    copy: CopyId,
    link: &Arc<dyn Link>,
    (source_id, source): (CopyId, &Arc<dyn Link>),
    sealed: &[SegmentInfo],
) -> Result<Filled, VolumeError> {
    let fetching: Vec<_> = sealed
        .iter()
        .map(|segment| {
            let (source, segment) = (source.clone(), *segment);
            tokio::spawn(async move { source.fetch(segment).await })
        })
        .collect();
    let mut bytes = 0;
    for (segment, fetched) in sealed.iter().zip(fetching) {
        let fetched =
            fetched.await.map_err(|_| VolumeError::Closed)?.inspect_err(|e| suspect(head, source_id, e))?;
        bytes += fetched.len() as u64;
        link.put(*segment, fetched).await?;
        if *head.lock().quorum.standing(copy) != Standing::Filling {
            return Ok(Filled::NotMine);
        }
    }
    Ok(Filled::More(bytes))
}

/// A copy that has the redo at `lsn`, other than `except`.
fn source_for(head: &Head, except: CopyId, lsn: Lsn) -> Option<(CopyId, Arc<dyn Link>)> {
    let mut state = head.lock();
    let best = CopyId::all()
        .filter(|copy| {
            *copy != except && state.quorum.is_adopted(*copy) && state.quorum.flushed_lsn(*copy) > lsn
        })
        // One that is itself whole, and not suspected, before one that is not.
        .max_by_key(|copy| {
            let clean = state.copies[usize::from(copy.0)].repair.damage.is_empty();
            (clean, *state.quorum.standing(*copy) == Standing::Live)
        })?;
    Some((best, state.entry(best).link.clone()?))
}

/// Reads from any copy that can: redo up to what is on the disks of those that hold the chosen log.
pub(crate) async fn read_any(head: &Head, lsn: Lsn) -> Result<Vec<crate::copy::Stored>, VolumeError> {
    let sources: Vec<(CopyId, Arc<dyn Link>)> = {
        let state = head.lock();
        let mut able: Vec<CopyId> = CopyId::all()
            .filter(|copy| state.quorum.is_adopted(*copy) && state.quorum.flushed_lsn(*copy) > lsn)
            .collect();
        able.sort_by_key(|copy| {
            let entry = &state.copies[usize::from(copy.0)];
            (!entry.repair.damage.is_empty(), !head.options.copies.contains(copy))
        });
        let link = |copy: CopyId| state.copies[usize::from(copy.0)].link.clone();
        able.into_iter().filter_map(|copy| Some((copy, link(copy)?))).collect()
    };
    let mut error = VolumeError::NoCopy { lsn };
    for (copy, link) in sources {
        match read_from(head, copy, &link, lsn).await {
            Ok(records) => return Ok(records),
            Err(e) => error = e,
        }
    }
    Err(error)
}

async fn read_from(
    head: &Head,
    copy: CopyId,
    link: &Arc<dyn Link>,
    lsn: Lsn,
) -> Result<Vec<crate::copy::Stored>, VolumeError> {
    link.read(lsn).await.inspect_err(|e| suspect(head, copy, e))
}

/// What could not be read is looked at more closely.
fn suspect(head: &Head, copy: CopyId, error: &VolumeError) {
    if matches!(error, VolumeError::Damaged { .. } | VolumeError::Io { .. }) {
        let mut state = head.lock();
        let damage = &mut state.entry(copy).repair.damage;
        let known = !damage.is_empty();
        if !known {
            damage.push(error.to_string());
        }
        drop(state);
        if !known {
            tracing::error!("copy {copy}: {error}; read from another copy instead");
            head.ask(crate::head::Task::Damaged(copy));
        }
    }
}

/// Reads every copy back and mends what rotted, one copy after the other.
pub(crate) async fn scrub_all(head: Arc<Head>) {
    for copy in CopyId::all() {
        scrub_one(head.clone(), copy).await;
    }
}

/// Reads one copy back and mends what rotted.
pub(crate) async fn scrub_one(head: Arc<Head>, copy: CopyId) {
    let link = {
        let mut state = head.lock();
        if !state.quorum.is_adopted(copy) {
            return;
        }
        state.entry(copy).link.clone()
    };
    let Some(link) = link else { return };
    let scrubbed = match link.scrub().await {
        Ok(scrubbed) => scrubbed,
        Err(e) => return tracing::warn!("reading copy {copy} back: {e}"),
    };
    let (mut left, mut repaired) = (Vec::new(), 0);
    for damage in scrubbed.damage {
        tracing::error!("copy {copy}: {}", damage.what);
        match mend(&head, copy, &link, &damage).await {
            Ok(()) => {
                tracing::info!("copy {copy}: the segment from {} is mended from a peer", damage.begin_lsn);
                repaired += 1;
            }
            Err(e) => {
                tracing::error!(
                    "copy {copy}: the segment from {} cannot be mended yet: {e}",
                    damage.begin_lsn
                );
                left.push(format!("{}; not mended yet: {e}", damage.what));
            }
        }
    }
    let mut state = head.lock();
    let tally = &mut state.entry(copy).repair;
    tally.repaired_segments += repaired;
    tally.scrubbed_us = now_us();
    tally.damage = left;
}

async fn mend(
    head: &Arc<Head>,
    copy: CopyId,
    link: &Arc<dyn Link>,
    damage: &Damage,
) -> Result<(), VolumeError> {
    let segments = link.contents().await?.segments;
    if segments.last().is_none_or(|newest| newest.begin_lsn <= damage.begin_lsn) {
        // It is being written: the copy gives it up, and is filled from where it begins.
        link.order(Order::DistrustNewest);
        again(head, copy);
        return Ok(());
    }
    let mut last = VolumeError::NoCopy { lsn: damage.begin_lsn };
    let peers: Vec<Arc<dyn Link>> = {
        let state = head.lock();
        CopyId::all()
            .filter(|peer| *peer != copy && state.quorum.is_adopted(*peer))
            .filter_map(|peer| state.copies[usize::from(peer.0)].link.clone())
            .collect()
    };
    for peer in peers {
        let theirs = peer.contents().await?.segments;
        // A whole segment missing shows as the one before it ending too early: everything up to the next one here.
        let until_lsn = segments.iter().map(|s| s.begin_lsn).find(|begin| *begin > damage.begin_lsn);
        let wanted = theirs[..theirs.len().saturating_sub(1)]
            .iter()
            .filter(|s| s.begin_lsn >= damage.begin_lsn && until_lsn.is_none_or(|until| s.begin_lsn < until));
        let mut mended = false;
        for segment in wanted {
            let put = async { link.put(*segment, peer.fetch(*segment).await?).await };
            match put.await {
                Ok(()) => mended = true,
                Err(e) => last = e,
            }
        }
        if mended {
            return Ok(());
        }
    }
    Err(last)
}

/// Has a copy say again what it holds, and be filled from there.
fn again(head: &Head, copy: CopyId) {
    let mut state = head.lock();
    head.handle(&mut state, Input::Reached(copy));
}

/// Keeps repair below its rate.
async fn pace(head: &Head, bytes: u64) {
    let rate = head.options.repair_bytes_per_second.max(1);
    tokio::time::sleep(Duration::from_micros(bytes.saturating_mul(1_000_000) / rate)).await;
}
