#!/usr/bin/env bash
# Shows for which code a running daemon spends its processor time (docs/ARTI-COST.md). Needs perf.
#
#   ./scripts/profile.sh PID [SECONDS (20)]
#
# A sample belongs to the crate of its innermost frame that is ours or Arti's: so a copy in memory
# belongs to the code that copies, and a system call to the code that calls. What has no such frame
# is the runtime's own work.
set -euo pipefail
pid=${1:?"usage: $0 PID [SECONDS]"}
data=$(mktemp)
trap 'rm -f "$data"' EXIT
# The clock of the processor exists in virtual machines, too, other than its counters.
perf record --quiet --event cpu-clock --freq 500 --call-graph dwarf,16384 --pid "$pid" --output "$data" -- sleep "${2:-20}"
perf script --input "$data" --fields ip,sym 2>/dev/null | awk '
    function share(count) { return sprintf("%5.1f %%", 100 * count / samples) }
    BEGIN { RS = ""; FS = "\n" }
    {
        samples++
        owner = "runtime"
        for (frame = 1; frame <= NF; frame++) {
            if ($frame ~ /rustbalance(_[a-z]+)?::/ && $frame !~ /drop_in_place/) { owner = "RustBalance"; break }
            if ($frame ~ /(tor_[a-z]+|arti_client)::/) { owner = "Arti"; break }
        }
        owners[owner]++
        sub(/^[ \t]*[0-9a-f]+ /, "", $1)
        functions[$1 " (" owner ")"]++
    }
    END {
        if (!samples) { print "no samples: the process has not worked"; exit 1 }
        print samples " samples"
        for (owner in owners) print share(owners[owner]) "  " owner | "sort -rn"
        close("sort -rn")
        print ""
        for (name in functions) print share(functions[name]) "  " name | "sort -rn | head -20"
    }'
