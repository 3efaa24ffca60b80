//! Stolen certificates: whoever has the key of a witness, a region, a node, a monitor or an operator asks
//! everything of everybody, and gets what its role has and nothing else; is denied, and is gone within
//! seconds, while everything else streams on; and what it did is in the audit.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coordination::leadership::{Change, Order};
use coordination::register::{Accepted, Answer as Vote};
use coordination::{Leadership, Membership, Mode, Number};
use proto::messages::refusal::Kind;
use proto::messages::{self as m, MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, control_request, open};
use proto::{ClusterId, Epoch, RegionName};
use replicator::daemon::authority::{Asked, Request, Rule, Who, rule};
use replicator::orders;
use replicator::voter::wire;
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, PATIENCE, installation, text, until};
use transport::{Authority, Connection, Endpoint, Holder, Identity, Peer, Stream, TransportError};

type Answer = m::control_response::Body;

/// What a daemon says to one who asks.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Refused(Kind),
    /// It ended the stream, where there is no place for a refusal.
    Ended,
    Something,
}

/// A record that nobody has agreed on, and that makes another region the primary.
fn forged() -> m::Accept {
    let number = Number { round: 99, proposer: 9 };
    let record = Leadership::first(Epoch(1), "eu-west".parse().unwrap());
    let proposal = Some(wire::accepted(&Accepted { number, record }));
    m::Accept { proposal, next: Some(wire::number(Number { round: 100, proposer: 9 })) }
}

/// The first message of a stream that asks this, with no more in it than it needs.
fn purpose(request: Request) -> open::Purpose {
    use control_request::Body as B;
    use open::Purpose as P;
    let control = |body| P::Control(m::ControlRequest { body: Some(body) });
    match request {
        Request::Replicate => P::Replicate(<_>::default()),
        Request::Seed => P::Seed(m::SeedOpen { timeline: 1, ..<_>::default() }),
        Request::Zone => P::Zone(m::ZoneOpen { zone: "c".into(), ..m::ZoneOpen::default() }),
        Request::Copy => P::Copy(m::CopyOpen { copy: "a1".into(), body: None }),
        Request::Gather => P::Gather(<_>::default()),
        Request::Rewind => P::Rewind(m::RewindOpen { timeline: 1, ..<_>::default() }),
        Request::Session => P::Session(m::SessionOpen::default()),
        Request::Rehearse => P::Rehearse(<_>::default()),
        Request::Node => P::Node(m::NodeOpen { node: "n2".into(), process: 7 }),
        Request::Feed => P::Feed(m::FeedOpen { node: "n2".into(), ..<_>::default() }),
        Request::Backup => P::Backup(m::BackupOpen { node: "n2".into(), ..<_>::default() }),
        Request::Client => P::Client(m::ClientOpen::default()),
        Request::RegionStatus => control(B::RegionStatus(<_>::default())),
        Request::ClusterStatus => control(B::ClusterStatus(<_>::default())),
        Request::Url => control(B::Url(m::UrlRequest { region: "us-east".into() })),
        Request::Volume => control(B::Volume(m::VolumeRequest { scrub: true, ..<_>::default() })),
        Request::Promote => control(B::Promote(m::PromoteRequest { failover: true, ..<_>::default() })),
        Request::HandOver => {
            control(B::HandOver(m::HandOverRequest { to: "eu-west".into(), ..<_>::default() }))
        }
        Request::Prepare => control(B::Prepare(<_>::default())),
        Request::Accept => control(B::Accept(forged())),
        Request::Learn => control(B::Learn(<_>::default())),
        Request::Survey => control(B::Survey(<_>::default())),
        Request::GetReady => control(B::GetReady(<_>::default())),
        Request::Lead => control(B::Lead(<_>::default())),
        Request::Support => control(B::Support(<_>::default())),
        Request::Record => control(B::Record(<_>::default())),
        Request::Recall => control(B::Recall(<_>::default())),
        Request::Revote => control(B::Revote(<_>::default())),
        Request::Reseed => control(B::Reseed(<_>::default())),
        Request::Events => control(B::Events(<_>::default())),
        Request::Load => control(B::Load(<_>::default())),
        Request::Voters => {
            control(B::Voters(m::VotersRequest { remove: "eu-west".into(), ..<_>::default() }))
        }
        Request::Reload => control(B::Reload(<_>::default())),
        Request::Password => control(B::Password(m::PasswordRequest { set: true, ..<_>::default() })),
        Request::FetchPassword => control(B::FetchPassword(<_>::default())),
        Request::Slots => control(B::Slots(<_>::default())),
        Request::Audit => control(B::Audit(<_>::default())),
        Request::MoveHead => control(B::MoveHead(m::MoveHeadRequest { node: "n2".into(), ..<_>::default() })),
        Request::Token => control(B::Token(<_>::default())),
    }
}

