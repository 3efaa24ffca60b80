//! The decoders of this crate, over bytes that no correct peer or disk has: any bytes, and good ones that
//! were changed, cut, or put together anew. They are refused, or mean something; nothing panics.
//! docs/TESTING.md lists every decoder of the project.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use coordination::register::Accepted;
use coordination::{Leadership, Number};
use proptest::prelude::*;
use prost::Message;
use proto::messages::{self as m, control_response};
use proto::{Batch, ClusterId, Epoch, Lsn, RegionName, Timeline, TimelineHistory};
use replicator::config::{Config, Role};
use replicator::daemon::authority::Names;
use replicator::daemon::message;
use replicator::region::lost::{self, Lost};
use replicator::region_file::RegionState;
use replicator::render;
use replicator::voter::wire;
use replicator::zone::wire as zone;
use volume::ballot::{Ballot, Ballots};
use volume::copy::{Event, Order, Stored};
use volume::quorum::{Adoption, Held, Keep, Vote, Writer};
use volume::{Durable, segment};

fn name(text: &str) -> RegionName {
    text.parse().unwrap()
}

/// Good bytes with one thing wrong: a byte that is another, a piece that is missing, or one that is there
/// twice.
fn damaged(good: &[u8]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let good = good.to_vec();
    let length = good.len();
    (0..3_u8, 0..length, 0..length, any::<u8>()).prop_map(move |(how, at, to, byte)| {
        let (begin, end) = (at.min(to), at.max(to));
        let mut bytes = good.clone();
        match how {
            0 => bytes[at] = byte,
            1 => drop(bytes.drain(begin..end)),
            _ => {
                let piece = bytes[begin..end].to_vec();
                bytes.splice(end..end, piece);
            }
        }
        bytes
    })
}

fn region_json() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("region.json");
    let first = Leadership::first(Epoch(3), name("us-east"));
    let state = RegionState::new(ClusterId([7; 16]), name("eu-west"), Role::Secondary, first, 5);
    state.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn record() -> Vec<u8> {
    let record = Leadership::first(Epoch(3), name("us-east"));
    wire::accepted(&Accepted { number: Number { round: 5, proposer: 7 }, record }).encode_to_vec()
}

const LOST: &str = r#"{"epoch":2,"timeline":1,"from_lsn":"0/3000000","to_lsn":"0/3000100","bytes":256}"#;

const DUMP: &str = "rmgr: Heap        len (rec/tot):     59/    59, tx:        735, lsn: 0/01515E98, prev 0/01515E60, \
                    desc: INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0\n\
                    rmgr: Transaction len (rec/tot):     34/    34, tx:        735, lsn: 0/01515ED8, prev 0/01515E98, \
                    desc: COMMIT 2026-11-23 20:00:00.000000 UTC\n";

fn status() -> impl Strategy<Value = m::ClusterStatus> {
    let row = (any::<String>(), any::<Option<u64>>(), any::<Option<u64>>(), any::<u64>(), any::<u64>());
    let row = row.prop_map(|(text, one, other, done, total)| m::RegionStatus {
        name: text.clone(),
        state: "streaming".into(),
        role: text,
        durable_lsn: one,
        behind_bytes: other,
        visibility_lag_ms: one,
        durability_lag_ms: other,
        seed_bytes: done,
        seed_total_bytes: total,
        redo_bytes: done,
        wan_bytes: total,
        ..m::RegionStatus::default()
    });
    (proptest::collection::vec(row, 0..4), any::<Vec<String>>(), any::<u64>()).prop_map(
        |(regions, notes, epoch)| m::ClusterStatus { regions, notes, epoch, ..m::ClusterStatus::default() },
    )
}

