//! Sends metrics by OTLP every few seconds, with them the spans of sampled batches, and each promotion as a
//! trace once it is over.
//!
//! One request is under way at a time. Nothing is kept for later but promotions, which are in the record
//! anyway, and the newest spans of sampled batches.

use std::sync::Arc;

use coordination::leadership::Past;
use runtime::clock::wall_us;
use telemetry::otlp::{Destination, Sender, Span, SpanKind};
use telemetry::trace::Tracer;

use super::Observer;
use super::facts::Facts;

/// Sends to `destination` for ever.
pub async fn run(destination: Destination, observer: Arc<Observer>, tracer: Tracer) {
    let traces = destination.traces;
    let mut sender = match Sender::new(destination) {
        Ok(sender) => sender,
        Err(e) => return tracing::error!("telemetry is not sent: {e}"),
    };
    let began_us = wall_us();
    let mut told_us = began_us;
    let mut failing = false;
    let mut ticks = tokio::time::interval(sender.every());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let facts = observer.facts().await;
        let mut sent = sender.send(&observer.metrics_of(&facts), began_us, facts.now_us).await;
        // What the collector does not take is lost; while it is away, they wait and the oldest go.
        let batches = if sent.is_ok() { tracer.take() } else { Vec::new() };
        if !batches.is_empty() {
            sent = sender.trace(&batches).await;
        }
        for past in to_tell(&facts, told_us).filter(|_| traces) {
            if sent.is_ok() {
                sent = sender.trace(&spans(past)).await;
            }
            if sent.is_ok() {
                told_us = past.at_us;
            }
        }
        match &sent {
            Err(e) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!("telemetry is not sent: {e}; it is tried again");
            }
            Ok(()) if std::mem::take(&mut failing) => tracing::info!("telemetry is sent again"),
            _ => {}
        }
    }
}

/// The promotions that ended after `told_us`, oldest first, which this region's voter coordinated: each is
/// told by one.
fn to_tell(facts: &Facts, told_us: i64) -> impl Iterator<Item = &Past> {
    let own = move |past: &&Past| past.promotion.coordinator == facts.region && past.at_us > told_us;
    facts.past.iter().filter(own)
}

/// A promotion as a trace: the whole, and a span for each step, one after the other. Whichever region did a
/// step, the record has it, so the trace is whole also where another voter went on with the promotion.
fn spans(past: &Past) -> Vec<Span> {
    let promotion = &past.promotion;
    let whole_us: u64 = promotion.steps.iter().map(|step| step.us).sum();
    let length = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
    let mut from_us = past.at_us.saturating_sub(length(whole_us));
    let trace = promotion.trace();
    let root = promotion.id.max(1);
    let attribute = |key: &str, value: String| (format!("replicator.{key}"), value);
    let mut attributes = vec![
        attribute("mode", promotion.mode.to_string()),
        attribute("from", promotion.from.to_string()),
        attribute("to", promotion.to.to_string()),
        attribute("epoch", promotion.epoch.0.to_string()),
        attribute("coordinator", promotion.coordinator.to_string()),
        attribute("fork_lsn", promotion.fork_lsn.to_string()),
        attribute("write_gap_us", past.write_gap_us.to_string()),
    ];
    attributes.extend(past.rolled_back.iter().map(|why| attribute("rolled_back", why.clone())));
    let mut spans = vec![Span {
        trace,
        id: root,
        parent: 0,
        name: format!("{} to {}", promotion.mode, promotion.to),
        kind: SpanKind::Internal,
        from_us,
        to_us: past.at_us,
        attributes,
    }];
    for (index, step) in (1_u64..).zip(&promotion.steps) {
        let to_us = from_us.saturating_add(length(step.us));
        let (id, name) = (root.wrapping_add(index).max(1), step.name.clone());
        let (kind, attributes) = (SpanKind::Internal, Vec::new());
        spans.push(Span { trace, id, parent: root, name, kind, from_us, to_us, attributes });
        from_us = to_us;
    }
    spans
}

#[cfg(test)]
mod tests {
    use coordination::Promotion;
    use coordination::leadership::{Done, Loss, Mode, Step};
    use proto::{Epoch, Lsn};

    use super::super::health::tests::following;
    use super::*;

    fn past(coordinator: &str, at_us: i64) -> Past {
        let step = |name: &str, us| Done { name: name.into(), us };
        let promotion = Promotion {
            id: 7,
            mode: Mode::Switchover,
            from: "b".parse().unwrap(),
            to: "a".parse().unwrap(),
            epoch: Epoch(3),
            step: Step::Promote,
            coordinator: coordinator.parse().unwrap(),
            attempt: 1,
            forced: false,
            lost: [].into(),
            loss_max_bytes: None,
            order: None,
            fork_lsn: Lsn(100),
            parent: 2,
            loss: Loss::default(),
            steps: vec![step("stop the writer", 300), step("promote PostgreSQL", 500)],
        };
        Past { promotion, at_us, write_gap_us: 700, rolled_back: None }
    }

    #[test]
    fn a_promotion_is_one_trace_whose_steps_follow_each_other_and_end_with_it() {
        let spans = spans(&past("a", 10_000));
        let times: Vec<(&str, i64, i64)> =
            spans.iter().map(|span| (span.name.as_str(), span.from_us, span.to_us)).collect();
        let wanted = [
            ("switchover to a", 9_200, 10_000),
            ("stop the writer", 9_200, 9_500),
            ("promote PostgreSQL", 9_500, 10_000),
        ];
        assert_eq!(times, wanted);
        assert!(spans.iter().all(|span| span.trace == spans[0].trace));
        assert!(spans[1..].iter().all(|span| span.parent == spans[0].id && span.id != span.parent));
    }

    #[test]
    fn each_promotion_is_told_by_one_region_and_once() {
        let mut facts = following();
        facts.past = vec![past("a", 10), past("b", 20), past("a", 30)];
        let told = |after_us| to_tell(&facts, after_us).map(|past| past.at_us).collect::<Vec<_>>();
        assert_eq!((told(0), told(10), told(30)), (vec![10, 30], vec![30], vec![]));
    }
}
