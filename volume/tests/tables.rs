//! The quorum's cases, kept as text in `testdata/`: what each event asks for, line by line. With `REWRITE=1`
//! the answers are written anew from what the machine says, to be read before they are kept.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::fmt::Write;
use std::path::Path;

use proto::{Epoch, Lsn, Timeline};
use replicator_volume::Durable;
use replicator_volume::ballot::{Ballot, Ballots};
use replicator_volume::quorum::{CopyId, Held, Input, Keep, Output, Quorum, Vote};

/// The ballot of the opening that each case is about.
const OWN: u64 = 9;

fn ballot(opening: u64) -> Ballot {
    Ballot { epoch: Epoch(1), opening, writer: 1 }
}

fn at(lsn: u64) -> Durable {
    Durable { lsn: Lsn(lsn), timeline: Timeline(1), epoch: Epoch(1) }
}

/// `log 1 ballots 1@0,3@80 from 0 to 100 proves 110 held 3@120`; what is not said is zero, and nothing is a
/// copy that was never used.
fn vote(words: &[&str]) -> Vote {
    let value = |name: &str| words.iter().position(|word| *word == name).map(|index| words[index + 1]);
    let number = |name: &str| value(name).map_or(0, |text| text.parse().unwrap());
    let entry = |text: &str| {
        let (opening, lsn) = text.split_once('@').unwrap();
        (ballot(opening.parse().unwrap()), Lsn(lsn.parse().unwrap()))
    };
    let entries = value("ballots").map(|list| list.split(',').map(entry).collect()).unwrap_or_default();
    Vote {
        generation: number("log"),
        ballots: Ballots::new(entries).unwrap(),
        begin: at(number("from")),
        end: at(number("to")),
        proven_lsn: Lsn(number("proves")),
        held: value("held").map(entry).map(|(ballot, lsn)| Held { ballot, lsn }).unwrap_or_default(),
    }
}

/// Does what one line of a case says; returns what is asked for.
fn step(quorum: &mut Quorum, line: &str) -> Vec<Output> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let copy = || words[1].parse::<CopyId>().unwrap();
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    match words[0] {
        "reached" => quorum.handle(Input::Reached(copy())),
        "lost" => quorum.handle(Input::Lost(copy())),
        "failed" => quorum.handle(Input::Failed(copy(), "full".into())),
        "promised" => quorum.handle(Input::Promised(copy(), ballot(OWN), vote(&words[2..]))),
        "late-promise" => quorum.handle(Input::Promised(copy(), ballot(OWN - 1), vote(&words[2..]))),
        "refused" => quorum.handle(Input::Refused(copy(), ballot(number(2)))),
        "adopted" => {
            let generation = quorum.generation();
            quorum.handle(Input::Adopted(copy(), ballot(OWN), generation, Lsn(number(2))))
        }
        "adopted-of" => quorum.handle(Input::Adopted(copy(), ballot(OWN), number(2), Lsn(number(3)))),
        "flushed" => quorum.handle(Input::Flushed(copy(), Lsn(number(2)))),
        "append" => {
            quorum.append(Lsn(number(1)));
            Vec::new()
        }
        "attach" => {
            quorum.attach(copy(), Lsn(number(2)));
            Vec::new()
        }
        "detach" => quorum.detach(copy()),
        "word" => quorum.recover(),
        "reset" => quorum.reset(at(number(1))),
        "retain" => {
            quorum.retain(Lsn(number(1)));
            Vec::new()
        }
        other => panic!("'{other}' is no event"),
    }
}

fn shown(output: &Output) -> String {
    match output {
        Output::Ask(copy, ballot) => format!("ask {copy} for {}", ballot.opening),
        Output::Chosen(copy, end) => format!("chosen {copy} to {}", end.lsn.0),
        Output::Adopt(copy, adoption) => {
            let keep = match adoption.keep {
                Keep::Before(lsn) => format!("keeps to {}", lsn.0),
                Keep::Nothing { begin, .. } => format!("begins at {}", begin.lsn.0),
            };
            let entry = |(ballot, lsn): &(Ballot, Lsn)| format!("{}@{}", ballot.opening, lsn.0);
            let ballots: Vec<String> = adoption.ballots.entries().iter().map(entry).collect();
            format!("adopt {copy} {keep} of log {} ballots {}", adoption.generation, ballots.join(","))
        }
        Output::Fill(copy, lsn) => format!("fill {copy} from {}", lsn.0),
        Output::Durable(lsn) => format!("durable {}", lsn.0),
        Output::Outbid(higher) => format!("outbid by {}", higher.opening),
        Output::LostDonor(copy) => format!("lost the donor {copy}"),
        Output::Deposed(higher) => format!("deposed by {}", higher.opening),
    }
}

/// Runs the cases of a file; returns it with the answers of the machine.
fn answered(text: &str) -> String {
    let mut quorum = Quorum::new(ballot(OWN));
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(out, "{line}").unwrap();
        if line.starts_with("case:") {
            quorum = Quorum::new(ballot(OWN));
            CopyId::all().for_each(|copy| drop(quorum.handle(Input::Reached(copy))));
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            for output in step(&mut quorum, line) {
                writeln!(out, "  {}", shown(&output)).unwrap();
            }
        }
    }
    out
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let answered = answered(&text);
    if std::env::var_os("REWRITE").is_some() {
        return std::fs::write(&path, answered).unwrap();
    }
    for (number, (expected, found)) in text.lines().zip(answered.lines()).enumerate() {
        assert_eq!(expected, found, "{name}, line {}", number + 1);
    }
    assert_eq!(text.lines().count(), answered.lines().count(), "{name}: an answer too many or too few");
}

#[test]
fn which_log_is_chosen() {
    check("choose.txt");
}

#[test]
fn what_is_durable() {
    check("count.txt");
}

#[test]
fn who_has_taken_over() {
    check("depose.txt");
}
