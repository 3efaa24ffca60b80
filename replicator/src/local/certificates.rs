//! The certificates of a cluster's regions, witnesses, nodes, operators and monitors, those by which
//! PostgreSQL's clients know its servers, and the authority that issues them.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use proto::ClusterId;
use runtime::private;
use time::OffsetDateTime;
use transport::identity::{CERTIFICATE_DAYS, certificate_in, is_issued_by, life_of, names_in};
use transport::{Authority, Certificate, Holder, Identity, IdentityError, Peer};

use crate::config::{Config, RegionConfig};
use crate::endpoint::first::AFTER_DOMAIN;
use crate::layout::{Layout, make_passable};

/// A certificate of a peer, and the directory of its identity.
type Wanted = (Peer, PathBuf);

/// Which certificates are made anew, besides those that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renew {
    /// Servers' where clients reach them under other names than before.
    None,
    /// Those that have less than a third of their life left.
    Due,
    /// All.
    All,
}

/// Makes the authority and the certificates that are missing, and the others as `renew` says, for `validity`;
/// where that is none, for as long as the one before was, or [`CERTIFICATE_DAYS`]. Returns how many.
///
/// # Errors
/// When a file cannot be written, or the authority's key is elsewhere.
pub fn make(
    config: &Config,
    layout: &Layout,
    renew: Renew,
    validity: Option<time::Duration>,
) -> Result<usize, IdentityError> {
    let io = |source| IdentityError::Io { path: layout.data().display().to_string(), source };
    make_passable(layout.data()).map_err(io)?;
    let _one = one_at_a_time(&layout.authority())?;
    let now = now();
    let own = layout.authority().join("ca.pem");
    let is_renewed = |directory: &Path| match renew {
        Renew::None => false,
        Renew::Due => is_due(&directory.join("cert.pem"), &own, now),
        Renew::All => true,
    };
    // What was moved to its own machine is not made here again because something is due.
    let is_missing = |directory: &Path| renew != Renew::Due && !directory.join("cert.pem").exists();
    let is_wanted = |(_, directory): &Wanted| is_missing(directory) || is_renewed(directory);
    let wanted: Vec<Wanted> = needed(config, layout).into_iter().filter(is_wanted).collect();
    // Those that a cluster can do without, and the ones that somebody asked for by name.
    let more = nodes(config, layout).into_iter().filter(is_wanted);
    let named = named(layout).into_iter().filter(|(_, directory)| is_renewed(directory));
    let more: Vec<Wanted> = more.chain(named).collect();
    let names = names_of_servers(config);
    let servers: Vec<_> = servers(config, layout)
        .into_iter()
        .filter(|(_, directory)| {
            let outdated = renew != Renew::Due && !serves(directory, &names);
            outdated || is_renewed(directory)
        })
        .collect();
    // Where the authority's key is elsewhere, these go on with what they have.
    let has_authority = layout.authority().join("ca.key").exists();
    if wanted.is_empty() && ((more.is_empty() && servers.is_empty()) || !has_authority) {
        return Ok(0);
    }
    let authority = if has_authority {
        if renew == Renew::All {
            // Where another authority was prepared, it is its turn.
            Authority::succeed(&layout.authority())?;
        }
        Authority::open(&layout.authority())?
    } else {
        Authority::create(&layout.authority(), &config.cluster, ClusterId(runtime::random::draw()), now)?
    };
    let made = wanted.len() + more.len() + servers.len();
    let validity_of = |directory: &Path| {
        let before = (renew == Renew::Due).then(|| life_of(&directory.join("cert.pem"))).flatten();
        let as_before = before.map(|(_, life)| life);
        validity.or(as_before).unwrap_or(time::Duration::days(CERTIFICATE_DAYS))
    };
    for (peer, directory) in wanted.into_iter().chain(more) {
        if let Some(parent) = directory.parent() {
            make_passable(parent).map_err(io)?;
        }
        authority.issue(&directory, &peer, now, validity_of(&directory))?;
    }
    for (called, directory) in servers {
        // A daemon may have been started with an earlier file.
        let before = (renew == Renew::Due).then(|| names_in(&directory.join("cert.pem"))).flatten();
        let names = before.map_or_else(|| names.clone(), |(names, _)| names);
        authority.issue_server(&directory, &called, &names, now, validity_of(&directory))?;
    }
    Ok(made)
}

