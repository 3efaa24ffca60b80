#!/usr/bin/env bash
# Installs the Debian package in dist/ on a clean Debian, with its dependencies, and runs regions by its units under systemd, as an operator does:
# in a container, as docker is what gives a machine that is thrown away. Three minutes. KEEP=1 leaves the container.
set -euo pipefail
cd "$(dirname "$0")/.."

without() {
    scripts/not-run.sh "the Debian package was not tested: $1"
    exit 0
}
command -v docker >/dev/null || without "docker is not installed."
docker info >/dev/null 2>&1 || without "the docker daemon does not answer."
command -v mmdebstrap >/dev/null || without "mmdebstrap is not installed (Debian: mmdebstrap)."
[ "$(id -u)" = 0 ] || without "a clean Debian is made by root."
package=$(ls dist/replicator_*.deb 2>/dev/null || true)
[ "$(wc -w <<<"$package")" = 1 ] || { echo "test-package: dist/ has no one Debian package: make dist" >&2; exit 1; }

. /etc/os-release
image="replicator-test-package:$$" container="replicator-test-package-$$"
finish() {
    status=$?
    if [ "$status" != 0 ]; then docker exec "$container" journalctl --no-pager -o cat -n 60 2>/dev/null || true; fi
    if [ -z "${KEEP:-}" ]; then
        docker rm --force --volumes "$container" >/dev/null 2>&1 || true
        docker image rm "$image" >/dev/null 2>&1 || true
    fi
    if [ "$status" = 0 ]; then echo "test-package: passed"; else echo "test-package: FAILED" >&2; fi
}
trap finish EXIT

echo "test-package: a clean Debian $VERSION_CODENAME with systemd, and $package on it, with its dependencies"
# systemd is what a Debian that boots has; the package is the only thing that is asked for besides.
mmdebstrap --quiet --variant=minbase --include="systemd,systemd-sysv,dbus" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="copy-in $package /root" \
    --customize-hook='chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends /root/'"$(basename "$package")"' >&2' \
    "$VERSION_CODENAME" - 2>/dev/null | docker import --change 'ENV LANG=C.UTF-8' - "$image" >/dev/null

# What systemd needs to be the first process: mounts of its own, and its control groups.
docker run --detach --name "$container" --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined --tmpfs /run --tmpfs /run/lock --volume /sys/fs/cgroup:/sys/fs/cgroup:rw --cgroupns=host \
    "$image" /lib/systemd/systemd >/dev/null
inside() { docker exec "$container" "$@"; }
run() { docker exec --interactive "$container" bash -euo pipefail -s; }
until_true() {
    local what=$1 deadline=$((SECONDS + 90))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then echo "test-package: not in time: $what" >&2; exit 1; fi
        sleep 0.2
    done
}
same() {
    if [ "$2" != "$3" ]; then printf 'test-package: %s: %s, and not %s\n' "$1" "$2" "$3" >&2; exit 1; fi
    printf 'test-package: %s: %s\n' "$1" "$2"
}
until_true "systemd is up" inside systemctl is-active --quiet multi-user.target

echo "test-package: what was installed"
same "the account" "$(inside getent passwd replicator | cut -d: -f1,6)" replicator:/var/lib/replicator
same "the data directory" "$(inside stat -c '%a %U' /var/lib/replicator)" "711 replicator"
same "the directory of the file" "$(inside stat -c '%a %U %G' /etc/replicator)" "750 root replicator"
inside replicator --config /etc/replicator/regions.toml.example check
for unit in replicator replicator-node replicator-zone replicator-witness; do
    inside systemd-analyze verify --man=no "/lib/systemd/system/$unit@.service"
    echo "test-package: $unit@.service: $(inside systemd-analyze security --offline=true "/lib/systemd/system/$unit@.service" --no-pager | tail -1)"
done

echo "test-package: regions by its units: two, a witness, a zone and a node with a replica"
run <<'END'
cat >/etc/replicator/regions.toml <<'FILE'
cluster = "packaged"

[region.us-east]
role = "primary"
listen = "127.0.0.1:7401"
postgres = "127.0.0.1:6401"
own_process = ["b"]

[region.us-east.node.n1]
postgres = "127.0.0.1:6411"

[region.eu-west]
role = "secondary"
listen = "127.0.0.1:7402"
postgres = "127.0.0.1:6402"

[witness.paris]
listen = "127.0.0.1:7403"
FILE
chown root:replicator /etc/replicator/regions.toml
chmod 0640 /etc/replicator/regions.toml
cd /
replicator check
# As root: what is made is the account's.
replicator certs
test "$(stat -c %U /var/lib/replicator/packaged/regions/us-east/identity/key.pem)" = replicator
systemctl enable --now replicator@us-east replicator@eu-west replicator-witness@paris replicator-zone@us-east.b replicator-node@us-east.n1 2>&1
END
until_true "all regions stream" inside replicator status --check
run <<'END'
cd /
psql "$(replicator url --writer)" -qc "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n"
END
replicated() { [ "$(inside bash -c 'cd /; psql "$(replicator url --region eu-west)" -Atc "SELECT count(*) FROM t"')" = 1000 ]; }
until_true "rows are on the other region" replicated
on_the_node() { [ "$(inside bash -c 'cd /; psql "$(replicator url --region us-east | sed s/:6401/:6411/)" -Atc "SELECT count(*) FROM t"')" = 1000 ]; }
until_true "rows are on the node" on_the_node
for unit in replicator@us-east replicator@eu-west replicator-witness@paris replicator-zone@us-east.b replicator-node@us-east.n1; do
    same "$unit" "$(inside systemctl show -P ActiveState "$unit")" active
    echo "test-package: $unit says: $(inside systemctl show -P StatusText "$unit")"
