#!/usr/bin/env bash
# Checks dependencies against deny.toml. Advisories need the database of rustsec.org: where it cannot be fetched, that is said.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    scripts/not-run.sh "dependencies were not checked: cargo-deny is not installed (cargo install --locked cargo-deny)"
    exit 0
fi
cargo deny --locked check --hide-inclusion-graph --allow duplicate licenses bans sources
if timeout 120 cargo deny fetch db >/dev/null 2>&1; then
    cargo deny --locked --offline check advisories
else
    scripts/not-run.sh "security advisories were not checked: the database of rustsec.org cannot be fetched from here (cargo deny check advisories)"
fi
