//! Traces of batches: which batch is sampled, and the spans of those that are on their way.
//!
//! A sampled batch is one trace over all regions. Its spans do not nest as calls do: a batch passes from task
//! to task, several go at once, and most steps end because an LSN was reached. So a batch is remembered here
//! by its LSNs, and each step says that it was reached. Whoever is no step of a sampled batch learns that
//! from one atomic, and reads no clock.
//!
//! The context crosses between regions as the W3C's `traceparent` has it: a trace, the span that it came
//! from, and that it is sampled.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::otlp::{Span, SpanKind};

/// Sampled batches that are remembered: those of a minute at one a second. Of an older one that goes to a
/// region only now, the region's spans are missing.
const WAYS_MAX: usize = 64;

/// Spans that wait to be sent; of more, the oldest go.
const SPANS_MAX: usize = 4096;

/// Where spans come from: a trace, and the span that is their parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace; not zero.
    pub trace: u128,
    /// The span; not zero.
    pub span: u64,
}

/// A trace's id, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A step that ends when an LSN is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The volume has taken the batch.
    Append,
    /// Four of its six copies have it on their disks.
    Quorum,
    /// Commits up to there may return.
    Release,
    /// The standby was given it.
    Feed,
    /// The standby has applied it.
    Apply,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Append => "append",
            Step::Quorum => "quorum",
            Step::Release => "release",
            Step::Feed => "feed",
            Step::Apply => "apply",
        }
    }
}

/// The way of a sampled batch through one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The parent of the spans.
    pub context: Context,
    /// Where the batch begins, an LSN as a number.
    pub begin: u64,
    /// Where it ends.
    pub end: u64,
    /// When the last step ended, microseconds since 1970.
    pub at_us: i64,
    /// The number of the next span, which makes its id.
    pub next: u64,
    /// The steps to come, in their order.
    pub ahead: &'static [Step],
    /// What each span says.
    pub attributes: Vec<(String, String)>,
    /// The span of the whole, which ends with the last step.
    pub whole: Option<Span>,
}

impl Way {
    /// The span of a step that ended at `to_us`; the next one begins there. Where a clock was set back, it
    /// took no time.
    #[must_use]
    pub fn step(&mut self, name: &str, kind: SpanKind, to_us: i64) -> Span {
        let (from_us, to_us) = (self.at_us, to_us.max(self.at_us));
        // Ids of one region's spans follow the one that they came from, which was drawn.
        let id = self.context.span.wrapping_add(self.next).max(1);
        (self.at_us, self.next) = (to_us, self.next + 1);
        Span {
            trace: self.context.trace,
            id,
            parent: self.context.span,
            name: name.to_owned(),
            kind,
            from_us,
            to_us,
            attributes: self.attributes.clone(),
        }
    }

    /// The spans of the steps up to `step`, which was reached at `now_us`; none where it is not ahead.
    fn reached(&mut self, step: Step, now_us: i64) -> Vec<Span> {
        let Some(place) = self.ahead.iter().position(|ahead| *ahead == step) else { return Vec::new() };
        let (done, ahead) = self.ahead.split_at(place + 1);
        self.ahead = ahead;
        let steps = done.iter().map(|step| self.step(step.name(), SpanKind::Internal, now_us));
        let mut spans: Vec<Span> = steps.collect();
        if let Some(mut whole) = self.whole.take_if(|_| ahead.is_empty()) {
            whole.to_us = self.at_us;
            spans.push(whole);
        }
        spans
    }
}

/// Whoever samples batches and follows them. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    region: String,
    on: AtomicBool,
    /// The next batch may be sampled.
    permit: AtomicBool,
    /// How many ways have steps ahead.
    under_way: AtomicU64,
    /// The highest end of the ways; 0 without any.
    end: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ways: VecDeque<Way>,
    spans: VecDeque<Span>,
}

impl Tracer {
    /// A tracer of `region`, which follows nothing before it is switched on.
    #[must_use]
    pub fn of(region: &str) -> Tracer {
        Tracer(Arc::new(Inner { region: region.to_owned(), ..Inner::default() }))
    }