/// An order of each kind, as a region's daemon gives them to a zone.
fn zone_orders() -> Vec<Vec<u8>> {
    let ballot = |opening| Ballot { epoch: Epoch(1), opening, writer: 7 };
    let writer = Writer { ballot: ballot(2), generation: 1 };
    let ballots = Ballots::new(vec![(ballot(1), Lsn(16)), (ballot(2), Lsn(64))]).unwrap();
    let adoption = |keep| Adoption { ballot: ballot(2), generation: 1, ballots: ballots.clone(), keep };
    let begin = Durable { lsn: Lsn(16), timeline: Timeline(1), epoch: Epoch(1) };
    let batch = Batch {
        epoch: Epoch(1),
        timeline: Timeline(1),
        begin_lsn: Lsn(64),
        end_lsn: Lsn(70),
        context_lsn: Lsn(64),
        newest_commit_us: 1,
        redo_crc32c: 2,
        payload: b"redo".as_slice().into(),
        ends_in_record: false,
    };
    let record = segment::record(&batch, Lsn(64));
    let history = TimelineHistory::parse(Timeline(2), b"1\t0/40\tx\n").unwrap();
    let orders = [
        Order::Promise(ballot(2)),
        Order::Adopt(adoption(Keep::Before(Lsn(64)))),
        Order::Adopt(adoption(Keep::Nothing { begin, held: Held { ballot: ballot(1), lsn: Lsn(64) } })),
        Order::Append { writer, stored: Stored::decode(&record, true).unwrap(), hurried: true },
        Order::History(writer, history),
        Order::DropBefore(writer, Lsn(32)),
        Order::DistrustNewest(writer),
        Order::Check(Some(writer)),
        Order::Check(None),
    ];
    orders.into_iter().map(|order| zone::order(order).encode_to_vec()).collect()
}

/// An event of each kind, and the answers to a daemon's questions.
fn zone_events() -> Vec<Vec<u8>> {
    let ballot = Ballot { epoch: Epoch(1), opening: 2, writer: 7 };
    let at = Durable { lsn: Lsn(16), timeline: Timeline(1), epoch: Epoch(1) };
    let vote = Vote {
        generation: 1,
        ballots: Ballots::default(),
        begin: at,
        end: at,
        proven_lsn: Lsn(16),
        held: Held { ballot: Ballot::default(), lsn: Lsn(17) },
    };
    let events = [
        Event::Promised(ballot, vote),
        Event::Refused(ballot),
        Event::Adopted(ballot, 1, Lsn(16)),
        Event::Flushed(Lsn(16)),
        Event::Failed("the disk is full".into()),
    ];
    events.into_iter().map(|event| zone::event(event).encode_to_vec()).collect()
}

