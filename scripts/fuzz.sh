#!/usr/bin/env bash
# Fuzzes every decoder that takes bytes from a peer or a disk: SECONDS_EACH seconds each (default 60).
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
# libFuzzer's instrumentation is a compiler feature that is not stable yet.
export RUSTC_BOOTSTRAP=1
for target in batch messages wire segment timeline config; do
    cargo fuzz run "$target" --sanitizer none -- -max_total_time="${SECONDS_EACH:-60}" -rss_limit_mb=512
done
