//! A modelled disk: what of a copy's writes is there after a crash, a power loss, a failed flush, or rot.

use std::collections::BTreeMap;

use proto::{Lsn, Timeline, TimelineHistory};
use volume::copy::keeper::Store;
use volume::copy::meta::{Lost, Meta};
use volume::copy::{SegmentInfo, Stored};
use volume::quorum::Vote;
use volume::seal::KeyId;
use volume::segment::{Found, HEADER_BYTES, read_record};
use volume::{Durable, VolumeError};

use super::super::Dice;
use super::Spoken;

/// A record on the disk, or in the system's memory alone.
#[derive(Debug, Clone)]
pub struct Kept {
    pub stored: Stored,
    /// A power loss leaves it.
    sure: bool,
    /// It cannot be read any more.
    rotten: bool,
}

/// A segment: its records, in order. One may be missing after a torn write.
#[derive(Debug, Clone, Default)]
struct Segment {
    begin_lsn: Lsn,
    /// As its header says.
    key: Option<KeyId>,
    records: Vec<Kept>,
}

/// What happens at one of the next changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fuse {
    /// The power goes, in the middle of it.
    Power,
    /// The disk fails, and what was written may be read and is on no disk.
    Fails,
}

/// A copy's disk, and what is open of it.
#[derive(Debug)]
pub struct Disk {
    meta: Meta,
    segments: Vec<Segment>,
    histories: BTreeMap<Timeline, TimelineHistory>,
    end: Durable,
    /// After so many changes this happens.
    pub fuse: Option<(u64, Fuse)>,
    /// The power went.
    pub dead: bool,
    dice: Dice,
    spoken: Spoken,
}

impl Disk {
    pub fn new(seed: u64, spoken: Spoken) -> Disk {
        Disk {
            meta: Meta::default(),
            segments: Vec::new(),
            histories: BTreeMap::new(),
            end: Durable::default(),
            fuse: None,
            dead: false,
            dice: Dice::new(seed),
            spoken,
        }
    }

    /// The redo at `at`, if it is there and can be read.
    pub fn redo(&self, at: u64) -> Option<u32> {
        self.record(Lsn(at)).map(|kept| kept.stored.batch.redo_crc32c)
    }

    fn record(&self, lsn: Lsn) -> Option<&Kept> {
        let segment = self.segments.iter().rfind(|segment| segment.begin_lsn <= lsn)?;
        let mut records = segment.records.iter();
        records.find(|kept| kept.stored.batch.begin_lsn == lsn && !kept.rotten)
    }

    /// All records that can be read.
    pub fn records(&self) -> impl Iterator<Item = &Stored> {
        let records = self.segments.iter().flat_map(|segment| &segment.records);
        records.filter(|kept| !kept.rotten).map(|kept| &kept.stored)
    }

    /// All redo, by its place.
    pub fn content(&self) -> BTreeMap<u64, u32> {
        let records = self.segments.iter().flat_map(|segment| &segment.records);
        records.map(|kept| (kept.stored.batch.begin_lsn.0, kept.stored.batch.redo_crc32c)).collect()
    }

    pub fn begin_lsn(&self) -> Lsn {
        self.segments.first().map_or(self.meta.begin.lsn, |segment| segment.begin_lsn)
    }

    pub fn history(&self, timeline: Timeline) -> Option<&TimelineHistory> {
        self.histories.get(&timeline)
    }

    pub fn histories(&self) -> Vec<TimelineHistory> {
        self.histories.values().cloned().collect()
    }

    /// The segments as readers see them.
    pub fn infos(&self) -> Vec<SegmentInfo> {
        let info = |segment: &Segment| {
            let flushed = segment.records.iter().filter(|kept| self.is_flushed(kept));
            let begin_lsn = segment.begin_lsn;
            let mut info =
                SegmentInfo { begin_lsn, end_lsn: begin_lsn, key: segment.key, ..SegmentInfo::default() };
            info.stored_bytes = HEADER_BYTES as u64;
            for kept in flushed {
                info.end_lsn = kept.stored.batch.end_lsn;
                info.stored_bytes += kept.stored.record.len() as u64;
                info.newest_commit_us = kept.stored.batch.newest_commit_us;
            }
            info
        };
        self.segments.iter().map(info).collect()
    }

    /// Whether readers see it: what a failed flush left is not shown.
    fn is_flushed(&self, kept: &Kept) -> bool {
        kept.stored.batch.end_lsn <= self.end.lsn
    }

    /// Up to `count` records from `lsn` on; none when one of them cannot be read.
    pub fn read(&self, lsn: Lsn, count: usize) -> Option<Vec<Stored>> {
        let records = self.segments.iter().flat_map(|segment| &segment.records);
        let wanted =
            records.filter(|kept| kept.stored.batch.begin_lsn >= lsn && self.is_flushed(kept)).take(count);
        let read: Option<Vec<Stored>> =
            wanted.map(|kept| (!kept.rotten).then(|| kept.stored.clone())).collect();
        read.filter(|read| read.first().is_some_and(|first| first.batch.begin_lsn == lsn))
    }

