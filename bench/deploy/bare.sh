#!/bin/sh
# The same guests without Reservoir: what somebody would type who has QEMU and no manager.
# bare.sh start N KERNEL INITRD CMDLINE ACCEL DIR NAMESPACE... starts N guests spread over
# the namespaces, each with a TAP in the bridge rsv0, a seed medium and 128 MiB of memory;
# the i-th has the address 10.80.200.i (NET: other than 10.80). bare.sh stop DIR NAMESPACE... ends them.
set -eu
case $1 in
start)
	n=$2 kernel=$3 initrd=$4 cmdline=$5 accel=$6 dir=$7
	shift 7
	i=0
	while [ $i -lt "$n" ]; do
		i=$((i + 1))
		ns=$1; shift; set -- "$@" "$ns"
		d=$dir/$i; mkdir -p "$d/seed"
		mac=$(printf '52:54:00:be:00:%02x' $i)
		printf 'instance-id: bare-%s\nlocal-hostname: bare-%s\n' $i $i >"$d/seed/meta-data"
		printf '#cloud-config\n{}\n' >"$d/seed/user-data"
		printf 'version: 2\nethernets:\n  eth0:\n    match:\n      macaddress: "%s"\n    set-name: eth0\n    addresses: ["%s.200.%s/16"]\n' \
			$mac "${NET:-10.80}" $i >"$d/seed/network-config"
		genisoimage -quiet -rational-rock -joliet -volid cidata -output "$d/seed.iso" "$d/seed"
		ip -n "$ns" tuntap add "bare$i" mode tap
		ip -n "$ns" link set "bare$i" master rsv0 up
		ip netns exec "$ns" qemu-system-x86_64 -machine pc -accel "$accel" -m 128 -smp 1 \
			-nodefaults -no-user-config -display none -kernel "$kernel" -initrd "$initrd" -append "$cmdline" \
			-drive "file=$d/seed.iso,if=virtio,format=raw,readonly=on" \
			-netdev "tap,id=n0,ifname=bare$i,script=no,downscript=no" -device "virtio-net-pci,netdev=n0,mac=$mac,romfile=" \
			-serial "file:$d/console.log" -daemonize -pidfile "$d/pid"
	done
	;;
stop)
	dir=$2
	shift 2
	for p in "$dir"/*/pid; do
		[ -e "$p" ] && kill -9 "$(cat "$p")" 2>/dev/null || true
	done
	for ns in "$@"; do
		for l in $(ip -n "$ns" -o link | sed -n 's/^[0-9]*: \(bare[0-9]*\):.*/\1/p'); do
			ip -n "$ns" link del "$l"
		done
	done
	rm -rf "$dir"
	;;
esac