    /// What each span of a batch says: the region, the epoch, and the batch's LSNs.
    #[must_use]
    pub fn attributes(&self, epoch: u64, begin: &dyn Display, end: &dyn Display) -> Vec<(String, String)> {
        let own = |key: &str, value: String| (format!("replicator.{key}"), value);
        vec![
            own("region", self.0.region.clone()),
            own("epoch", epoch.to_string()),
            own("begin_lsn", begin.to_string()),
            own("end_lsn", end.to_string()),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere costs a span at worst.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows batches from now on, or does not any more: then all is forgotten.
    pub fn switch(&self, on: bool) {
        let mut state = self.lock();
        self.0.on.store(on, Ordering::Relaxed);
        self.0.permit.store(false, Ordering::Relaxed);
        if !on {
            *state = State::default();
            self.note(&state);
        }
    }

    /// Whether batches are followed.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// One more batch may be sampled, the next that is cut; these do not add up.
    pub fn permit(&self) {
        self.0.permit.store(self.is_on(), Ordering::Relaxed);
    }

    /// Whether the batch that is being cut is sampled.
    #[must_use]
    pub fn samples(&self) -> bool {
        self.0.permit.load(Ordering::Relaxed) && self.0.permit.swap(false, Ordering::Relaxed)
    }

    /// What [`Tracer::reached`] and [`Tracer::sent_as`] look at first.
    fn note(&self, state: &State) {
        let under_way = state.ways.iter().filter(|way| !way.ahead.is_empty()).count();
        self.0.under_way.store(under_way as u64, Ordering::Relaxed);
        self.0.end.store(state.ways.iter().map(|way| way.end).max().unwrap_or(0), Ordering::Relaxed);
    }

    /// Follows a sampled batch.
    pub fn follow(&self, way: Way) {
        let mut state = self.lock();
        if !self.is_on() {
            return;
        }
        if state.ways.len() >= WAYS_MAX {
            state.ways.pop_front();
        }
        state.ways.push_back(way);
        self.note(&state);
    }

    /// Whether a batch is followed that has steps ahead.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.0.under_way.load(Ordering::Relaxed) > 0
    }

    /// All up to `lsn` has passed `step`, and so the steps before it. The clock is read only where that ends
    /// one of a sampled batch.
    pub fn reached(&self, step: Step, lsn: u64, now_us: impl Fn() -> i64) {
        if !self.follows() {
            return;
        }
        let mut state = self.lock();
        let mut ended = Vec::new();
        for way in state.ways.iter_mut().filter(|way| way.end <= lsn && way.ahead.contains(&step)) {
            ended.extend(way.reached(step, now_us()));
        }
        if !ended.is_empty() {
            keep(&mut state.spans, ended);
            self.note(&state);
        }
    }

    /// The context of the batch from `begin` to `end`, if it is a sampled one of this region's.
    #[must_use]
    pub fn sent_as(&self, begin: u64, end: u64) -> Option<(Context, Vec<(String, String)>)> {
        if end > self.0.end.load(Ordering::Relaxed) {
            return None;
        }
        let state = self.lock();
        let way = state.ways.iter().rev().find(|way| (way.begin, way.end) == (begin, end))?;
        Some((way.context, way.attributes.clone()))
    }

    /// Has spans sent.
    pub fn put(&self, spans: impl IntoIterator<Item = Span>) {
        let mut state = self.lock();
        if self.is_on() {
            keep(&mut state.spans, spans);
        }
    }

    /// The spans that are to be sent.
    #[must_use]
    pub fn take(&self) -> Vec<Span> {
        std::mem::take(&mut self.lock().spans).into()
    }
}

fn keep(spans: &mut VecDeque<Span>, more: impl IntoIterator<Item = Span>) {
    for span in more {
        if spans.len() >= SPANS_MAX {
            spans.pop_front();
        }
        spans.push_back(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(begin: u64, ahead: &'static [Step]) -> Way {
        Way {
            context: Context { trace: 7, span: 100 },
            begin,
            end: begin + 10,
            at_us: 1_000,
            next: 1,
            ahead,
            attributes: Vec::new(),
            whole: None,
        }
    }

    fn never() -> i64 {
        panic!("no clock is read")
    }

    fn told(tracer: &Tracer) -> Vec<(String, i64, i64)> {
        tracer.take().into_iter().map(|span| (span.name, span.from_us, span.to_us)).collect()
    }

    #[test]
    fn off_and_for_batches_that_are_not_sampled_nothing_is_asked() {
        let tracer = Tracer::default();
        tracer.permit();
        assert!(!tracer.samples() && !tracer.is_on());
        tracer.follow(way(10, &[Step::Quorum]));
        tracer.reached(Step::Quorum, 100, never);
        tracer.switch(true);
        assert!(!tracer.samples(), "not before it is permitted");
        tracer.permit();
        tracer.permit();
        assert_eq!((tracer.samples(), tracer.samples()), (true, false), "they do not add up");
        tracer.follow(way(10, &[Step::Quorum]));
        tracer.reached(Step::Quorum, 19, never);
        tracer.reached(Step::Apply, 100, never);
        assert_eq!((tracer.sent_as(10, 21), tracer.sent_as(11, 20)), (None, None));
        assert_eq!(tracer.sent_as(10, 20).map(|(context, _)| context.span), Some(100));
        tracer.switch(false);
        assert_eq!((tracer.sent_as(10, 20), tracer.follows()), (None, false), "all is forgotten");
    }

    #[test]
    fn steps_follow_each_other_and_a_later_one_ends_those_before() {
        let tracer = Tracer::default();
        tracer.switch(true);
        tracer.follow(way(10, &[Step::Append, Step::Quorum, Step::Feed, Step::Apply]));
        tracer.reached(Step::Append, 20, || 1_100);
        tracer.reached(Step::Feed, 25, || 1_300);
        tracer.reached(Step::Quorum, 25, never);
        tracer.reached(Step::Apply, 25, || 1_200);
        assert!(!tracer.follows());
        let spans = tracer.take();
        let ids: Vec<(u64, u64)> = spans.iter().map(|span| (span.parent, span.id)).collect();
        assert_eq!(ids, [(100, 101), (100, 102), (100, 103), (100, 104)]);
        let times: Vec<(&str, i64, i64)> =
            spans.iter().map(|span| (span.name.as_str(), span.from_us, span.to_us)).collect();
        let wanted = [("append", 1_000, 1_100), ("quorum", 1_100, 1_300), ("feed", 1_300, 1_300)];
        assert_eq!(times[..3], wanted);
        assert_eq!(times[3], ("apply", 1_300, 1_300), "the clock was set back");
    }

    #[test]
    fn the_whole_ends_with_the_last_step() {
        let tracer = Tracer::default();
        tracer.switch(true);
        let mut first = way(10, &[Step::Append, Step::Quorum]);
        let mut whole = first.step("batch", SpanKind::Internal, 0);
        (whole.from_us, whole.id, whole.parent) = (900, 100, 0);
        first.whole = Some(whole);
        tracer.follow(first);
        tracer.reached(Step::Append, 20, || 1_100);
        assert_eq!(told(&tracer), [("append".into(), 1_000, 1_100)]);
        tracer.reached(Step::Quorum, 20, || 1_200);
        assert_eq!(told(&tracer), [("quorum".into(), 1_100, 1_200), ("batch".into(), 900, 1_200)]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let tracer = Tracer::default();
        tracer.switch(true);
        for begin in 0..1_000 {
            tracer.follow(way(begin * 10, &[Step::Apply]));
            tracer.put((0..10).map(|_| way(0, &[]).step("x", SpanKind::Internal, 1)));
        }
        let state = tracer.lock();
        assert_eq!((state.ways.len(), state.spans.len()), (WAYS_MAX, SPANS_MAX));
        drop(state);
        assert!(tracer.sent_as(9_990, 10_000).is_some() && tracer.sent_as(0, 10).is_none());
    }
}
