#!/usr/bin/env bash
# Everything that must hold: form, lints, licences, and all tests from units to a real Tor network. Builds the same
# profile as the demo, so that neither compiles the dependencies for the other again.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
deny=0.20.2
target=$(realpath "${CARGO_TARGET_DIR:-target}")
tools=$target/tools
log=$target/test.log

# Each step and each lane is a process group of its own: a signal to this script alone ends what cargo has started, too.
running=()
stop() {
    trap '' INT TERM HUP
    for group in ${running[@]+"${running[@]}"}; do
        kill -- "-$group" 2>/dev/null || :
    done
    wait || :
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

tell() {
    printf '\n== %s (%d s)\n' "$*" "$((SECONDS - started))"
}

start() {
    set -m
    "$@" &
    running+=($!)
    set +m
}

step() {
    tell "$@"
    start "$@"
    wait "${running[-1]}"
    running=()
}

# Runs a command whose lines bear this name, beside other lanes.
lane() { # NAME COMMAND...
    tell "$@"
    start labelled "$@"
}

labelled() {
    local name=$1
    shift
    "$@" 2>&1 | sed -u "s/^/$name: /" | tee -a "$log"
}

# The licence check is built while the network tests wait. Advisories are not checked: their database is not on
# crates.io, and a test must not depend on the day.
licences() {
    if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qxF "cargo-deny $deny"; then
        nice -n 19 cargo install --quiet --locked --debug --root "$tools" cargo-deny --version "$deny"
    fi
    "$tools/bin/cargo-deny" --locked --config .deny.toml check licenses bans sources
}

# In the foreground: it may ask for a password.
tell ./scripts/install.sh
./scripts/install.sh
step cargo fmt -p rustbalance -p rustbalance-gossip -p rustbalance-mesh -p rustbalance-testnet --check
step cargo fmt --manifest-path tests/fuzz/Cargo.toml --check

# Lints and tests share one compilation.
export RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/lint.sh
step cargo test --locked --workspace --all-targets --no-run

# libtest reports times on request of nightly toolchains only: this makes it believe in one, while tests run.
host=$(rustc -vV | sed -n 's/^host: //p')
export "CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUNNER=env RUSTC_BOOTSTRAP=1"
timed=(-- -Z unstable-options --report-time)
mkdir -p "$target"
: >"$log"
# The tests on a Tor network mostly wait, so they run beside all others, which give way to them: a network test
# measures time. Their targets alone have names with an n at the beginning. More threads than cores, for the same reason;
# how many clusters share the network is bounded in tests/network/support.rs.
lane network env RUST_TEST_THREADS=5 cargo test --locked --workspace --no-fail-fast --test 'n*' "${timed[@]}"
lane tests nice env RUST_TEST_THREADS=4 cargo test --locked --workspace --no-fail-fast \
    --lib --bins --test '[!n]*' "${timed[@]}"
lane licences licences
lane docs nice cargo test --locked --workspace --doc
# The core alone: with the workspace it would share what other crates have switched on.
lane core nice cargo check --locked -p rustbalance-gossip
failed=
for group in "${running[@]}"; do
    wait "$group" || failed=yes
done
running=()

tell the slowest tests
sed -nE 's/^[a-z]+: test (.*) \.\.\. [a-z]+ <([0-9.]+)s>$/\2 s  \1/p' "$log" | sort -rn | head -n 25
if [ -n "$failed" ]; then
    tell failed
    grep -E '^[a-z]+: (test .* FAILED|error|    [a-z_:]+$)' "$log" || :
    # The reasons last: who sees only the end of this output needs them most.
    grep -E -A 2 '^[a-z]+: (thread .* panicked at | +[a-z]+ +[0-9.]+ s  failed: )' "$log" | cut -c -400 || :
    exit 1
fi
printf '\nall is well after %d s\n' "$((SECONDS - started))"
