#!/usr/bin/env bash
# Compares the search of `rustbalance vanity` with mkp224o and onion-vanity-address: keys a second
# of one thread and of all threads, and the time to addresses with five, six and seven given
# characters. Prints Markdown tables.
#
#   ./scripts/bench-vanity.sh [--rounds N (5)] [--seconds N (4)] [--times]
#
# The programs run in turn, so that other load on the machine hits all alike. Per second of
# processor time they are compared even where other programs take a share of it. The table shows
# the medians of all rounds, and the median of the ratios within a round. --times adds the second
# table, which takes minutes. mkp224o is the one on PATH or in $MKP224O; else it is built for this
# processor below cargo's target folder, from $MKP224O_SOURCE or from its repository, which needs
# git, autoconf and libsodium-dev. onion-vanity-address is the one on PATH or in
# $ONION_VANITY_ADDRESS; else Go 1.25 installs it there from its registry. Without it the script
# says so, and compares the others.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=5 seconds=4 times=
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2 && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --times) times=1 && shift ;;
    *) echo "usage: $0 [--rounds N] [--seconds N] [--times]" >&2 && exit 2 ;;
    esac
done
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo build --locked --release -p rustbalance-vanity-dispatch --example rate >&2
rate=$target/release/examples/rate
# Twelve characters, so that nothing is found.
never=abcdefghijkl
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkp224o_program=${MKP224O:-$(command -v mkp224o || echo "$target/mkp224o/mkp224o")}
if [ ! -x "$mkp224o_program" ]; then
    {
        rm -rf "$target/mkp224o"
        git clone --depth 1 "${MKP224O_SOURCE:-https://github.com/cathugger/mkp224o}" "$target/mkp224o"
        # The fastest of its implementations for amd64 that its OPTIMISATION.txt recommends.
        (cd "$target/mkp224o" && ./autogen.sh && CFLAGS="-O3 -march=native" ./configure --enable-amd64-51-30k && make)
    } >&2
fi

# A module of Go is named by its path and commit.
module=github.com/AlexanderYastrebov/onion-vanity-address@314bd66
onion_vanity_address=${ONION_VANITY_ADDRESS:-$(command -v onion-vanity-address || echo "$target/onion-vanity-address/onion-vanity-address")}
if [ ! -x "$onion_vanity_address" ] && ! GOBIN=$(dirname "$onion_vanity_address") go install "$module" >&2; then
    echo "not compared with onion-vanity-address: it needs Go 1.25 and its registry; or set ONION_VANITY_ADDRESS" >&2
    onion_vanity_address=
fi

# Runs a command, and sets $wall and $user, the seconds that it took and those of processor time.
measured() { # COMMAND...
    local TIMEFORMAT='%R %U'
    { time "$@" >"$scratch/output" 2>&1 || :; } 2>"$scratch/time"
    read -r wall user <"$scratch/time"
}

# Each of these prints the keys a second, and those per second of processor time.
mkp224o() { # THREADS
    measured timeout --signal INT "$((seconds + 1))" "$mkp224o_program" -t "$1" -S 1 -d "$scratch" "$never"
    awk -F'[:,]' -v wall="$wall" -v user="$user" '/calc\/sec/ && $NF !~ /elapsed:0/ { sum += $2; n++ }
        END { print sum / n, sum / n * wall / user }' "$scratch/output"
}

onion-vanity-address() { # THREADS
    GOMAXPROCS=$1 measured "$onion_vanity_address" --timeout "${seconds}s" "$never"
    awk -v user="$user" '/^Stopped searching/ { print substr($(NF - 1), 2), $(NF - 3) / user }' "$scratch/output"
}

ours() { # PATH THREADS
    measured "$rate" "$1" "$2" "$never" "$seconds" 1
    awk -v user="$user" '{ print $1 / $2, $1 / user }' "$scratch/output"
}

paths=$("$rate")
others="mkp224o${onion_vanity_address:+ onion-vanity-address}"
cores=$(nproc)
results=$scratch/results
for round in $(seq "$rounds"); do
    for threads in $(printf '1\n%s\n' "$cores" | sort -nu); do
        echo "round $round of $rounds, threads: $threads" >&2
        # The first is what the others are compared with.
        base=
        for name in $others $paths; do
            case " $others " in
            *" $name "*) numbers=$("$name" "$threads") ;;
            *) numbers=$(ours "$name" "$threads") ;;
            esac
            base=${base:-${numbers#* }}
            echo "$threads $name $numbers" | awk -v base="$base" '{ print $0, $4 / base }' >>"$results"
        done
    done
done

median() { # THREADS NAME COLUMN SCALE
    awk -v threads="$1" -v name="$2" -v column="$3" '$1 == threads && $2 == name { print $column }' "$results" |
        sort -g | awk -v scale="$4" '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] / scale }'
}

grep -m 1 'model name' /proc/cpuinfo | sed 's/.*: /Processor: /'
echo
echo '| threads | program | million keys/s | million keys per second of processor time | mkp224o = 1 |'
echo '|---:|---|---:|---:|---:|'
for threads in $(printf '1\n%s\n' "$cores" | sort -nu); do
    for name in $others $paths; do
        printf '| %s | %s | %.2f | %.2f | %.1f |\n' "$threads" "$name" \
            "$(median "$threads" "$name" 3 1e6)" "$(median "$threads" "$name" 4 1e6)" "$(median "$threads" "$name" 5 1)"
    done
done

[ -n "$times" ] || exit 0
echo
echo '| characters | addresses found | seconds for each, mean | keys for each, mean, in millions |'
echo '|---:|---:|---:|---:|'
best=$(head -n 1 <<<"$paths")
for job in abcde:60 abcdef:12 abcdefg:1; do
    prefix=${job%:*} count=${job#*:}
    "$rate" "$best" "$cores" "$prefix" 3600 "$count" |
        awk -v characters=${#prefix} '{ printf "| %d | %d | %.2f | %.1f |\n", characters, $3, $2 / $3, $1 / $3 / 1e6 }'
done
