//! Background repair: fills copies that miss redo from their peers, reads everything back, and mends what
//! rotted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::{Batch, Lsn};
use runtime::task::Task;

use crate::VolumeError;
use crate::copy::{Damage, Link, Order, Put, Stored};
use crate::head::{Head, now_us};
use crate::log::{FillStep, sealed_from};
use crate::quorum::CopyId;
use crate::segment;

/// The wait before a fill that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

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
                    tracing::info!(lsn = %from_lsn, "copy {copy} is filled from its peers from {from_lsn} on");
                }
                head.change(|log| log.tally_mut(copy).filled_bytes += bytes);
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
    let (writer, from_lsn, source_id, history) = match head.change(|log| log.fill(copy)) {
        FillStep::Live => return Ok(Filled::Live),
        FillStep::Over => return Ok(Filled::NotMine),
        FillStep::NoSource(lsn) => return Err(VolumeError::NoCopy { lsn }),
        FillStep::Bring { writer, from_lsn, source, history } => (writer, from_lsn, source, history),
    };
    let Some(link) = head.link(copy) else { return Ok(Filled::NotMine) };
    let source = head.link(source_id).ok_or(VolumeError::NoCopy { lsn: from_lsn })?;
    let segments = source.contents().await?.segments;
    let sealed = sealed_from(&segments, from_lsn);
    if !sealed.is_empty() {
        let puts: Vec<Put> = sealed.into_iter().map(|segment| Put { writer, segment, history }).collect();
        let bytes = put_segments(head, (copy, &link), (source_id, &source), &puts).await?;
        let end_lsn = puts.last().map_or(from_lsn, |put| put.segment.end_lsn);
        return until_flushed(head, copy, end_lsn, bytes).await;
    }
    let records = read_from(head, source_id, &source, from_lsn).await?;
    known_forged(head, source_id, || open(head, &records).map(drop))?;
    let (mut bytes, mut end_lsn) = (0, from_lsn);
    for stored in records {
        bytes += stored.record.len() as u64;
        end_lsn = stored.batch.end_lsn;
        link.order(Order::Append { writer, stored, hurried: true });
    }
    until_flushed(head, copy, end_lsn, bytes).await
}

/// Waits until the copy has said that it holds what it was given up to `end_lsn`: never more than one read is
/// on its way.
async fn until_flushed(
    head: &Arc<Head>,
    copy: CopyId,
    end_lsn: Lsn,
    bytes: u64,
) -> Result<Filled, VolumeError> {
    let mut filled = head.filled.subscribe();
    loop {
        match head.look(|log| log.is_filled(copy, end_lsn)) {
            None => return Ok(Filled::NotMine),
            Some(true) => return Ok(Filled::More(bytes)),
            Some(false) => {}
        }
        let _ = tokio::time::timeout(AGAIN, filled.changed()).await;
    }
}

async fn put_segments(
    head: &Arc<Head>,
    (copy, link): (CopyId, &Arc<dyn Link>),
    (source_id, source): (CopyId, &Arc<dyn Link>),
    puts: &[Put],
) -> Result<u64, VolumeError> {
    let fetching: Vec<_> = puts
        .iter()
        .map(|put| {
            let (source, segment) = (source.clone(), put.segment);
            Task::spawn("fetching a segment", async move { source.fetch(segment).await })
        })
        .collect();
    let mut bytes = 0;
    for (put, fetched) in puts.iter().zip(fetching) {
        let fetched =
            fetched.await.map_err(|_| VolumeError::Closed)?.inspect_err(|e| suspect(head, source_id, e))?;
        bytes += fetched.len() as u64;
        known_forged(head, source_id, || verify(head, &fetched))?;
        if let Err(e) = link.put(*put, fetched).await {
            // Where it stands may be another place than was thought: it is asked.
            head.change(|log| log.again(copy));
            return Err(e);
        }
    }
    Ok(bytes)
}

