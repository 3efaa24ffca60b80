#!/usr/bin/env bash
# Runs every test, and the essential drills where docker is: with cargo-nextest where it is installed, with cargo's own runner otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
without=() skip=()
if ! command -v chromedriver >/dev/null; then
    scripts/not-run.sh "the page was not looked at in a browser: chromium and its driver are not installed (scripts/setup.sh browser)"
    without=(-E 'not test(/^browser::/)') skip=(--skip browser::)
fi
if command -v cargo-nextest >/dev/null; then
    status=0
    cargo nextest run --release --workspace --locked "${without[@]}" || status=$?
    scripts/drills.sh essential || status=$?
    exit "$status"
fi
scripts/not-run.sh "the drills were not run: cargo-nextest is not installed (cargo install --locked cargo-nextest). The other tests run with cargo's own runner."
# The end-to-end tests bring up whole clusters: one at a time is enough for two processors.
exec cargo test --release --workspace --locked -- --test-threads=2 "${skip[@]}"