done

echo "test-package: two accounts"
main=$(inside systemctl show -P MainPID replicator@us-east)
same "the daemon's account" "$(inside stat -c %U "/proc/$main")" replicator
postmaster=$(inside head -1 /var/lib/replicator/packaged/regions/us-east/pgdata/postmaster.pid)
same "PostgreSQL's account" "$(inside stat -c %U "/proc/$postmaster")" postgres
same "what PostgreSQL may, beyond its account" "$(inside grep CapEff "/proc/$postmaster/status" | cut -f2)" 0000000000000000
refused() {
    if inside bash -c "cd /; psql \"\$(replicator url --region us-east --superuser)\" -qc \"COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; $1'\"" >/dev/null 2>&1; then
        echo "test-package: a superuser of the database gets this done: $1" >&2
        exit 1
    fi
}
inside bash -c "cd /; psql \"\$(replicator url --region us-east --superuser)\" -qc \"COPY (SELECT 1) TO PROGRAM 'cat >/dev/null'\""
refused "cat /var/lib/replicator/packaged/regions/us-east/identity/key.pem"
refused "cat /var/lib/replicator/packaged/operator/key.pem"
refused "cat /var/lib/replicator/packaged/authority/ca.key"
refused "cat /etc/replicator/regions.toml"
refused "kill -0 $main"
refused "setpriv --reuid=0 true"
echo "test-package: a superuser of the database reads no key, and is nobody else"

echo "test-package: reload, a daemon that is killed, one that hangs, a stop"
run <<'END'
sed -i 's/^cluster = .*/&\ndenied = ["4a:1f:09"]/' /etc/replicator/regions.toml
systemctl reload replicator@us-east
END
until_true "the file was read again" inside bash -c 'journalctl -u replicator@us-east -o cat | grep -q "denied.* holds from now on"'
same "after the reload" "$(inside systemctl show -P MainPID replicator@us-east)" "$main"
inside sh -c "kill -9 $main"
another() { local now; now=$(inside systemctl show -P MainPID replicator@us-east); [ "$now" != "$1" ] && [ "$now" != 0 ]; }
until_true "systemd starts it again" another "$main"
until_true "all regions stream" inside replicator status --check
same "PostgreSQL went on" "$(inside head -1 /var/lib/replicator/packaged/regions/us-east/pgdata/postmaster.pid)" "$postmaster"
# A daemon that does nothing: systemd misses its signs of life. Sooner than the minute of the unit, for this.
run <<'END'
mkdir -p /run/systemd/system/replicator@eu-west.service.d
printf '[Service]\nWatchdogSec=3s\n' >/run/systemd/system/replicator@eu-west.service.d/soon.conf
systemctl daemon-reload
systemctl restart replicator@eu-west
END
until_true "all regions stream" inside replicator status --check
hanging=$(inside systemctl show -P MainPID replicator@eu-west)
inside sh -c "kill -STOP $hanging"
hung() { inside journalctl -u replicator@eu-west -o cat | grep -qi "watchdog timeout"; }
until_true "systemd misses its signs of life" hung
until_true "systemd starts it again" another "$hanging"
# A row that arrives says that it streams again; the next one is the primary's last.
inside bash -c 'cd /; psql "$(replicator url --writer)" -qc "INSERT INTO t VALUES (1001)"'
replicated() { [ "$(inside bash -c 'cd /; psql "$(replicator url --region eu-west)" -Atc "SELECT count(*) FROM t"')" = 1001 ]; }
until_true "rows are on the other region" replicated
run <<'END'
cd /
psql "$(replicator url --writer)" -qc "INSERT INTO t VALUES (1002)"
systemctl stop replicator@us-east
test "$(systemctl show -P Result replicator@us-east)" = success
! test -e /var/lib/replicator/packaged/regions/us-east/pgdata/postmaster.pid
replicator promote --region eu-west --mode failover
test "$(psql "$(replicator url --region eu-west)" -Atc "SELECT count(*) FROM t")" = 1002
END
echo "test-package: a stop ends PostgreSQL, and its last redo is on the other region"

echo "test-package: removed"
run <<'END'
apt-get remove -y -q replicator >/dev/null
! test -e /usr/bin/replicator
test -z "$(find /proc -maxdepth 1 -name '[0-9]*' -user replicator)"
! ls /var/lib/replicator/packaged/regions/*/pgdata/postmaster.pid 2>/dev/null
test -s /var/lib/replicator/packaged/regions/us-east/pgdata/PG_VERSION
test -d /var/lib/replicator/packaged/regions/eu-west/volume
test -e /etc/replicator/regions.toml
apt-get purge -y -q replicator | tee /tmp/purge >/dev/null
grep -q "left as they are: /var/lib/replicator" /tmp/purge
test -s /var/lib/replicator/packaged/regions/eu-west/identity/key.pem
test -e /etc/replicator/regions.toml
apt-get install -y -q --no-install-recommends /root/replicator_*.deb >/dev/null
cd /
systemctl start replicator@us-east replicator@eu-west replicator-witness@paris replicator-zone@us-east.b replicator-node@us-east.n1
END
until_true "all regions stream" inside replicator status --check
same "after it was installed again" "$(inside bash -c 'cd /; psql "$(replicator url --region us-east)" -Atc "SELECT count(*) FROM t"')" 1002
