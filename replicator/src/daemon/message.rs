//! First messages that no correct peer can send, whoever it is: they are refused at the door, before anything
//! acts on them.
//!
//! Only the form is judged here, against the file: names that are not in it, lists that are too long, texts
//! that are none. Whether a request may be made is [`super::authority`]'s to say; whether a record follows
//! from the last one, the voter's.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use proto::limits::MAX_TABLESPACES;
use proto::messages::{self as m, control_request, open};
use proto::{ClusterId, NodeName, RegionName};
use transport::token;
use volume::quorum::{COPIES_PER_ZONE, CopyId};

use super::authority::Names;
use crate::load::series::Cut;

/// The longest password that a primary hands to a region, bytes: one is drawn, and shorter.
const PASSWORD_BYTES_MAX: usize = 1024;

/// The longest name of a role, bytes, as PostgreSQL has it.
const ROLE_BYTES_MAX: usize = 63;

/// The longest place of a copy or a tablespace, bytes: as long as a path may be.
const PLACE_BYTES_MAX: usize = 4096;

/// The most promotions that are past in a record, and the most steps of one: twice what a voter keeps, so
/// that a newer daemon may keep more.
const RECORD_LIST_MAX: usize = 64;

/// What is wrong with the form of `purpose`.
///
/// # Errors
/// In words for the peer's log.
pub fn check(purpose: &open::Purpose, names: &Names) -> Result<(), String> {
    match purpose {
        // A primary that has read nothing of its writer yet has no timeline.
        open::Purpose::Replicate(open) if open.durable_lsn == 0 => Ok(()),
        open::Purpose::Replicate(open) if open.horizon_lsn > open.durable_lsn => {
            Err("the redo that is kept begins after its end".into())
        }
        open::Purpose::Replicate(open) => timeline(open.timeline),
        open::Purpose::Seed(open) => {
            timeline(open.timeline)?;
            tablespaces(&open.tablespaces)?;
            short("password", open.superuser_password.len(), PASSWORD_BYTES_MAX)
        }
        open::Purpose::Rewind(open) => {
            timeline(open.timeline)?;
            tablespaces(&open.tablespaces)?;
            short("password", open.superuser_password.len(), PASSWORD_BYTES_MAX)
        }
        open::Purpose::Gather(open) => match open.from_lsn <= open.to_lsn {
            true if open.newest.as_ref().is_some_and(|newest| newest.end_lsn != open.from_lsn) => {
                Err("the newest batch does not end where the redo asked for begins".into())
            }
            true => Ok(()),
            false => Err("the redo asked for ends before it begins".into()),
        },
        open::Purpose::Session(m::SessionOpen { of: None, .. }) => {
            Err("it is not said what is wanted".into())
        }
        open::Purpose::Session(_) | open::Purpose::Client(_) | open::Purpose::Rehearse(_) => Ok(()),
        open::Purpose::Zone(open) => zone(open),
        open::Purpose::Node(open) => node(&open.node),
        open::Purpose::Feed(open) => node(&open.node),
        open::Purpose::Backup(open) => node(&open.node),
        open::Purpose::Copy(open) => copy(&open.copy).map(drop),
        open::Purpose::Control(request) => request.body.as_ref().map_or(Ok(()), |body| control(body, names)),
    }
}

/// Each once, in a directory that has a whole path, or in one that is not told.
fn tablespaces(named: &[m::Tablespace]) -> Result<(), String> {
    if named.len() > MAX_TABLESPACES {
        return Err(format!("{} tablespaces are named, and {MAX_TABLESPACES} at most may be", named.len()));
    }
    let oids: BTreeSet<u32> = named.iter().map(|tablespace| tablespace.oid).collect();
    if oids.len() < named.len() || oids.contains(&0) {
        return Err("a tablespace is named twice, or has no number".into());
    }
    let is_place = |path: &str| {
        let parts = || Path::new(path).components().skip(1);
        let inside = || parts().count() > 0 && parts().all(|part| matches!(part, Component::Normal(_)));
        path.is_empty()
            || (Path::new(path).is_absolute()
                && path.len() <= PLACE_BYTES_MAX
                && inside()
                && !path.contains(['\0', '\n']))
    };
    match named.iter().find(|tablespace| !is_place(&tablespace.path)) {
        Some(tablespace) => Err(format!("tablespace {} lies in no directory", tablespace.oid)),
        None => Ok(()),
    }
}