async fn heard<M: prost::Message + Default>(
    stream: &mut Stream,
    refusal: impl FnOnce(M) -> Option<m::Refusal>,
) -> Said {
    let received = tokio::time::timeout(PATIENCE, stream.receive::<M>(MAX_CONTROL_MESSAGE_BYTES)).await;
    match received.expect("an answer, or an end") {
        Ok(Some(message)) => {
            refusal(message).map_or(Said::Something, |refusal| Said::Refused(refusal.kind()))
        }
        Ok(None) | Err(_) => Said::Ended,
    }
}

/// Somebody with a stolen certificate.
struct Thief {
    endpoint: Endpoint,
    cluster_id: ClusterId,
    serial: String,
}

impl Thief {
    fn with(place: &Path) -> Thief {
        let identity = Identity::load(place).unwrap();
        let (cluster_id, serial) = (identity.cluster_id, identity.certificate.serial.clone());
        Thief { endpoint: Endpoint::bind(None, &identity).unwrap(), cluster_id, serial }
    }

    async fn connect(&self, cluster: &Cluster, name: &str) -> Result<Connection, TransportError> {
        let name: RegionName = name.parse().unwrap();
        self.endpoint.connect(address(cluster, &name), &name, Duration::from_secs(10)).await
    }

    async fn ask(&self, connection: &Connection, purpose: open::Purpose) -> Said {
        let cluster_id = self.cluster_id.0.to_vec().into();
        let open = Open { protocol: PROTOCOL_VERSION, cluster_id, purpose: Some(purpose) };
        let Ok(mut stream) = connection.open_stream(&open).await else { return Said::Ended };
        match open.purpose.unwrap() {
            open::Purpose::Replicate(_) => heard(&mut stream, |ready: m::ReplicateReady| ready.refusal).await,
            open::Purpose::Seed(_) => heard(&mut stream, |answer: m::SeedAnswer| answer.refusal).await,
            open::Purpose::Zone(_) => heard(&mut stream, |ready: m::ZoneReady| ready.refusal).await,
            open::Purpose::Session(_) | open::Purpose::Client(_) | open::Purpose::Rehearse(_) => {
                heard(&mut stream, |ready: m::SessionReady| ready.refusal).await
            }
            open::Purpose::Node(_) => heard(&mut stream, |word: m::NodeWord| word.refusal).await,
            open::Purpose::Feed(_) => heard(&mut stream, |ready: m::FeedReady| ready.refusal).await,
            open::Purpose::Backup(_) => heard(&mut stream, |ready: m::BackupReady| ready.refusal).await,
            open::Purpose::Gather(_) | open::Purpose::Copy(_) => {
                heard(&mut stream, |_: m::Downstream| None).await
            }
            open::Purpose::Rewind(_) => {
                let refusal = |message: m::Rewind| match message.body {
                    Some(m::rewind::Body::Refusal(refusal)) => Some(refusal),
                    _ => None,
                };
                heard(&mut stream, refusal).await
            }
            open::Purpose::Control(_) => {
                let refusal = |answer: m::ControlResponse| match answer.body {
                    Some(m::control_response::Body::Refusal(refusal)) => Some(refusal),
                    _ => None,
                };
                heard(&mut stream, refusal).await
            }
        }
    }
}

