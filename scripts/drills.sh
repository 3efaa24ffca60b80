#!/usr/bin/env bash
# Runs the drills: tests of regions in containers. `scripts/drills.sh essential` runs those that `make test` has, and nothing without docker;
# `scripts/drills.sh` runs all, REPEAT times each, and more arguments go to nextest. Nothing stays, whatever happens: every container, network and volume has this run's label.
set -euo pipefail
cd "$(dirname "$0")/.."
which=all
if [ "${1:-}" = essential ]; then
    which=essential
    shift
    set -- -E 'test(/^(switchover|killed|partitioned)::/)' "$@"
fi

without() {
    scripts/not-run.sh "the drills were not run: $1 They are a part of the tests. With docker: make drills"
    [ "$which" = essential ] || exit 1
    exit 0
}
command -v docker >/dev/null || without "docker is not installed."
docker info >/dev/null 2>&1 || without "the docker daemon does not answer."
command -v cargo-nextest >/dev/null || without "cargo-nextest is not installed (cargo install --locked cargo-nextest)."
scripts/image.sh || without "the image could not be built; see above."

export DRILL_RUN="drills-$$-$(date +%s)"
clear_away() {
    docker ps --all --quiet --filter "label=replicator.drill=$DRILL_RUN" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
    docker network ls --quiet --filter "label=replicator.drill=$DRILL_RUN" | xargs --no-run-if-empty docker network rm >/dev/null
}
trap clear_away EXIT

mkdir -p target/drills
rm -f target/drills/results.jsonl
status=0
for round in $(seq "${REPEAT:-1}"); do
    [ "${REPEAT:-1}" = 1 ] || echo "drills: round $round of $REPEAT"
    cargo nextest run --release --locked -p replicator-tests --test drills --run-ignored all --no-fail-fast "$@" || status=$?
done
if [ -s target/drills/results.jsonl ]; then
    scripts/drills-table.py target/drills/results.jsonl
fi
exit "$status"
