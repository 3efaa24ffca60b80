//! Each decoder is given what fuzzing has found, and so many inputs that are like it: the same ones in each
//! run. `TEST_SEED=…` gives others, `MUTATIONS=…` more of them.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use decoders::mutate::{Dice, mutated};
use decoders::{TARGETS, Target, corpus, target};

/// So many mutations take less than a second.
const MANY: u64 = 20_000;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn of(target: &Target) -> Vec<Vec<u8>> {
    let path = corpora().join(target.name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    corpus::parse(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs it, and says with what where it fails.
fn give(target: &Target, input: &[u8], from: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        panic!("{}: {from} fails:\n  {}", target.name, corpus::text(&[input.to_vec()]));
    }
}

fn holds(name: &str, mutations: u64) {
    let target = target(name).unwrap();
    let (seed, mutations) = (number("TEST_SEED").unwrap_or(1), number("MUTATIONS").unwrap_or(mutations));
    let (mut inputs, seeds) = (of(target), (target.seeds)());
    println!(
        "{name}: {} inputs, {} seeds, {mutations} mutations, TEST_SEED={seed}",
        inputs.len(),
        seeds.len()
    );
    inputs.extend(seeds);
    give(target, &[], "nothing");
    inputs.iter().for_each(|input| give(target, input, "what is kept"));
    let mut dice = Dice::new(seed);
    for number in 0..mutations {
        let input = mutated(&inputs, &mut dice, target.most);
        give(target, &input, &format!("mutation {number} of TEST_SEED={seed}"));
    }
}

#[test]
fn messages() {
    holds("messages", MANY);
}

#[test]
fn identity() {
    holds("identity", MANY);
}

#[test]
fn repair() {
    holds("repair", MANY);
}

#[test]
fn client() {
    holds("client", MANY);
}

#[test]
fn wire() {
    holds("wire", MANY);
}

#[test]
fn zone() {
    holds("zone", MANY);
}

#[test]
fn batch() {
    holds("batch", MANY);
}

#[test]
fn receiver() {
    holds("receiver", MANY);
}

#[test]
fn control() {
    holds("control", MANY);
}

#[test]
fn inventory() {
    holds("inventory", MANY);
}

#[test]
fn seed() {
    holds("seed", MANY);
}

#[test]
fn archive() {
    holds("archive", MANY);
}

#[test]
fn records() {
    holds("records", MANY);
}

#[test]
fn tablespaces() {
    holds("tablespaces", MANY);
}

#[test]
fn scram() {
    holds("scram", MANY);
}

#[test]
fn texts() {
    holds("texts", MANY);
}

#[test]
fn timeline() {
    holds("timeline", MANY);
}

#[test]
fn segment() {
    holds("segment", MANY);
}

#[test]
fn sealed() {
    holds("sealed", MANY);
}

#[test]
fn meta() {
    holds("meta", MANY);
}

#[test]
fn keys() {
    holds("keys", MANY);
}

#[test]
fn region_json() {
    holds("region_json", MANY);
}

#[test]
fn audit() {
    holds("audit", MANY);
}

#[test]
fn events() {
    holds("events", MANY);
}

#[test]
fn load() {
    holds("load", MANY);
}

#[test]
fn config() {
    holds("config", MANY);
}

#[test]
fn every_target_is_run_here_and_by_libfuzzer_and_has_a_corpus_that_is_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<String> =
            entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let mut known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    known.sort_unstable();
    assert_eq!(names(&corpora()), known);
    assert_eq!(names(&root.join("fuzz/fuzz_targets")), known);
    let here = include_str!("corpora.rs");
    for target in TARGETS {
        assert!(here.contains(&format!("holds(\"{}\",", target.name)), "{} is not run", target.name);
        let inputs = of(target);
        let bytes: usize = inputs.iter().map(Vec::len).sum();
        assert!(inputs.len() <= 48 && bytes <= 12 << 10, "{}: {} inputs", target.name, inputs.len());
        assert!(inputs.iter().all(|input| input.len() <= target.most), "{}", target.name);
        let path = corpora().join(target.name);
        assert_eq!(std::fs::read_to_string(path).unwrap(), corpus::text(&inputs), "{}", target.name);
    }
}

/// For `scripts/corpora.sh`: writes corpora, and the seeds that the code makes, into directories of files
/// below `CORPORA_OUT`; or what is in those below `CORPORA_IN` into the corpora.
#[test]
#[ignore = "it writes"]
fn files() {
    for target in TARGETS {
        if let Some(out) = std::env::var_os("CORPORA_OUT") {
            let directory = Path::new(&out).join(target.name);
            std::fs::create_dir_all(&directory).unwrap();
            let kept = std::fs::read_to_string(corpora().join(target.name)).unwrap_or_default();
            for input in corpus::parse(&kept).unwrap().into_iter().chain((target.seeds)()) {
                std::fs::write(directory.join(corpus::name(&input)), &input[..input.len().min(target.most)])
                    .unwrap();
            }
        }
        let Some(from) = std::env::var_os("CORPORA_IN") else { continue };
        let Ok(files) = std::fs::read_dir(Path::new(&from).join(target.name)) else { continue };
        let inputs: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        std::fs::write(corpora().join(target.name), corpus::text(&inputs)).unwrap();
    }
}
