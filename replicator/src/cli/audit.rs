//! `replicator audit`.

use proto::RegionName;
use serde_json::json;

use super::AnyResult;
use crate::audit::chain::{self, Head, Verified, Verifier};
use crate::events::show_time;
use crate::operator::Operator;

/// Shows the audits of all daemons that answer, or says whether they are as they were written.
pub(super) async fn run(
    operator: &Operator,
    region: Option<&RegionName>,
    verify: bool,
    json: bool,
) -> AnyResult {
    let answers = operator.audits(region).await?;
    let mut silent = Vec::new();
    let mut audits = Vec::new();
    for (name, answer) in answers {
        match answer {
            Ok((lines, head)) => audits.push((name, lines, head)),
            Err(why) => {
                eprintln!("replicator: {name}: {why}; its audit is not seen");
                silent.push(name);
            }
        }
    }
    if verify {
        let broken = audits.iter().filter(|(name, lines, head)| !show_verified(name, lines, head, json));
        let broken: Vec<&str> = broken.map(|(name, ..)| name.as_str()).collect();
        if !broken.is_empty() {
            return Err(format!("the audit is not as it was written: {}", broken.join(", ")).into());
        }
    } else {
        show(&audits, json);
    }
    match silent.is_empty() {
        true => Ok(()),
        false => Err(format!("no answer: {}", silent.join(", ")).into()),
    }
}

/// Says whether an audit is whole.
fn show_verified(name: &str, lines: &[String], head: &Head, as_json: bool) -> bool {
    let mut verifier = Verifier::default();
    lines.iter().for_each(|line| verifier.take(line));
    let Verified { lines, first, last, faults } = verifier.end(head);
    let whole = faults.is_empty();
    if as_json {
        let line = json!({
            "daemon": name, "lines": lines, "first": first, "last": last.number, "hash": last.hash,
            "whole": whole, "faults": faults,
        });
        println!("{line}");
    } else if whole {
        println!(
            "{name}: {lines} lines, {first} to {}, are as they were written; the last has the hash {}",
            last.number, last.hash
        );
    } else {
        for fault in faults {
            println!("{name}: {fault}");
        }
    }
    whole
}

/// All lines, by time.
fn show(audits: &[(String, Vec<String>, Head)], as_json: bool) {
    let mut entries = Vec::new();
    for (name, lines, _) in audits {
        entries.extend(lines.iter().filter_map(|line| Some((name, chain::parse(line)?))));
    }
    entries.sort_by_key(|(_, read)| read.entry.at_us);
    for (daemon, chain::Read { entry, .. }) in entries {
        let (at, deed) = (show_time(entry.at_us), entry.deed);
        if as_json {
            let line = json!({
                "at": at, "daemon": daemon, "number": entry.number, "role": deed.role, "name": deed.name,
                "serial": deed.serial, "from": deed.from, "what": deed.what, "detail": deed.detail,
                "outcome": deed.outcome,
            });
            println!("{line}");
            continue;
        }
        let detail = if deed.detail.is_empty() { String::new() } else { format!(" ({})", deed.detail) };
        let from = if deed.from.is_empty() { String::new() } else { format!(" from {}", deed.from) };
        let line = format!(
            "{at}  {daemon:12}  {} {}{from}: {}{detail}: {}",
            deed.role, deed.name, deed.what, deed.outcome
        );
        // What a peer said goes to a terminal: nothing in it may command that.
        println!("{}", line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>());
    }
}
