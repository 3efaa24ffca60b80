//! Peers over real UDP on loopback: who is let in, what is taken, and what hostile bytes do.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#![allow(clippy::disallowed_methods, reason = "certificates are made for now")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::messages::{Heartbeat, MAX_CONTROL_MESSAGE_BYTES, Open, SignedOrder};
use proto::{ClusterId, RegionName};
use replicator_transport::{Authority, Endpoint, Holder, Identity, Peer, Traffic, TransportError};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

const PATIENCE: Duration = Duration::from_secs(5);

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn authority(directory: &Path) -> Authority {
    Authority::create(&directory.join("ca"), "test", ClusterId([1; 16]), time::OffsetDateTime::now_utc())
        .unwrap()
}

fn identity(directory: &Path, authority: &Authority, name: &str, days: i64) -> Identity {
    let peer =
        if name == "operator" { Peer::Operator(Holder::operator()) } else { Peer::Region(region(name)) };
    let directory = directory.join(name);
    authority
        .issue(
            &directory,
            &peer,
            time::OffsetDateTime::now_utc(),
            time::Duration::days(days) - time::Duration::minutes(1),
        )
        .unwrap();
    Identity::load(&directory).unwrap()
}

fn listen(identity: &Identity) -> Endpoint {
    Endpoint::bind(Some("127.0.0.1:0".parse().unwrap()), identity).unwrap()
}

#[tokio::test]
async fn an_order_is_an_operators_whoever_brings_it() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let judge = listen(&identity(directory.path(), &ca, "eu-west", 1));
    let operator = identity(directory.path(), &ca, "operator", 1);
    assert!(judge.signs().required, "a new authority says that orders are signed");
    let now_us = i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap();
    let order = operator.sign_order(b"promote eu-west".to_vec()).unwrap();
    let certificate = judge.verify_order(&order, now_us).unwrap();
    assert_eq!(certificate.peer, Peer::Operator(Holder::operator()));
    let refused = |order: &SignedOrder, at_us: i64| judge.verify_order(order, at_us).unwrap_err();
    let other = SignedOrder { content: b"promote us-east".to_vec().into(), ..order.clone() };
    assert!(refused(&other, now_us).contains("the signature is not operator's"));
    let mut turned = order.clone();
    turned.signature = order.signature.iter().rev().copied().collect::<Vec<u8>>().into();
    assert!(refused(&turned, now_us).contains("the signature is not operator's"));
    for scheme in [0, 0x0201, 0x0807, u32::MAX] {
        assert!(judge.verify_order(&SignedOrder { scheme, ..order.clone() }, now_us).is_err(), "{scheme:x}");
    }
    let day_us = 24 * 3_600_000_000;
    assert!(refused(&order, now_us + day_us).contains("its certificate"), "it has ended by then");
    assert!(refused(&order, -1_000_000).contains("before 1970"));
    assert!(refused(&SignedOrder { chain: vec![], ..order.clone() }, now_us).contains("no certificate"));
    let chain = vec![order.chain[0].clone(); 9];
    assert!(refused(&SignedOrder { chain, ..order.clone() }, now_us).contains("9 certificates"));
    let region_order = identity(directory.path(), &ca, "us-east", 1).sign_order(b"x".to_vec()).unwrap();
    assert!(refused(&region_order, now_us).contains("signed by region"));
    judge.deny([certificate.serial].into());
    assert!(refused(&order, now_us).contains("is denied"));
}

#[tokio::test]
async fn regions_know_each_other_by_their_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let server = listen(&identity(directory.path(), &ca, "eu-west", 1));
    let client = listen(&identity(directory.path(), &ca, "us-east", 1));
    let address = server.local_address().unwrap();
    let connection = client.connect(address, &region("eu-west"), PATIENCE).await.unwrap();
    let accepted = server.accept().await.unwrap();
    assert_eq!(accepted.peer(), &Peer::Region(region("us-east")));
    let mut stream = connection.open_stream(&Open { protocol: 7, ..Open::default() }).await.unwrap();
    let mut other = accepted.accept_stream().await.unwrap();
    let open: Open = other.receive(1000).await.unwrap().unwrap();
    assert_eq!(open.protocol, 7);
    other.send(&Heartbeat { number: 5, durable_lsn: 6 }).await.unwrap();
    let heartbeat: Heartbeat = stream.receive(1000).await.unwrap().unwrap();
    assert_eq!(heartbeat.number, 5);

    let wrong = client.connect(address, &region("ap-south"), PATIENCE).await.unwrap_err();
    assert!(matches!(wrong, TransportError::Certificate { .. }), "{wrong}");
}