fn control(body: &control_request::Body, names: &Names) -> Result<(), String> {
    use control_request::Body;
    match body {
        Body::Url(request) => region(&request.region, names).map(drop),
        Body::Volume(request) if request.copy.is_empty() => Ok(()),
        Body::Volume(request) => copy(&request.copy).map(drop),
        Body::HandOver(request) => match region(&request.to, names)? {
            own if own == names.own => Err(format!("{own} cannot hand over to itself")),
            _ => Ok(()),
        },
        Body::GetReady(request) if request.gather_from.is_empty() => Ok(()),
        Body::GetReady(request) => match region(&request.gather_from, names)? {
            own if own == names.own => Err(format!("{own} cannot gather from itself")),
            _ => Ok(()),
        },
        Body::Accept(request) => record(request.proposal.as_ref().ok_or("there is no proposal")?, names),
        Body::Learn(agreed) => record(agreed, names),
        Body::RegionStatus(_) | Body::ClusterStatus(_) | Body::Promote(_) | Body::Prepare(_) => Ok(()),
        Body::Survey(_) | Body::Lead(_) | Body::Support(_) | Body::Record(_) | Body::Events(_) => Ok(()),
        Body::Load(request) if request.by.is_empty() || Cut::named(&request.by).is_some() => Ok(()),
        Body::Load(request) => Err(format!("the load is not cut by '{}'", shown(&request.by))),
        Body::Recall(_) | Body::Revote(_) | Body::Reseed(_) | Body::Reload(_) => Ok(()),
        Body::FetchPassword(_) | Body::Slots(_) | Body::Audit(_) => Ok(()),
        Body::MoveHead(request) if request.node.parse::<NodeName>().is_ok() => Ok(()),
        Body::MoveHead(request) => Err(format!("'{}' is no name of a node", shown(&request.node))),
        Body::Token(request) if !token::is_serial(&request.serial) => {
            Err(format!("'{}' is no serial number of a token", shown(&request.serial)))
        }
        Body::Token(request) if !request.role.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
            Err(format!("'{}' is no role's name", shown(&request.role)))
        }
        Body::Token(request) => short("role's name", request.role.len(), ROLE_BYTES_MAX),
        // It becomes a part of files, of lines and of connection strings.
        Body::Password(request) if request.next.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            short("password", request.next.len(), PASSWORD_BYTES_MAX)
        }
        Body::Password(_) => Err("the password is not one that was drawn".into()),
        Body::Voters(request) => [&request.add, &request.remove].into_iter().try_for_each(|name| {
            let fits = name.is_empty() || name.parse::<RegionName>().is_ok();
            if fits { Ok(()) } else { Err(format!("'{}' is no name", shown(name))) }
        }),
    }
}

/// A zone offers its own copies, each once.
fn zone(open: &m::ZoneOpen) -> Result<(), String> {
    let most = usize::from(COPIES_PER_ZONE);
    if open.copies.len() > most {
        return Err(format!("a zone has {most} copies, and {} are offered", open.copies.len()));
    }
    let mut seen: Vec<CopyId> = Vec::new();
    for offered in &open.copies {
        let id = copy(&offered.name)?;
        if id.zone().to_string() != open.zone || seen.contains(&id) {
            return Err(format!("copy {id} is not zone {}'s, or offered twice", shown(&open.zone)));
        }
        short("place of a copy", offered.place.len(), PLACE_BYTES_MAX)?;
        seen.push(id);
    }
    Ok(())
}

fn node(name: &str) -> Result<(), String> {
    name.parse::<NodeName>().map(drop).map_err(|_| format!("'{}' is no node's name", shown(name)))
}

/// A record of who leads names regions of the file.
fn record(accepted: &m::Accepted, names: &Names) -> Result<(), String> {
    let record = crate::voter::wire::to_accepted(accepted)?.record;
    let regions = [&record.primary].into_iter().chain(record.promotion.iter().flat_map(|p| [&p.from, &p.to]));
    for name in regions {
        if !names.regions.contains(name) {
            return Err(format!(
                "'{name}' leads or shall lead, and is no region of this daemon's regions.toml"
            ));
        }
    }
    if let Some(promotion) = &record.promotion {
        if !names.has(&promotion.coordinator) {
            return Err(format!(
                "'{}' coordinates, and is not in this daemon's regions.toml",
                promotion.coordinator
            ));
        }
        few("steps", promotion.steps.len())?;
    }
    few("past promotions", record.history.len())
}

fn region(name: &str, names: &Names) -> Result<RegionName, String> {
    let found = names.regions.iter().find(|region| region.as_str() == name);
    found.cloned().ok_or_else(|| format!("'{}' is no region of this daemon's regions.toml", shown(name)))
}

fn copy(name: &str) -> Result<CopyId, String> {
    name.parse().map_err(|_| format!("'{}' is no copy; there are a1, a2, b1, b2, c1 and c2", shown(name)))
}

fn timeline(number: u32) -> Result<(), String> {
    if number == 0 { Err("PostgreSQL's timelines begin at 1".into()) } else { Ok(()) }
}

fn short(what: &str, bytes: usize, most: usize) -> Result<(), String> {
    if bytes > most { Err(format!("a {what} of {bytes} bytes; {most} are the most")) } else { Ok(()) }
}

fn few(what: &str, count: usize) -> Result<(), String> {
    let most = RECORD_LIST_MAX;
    if count > most { Err(format!("a record with {count} {what}; {most} are the most")) } else { Ok(()) }
}

/// A peer's text as a log may have it: not long, and on one line.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}