/// Reads from any copy that can, and opens what is sealed: redo up to what is on the disks of those that hold
/// the chosen log.
pub(crate) async fn read_any(head: &Head, lsn: Lsn) -> Result<Vec<Batch>, VolumeError> {
    let able: Vec<CopyId> = head.look(|log| {
        let mut able: Vec<CopyId> = log.holders(lsn).collect();
        able.sort_by_key(|copy| (!log.tally(*copy).damage.is_empty(), !head.options.copies.contains(copy)));
        able
    });
    let sources = able.into_iter().filter_map(|copy| Some((copy, head.link(copy)?)));
    let mut error = VolumeError::NoCopy { lsn };
    for (copy, link) in sources {
        let read = match read_from(head, copy, &link, lsn).await {
            Ok(records) => open(head, &records).inspect_err(|e| forged(head, copy, e)),
            Err(e) => Err(e),
        };
        match read {
            Ok(batches) => return Ok(batches),
            Err(e) => error = e,
        }
    }
    Err(error)
}

/// The batches in records, opened where they are sealed.
fn open(head: &Head, records: &[Stored]) -> Result<Vec<Batch>, VolumeError> {
    let open = |stored: &Stored| match &head.options.sealer {
        Some(sealer) => {
            let opened = sealer.open(&stored.record, stored.begins_segment)?;
            Ok(opened.unwrap_or_else(|| stored.batch.clone()))
        }
        None => match segment::key_of(&stored.record) {
            Some(key) => Err(VolumeError::NoKey { key, begin_lsn: stored.batch.begin_lsn }),
            None => Ok(stored.batch.clone()),
        },
    };
    records.iter().map(open).collect()
}

/// Whether all of a segment opens that a copy gave.
fn verify(head: &Head, bytes: &Bytes) -> Result<(), VolumeError> {
    head.options.sealer.as_ref().map_or(Ok(()), |sealer| sealer.verify(bytes))
}

/// What a copy gave is not passed on to another one when it is known to be forged. Without its key nothing is
/// known, and it goes as it is.
fn known_forged(
    head: &Head,
    copy: CopyId,
    opened: impl FnOnce() -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    match opened() {
        Err(e @ VolumeError::Forged { .. }) => {
            forged(head, copy, &e);
            Err(e)
        }
        _ => Ok(()),
    }
}

/// What a copy gave does not open, and matches its checksum: it is mended from another copy.
fn forged(head: &Head, copy: CopyId, error: &VolumeError) {
    let VolumeError::Forged { begin_lsn } = error else { return };
    let what = format!("copy {copy}: {error}");
    let (known, segment) = head.change(|log| {
        let segment = log.segments().iter().rev().find(|segment| segment.begin_lsn <= *begin_lsn);
        let segment = segment.map(|segment| segment.begin_lsn);
        let damage = &mut log.tally_mut(copy).damage;
        let known = damage.contains(&what);
        if !known {
            damage.push(what.clone());
        }
        (known, segment)
    });
    if let Some(segment) = segment.filter(|_| !known) {
        tracing::error!(
            "{what}; it is read from another copy instead, and the segment from {segment} is mended"
        );
        head.forged(copy, segment);
    }
}

/// Replaces a copy's segment that was forged by a peer's.
pub(crate) async fn replace(head: Arc<Head>, copy: CopyId, begin_lsn: Lsn) {
    let Some(link) = head.link(copy) else { return };
    let damage = Damage { begin_lsn, what: format!("the segment from {begin_lsn} was changed or moved") };
    match mend(&head, copy, &link, &damage).await {
        Ok(()) => {
            tracing::info!("copy {copy}: the segment from {begin_lsn} is mended from a peer");
            head.change(|log| {
                let tally = log.tally_mut(copy);
                tally.repaired_segments += 1;
                tally.damage.clear();
            });
        }
        Err(e) => tracing::error!("copy {copy}: the segment from {begin_lsn} cannot be mended yet: {e}"),
    }
}

async fn read_from(
    head: &Head,
    copy: CopyId,
    link: &Arc<dyn Link>,
    lsn: Lsn,
) -> Result<Vec<Stored>, VolumeError> {
    link.read(lsn).await.inspect_err(|e| suspect(head, copy, e))
}

