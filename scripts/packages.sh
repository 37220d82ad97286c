#!/bin/sh
# packages.sh [test|placement]: install the Debian packages that building and running need,
# with "test" what only the tests need too, with "placement" what the placement engine is
# measured beside, and of those the missing ones. Without root: say which are missing, and
# fail.
set -eu
need="qemu-system-x86 qemu-utils mmdebstrap e2fsprogs dpkg-dev cpio zstd iproute2 nftables genisoimage curl"
[ "${1:-}" != test ] || need="$need libvirt-daemon-system libvirt-daemon-driver-qemu jq"
[ "${1:-}" != placement ] || need="$need ganeti-htools minizinc coinor-cbc"
missing=
for p in $need; do
	dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
	printf 'error: these packages are missing:%s\ntry: sudo apt-get install --no-install-recommends%s\n' "$missing" "$missing" >&2
	exit 1
fi
here=$(dirname "$0")
export DEBIAN_FRONTEND=noninteractive
"$here/step" "apt-get update" apt-get update -q
# seabios and ipxe-qemu (the BIOS and the NICs' boot ROMs) come as dependencies.
# shellcheck disable=SC2086
"$here/step" "apt-get install$missing" apt-get install -yq --no-install-recommends $missing
