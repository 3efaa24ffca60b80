//! What a copy that misses redo is brought next, and by whom.

use proto::{Lsn, Timeline};

use super::{Effect, Log};
use crate::copy::{Order, SegmentInfo, Stored};
use crate::quorum::{CopyId, CopyState, Input, Writer};

/// What a copy may be sent at once when it goes over from being filled to being live, bytes.
const ATTACH_BYTES: u64 = 32 << 20;

/// Segments brought at once to one copy.
const SEGMENTS_AT_ONCE: usize = 3;

/// What is to be done next for a copy that is being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillStep {
    /// Nothing: it is sent every append now.
    Live,
    /// Nothing: it was lost, failed, or is told anew what to hold.
    Over,
    /// No other copy that is reached has what it lacks from this LSN on: look again after a while.
    NoSource(Lsn),
    /// Bring it what `source` has from `from_lsn` on: [`sealed_from`] whole segments where they begin there,
    /// records otherwise. All in the name of `writer`.
    Bring {
        /// In whose name.
        writer: Writer,
        /// Where the copy's redo ends.
        from_lsn: Lsn,
        /// Who has what it lacks.
        source: CopyId,
        /// Which history the copy must hold before it takes a whole segment: [`Log::newest_history`].
        history: Timeline,
    },
}

impl Log {
    /// Goes on with filling a copy; says what is to be brought to it.
    pub fn fill(&mut self, copy: CopyId) -> FillStep {
        if *self.quorum.state(copy) != CopyState::Filling {
            return FillStep::Over;
        }
        // What is read below is this writer's log; after a reset, or another opening, it is no copy's.
        let writer = self.quorum.writer();
        let from_lsn = self.quorum.flushed_lsn(copy);
        let queued_lsn = self.queued.lsn;
        if queued_lsn.bytes_since(from_lsn) <= ATTACH_BYTES {
            let missing: Option<Vec<Stored>> = match from_lsn == queued_lsn {
                true => Some(Vec::new()),
                false => self.tail.since(from_lsn).map(|found| found.map(|e| e.stored.clone()).collect()),
            };
            if let Some(missing) = missing
                && self.quorum.attach(copy, queued_lsn)
            {
                for stored in missing {
                    let order = Order::Append { writer, stored, hurried: true };
                    self.effects.push(Effect::Order(copy, order));
                }
                return FillStep::Live;
            }
        }
        let horizon_lsn = self.segments.first().map_or(Lsn::ZERO, |segment| segment.begin_lsn);
        if from_lsn < horizon_lsn {
            // What it lacks is gone meanwhile: it begins anew.
            self.again(copy);
            return FillStep::Over;
        }
        let best = self.holders(from_lsn).filter(|holder| *holder != copy).max_by_key(|holder| {
            // One that is itself whole, and not suspected, before one that is not.
            (self.tally(*holder).damage.is_empty(), *self.quorum.state(*holder) == CopyState::Live)
        });
        match best {
            Some(source) => FillStep::Bring { writer, from_lsn, source, history: self.newest_history() },
            None => FillStep::NoSource(from_lsn),
        }
    }

    /// The newest timeline that a history is kept of; the first needs none.
    #[must_use]
    pub fn newest_history(&self) -> Timeline {
        self.histories.keys().next_back().copied().unwrap_or(Timeline(1))
    }

    /// Whether a copy that is being filled has said that it holds everything up to `end_lsn`; none when it is
    /// not being filled any more.
    #[must_use]
    pub fn is_filled(&self, copy: CopyId, end_lsn: Lsn) -> Option<bool> {
        let filling = *self.quorum.state(copy) == CopyState::Filling;
        filling.then(|| self.quorum.flushed_lsn(copy) >= end_lsn)
    }

    /// Has a copy say again what it holds, and be filled from there.
    pub fn again(&mut self, copy: CopyId) {
        if self.quorum.is_adopted(copy) {
            self.handle(Input::Reached(copy));
        }
    }

    /// Has a copy give up its newest segment, which rotted, and be filled from where that begins.
    pub fn distrust(&mut self, copy: CopyId) {
        let writer = self.quorum.writer();
        self.effects.push(Effect::Order(copy, Order::DistrustNewest(writer)));
        self.again(copy);
    }
}

/// The sealed segments that follow each other from `from_lsn` on, as many as are brought at once.
#[must_use]
pub fn sealed_from(segments: &[SegmentInfo], from_lsn: Lsn) -> Vec<SegmentInfo> {
    let sealed = &segments[..segments.len().saturating_sub(1)];
    let first = sealed.partition_point(|segment| segment.begin_lsn < from_lsn);
    let mut next_lsn = from_lsn;
    let follows = |segment: &&SegmentInfo| {
        let follows = segment.begin_lsn == next_lsn;
        next_lsn = segment.end_lsn;
        follows
    };
    sealed[first..].iter().take_while(follows).take(SEGMENTS_AT_ONCE).copied().collect()
}
