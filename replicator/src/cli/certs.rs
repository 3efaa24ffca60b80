//! `replicator certs`: makes certificates, asks for them, signs them, and shows what is here.

use std::io::Read;
use std::path::Path;

use serde_json::json;
use transport::Peer;
use transport::identity::OPERATOR;

use super::args::Certs;
use super::{AnyResult, help};
use crate::config::Config;
use crate::events::show_time;
use crate::layout::Layout;
use crate::local::certificates::{self, Listed, Renew};
use crate::local::requests;

/// Does what was typed.
pub(super) fn run(config: &Config, layout: &Layout, asked: &Certs) -> AnyResult {
    let whom = whom(asked)?;
    match (asked, whom) {
        (Certs { new_authority: true, .. }, None) => {
            certificates::prepare_authority(config, layout)?;
            println!("{}", help::AUTHORITY_PREPARED);
        }
        (Certs { drop_old_authority: true, .. }, None) => {
            certificates::drop_old_authority(config, layout)?;
            println!("only the new authority is trusted; copy every `identity`, and `operator`, once more");
        }
        (Certs { list: true, json, .. }, None) => show(&certificates::list(config, layout), config, *json),
        (Certs { sign: Some(file), .. }, None) => {
            for signed in requests::sign(config, layout, &content(file)?)? {
                eprintln!("signed: {}", signed.whose);
                print!("{}", signed.certificate);
            }
        }
        (Certs { request: true, cluster_id, .. }, Some(peer)) => {
            print!("{}", requests::make(config, layout, &peer, *cluster_id)?);
            eprintln!("have it signed, and bring what comes of it here: {}", install_of(&peer));
        }
        (Certs { install: Some(file), trust, .. }, Some(peer)) => {
            let trusted = trust.as_deref().map(content).transpose()?;
            let certificate = content(file)?;
            println!("{}", requests::install(layout, &peer, &certificate, trusted.as_deref())?.display());
        }
        (Certs { request: true, .. } | Certs { install: Some(_), .. }, None) => {
            return Err("say whom it is for: --region, with --node for one of its nodes, --witness, --operator or --monitor".into());
        }
        (Certs { renew, due, valid_for, .. }, None) => {
            let which = match (renew, due) {
                (true, _) => Renew::All,
                (_, true) => Renew::Due,
                _ => Renew::None,
            };
            let valid_for = valid_for.map(time::Duration::try_from).transpose()?;
            let made = certificates::make(config, layout, which, valid_for)?;
            if *due {
                eprintln!(
                    "{made} certificates had less than a third of their life left, or were missing: made anew"
                );
            }
            println!("{}", layout.data().display());
        }
        (
            Certs {
                renew: false,
                due: false,
                valid_for: None,
                new_authority: false,
                drop_old_authority: false,
                sign: None,
                list: false,
                ..
            },
            Some(peer @ (Peer::Operator(_) | Peer::Monitor(_))),
        ) => {
            println!("{}", certificates::make_named(layout, &peer)?.display());
        }
        (_, Some(peer)) => {
            let what = format!(
                "a {} is named with --request and --install alone; the certificates of all that the file has are made without",
                peer.role()
            );
            return Err(what.into());
        }
    }
    Ok(())
}

/// For whom something is asked.
fn whom(asked: &Certs) -> Result<Option<Peer>, Box<dyn std::error::Error>> {
    let Certs { region, node, witness, operator, monitor, .. } = asked;
    if operator.as_ref().is_some_and(|name| name.as_str() == OPERATOR)
        && !asked.request
        && asked.install.is_none()
    {
        return Err(
            "'operator' is the name of the one that `replicator certs` makes by itself; say whose it is"
                .into(),
        );
    }
    Ok(match (region, node, witness, operator, monitor) {
        (Some(region), Some(node), ..) => Some(Peer::Node(region.clone(), node.clone())),
        (Some(region), None, ..) => Some(Peer::Region(region.clone())),
        (_, _, Some(witness), ..) => Some(Peer::Witness(witness.clone())),
        (_, _, _, Some(operator), _) => Some(Peer::Operator(operator.clone())),
        (.., Some(monitor)) => Some(Peer::Monitor(monitor.clone())),
        _ => None,
    })
}

/// The command that takes the certificate of `peer`.
fn install_of(peer: &Peer) -> String {
    let whom = match peer {
        Peer::Node(region, node) => format!("--region {region} --node {node}"),
        peer => format!("--{} {}", peer.role(), peer.name()),
    };
    format!("replicator certs --install FILE {whom} --trust ca.pem")
}

fn content(file: &Path) -> Result<String, Box<dyn std::error::Error>> {
    if file == Path::new("-") {
        let mut content = String::new();
        std::io::stdin().read_to_string(&mut content)?;
        return Ok(content);
    }
    std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()).into())
}

/// A line for each certificate.
fn show(listed: &[Listed], config: &Config, as_json: bool) {
    for Listed { directory, certificate } in listed {
        let ends = show_time(certificate.ends_s.saturating_mul(1_000_000));
        let role = if certificate.has_role() { certificate.peer.role() } else { "none" };
        let (name, denied) = (certificate.peer.name(), certificate.is_among(&config.denied));
        if as_json {
            let line = json!({
                "role": role,
                "name": name,
                "serial": certificate.serial,
                "sha256": certificate.fingerprint,
                "ends": ends,
                "denied": denied,
                "directory": directory.display().to_string(),
            });
            println!("{line}");
        } else {
            let day = ends.split('T').next().unwrap_or_default();
            let denied = if denied { "  denied" } else { "" };
            println!("{role:9} {name:24} until {day}  serial {}{denied}", certificate.serial);
        }
    }
    if !as_json {
        let denied: Vec<&str> = config.denied.iter().map(String::as_str).collect();
        if !denied.is_empty() {
            println!("denied by the file: {}", denied.join(", "));
        }
    }
}
