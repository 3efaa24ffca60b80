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
# A test of real processes that fails is run once more. When it passes then, the change is not held up, and the test is named at the end: it is a
# bug, of the test or of the product, and its first output is above.
export NEXTEST_RETRIES=1
tested() {
    local said status=0
    said=$(mktemp)
    "$@" 2>&1 | tee "$said" || status=$?
    sed -nE 's/^ +FLAKY [^]]*\] +(\([^)]*\) )?/failed once, then passed; find out why: /p' "$said" | sort -u >>"$NOT_RUN"
    rm -f "$said"
    return "$status"
}

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
tested scripts/test.sh
step "a short set of the end-to-end tests with PostgreSQL 16, 17 and 18"
tested scripts/test-majors.sh