fn address(cluster: &Cluster, name: &RegionName) -> std::net::SocketAddr {
    let config = replicator::config::Config::load(&cluster.file()).unwrap();
    let witness = config.witnesses.iter().find(|witness| witness.name == *name);
    witness.map_or_else(|| cluster.address(name.as_str()), |witness| witness.listen)
}

/// The lines of `audit --json`.
fn audit(cluster: &Cluster) -> Vec<serde_json::Value> {
    let printed = cluster.printed(&["audit", "--json"]);
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn attacked() -> Cluster {
    let cluster = Cluster::new(1);
    cluster.configure("commit = { regions = 1 }\n");
    cluster.add_witness("third-site");
    cluster.add_node_of_zone("us-east", "n1", 'b', true);
    cluster.add_node("us-east", "n2");
    cluster.start();
    cluster
}

/// What each asks in vain, over the network, is what the one table says; and asks for all of it, of a region
/// that leads, one that follows, and a witness.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_certificate_gets_what_its_role_has_and_nothing_else() {
    let cluster = attacked();
    let monitor = PathBuf::from(cluster.printed(&["certs", "--monitor", "grafana"]));
    let operator = PathBuf::from(cluster.printed(&["certs", "--operator", "ann"]));
    let stolen = [
        (Who::Witness, cluster.region("third-site").join("identity")),
        (Who::Region, cluster.region("eu-west").join("identity")),
        (Who::Node, cluster.node("us-east", "n1").join("identity")),
        (Who::Monitor, monitor.clone()),
        (Who::Operator, operator.clone()),
    ];
    let (mut refused, mut conditions) = (0, 0);
    for (role, place) in &stolen {
        let thief = Thief::with(place);
        for (name, asked) in
            [("us-east", Asked::Region), ("eu-west", Asked::Region), ("third-site", Asked::Witness)]
        {
            // Of one's own daemon one is another: its own, and a node of another region is nobody.
            let who = match (role, name) {
                (Who::Region, "eu-west") | (Who::Witness, "third-site") => Who::Own,
                (Who::Node, "eu-west" | "third-site") => Who::Stranger,
                (role, _) => *role,
            };
            let connection = thief.connect(&cluster, name).await.unwrap();
            for request in Request::ALL.iter().copied() {
                let rule = rule(who, request, asked);
                if rule == Rule::Allowed {
                    continue;
                }
                let said = thief.ask(&connection, purpose(request)).await;
                // A copy and what is gathered have no place for a refusal.
                let silent = matches!(request, Request::Copy | Request::Gather);
                let expected = if silent { Said::Ended } else { Said::Refused(Kind::NotAllowed) };
                if rule == Rule::Refused {
                    assert_eq!(said, expected, "{who:?} asks {} of {name}", request.name());
                    refused += 1;
                } else {
                    // What must hold does not: nobody shall lead, coordinates, or is another node.
                    assert!(said != Said::Something, "{who:?} asks {} of {name}", request.name());
                    conditions += 1;
                }
            }
        }
    }
    assert!(refused > 300 && conditions > 5, "{refused} refused, {conditions} on a condition");

    // None but a region is a region to those who connect.
    let us_east: RegionName = "us-east".parse().unwrap();
    for place in [&stolen[2].1, &monitor, &operator] {
        let identity = Identity::load(place).unwrap();
        let posing = Endpoint::bind(Some("127.0.0.1:0".parse().unwrap()), &identity).unwrap();
        let victim = Thief::with(&cluster.region("eu-west").join("identity"));
        let at = posing.local_address().unwrap();
        let connected = victim.endpoint.connect(at, &us_east, Duration::from_secs(5)).await;
        assert!(connected.is_err(), "{:?} is no region", identity.peer);
    }

    // A monitor's commands.
    let by_monitor =
        |arguments: &[&str]| cluster.command(arguments).arg("--identity").arg(&monitor).output().unwrap();
    let status = by_monitor(&["status", "--json"]);
    assert!(text(&status.stdout).contains("us-east"), "{}", text(&status.stderr));
    for command in [
        &["url", "--region", "us-east"][..],
        &["promote", "--region", "eu-west"],
        &["events"],
        &["audit"],
        &["volume", "scrub", "--region", "us-east"],
        &["reload"],
        &["password", "rotate"],
    ] {
        let output = by_monitor(command);
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(!output.status.success() && said.contains("may not ask"), "{command:?}: {said}");
    }

    // Nothing of all this has changed anything.
    assert_eq!(cluster.status()["primary"], "us-east");
    let lines = audit(&cluster);
    let refusals = lines.iter().filter(|line| line["outcome"].as_str().unwrap().starts_with("refused"));
    for role in ["witness", "region", "node", "monitor", "operator"] {
        assert!(
            refusals.clone().any(|line| line["role"] == role && !line["serial"].as_str().unwrap().is_empty()),
            "{role}: {lines:#?}"
        );
    }
    let _ = cluster.printed(&["audit", "--verify"]);
}

