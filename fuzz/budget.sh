#!/bin/sh
# Every fuzz target for a fixed number of inputs, from the committed corpus on: what a change must pass. The same
# corpus and the same seed give the same inputs. Prints how many were tried; ends with an error, and the line that
# reproduces it, if a target fails.
set -eu
cd "$(dirname "$0")"

command -v c++ >/dev/null 2>&1 || { apt-get update && apt-get install -y --no-install-recommends g++; }
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked --version 0.13.2 cargo-fuzz

# Sanitizer flags are unstable; nothing that is fuzzed here has unsafe code for a sanitizer to look at.
export RUSTC_BOOTSTRAP=1
cargo fuzz build -s none

run() {
    found="target/corpus/$1"
    rm -rf "$found"
    mkdir -p "$found"
    if ! cargo fuzz run -s none "$1" "$found" "corpus/$1" -- \
        -runs="$2" -seed=1 -max_len=1024 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 >"target/$1.log" 2>&1; then
        grep -v '^#' "target/$1.log" | tail -n 60
        echo "fuzz target $1 has failed; what it was given is in fuzz/artifacts/$1" >&2
        exit 1
    fi
    tried=$(sed -n 's/^stat::number_of_executed_units: *//p' "target/$1.log")
    echo "$1: $tried inputs"
    # A run that tried nothing is no run.
    [ "${tried:-0}" -ge "$2" ]
}

# Two at a time: each has one thread.
both() {
    run "$1" "$2" &
    other=$!
    run "$3" "$4"
    wait "$other"
}

both decoder 400000 record 400000
both session 300000 applier 100000