proptest! {
    #[test]
    fn a_zone_s_damaged_orders_are_read_or_refused(
        bytes in proptest::sample::select(zone_orders()).prop_flat_map(|good| damaged(&good)),
        any: Vec<u8>,
    ) {
        for bytes in [bytes, any] {
            let Ok(message) = m::CopyOrder::decode(&bytes[..]) else { continue };
            if let Ok(order) = zone::to_order(message) {
                prop_assert!(zone::to_order(zone::order(order)).is_ok(), "what was read can be said");
            }
        }
    }

    #[test]
    fn a_zone_s_damaged_events_are_read_or_refused(
        bytes in proptest::sample::select(zone_events()).prop_flat_map(|good| damaged(&good)),
        any: Vec<u8>,
    ) {
        for bytes in [bytes, any] {
            let Ok(message) = m::CopyEvent::decode(&bytes[..]) else { continue };
            if let Ok(event) = zone::to_event(message) {
                prop_assert!(zone::to_event(zone::event(event)).is_ok(), "what was read can be said");
            }
        }
    }

    #[test]
    fn a_zone_s_answers_are_read_or_refused(
        bytes in proptest::sample::select(zone_orders()).prop_flat_map(|good| damaged(&good)),
        any: Vec<u8>,
    ) {
        for bytes in [bytes, any] {
            let record = m::CopyRecord { record: bytes.clone().into(), begins_segment: true };
            let _ = zone::to_records(m::CopyRecords { records: vec![record], error: None });
            let history = m::TimelineFile { timeline: 9, content: bytes.clone().into() };
            let _ = zone::to_contents(&m::CopyContents { segments: Vec::new(), histories: vec![history], error: None });
            if let Ok(message) = m::CopyContents::decode(&bytes[..]) {
                let _ = zone::to_contents(&message);
            }
            if let Ok(message) = m::CopyRecords::decode(&bytes[..]) {
                let _ = zone::to_records(message);
            }
            if let Ok(message) = m::CopyScrubbed::decode(&bytes[..]) {
                let _ = zone::to_scrubbed(message);
            }
            if let Ok(error) = m::CopyError::decode(&bytes[..]) {
                let _ = zone::to_error(error, "b1", Lsn(1)).to_string();
            }
            let _ = zone::to_copy(&String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_damaged_region_json_is_read_or_refused(bytes in damaged(&region_json()), any: Vec<u8>) {
        let _ = RegionState::parse(&bytes);
        let _ = RegionState::parse(&any);
    }

    #[test]
    fn a_damaged_record_of_who_leads_is_read_or_refused(bytes in damaged(&record()), any: Vec<u8>) {
        let names = Names { own: name("us-east"), regions: vec![name("us-east")], witnesses: Vec::new() };
        for bytes in [bytes, any] {
            let Ok(accepted) = m::Accepted::decode(&bytes[..]) else { continue };
            let read = wire::to_accepted(&accepted);
            let body = m::control_request::Body::Learn(accepted);
            let purpose = m::open::Purpose::Control(m::ControlRequest { body: Some(body) });
            let let_in = message::check(&purpose, &names);
            prop_assert!(let_in.is_err() || read.is_ok_and(|read| read.record.primary == name("us-east")));
        }
    }

    #[test]
    fn an_answer_to_a_round_is_read_or_refused(bytes: Vec<u8>, record in damaged(&record())) {
        for bytes in [bytes, record] {
            if let Ok(voted) = m::Voted::decode(&bytes[..]) {
                let _ = wire::voted(control_response::Body::Voted(voted));
            }
            if let Ok(granted) = m::Granted::decode(&bytes[..]) {
                let _ = wire::to_grant(&granted);
            }
        }
    }

    #[test]
    fn what_was_lost_is_read_or_refused(bytes in damaged(LOST.as_bytes()), dump in damaged(DUMP.as_bytes()), any: String) {
        if let Ok(lost) = Lost::parse(&bytes) {
            prop_assert!(lost.from_lsn.parse::<proto::Lsn>().is_ok());
        }
        let _ = lost::transactions(&String::from_utf8_lossy(&dump));
        let _ = lost::transactions(&any);
    }

    #[test]
    fn a_damaged_regions_toml_is_read_or_every_mistake_has_a_place(
        bytes in damaged(include_bytes!("../../regions.toml"))
    ) {
        if let Ok(text) = String::from_utf8(bytes) && let Err(mistakes) = Config::parse(&text) {
            prop_assert!(!mistakes.is_empty());
            for mistake in &mistakes {
                prop_assert!(mistake.span.end <= text.len(), "{mistake:?}");
            }
        }
    }

    #[test]
    fn any_status_and_volume_is_shown(status in status(), bytes: Vec<u8>) {
        let _ = (render::table(&status), render::json(&status), render::all_stream(&status));
        if let Ok(view) = m::VolumeView::decode(&bytes[..]) {
            let _ = (render::volume_table(&view), render::volume_json(&view));
        }
        if let Ok(promotion) = m::Promotion::decode(&bytes[..]) {
            let _ = (render::promotion(&promotion), render::promotion_json(&promotion));
        }
    }
}

#[test]
fn good_ones_are_read() {
    assert!(RegionState::parse(&region_json()).is_ok());
    assert!(Lost::parse(LOST.as_bytes()).is_ok());
    assert!(Lost::parse(LOST.replace("0/3000000", "--help").as_bytes()).is_err());
    assert_eq!(lost::transactions(DUMP)[0].records, 2);
}