impl Thief {
    /// What `name` answers to `body`.
    async fn control(&self, connection: &Connection, body: control_request::Body) -> Answer {
        let purpose = Some(open::Purpose::Control(m::ControlRequest { body: Some(body) }));
        let cluster_id = self.cluster_id.0.to_vec().into();
        let open = Open { protocol: PROTOCOL_VERSION, cluster_id, purpose };
        let mut stream = connection.open_stream(&open).await.unwrap();
        let answer = stream.receive::<m::ControlResponse>(MAX_CONTROL_MESSAGE_BYTES).await;
        answer.unwrap().unwrap().body.unwrap()
    }

    /// Has `name` vote on what `change` makes of the record, as a proposer does; returns why it refuses.
    async fn propose(&self, cluster: &Cluster, name: &str, change: &Change) -> Option<String> {
        let connection = self.connect(cluster, name).await.unwrap();
        let mut number = Number { round: 1, proposer: 9 };
        loop {
            let asked = self.control(&connection, control_request::Body::Prepare(wire::number(number))).await;
            let accepted = match wire::voted(asked).unwrap().0 {
                Vote::Promised(accepted) => accepted,
                Vote::Outbid(higher) => {
                    number = higher.next(9, false);
                    continue;
                }
                Vote::Accepted => panic!("nothing was proposed"),
            };
            let record = accepted.record.apply(change).unwrap();
            let proposal = Some(wire::accepted(&Accepted { number, record }));
            let next = Some(wire::number(number.next(9, false)));
            let body = control_request::Body::Accept(m::Accept { proposal, next });
            match self.control(&connection, body).await {
                Answer::Refusal(refusal) => return Some(refusal.reason),
                // Others propose as well.
                Answer::Voted(m::Voted { body: Some(m::voted::Body::Outbid(_)) }) => {}
                _ => return None,
            }
        }
    }
}

