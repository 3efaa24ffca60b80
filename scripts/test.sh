#!/usr/bin/env bash
# Runs every test: with cargo-nextest where it is installed, with cargo's own runner otherwise.
set -euo pipefail
if command -v cargo-nextest >/dev/null; then
    exec cargo nextest run --release --workspace --locked
fi
echo "test: cargo-nextest is not installed; using cargo test, which prints less well"
# The end-to-end tests bring up whole clusters: one at a time is enough for two processors.
exec cargo test --release --workspace --locked -- --test-threads=2
