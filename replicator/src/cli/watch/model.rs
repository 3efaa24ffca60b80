//! What the view shows, as it was heard; no terminal here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use coordination::leadership::Promotion;
use proto::messages::{ClusterStatus, Event};

use crate::events::merge;
use crate::operator::Journals;
use crate::verdict::{Verdict, judge};

/// The samples of each region: what the widest terminal shows.
const SAMPLES_MAX: usize = 600;

/// The newest events that are kept.
const EVENTS_MAX: usize = 200;

/// What the daemons answered.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// When, microseconds since 1970.
    pub(super) at_us: i64,
    /// The status, or why there is none.
    pub(super) status: Result<ClusterStatus, String>,
    /// The promotion in progress.
    pub(super) promotion: Option<Promotion>,
}

/// What is shown of one region over time.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// The visibility lag at each sample, milliseconds; none while it was not known.
    pub(super) lags: VecDeque<Option<u64>>,
    /// Redo and WAN bytes a second, by the last two samples.
    pub(super) rates: Option<(u64, u64)>,
    last: Option<(i64, u64, u64)>,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    /// The lag above which a region is degraded.
    pub(super) max_lag: Duration,
    /// The last answer.
    pub(super) asked: Option<Asked>,
    /// What is made of it.
    pub(super) verdict: Verdict,
    /// Each region's course.
    pub(super) courses: BTreeMap<String, Course>,
    /// The newest events, oldest first.
    pub(super) events: VecDeque<(String, Event)>,
    keys: BTreeSet<String>,
}

impl Model {
    /// Nothing was heard yet.
    pub(super) fn new(max_lag: Duration) -> Model {
        Model {
            max_lag,
            asked: None,
            verdict: Verdict::unknown("asking"),
            courses: BTreeMap::new(),
            events: VecDeque::new(),
            keys: BTreeSet::new(),
        }
    }

    /// Takes events that are new.
    pub(super) fn note(&mut self, new: Journals) {
        let mut all: Vec<(String, Event)> = std::mem::take(&mut self.events).into();
        for (name, event) in merge(new) {
            if event.key.is_empty() || self.keys.insert(event.key.clone()) {
                all.push((name, event));
            }
        }
        // A region that was away tells late what happened meanwhile.
        all.sort_by_key(|(_, event)| event.at_us);
        let beyond = all.len().saturating_sub(EVENTS_MAX);
        self.events = all.split_off(beyond).into();
    }

    /// Takes what the daemons answered.
    pub(super) fn take(&mut self, asked: Asked) {
        self.verdict = match &asked.status {
            Ok(status) => judge(status, self.max_lag),
            Err(why) => Verdict::unknown(why),
        };
        match &asked.status {
            Ok(status) => {
                for row in &status.regions {
                    let course = self.courses.entry(row.name.clone()).or_default();
                    course.push(row.visibility_lag_ms);
                    course.rate(asked.at_us, row.redo_bytes, row.wan_bytes);
                }
            }
            Err(_) => self.courses.values_mut().for_each(|course| course.push(None)),
        }
        self.asked = Some(asked);
    }
}

impl Course {
    fn push(&mut self, lag_ms: Option<u64>) {
        self.lags.push_back(lag_ms);
        if self.lags.len() > SAMPLES_MAX {
            self.lags.pop_front();
        }
    }

    fn rate(&mut self, at_us: i64, redo: u64, wan: u64) {
        let before = self.last.replace((at_us, redo, wan));
        self.rates = before.and_then(|(before_us, redo_before, wan_before)| {
            let us = u64::try_from(at_us - before_us).ok().filter(|us| *us > 0)?;
            // They begin at zero again where another daemon ships.
            let per_second =
                |now: u64, before: u64| Some(now.checked_sub(before)?.saturating_mul(1_000_000) / us);
            Some((per_second(redo, redo_before)?, per_second(wan, wan_before)?))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::messages::RegionStatus;

    fn asked(at_us: i64, redo_bytes: u64) -> Asked {
        let row = RegionStatus {
            name: "b".into(),
            redo_bytes,
            visibility_lag_ms: Some(3),
            ..RegionStatus::default()
        };
        let status = Ok(ClusterStatus { regions: vec![row], ..ClusterStatus::default() });
        Asked { at_us, status, promotion: None }
    }

    #[test]
    fn rates_are_those_of_the_last_second_and_unknown_where_counting_began_anew() {
        let mut model = Model::new(Duration::from_secs(5));
        let rates = |model: &Model| model.courses["b"].rates;
        model.take(asked(1_000_000, 100));
        assert_eq!(rates(&model), None);
        model.take(asked(3_000_000, 500));
        assert_eq!(rates(&model), Some((200, 0)));
        model.take(asked(4_000_000, 7));
        assert_eq!(rates(&model), None);
        model.take(Asked { status: Err("away".into()), ..asked(5_000_000, 0) });
        assert_eq!(model.courses["b"].lags, [Some(3), Some(3), Some(3), None]);
        assert_eq!(model.verdict.level, crate::verdict::Level::Down);
    }

    #[test]
    fn an_event_is_shown_once_and_late_ones_in_their_place() {
        let event = |at_us, key: &str| Event { at_us, key: key.into(), ..Event::default() };
        let mut model = Model::new(Duration::from_secs(5));
        model.note(vec![("a".into(), vec![event(10, "k"), event(30, "")])]);
        model.note(vec![("b".into(), vec![event(11, "k"), event(20, "")])]);
        assert_eq!(model.events.iter().map(|(_, event)| event.at_us).collect::<Vec<_>>(), [10, 20, 30]);
    }
}
