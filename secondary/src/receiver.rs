//! What a secondary takes from its primary, decided without I/O.
//!
//! A batch is taken when it continues the redo that is here, under an epoch not below the highest seen, and
//! on this timeline or on one that forks off exactly where this redo ends. Nothing else is ever written.

use proto::messages::refusal::Kind;
use proto::{Batch, Epoch, Lsn, Timeline, TimelineHistory};

/// How far the redo has come that was taken, and under what leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    epoch: Epoch,
    timeline: Timeline,
    end_lsn: Lsn,
    next_history: Option<TimelineHistory>,
}

/// What to do with a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Store it.
    Take,
    /// It is here already.
    Duplicate,
    /// Refuse it, and say so to the peer.
    Refuse(Kind, String),
}

impl Receiver {
    /// A receiver that has redo up to `end_lsn` on `timeline`, the newest of it written under `epoch`.
    #[must_use]
    pub fn new(epoch: Epoch, timeline: Timeline, end_lsn: Lsn) -> Receiver {
        Receiver { epoch, timeline, end_lsn, next_history: None }
    }

    /// The end of the redo taken.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// The epoch of the newest redo.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes the history of a timeline that is to come.
    ///
    /// # Errors
    /// When it is not the history of a successor that forks off at or after the end of the redo here: then
    /// this redo and the primary's have diverged.
    pub fn history(&mut self, history: TimelineHistory) -> Result<(), (Kind, String)> {
        if history.timeline == self.timeline {
            return Ok(());
        }
        match history.fork_of(self.timeline) {
            Some(fork_lsn) if fork_lsn >= self.end_lsn => {
                self.next_history = Some(history);
                Ok(())
            }
            Some(fork_lsn) => Err((
                Kind::Diverged,
                format!(
                    "timeline {} ends at {fork_lsn} in the primary's history, and there is redo up to {} here",
                    self.timeline, self.end_lsn
                ),
            )),
            None => Err((
                Kind::Diverged,
                format!(
                    "timeline {} is not in the history of the primary's timeline {}",
                    self.timeline, history.timeline
                ),
            )),
        }
    }

    /// Judges a batch; one that is to be taken is counted as taken.
    pub fn batch(&mut self, batch: &Batch) -> Verdict {
        let refuse = |kind, why: String| {
            Verdict::Refuse(
                kind,
                format!("batch at {} on timeline {}: {why}", batch.begin_lsn, batch.timeline),
            )
        };
        if batch.epoch < self.epoch {
            return refuse(
                Kind::StaleEpoch,
                format!("epoch {} is over; epoch {} was seen", batch.epoch, self.epoch),
            );
        }
        if batch.timeline == self.timeline && batch.end_lsn <= self.end_lsn {
            return Verdict::Duplicate;
        }
        if batch.begin_lsn != self.end_lsn {
            return refuse(Kind::Failed, format!("{} was to come next", self.end_lsn));
        }
        if batch.timeline != self.timeline {
            let successor = self.next_history.take_if(|h| {
                h.timeline_at(batch.begin_lsn) == batch.timeline
                    && h.fork_of(self.timeline) == Some(batch.begin_lsn)
            });
            if successor.is_none() {
                return refuse(Kind::Diverged, format!("timeline {} does not fork off there", self.timeline));
            }
            // The same history may lead on to a further timeline.
            self.next_history = successor.filter(|h| h.timeline != batch.timeline);
        }
        self.epoch = batch.epoch;
        self.timeline = batch.timeline;
        self.end_lsn = batch.end_lsn;
        Verdict::Take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: u64, timeline: u32, begin: u64, end: u64) -> Batch {
        Batch {
            epoch: Epoch(epoch),
            timeline: Timeline(timeline),
            begin_lsn: Lsn(begin),
            end_lsn: Lsn(end),
            context_lsn: Lsn(begin),
            newest_commit_us: 0,
            redo_crc32c: 0,
            payload: b"x".as_slice().into(),
            ends_in_record: false,
        }
    }

    fn receiver() -> Receiver {
        Receiver::new(Epoch(3), Timeline(1), Lsn(100))
    }

    fn refused(verdict: Verdict) -> Option<Kind> {
        if let Verdict::Refuse(kind, _) = verdict { Some(kind) } else { None }
    }

    #[test]
    fn takes_what_continues_and_nothing_else() {
        let mut receiver = receiver();
        assert_eq!(receiver.batch(&batch(3, 1, 100, 200)), Verdict::Take);
        assert_eq!(receiver.batch(&batch(3, 1, 100, 200)), Verdict::Duplicate);
        assert_eq!(refused(receiver.batch(&batch(3, 1, 300, 400))), Some(Kind::Failed), "a gap");
        assert_eq!(refused(receiver.batch(&batch(3, 1, 150, 250))), Some(Kind::Failed), "an overlap");
        assert_eq!(receiver.end_lsn(), Lsn(200));
    }

    #[test]
    fn an_epoch_that_is_over_is_refused_for_good() {
        let mut receiver = receiver();
        assert_eq!(refused(receiver.batch(&batch(2, 1, 100, 200))), Some(Kind::StaleEpoch));
        assert_eq!(receiver.batch(&batch(4, 1, 100, 200)), Verdict::Take);
        assert_eq!(refused(receiver.batch(&batch(3, 1, 200, 300))), Some(Kind::StaleEpoch));
    }

    #[test]
    fn a_new_timeline_must_fork_off_where_the_redo_ends() {
        let history = |text: &str| TimelineHistory::parse(Timeline(2), text.as_bytes()).unwrap();
        let mut early = receiver();
        assert_eq!(
            early.history(history("1 0/63 x")).unwrap_err().0,
            Kind::Diverged,
            "0x63 = 99 is before the end"
        );

        let mut receiver = receiver();
        assert_eq!(refused(receiver.batch(&batch(3, 2, 100, 200))), Some(Kind::Diverged), "no history yet");
        receiver.history(history("1 0/C8 x")).unwrap();
        assert_eq!(refused(receiver.batch(&batch(3, 2, 100, 200))), Some(Kind::Diverged), "before the fork");
        assert_eq!(receiver.batch(&batch(3, 1, 100, 200)), Verdict::Take);
        assert_eq!(receiver.batch(&batch(3, 2, 200, 300)), Verdict::Take);
        assert_eq!(
            refused(receiver.batch(&batch(3, 1, 300, 400))),
            Some(Kind::Diverged),
            "the old timeline is over"
        );
    }

    #[test]
    fn two_promotions_in_a_row_are_followed_by_one_history() {
        let mut receiver = receiver();
        receiver.history(TimelineHistory::parse(Timeline(3), b"1 0/64 x\n2 0/C8 y\n").unwrap()).unwrap();
        assert_eq!(receiver.batch(&batch(3, 2, 100, 200)), Verdict::Take);
        assert_eq!(receiver.batch(&batch(3, 3, 200, 300)), Verdict::Take);
    }
}
