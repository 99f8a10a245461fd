#!/usr/bin/env bash
# The benchmark: our proxied path beside a C tor onion service, on one private network, with the same site. Prints a
# table in Markdown; progress goes to standard error. Options are handed on: --starts N --requests N --bodies N
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install.sh
cargo build --locked --package rustbalance --package rustbalance-testnet
exec "${CARGO_TARGET_DIR:-target}/debug/rustbalance-testnet" bench "$@"
