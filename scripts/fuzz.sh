#!/usr/bin/env bash
# Fuzzes the decoders, all or those that are named: each for SECONDS_EACH seconds (60 by default), or with RUNS_EACH inputs. It begins with what is
# kept in decoders/corpus; what it finds beyond stays in target/fuzz/corpus, and scripts/corpora.sh makes the kept ones of that.
# docs/TESTING.md says which target is for what, and decoders/src/lib.rs which of them are about C: those are built with AddressSanitizer, and so is
# the C where clang is installed. The others are quicker without. SANITIZER=address or SANITIZER=none builds all of them so.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-fuzz >/dev/null; then
    echo "fuzz: installing cargo-fuzz (once; it takes some minutes)"
    CARGO_INCREMENTAL=0 cargo install --locked --quiet cargo-fuzz@0.13.2
fi
table=$(sed -nE 's/^ *Target \{ name: "(\w+)", .* c: (\w+), most: ([0-9]+),.*/\1 \2 \3/p' decoders/src/lib.rs)
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(cut -d' ' -f1 <<<"$table")
fi
here=${FUZZ_DIR:-$PWD/target/fuzz}
mkdir -p "$here/corpus" "$here/artifacts"

# What is kept, as a file each.
unpack() {
    local line
    mkdir -p "$here/corpus/$1"
    while IFS= read -r line; do
        printf '%b' "${line#* }" >"$here/corpus/$1/${line%% *}"
    done <"decoders/corpus/$1"
}

# The same versions of everything as in the program; cargo adds libFuzzer's.
[ -e fuzz/Cargo.lock ] || cp Cargo.lock fuzz/Cargo.lock
status=0
for target in "${targets[@]}"; do
    read -r _ calls_c most < <(grep "^$target " <<<"$table") || { echo "fuzz: there is no target $target" >&2; exit 1; }
    sanitizer=none
    if [ "$calls_c" = true ]; then sanitizer=address; fi
    sanitizer=${SANITIZER:-$sanitizer}
    # Instrumentation and sanitizers are features of the compiler that are not stable yet.
    build=(env RUSTC_BOOTSTRAP=1)
    if [ "$sanitizer" = address ] && command -v clang >/dev/null; then
        build+=(CC=clang CXX=clang++ CFLAGS="-fsanitize=address,fuzzer-no-link" CXXFLAGS="-fsanitize=address")
    elif [ "$sanitizer" = address ]; then
        echo "fuzz: there is no clang: of the C only what it allocates is looked at" >&2
    fi
    build+=(cargo fuzz build "$target" --sanitizer "$sanitizer" --codegen-units 16 --target-dir "$here/$sanitizer")
    # None of these is of the program, which is most of what there is to build.
    if [ "$sanitizer" = address ] && [ "$calls_c" = true ]; then build+=(--no-default-features); fi
    echo "fuzz: $target, sanitizer $sanitizer"
    "${build[@]}"
    unpack "$target"
    limit=(-max_total_time="${SECONDS_EACH:-60}")
    if [ -n "${RUNS_EACH:-}" ]; then limit=(-runs="$RUNS_EACH"); fi
    options=(-max_len="$most" -rss_limit_mb=2048 -malloc_limit_mb=64 -timeout=10 -print_final_stats=1 -artifact_prefix="$here/artifacts/$target-")
    # aws-lc keeps what it allocates for a thread: that is no leak.
    if ! ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 \
        "$here/$sanitizer/$(rustc --print host-tuple)/release/$target" "${limit[@]}" "${options[@]}" "$here/corpus/$target"; then
        echo "fuzz: $target has found something: $here/artifacts" >&2
        status=1
    fi
done
exit "$status"
