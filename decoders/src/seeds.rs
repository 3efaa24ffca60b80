//! Good inputs, as what is written now makes them: so that a corpus is not out of date where a format has
//! changed.

use std::io;

use bytes::Bytes;
use coordination::Leadership;
use postgres::backup::pieces::Inventory;
use postgres::scram;
use prost::Message;
use proto::compression::{Compressed, Compressor};
use proto::messages::{
    self as m, control_request, control_response, downstream, open, seed_chunk, upstream, voted,
};
use proto::{Batch, ClusterId, Epoch, Lsn, RegionName, Timeline, TimelineHistory};
use transport::Peer;
use transport::redundancy::{CELL_BYTES_MAX, Repair, Ring};
use volume::ballot::{Ballot, Ballots};
use volume::copy::meta::Meta;
use volume::quorum::{CopyId, Held};
use volume::{Durable, segment};

use crate::disks::{framed, sealed_records};

#[cfg(feature = "program")]
mod daemons;

#[cfg(feature = "program")]
pub(crate) use daemons::*;

fn name(text: &str) -> RegionName {
    text.parse().unwrap()
}

/// With its kind before it.
fn kind(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], body].concat()
}

fn texts_of(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Batches of one context.
fn batches() -> Vec<Batch> {
    let mut compressor = Compressor::new(1).unwrap();
    let mut begin_lsn = Lsn(0x100);
    [&b"redo redo redo redo"[..], b"redo redo, more of it", &[7; 300]]
        .into_iter()
        .map(|redo| {
            let Compressed { context_lsn, redo_crc32c, payload } =
                compressor.compress(begin_lsn, redo).unwrap();
            let end_lsn = begin_lsn + redo.len() as u64;
            let batch = Batch {
                epoch: Epoch(3),
                timeline: Timeline(1),
                begin_lsn,
                end_lsn,
                context_lsn,
                newest_commit_us: 5,
                redo_crc32c,
                payload,
                ends_in_record: false,
            };
            begin_lsn = end_lsn;
            batch
        })
        .collect()
}

fn refusal() -> m::Refusal {
    m::Refusal::new(m::refusal::Kind::StaleEpoch, "epoch 2 is over")
}

fn open(purpose: open::Purpose) -> Vec<u8> {
    let cluster_id = Bytes::from_static(&[7; 16]);
    m::Open { protocol: m::PROTOCOL_VERSION, cluster_id, purpose: Some(purpose) }.encode_to_vec()
}

/// An accepted record, as a voter tells it.
fn accepted() -> m::Accepted {
    let record = Leadership::first(Epoch(3), name("us-east"));
    let record = serde_json::to_vec(&record).unwrap().into();
    m::Accepted { number: Some(m::Number { round: 5, proposer: 7 }), record }
}

fn asked() -> Vec<Vec<u8>> {
    let control = |body| open(open::Purpose::Control(m::ControlRequest { body: Some(body) }));
    let tablespaces =
        vec![m::Tablespace { oid: 16384, path: "/srv/fast".into(), ..m::Tablespace::default() }];
    let copies = vec![m::ZoneCopy { name: "b1".into(), ..m::ZoneCopy::default() }];
    let replicate =
        m::ReplicateOpen { timeline: 1, horizon_lsn: 1, durable_lsn: 2, ..m::ReplicateOpen::default() };
    vec![
        open(open::Purpose::Replicate(replicate)),
        open(open::Purpose::Seed(m::SeedOpen {
            timeline: 1,
            tablespaces: tablespaces.clone(),
            ..m::SeedOpen::default()
        })),
        open(open::Purpose::Rewind(m::RewindOpen { timeline: 1, tablespaces, ..m::RewindOpen::default() })),
        open(open::Purpose::Zone(m::ZoneOpen { zone: "b".into(), copies, ..m::ZoneOpen::default() })),
        open(open::Purpose::Gather(m::GatherOpen { epoch: 2, from_lsn: 8, to_lsn: 9, newest: None })),
        open(open::Purpose::Node(m::NodeOpen { node: "n1".into(), process: 3 })),
        control(control_request::Body::Learn(accepted())),
        control(control_request::Body::Accept(m::Accept { proposal: Some(accepted()), next: None })),
        control(control_request::Body::Url(m::UrlRequest { region: "eu-west".into() })),
        control(control_request::Body::GetReady(m::GetReadyRequest {
            gather_from: "eu-west".into(),
            ..m::GetReadyRequest::default()
        })),
    ]
}

fn answers() -> Vec<Vec<u8>> {
    let answer = |body| m::ControlResponse { body: Some(body) }.encode_to_vec();
    let granted =
        m::Granted { has_data: true, has_redo: true, timeline: 1, durable_lsn: 64, ..m::Granted::default() };
    let voted = |body| answer(control_response::Body::Voted(m::Voted { body: Some(body) }));
    vec![
        answer(control_response::Body::Refusal(refusal())),
        answer(control_response::Body::Granted(granted.clone())),
        voted(voted::Body::Accepted(granted)),
        voted(voted::Body::Promised(accepted())),
        voted(voted::Body::Outbid(m::Number { round: 9, proposer: 2 })),
        answer(control_response::Body::Record(accepted().record)),
    ]
}

fn status() -> m::ClusterStatus {
    let row = |name: &str, role: &str| m::RegionStatus {
        name: name.into(),
        role: role.into(),
        state: "streaming".into(),
        timeline: 1,
        durable_lsn: Some(0x100_0000),
        behind_bytes: Some(5),
        visibility_lag_ms: Some(7),
        seed_bytes: 5,
        seed_total_bytes: 9,
        ..m::RegionStatus::default()
    };
    let regions = vec![row("us-east", "primary"), row("eu-west", "secondary")];
    m::ClusterStatus { regions, notes: vec!["a note".into()], epoch: 3, ..m::ClusterStatus::default() }
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    let down = |body| m::Downstream { body: Some(body), trace: None }.encode_to_vec();
    let chunk = |body| m::SeedChunk { body: Some(body) }.encode_to_vec();
    let progress = m::Progress {
        timeline: 1,
        received_lsn: 9,
        durable_lsn: 8,
        applied_lsn: 7,
        ..m::Progress::default()
    };
    let same = m::SeedSame { bytes: 65536, digest: Bytes::from_static(&[5; 32]) };
    let mut found: Vec<Vec<u8>> = asked().iter().map(|asked| kind(0, asked)).collect();
    found.extend(answers().iter().map(|answer| kind(4, answer)));
    found.extend([
        kind(1, &down(downstream::Body::Batch(batches()[0].to_message()))),
        kind(1, &down(downstream::Body::Heartbeat(m::Heartbeat { number: 5, durable_lsn: 7 }))),
        kind(2, &m::Upstream { body: Some(upstream::Body::Progress(progress)) }.encode_to_vec()),
        kind(3, &chunk(seed_chunk::Body::Data(Bytes::from_static(b"data")))),
        kind(3, &chunk(seed_chunk::Body::Same(same))),
        kind(5, &m::NodeReport { state: "streaming".into(), ..m::NodeReport::default() }.encode_to_vec()),
        kind(
            6,
            &m::NodeWord { head: "home".into(), stopped_us: Some(5), ..m::NodeWord::default() }
                .encode_to_vec(),
        ),
        kind(12, &status().encode_to_vec()),
        kind(14, &accepted().encode_to_vec()),
    ]);
    found.extend(inventory().iter().map(|message| kind(7, message)));
    found
}

pub(crate) fn identity() -> Vec<Vec<u8>> {
    let cluster = ClusterId([0xab; 16]);
    let (holder, node) = ("ann.lee@example".parse().unwrap(), "n1".parse().unwrap());
    let peers = [Peer::Region(name("us-east")), Peer::Node(name("us-east"), node), Peer::Operator(holder)];
    let uris = peers.iter().filter_map(|peer| peer.uri(cluster)).map(|uri| kind(2, uri.as_bytes()));
    let others = ["spiffe://prod.example/replicator/abababababababababababababababab/witness/w", "0A:0b:FF"];
    uris.chain(others.map(|text| kind(2, text.as_bytes()))).collect()
}

pub(crate) fn repair() -> Vec<Vec<u8>> {
    let mut ring = Ring::new(0);
    ring.put(0, &[7; 3000]);
    let repairs = Repair::compute(&ring, 9, 356, 100..700, 1200).into_iter();
    let large = Repair::compute(&ring, 1, CELL_BYTES_MAX, 0..200, 1200).into_iter();
    // A piece, a gap, a piece behind it, and repairs that bring back the gap.
    let deeds =
        [[0, 0, 0, 0, 100, 0], [0, 0, 200, 0, 100, 0], [1, 3, 0, 0, 44, 1], [3, 4, 0, 0, 44, 1]].concat();
    repairs.chain(large).map(|repair| repair.encode().to_vec()).chain([deeds]).collect()
}

fn postgres_message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

pub(crate) fn client() -> Vec<Vec<u8>> {
    let row = |columns: &[&[u8]]| {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            body.extend_from_slice(&u32::try_from(column.len()).unwrap().to_be_bytes());
            body.extend_from_slice(column);
        }
        postgres_message(b'D', &body)
    };
    let redo = [&b"w"[..], &0x100_u64.to_be_bytes(), &0x200_u64.to_be_bytes(), &[0; 8], b"redo"].concat();
    let keepalive = [&b"k"[..], &0x100_u64.to_be_bytes(), &[0; 8], &[1]].concat();
    let stream = [postgres_message(b'd', &redo), postgres_message(b'd', &keepalive)].concat();
    let listing = [
        row(&[b"pg_wal/000000010000000000000004", b"16777216"]),
        row(&[b"pg_tblspc/7/PG_15_202209061/5/1", b"8192"]),
        row(&[b"pg_tblspc/8", b"0", b"/elsewhere"]),
        row(&[b"base/5/1", b"8192"]),
        postgres_message(b'C', b"SELECT 4\0"),
    ];
    vec![
        stream,
        postgres_message(b'E', b"SERROR\0VERROR\0C58P01\0Mgone\0Dmore\0Hreseed\0\0"),
        kind(6, &listing.concat()),
        [postgres_message(b'd', b"n16385.tar\0/a/b\0"), postgres_message(b'd', b"nbase.tar\0\0")].concat(),
        postgres_message(b'd', b"dbytes"),
    ]
}

