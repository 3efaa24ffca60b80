//! What `regions.toml` has to say where a node may take over as its region's head, and what it comes to.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use replicator::config::{Config, HOME};

const HEAD: &str = "cluster = \"x\"\n";
const REGION: &str = "[region.a]\nrole = \"primary\"\nlisten = \"10.0.0.1:7401\"\npostgres = \"10.0.0.1:5432\"\n\
                      writer_endpoint = \"10.0.0.1:6432\"\ntake_over_after = \"3s\"\n";
const N1: &str = "[region.a.node.n1]\nzone = \"b\"\npostgres = \"10.0.0.2:5432\"\nlisten = \"10.0.0.2:7401\"\nadvertise = \"n1.example:7401\"\n";
const N2: &str = "[region.a.node.n2]\nzone = \"c\"\npostgres = \"10.0.0.3:5432\"\n";
const WITNESS: &str = "[witness.w]\nlisten = \"10.0.0.9:7401\"\n";

fn mistakes(text: &str) -> String {
    let found = Config::parse(text).unwrap_err();
    found.into_iter().map(|mistake| mistake.what).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_region_is_the_same_whichever_host_is_its_head() {
    let config = Config::parse(&[HEAD, REGION, N1, N2, WITNESS].concat()).unwrap();
    let region = &config.regions[0];
    assert_eq!(region.place().advertise, "10.0.0.1:7401,n1.example:7401", "n2 never is the head");
    let candidates: Vec<String> = region.candidates().iter().map(|host| host.name.to_string()).collect();
    assert_eq!(candidates, [HOME, "n1"]);
    let headed = region.headed_by(&"n1".parse().unwrap()).unwrap();
    let copies = |region: &replicator::config::RegionConfig| {
        region.local_copies().iter().map(ToString::to_string).collect::<Vec<_>>().concat()
    };
    assert_eq!((copies(region), copies(&headed)), ("a1a2".into(), "b1b2".into()));
    assert_eq!(headed.listen.to_string(), "10.0.0.2:7401");
    let others: Vec<String> = headed.nodes.iter().map(|node| node.name.to_string()).collect();
    assert_eq!(others, [HOME, "n2"]);
    assert!(headed.writer_endpoint.is_none(), "that is an address of the other host");
    let mut reached: Vec<String> = headed.place().advertise.split(',').map(str::to_owned).collect();
    reached.sort();
    assert_eq!(reached, ["10.0.0.1:7401", "n1.example:7401"]);
    assert!(region.headed_by(&"n2".parse().unwrap()).is_none());
    let off = REGION.replace("take_over_after = \"3s\"\n", "");
    let without = Config::parse(&[HEAD, &off, N1.split("listen").next().unwrap(), N2].concat()).unwrap();
    assert!(without.regions[0].candidates().is_empty());
    assert_eq!(without.regions[0].place().advertise, "10.0.0.1:7401");
}

#[test]
fn what_is_missing_is_said() {
    for (text, expected) in [
        ([HEAD, REGION, N1, N2].concat(), "asks the other voters"),
        ([HEAD, REGION, N2, WITNESS].concat(), "nobody could take over: give a node"),
        ([HEAD, REGION, N1, WITNESS].concat(), "give two zones to nodes"),
        (["commit = \"local\"\n", HEAD, REGION, N1, N2, WITNESS].concat(), "would be lost"),
        (
            [HEAD, REGION, "own_process = [\"a\"]\n", N1, N2, WITNESS].concat(),
            "on the host that would be gone",
        ),
        ([HEAD, &REGION.replace("3s", "90s"), N1, N2, WITNESS].concat(), "from \"1s\" to \"60s\""),
        (
            [HEAD, &REGION.replace("take_over_after = \"3s\"\n", ""), N1, N2, WITNESS].concat(),
            "listens only where it may take over",
        ),
        (
            [HEAD, REGION, &N1.replace("zone = \"b\"\n", ""), N2, WITNESS].concat(),
            "has the copies of a `zone`",
        ),
        ([HEAD, REGION, N1, &N2.replace("n2", HOME), WITNESS].concat(), "call the node otherwise"),
        (
            [HEAD, REGION, N1, &N2.replace("10.0.0.3:5432", "10.0.0.2:7401"), WITNESS].concat(),
            "is taken already",
        ),
    ] {
        let found = mistakes(&text);
        assert!(found.contains(expected), "{expected} is not in:\n{found}\n{text}");
    }
}
