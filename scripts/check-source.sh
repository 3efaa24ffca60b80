#!/usr/bin/env bash
# What the compiler and clippy cannot say of the source: who may take a lint away, and which rooms import each other in a circle.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0

# Clocks, dice, bare tasks and queues without a bound are clippy's to refuse; to allow one again is the runtime's alone, and tests'.
allowed=$(git ls-files -co --exclude-standard -- '*.rs' ':!runtime/*' ':!tests/*' ':!*/tests/*' ':!*/tests.rs' ':!*/benches/*' | xargs --no-run-if-empty awk '
    FNR == 1 { test = 0 }
    /^#\[cfg\(test\)\]/ { test = 1 }
    !test && /allow\(.*clippy::disallowed_methods/ { print "  " FILENAME ":" FNR ": " $0 }')
if [ -n "$allowed" ]; then
    echo "check-source: only runtime/ and tests may allow clippy::disallowed_methods. Use runtime::clock, runtime::random or runtime::task:" >&2
    echo "$allowed" >&2
    status=1
fi

# Files and directories are made, and given away, where that is done so that nobody else gets at them.
made=$(git ls-files -co --exclude-standard -- '*.rs' ':!runtime/src/private.rs' ':!postgres/src/below.rs' ':!tests/*' ':!*/tests/*' ':!*/tests.rs' ':!*/benches/*' \
    ':!fuzz/*' | xargs --no-run-if-empty awk '
    FNR == 1 { test = 0 }
    /^#\[cfg\(test\)\]/ { test = 1 }
    !test && /File::create|fs::write\(|fs::create_dir|fs::copy\(|fs::set_permissions|[^f]chown\(|create\(true\)/ && !/private::options\(\)/ \
        { print "  " FILENAME ":" FNR ": " $0 }')
if [ -n "$made" ]; then
    echo "check-source: use runtime::private, or below PostgreSQL's directories postgres::below, to make files and to give them away:" >&2
    echo "$made" >&2
    status=1
fi

for file in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$file" .rs)
    if ! grep -q "^|.*\`$target\`" docs/TESTING.md; then
        echo "check-source: the fuzz target $target is not in the table of decoders of docs/TESTING.md" >&2
        status=1
    fi
done

# Lines of comments fit; tables of a crate's documentation are as wide as they are.
wide=$(git ls-files '*.rs' | LC_ALL=C.UTF-8 xargs grep -nP '^(?=.{111,})\s*//(?!! +volume/|! +aside/|! \|)' || true)
if [ -n "$wide" ]; then
    echo "check-source: comments of more than 110 columns:" >&2
    echo "$wide" >&2
    status=1
fi

# The third column of the glossary names types.
for type in $(awk -F'|' '/^\|/ { print $4 }' docs/GLOSSARY.md | grep -o '`[A-Za-z]*`' | tr -d '\`' | sort -u); do
    if ! git grep -qE "(struct|enum|trait|message) $type\b" -- '*.rs' '*.proto'; then
        echo "check-source: docs/GLOSSARY.md names the type $type, and there is none" >&2
        status=1
    fi
done

# Tests turn on no feature of a crate that a build has without it: everything that stands on the crate would be built twice.
features() { cargo tree --workspace --locked --prefix none -f '{p} [{f}]' "$@" 2>/dev/null | sed -E 's/ \(\*\)//; s# \(/[^)]*\)##' | grep . | sort -u; }
twice=$(comm -13 <(features -e no-dev) <(features) | grep -Ff <(features -e no-dev | sed -E 's/\[.*/[/') || true)
if [ -n "$twice" ]; then
    echo "check-source: tests turn on features of these; ask for them in tests/Cargo.toml's dependencies too, or it is all built twice:" >&2
    echo "$twice" >&2
    status=1
fi

if command -v python3 >/dev/null; then
    scripts/check-rooms.py || status=1
else
    scripts/not-run.sh "circles of imports were not looked for: there is no python3"
fi
exit "$status"
