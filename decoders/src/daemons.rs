//! What the daemons themselves say to each other and keep: of the program, and so in feature `program`.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use bytes::Bytes;
use coordination::{Acceptor, lawful};
use proto::messages::{self as m, control_response};
use proto::{ClusterId, Epoch, Lsn, NodeName, RegionName, frame};
use replicator::audit::chain::{self, Deed, Head, Verifier};
use replicator::config::{Config, edit};
use replicator::daemon::authority::Names;
use replicator::daemon::message;
use replicator::keys::Ring;
use replicator::load::machine::{Reading, Texts};
use replicator::load::series::{Cut, Load, Question, Series};
use replicator::load::{file as load_file, statement};
use replicator::region::lost::{self, Lost};
use replicator::region_file::RegionState;
use replicator::zone::wire as zone_wire;
use replicator::{events, node, render, units, voter};
use telemetry::otlp::Destination;

use crate::peers::message_of;

fn name(text: &str) -> RegionName {
    text.parse().unwrap()
}

thread_local! {
    static NAMES: Names = Names {
        own: name("us-east"),
        regions: vec![name("us-east"), name("eu-west")],
        witnesses: vec![name("third")],
    };
    static ACCEPTOR: Acceptor =
        Acceptor::new(coordination::Leadership::first(Epoch(3), name("us-east")));
}

/// What a daemon is asked and answered: the door's judgement of a first message, records of who leads, and
/// answers as they are shown. The first byte says which.
pub fn control(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    match kind % 8 {
        0 | 1 => asked(body),
        2 => {
            let Ok(answer) = frame::decode::<m::ControlResponse>(body) else { return };
            answered(answer);
        }
        3 => drop(frame::decode::<m::Accepted>(body).map(|accepted| record(&accepted))),
        4 => {
            let Ok(recalled) = frame::decode::<m::Recalled>(body) else { return };
            if let Ok(said) = voter::wire::to_said(&recalled) {
                assert_eq!((said.id, said.together.len() <= recalled.together.len()), (recalled.id, true));
            }
        }
        // A record without the message around it.
        5 => record(&m::Accepted { number: None, record: body }),
        6 => shown(body, true),
        _ => shown(body, false),
    }
}

fn asked(body: Bytes) {
    let Ok(open) = frame::decode::<m::Open>(body) else { return };
    let own = message::check_envelope(&open, ClusterId([7; 16])).is_ok();
    assert_eq!(own, open.protocol == m::PROTOCOL_VERSION && open.cluster_id[..] == [7; 16]);
    let Some(purpose) = open.purpose else { return };
    let let_in = NAMES.with(|names| message::check(&purpose, names)).is_ok();
    let m::open::Purpose::Control(request) = purpose else { return };
    if let Some(m::control_request::Body::Learn(accepted)) = &request.body {
        let read = voter::wire::to_accepted(accepted);
        assert!(
            !let_in || read.is_ok_and(|read| ["us-east", "eu-west"].contains(&read.record.primary.as_str()))
        );
    }
    ACCEPTOR.with(|acceptor| {
        let _ = voter::wire::same_record(&request, acceptor.record());
    });
}

fn answered(answer: m::ControlResponse) {
    use control_response::Body;
    match answer.body {
        Some(Body::Granted(granted)) => {
            let grant = voter::wire::to_grant(&granted);
            assert_eq!(voter::wire::to_grant(&voter::wire::grant(&grant)), grant);
        }
        Some(answer) => drop(voter::wire::voted(answer)),
        None => {}
    }
}

/// An accepted record, which is the same once it was written and read again, and whether it is lawful.
fn record(accepted: &m::Accepted) {
    let Ok(read) = voter::wire::to_accepted(accepted) else { return };
    let again = voter::wire::to_accepted(&voter::wire::accepted(&read));
    assert_eq!(again.as_ref(), Ok(&read));
    let regions = BTreeSet::from([name("us-east"), name("eu-west")]);
    let _ = lawful::form(&read.record, &regions, &regions);
    ACCEPTOR.with(|acceptor| {
        let _ = lawful::follows(&read.record, acceptor.record());
        let _ = lawful::follows(acceptor.record(), &read.record);
    });
}

/// An answer as it is shown: as words, or as JSON.
fn shown(body: Bytes, words: bool) {
    let is_json = |text: String| assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
    if let Ok(status) = frame::decode::<m::ClusterStatus>(body.clone()) {
        match words {
            true => drop((render::table(&status), render::all_stream(&status))),
            false => is_json(render::json(&status)),
        }
    }
    if let Ok(view) = frame::decode::<m::VolumeView>(body.clone()) {
        match words {
            true => drop(render::volume_table(&view)),
            false => is_json(render::volume_json(&view)),
        }
    }
    if let Ok(promotion) = frame::decode::<m::Promotion>(body) {
        match words {
            true => drop(render::promotion(&promotion)),
            false => is_json(render::promotion_json(&promotion)),
        }
    }
}

