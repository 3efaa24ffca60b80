#!/usr/bin/env python3
"""Deletes one line of a decision after another from the daemon's own code, and says which seed of the simulation fails first.

A line is deleted in a copy of the last commit (target/mutants), the simulation is built there, and runs SEEDS seeds. A line whose loss no seed
notices is printed as such, and the script ends with 1. A panic counts as a seed that fails: the simulation's checks are assertions.

usage: scripts/mutants.py [--seeds N] [--only WORD]
"""
import argparse
import pathlib
import re
import subprocess
import sys
import time

# (simulation, file, the function that holds the line, the line, what it is for, and where code does not compile without it, what stands in its place)
LINES = [
    ("volume", "volume/src/copy/keeper.rs", "fn promise(", "            self.store.write_meta(meta)?;", "a promise is on disk before it is given"),
    ("volume", "volume/src/copy/keeper.rs", "fn adopt(", "                    self.store.cut(lsn)?;", "what the chosen log lacks is cut off"),
    ("volume", "volume/src/copy/keeper.rs", "fn obey(", "                if writer != self.writer() =>", "orders of another writer are not carried out"),
    ("volume", "volume/src/quorum.rs", "pub fn reset(", "        self.durable_lsn = None;", "after a reset nothing is durable"),
    ("volume", "volume/src/quorum.rs", "pub fn reset(", "                member.flushed_lsn = Lsn::ZERO;", "what a copy flushed of the old log does not count"),
    ("volume", "volume/src/quorum.rs", "fn choose(", "        ballots.begin(self.ballot, end.lsn);", "what an opening writes is known by its ballot"),
    ("volume", "volume/src/quorum.rs", "fn count(", "        flushed.sort_unstable_by(|a, b| b.cmp(a));", "the fourth furthest copy decides"),
    ("volume", "volume/src/log.rs", "pub fn inspected(", "        self.queued = end;", "appends go on where the chosen log ends"),
    ("volume", "volume/src/log.rs", "pub fn inspected(", "        self.segments = found.segments;", "the segments are those of the chosen log"),
    ("volume", "volume/src/log.rs", "pub fn reset(", "        (self.durable, self.phase) = (Durable::default(), Phase::Opening);", "a reset log is open once it is durable"),
    ("coordination", "coordination/src/register.rs", "pub fn prepare(", "        self.promised = number;", "a promise is remembered"),
    ("coordination", "coordination/src/register.rs", "pub fn accept(", "        self.accepted = proposal.clone();", "what was accepted is told the next proposer"),
    # Not in the list: `return Some(forbidden)` in `View::standing`. Without it the standing of who is forbidden is unknown, which allows nothing either.
    ("coordination", "coordination/src/region.rs", "fn follows(", "        Part::Following if facts.writer_runs => Deed::StepDown,", "a writer that runs in a follower is stopped"),
    ("coordination", "coordination/src/region.rs", "fn obey(", "    let runs = matches!(facts.part, Part::Leading { .. } | Part::Stopping { .. }) || facts.writer_runs;", "a vote waits until the writer has stopped", "    let runs = false;"),
    ("coordination", "coordination/src/region.rs", "fn leads(", "        Part::Following if standing == Standing::Leads && view.is_handing_over() => Deed::Rest,", "a writer stopped for a switchover stays so"),
    # Nor that data which are being replaced lead nothing (`begin`): such a region says so in its grant, and is not chosen; the table of `region.rs` tests it.
    ("coordination", "replicator/src/part/deeds.rs", "async fn step_down(", "        self.hold();", "a replaced primary acknowledges nothing while it stops"),
    # Nor that a vote shuts the old primary's stream out (`vote`): before each report the record is looked at, and `get_ready` and `take_over` do it again.
    ("coordination", "primary/src/release.rs", "pub fn release(", "        Leadership::Confirmed if !facts.lease.holds(facts.now_us, facts.supported_us) => Some(Held::Lease),", "nothing is acknowledged without a lease"),
    ("coordination", "replicator/src/voter/mod.rs", "pub fn support(", "                *answered = now();", "what was answered a primary counts for its lease"),
]

TREE = pathlib.Path("target/mutants")


def run(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


def prepare():
    """A work tree of the last commit, with a target directory of its own that stays for the next time."""
    if not (TREE / ".git").exists():
        run("git", "worktree", "prune")
        run("git", "worktree", "add", "--force", "--detach", str(TREE), "HEAD")
    run("git", "checkout", "--quiet", "--force", "--detach", run("git", "rev-parse", "HEAD").strip(), cwd=TREE)


def build():
    command = ["cargo", "build", "--release", "--locked", "--workspace", "--bin", "replicator-sim", "--target-dir", "target"]
    return subprocess.run(command, cwd=TREE, capture_output=True, text=True)


def without(text, function, line, instead=""):
    """`text` with that line of the function deleted, or `instead` of it; a match arm that was its guard goes on with the arrow alone."""
    head, found, body = text.partition(function)
    if not found or text.count(function) > 1 or line + "\n" not in body:
        raise SystemExit(f"mutants: {function}…) is not there once, or without this line: {line.strip()}")
    guard = line.strip().startswith("if ") and line.endswith("=>")
    return head + function + body.replace(line + "\n", "                =>\n" if guard else instead and instead + "\n", 1)


def simulate(kind, seeds):
    """The first seed that fails, and what it says; none when all hold."""
    begin = time.monotonic()
    try:
        done = subprocess.run([TREE / "target/release/replicator-sim", kind, "0", str(seeds)], capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return "hangs", "no seed ended within 15 minutes", time.monotonic() - begin
    took = time.monotonic() - begin
    if done.returncode == 0:
        return None, "", took
    said = done.stdout + done.stderr
    seed = re.search(r"again: replicator-sim \w+ (\d+)", said)
    first = next((line for line in said.splitlines() if line.strip()), "")
    return seed.group(1) if seed else "panic", first[:120], took


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=1000, help="how many seeds each (default 1000)")
    options.add_argument("--only", default="", help="only lines whose file or purpose has this word")
    options = options.parse_args()
    prepare()
    for _, file, function, line, _, *instead in LINES:
        without((TREE / file).read_text(), function, line, *instead)
    missed = 0
    print(f"{'seed':>6}  {'took':>6}  {'file':34}  what the deleted line is for")
    for kind, file, function, line, purpose, *instead in LINES:
        if options.only not in file and options.only not in purpose:
            continue
        path = TREE / file
        whole = path.read_text()
        path.write_text(without(whole, function, line, *instead))
        built = build()
        if built.returncode:
            seed, said, took = "none", "does not compile: " + next(iter(re.findall(r"^error.*", built.stderr, re.M)), ""), 0
        else:
            seed, said, took = simulate(kind, options.seeds)
        path.write_text(whole)
        missed += seed is None or seed == "none"
        print(f"{seed or 'NONE':>6}  {took:5.1f}s  {file:34}  {purpose}: {said}", flush=True)
    print(f"{missed} lines whose loss no seed notices" if missed else "each line is missed by a seed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
