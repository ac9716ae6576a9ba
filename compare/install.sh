#!/bin/sh
# Installs what replikv is measured beside, where it is missing: Debian packages, and level-master below target/compare. With
# names of programs only these, and no level-master.
set -eu
cd "$(dirname "$0")/.."

missing=
for program in ${*:-redis-server nats-server node npm}; do
    command -v "$program" >/dev/null 2>&1 && continue
    [ "$program" = node ] && program=nodejs
    missing="$missing $program"
done
if [ -n "$missing" ]; then
    apt-get update
    # shellcheck disable=SC2086 # one word for each package
    apt-get install -y --no-install-recommends $missing
fi

[ $# -eq 0 ] || exit 0
rm -rf target/compare/level-master
mkdir -p target/compare
cp -R compare/level-master target/compare/level-master
cd target/compare/level-master
npm ci --ignore-scripts --no-audit --no-fund