/// What a zone's process and its region's daemon say to each other. The first byte says which message it is.
pub fn zone(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    match kind % 8 {
        0 => {
            let Ok(message) = frame::decode::<m::CopyOrder>(body) else { return };
            if let Ok(order) = zone_wire::to_order(message) {
                let said = zone_wire::order(order);
                let again = zone_wire::to_order(said.clone()).map(zone_wire::order);
                assert_eq!(again.as_ref(), Ok(&said));
            }
        }
        1 => {
            let Ok(message) = frame::decode::<m::CopyEvent>(body) else { return };
            if let Ok(event) = zone_wire::to_event(message) {
                let said = zone_wire::event(event);
                let again = zone_wire::to_event(said.clone()).map(zone_wire::event);
                assert_eq!(again.as_ref(), Ok(&said));
            }
        }
        2 => {
            let Ok(message) = frame::decode::<m::CopyContents>(body) else { return };
            if let Ok(contents) = zone_wire::to_contents(&message) {
                let said = zone_wire::contents(Ok(contents));
                assert_eq!((&said.segments, &said.histories), (&message.segments, &message.histories));
            }
        }
        3 => {
            let Ok(message) = frame::decode::<m::CopyRecords>(body) else { return };
            if let Ok(records) = zone_wire::to_records(message) {
                let said = zone_wire::records(Ok(records));
                let again = zone_wire::to_records(said.clone()).map(|again| zone_wire::records(Ok(again)));
                assert_eq!(again.as_ref(), Ok(&said));
            }
        }
        4 => {
            let Ok(message) = frame::decode::<m::CopyScrubbed>(body) else { return };
            let scrubbed = zone_wire::to_scrubbed(message);
            let said = zone_wire::scrubbed(Ok(scrubbed.clone()));
            assert_eq!(zone_wire::to_scrubbed(said), scrubbed);
        }
        5 => {
            let Ok(message) = frame::decode::<m::CopyError>(body) else { return };
            let error = zone_wire::to_error(message, "b1", Lsn(1));
            let again = zone_wire::to_error(zone_wire::error(&error), "b1", Lsn(1));
            assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&error));
            drop(error.to_string());
        }
        6 => {
            let Ok(message) = frame::decode::<m::CopyPut>(body) else { return };
            if let Ok(put) = zone_wire::to_put(message) {
                let said = zone_wire::put(put);
                assert_eq!(zone_wire::to_put(said).map(zone_wire::put), Ok(said));
            }
        }
        _ => {
            if let Some(chunk) = message_of::<m::CopyChunk>(body) {
                let whole: Vec<u8> = zone_wire::chunks(&chunk.data).flat_map(|chunk| chunk.data).collect();
                assert_eq!(whole, chunk.data);
            }
        }
    }
}

/// A region.json, a node.json, and the manifest of redo that was kept aside with what is in that.
pub fn region_json(data: &[u8]) {
    if let Ok(state) = RegionState::parse(data) {
        // There are no two ways to read it.
        assert_eq!(RegionState::parse(data).as_ref(), Ok(&state));
    }
    if let Ok(lost) = Lost::parse(data) {
        assert!(lost.from_lsn.parse::<Lsn>().is_ok() && lost.to_lsn.parse::<Lsn>().is_ok());
        assert_eq!(Lost::parse(&serde_json::to_vec(&lost).unwrap()), Ok(lost));
    }
    if let Ok(content) = node::file::parse(data) {
        let again = serde_json::to_vec(&content).unwrap();
        assert_eq!(node::file::parse(&again), Ok(content));
    }
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    let records: u64 = lost::transactions(&text).iter().map(|transaction| transaction.records).sum();
    assert!(records <= lines as u64);
}

/// A file of keys, also one whose checksum is right; and AWS's shared file of credentials.
pub fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let body = format!("replicator keys 1\n{text}");
    let sealed = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
    for text in [text, &sealed] {
        if let Ok(ring) = Ring::parse(text) {
            let written = ring.text();
            let again = Ring::parse(&written).map(|again| again.text());
            assert_eq!(again.as_ref(), Ok(&written));
        }
    }
}