/// Whoever has the key of a region can propose, and is refused by every other voter what no operator has
/// signed: a promotion of itself, other voters, and an order that was signed for something else. What an
/// operator has signed goes through, and the record says whose order it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_regions_certificate_begins_no_promotion_and_changes_no_voters() {
    let cluster = Cluster::new(1);
    cluster.add_witness("third-site");
    cluster.start();
    let ann = PathBuf::from(cluster.printed(&["certs", "--operator", "ann"]));
    let monitor = PathBuf::from(cluster.printed(&["certs", "--monitor", "grafana"]));
    let eu_west: RegionName = "eu-west".parse().unwrap();
    let stolen = cluster.region("eu-west").join("identity");
    let thief = Thief::with(&stolen);
    let request = m::PromoteRequest { failover: true, ..m::PromoteRequest::default() };
    let signed_by = |place: &Path, epoch: u64, to: &str| {
        let identity = Identity::load(place).unwrap();
        let order = orders::sign_promotion(&identity, &to.parse().unwrap(), &request, Epoch(epoch)).unwrap();
        orders::in_request(Some(&order))
    };
    let begin = |signed| {
        let order = Order::new(7, Epoch(1), Mode::Failover, &eu_west);
        Change::Begin(Order { signed, ..order })
    };
    let another = tempfile::tempdir().unwrap();
    let stranger = {
        let cluster_id = Identity::load(&stolen).unwrap().cluster_id;
        let now = time::OffsetDateTime::now_utc();
        let authority = Authority::create(&another.path().join("ca"), "x", cluster_id, now).unwrap();
        let place = another.path().join("ann");
        let peer = Peer::Operator("ann".parse().unwrap());
        authority.issue(&place, &peer, now, time::Duration::days(1)).unwrap();
        place
    };
    let remove = |order| Change::Voters {
        by: "us-east".parse().unwrap(),
        membership: Membership::Remove { name: "third-site".parse().unwrap() },
        order,
    };
    for name in ["us-east", "third-site"] {
        for (change, why) in [
            (begin(None), "no operator has signed the failover to eu-west"),
            (begin(signed_by(&stolen, 1, "eu-west")), "signed by region"),
            (begin(signed_by(&monitor, 1, "eu-west")), "signed by monitor"),
            (begin(signed_by(&stranger, 1, "eu-west")), "is not an operator's"),
            // Its number is another one than the promotion's.
            (begin(signed_by(&ann, 1, "eu-west")), "the order in the record is another one"),
            (remove(None), "no operator has ordered that these vote"),
            (remove(signed_by(&ann, 1, "eu-west")), "no operator has ordered that these vote"),
        ] {
            let refused = thief.propose(&cluster, name, &change).await.unwrap_or_default();
            assert!(refused.contains(why), "{name}: '{why}' is not in: {refused}");
        }
    }
    assert_eq!(cluster.status()["primary"], "us-east");
    // An operator's command is heard as ever, and known by its name.
    let mut promote = cluster.command(&["promote", "--region", "eu-west"]);
    let output = promote.arg("--identity").arg(&ann).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let history = cluster.printed(&["history"]);
    assert!(history.contains("ordered by operator ann, serial "), "{history}");
    let kept = audit(&cluster);
    let by_ann = |line: &&serde_json::Value| {
        line["role"] == "record" && line["detail"].as_str().unwrap().contains("ordered by operator ann")
    };
    assert!(kept.iter().any(|line| by_ann(&line)), "{kept:#?}");
    // Who votes is signed as well.
    cluster.until_streams("us-east").await;
    let voters = cluster.printed(&["voters", "remove", "third-site"]);
    assert!(voters.contains("third-site"), "{voters}");
    let voters = cluster.printed(&["voters", "add", "third-site"]);
    assert!(!voters.contains("has no vote"), "{voters}");
    // Once she is denied, what she has signed is nobody's order.
    let serial = Identity::load(&ann).unwrap().certificate.serial;
    cluster.configure(&format!("denied = [\"{serial}\"]\n"));
    let _ = cluster.printed(&["reload"]);
    let order = Order::new(7, Epoch(2), Mode::Failover, &"us-east".parse().unwrap());
    let change = Change::Begin(Order { signed: signed_by(&ann, 2, "us-east"), ..order });
    let refused = thief.propose(&cluster, "third-site", &change).await.unwrap_or_default();
    assert!(refused.contains("is denied"), "{refused}");
}

