#!/usr/bin/env bash
# Everything that must hold: form, lints, licences, and all tests from units to a real Tor network. Builds the same
# profile as the demo, so that neither compiles for the other again.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS

step() {
    printf '\n== %s (%d s)\n' "$*" "$((SECONDS - started))"
    "$@"
}

step ./scripts/install.sh
step cargo fmt -p rustbalance -p rustbalance-gossip -p rustbalance-testnet --check
step cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
step cargo clippy --locked --workspace --all-targets -- -D warnings
if command -v cargo-deny >/dev/null 2>&1; then
    step cargo deny --locked --config .deny.toml check licenses bans sources
else
    # The place to install it, should it be a must.
    printf '\n== skipped: cargo-deny is not installed\n'
fi
step cargo test --locked --workspace --no-fail-fast
printf '\nall is well after %d s\n' "$((SECONDS - started))"
