#!/bin/bash
# Builds the image `replicator` (tag $TAG, `latest` by default) from target/release/replicator.
#
#   BASE=…    an image that has PostgreSQL 15 or newer and an account `postgres`, such as postgres:16-bookworm.
#             Without it: made here, from Debian's packages, as no image registry is needed for that.
#   POSTGRES_MAJOR=16, 17 or 18: with that one in place of Debian's, from scripts/majors.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
base="${BASE:-}"
postgres="${POSTGRES_MAJOR:-15}"

command -v docker >/dev/null || { echo "image: docker is not installed" >&2; exit 1; }
docker info >/dev/null 2>&1 || { echo "image: the docker daemon does not answer; start it, or join the group 'docker'" >&2; exit 1; }

if [ -n "$base" ] && ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull "$base"; then
    echo "image: $base cannot be pulled; making a base from Debian's packages instead" >&2
    base=""
fi
if [ -z "$base" ]; then
    base="replicator-base:debian-postgresql-15"
    if docker image inspect "$base" >/dev/null 2>&1; then
        echo "image: the base $base is there already"
    else
        echo "image: making the base $base from Debian's packages (mmdebstrap, docker import)"
        if ! command -v mmdebstrap >/dev/null; then
            [ "$(id -u)" = 0 ] || { echo "image: install mmdebstrap, or run this once as root" >&2; exit 1; }
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mmdebstrap >/dev/null
        fi
        . /etc/os-release
        # No cluster of PostgreSQL's own: the daemon makes its data directories. No manuals: they are half of the size.
        mmdebstrap --quiet --variant=minbase --include="postgresql-15" \
            --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' \
            --essential-hook='mkdir -p "$1/etc/postgresql-common"' \
            --essential-hook='echo create_main_cluster=false >"$1/etc/postgresql-common/createcluster.conf"' \
            --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
            "$VERSION_CODENAME" - | docker import --change 'ENV LANG=C.UTF-8' - "$base" >/dev/null
    fi
    if [ "$postgres" != 15 ]; then
        bin=$(scripts/majors.sh "$postgres")
        debian="$base" base="replicator-base:wheel-postgresql-$postgres"
        # The wheel's whole tree, as programs find their libraries in it by their own place.
        wheel="${bin%/*/*/bin}"
        docker build --quiet --tag "$base" --file - "$wheel" >/dev/null <<END
FROM $debian
RUN rm -rf /usr/lib/postgresql/15
COPY . /opt/postgresql
ENV PATH=/opt/postgresql/${bin#"$wheel"/}:\$PATH
END
    fi
fi
# The same program on the same base is the same image.
of="$base $(sha256sum Dockerfile target/release/replicator | cut -d' ' -f1 | tr '\n' ' ')"
if [ "$(docker image inspect --format '{{index .Config.Labels "replicator.of"}}' "replicator:${TAG:-latest}" 2>/dev/null)" = "$of" ]; then
    echo "image: replicator:${TAG:-latest} is up to date"
    exit
fi
# The program alone is sent: what was built around it is many gigabytes.
context=$(mktemp -d target/image.XXXXXX)
trap 'rm -rf "$context"' EXIT
cp target/release/replicator Dockerfile "$context"
docker build --quiet --label "replicator.of=$of" --build-arg "BASE=$base" --tag "replicator:${TAG:-latest}" "$context" >/dev/null
docker image inspect --format 'image: {{index .RepoTags 0}}, {{.Size}} bytes' "replicator:${TAG:-latest}"
