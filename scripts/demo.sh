#!/usr/bin/env bash
# Three regions of PostgreSQL on this machine: brought up, written to, read from; left running.
set -euo pipefail
replicator=target/release/replicator
psql() { command psql -X -q -At "$@"; }
# A table that is there already is no news.
export PGOPTIONS='-c client_min_messages=warning'
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Bringing up the regions of regions.toml (the first time: initdb, certificates, a base backup over QUIC to each)"
"$replicator" up --detach

primary_now() { { "$replicator" status --json || true; } | sed -E 's/.*"primary":"([^"]*)".*/\1/'; }
regions=(us-east eu-west ap-northeast)

# A row written wherever writes are taken, and waited for everywhere.
row_across() {
    psql "$("$replicator" url --writer)" -c 'CREATE TABLE IF NOT EXISTS demo (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())'
    id=$(psql "$("$replicator" url --writer)" -c 'INSERT INTO demo DEFAULT VALUES RETURNING id')
    for region in "${regions[@]}"; do
        url=$("$replicator" url --region "$region")
        for _ in $(seq 3000); do
            if [ "$(psql "$url" -c "SELECT count(*) FROM demo WHERE id = $id" 2>/dev/null || echo 0)" = 1 ]; then
                echo "row $id is in $region"
                continue 2
            fi
            sleep 0.01
        done
        echo "row $id did not arrive in $region" >&2
        exit 1
    done
}

first=$(primary_now)
say "2. Writing a row in $first, and waiting for it in the other regions"
row_across

for region in "${regions[@]}"; do
    [ "$region" = "$first" ] || second=$region
done
say "3. A planned switchover: $second becomes the primary, and nothing is lost"
"$replicator" promote --region "$second"
row_across

say "4. A disaster: everything of $second is killed with kill -9, and $first takes over"
copy=$("$replicator" volume status --region "$second" --json | sed -E 's/.*"place":"([^"]*)".*/\1/')
directory=${copy%/volume/*}
kill -9 "$(cat "$directory/daemon.lock")"
kill -9 "$(head -n 1 "$directory/pgdata/postmaster.pid")"
"$replicator" promote --region "$first" --mode failover

say "5. $second is started again, and comes back by itself as a secondary"
"$replicator" up --detach >/dev/null
row_across

say "6. Where the regions are, and what happened"
"$replicator" status || true
"$replicator" history

say "The regions go on running. Next:"
cat <<'NEXT'
  target/release/replicator status --watch             or the page: http://127.0.0.1:8401/
  target/release/replicator volume status
  psql "$(target/release/replicator url --writer)"
  kill -9 a daemon or a postgres of your choice, then: target/release/replicator up --detach
  make demo-stop
NEXT