/// A name may have several addresses, of which one swallows everything: another family, an old entry.
#[tokio::test]
async fn of_several_addresses_the_one_that_answers_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let [a, b] = ["us-east", "eu-west"].map(|name| identity(directory.path(), &authority, name, 30));
    let (client, server) = (listen(&a), listen(&b));
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (long, other) = (Duration::from_secs(300), region("eu-west"));
    let addresses = vec![silent.local_addr().unwrap(), deaf, server.local_address().unwrap()];
    let connecting = client.connect_any(Traffic::Redo, addresses, &other, long);
    let connection =
        tokio::time::timeout(Duration::from_secs(30), connecting).await.expect("nobody is waited for");
    assert_eq!(connection.unwrap().unwrap().peer(), &Peer::Region(other.clone()));
    let nowhere = client.connect_any(Traffic::Redo, Vec::new(), &other, long).await;
    assert!(nowhere.unwrap().is_none());
    let addresses = vec![silent.local_addr().unwrap()];
    let silent = client.connect_any(Traffic::Redo, addresses, &other, Duration::from_millis(300)).await;
    assert!(matches!(silent, Err(TransportError::Unreachable { .. })), "{silent:?}");
}

#[tokio::test]
async fn foreign_and_expired_certificates_are_refused() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = authority(ours.path());
    let server = listen(&identity(ours.path(), &ca, "eu-west", 1));
    let address = server.local_address().unwrap();
    let foreign = listen(&identity(theirs.path(), &authority(theirs.path()), "us-east", 1));
    let refused = foreign.connect(address, &region("eu-west"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, TransportError::Certificate { .. }), "{refused}");

    let expired = Endpoint::bind(None, &identity(ours.path(), &ca, "ap-south", 0)).unwrap();
    // The client learns of the refusal when it first uses the connection.
    if let Ok(connection) = expired.connect(address, &region("eu-west"), PATIENCE).await {
        let reply = async { connection.open_stream(&Open::default()).await?.receive::<Open>(100).await };
        assert!(tokio::time::timeout(PATIENCE, reply).await.unwrap().is_err());
    }
    let nobody = tokio::time::timeout(Duration::from_millis(300), server.accept()).await;
    assert!(nobody.is_err(), "nobody was let in");
}

/// One after the other, as an operator does: both authorities are trusted, then certificates are the new
/// one's, then the old one is trusted no more. A connection that is there goes on through all of it.
#[tokio::test]
async fn certificates_and_authorities_turn_over_under_an_open_connection() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let ca = authority(directory.path());
    let server = listen(&identity(directory.path(), &ca, "eu-west", 1));
    let client = listen(&identity(directory.path(), &ca, "us-east", 1));
    let late = listen(&identity(directory.path(), &ca, "ap-south", 1));
    let address = server.local_address().unwrap();
    let connection = client.connect(address, &region("eu-west"), PATIENCE).await.unwrap();
    let accepted = server.accept().await.unwrap();
    let mut stream = connection.open_stream(&Open::default()).await.unwrap();
    let mut other = accepted.accept_stream().await.unwrap();
    let _: Open = other.receive(1000).await.unwrap().unwrap();

    let authorities = directory.path().join("ca");
    let now = time::OffsetDateTime::now_utc();
    Authority::prepare_next(&authorities, "test", now).unwrap();
    Authority::prepare_next(&authorities, "test", now).unwrap();
    let both = Authority::open(&authorities).unwrap();
    for (name, endpoint) in [("eu-west", &server), ("us-east", &client)] {
        both.tell_trusted(&place(name)).unwrap();
        endpoint.renew(&Identity::load(&place(name)).unwrap()).unwrap();
    }
    Authority::succeed(&authorities).unwrap();
    let new = Authority::open(&authorities).unwrap();
    assert_eq!(new.cluster_id(), ca.cluster_id(), "it is the same cluster");
    client.renew(&identity(directory.path(), &new, "us-east", 1)).unwrap();
    for client in [&client, &late] {
        client.connect(address, &region("eu-west"), PATIENCE).await.unwrap();
        server.accept().await.unwrap();
    }
    // The one that was forgotten trusts the old authority alone.
    server.renew(&identity(directory.path(), &new, "eu-west", 1)).unwrap();
    let forgotten = late.connect(address, &region("eu-west"), PATIENCE).await.unwrap_err();
    assert!(matches!(forgotten, TransportError::Certificate { .. }), "{forgotten}");
    Authority::trust_no_other(&authorities).unwrap();
    Authority::open(&authorities).unwrap().tell_trusted(&place("eu-west")).unwrap();
    server.renew(&Identity::load(&place("eu-west")).unwrap()).unwrap();
    client.connect(address, &region("eu-west"), PATIENCE).await.unwrap();
    server.accept().await.unwrap();

    // What would shut the daemon out is not taken: a certificate of the old authority, or one that has ended.
    let refused = server.renew(&identity(directory.path(), &ca, "eu-west", 1)).map_err(|_| ());
    new.tell_trusted(&place("eu-west")).unwrap();
    assert!(refused.is_ok(), "it came with its own authority");
    assert!(
        server
            .renew(&Identity::load_trusting(&place("eu-west"), &authorities.join("ca.pem")).unwrap())
            .is_err()
    );
    assert!(server.renew(&identity(directory.path(), &new, "eu-west", 0)).is_err());

    other.send(&Heartbeat { number: 5, durable_lsn: 6 }).await.unwrap();
    let heartbeat: Heartbeat = stream.receive(1000).await.unwrap().unwrap();
    assert_eq!(heartbeat.number, 5, "the connection that was there goes on");
}

