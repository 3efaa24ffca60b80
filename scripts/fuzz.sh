#!/usr/bin/env bash
# Fuzzes every decoder that takes bytes from a peer or a disk: each target of fuzz/fuzz_targets for SECONDS_EACH seconds (default 60), or
# only those that are named. docs/TESTING.md says which target is for what.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
command -v cargo-fuzz >/dev/null || { echo "fuzz: cargo-fuzz is not installed (cargo install --locked cargo-fuzz)" >&2; exit 1; }
# libFuzzer's instrumentation is a compiler feature that is not stable yet.
export RUSTC_BOOTSTRAP=1
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    for file in fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi
for target in "${targets[@]}"; do
    echo "fuzz: $target"
    cargo fuzz run "$target" --sanitizer none -- -max_total_time="${SECONDS_EACH:-60}" -rss_limit_mb=512
done
