//! The spans of a sampled batch in the primary region: read, cut and compressed here, then appended, on four
//! of six copies, and released; and a span for each region that it is shipped to.

use proto::messages::TraceContext;
use proto::{Batch, Epoch};
use telemetry::otlp::{Span, SpanKind};
use telemetry::trace::{Context, Step, Tracer, Way};

use crate::batcher::Cut;

/// The batch as it was `cut` at `now_us`, with the spans of what is behind it. Its trace begins when the
/// writer sent the oldest of its redo.
pub(crate) fn begun(tracer: &Tracer, cut: &Cut, epoch: Epoch, now_us: i64) -> (Way, Vec<Span>) {
    let end_lsn = cut.begin_lsn + cut.redo.len() as u64;
    let trace = runtime::random::draw::<u128>().max(1);
    let root = runtime::random::draw::<u64>().max(1);
    let attributes = tracer.attributes(epoch.0, &cut.begin_lsn, &end_lsn);
    let read_us = cut.newest_commit_us.min(now_us);
    let from_us = cut.oldest_sent_us.min(read_us);
    let whole = Span {
        trace,
        id: root,
        parent: 0,
        name: "batch".into(),
        kind: SpanKind::Internal,
        from_us,
        to_us: now_us,
        attributes: attributes.clone(),
    };
    let mut way = Way {
        context: Context { trace, span: root },
        begin: cut.begin_lsn.0,
        end: end_lsn.0,
        at_us: from_us,
        next: 1,
        ahead: &[Step::Append, Step::Quorum, Step::Release],
        attributes,
        whole: Some(whole),
    };
    let read = way.step("read", SpanKind::Internal, read_us);
    let cut = way.step("cut", SpanKind::Internal, now_us);
    (way, vec![read, cut])
}

/// The span of a sampled batch's way to `region`, which begins at `now_us`, and what is sent with the batch;
/// none for another batch, and then no clock is read.
pub(crate) fn shipped(
    tracer: &Tracer,
    batch: &Batch,
    region: &str,
    now_us: impl Fn() -> i64,
) -> Option<(Span, TraceContext)> {
    let (context, mut attributes) = tracer.sent_as(batch.begin_lsn.0, batch.end_lsn.0)?;
    let from_us = now_us();
    attributes.push(("replicator.to".into(), region.into()));
    let id = runtime::random::draw::<u64>().max(1);
    let (trace, parent) = (context.trace, context.span);
    let (name, kind) = ("ship".into(), SpanKind::Producer);
    let span = Span { trace, id, parent, name, kind, from_us, to_us: from_us, attributes };
    let trace_id = trace.to_be_bytes().to_vec().into();
    Some((span, TraceContext { trace_id, span_id: id, flags: TraceContext::SAMPLED }))
}

#[cfg(test)]
mod tests {
    use proto::{Lsn, Timeline};

    use super::*;

    fn cut(oldest_sent_us: i64, newest_commit_us: i64) -> Cut {
        Cut {
            timeline: Timeline(1),
            begin_lsn: Lsn(100),
            redo: vec![0; 50],
            ends_in_record: false,
            newest_commit_us,
            oldest_sent_us,
        }
    }

    fn batch(begin: u64) -> Batch {
        Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(begin),
            end_lsn: Lsn(begin + 50),
            context_lsn: Lsn(begin),
            newest_commit_us: 0,
            redo_crc32c: 0,
            payload: b"x".as_slice().into(),
            ends_in_record: false,
        }
    }

    #[test]
    fn reading_ends_with_the_newest_redo_and_cutting_when_the_batch_left() {
        let tracer = Tracer::of("a");
        for (oldest, newest, wanted) in
            [(1_000, 1_500, [(1_000, 1_500), (1_500, 2_000)]), (3_000, 3_000, [(2_000, 2_000); 2])]
        {
            let (way, spans) = begun(&tracer, &cut(oldest, newest), Epoch(1), 2_000);
            let times: Vec<(i64, i64)> = spans.iter().map(|span| (span.from_us, span.to_us)).collect();
            assert_eq!(times, wanted, "a writer's clock that is ahead makes no time");
            assert_eq!(way.whole.map(|whole| whole.from_us), Some(wanted[0].0));
        }
    }

    #[test]
    fn only_a_sampled_batch_is_sent_with_a_context_which_leads_back_to_it() {
        let tracer = Tracer::of("a");
        tracer.switch(true);
        let (way, _) = begun(&tracer, &cut(1, 2), Epoch(1), 3);
        let root = way.context;
        tracer.follow(way);
        let never = || panic!("no clock is read");
        assert_eq!(shipped(&tracer, &batch(150), "b", never), None);
        assert_eq!(shipped(&tracer, &batch(90), "b", never), None);
        let (span, context) = shipped(&tracer, &batch(100), "b", || 9).unwrap();
        assert_eq!((span.trace, span.parent, span.from_us), (root.trace, root.span, 9));
        assert_eq!(context.sampled(), Some((root.trace, span.id)));
        let not = [
            TraceContext { flags: 0, ..context.clone() },
            TraceContext { span_id: 0, ..context.clone() },
            TraceContext { trace_id: vec![1; 15].into(), ..context.clone() },
            TraceContext { trace_id: vec![0; 16].into(), ..context },
        ];
        assert!(not.iter().all(|context| context.sampled().is_none()));
    }
}