/// Issues `peer` a certificate for so long, in a directory of its own.
fn issue(directory: &Path, authority: &Authority, peer: &Peer, seconds: i64) -> Identity {
    let place = directory.join(peer.to_string().replace(' ', "-"));
    let now = time::OffsetDateTime::now_utc();
    authority.issue(&place, peer, now, time::Duration::seconds(seconds)).unwrap();
    Identity::load(&place).unwrap()
}

#[tokio::test]
async fn a_role_says_who_it_is_and_only_regions_and_witnesses_are_connected_to() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let (a, b) = (region("us-east"), region("eu-west"));
    let holder: Holder = "ann".parse().unwrap();
    let server = listen(&issue(directory.path(), &ca, &Peer::Region(b.clone()), 600));
    server.require_roles(Some(false));
    let address = server.local_address().unwrap();
    for peer in [
        Peer::Region(a.clone()),
        Peer::Witness(a.clone()),
        Peer::Voter(a.clone()),
        Peer::Node(b.clone(), "n1".parse().unwrap()),
        Peer::Operator(holder.clone()),
        Peer::Monitor(holder),
    ] {
        let identity = issue(directory.path(), &ca, &peer, 600);
        assert_eq!(
            (&identity.peer, identity.certificate.has_role()),
            (&peer, !matches!(peer, Peer::Voter(_)))
        );
        let client = listen(&identity);
        let _connection = client.connect(address, &b, PATIENCE).await.unwrap();
        let accepted = server.accept().await.unwrap();
        assert_eq!(accepted.peer(), &peer);
        assert_eq!(accepted.certificate(), &identity.certificate);
        // It serves under its own name, if it is one that is connected to.
        let other =
            Endpoint::bind(None, &issue(directory.path(), &ca, &Peer::Region(b.clone()), 600)).unwrap();
        other.require_roles(Some(false));
        let connected = other.connect(client.local_address().unwrap(), &a, PATIENCE).await;
        assert_eq!(connected.is_ok(), peer.voter() == Some(&a), "{peer}");
    }
}

