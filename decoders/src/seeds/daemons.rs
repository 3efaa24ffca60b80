//! Good inputs of the daemons' own.

use bytes::Bytes;
use prost::Message;
use proto::messages as m;
use proto::{Epoch, Lsn, Timeline, TimelineHistory};
use replicator::load::file::{Encoder, MAGIC};
use replicator::load::{Group, Key, Look};
use replicator::zone::wire as zone_wire;
use volume::ballot::Ballots;
use volume::copy::{Event, Order, Stored};
use volume::quorum::{Adoption, Held, Keep, Vote, Writer};
use volume::{Durable, segment};

use super::{accepted, answers, asked, ballot, batches, kind, status, texts_of};
use crate::daemons::chained;

pub(crate) fn zone() -> Vec<Vec<u8>> {
    let writer = Writer { ballot: ballot(2), generation: 1 };
    let ballots = Ballots::new(vec![(ballot(1), Lsn(16)), (ballot(2), Lsn(64))]).unwrap();
    let adoption = |keep| Adoption { ballot: ballot(2), generation: 1, ballots: ballots.clone(), keep };
    let at = Durable { lsn: Lsn(16), timeline: Timeline(1), epoch: Epoch(1) };
    let stored = || Stored::decode(&segment::record(&batches()[0], Lsn(64)), true).unwrap();
    let history = || TimelineHistory::parse(Timeline(2), b"1\t0/40\tx\n").unwrap();
    let held = Held { ballot: ballot(1), lsn: Lsn(17) };
    let vote =
        Vote { generation: 1, ballots: ballots.clone(), begin: at, end: at, proven_lsn: Lsn(16), held };
    let orders = [
        Order::Promise(ballot(2)),
        Order::Adopt(adoption(Keep::Before(Lsn(64)))),
        Order::Adopt(adoption(Keep::Nothing { begin: at, held })),
        Order::Append { writer, stored: stored(), hurried: true },
        Order::History(writer, history()),
        Order::DropBefore(writer, Lsn(32)),
        Order::DistrustNewest(writer),
        Order::Check(Some(writer)),
    ];
    let events = [
        Event::Promised(ballot(1), vote),
        Event::Refused(ballot(1)),
        Event::Adopted(ballot(1), 1, Lsn(16)),
        Event::Flushed(Lsn(16)),
        Event::Failed("the disk is full".into()),
    ];
    let info = volume::copy::SegmentInfo {
        begin_lsn: Lsn(16),
        end_lsn: Lsn(32),
        stored_bytes: 5,
        newest_commit_us: 1,
        key: None,
    };
    let put = volume::copy::Put { writer, segment: info, history: Timeline(1) };
    let contents = volume::copy::Contents { segments: vec![info], histories: vec![history()] };
    let orders = orders.into_iter().map(|order| kind(0, &zone_wire::order(order).encode_to_vec()));
    let events = events.into_iter().map(|event| kind(1, &zone_wire::event(event).encode_to_vec()));
    let error = m::CopyError { what: "gone".into(), horizon_lsn: Some(5), damaged: false };
    orders
        .chain(events)
        .chain([
            kind(2, &zone_wire::contents(Ok(contents)).encode_to_vec()),
            kind(3, &zone_wire::records(Ok(vec![stored()])).encode_to_vec()),
            kind(4, &m::CopyScrubbed { segments: 1, bytes: 2, ..m::CopyScrubbed::default() }.encode_to_vec()),
            kind(5, &error.encode_to_vec()),
            kind(6, &zone_wire::put(put).encode_to_vec()),
            kind(
                7,
                &m::CopyChunk { data: Bytes::from_static(b"redo"), last: true, error: None }.encode_to_vec(),
            ),
        ])
        .collect()
}

pub(crate) fn control() -> Vec<Vec<u8>> {
    let founder = m::Founder { name: "eu-west".into(), id: 3 };
    let recalled = m::Recalled {
        id: 5,
        remembers: true,
        together: vec![founder],
        accepted: Some(accepted()),
        ..m::Recalled::default()
    };
    let promoting = br#"{"epoch":3,"primary":"us-east","system_id":7,"promotion":null,"history":[]}"#;
    let mut found: Vec<Vec<u8>> = asked().iter().map(|asked| kind(0, asked)).collect();
    found.extend(answers().iter().map(|answer| kind(2, answer)));
    found.extend([
        kind(3, &accepted().encode_to_vec()),
        kind(4, &recalled.encode_to_vec()),
        kind(5, &accepted().record),
        kind(5, promoting),
        kind(6, &status().encode_to_vec()),
        kind(7, &status().encode_to_vec()),
    ]);
    found
}

