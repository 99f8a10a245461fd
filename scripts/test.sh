#!/usr/bin/env bash
# Runs all checks: formatting, lints, licences, and all tests from unit tests to a real Tor network.
# It builds the same profile as the demo, so that both share the compiled dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
deny=0.20.2
target=$(realpath "${CARGO_TARGET_DIR:-target}")
tools=$target/tools
log=$target/test.log

# Each step and each lane has a process group of its own, so that a signal to this script also ends
# what cargo has started.
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

# Runs a command in parallel with other lanes, and prefixes its output lines with NAME.
lane() { # NAME COMMAND...
    tell "$@"
    start labelled "$@"
}

labelled() {
    local name=$1
    shift
    "$@" 2>&1 | sed -u "s/^/$name: /" | tee -a "$log"
}

# cargo-deny is built while the network tests wait. Advisories are not checked: their database is
# not on crates.io, and the result of a test must not depend on the day.
licences() {
    if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qxF "cargo-deny $deny"; then
        nice -n 19 cargo install --quiet --locked --debug --root "$tools" cargo-deny --version "$deny"
    fi
    "$tools/bin/cargo-deny" --locked --config .deny.toml check licenses bans sources
}

# The examples run, and every link in the documentation leads somewhere: also between private items,
# which maintainers read.
docs() {
    nice cargo test --locked --workspace --doc
    RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' \
        nice cargo doc --quiet --locked --workspace --no-deps --document-private-items
}

# The machine that qemu emulates is slow, and its tests measure time, so it waits for another lane
# to end. Says so and passes where qemu or Debian's kernel cannot be had.
kernel() { # PID
    while kill -0 "$1" 2>/dev/null; do
        sleep 1
    done
    ./scripts/kernel-wireguard.sh
}

# The fuzz targets are a workspace of their own, so no build here notices that their lock is out of
# date.
fuzz_lock() {
    cargo metadata --locked --manifest-path tests/fuzz/Cargo.toml --format-version 1 >/dev/null
}

# Tests of clusters wait for what takes seconds, beside builds and other clusters, and a busy
# machine can exceed any bound. So up to three failed tests of a lane are repeated once, alone. One
# that passes then is listed: its bound, or how it waits, is a defect to mend.
repeat() { # LANE COMMAND...
    local lane=$1 names
    shift
    mapfile -t names < <(sed -nE "s/^$lane: test (.*) \.\.\. FAILED.*/\1/p" "$log" | sort -u)
    if [ "${#names[@]}" -eq 0 ] || [ "${#names[@]}" -gt 3 ] || grep -q "^$lane: .*(signal: " "$log"; then
        return 1
    fi
    tell "repeat alone: ${names[*]}"
    start labelled "$lane again" env RUST_TEST_THREADS=1 "$@" -- --exact "${names[@]}"
    wait "${running[-1]}" || return 1
    running=()
    unsteady+=("${names[@]}")
}

# In the foreground, because it may ask for a password.
tell ./scripts/install.sh tests
./scripts/install.sh tests
step cargo fmt -p rustbalance -p rustbalance-gossip -p rustbalance-mesh -p rustbalance-testnet \
    -p rustbalance-vanity -p rustbalance-vanity-dispatch -p rustbalance-vanity-gpu --check
step cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
step fuzz_lock

# Lints and tests share one compilation.
export RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/lint.sh
step cargo test --locked --workspace --all-targets --no-run

# libtest reports times only on nightly toolchains; RUSTC_BOOTSTRAP lets it do so while tests run.
host=$(rustc -vV | sed -n 's/^host: //p')
export "CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUNNER=env RUSTC_BOOTSTRAP=1"
timed=(-- -Z unstable-options --report-time)
mkdir -p "$target"
: >"$log"
# The tests on a Tor network mostly wait, so they run in parallel with all others. The others run
# with a lower priority, because network tests measure time. Only the targets of network tests have
# names that begin with n. They have more threads than cores, again because they wait;
# tests/network/support.rs limits how many clusters share the network.
network=(cargo test --locked --workspace --no-fail-fast --test 'n*')
tests=(cargo test --locked --workspace --no-fail-fast --lib --bins --test '[!n]*')
lane network env RUST_TEST_THREADS=5 "${network[@]}" "${timed[@]}"
lane tests nice env RUST_TEST_THREADS=4 "${tests[@]}" "${timed[@]}"
lane licences licences
lane docs docs
# The core alone: in the workspace build it would have features that other crates enable.
lane core nice cargo check --locked -p rustbalance-gossip
lane kernel kernel "${running[1]}"
lanes=(network tests licences docs core kernel)
failed=()
for i in "${!running[@]}"; do
    wait "${running[i]}" || failed+=("${lanes[i]}")
done
running=()

tell the slowest tests
sed -nE 's/^[a-z]+: test (.*) \.\.\. [a-z]+ <([0-9.]+)s>$/\2 s  \1/p' "$log" | sort -rn | sed -n 1,25p
unsteady=()
broken=()
for lane in ${failed[@]+"${failed[@]}"}; do
    case $lane in
    network) repeat network "${network[@]}" ;;
    tests) repeat tests nice "${tests[@]}" ;;
    # Its clock runs slowly beside the others, and some of its tests measure time.
    kernel) labelled "kernel again" ./scripts/kernel-wireguard.sh && unsteady+=(kernel-wireguard.sh) ;;
    *) false ;;
    esac || broken+=("$lane")
done
if [ "${#failed[@]}" -gt 0 ]; then
    tell "failed: ${broken[*]:-nothing}; passed only alone: ${unsteady[*]:-nothing}"
    grep -E '^[a-z ]+: (test .* FAILED|error|    [a-z_:]+$)' "$log" || :
    # The reasons last: who sees only the end of this output needs them most.
    grep -E -A 2 '^[a-z ]+: (thread .* panicked at | +[a-z]+ +[0-9.]+ s  failed: )' "$log" | cut -c -400 || :
fi
if [ "${#broken[@]}" -gt 0 ]; then
    exit 1
fi
printf '\nall is well after %d s\n' "$((SECONDS - started))"
