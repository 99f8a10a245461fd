#!/bin/sh
# Runs the simulation with fresh seeds: ./scripts/sim.sh SEEDS NODES [TEST...]
#
# Each test checks one invariant (gossip/tests/). The first seed is drawn at random and printed;
# SIM_FROM sets it. With SIM_CHAOS=7200, faults happen for two simulated hours instead of minutes. A
# failing run is shrunk (fewer nodes, fewer faults), and a command is printed that replays it
# without this script. SIM_BUG=forgets-term (or another of Bug::ALL) inserts a bug.
set -eu
cd "$(dirname "$0")/.."
if [ $# -lt 2 ]; then
    echo "usage: $0 SEEDS NODES [TEST...]   e.g. $0 100 7, or SIM_CHAOS=7200 $0 1 500 convergence" >&2
    exit 2
fi
./scripts/install.sh
SIM_SEEDS=$1 SIM_NODES=$2
shift 2
[ $# -gt 0 ] || set -- convergence terms one_holder revisions dead_points descriptor
: "${SIM_FROM:=$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}"
export SIM_SEEDS SIM_NODES SIM_FROM
echo "$SIM_SEEDS seeds of $SIM_NODES nodes from seed $SIM_FROM: $*"
# Optimises this crate alone: a minute more to build, many times faster to run.
if [ $((SIM_SEEDS * SIM_NODES)) -gt 100 ]; then
    profile='profile.dev.package.rustbalance-gossip.opt-level=3'
else
    profile='profile.dev.package.rustbalance-gossip.opt-level=0'
fi
failed=
for test in "$@"; do
    cargo test --quiet --config "$profile" -p rustbalance-gossip --test "$test" -- --nocapture || failed="$failed $test"
done
if [ -n "$failed" ]; then
    echo "broken invariants:$failed" >&2
    exit 1
fi
echo "all invariants held"
