#!/usr/bin/env bash
# Runs every test, and the essential drills where docker is: with cargo-nextest where it is installed, with cargo's own runner otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v cargo-nextest >/dev/null; then
    status=0
    cargo nextest run --release --workspace --locked || status=$?
    scripts/drills.sh essential || status=$?
    exit "$status"
fi
echo "test: cargo-nextest is not installed; using cargo test, which prints less well, and without the drills (make drills)"
# The end-to-end tests bring up whole clusters: one at a time is enough for two processors.
exec cargo test --release --workspace --locked -- --test-threads=2