/// The audit is whole, and one that was tampered with is said to be.
fn assert_tampering_is_found(cluster: &Cluster) {
    let verified = cluster.printed(&["audit", "--verify", "--region", "eu-west"]);
    assert!(verified.contains("are as they were written"), "{verified}");
    let path = cluster.region("eu-west").join("audit.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    assert!(lines.len() > 3, "{whole}");
    let found = |lines: &[String], words: &str| {
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let output = cluster.run(&["audit", "--verify", "--region", "eu-west"]);
        let said = text(&output.stdout);
        assert!(!output.status.success() && said.contains(words), "{words}: {said}{}", text(&output.stderr));
    };
    let owned: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    let mut changed = owned.clone();
    changed[1] = changed[1].replace("\"outcome\":\"", "\"outcome\":\"not ");
    found(&changed, "line 2: it was changed");
    found(&[&owned[..1], &owned[2..]].concat(), "line 2 is missing");
    let mut swapped = owned.clone();
    swapped.swap(1, 2);
    found(&swapped, "line 2: it stands after line 3");
    // It goes on meanwhile: the last one that was written is kept apart.
    found(&owned[..2], "are missing");
    std::fs::write(&path, &whole).unwrap();
}

/// One that cannot be written is told in `status`, and no order waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_cannot_be_written_is_told_and_holds_no_order_up() {
    let cluster = Cluster::up(1);
    cluster.expect(&["the audit"]);
    let path = cluster.region("eu-west").join("audit.jsonl");
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::fs::create_dir(&path).unwrap();
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    until("it is told", || async {
        crate::row(&cluster, "eu-west").1.contains("its audit cannot be written")
    })
    .await;
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    cluster.until_streams("us-east").await;
    let _ = cluster.printed(&["promote", "--region", "us-east"]);
    until("it is over", || async { !crate::row(&cluster, "eu-west").1.contains("audit") }).await;
}

/// An operator's and a node's certificates are stolen, and are denied while rows are written: what the
/// thief has open ends within seconds, nothing begins, and nothing else notices. The node gets another, and
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn denied_certificates_are_gone_within_seconds_and_everything_else_streams_on() {
    let cluster = attacked();
    let ann = PathBuf::from(cluster.printed(&["certs", "--operator", "ann"]));
    let bob = PathBuf::from(cluster.printed(&["certs", "--operator", "bob"]));
    let urls = ["us-east", "eu-west"].map(|region| cluster.printed(&["url", "--region", region]));
    let ledger = Ledger::start_at(urls.to_vec(), 4).await;
    ledger.until_written(50).await;
    cluster.until_node_streams("us-east", "n2").await;
    let n2 = cluster.node("us-east", "n2").join("identity");
    let (operator, node) = (Thief::with(&ann), Thief::with(&n2));
    let names = ["us-east", "eu-west", "third-site"];
    let mut open = Vec::new();
    for thief in [&operator, &node] {
        for name in names {
            open.push(thief.connect(&cluster, name).await.unwrap());
        }
    }
    let status = || purpose(Request::ClusterStatus);
    assert_eq!(operator.ask(&open[0], status()).await, Said::Something);
    let said = |word: &str| {
        ["us-east", "eu-west"]
            .map(|name| std::fs::read_to_string(cluster.region(name).join("daemon.log")).unwrap())
            .concat()
            .matches(word)
            .count()
    };
    let held = || cluster.printed(&["events", "--json"]).matches("commits-held").count();
    let (breaks, held_before) = (said("no longer receiving redo"), held());

    let listed = cluster.printed(&["certs", "--list", "--json"]);
    assert!(listed.contains(&operator.serial) && listed.contains(&node.serial), "{listed}");
    cluster.configure(&format!("denied = [\"{}\", \"{}\"]\n", operator.serial, node.serial.to_uppercase()));
    let reloaded = cluster.printed(&["reload"]);
    assert_eq!(reloaded.matches("applied        denied").count(), 3, "{reloaded}");
    let since = replicator_tests::now();
    until("what was open is over", || async { open.iter().all(Connection::is_over) }).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    for thief in [&operator, &node] {
        for name in names {
            // Who connects has shown its certificate before it hears that it is not let in.
            let Ok(connection) = thief.connect(&cluster, name).await else { continue };
            assert_eq!(thief.ask(&connection, status()).await, Said::Ended, "{name}");
        }
    }
    let as_ann = cluster.command(&["status"]).arg("--identity").arg(&ann).output().unwrap();
    assert!(!as_ann.status.success() && as_ann.stdout.is_empty(), "{}", text(&as_ann.stdout));
    let as_bob = cluster.command(&["status", "--json"]).arg("--identity").arg(&bob).output().unwrap();
    assert!(text(&as_bob.stdout).contains("us-east"), "{}", text(&as_bob.stderr));

    // The node that it was stolen from gets another, and goes on without a restart.
    until("the node is let in no more", || async {
        cluster.node_row("us-east", "n2")["state"] != "streaming"
    })
    .await;
    cluster.expect(&["this daemon goes on with the certificate that it has"]);
    std::fs::remove_dir_all(&n2).unwrap();
    let _ = cluster.printed(&["certs"]);
    cluster.until_node_streams("us-east", "n2").await;
    ledger.until_written(50).await;
    assert_eq!((said("no longer receiving redo"), held()), (breaks, held_before), "{}", cluster.logs());
    let acknowledged = ledger.acknowledged().await;
    acknowledged.assert_in_all(&cluster).await;

    let events = cluster.printed(&["events"]);
    for word in [
        "the certificate of operator ann is denied",
        "the certificate of node n2 of us-east is denied",
        "denied certificates",
    ] {
        assert!(events.contains(word), "{word}: {events}");
    }
    let lines = audit(&cluster);
    let has = |daemon: &str, role: &str, what: &str, words: &str| {
        lines.iter().any(|line| {
            let outcome =
                format!("{} {}", line["detail"].as_str().unwrap(), line["outcome"].as_str().unwrap());
            line["daemon"] == daemon
                && line["role"] == role
                && line["what"] == what
                && outcome.contains(words)
        })
    };
    assert!(has("us-east", "operator", "connect", "is denied"), "{lines:#?}");
    assert!(has("us-east", "operator", "reload", "denied applied"), "{lines:#?}");
    assert!(has("third-site", "operator", "reload", "denied applied"), "{lines:#?}");
    assert!(has("us-east", "operator", "url", "done"), "{lines:#?}");
    assert!(has("eu-west", "local", "configuration", "denied certificates"), "{lines:#?}");
    let _ =
        cluster.command(&["promote", "--region", "eu-west"]).arg("--identity").arg(&bob).output().unwrap();
    until("all voters have it", || async {
        let lines = audit(&cluster);
        let led = |line: &&serde_json::Value| {
            line["role"] == "record"
                && line["detail"].as_str().unwrap().starts_with("epoch 2 is led by eu-west")
        };
        let ordered = lines.iter().any(|line| {
            line["name"] == "bob" && line["what"] == "promote" && line["outcome"] == "eu-west leads epoch 2"
        });
        ordered && names.iter().all(|name| lines.iter().filter(led).any(|line| line["daemon"] == *name))
    })
    .await;
    assert_tampering_is_found(&cluster);
}