pub(crate) fn wire() -> Vec<Vec<u8>> {
    let startup = |parameters: &[u8]| {
        let length = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes();
        [&length[..], &0x0003_0000_u32.to_be_bytes(), parameters].concat()
    };
    let standby = startup(b"user\0replicator\0replication\0true\0application_name\0x\0\0");
    let query = |text: &str| postgres_message(b'Q', format!("{text}\0").as_bytes());
    let reply = [&b"r"[..], &[0, 0, 0, 0, 0, 0, 3, 0].repeat(3), &[0; 8], &[1]].concat();
    let session = |messages: &[Vec<u8>]| [standby.clone(), messages.concat()].concat();
    vec![
        session(&[query("IDENTIFY_SYSTEM"), query("SHOW server_version"), query("TIMELINE_HISTORY 3")]),
        session(&[
            query("START_REPLICATION SLOT \"a\" PHYSICAL 0/900 TIMELINE 3"),
            postgres_message(b'd', &reply),
            postgres_message(b'c', b""),
            postgres_message(b'X', b""),
        ]),
        session(&[query("START_REPLICATION 0/200 TIMELINE 1"), postgres_message(b'c', b"")]),
        session(&[query("START_REPLICATION 0/80"), query("START_REPLICATION 0/400 TIMELINE 1;")]),
        startup(b"user\0app\0\0"),
        [&8_u32.to_be_bytes()[..], &80_877_103_u32.to_be_bytes(), &standby].concat(),
    ]
}

