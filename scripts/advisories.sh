#!/usr/bin/env bash
# Checks whether a crate in Cargo.lock has a known security advisory or was withdrawn by its author
# (https://rustsec.org). To be run before each release (docs/RELEASE.md), on a machine with
# internet. CI does not run it: it has no internet, and the result of a test must not depend on the
# day.
set -euo pipefail
cd "$(dirname "$0")/.."
database=https://github.com/rustsec/advisory-db
version=$(sed -n 's/^deny=//p' scripts/test.sh)
tools=$(realpath "${CARGO_TARGET_DIR:-target}")/tools

if ! timeout 60 git ls-remote --exit-code "$database" HEAD >/dev/null 2>&1; then
    echo "advisories.sh: $database cannot be reached: run this on a machine with internet and git" >&2
    exit 2
fi
if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qxF "cargo-deny $version"; then
    cargo install --quiet --locked --debug --root "$tools" cargo-deny --version "$version"
fi
"$tools/bin/cargo-deny" --locked --config .deny.toml check advisories
echo "advisories.sh: no advisory concerns Cargo.lock"
