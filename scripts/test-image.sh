#!/usr/bin/env bash
# Brings up the regions of compose.yaml from the image `replicator`, and looks at what their containers may: a row across, a switchover, two
# accounts, nothing written but the volume. A minute. Everything is removed again.
set -euo pipefail
cd "$(dirname "$0")/.."
compose=(docker-compose)
command -v docker-compose >/dev/null || compose=(docker compose)
if ! docker info >/dev/null 2>&1 || ! "${compose[@]}" version >/dev/null 2>&1; then
    scripts/not-run.sh "the image was not tested: docker, or its Compose tool, is not there."
    exit 0
fi
compose+=(--project-name "replicator-test-image-$$")
finish() {
    status=$?
    if [ "$status" != 0 ]; then "${compose[@]}" logs --tail 20 2>&1 || true; fi
    "${compose[@]}" down --volumes --timeout 30 >/dev/null 2>&1 || true
    if [ "$status" = 0 ]; then echo "test-image: passed"; else echo "test-image: FAILED" >&2; fi
}
trap finish EXIT
inside() { "${compose[@]}" exec -T "$@"; }
until_true() {
    local what=$1 deadline=$((SECONDS + 90))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then echo "test-image: not in time: $what" >&2; exit 1; fi
        sleep 0.5
    done
}
same() {
    if [ "$2" != "$3" ]; then printf 'test-image: %s: %s, and not %s\n' "$1" "$2" "$3" >&2; exit 1; fi
    printf 'test-image: %s: %s\n' "$1" "$2"
}

"${compose[@]}" up --detach >/dev/null 2>&1
until_true "all regions stream" inside us-east replicator status --check
inside us-east sh -c 'psql "$(replicator url --writer)" -qc "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n"'
rows() { [ "$(inside "$1" sh -c "psql \"\$(replicator url --region $1)\" -Atc 'SELECT count(*) FROM t'")" = "$2" ]; }
until_true "rows are in another region" rows eu-west 1000
until_true "the region can be promoted" inside us-east replicator promote --region eu-west --dry-run
inside us-east replicator promote --region eu-west >/dev/null
until_true "all regions stream" inside us-east replicator status --check
inside eu-west sh -c 'psql "$(replicator url --writer)" -qc "INSERT INTO t VALUES (1001)"'
until_true "rows are in the old primary's region" rows us-east 1001

postmaster=$(inside us-east head -1 /var/lib/replicator/regions/us-east/pgdata/postmaster.pid | tr -d '\r')
same "the daemon's account" "$(inside us-east stat -c %U /proc/1)" replicator
same "PostgreSQL's account" "$(inside us-east stat -c %U "/proc/$postmaster")" postgres
value() { inside us-east sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"; }
same "what the daemon may" "$(value 1 CapEff)" 00000000000000eb
same "what it can ever get" "$(value 1 CapBnd)" 00000000000000eb
same "what PostgreSQL may" "$(value "$postmaster" CapEff)" 0000000000000000
same "no new privileges" "$(value 1 NoNewPrivs) $(value "$postmaster" NoNewPrivs)" "1 1"
if inside us-east touch /usr/bin/new 2>/dev/null; then echo "test-image: the root file system can be written to" >&2; exit 1; fi
if inside us-east sh -c "psql \"\$(replicator url --region us-east --superuser)\" -qc \"COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; cat /var/lib/replicator/regions/us-east/identity/key.pem'\"" >/dev/null 2>&1; then
    echo "test-image: a superuser of the database reads the daemon's key" >&2
    exit 1
fi
container=$("${compose[@]}" ps --quiet us-east)
healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" = healthy ]; }
until_true "the health check passes" healthy
"${compose[@]}" stop --timeout 90 us-east >/dev/null 2>&1
same "the exit status of a stop" "$(docker inspect --format '{{.State.ExitCode}}' "$container")" 0
