#!/usr/bin/env bash
# The demonstration: a private Tor network on this machine, three nodes with one .onion address,
# stock Tor clients, and the death of the publisher. It installs what is missing, builds, and leaves
# nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install.sh
# All targets, as the tests build them: with other features, Arti would be compiled a second time.
cargo build --locked --workspace --all-targets
exec "${CARGO_TARGET_DIR:-target}/debug/rustbalance-testnet" demo "$@"
