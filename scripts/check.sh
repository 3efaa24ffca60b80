#!/usr/bin/env bash
# What a change must pass, and what CI runs. It changes nothing. What is quick comes first; the first failure ends it. What could not be run is
# said loudly where it should have been, and once more at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
NOT_RUN=$(mktemp)
export NOT_RUN
begin=$SECONDS
step() { printf '\n== %s (after %d s)\n' "$1" "$((SECONDS - begin))"; }
finish() {
    status=$?
    if [ -s "$NOT_RUN" ]; then
        echo
        echo "################################################################################"
        echo "# NOT everything was checked:"
        sed 's/^/# - /' "$NOT_RUN" | fold -s -w 80
        echo "################################################################################"
    fi
    rm -f "$NOT_RUN"
    if [ "$status" = 0 ]; then echo "check: passed in $((SECONDS - begin)) s"; else echo "check: FAILED after $((SECONDS - begin)) s" >&2; fi
    exit "$status"
}
trap finish EXIT

step "format"
cargo fmt --all --check
step "source"
scripts/check-source.sh
step "alert rules"
PATH=$PATH:$PWD/target/tools
if command -v promtool >/dev/null; then
    (cd observability/prometheus && promtool check rules alerts.yml && promtool test rules alerts.test.yml)
else
    scripts/not-run.sh "alert rules were not tested: there is no promtool (Debian: prometheus)"
fi
step "dependencies: licences, bans, sources, advisories"
scripts/deny.sh
step "clippy"
cargo clippy --release --workspace --all-targets --locked -- -D warnings
step "tests, and the documents that are generated"
scripts/test.sh
step "a short set of the end-to-end tests with PostgreSQL 16, 17 and 18"
scripts/test-majors.sh
