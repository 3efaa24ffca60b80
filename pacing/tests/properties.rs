//! Whatever comes, in whatever order, the controller answers within its bounds.

#![allow(missing_docs, reason = "a test")]

use proptest::prelude::*;
use replicator_pacing::{Controller, Event, Remembered};

fn event() -> impl Strategy<Value = Event> {
    let number = || prop_oneof![0..3_000_000_u64, any::<u64>()];
    prop_oneof![
        number().prop_map(|bytes| Event::Sent { bytes }),
        (number(), number(), any::<bool>()).prop_map(|(sent_us, bytes, application_limited)| Event::Acked {
            sent_us,
            bytes,
            application_limited
        }),
        (number(), any::<bool>())
            .prop_map(|(in_flight, application_limited)| Event::AcksEnd { in_flight, application_limited }),
        (number(), number(), any::<bool>()).prop_map(|(sent_us, bytes, persistent)| Event::Lost {
            sent_us,
            bytes,
            persistent
        }),
        number().prop_map(|bytes| Event::Mtu { bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_breaks_it(
        known in prop::option::of((any::<u64>(), any::<u64>())),
        mtu in any::<u64>(),
        events in prop::collection::vec((prop_oneof![0..200_000_u64, any::<u64>()], event()), 1..300),
    ) {
        let known = known.map(|(bandwidth, propagation_us)| Remembered { bandwidth, propagation_us });
        let mut controller = Controller::new(0, mtu, known);
        let mut now_us = 0_u64;
        for (later_us, event) in events {
            now_us = now_us.saturating_add(later_us);
            let decision = controller.handle(now_us, event);
            prop_assert_eq!(decision, controller.decision());
            prop_assert!((4..=1 << 30).contains(&decision.window), "{:?}", decision);
        }
    }
}
