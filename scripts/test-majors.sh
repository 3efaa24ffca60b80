#!/usr/bin/env bash
# Runs end-to-end tests with PostgreSQL 16, 17 and 18, one after the other; the ordinary tests run with the one that is installed. A short set;
# `ALL=1` all of them. `MAJORS="17"` runs those alone.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-nextest >/dev/null; then
    scripts/not-run.sh "nothing was tested with PostgreSQL 16, 17 and 18: cargo-nextest is not installed (cargo install --locked cargo-nextest)."
    exit 0
fi

# What streams, switches over, fails over and is rewound, is seeded, crashes, what PostgreSQL checks of a token, and what majors differ in.
short='test(/^majors::/) | test(/::rows_written_on_the_primary_are_read_on_both_secondaries$/) | test(/::what_users_set_is_honoured/)
    | test(/::an_old_primary_far_beyond_the_fork_is_rewound$/) | test(/::a_writer_that_dies_alone_is_started_again_and_read_on$/)
    | test(/::a_promotion_that_is_killed_at_any_moment/) | test(/::a_token_logs_in_as_its_role/)'
all='not test(/^wan::/)'
if [ -n "${ALL:-}" ]; then which=$all; else which=$short; fi

status=0
for major in ${MAJORS:-16 17 18}; do
    # What cannot be had was said loudly.
    bin=$(scripts/majors.sh "$major") || continue
    printf '\n-- with PostgreSQL %s\n' "$("$bin/postgres" --version | cut -d' ' -f3)"
    REPLICATOR_TEST_POSTGRES="$bin" cargo nextest run --release --workspace --locked -E "binary(clusters) & ($which)" || status=$?
done
exit "$status"