    /// The records of one segment; none when one of them cannot be read.
    pub fn fetch(&self, info: SegmentInfo) -> Option<Vec<Stored>> {
        let segment = self.segments.iter().find(|segment| segment.begin_lsn == info.begin_lsn)?;
        segment.records.iter().map(|kept| (!kept.rotten).then(|| kept.stored.clone())).collect()
    }

    /// A record of the newest segment rots, one that `may` rot. Whether there was one.
    pub fn rot(&mut self, dice: &mut Dice, may: impl Fn(&Stored, Lsn) -> bool) -> bool {
        let Some(newest) = self.segments.last_mut() else { return false };
        let proof = newest.records.iter().map(|kept| proof_of(&kept.stored)).max().unwrap_or_default();
        let able: Vec<usize> = (0..newest.records.len())
            .filter(|index| {
                let kept = &newest.records[*index];
                !kept.rotten && may(&kept.stored, proof)
            })
            .collect();
        let Some(index) = able.get(usize::try_from(dice.below(able.len() as u64)).unwrap_or(0)) else {
            return false;
        };
        newest.records[*index].rotten = true;
        true
    }

    /// The first segment with a record that cannot be read, and whether it is the newest.
    pub fn rotten(&self) -> Option<(SegmentInfo, bool)> {
        let is_rotten = |segment: &Segment| segment.records.iter().any(|kept| kept.rotten);
        let index = self.segments.iter().position(is_rotten)?;
        Some((*self.infos().get(index)?, index + 1 == self.segments.len()))
    }

    /// The process ends; with the power, what only memory had is gone.
    pub fn close(&mut self, power: bool) {
        if power {
            for segment in &mut self.segments {
                segment.records.retain(|kept| kept.sure);
            }
        }
    }

    /// As the copy's directory is opened: what follows the last good record of the newest segment is cut off,
    /// and may prove that more was durable; what is left is written again.
    pub fn open(&mut self) {
        (self.dead, self.fuse) = (false, None);
        let (mut proven_lsn, mut behind_lsn) = (Lsn::ZERO, Lsn::ZERO);
        while let Some(newest) = self.segments.last_mut() {
            let mut next_lsn = newest.begin_lsn;
            let mut good = 0;
            for kept in newest.records.iter().filter(|kept| !kept.rotten) {
                proven_lsn = proven_lsn.max(proof_of(&kept.stored));
                behind_lsn = behind_lsn.max(kept.stored.batch.end_lsn);
            }
            while let Some(kept) = newest.records.get(good)
                && kept.stored.batch.begin_lsn == next_lsn
                && !kept.rotten
            {
                next_lsn = kept.stored.batch.end_lsn;
                good += 1;
            }
            newest.records.truncate(good);
            newest.records.iter_mut().for_each(|kept| kept.sure = true);
            if good > 0 {
                break;
            }
            self.segments.pop();
        }
        self.end = self.found_end();
        let lost = Lost { proven_lsn, end_lsn: behind_lsn.max(proven_lsn) };
        if proven_lsn > self.end.lsn
            && let Some(meta) = self.meta.lose(self.end.lsn, lost)
        {
            self.meta = meta;
        }
    }

    fn found_end(&self) -> Durable {
        let last = self.segments.last().and_then(|segment| segment.records.last());
        last.map_or(self.meta.begin, |kept| {
            let batch = &kept.stored.batch;
            Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch }
        })
    }

    /// Something is changed now; whether it meets with a mishap.
    fn mishap(&mut self) -> Option<Fuse> {
        if self.dead {
            return Some(Fuse::Power);
        }
        let (left, fuse) = self.fuse?;
        if left > 0 {
            self.fuse = Some((left - 1, fuse));
            return None;
        }
        self.fuse = None;
        if fuse == Fuse::Power {
            self.dead = true;
            self.spoken.silence();
        }
        Some(fuse)
    }

    /// Cuts behind what ends at or before `lsn`.
    fn keep_before(&mut self, lsn: Lsn) {
        for segment in &mut self.segments {
            segment.records.retain(|kept| kept.stored.batch.end_lsn <= lsn);
        }
        self.segments.retain(|segment| segment.begin_lsn < lsn);
        self.end = self.found_end();
    }
}

/// How far the volume was durable when this was written.
fn proof_of(stored: &Stored) -> Lsn {
    match read_record(&stored.record) {
        Found::Record(record) => record.durable_lsn,
        _ => Lsn::ZERO,
    }
}

fn failed() -> VolumeError {
    VolumeError::Io { path: "a modelled disk".into(), what: "it fails".into() }
}

impl Store for Disk {
    type Prepared = Vec<Stored>;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn vote(&self) -> Vote {
        let begin_lsn = self.begin_lsn();
        let begin = match begin_lsn == self.meta.begin.lsn {
            true => self.meta.begin,
            false => Durable { lsn: begin_lsn, ..Durable::default() },
        };
        Vote {
            generation: self.meta.generation,
            ballots: self.meta.ballots.clone(),
            begin,
            end: self.end,
            proven_lsn: self.meta.proven_lsn,
            held: self.meta.held,
        }
    }