/// Two that make certificates at the same moment would leave a key beside another's certificate.
fn one_at_a_time(authority: &Path) -> Result<Option<Flock<File>>, IdentityError> {
    if !authority.join("ca.key").exists() {
        return Ok(None);
    }
    let path = authority.join("certs.lock");
    let io = |source| IdentityError::Io { path: path.display().to_string(), source };
    let file = private::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    Flock::lock(file, FlockArg::LockExclusive).map(Some).map_err(|(_, e)| io(e.into()))
}

/// Whether the certificate in `file`, which the authority in `own` has issued, has less than a third of its
/// life left.
fn is_due(file: &Path, own: &Path, now: OffsetDateTime) -> bool {
    let due = life_of(file).is_some_and(|(ends, life)| now > ends - life / 3);
    due && is_issued_by(file, own)
}

/// Makes the certificate of an operator or a monitor that is asked for by name; returns its directory. Where
/// there is one it is left as it is.
///
/// # Errors
/// When the authority's key is not here, or a file cannot be written.
pub fn make_named(layout: &Layout, peer: &Peer) -> Result<PathBuf, IdentityError> {
    let directory = directory_of(layout, peer);
    if !directory.join("cert.pem").exists() {
        let authority = Authority::open(&layout.authority())?;
        authority.issue(&directory, peer, now(), time::Duration::days(CERTIFICATE_DAYS))?;
    }
    Ok(directory)
}

/// Where the identity of `peer` lies.
#[must_use]
pub fn directory_of(layout: &Layout, peer: &Peer) -> PathBuf {
    match peer {
        Peer::Region(name) | Peer::Witness(name) | Peer::Voter(name) => layout.region(name).identity(),
        Peer::Node(region, node) => layout.region(region).node(node).identity(),
        Peer::Operator(holder) if *holder == Holder::operator() => layout.operator(),
        Peer::Operator(holder) => layout.operators().join(holder.as_str()),
        Peer::Monitor(holder) => layout.monitors().join(holder.as_str()),
    }
}

/// Those without whose certificate a cluster does not work: regions, witnesses, and an operator.
fn needed(config: &Config, layout: &Layout) -> Vec<Wanted> {
    let regions = config.regions.iter().map(|region| Peer::Region(region.name.clone()));
    let witnesses = config.witnesses.iter().map(|witness| Peer::Witness(witness.name.clone()));
    let all = regions.chain(witnesses).chain([Peer::Operator(Holder::operator())]);
    all.map(|peer| (peer.clone(), directory_of(layout, &peer))).collect()
}

fn nodes(config: &Config, layout: &Layout) -> Vec<Wanted> {
    let nodes = config.regions.iter().flat_map(|region| {
        region.nodes.iter().map(|node| Peer::Node(region.name.clone(), node.name.clone()))
    });
    nodes.map(|peer| (peer.clone(), directory_of(layout, &peer))).collect()
}

/// The operators and monitors that were made by name, and are here.
fn named(layout: &Layout) -> Vec<Wanted> {
    let below = |place: PathBuf, peer: fn(Holder) -> Peer| {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        let holders = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found: Vec<Peer> = holders.map(peer).collect();
        found.sort_by_key(Peer::name);
        found
    };
    let operators = below(layout.operators(), Peer::Operator);
    let all = operators.into_iter().chain(below(layout.monitors(), Peer::Monitor));
    let all = all.map(|peer| (peer.clone(), directory_of(layout, &peer)));
    all.filter(|(_, directory)| directory.join("cert.pem").exists()).collect()
}

/// What PostgreSQL's servers are called, and where their certificates lie.
fn servers(config: &Config, layout: &Layout) -> Vec<(String, PathBuf)> {
    let of_region = |region: &RegionConfig| {
        let places = layout.region(&region.name);
        let own = (format!("PostgreSQL of {}", region.name), places.server_identity());
        let replicas = region.nodes.iter().filter(|node| node.postgres.is_some()).map(move |node| {
            let called = format!("PostgreSQL of node {} of {}", node.name, region.name);
            (called, places.node(&node.name).server_identity())
        });
        std::iter::once(own).chain(replicas).collect::<Vec<_>>()
    };
    config.regions.iter().flat_map(of_region).collect()
}