fn ballot(opening: u64) -> Ballot {
    Ballot { epoch: Epoch(1), opening, writer: 7 }
}

pub(crate) fn batch() -> Vec<Vec<u8>> {
    let with_length = |body: &[u8]| [&u16::try_from(body.len()).unwrap().to_le_bytes()[..], body].concat();
    let all = batches();
    let one: Vec<Vec<u8>> = all.iter().map(|batch| with_length(&batch.encode())).collect();
    let payload = [&18_u16.to_le_bytes()[..], &all[0].payload].concat();
    vec![one.concat(), one[0].clone(), [one[0].clone(), one[2].clone()].concat(), payload]
}

pub(crate) fn receiver() -> Vec<Vec<u8>> {
    let sent = |body| {
        let body = m::Downstream { body: Some(body), trace: None }.encode_to_vec();
        kind(u8::try_from(body.len()).unwrap(), &body)
    };
    let all: Vec<Vec<u8>> =
        batches().iter().map(|batch| sent(downstream::Body::Batch(batch.to_message()))).collect();
    let fork = batches()[1].begin_lsn;
    let content = format!("1\t{fork}\tx\n").into_bytes().into();
    let history = sent(downstream::Body::Timeline(m::TimelineFile { timeline: 2, content }));
    let next = Batch { timeline: Timeline(2), ..batches()[1].clone() };
    let next = sent(downstream::Body::Batch(next.to_message()));
    vec![all.concat(), [history, all[0].clone(), next].concat()]
}

