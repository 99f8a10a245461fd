#!/bin/sh
# Fuzzes a decoder with libFuzzer: ./scripts/fuzz.sh TARGET SECONDS, or `all` for each target in
# turn.
#
# It begins with the committed corpus (tests/fuzz/corpus/) and the inputs that earlier runs on this
# machine have found. New inputs go to tests/fuzz/target/corpus/. For each target a line says how
# many inputs were run and whether one failed; the exit code is 1 if any did. The first run installs
# a C++ compiler and cargo-fuzz and compiles all of Arti once more, which takes half an hour.
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
# cargo-fuzz sets the compiler flags that libFuzzer needs. Without a sanitizer the stable compiler
# supports all of them.
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
        # The place of the failure, and the file with the input.
        grep -E 'panicked at|^==|ERROR|Test unit written' -A 1 "$found/$target.log" >&2 || tail -n 20 "$found/$target.log" >&2
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found/$target.log" | tail -n 1)
    echo "$target: ${executions:-0} executions in $(($(date +%s) - started)) s, $findings finding"
done
exit $status