/// What the server of `peer` is called, and where its certificate lies, where it has a PostgreSQL.
pub(super) fn server_of(config: &Config, layout: &Layout, peer: &Peer) -> Option<(String, PathBuf)> {
    let below = directory_of(layout, peer);
    servers(config, layout).into_iter().find(|(_, directory)| directory.parent() == Some(&below))
}

/// A certificate that is here.
#[derive(Debug)]
pub struct Listed {
    /// Where.
    pub directory: PathBuf,
    /// What it says.
    pub certificate: Certificate,
}

/// The certificates that are here, but servers', which make nobody a peer.
#[must_use]
pub fn list(config: &Config, layout: &Layout) -> Vec<Listed> {
    let all = needed(config, layout).into_iter().chain(nodes(config, layout)).chain(named(layout));
    all.filter_map(|(_, directory)| {
        let certificate = certificate_in(&directory.join("cert.pem"))?;
        Some(Listed { directory, certificate })
    })
    .collect()
}

/// Makes the authority that is to follow, and has all that is here trust both.
///
/// # Errors
/// When the authority's key is not here, or a file cannot be written.
pub fn prepare_authority(config: &Config, layout: &Layout) -> Result<(), IdentityError> {
    Authority::prepare_next(&layout.authority(), &config.cluster, now())?;
    tell_trusted(config, layout)
}

/// Has nobody trust the authority before this one any more.
///
/// # Errors
/// When a certificate here is not this authority's yet, or a file cannot be written.
pub fn drop_old_authority(config: &Config, layout: &Layout) -> Result<(), IdentityError> {
    let own = layout.authority().join("ca.pem");
    let not_yet = |path: PathBuf, why: &str| IdentityError::Unusable {
        path: path.display().to_string(),
        what: format!("it is not of the new authority yet: {why}"),
    };
    let servers = servers(config, layout).into_iter();
    for certificate in servers.map(|(_, directory)| directory.join("cert.pem")).filter(|path| path.exists()) {
        if !is_issued_by(&certificate, &own) {
            return Err(not_yet(certificate, "another has issued it"));
        }
    }
    for directory in identities(config, layout) {
        let loaded = Identity::load_trusting(&directory, &own)?;
        loaded.verify().map_err(|why| not_yet(directory.join("cert.pem"), &why))?;
    }
    Authority::trust_no_other(&layout.authority())?;
    tell_trusted(config, layout)
}

/// The directories of identities that are here.
fn identities(config: &Config, layout: &Layout) -> Vec<PathBuf> {
    let all = needed(config, layout).into_iter().chain(nodes(config, layout)).chain(named(layout));
    let all = all.map(|(_, directory)| directory);
    all.filter(|directory| directory.join("cert.pem").exists()).collect()
}

fn tell_trusted(config: &Config, layout: &Layout) -> Result<(), IdentityError> {
    let authority = Authority::open(&layout.authority())?;
    identities(config, layout).iter().try_for_each(|directory| authority.tell_trusted(directory))
}

/// Now, as certificates have it.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(runtime::clock::wall_us()) * 1000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Whether the server's certificate in `directory` is whole, and has these names.
fn serves(directory: &Path, names: &[String]) -> bool {
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<String>>();
    let has = names_in(&directory.join("cert.pem")).is_some_and(|(now, _)| set(&now) == set(names));
    has && postgres::instance::is_pair(directory)
}