/// Runs openssl, which is somebody else's authority here.
fn openssl(place: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(place).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

/// Keys are made where they are used, and somebody else's authority signs; then `replicator`'s own would
/// not be asked for anything. A cluster of such certificates comes up and streams.
#[tokio::test(flavor = "multi_thread")]
async fn another_authority_signs_what_is_requested() {
    let cluster = Cluster::new(1);
    let place = tempfile::tempdir().unwrap();
    let at = |file: &str| place.path().join(file).display().to_string();
    let new =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let root = ["-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=example root"];
    openssl(place.path(), &[&new[..], &root[..]].concat());
    let id = "00112233445566778899aabbccddeeff";
    let unknown = cluster.run(&["certs", "--request", "--region", "us-east"]);
    assert!(text(&unknown.stderr).contains("--cluster-id"), "{}", text(&unknown.stderr));
    for whom in [&["--region", "us-east"], &["--region", "eu-west"], &["--operator", "operator"]] {
        let asked = cluster.printed(&[&["certs", "--request", "--cluster-id", id], &whom[..]].concat());
        // A region asks for its own, and its PostgreSQL's.
        let end = "-----END CERTIFICATE REQUEST-----\n";
        let requests: Vec<String> = (asked + "\n")
            .split_inclusive(end)
            .filter(|one| one.contains("BEGIN"))
            .map(str::to_owned)
            .collect();
        assert_eq!(requests.len(), if whom[0] == "--region" { 2 } else { 1 });
        let mut signed = String::new();
        for request in requests {
            std::fs::write(place.path().join("request.pem"), request).unwrap();
            let sign =
                ["x509", "-req", "-in", "request.pem", "-CA", "root.pem", "-CAkey", "root.key", "-days", "1"];
            openssl(
                place.path(),
                &[&sign[..], &["-copy_extensions", "copyall", "-out", "signed.pem"]].concat(),
            );
            signed += &std::fs::read_to_string(place.path().join("signed.pem")).unwrap();
        }
        std::fs::write(place.path().join("signed.pem"), signed).unwrap();
        // That of another is not taken.
        let other = if whom[1] == "us-east" { "eu-west" } else { "us-east" };
        let wrong = cluster.run(&["certs", "--install", &at("signed.pem"), "--region", other]);
        assert!(!wrong.status.success(), "{}", text(&wrong.stdout));
        let install = ["certs", "--install", &at("signed.pem"), "--trust", &at("root.pem")];
        let _ = cluster.printed(&[&install[..], &whom[..]].concat());
    }
    assert!(!cluster.data().join("authority").exists());
    cluster.start();
    assert!(!cluster.data().join("authority").exists(), "nobody made one");
    assert_eq!(cluster.status()["regions"].as_array().unwrap().len(), 2);
    let url = cluster.printed(&["url", "--region", "eu-west"]);
    assert_eq!(url.contains("sslmode=verify-full"), installation().encrypts(), "{url}");
    let identity = Identity::load(&cluster.data().join("operator")).unwrap();
    assert_eq!(identity.peer, Peer::Operator(Holder::operator()));
}

/// Certificates without a role, as earlier versions made them, go on; and get their roles while all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_before_there_were_roles_go_on_until_they_are_renewed() {
    let cluster = Cluster::new(1);
    cluster.add_witness("third-site");
    cluster.add_node("us-east", "n1");
    // An authority of an earlier version does not say that it issues none without.
    cluster.configure("require_roles = false\n");
    let _ = cluster.printed(&["certs"]);
    let authority = transport::Authority::open(&cluster.data().join("authority")).unwrap();
    let now_s = runtime::clock::wall_us() / 1_000_000;
    let now = time::OffsetDateTime::from_unix_timestamp(now_s).unwrap();
    for name in ["us-east", "eu-west", "third-site"] {
        let place = cluster.region(name).join("identity");
        authority.issue(&place, &Peer::Voter(name.parse().unwrap()), now, time::Duration::days(9)).unwrap();
    }
    std::fs::remove_dir_all(cluster.node("us-east", "n1").join("identity")).unwrap();
    // `up` makes no other where the authority is elsewhere.
    let key = cluster.data().join("authority/ca.key");
    let aside = cluster.data().join("authority/away.key");
    std::fs::rename(&key, &aside).unwrap();
    cluster.start();
    cluster.until_node_streams("us-east", "n1").await;
    let checked = text(&cluster.run(&["check"]).stderr);
    assert_eq!(checked.matches("has no role").count(), 3, "{checked}");
    let notes = cluster.status()["notes"].to_string();
    assert!(notes.contains("before there were roles") && notes.contains("eu-west"), "{notes}");
    let listed = cluster.printed(&["certs", "--list"]);
    assert_eq!(listed.lines().filter(|line| line.starts_with("none")).count(), 3, "{listed}");
    let said = cluster.node_said("us-east", "n1");
    assert!(said.contains("speaks as region us-east"), "{said}");
    std::fs::rename(&aside, &key).unwrap();
    let _ = cluster.printed(&["certs", "--renew"]);
    let used = |name: &str| {
        let log = std::fs::read_to_string(cluster.region(name).join("daemon.log")).unwrap();
        log.contains("the certificate is another")
    };
    until("all use those with roles", || async {
        ["us-east", "eu-west", "third-site"].iter().all(|n| used(n))
    })
    .await;
    assert!(!cluster.printed(&["certs", "--list"]).contains("none"));
    // From now on one without a role is refused, by regions and the witness.
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), file.replace("require_roles = false", "require_roles = true")).unwrap();
    let reloaded = cluster.printed(&["reload"]);
    assert_eq!(reloaded.matches("applied        require_roles").count(), 3, "{reloaded}");
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    cluster.until_streams("us-east").await;
}
