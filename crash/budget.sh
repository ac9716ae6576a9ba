#!/bin/sh
# A fixed number of states that power loss can leave, of each backend and role, and the controls that must fail: what a
# change must pass. Ends with an error, and the lines that reproduce it, if a state is not well.
set -eu
cd "$(dirname "$0")"

command -v cc >/dev/null 2>&1 || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }

# What the main workspace has built for release is not built again.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$(cd .. && pwd)/target}"
cargo test --locked --release --quiet
cargo run --locked --release --quiet -- --states "${1:-750}"