/// A chain of three lines, and its head.
pub(crate) fn chained() -> &'static (Vec<String>, Head) {
    static CHAIN: OnceLock<(Vec<String>, Head)> = OnceLock::new();
    CHAIN.get_or_init(|| {
        let (mut lines, mut head) = (Vec::new(), Head::default());
        for what in ["promote", "reseed", "token"] {
            let deed =
                Deed { role: "operator".into(), name: "ann".into(), what: what.into(), ..Deed::default() };
            let (line, next) = chain::line(&head, 7, deed).unwrap();
            lines.push(line);
            head = next;
        }
        (lines, head)
    })
}

/// Lines of an audit: no line can be another than it was, and a chain without a fault is the end of the one
/// that was written.
pub fn audit(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (written, head) = chained();
    let lines: Vec<&str> = text.lines().collect();
    let mut verifier = Verifier::default();
    for line in &lines {
        verifier.take(line);
        if let Some(read) = chain::parse(line) {
            let same = chain::parse(line).is_some_and(|again| again == read);
            assert!(same && line.ends_with("\"}"));
        }
    }
    let verified = verifier.end(head);
    assert_eq!(verified.lines, lines.len() as u64);
    if verified.faults.is_empty() && verified.last == *head {
        assert!(written.ends_with(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()));
    }
}

/// Lines of the journal of events.
pub fn events(data: &[u8]) {
    let found = events::file::parse(data);
    assert!(found.len() <= data.split(|byte| *byte == b'\n').count());
    let mut lines = Vec::new();
    for event in &found {
        let _ = events::file::weight(event.kind.name());
        lines.extend_from_slice(&serde_json::to_vec(event).unwrap());
        lines.push(b'\n');
    }
    let again = events::file::parse(&lines);
    assert_eq!(again.len(), found.len());
    assert_eq!(format!("{again:?}"), format!("{found:?}"));
}

/// What is kept of the load, a daemon's answer about it, the statements in it, and the kernel's texts. The
/// first byte says which.
pub fn load(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        // As it is, and as the body of a record whose checksum is right.
        0..=3 => {
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
            let record =
                [load_file::MAGIC.as_slice(), &length, &crc32c::crc32c(data).to_le_bytes(), data].concat();
            let by = Cut::ALL[usize::from(*kind / 8) % Cut::ALL.len()];
            for bytes in [data, &record] {
                let mut series = Series::new(Question { from_s: i64::MIN, to_s: i64::MAX, by }, 0);
                let mut looks = 0;
                let read = load_file::read(bytes, |look| {
                    looks += 1;
                    series.add(&look);
                });
                assert!(read.whole_bytes <= bytes.len());
                assert_eq!(
                    load_file::read(&bytes[..read.whole_bytes], |_| looks -= 1).whole_bytes,
                    read.whole_bytes
                );
                assert_eq!(looks, 0);
                let _ = series.load("a", Vec::new());
            }
        }
        4 => drop(serde_json::from_slice::<Load>(data)),
        5 | 6 => {
            let normal = statement::normalise(&String::from_utf8_lossy(data));
            assert!(normal.len() <= statement::BYTES_MAX && !normal.contains(char::is_control));
        }
        _ => {
            let text = String::from_utf8_lossy(data);
            let texts = Texts { stat: &text, meminfo: &text, diskstats: &text, net_dev: &text };
            let reading = Reading::parse(texts, |_| true);
            let _ = reading.since(&Reading::default(), 1);
        }
    }
}

/// A regions.toml, and what commands change of it; sizes, durations and rates; and OpenTelemetry's variables.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text) {
        Ok(config) => assert!(!config.regions.is_empty()),
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in &mistakes {
                let span = mistake.span.clone();
                assert!(span.start <= span.end && span.end <= text.len(), "{mistake:?}");
                assert!(!mistake.what.is_empty());
            }
        }
    }
    let (region, node): (RegionName, NodeName) = ("a".parse().unwrap(), "n1".parse().unwrap());
    if edit::without_node(text, &region, &node).is_none() {
        let section = edit::node_section(&region, &node, "postgres = \"127.0.0.1:1\"\n");
        let with = edit::with_node(text, &region, &section);
        let without = edit::without_node(&with, &region, &node).expect("it was added just now");
        assert!(without == text || without == format!("{text}\n"));
    }
    let _ = (units::parse_bytes(text), units::parse_rate(text), units::parse_duration(text));
    let said = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    if let Some(found) = Destination::find(said, Some("http://127.0.0.1:4318"), "x", "a") {
        assert!(!found.timeout.is_zero() && !found.every.is_zero());
        let keys: BTreeSet<&str> = found.resource.iter().map(|(key, _)| key.as_str()).collect();
        assert!(keys.contains("service.name"));
    }
}