/// By the authority, or by the file: who has no role is not let in, and not any more.
#[tokio::test]
async fn a_certificate_without_a_role_is_refused_where_roles_are_required() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let (a, b) = (region("us-east"), region("eu-west"));
    let server = listen(&issue(directory.path(), &ca, &Peer::Region(b.clone()), 600));
    let address = server.local_address().unwrap();
    let client = listen(&issue(directory.path(), &ca, &Peer::Voter(a.clone()), 600));
    // This authority has never issued one.
    let _ = client.connect(address, &b, PATIENCE).await;
    let refused = tokio::time::timeout(PATIENCE, server.refused()).await.unwrap();
    assert!(refused.why.contains("has no role"), "{}", refused.why);
    server.require_roles(Some(false));
    let connection = client.connect(address, &b, PATIENCE).await.unwrap();
    let accepted = tokio::time::timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    assert_eq!(accepted.peer(), &Peer::Voter(a));
    assert_eq!(server.without_roles(), ["us-east".to_owned()].into());
    assert_eq!(server.require_roles(Some(true)), 1);
    let mut stream = connection.open_stream(&Open::default()).await;
    let over = async {
        match &mut stream {
            Ok(stream) => stream.receive::<Open>(100).await.is_err(),
            Err(_) => true,
        }
    };
    assert!(tokio::time::timeout(PATIENCE, over).await.unwrap());
    assert!(server.without_roles().is_empty());
}

#[tokio::test]
async fn a_denied_certificate_is_gone_and_comes_back_when_it_is_not_denied_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let server = listen(&identity(directory.path(), &ca, "eu-west", 1));
    let address = server.local_address().unwrap();
    let stolen = identity(directory.path(), &ca, "us-east", 1);
    let (thief, other) = (listen(&stolen), listen(&identity(directory.path(), &ca, "ap-south", 1)));
    let eu_west = region("eu-west");
    let open = thief.connect(address, &eu_west, PATIENCE).await.unwrap();
    let there = server.accept().await.unwrap();
    let beside = other.connect(address, &eu_west, PATIENCE).await.unwrap();
    let _beside = server.accept().await.unwrap();
    for mark in [stolen.certificate.serial.clone(), stolen.certificate.fingerprint.clone()] {
        let mark = replicator_transport::peer::mark(&mark).unwrap();
        server.deny([mark].into());
        while !(open.is_over() && there.is_over()) {
            tokio::time::timeout(PATIENCE, open.accept_stream()).await.expect("it is closed");
        }
        let refused = tokio::time::timeout(PATIENCE, server.refused()).await.unwrap();
        assert!(refused.why.contains("us-east is denied"), "{refused:?}");
        assert_eq!(refused.certificate, Some(stolen.certificate.clone()));
        if let Ok(again) = thief.connect(address, &eu_west, PATIENCE).await {
            assert!(tokio::time::timeout(PATIENCE, again.accept_stream()).await.unwrap().is_none());
        }
        assert!(tokio::time::timeout(Duration::from_millis(300), server.accept()).await.is_err());
    }
    assert!(!beside.is_over(), "others go on");
    server.deny(<_>::default());
    let _again = thief.connect(address, &eu_west, PATIENCE).await.unwrap();
    assert_eq!(server.accept().await.unwrap().peer(), &Peer::Region(region("us-east")));
    // Whoever connects looks as well.
    thief.deny([identity(directory.path(), &ca, "eu-west", 1).certificate.serial].into());
    server.renew(&Identity::load(&directory.path().join("eu-west")).unwrap()).unwrap();
    let refused = thief.connect(address, &eu_west, PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("is denied"), "{refused}");
}

#[tokio::test]
async fn a_connection_ends_some_time_after_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let server = listen(&identity(directory.path(), &ca, "eu-west", 1));
    server.set_grace(Duration::from_secs(1));
    let address = server.local_address().unwrap();
    let [short, long] = [("us-east", 2), ("ap-south", 600)].map(|(name, seconds)| {
        Endpoint::bind(None, &issue(directory.path(), &ca, &Peer::Region(region(name)), seconds)).unwrap()
    });
    let eu_west = region("eu-west");
    let begun = tokio::time::Instant::now();
    let ends = short.connect(address, &eu_west, PATIENCE).await.unwrap();
    let stays = long.connect(address, &eu_west, PATIENCE).await.unwrap();
    let _both = (server.accept().await.unwrap(), server.accept().await.unwrap());
    assert!(tokio::time::timeout(Duration::from_secs(20), ends.accept_stream()).await.unwrap().is_none());
    assert!(begun.elapsed() > Duration::from_secs(2), "not before: {:?}", begun.elapsed());
    assert!(!stays.is_over());
}

