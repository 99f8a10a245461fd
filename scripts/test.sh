#!/usr/bin/env bash
# Everything that must hold: form, lints, licences, and all tests from units to a real Tor network. Builds the same
# profile as the demo, so that neither compiles for the other again.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
deny=0.20.2
tools=$(realpath "${CARGO_TARGET_DIR:-target}")/tools

# Each step is a process group of its own, with which a signal to this script alone ends what cargo has started, too.
child=
stop() {
    trap '' INT TERM HUP
    [ -z "$child" ] || kill -- "-$child" 2>/dev/null || :
    wait || :
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

tell() {
    printf '\n== %s (%d s)\n' "$*" "$((SECONDS - started))"
}

step() {
    tell "$@"
    set -m
    "$@" &
    child=$!
    set +m
    wait "$child"
    child=
}

# In the foreground: it may ask for a password.
tell ./scripts/install.sh
./scripts/install.sh
step cargo fmt -p rustbalance -p rustbalance-gossip -p rustbalance-mesh -p rustbalance-testnet --check
step cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
# The core alone: with the workspace it would share what other crates have switched on.
step cargo check --locked -p rustbalance-gossip
step cargo clippy --locked --workspace --all-targets -- -D warnings
# Built once, into the target folder: nothing outside of it changes. Advisories are not checked: their database is not on
# crates.io, and a test must not depend on the day.
if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qxF "cargo-deny $deny"; then
    step cargo install --quiet --locked --debug --root "$tools" cargo-deny --version "$deny"
fi
step "$tools/bin/cargo-deny" --locked --config .deny.toml check licenses bans sources
step cargo test --locked --workspace --no-fail-fast
printf '\nall is well after %d s\n' "$((SECONDS - started))"