pub(crate) fn keys() -> Vec<Vec<u8>> {
    let lines = "key 00000000000000ff 5 local AAECAw==\nkey 00000000000000fe -5 vault:a dmF1bHQ=\nactive 00000000000000ff\n";
    let ring = format!("replicator keys 1\n{lines}");
    let whole = format!("{ring}crc {:08x}\n", crc32c::crc32c(ring.as_bytes()));
    texts_of(&[lines, &whole, "replicator keys 2\n"])
}

pub(crate) fn region_json() -> Vec<Vec<u8>> {
    texts_of(&[
        r#"{"format":2,"cluster_id":"07070707070707070707070707070707","region":"eu-west","role":"secondary","acceptor":{"promised":{"round":4,"proposer":1},"accepted":{"number":{"round":3,"proposer":1},"record":{"epoch":1,"primary":"us-east","promotion":null,"history":[]}}},"rejoining":false,"system_id":42}"#,
        r#"{"epoch":2,"timeline":1,"from_lsn":"0/3000000","to_lsn":"0/3000100","bytes":256,"sealed":"00000000000000ff"}"#,
        r#"{"format":1,"cluster_id":"07","region":"a","node":"n1","data":{"id":3,"origin":"7"}}"#,
        "rmgr: Heap        len (rec/tot):     59/    59, tx:        735, lsn: 0/01515E98, prev 0/01515E60, desc: INSERT off 1, blkref #0: rel 1663/5/16384 blk 0\nrmgr: Transaction len (rec/tot):     34/    34, tx:        735, lsn: 0/01515ED8, prev 0/01515E98, desc: COMMIT 2026-11-23 20:00:00.000000 UTC; inval\n",
    ])
}

pub(crate) fn audit() -> Vec<Vec<u8>> {
    let lines = &chained().0;
    vec![lines.join("\n").into_bytes(), lines[1..].join("\n").into_bytes(), lines[0].clone().into_bytes()]
}

pub(crate) fn events() -> Vec<Vec<u8>> {
    let event = |kind: replicator::events::Kind, key: &str| replicator::events::Event {
        number: 3,
        at_us: 7,
        kind,
        text: "copy b1: absent; it is filled when it is back".into(),
        key: key.into(),
    };
    let kinds = replicator::events::Kind::ALL.iter().take(3);
    let lines = kinds.map(|kind| serde_json::to_string(&event(*kind, "k")).unwrap() + "\n");
    lines.map(String::into_bytes).collect()
}

pub(crate) fn load() -> Vec<Vec<u8>> {
    let key = Key {
        wait: "IO:DataFileRead".into(),
        query_id: 5,
        statement: "SELECT ?".into(),
        user: "app".into(),
        application: "x".into(),
        host: "h".into(),
    };
    let look = |at_s| Look {
        at_s,
        looks: 1,
        cores: 4,
        groups: vec![Group { key: key.clone(), sum: 3 }],
        machine: None,
    };
    let mut encoder = Encoder::default();
    let records: Vec<Vec<u8>> =
        [look(5), look(70)].iter().map(|look| encoder.encode(look).to_vec()).collect();
    let file = [&MAGIC[..], &records.concat()].concat();
    let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nMemTotal:  5 kB\nMemAvailable: 3 kB\nSwapTotal: 1 kB\n 8 0 sda 1 2 3 4 5 6 7 8 9 10 11\nInter-| Receive\n eth0: 1 2 3 4 5 6 7 8 9 10\n";
    vec![
        kind(0, &file),
        kind(8, &records[0][8..]),
        kind(4, br#"{"region":"a","from_s":1,"to_s":2,"step_s":1,"by":"wait","cores":4,"looks":1,"average":0.5,"top":[],"points":[]}"#),
        kind(5, b"SELECT 'a''b', 1.5e3, $1, \"x\" -- c\n/* d */ FROM t WHERE y IN (1, 2) AND z = $$q$$"),
        kind(7, stat.as_bytes()),
    ]
}

pub(crate) fn config() -> Vec<Vec<u8>> {
    let small = "cluster = \"x\"\n[region.a]\nrole = \"primary\"\nlisten = \"127.0.0.1:7001\"\npostgres = \"127.0.0.1:7002\"\n";
    let node = format!(
        "{small}[region.a.node.n1]\npostgres = \"127.0.0.1:1\"\n\n# The second.\n[region.b]\nrole = \"secondary\""
    );
    let shown: String = include_str!("../../../regions.toml")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    texts_of(&[small, &node, &shown, "64MiB", "200Mbit/s", "500ms"])
}
