#!/usr/bin/env bash
# Tests the WireGuard engine of the kernel in a real kernel: Debian's, in a virtual machine that
# qemu emulates in software, without a disk or a network. The suite of engines runs with the kernel
# engine on both sides and beside the userspace engine, and its guards against what the kernel
# already has.
#
# Needs no privilege. The kernel and busybox come from Debian by apt, are unpacked under
# target/kernel-wireguard/, and are not installed. `install.sh tests` installs qemu. Where these
# packages cannot be had, the script says so and ends with 0. It ends with 0 after success, too, and
# with another status if a test fails or the machine does not end in time.
set -euo pipefail
cd "$(dirname "$0")/.."
# Longest time for the machine, in seconds.
limit=${KERNEL_WIREGUARD_LIMIT:-600}
modules=(wireguard veth bridge dummy sch_netem)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$target/kernel-wireguard
export LC_ALL=C

skip() {
    echo "kernel-wireguard.sh: skipped: $*" >&2
    exit 0
}

say() {
    echo "kernel-wireguard.sh: $*" >&2
}

# Unpacks the newest version of a package, unless it is there. The lists of apt may be older than
# the archive, and must not be updated without root, so that counts as not to be had.
unpack() { # PACKAGE
    local package=$1 version
    version=$(apt-cache policy "$package" 2>/dev/null | sed -n 's/^  Candidate: //p')
    [ -n "$version" ] && [ "$version" != '(none)' ] || return 1
    if [ "$(cat "$work/$package.version" 2>/dev/null)" != "$version" ]; then
        rm -rf "${work:?}/$package" "$work/download"
        mkdir -p "$work/download"
        (cd "$work/download" && apt-get -q download "$package" >"$work/apt.log" 2>&1) || return 1
        dpkg-deb --extract "$work"/download/*.deb "$work/$package"
        rm -rf "$work/download"
        echo "$version" >"$work/$package.version"
    fi
}

[ "$(uname -m)" = x86_64 ] || skip "this script knows only x86_64, and this is $(uname -m)"
for command in apt-get apt-cache dpkg-deb; do
    command -v "$command" >/dev/null || skip "$command is missing: this is not Debian"
done
command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86_64 is missing: ./scripts/install.sh tests installs it"
mkdir -p "$work"
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$kernel" ] || skip "apt knows no kernel: Debian's linux-image-cloud-amd64"
for package in "$kernel" busybox-static; do
    unpack "$package" || skip "apt cannot download $package: $(tail -n 1 "$work/apt.log" 2>/dev/null)"
done
busybox=$(find "$work/busybox-static" -path '*/bin/busybox' -print -quit)
image=$(find "$work/$kernel/boot" -name 'vmlinuz-*' -print -quit)

# The program with the unit tests, which cargo does not build again if it is there.
tests=$(cargo test --quiet --locked --workspace --lib --no-run --message-format=json |
    sed -n '/"name":"rustbalance","src_path"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$tests" ] || { say "cargo has built no unit tests"; exit 1; }

root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,dev,modules,proc,run/netns,sys,tmp}
cp "$busybox" "$root/bin/busybox"
strip -o "$root/bin/tests" "$tests"

# Copies the libraries that a program names.
libraries_of() { # PROGRAM
    local library
    for library in $(ldd "$1" | grep -oE '/[^ ]+'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
}
libraries_of "$root/bin/tests"
for program in ip tc; do
    file=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program")
    cp -L "$file" "$root/bin/"
    libraries_of "$file"
done

# Copies a module after those it needs, which its file names, and lists them in this order.
declare -A copied=()
with_needed() { # MODULE
    local name=${1//-/_} file needed
    [ -z "${copied[$name]:-}" ] || return 0
    copied[$name]=yes
    file=$(find "$work/$kernel/lib/modules" -name "${name//_/[-_]}.ko*" -print -quit)
    # What is built into the kernel has no file.
    [ -n "$file" ] || return 0
    case $file in
    *.xz) xz -dc "$file" >"$root/modules/$name.ko" ;;
    *) cp "$file" "$root/modules/$name.ko" ;;
    esac
    needed=$(grep -aoE 'depends=[A-Za-z0-9_,-]*' "$root/modules/$name.ko" | head -n 1)
    for module in $(tr ',' ' ' <<<"${needed#depends=}"); do
        with_needed "$module"
    done
    echo "$name" >>"$root/modules/order"
}
for module in "${modules[@]}"; do
    with_needed "$module"
done

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin HOME=/tmp
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /run/netns
suite=wireguard::kernel::tests::guest
absent=$suite::a_kernel_without_the_module_is_refused_with_what_to_do
for module in $(grep -vx wireguard /modules/order); do
    insmod "/modules/$module.ko" || echo "cannot load $module"
done
# The shell prefers busybox's own ip, which knows less.
/bin/ip link set lo up
/bin/ip link add br0 type bridge
/bin/ip link set br0 up
/bin/ip address add 10.9.255.254/16 dev br0
tests --ignored --test-threads=1 --exact "$absent"
first=$?
# The second run numbers its hosts from 1 again.
/bin/ip link delete v1
/bin/ip netns delete n1
insmod /modules/wireguard.ko
tests --ignored --test-threads=THREADS $suite --skip "$absent"
second=$?
echo "kernel-wireguard: status $first $second after $(cut -d ' ' -f 1 /proc/uptime) s"
poweroff -f
INIT
sed -i "s/THREADS/${KERNEL_WIREGUARD_THREADS:-4}/" "$root/init"
chmod +x "$root/init"
(cd "$root" && find . | "$busybox" cpio -o -H newc --quiet) >"$work/initramfs"

say "$(basename "$image"), $(du -m "$work/initramfs" | cut -f 1) MiB, at most $limit s"
log=$work/log
# Software emulation everywhere, so that every machine runs the same test.
timeout --kill-after=5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -m 1024 \
    -nodefaults -no-reboot -display none -serial stdio -monitor none \
    -kernel "$image" -initrd "$work/initramfs" -append 'console=ttyS0 quiet panic=-1' </dev/null 2>&1 |
    sed -u 's/\r$//' | tee "$log" || :
rm -rf "$root" "$work/initramfs"
grep -q '^kernel-wireguard: status 0 0 ' "$log" || {
    say "failed: the tests above, or the machine did not end within $limit s"
    exit 1
}
