#!/bin/sh
# Puts a decoder before libFuzzer: ./scripts/fuzz.sh TARGET SECONDS, or `all` for each of them in turn.
#
# Begins with the committed corpus (tests/fuzz/corpus/) and what earlier runs on this machine have found; new inputs go to
# tests/fuzz/target/corpus/. One line a target says how many inputs were run and what broke; the exit code is 1 if
# anything did. The first run installs a C++ compiler and cargo-fuzz and builds all of Arti anew: half an hour.
set -eu
cd "$(dirname "$0")/.."

version=0.13.2
targets=$(ls tests/fuzz/fuzz_targets | sed 's/\.rs$//')
usage() {
    echo "usage: $0 TARGET|all SECONDS, where TARGET is one of:" $targets >&2
    exit 2
}
[ $# -eq 2 ] || usage
[ "$2" -gt 0 ] 2>/dev/null || usage
seconds=$2
case " $(echo $targets) all " in
*" $1 "*) ;;
*) usage ;;
esac
[ "$1" = all ] || targets=$1

./scripts/install.sh fuzz
if ! cargo fuzz --version 2>/dev/null | grep -qxF "cargo-fuzz $version"; then
    echo "fuzz.sh: installing cargo-fuzz $version" >&2
    cargo install --quiet --locked cargo-fuzz --version "$version"
fi

folder=tests/fuzz
found=${CARGO_TARGET_DIR:-$folder/target}/corpus
status=0
# Which flags it wants is libFuzzer's affair: without a sanitizer the stable compiler has all of them.
fuzz() {
    action=$1
    shift
    cargo fuzz "$action" --fuzz-dir $folder --sanitizer none "$@"
}
for target in $targets; do
    mkdir -p "$found/$target"
    fuzz build "$target" >"$found/$target.log" 2>&1 || {
        cat "$found/$target.log" >&2
        exit 1
    }
    started=$(date +%s)
    # An input that takes 10 seconds or a gigabyte is a finding, too.
    if fuzz run "$target" "$found/$target" "$folder/corpus/$target" -- -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=1024 -max_len=16384 -dict=$folder/dictionary -print_final_stats=1 >"$found/$target.log" 2>&1; then
        findings=no
    else
        findings=one
        status=1
        # Where it broke, and the input's file.
        grep -E 'panicked at|^==|ERROR|Test unit written' -A 1 "$found/$target.log" >&2 || tail -n 20 "$found/$target.log" >&2
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found/$target.log" | tail -n 1)
    echo "$target: ${executions:-0} executions in $(($(date +%s) - started)) s, $findings finding"
done
exit $status