pub(crate) fn inventory() -> Vec<Vec<u8>> {
    let mut inventory = Inventory::default();
    inventory.add("base/1/1259".as_ref(), 70_000, &[[1; 32], [2; 32]]).unwrap();
    inventory.add("global/1260".as_ref(), 8192, &[[3; 32]]).unwrap();
    let first = m::SeedInventory { last: false, ..inventory.messages().next().unwrap() };
    let last = m::SeedInventory { piece_bytes: 65536, files: Vec::new(), last: true };
    let all = [first.encode_to_vec(), vec![0xff], last.encode_to_vec()].concat();
    inventory.messages().map(|message| message.encode_to_vec()).chain([all]).collect()
}

fn tar(end: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o600);
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Directory);
    builder.append_data(&mut header.clone(), "./global", io::empty()).unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    for (name, content) in [("base/1/1259", &b"hello"[..]), ("global/1260", b"others")] {
        header.set_size(content.len() as u64);
        builder.append_data(&mut header.clone(), name, content).unwrap();
    }
    match end {
        true => builder.into_inner().unwrap(),
        false => builder.get_ref().clone(),
    }
}

pub(crate) fn archive() -> Vec<Vec<u8>> {
    let twice = [tar(false), tar(true)].concat();
    [tar(true), tar(false), twice].iter().map(|archive| kind(24, archive)).collect()
}

pub(crate) fn seed() -> Vec<Vec<u8>> {
    [tar(true), vec![7; 5000], Vec::new()]
        .iter()
        .flat_map(|archive| [1, 19].map(|level| zstd::stream::encode_all(&archive[..], level).unwrap()))
        .collect()
}

/// A page of redo with a few records.
pub(crate) fn records() -> Vec<Vec<u8>> {
    let begin: u64 = 8192 * 3;
    let mut page = Vec::new();
    page.extend_from_slice(&0xD110_u16.to_le_bytes());
    page.extend_from_slice(&0_u16.to_le_bytes());
    page.extend_from_slice(&1_u32.to_le_bytes());
    page.extend_from_slice(&begin.to_le_bytes());
    page.extend_from_slice(&[0; 8]);
    for length in [32_u32, 56, 40] {
        let mut record = vec![7; usize::try_from(length).unwrap()];
        record[..4].copy_from_slice(&length.to_le_bytes());
        record[8..16].copy_from_slice(&(begin - 100).to_le_bytes());
        page.extend_from_slice(&record);
    }
    // A record that goes on over the page's end.
    let mut long = page.clone();
    let at = long.len();
    long.extend_from_slice(&[3; 24]);
    long[at..at + 4].copy_from_slice(&9000_u32.to_le_bytes());
    long[at + 8..at + 16].copy_from_slice(&(begin - 100).to_le_bytes());
    [page, long].into_iter().map(|redo| [&[0, 3][..], &redo].concat()).collect()
}

pub(crate) fn tablespaces() -> Vec<Vec<u8>> {
    let path = b"/srv/fast\0";
    let mut record = vec![0; 24];
    record[17] = 5;
    record.extend_from_slice(&[255, 14]);
    record.extend_from_slice(&16384_u32.to_le_bytes());
    record.extend_from_slice(path);
    let length = u32::try_from(record.len()).unwrap().to_le_bytes();
    record[..4].copy_from_slice(&length);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    [0x6000_u64 + 0x100, 0x6000 - 16, u64::MAX - 64]
        .into_iter()
        .map(|begin| [&begin.to_le_bytes()[..], &record, &[0; 6], &record].concat())
        .collect()
}

