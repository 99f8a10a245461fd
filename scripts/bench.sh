#!/usr/bin/env bash
# Benchmarks on a private Tor network. They print Markdown tables; progress goes to standard error.
#
#   ./scripts/bench.sh [--starts N] [--requests N] [--bodies N]
#       our proxied path compared with a C tor onion service, with the same site
#   ./scripts/bench.sh idle [--nodes N]
#       processor time, memory and traffic of N nodes without clients
#   ./scripts/bench.sh steady [--minutes N]
#       memory of three nodes while clients come and go
#   ./scripts/bench.sh lockout [--minutes N (10)]
#       how clients are served while attackers hold all streams and rendezvous that they can get, N
#       minutes for each kind of attack
set -euo pipefail
cd "$(dirname "$0")/.."
what=bench
case "${1:-}" in
idle | steady)
    what=$1
    shift
    ;;
esac
./scripts/install.sh
if [ "${1:-}" = lockout ]; then
    case "${2:-} ${3:-}" in
    "--minutes "[1-9]*) minutes=$3 ;;
    " ") minutes=10 ;;
    *) echo "usage: $0 lockout [--minutes N]" >&2 && exit 2 ;;
    esac
    # The network test of the same name, but longer and with the daemon's default bounds.
    RUSTBALANCE_LOCKOUT_MINUTES=$minutes exec cargo test --locked --test network -- lockout --nocapture
fi
# All targets, as the tests build them: with other features, Arti would be compiled a second time.
cargo build --locked --workspace --all-targets
exec "${CARGO_TARGET_DIR:-target}/debug/rustbalance-testnet" "$what" "$@"
