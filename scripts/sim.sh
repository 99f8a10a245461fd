#!/bin/sh
# Sweeps the simulation over fresh seeds: ./scripts/sim.sh SEEDS NODES [TEST...]
#
# Each test is one invariant (gossip/tests/). The first seed is drawn and printed; SIM_FROM sets it. SIM_CHAOS=7200 has
# things go wrong for two simulated hours instead of minutes. What fails is made smaller (fewer nodes, fewer faults) and
# prints the command that replays it, without this script. SIM_BUG=forgets-term (or another of Bug::ALL) puts a bug in.
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
# Optimised, this crate alone: a minute more to build, many times faster to run.
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
    echo "broken:$failed" >&2
    exit 1
fi
echo "all invariants held"
