#!/usr/bin/env bash
# Makes decoders/corpus anew, of all targets or of those that are named: of what is kept, what the code writes now (decoders/src/seeds.rs), and what
# scripts/fuzz.sh has found, those of the fewest inputs that reach all of it which reach most. SECONDS_EACH=5 by default: so long each is fuzzed once
# more.
set -euo pipefail
cd "$(dirname "$0")/.."
here=${FUZZ_DIR:-$PWD/target/fuzz}
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//')
fi
files() { cargo test --quiet --release --locked --package replicator-decoders --test corpora -- --ignored --exact files >/dev/null; }
CORPORA_OUT="$here/corpus" files
SECONDS_EACH=${SECONDS_EACH:-5} SANITIZER=none scripts/fuzz.sh "${targets[@]}"
rm -rf "$here/merged"
for target in "${targets[@]}"; do
    merged="$here/merged/$target"
    mkdir -p "$merged"
    # Code that is reached, not how often: that is many times as many inputs.
    "$here/none/$(rustc --print host-tuple)/release/$target" -set_cover_merge=1 -use_counters=0 -use_cmp=0 "$merged" "$here/corpus/$target" 2>&1 | tail -n 1
    # The first reach most. So few that people can look at them.
    count=0 bytes=0
    while read -r file; do
        size=$(stat -c %s "$merged/$file")
        if [ "$count" -ge 48 ] || [ $((bytes + size)) -gt 12288 ]; then
            rm "$merged/$file"
        else
            count=$((count + 1)) bytes=$((bytes + size))
        fi
    done < <(ls -tr "$merged")
done
CORPORA_IN="$here/merged" files
wc -lc decoders/corpus/*
