#!/usr/bin/env bash
# The benchmark: our proxied path beside a C tor onion service, on one private network, with the same site. Prints a
# table in Markdown; progress goes to standard error. Options are handed on: --starts N --requests N --bodies N
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install.sh
# All targets, as the tests build them: what differs in features would compile Arti a second time.
cargo build --locked --workspace --all-targets
exec "${CARGO_TARGET_DIR:-target}/debug/rustbalance-testnet" bench "$@"