/// The names and addresses under which clients reach a PostgreSQL of the cluster: an endpoint of one region
/// brings them to another's.
pub(super) fn names_of_servers(config: &Config) -> Vec<String> {
    // One of them names a position, and is any of them.
    let mut names = BTreeSet::from([format!("*.{AFTER_DOMAIN}")]);
    for region in &config.regions {
        let nodes = region.nodes.iter();
        let nodes = nodes.flat_map(|node| [node.postgres, node.writer_endpoint, node.reader_endpoint]);
        let nodes = nodes.flatten();
        let own =
            [Some(region.postgres), region.writer_endpoint, region.reader_endpoint].into_iter().flatten();
        for ip in own.chain(nodes).map(|address| address.ip()).filter(|ip| !ip.is_unspecified()) {
            names.insert(ip.to_string());
            if ip.is_loopback() {
                names.insert("localhost".into());
            }
        }
        let advertised = region.nodes.iter().map(|node| &node.advertise).chain([&region.advertise]);
        for (host, _) in advertised.filter_map(|place| place.rsplit_once(':')) {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            // As a certificate has it.
            let address = host.parse::<std::net::IpAddr>().map(|address| address.to_string());
            names.insert(address.unwrap_or_else(|_| host.to_owned()));
        }
    }
    // In the order in which a certificate has them: names, then addresses.
    let (addresses, hosts): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.parse::<std::net::IpAddr>().is_ok());
    hosts.into_iter().chain(addresses).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> Config {
        let text = format!(
            "cluster = \"c\"\n[region.a]\nrole = \"primary\"\nlisten = \"127.0.0.1:7401\"\nadvertise = \"a.example:7401\"\n\
             postgres = \"127.0.0.1:6401\"\n[region.b]\nrole = \"secondary\"\nlisten = \"10.0.0.2:7401\"\n\
             postgres = \"10.0.0.2:6401\"\nwriter_endpoint = \"{endpoint}:5432\"\n"
        );
        Config::parse(&text).unwrap()
    }

    #[test]
    fn a_server_s_certificate_has_the_names_that_clients_use_and_follows_them() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let names = |region: &str| {
            let place = layout.region(&region.parse().unwrap()).server_identity();
            names_in(&place.join("cert.pem")).unwrap().0
        };
        make(&config("10.0.0.9"), &layout, Renew::None, None).unwrap();
        let expected = ["*.after.replicator", "a.example", "localhost", "10.0.0.2", "10.0.0.9", "127.0.0.1"];
        assert_eq!((names("a"), names("b")), (expected.map(str::to_owned).to_vec(), names("a")));

        let key =
            || std::fs::read(layout.region(&"a".parse().unwrap()).server_identity().join("key.pem")).unwrap();
        let before = key();
        make(&config("10.0.0.9"), &layout, Renew::None, None).unwrap();
        assert_eq!(key(), before, "nothing is another");
        make(&config("10.0.0.10"), &layout, Renew::None, None).unwrap();
        assert!(key() != before && names("a").contains(&"10.0.0.10".to_owned()));

        // Where the authority's key is kept elsewhere, servers go on with what they have.
        std::fs::remove_file(layout.authority().join("ca.key")).unwrap();
        make(&config("10.0.0.11"), &layout, Renew::None, None).unwrap();
        assert!(names("a").contains(&"10.0.0.10".to_owned()));
    }

    #[test]
    fn what_has_less_than_a_third_of_its_life_left_is_due_and_is_made_for_as_long_again() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let config = config("10.0.0.9");
        let hour = time::Duration::hours(1);
        // Two regions with their servers, and an operator.
        assert_eq!(make(&config, &layout, Renew::None, Some(hour)).unwrap(), 5);
        let own = layout.authority().join("ca.pem");
        let file = layout.operator().join("cert.pem");
        let begun = life_of(&file).unwrap().0 - hour;
        assert_eq!(life_of(&file).unwrap().1, hour);
        assert!(!is_due(&file, &own, begun + hour * 2 / 3 - time::Duration::minutes(1)));
        assert!(is_due(&file, &own, begun + hour * 2 / 3 + time::Duration::minutes(1)));
        assert_eq!(make(&config, &layout, Renew::Due, None).unwrap(), 0, "none is due");
        let over = time::Duration::seconds(-10);
        assert_eq!(make(&config, &layout, Renew::All, Some(over)).unwrap(), 5);
        assert_eq!(make(&config, &layout, Renew::Due, Some(hour)).unwrap(), 5);
        assert_eq!(make(&config, &layout, Renew::Due, None).unwrap(), 0);
        // Another authority's are left alone: who has issued them renews them.
        let another = tempfile::tempdir().unwrap();
        let other = Layout::new(another.path().to_owned());
        let _ = make(&config, &other, Renew::None, Some(over)).unwrap();
        std::fs::copy(other.operator().join("cert.pem"), &file).unwrap();
        assert_eq!(make(&config, &layout, Renew::Due, None).unwrap(), 0);
    }
}
