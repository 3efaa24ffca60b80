//! Repairs over real connections: what a path of 20 ms one way loses between two endpoints on loopback is put
//! together before its retransmission.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#![allow(clippy::disallowed_methods, reason = "certificates are made for now")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use proto::messages::{Batch, Open};
use proto::{ClusterId, RegionName};
use replicator_transport::{Authority, Endpoint, Identity, Peer};
use runtime::clock::steady_us;
use runtime::task::Tasks;
use tokio::net::UdpSocket;

const PATIENCE: Duration = Duration::from_secs(20);
const DELAY_US: u64 = 20_000;

/// Of the large packets towards `server`, each so many-th is lost.
const LOST_EACH: u64 = 60;

const MESSAGES: u64 = 1500;

/// Carries packets between one client and `server`, late, and loses some.
async fn carry(front: UdpSocket, server: SocketAddr) {
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(server).await.unwrap();
    let (mut client, mut late, mut large) = (None, VecDeque::<(u64, bool, Vec<u8>)>::new(), 0);
    let (mut forth, mut there) = (vec![0; 2048], vec![0; 2048]);
    loop {
        let due_us = late.front().map_or(u64::MAX, |(due_us, ..)| *due_us);
        let wait = Duration::from_micros(due_us.saturating_sub(steady_us()).min(1_000_000));
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut forth) => {
                client = Some(from);
                large += u64::from(length > 600);
                if length <= 600 || large % LOST_EACH != 0 {
                    late.push_back((steady_us() + DELAY_US, true, forth[..length].to_vec()));
                }
            }
            Ok(length) = back.recv(&mut there) => {
                late.push_back((steady_us() + DELAY_US, false, there[..length].to_vec()));
            }
            () = tokio::time::sleep(wait) => {}
        }
        while late.front().is_some_and(|(due_us, ..)| *due_us <= steady_us()) {
            let (_, forward, packet) = late.pop_front().unwrap();
            let _ = match (forward, client) {
                (true, _) => back.send(&packet).await,
                (false, Some(client)) => front.send_to(&packet, client).await,
                (false, None) => Ok(0),
            };
        }
    }
}

/// Sends messages over the path; returns how many came by repairs, and how many took longer than a round
/// trip.
async fn converse(repairs: bool) -> (u64, usize) {
    let directory = tempfile::tempdir().unwrap();
    let now = time::OffsetDateTime::now_utc();
    let authority = Authority::create(&directory.path().join("ca"), "test", ClusterId([1; 16]), now).unwrap();
    let [a, b] = ["us-east", "eu-west"].map(|name| {
        let (place, region) = (directory.path().join(name), name.parse::<RegionName>().unwrap());
        authority.issue(&place, &Peer::Region(region), now, time::Duration::days(1)).unwrap();
        Identity::load(&place).unwrap()
    });
    let local = "127.0.0.1:0".parse().unwrap();
    let (client, server) = (Endpoint::bind(None, &a).unwrap(), Endpoint::bind(Some(local), &b).unwrap());
    let front = UdpSocket::bind(local).await.unwrap();
    let (path, tasks) = (front.local_addr().unwrap(), Tasks::new());
    tasks.spawn(carry(front, server.local_address().unwrap()));

    let connection = client.connect(path, &"eu-west".parse().unwrap(), PATIENCE).await.unwrap();
    let accepted = server.accept().await.unwrap();
    let (mut sender, _answers) = connection.open_stream(&Open::default()).await.unwrap().split();
    let (_answers_back, mut receiver) = accepted.accept_stream().await.unwrap().split();
    let _: Open = receiver.receive(1000).await.unwrap().unwrap();
    if repairs {
        sender.begin_repairs();
        receiver.take_repairs();
    }
    let sending = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(2));
        for number in 0..MESSAGES {
            ticks.tick().await;
            if number % 50 == 0 {
                let wire = connection.wire();
                sender.note_path(wire.sent_packets, wire.lost_packets);
            }
            sender.send_repairs();
            let payload = vec![u8::try_from(number % 251).unwrap(); 2500].into();
            let begin_lsn = number;
            let newest_commit_us = i64::try_from(steady_us()).unwrap();
            sender.send(&Batch { begin_lsn, newest_commit_us, payload, ..Batch::default() }).await.unwrap();
        }
    };
    let receiving = async {
        let mut late = 0;
        for number in 0..MESSAGES {
            let batch: Batch = receiver.receive(10_000).await.unwrap().unwrap();
            assert_eq!(batch.begin_lsn, number, "in order, and once");
            assert!(batch.payload.iter().all(|byte| u64::from(*byte) == number % 251));
            let took_us = steady_us() - u64::try_from(batch.newest_commit_us).unwrap();
            late += usize::from(took_us > 2 * DELAY_US + DELAY_US / 2);
        }
        late
    };
    let both = async { tokio::join!(sending, receiving) };
    let ((), late) = tokio::time::timeout(3 * PATIENCE, both).await.unwrap();
    connection.close("all was said");
    tasks.stop();
    (receiver.repaired_messages(), late)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_path_loses_is_repaired_over_real_connections() {
    let (none, late_without) = converse(false).await;
    let (repaired, late) = converse(true).await;
    println!("{repaired} messages by repairs; late: {late} with, {late_without} without");
    assert_eq!(none, 0);
    // Some 70 packets are lost; until the first is known of, and when a repair itself is, it is sent again.
    assert!(repaired >= 20, "{repaired} came by repairs");
}
