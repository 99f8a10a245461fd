#!/bin/sh
# Installs on Debian what building and testing need: a C compiler; C tor, curl, python3-stem and
# iproute2 for the private test network; systemd-analyze, which checks the unit and starts nothing.
# `install.sh tests` also installs what tests alone need: Mesa's software Vulkan for the search of
# `vanity --gpu`, Prometheus for the metrics, HAProxy and nginx for the PROXY protocol, and qemu for
# WireGuard in the kernel. `install.sh fuzz` installs a C++ compiler. The script is silent and quick
# if nothing is missing. Rust itself comes from https://rustup.rs.
set -eu

missing=
need() { # PACKAGE CHECK...
    package=$1
    shift
    "$@" >/dev/null 2>&1 && return
    # A package is listed once, even if several checks need it.
    case "$missing " in
    *" $package "*) ;;
    *) missing="$missing $package" ;;
    esac
}

has() {
    command -v "$1"
}

has_software_vulkan() {
    for driver in /usr/share/vulkan/icd.d/lvp_icd*.json; do
        test -e "$driver" && return
    done
    return 1
}

need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
need curl has curl
need gcc has gcc
need libc6-dev test -e /usr/include/stdlib.h
need make has make
need pkg-config has pkg-config
need python3 test -x /usr/bin/python3
need python3-cryptography /usr/bin/python3 -c 'import cryptography'
need python3-stem /usr/bin/python3 -c 'import stem.descriptor.hidden_service'
need systemd has systemd-analyze
need iproute2 has ip
need tor has tor
need tor has tor-gencert
[ "${1:-}" != tests ] || need mesa-vulkan-drivers has_software_vulkan
[ "${1:-}" != tests ] || need prometheus has promtool
[ "${1:-}" != tests ] || need haproxy test -x /usr/sbin/haproxy
[ "${1:-}" != tests ] || need nginx test -x /usr/sbin/nginx
[ "${1:-}" != tests ] || need qemu-system-x86 has qemu-system-x86_64
[ "${1:-}" != fuzz ] || need g++ has g++

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "install.sh: missing:$missing, and there is no apt-get here; install them and try again" >&2
        exit 1
    fi
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "install.sh: missing:$missing; become root, or install sudo, and try again" >&2
            exit 1
        fi
        as_root=sudo
    fi
    log=$(mktemp)
    # Debian's packages of tor, prometheus, haproxy and nginx would start system services, but only
    # the programs are needed. policy-rc.d forbids starting services while packages are installed.
    # An existing policy stays.
    policy=/usr/sbin/policy-rc.d
    ours=
    clean_up() {
        rm -f "$log"
        [ -z "$ours" ] || $as_root rm -f "$policy"
    }
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
    echo "install.sh: installing$missing" >&2
    # A fresh machine may be running its unattended upgrades. apt-get can wait for dpkg's lock, but
    # not for the locks of the package lists and of the archive. For those, the command is repeated
    # for the same time.
    patience=600
    waiting=
    apt() {
        since=$(date +%s)
        until $as_root env LC_ALL=C DEBIAN_FRONTEND=noninteractive \
            apt-get -q -y -o "DPkg::Lock::Timeout=$patience" "$@" >"$log" 2>&1; do
            grep -qE 'Could not get lock|Unable to lock|Unable to acquire the dpkg' "$log" || return 1
            [ "$(($(date +%s) - since))" -lt "$patience" ] || return 1
            [ -n "$waiting" ] || echo "install.sh: another program installs packages now; waiting for it" >&2
            waiting=yes
            sleep 5
        done
    }
    # Splitting is intended: this is a list of packages.
    # shellcheck disable=SC2086
    if ! { apt update && apt install --no-install-recommends $missing; }; then
        cat "$log" >&2
        echo "install.sh: apt-get could not install:$missing" >&2
        exit 1
    fi
    # The policy has kept them from starting now; this keeps them from starting at the next boot.
    for service in tor prometheus haproxy nginx; do
        case "$missing " in
        *" $service "*)
            if command -v systemctl >/dev/null 2>&1; then
                $as_root systemctl disable "$service.service" >/dev/null 2>&1 || :
            fi
            ;;
        esac
    done
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "install.sh: there is no cargo; get Rust 1.95 or later from https://rustup.rs" >&2
    exit 1
fi