pub(crate) fn scram() -> Vec<Vec<u8>> {
    let few = "SCRAM-SHA-256$16:BwcHBwcHBwcHBwcHBwcHBw==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let real = scram::verifier("pencil", &[7; 16]);
    texts_of(&[few, &real, "md5abc"])
}

pub(crate) fn texts() -> Vec<Vec<u8>> {
    let control = "pg_control version number:            1300\nDatabase system identifier:           7576183645720837364\n\
        Database cluster state:               in archive recovery\nLatest checkpoint location:           0/4000060\n\
        Latest checkpoint's REDO location:    0/4000028\nLatest checkpoint's TimeLineID:       1\n\
        Minimum recovery ending location:     0/40CDF90\nMin recovery ending loc's timeline:   3\n\
        Backup start location:                0/0\nBytes per WAL segment:                16777216\n\
        max_connections setting:              250\n";
    let variables = "OTEL_EXPORTER_OTLP_HEADERS=a=1,b=%20c\nOTEL_EXPORTER_OTLP_TIMEOUT=500\nOTEL_RESOURCE_ATTRIBUTES=k=v,x=%zz\nOTEL_SERVICE_NAME=n";
    let cluster = "abababababababababababababababab";
    texts_of(&[
        control,
        variables,
        "0/16B3748",
        "us-east",
        "1.7-ab",
        "b2",
        "00000000000000ff",
        cluster,
        "000000010000000000000004.partial",
    ])
}

pub(crate) fn timeline() -> Vec<Vec<u8>> {
    let two = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tbecause\n";
    texts_of(&[two, TimelineHistory::UNUSED, "1 0/0 x\n3 0/0 y\n"])
}

pub(crate) fn segment() -> Vec<Vec<u8>> {
    let header = |key| segment::Header {
        cluster_id: ClusterId([7; 16]),
        begin_lsn: Lsn(0x100),
        timeline: Timeline(1),
        key,
    };
    let record = segment::record(&batches()[0], Lsn(64));
    // As the body of a record, and as those of a segment.
    let with_length = |body: &[u8]| {
        let body = [&[0; 8], body].concat();
        [&u16::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat()
    };
    let all: Vec<u8> = batches().iter().flat_map(|batch| with_length(&batch.encode())).collect();
    vec![
        header(None).encode().to_vec(),
        header(Some(volume::seal::KeyId(7))).encode().to_vec(),
        record.to_vec(),
        [&[0; 8][..], &batches()[1].encode()].concat(),
        [&[0, 1][..], &all].concat(),
        segment::file_name(Lsn(77)).into_bytes(),
    ]
}

pub(crate) fn sealed() -> Vec<Vec<u8>> {
    let (records, parts) = sealed_records();
    let body = records[0].slice(16..);
    let reframed = framed([9; 8], &body, true);
    let bodies = records.iter().map(|record| [&record[8..16], &record[16..]].concat());
    let head_bytes = usize::from(u16::from_le_bytes([body[0], body[1]]));
    let head = kind(u8::try_from(head_bytes).unwrap(), &body[2..]);
    let parts = parts.iter().enumerate().map(|(number, part)| kind(u8::try_from(number * 3).unwrap(), part));
    let whole = records.iter().map(|record| record.to_vec());
    whole.chain(bodies).chain(parts).chain([head, reframed.to_vec()]).collect()
}

pub(crate) fn meta() -> Vec<Vec<u8>> {
    let ballots = Ballots::new(vec![(ballot(1), Lsn(16)), (ballot(2), Lsn(64))]).unwrap();
    let held = Held { ballot: ballot(1), lsn: Lsn(17) };
    let begin = Durable { lsn: Lsn(16), timeline: Timeline(1), epoch: Epoch(1) };
    let meta = Meta { generation: 1, begin, promised: ballot(2), ballots, proven_lsn: Lsn(16), held };
    let text = meta.text(ClusterId([5; 16]), CopyId(2));
    let body = text.rsplit_once("crc ").unwrap().0;
    let rest: String = body.split_inclusive('\n').skip(3).collect();
    texts_of(&[&text, body, &rest, "1.7-ab"])
}