/// What could not be read is looked at more closely.
fn suspect(head: &Head, copy: CopyId, error: &VolumeError) {
    if matches!(error, VolumeError::Damaged { .. } | VolumeError::Io { .. }) {
        let (known, hangs) = head.change(|log| {
            let hangs = log.hangs_on(copy).is_some();
            let damage = &mut log.tally_mut(copy).damage;
            let known = !damage.is_empty();
            if !known {
                damage.push(error.to_string());
            }
            (known, hangs)
        });
        if !known {
            tracing::error!("copy {copy}: {error}; read from another copy instead");
        }
        // Where the volume hangs on it there is no other: it is looked at again, whatever was found before.
        if !known || hangs {
            head.suspect(copy);
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
    let link = head.link(copy).filter(|_| head.look(|log| log.quorum().is_adopted(copy)));
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
    head.change(|log| {
        let tally = log.tally_mut(copy);
        tally.repaired_segments += repaired;
        tally.scrubbed_us = now_us();
        tally.damage = left;
    });
}

async fn mend(
    head: &Arc<Head>,
    copy: CopyId,
    link: &Arc<dyn Link>,
    damage: &Damage,
) -> Result<(), VolumeError> {
    let segments = loop {
        let segments = link.contents().await?.segments;
        if segments.last().is_some_and(|newest| newest.begin_lsn > damage.begin_lsn) {
            break segments;
        }
        // It is being written: the copy gives it up, and is filled from where it begins.
        if head.change(|log| log.distrust(copy)) {
            return Ok(());
        }
        if !head.look(|log| log.quorum().is_joining(copy)) {
            return Err(VolumeError::NoCopy { lsn: damage.begin_lsn });
        }
        // The volume was opened anew meanwhile.
        tokio::time::sleep(AGAIN).await;
    };
    let (writer, history) = head.look(|log| (log.quorum().writer(), log.newest_history()));
    let mut last = VolumeError::NoCopy { lsn: damage.begin_lsn };
    let adopted = |peer: &CopyId| *peer != copy && head.look(|log| log.quorum().is_adopted(*peer));
    let peers: Vec<Arc<dyn Link>> =
        CopyId::all().filter(adopted).filter_map(|peer| head.link(peer)).collect();
    for peer in peers {
        let theirs = peer.contents().await?.segments;
        // A whole segment missing shows as the one before it ending too early: everything up to the next one
        // here.
        let until_lsn = segments.iter().map(|s| s.begin_lsn).find(|begin| *begin > damage.begin_lsn);
        let wanted = theirs[..theirs.len().saturating_sub(1)]
            .iter()
            .filter(|s| s.begin_lsn >= damage.begin_lsn && until_lsn.is_none_or(|until| s.begin_lsn < until));
        let mut mended = false;
        for segment in wanted {
            let put = Put { writer, segment: *segment, history };
            let put = async {
                let bytes = peer.fetch(*segment).await?;
                verify(head, &bytes).or_else(|e| match e {
                    VolumeError::Forged { .. } => Err(e),
                    _ => Ok(()),
                })?;
                link.put(put, bytes).await
            };
            match put.await {
                Ok(()) => mended = true,
                Err(e) => last = e,
            }
        }
        if mended {
            return Ok(());
        }
    }
    // Nobody else has all of it. Where the volume cannot be opened for that, the copy gives its newest
    // segments up, one after the other, until the rest can be read.
    if let Some(lsn) = head.look(|log| log.hangs_on(copy))
        && matches!(link.read(lsn).await, Err(VolumeError::Damaged { .. } | VolumeError::Io { .. }))
        && head.change(|log| log.distrust(copy))
    {
        tracing::error!(
            "copy {copy}: its redo from {lsn} on cannot be read, and no other copy has it; its newest segment is given up, so that a \
             log can be chosen again"
        );
        return Ok(());
    }
    Err(last)
}

/// Keeps repair below its rate.
async fn pace(head: &Head, bytes: u64) {
    let rate = head.tuning.borrow().repair_bytes_per_second.max(1);
    tokio::time::sleep(Duration::from_micros(bytes.saturating_mul(1_000_000) / rate)).await;
}
