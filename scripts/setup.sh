#!/usr/bin/env bash
# Installs what is missing on a Debian machine, and says what it does. Says nothing when nothing is missing.
# `scripts/setup.sh check` also installs what `make check` uses beyond a build: cargo-deny, three minutes' work on two cores; Prometheus' promtool,
# which is taken out of its Debian package into target/tools: no server is installed; chromium and its driver, for the tests of the page; PgBouncer and age.
# `scripts/setup.sh browser` installs chromium and its driver alone; `scripts/setup.sh dist` cargo-cyclonedx, which `make dist` uses.
set -euo pipefail

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else echo "setup: '$*' needs root, and there is no sudo: run it as root, then come back" >&2; exit 1
    fi
}

have_postgresql() {
    for bin in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
        if [ -x "$bin/postgres" ] && [ -x "$bin/pgbench" ] && [ -x "$bin/pg_amcheck" ]; then
            major=$("$bin/postgres" --version | sed -E 's/[^0-9]*([0-9]+).*/\1/')
            if [ "$major" -ge 15 ]; then return 0; fi
        fi
    done
    return 1
}

packages=()
have_postgresql || packages+=(postgresql postgresql-client)
command -v cc >/dev/null || packages+=(build-essential)
command -v c++ >/dev/null || packages+=(g++)

if [ ${#packages[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: install these with your system's own tools: PostgreSQL 15 or newer with its contrib programs, a C compiler" >&2
        exit 1
    fi
    echo "setup: installing ${packages[*]}"
    # Debian makes and starts a cluster of its own on port 5432; nothing here needs it.
    if [[ " ${packages[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        as_root mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
    echo "setup: there is no cargo; install Rust 1.95 or newer with rustup (https://rustup.rs), then come back" >&2
    exit 1
fi

if [ "${1:-}" = check ] && ! command -v cargo-deny >/dev/null; then
    echo "setup: installing cargo-deny (once; it takes some minutes)"
    # Apart from the project's own artefacts, which it shares nothing with. Without it the check goes on, and says so.
    if ! CARGO_INCREMENTAL=0 cargo install --locked --quiet cargo-deny@0.20.2; then
        echo "setup: cargo-deny could not be installed; make check will say what it has not checked" >&2
    fi
fi

if [ "${1:-}" = dist ] && ! command -v cargo-cyclonedx >/dev/null; then
    echo "setup: installing cargo-cyclonedx (once; it takes some minutes)"
    CARGO_INCREMENTAL=0 cargo install --locked --quiet cargo-cyclonedx@0.5.9
fi

if [ "${1:-}" = check ] && ! command -v promtool >/dev/null && [ ! -x target/tools/promtool ]; then
    echo "setup: taking promtool out of Debian's package prometheus, into target/tools"
    package=$(mktemp -d)
    if (cd "$package" && { apt-get download -qq prometheus || { as_root apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg -x prometheus_*.deb .) 2>/dev/null; then
        mkdir -p target/tools
        mv "$package/usr/bin/promtool" target/tools/
    else
        echo "setup: promtool could not be had; make check will say what it has not checked" >&2
    fi
    rm -rf "$package"
fi

if [[ "${1:-}" = check ]] && { [ ! -x /usr/sbin/pgbouncer ] || ! command -v age >/dev/null; }; then
    echo "setup: installing pgbouncer and age (tests start their own)"
    bouncer=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends pgbouncer age)
    if ! command -v apt-get >/dev/null || ! { as_root "${bouncer[@]}" >/dev/null 2>&1 || { as_root apt-get update -qq && as_root "${bouncer[@]}" >/dev/null; }; }; then
        echo "setup: pgbouncer and age could not be installed; their tests say that they tested nothing" >&2
    fi
fi

if [[ "${1:-}" = check || "${1:-}" = browser ]] && ! command -v chromedriver >/dev/null; then
    echo "setup: installing chromium and chromium-driver"
    browser=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core)
    if ! command -v apt-get >/dev/null || ! { as_root "${browser[@]}" >/dev/null 2>&1 || { as_root apt-get update -qq && as_root "${browser[@]}" >/dev/null; }; }; then
        echo "setup: chromium could not be installed; make check will say what it has not checked" >&2
    fi
fi
