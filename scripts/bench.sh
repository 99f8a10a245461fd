#!/usr/bin/env bash
# Benchmarks on a private Tor network. They print Markdown tables; progress goes to standard error.
#
#   ./scripts/bench.sh [--starts N] [--requests N] [--bodies N]
#       our proxied path compared with a C tor onion service, with the same site
#   ./scripts/bench.sh cost [--bodies N (20)] [--requests N (240)] [--circuits N (1200)]
#                           [--threads N,...]
#       processor time for bytes and requests, memory for circuits, compared with a C tor onion
#       service in the same run; with --threads, a node for each number of threads
#   ./scripts/bench.sh idle [--nodes N] [--scrape SECONDS] [--checks]
#       processor time, memory and traffic of N nodes without clients; with --scrape again while the
#       metrics of each are read at this interval
#   ./scripts/bench.sh steady [--minutes N]
#       memory of three nodes while clients come and go
#   ./scripts/bench.sh wireguard [--delay MS (40)] [--deaths N (5)] [--invitations N (10)]
#       a cluster over Tor alone and one with WireGuard, on hosts whose packets take MS one way:
#       round trips, deaths, joins, processor and traffic; needs root, for network namespaces
#   ./scripts/bench.sh cgo [--rounds N (10)]
#       processor time for a GB with Counter Galois Onion and with the older encryption
#   ./scripts/bench.sh lockout [--minutes N (10)]
#       how clients are served while attackers hold all streams and rendezvous that they can get, N
#       minutes for each kind of attack
set -euo pipefail
cd "$(dirname "$0")/.."
what=bench
case "${1:-}" in
cost | idle | steady | wireguard)
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
# The harness as the tests build it, and the daemon as an operator does, which takes a while.
cargo build --locked --workspace --all-targets
cargo build --locked --release -p rustbalance
target=${CARGO_TARGET_DIR:-target}
if [ "${1:-}" = cgo ]; then
    case "${2:-} ${3:-}" in
    "--rounds "[1-9]*) rounds=$3 ;;
    " ") rounds=10 ;;
    *) echo "usage: $0 cgo [--rounds N]" >&2 && exit 2 ;;
    esac
    RUSTBALANCE_CGO_ROUNDS=$rounds RUSTBALANCE_BENCH_BINARY=$(realpath "$target/release/rustbalance") \
        exec cargo test --locked --test network -- cgo --ignored --nocapture
fi
exec "$target/debug/rustbalance-testnet" "$what" --binary "$target/release/rustbalance" "$@"