/// Why a first message is of no use here at all.
///
/// # Errors
/// A refusal that says so.
pub fn check_envelope(open: &m::Open, cluster_id: ClusterId) -> Result<(), m::Refusal> {
    use m::refusal::Kind;
    if open.protocol != m::PROTOCOL_VERSION {
        let reason = format!(
            "protocol {} is not spoken here, {} is: run the same version everywhere",
            open.protocol,
            m::PROTOCOL_VERSION
        );
        return Err(m::Refusal::new(Kind::Protocol, reason));
    }
    if open.cluster_id[..] != cluster_id.0 {
        return Err(m::Refusal::new(Kind::OtherCluster, "this is a daemon of another cluster"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordination::register::Accepted;
    use coordination::{Leadership, Number};
    use proptest::prelude::*;
    use prost::Message;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn names() -> Names {
        Names { own: name("a"), regions: vec![name("a"), name("b")], witnesses: vec![name("w")] }
    }

    fn asked(body: control_request::Body) -> Result<(), String> {
        check(&open::Purpose::Control(m::ControlRequest { body: Some(body) }), &names())
    }

    fn learn(record: Leadership) -> Result<(), String> {
        let accepted = Accepted { number: Number::default(), record };
        asked(control_request::Body::Learn(crate::voter::wire::accepted(&accepted)))
    }

    #[test]
    fn names_that_are_not_in_the_file_are_refused() {
        let url = |region: &str| asked(control_request::Body::Url(m::UrlRequest { region: region.into() }));
        assert_eq!(url("b"), Ok(()));
        assert!(url("w").is_err() && url("x\n").unwrap_err().contains("'x\\n'"));
        let to = |to: &str| m::HandOverRequest { epoch: 2, dry_run: false, to: to.into() };
        assert_eq!(asked(control_request::Body::HandOver(to("b"))), Ok(()));
        assert!(asked(control_request::Body::HandOver(to("a"))).unwrap_err().contains("itself"));
        assert!(asked(control_request::Body::HandOver(to("w"))).is_err());
        let from =
            |from: &str| m::GetReadyRequest { gather_from: from.into(), ..m::GetReadyRequest::default() };
        assert_eq!(asked(control_request::Body::GetReady(from(""))), Ok(()));
        assert!(asked(control_request::Body::GetReady(from("x"))).is_err());
    }

    #[test]
    fn a_record_of_other_regions_is_refused() {
        assert_eq!(learn(Leadership::first(proto::Epoch(1), name("b"))), Ok(()));
        assert!(learn(Leadership::first(proto::Epoch(1), name("x"))).unwrap_err().contains("'x'"));
        assert!(learn(Leadership::first(proto::Epoch(1), name("w"))).is_err(), "a witness leads nothing");
        assert!(asked(control_request::Body::Accept(m::Accept::default())).is_err());
    }

    #[test]
    fn a_zone_offers_its_own_copies_once() {
        let copy = |name: &str| m::ZoneCopy { name: name.into(), ..m::ZoneCopy::default() };
        let offer = |copies: &[&str]| {
            let copies = copies.iter().map(|name| copy(name)).collect();
            check(
                &open::Purpose::Zone(m::ZoneOpen { zone: "b".into(), copies, ..m::ZoneOpen::default() }),
                &names(),
            )
        };
        assert_eq!(offer(&["b1", "b2"]), Ok(()));
        for bad in [&["a1"][..], &["b1", "b1"], &["b1", "b2", "b3"], &["nonsense"]] {
            assert!(offer(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn redo_that_ends_before_it_begins_and_timeline_0_are_refused() {
        let gather = m::GatherOpen { epoch: 2, from_lsn: 9, to_lsn: 8, newest: None };
        assert!(check(&open::Purpose::Gather(gather), &names()).is_err());
        let newest = |end_lsn| Some(m::BatchId { end_lsn, ..m::BatchId::default() });
        let gather = |end_lsn| m::GatherOpen { epoch: 2, from_lsn: 8, to_lsn: 9, newest: newest(end_lsn) };
        assert!(check(&open::Purpose::Gather(gather(7)), &names()).is_err());
        assert!(check(&open::Purpose::Gather(gather(8)), &names()).is_ok());
        let replicate = |timeline, horizon_lsn, durable_lsn| {
            let open = m::ReplicateOpen { timeline, horizon_lsn, durable_lsn, ..m::ReplicateOpen::default() };
            check(&open::Purpose::Replicate(open), &names())
        };
        assert!(replicate(0, 1, 2).is_err() && replicate(1, 3, 2).is_err());
        assert_eq!(replicate(0, 0, 0), Ok(()), "it has read nothing of its writer yet");
        assert_eq!(replicate(1, 1, 2), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes: Vec<u8>) {
            if let Ok(open) = m::Open::decode(&bytes[..]) {
                let _ = check_envelope(&open, ClusterId::default());
                if let Some(purpose) = open.purpose {
                    let _ = check(&purpose, &names());
                }
            }
        }
    }
}