    fn end(&self) -> Durable {
        self.end
    }

    fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    fn write_meta(&mut self, meta: Meta) -> Result<(), VolumeError> {
        if self.mishap().is_some() {
            // It is replaced as a whole, or not.
            if self.dice.one_in(2) {
                self.meta = meta;
            }
            return Err(failed());
        }
        self.meta = meta;
        Ok(())
    }

    fn cut(&mut self, lsn: Lsn) -> Result<(), VolumeError> {
        if self.mishap().is_some() {
            let less = self.dice.below(self.end.lsn.bytes_since(lsn) + 1);
            self.keep_before(Lsn(self.end.lsn.0 - less));
            return Err(failed());
        }
        self.keep_before(lsn);
        Ok(())
    }

    fn begin_anew(&mut self, meta: Meta) -> Result<(), VolumeError> {
        let (mishap, same) = (self.mishap(), meta.generation == self.meta.generation);
        match if mishap.is_some() { self.dice.below(3) } else { 2 } {
            // The same log's files are removed first, the newest first. Another log has a place of its own.
            0 if same => {
                let less = self.dice.below(self.end.lsn.bytes_since(self.meta.begin.lsn) + 1);
                self.keep_before(Lsn(self.end.lsn.0 - less));
            }
            1 if same => {
                self.segments.clear();
                self.histories.clear();
                self.end = self.meta.begin;
            }
            0 | 1 => {}
            _ => {
                self.segments.clear();
                self.histories.clear();
                (self.end, self.meta) = (meta.begin, meta);
            }
        }
        mishap.map_or(Ok(()), |_| Err(failed()))
    }

    fn roll(&mut self, first: &Stored) -> Result<(), VolumeError> {
        if self.mishap().is_some() {
            return Err(failed());
        }
        let key = match read_record(&first.record) {
            Found::Record(record) => record.sealed.map(|sealed| sealed.key),
            _ => None,
        };
        self.segments.push(Segment { begin_lsn: first.batch.begin_lsn, key, records: Vec::new() });
        Ok(())
    }

    fn write(&mut self, records: &[Stored]) -> Result<(), VolumeError> {
        let mishap = self.mishap();
        let Some(newest) = self.segments.last_mut() else { return Err(failed()) };
        for stored in records {
            // A write that was not flushed leaves any part of itself.
            let there = mishap.is_none() || self.dice.one_in(2);
            if there {
                let sure = mishap != Some(Fuse::Fails);
                newest.records.push(Kept { stored: stored.clone(), sure, rotten: false });
            }
        }
        if mishap.is_some() {
            return Err(failed());
        }
        self.end = self.found_end();
        Ok(())
    }

    fn install(&mut self, info: SegmentInfo, prepared: Vec<Stored>) -> Result<Durable, VolumeError> {
        if self.mishap().is_some() {
            return Err(failed());
        }
        let kept = |stored: Stored| Kept { stored, sure: true, rotten: false };
        let (begin_lsn, key) = (info.begin_lsn, info.key);
        let segment = Segment { begin_lsn, key, records: prepared.into_iter().map(kept).collect() };
        let sealed = self.segments.len().saturating_sub(1);
        let place = self.segments[..sealed].iter().position(|there| there.begin_lsn == info.begin_lsn);
        match place {
            Some(index) => self.segments[index] = segment,
            None if info.begin_lsn == self.end.lsn => {
                self.segments.retain(|there| !there.records.is_empty());
                self.segments.push(segment);
                self.end = self.found_end();
            }
            None => return Err(VolumeError::OtherWriter { begin_lsn: info.begin_lsn }),
        }
        Ok(self.end)
    }

    fn has_history(&self, timeline: Timeline) -> bool {
        timeline <= Timeline(1) || self.histories.contains_key(&timeline)
    }

    fn put_history(&mut self, history: &TimelineHistory) -> Result<(), VolumeError> {
        if self.mishap().is_some() {
            return Err(failed());
        }
        self.histories.insert(history.timeline, history.clone());
        Ok(())
    }

    fn drop_before(&mut self, lsn: Lsn) {
        let ends_before =
            |segment: &Segment| segment.records.last().is_some_and(|kept| kept.stored.batch.end_lsn <= lsn);
        while self.segments.len() > 1 && ends_before(&self.segments[0]) {
            self.segments.remove(0);
        }
    }

    fn distrust_newest(&mut self) -> Result<(), VolumeError> {
        if self.mishap().is_some() {
            return Err(failed());
        }
        if let Some(newest) = self.segments.pop() {
            let good = newest.records.iter().filter(|kept| !kept.rotten);
            let proven_lsn = good.map(|kept| proof_of(&kept.stored)).max().unwrap_or_default();
            let lost = Lost { proven_lsn, end_lsn: self.end.lsn };
            if let Some(meta) = self.meta.lose(newest.begin_lsn, lost) {
                self.meta = meta;
            }
            self.end = self.found_end();
        }
        Ok(())
    }

    fn check(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}