/// Certificates of a few seconds are renewed on both sides again and again: nothing is let go on after its
/// certificate, and the one stream goes on. Who shows another's is not believed.
#[tokio::test]
async fn a_renewed_certificate_is_shown_on_the_connection_that_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let of = |name: &str, seconds| issue(directory.path(), &ca, &Peer::Region(region(name)), seconds);
    let server = listen(&of("eu-west", 4));
    let client = Endpoint::bind(None, &of("us-east", 4)).unwrap();
    let liar = Endpoint::bind(None, &of("ap-south", 4)).unwrap();
    [&server, &client, &liar].into_iter().for_each(|endpoint| endpoint.set_grace(Duration::ZERO));
    let (address, eu_west) = (server.local_address().unwrap(), region("eu-west"));
    let connection = client.connect(address, &eu_west, PATIENCE).await.unwrap();
    let accepted = server.accept().await.unwrap();
    let lies = liar.connect(address, &eu_west, PATIENCE).await.unwrap();
    let lied_to = server.accept().await.unwrap();
    let mut stream = connection.open_stream(&Open::default()).await.unwrap();
    let mut other = accepted.accept_stream().await.unwrap();
    let _: Open = other.receive(1000).await.unwrap().unwrap();
    for number in 0..6 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.renew(&of("eu-west", 4)).unwrap();
        client.renew(&of("us-east", 4)).unwrap();
        liar.renew(&of("us-east", 4)).unwrap();
        other.send(&Heartbeat { number, durable_lsn: 6 }).await.unwrap();
        let heartbeat: Heartbeat = stream.receive(1000).await.unwrap().unwrap();
        assert_eq!(heartbeat.number, number);
    }
    assert!(lies.is_over() && lied_to.is_over(), "its own has ended, and the one it shows is another's");
    // Without another one it ends.
    while !(connection.is_over() && accepted.is_over()) {
        let over = tokio::time::timeout(Duration::from_secs(20), connection.accept_stream()).await;
        assert!(over.expect("it ends").is_none());
    }
}

/// Who has a token speaks TLS with a certificate of the cluster's authority, for clients: and is nobody.
#[tokio::test]
async fn a_token_is_no_peer() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let server = listen(&identity(directory.path(), &ca, "eu-west", 1));
    let address = server.local_address().unwrap();
    let place = directory.path().join("token");
    let now = time::OffsetDateTime::now_utc();
    let token = ca.grant_token("us-east", now, time::Duration::minutes(5)).unwrap();
    let placed = token.write(&place).unwrap();
    let read = |path: &Path| std::fs::read(path).unwrap();
    let certificate = CertificateDer::from_pem_slice(&read(&placed.certificate)).unwrap();
    assert_eq!(replicator_transport::Certificate::of(&certificate), None);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read(&placed.authorities)).unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read(&placed.key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    client.alpn_protocols = vec![b"replicator/1".to_vec()];
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(client)), address, "eu-west").unwrap();
    // The server has its certificate only after the client has begun.
    let connection = tokio::time::timeout(PATIENCE, connecting).await.unwrap().unwrap();
    tokio::select! {
        ended = tokio::time::timeout(PATIENCE, connection.closed()) => drop(ended.unwrap()),
        _ = server.accept() => panic!("it was let in"),
    }
}

#[tokio::test]
async fn hostile_bytes_leave_the_port_working() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(directory.path());
    let server = listen(&identity(directory.path(), &ca, "eu-west", 1));
    let address = server.local_address().unwrap();
    let noise = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..20_000_u64 {
        let bytes: Vec<u8> = (0..i % 1400).map(|j| (j * i).to_le_bytes()[usize::from(i % 2 == 0)]).collect();
        let _ = noise.send_to(&bytes, address);
    }
    let client = Endpoint::bind(None, &identity(directory.path(), &ca, "operator", 1)).unwrap();
    let connection = client.connect(address, &region("eu-west"), PATIENCE).await.unwrap();
    let accepted = server.accept().await.unwrap();
    assert_eq!(accepted.peer(), &Peer::Operator(Holder::operator()));

    let mut large = connection
        .open_stream(&Open { cluster_id: vec![0; 200_000].into(), ..Open::default() })
        .await
        .unwrap();
    let refused = accepted.accept_stream().await.unwrap().receive::<Open>(MAX_CONTROL_MESSAGE_BYTES).await;
    assert!(matches!(refused, Err(TransportError::Frame(_))));
    assert!(large.receive::<Open>(100).await.is_err() || large.send(&Open::default()).await.is_err());
}
