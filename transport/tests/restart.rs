//! A daemon that is killed and started again: a peer's connection to its first life is over at once.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#![allow(clippy::disallowed_methods, reason = "the first life has a runtime of its own, to be dropped")]

use std::net::SocketAddr;
use std::time::Duration;

use proto::ClusterId;
use proto::messages::Open;
use replicator_transport::{Authority, Endpoint, Identity, Peer};

/// Far less than QUIC's own patience with a peer that says nothing.
const SOON: Duration = Duration::from_secs(2);

fn identities(place: &std::path::Path) -> [Identity; 2] {
    let now = time::OffsetDateTime::now_utc();
    let authority = Authority::create(&place.join("ca"), "test", ClusterId([1; 16]), now).unwrap();
    ["eu-west", "us-east"].map(|name| {
        let own = place.join(name);
        authority.issue(&own, &Peer::Region(name.parse().unwrap()), now, time::Duration::days(1)).unwrap();
        Identity::load(&own).unwrap()
    })
}

/// An endpoint that accepts one connection and ends the first stream on it, in a runtime that ends without a
/// word to anybody.
fn life(listen: SocketAddr, identity: Identity) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (told, bound) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let endpoint = Endpoint::bind(Some(listen), &identity).unwrap();
        told.send(endpoint.local_address().unwrap()).unwrap();
        let connection = endpoint.accept().await.unwrap();
        connection.accept_stream().await.unwrap().finish().await;
        std::future::pending::<()>().await;
        drop(connection);
    });
    (runtime, bound.recv().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_a_daemon_that_was_killed_is_over_once_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let [server, client] = identities(directory.path());
    let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (first, address) = life(probe, server.clone());
    let endpoint = Endpoint::bind(None, &client).unwrap();
    let expect = "eu-west".parse().unwrap();
    let connection = endpoint.connect(address, &expect, SOON).await.unwrap();
    // Until it is answered the handshake may be half done, and only what follows it can be reset.
    let mut stream = connection.open_stream(&Open::default()).await.unwrap();
    assert!(stream.receive::<Open>(100).await.unwrap().is_none());
    first.shutdown_background();
    let (second, _) = loop {
        // Its socket is closed a moment later.
        match std::net::UdpSocket::bind(address) {
            Ok(free) => drop(free),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        }
        break life(address, server.clone());
    };
    // What is sent now, or the next sign of life, is answered by one who knows nothing of it.
    let over = tokio::time::timeout(SOON, async {
        while !connection.is_over() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    over.await.expect("the peer was told within two seconds");
    endpoint.connect(address, &expect, SOON).await.unwrap();
    second.shutdown_background();
}
