#!/usr/bin/env bash
# The soak: five nodes on a private Tor network while everything fails that can, and stock clients ask for the service
# all the while: ./scripts/soak.sh [MINUTES (22)] [SEED]
#
# Prints a report; all of it, with the faults and samples over time, is in soak.json in cargo's target folder. The exit
# code is 0 only if the goals were met; otherwise the nodes' logs are in network-failures there. The same seed draws the
# same faults. Leaves nothing running or mounted behind.
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
# All targets, as the tests build them: what differs in features would compile Arti a second time.
cargo build --locked --workspace --all-targets
export RUSTBALANCE_SOAK_MINUTES="${1:-22}" RUSTBALANCE_SOAK_SEED="${2:-}"
export RUSTBALANCE_SOAK_REPORT="${RUSTBALANCE_SOAK_REPORT:-$CARGO_TARGET_DIR/soak.json}"
# Filling disks needs small ones, which are mounted: in a namespace of our own, so that they go with us. Where that is not
# allowed, the report says what was skipped.
contained=()
for flags in --mount '--user --map-root-user --mount'; do
    # Word splitting is wanted: several options.
    # shellcheck disable=SC2086
    if unshare $flags true 2>/dev/null; then
        # shellcheck disable=SC2206
        contained=(unshare $flags)
        break
    fi
done
# Itself, not by cargo: a signal to this process is one to the test, and what it has started ends with it.
program=$(cargo test --locked --workspace --test network --no-run 2>&1 | sed -n 's|.* tests/network/main.rs (\(.*\))|\1|p')
exec ${contained[@]+"${contained[@]}"} "$program" --exact chaos::soak --ignored --nocapture
