#!/usr/bin/env bash
# The soak: five nodes on a private Tor network, in which everything fails that can fail, while
# stock clients keep requesting the service: ./scripts/soak.sh [MINUTES (22)] [SEED]
#
# It prints a report. The full report, with the faults and the samples over time, is in soak.json in
# cargo's target folder. The exit code is 0 only if all goals were met; otherwise the nodes' logs
# are in network-failures in that folder. The same seed draws the same faults. The soak leaves
# nothing running or mounted.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-22}${2:-0}" in
*[!0-9]*)
    echo "usage: $0 [MINUTES] [SEED]" >&2
    exit 2
    ;;
esac
# The test copies the nodes' logs there if it fails.
CARGO_TARGET_DIR="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
export CARGO_TARGET_DIR
./scripts/install.sh
# All targets, as the tests build them: with other features, Arti would be compiled a second time.
cargo build --locked --workspace --all-targets
export RUSTBALANCE_SOAK_MINUTES="${1:-22}" RUSTBALANCE_SOAK_SEED="${2:-}"
export RUSTBALANCE_SOAK_REPORT="${RUSTBALANCE_SOAK_REPORT:-$CARGO_TARGET_DIR/soak.json}"
# To fill disks, the soak mounts small ones in a namespace of its own, so that they vanish with it.
# Where that is not allowed, the report says what was skipped.
contained=()
for flags in --mount '--user --map-root-user --mount'; do
    # Splitting is intended: these are several options.
    # shellcheck disable=SC2086
    if unshare $flags true 2>/dev/null; then
        # shellcheck disable=SC2206
        contained=(unshare $flags)
        break
    fi
done
# The test replaces this process instead of running under cargo, so that it receives the signals
# sent to this process, and everything that it has started ends with it.
program=$(cargo test --locked --workspace --test network --no-run 2>&1 | sed -n 's|.* tests/network/main.rs (\(.*\))|\1|p')
exec ${contained[@]+"${contained[@]}"} "$program" --exact chaos::soak --ignored --nocapture
