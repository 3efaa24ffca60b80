#!/usr/bin/env bash
# Three regions of PostgreSQL on this machine: brought up, written to, read from; left running.
set -euo pipefail
replicator=target/release/replicator
psql() { command psql -X -q -At "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Bringing up the regions of regions.toml (the first time: initdb, certificates, a base backup over QUIC to each)"
"$replicator" up --detach

say "2. Writing a row in us-east, and waiting for it in the other regions"
primary=$("$replicator" url --region us-east)
psql "$primary" -c 'CREATE TABLE IF NOT EXISTS demo (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())'
id=$(psql "$primary" -c 'INSERT INTO demo DEFAULT VALUES RETURNING id')
for region in eu-west ap-northeast; do
    url=$("$replicator" url --region "$region")
    for _ in $(seq 500); do
        # Asked on one connection, so that connecting is not counted.
        if [ "$(psql "$url" -c "SELECT count(*) FROM demo WHERE id = $id" 2>/dev/null || echo 0)" = 1 ]; then
            echo "row $id is in $region"
            continue 2
        fi
        sleep 0.01
    done
    echo "row $id did not arrive in $region" >&2
    exit 1
done

say "3. Where the regions are"
"$replicator" status

say "The regions go on running. Next:"
cat <<'NEXT'
  target/release/replicator status --watch
  psql "$(target/release/replicator url --region us-east)"
  kill -9 a daemon or a postgres of your choice, then: target/release/replicator up --detach
  make demo-stop
NEXT
