//! Signing requests: what of them is signed, and what is taken of what comes back.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#![allow(clippy::disallowed_methods, reason = "certificates are made for now")]

use std::path::Path;

use proto::ClusterId;
use replicator_transport::signing::{Request, Whose, install, install_server, request, request_server};
use replicator_transport::{Authority, Identity, Peer};

const CLUSTER: ClusterId = ClusterId([1; 16]);

fn authority(directory: &Path, cluster: ClusterId) -> Authority {
    Authority::create(directory, "test", cluster, time::OffsetDateTime::now_utc()).unwrap()
}

fn sign(authority: &Authority, request: &Request) -> Result<String, String> {
    let now = time::OffsetDateTime::now_utc();
    authority.sign_request(request, "PostgreSQL", now, time::Duration::days(1)).map_err(|e| e.to_string())
}

#[test]
fn a_key_stays_where_it_is_used_and_its_certificate_comes_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let ca = authority(&at("ca"), CLUSTER);
    let trusted = std::fs::read_to_string(at("ca/ca.pem")).unwrap();
    let peer = Peer::Node("us-east".parse().unwrap(), "n1".parse().unwrap());
    let asked = request(&at("n1"), &peer, CLUSTER).unwrap();
    assert!(!at("n1/key.pem").exists() && !asked.contains("PRIVATE"));
    let names = ["db.example".to_owned(), "10.0.0.1".to_owned()];
    let of_server = request_server(&at("n1/postgresql"), "PostgreSQL", &names).unwrap();
    let requests = Request::read_all(&(asked.clone() + &of_server)).unwrap();
    assert_eq!(requests[0].whose, Whose::Peer(CLUSTER, peer.clone()));
    assert_eq!(requests[1].whose, Whose::Server(names.to_vec()));
    let signed: String = requests.iter().map(|request| sign(&ca, request).unwrap()).collect();

    // Nothing is taken that is another's, or that those who are trusted would not let in.
    let other = Peer::Region("us-east".parse().unwrap());
    assert!(install(&at("n1"), &other, &signed, Some(&trusted)).is_err());
    let strange = authority(&at("strange"), CLUSTER);
    let by_strange = sign(&strange, &requests[0]).unwrap();
    let refused = install(&at("n1"), &peer, &by_strange, Some(&trusted)).unwrap_err().to_string();
    assert!(refused.contains("nobody would let it in"), "{refused}");
    let refused = install(&at("n1"), &peer, &signed, None).unwrap_err().to_string();
    assert!(refused.contains("--trust"), "{refused}");
    assert!(install(&at("n1"), &peer, &sign(&ca, &requests[1]).unwrap(), Some(&trusted)).is_err());
    assert!(!at("n1/cert.pem").exists() && at("n1/request.key").exists(), "nothing has changed");

    let taken = install(&at("n1"), &peer, &signed, Some(&trusted)).unwrap().unwrap();
    assert!(install_server(&at("n1/postgresql"), &signed).unwrap());
    let identity = Identity::load(&at("n1")).unwrap();
    assert_eq!((&identity.peer, &identity.certificate), (&peer, &taken));
    assert!(!at("n1/request.key").exists() && at("n1/postgresql/cert.pem").exists());
    assert_eq!(install(&at("n1"), &peer, &signed, None).unwrap(), None, "no key waits any more");
    assert!(!install_server(&at("n1/postgresql"), &signed).unwrap());

    // A key that waits is asked for again; the certificates of one key are told apart.
    let again = request(&at("n2"), &peer, CLUSTER).unwrap();
    let [first, second] = [again, request(&at("n2"), &peer, CLUSTER).unwrap()]
        .map(|asked| sign(&ca, &Request::read_all(&asked).unwrap()[0]).unwrap());
    assert_ne!(first, second);
    assert!(install(&at("n2"), &peer, &first, Some(&trusted)).unwrap().is_some());
}

#[test]
fn what_a_request_is_not_to_ask_for_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ca = authority(&directory.path().join("ca"), CLUSTER);
    let place = directory.path().join("ann");
    let peer = Peer::Operator("ann".parse().unwrap());
    let other = request(&place, &peer, ClusterId([2; 16])).unwrap();
    let refused = sign(&ca, &Request::read_all(&other).unwrap()[0]).unwrap_err();
    assert!(refused.contains("for cluster 0202"), "{refused}");
    // One that is not signed by its own key: the name was changed on the way.
    let good = request(&place, &peer, CLUSTER).unwrap();
    let body: String = good.lines().filter(|line| !line.starts_with("---")).collect();
    let mut der = base64_decoded(&body);
    let at = der.windows(3).position(|window| window == b"ann").unwrap();
    der[at] = b'u';
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64_encoded(&der)
    );
    assert!(Request::read_all(&forged).is_err());
    for none in
        ["", "nothing", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
    {
        assert!(Request::read_all(none).is_err(), "{none}");
    }
}

fn base64_decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn base64_encoded(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
