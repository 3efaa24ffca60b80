#!/usr/bin/env bash
# Makes what is given to others, in dist/: the program as a tarball and as a Debian package, what it is made of (an SBOM, CycloneDX), and checksums.
# Two runs of one commit are to give the same bytes, wherever the checkout lies: `scripts/dist.sh check` makes it once more in another place, and
# compares. `DIST_PROGRAM=target/debug/replicator scripts/dist.sh` tries all but the build, with a program that there is: what it makes says so in its
# version, and is for nobody.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

if [ "${1:-}" = check ]; then
    elsewhere=$(mktemp -d)
    trap 'rm -rf "$elsewhere"' EXIT
    git clone --quiet . "$elsewhere/another/checkout"
    (cd "$elsewhere/another/checkout" && scripts/dist.sh)
    cmp "$elsewhere/another/checkout/dist/SHA256SUMS" dist/SHA256SUMS
    echo "dist: two builds, in $root and in another directory, are the same bytes"
    exit
fi

# The commit's time is the time of everything in it.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C.UTF-8
version=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"/\1/p' Cargo.toml)
# What is not a release sorts before it.
if ! git describe --exact-match --tags --match "v$version" >/dev/null 2>&1; then
    version="$version~$(date --date="@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).g$(git rev-parse --short=10 HEAD)"
fi
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    echo "dist: files are changed that are not committed: what is made is of no commit, and says so in its version" >&2
    version="$version.changed"
fi
architecture=$(dpkg --print-architecture)
command -v cargo-cyclonedx >/dev/null || scripts/setup.sh dist
cargo_home=${CARGO_HOME:-$HOME/.cargo}

if [ -n "${DIST_PROGRAM:-}" ]; then
    version="$version.tried" program=$(realpath "$DIST_PROGRAM")
    echo "dist: trying $program as replicator $version"
else
    echo "dist: building replicator $version"
    # Neither where the checkout is nor who builds is in the program: in what Rust keeps of paths, and in what C does.
    remap=(--remap-path-prefix="$root=/usr/src/replicator" --remap-path-prefix="$cargo_home=/usr/src/cargo")
    RUSTFLAGS="${remap[*]}" CFLAGS="-ffile-prefix-map=$root=/usr/src/replicator -ffile-prefix-map=$cargo_home=/usr/src/cargo" \
        cargo build --profile dist --locked --package replicator
    program=${CARGO_TARGET_DIR:-target}/dist/replicator
    if grep -qaF -e "$root" -e "$cargo_home" "$program"; then
        echo "dist: the program has a path of this machine in it:" >&2
        grep -aoE "($root|$cargo_home)[ -~]{0,80}" "$program" | sort -u | head -5 >&2
        exit 1
    fi
fi

rm -rf dist
mkdir -p dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name="replicator-$version-linux-$(uname -m)"

# What it is made of: of the crates that are built for this machine into the program, none for tests.
cargo cyclonedx --quiet --manifest-path replicator/Cargo.toml --format json --no-build-deps \
    --target "$(rustc -vV | sed -n 's/^host: //p')" --override-filename dist.cdx
find . -name dist.cdx.json -not -path './replicator/*' -not -path './target/*' -delete
# A number that is drawn, and the path of the checkout, would be other ones each time.
scripts/sbom.py replicator/dist.cdx.json "$root" "$version" "$SOURCE_DATE_EPOCH" >"dist/$name.cdx.json"
rm replicator/dist.cdx.json

tree="$work/$name"
install -D -m 0755 "$program" "$tree/replicator"
install -m 0644 README.md LICENSE regions.toml "$tree/"
install -D -m 0644 -t "$tree/systemd" packages/systemd/*.service
install -D -m 0644 -t "$tree/docs" docs/*.md
install -D -m 0644 -t "$tree/docs/decisions" docs/decisions/*.md
install -m 0644 "dist/$name.cdx.json" "$tree/replicator.cdx.json"
tar --directory "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$name" |
    gzip -n9 >"dist/$name.tar.gz"

package="$work/package" doc="$work/package/usr/share/doc/replicator"
install -D -m 0755 "$program" "$package/usr/bin/replicator"
install -D -m 0644 -t "$package/lib/systemd/system" packages/systemd/*.service
install -D -m 0644 regions.toml "$package/etc/replicator/regions.toml.example"
install -D -m 0644 -t "$doc" docs/*.md packages/debian/copyright "$tree/replicator.cdx.json"
install -D -m 0644 -t "$doc/decisions" docs/decisions/*.md
install -d "$package/usr/share/man/man1" "$package/DEBIAN"
gzip -n9 <packages/replicator.1 >"$package/usr/share/man/man1/replicator.1.gz"
chmod 0644 "$package/usr/share/man/man1/replicator.1.gz"
# The oldest C library that has every function which the program uses.
glibc=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -1)
size=$(find "$package" -type f -printf '%s\n' | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" -e "s/@GLIBC@/$glibc/" \
    packages/debian/control.in >"$package/DEBIAN/control"
echo /etc/replicator/regions.toml.example >"$package/DEBIAN/conffiles"
install -m 0755 packages/debian/postinst packages/debian/prerm packages/debian/postrm "$package/DEBIAN/"
(cd "$package" && find etc lib usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
chmod 0644 "$package/DEBIAN/control" "$package/DEBIAN/conffiles" "$package/DEBIAN/md5sums"
find "$package" -type d -exec chmod 0755 {} +
dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$package" "dist/replicator_${version}_$architecture.deb" >/dev/null

(cd dist && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
cat dist/SHA256SUMS
