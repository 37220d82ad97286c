#!/bin/bash
# demo-federation.sh: the scenario of the first seed. Two sites; power trouble at the primary;
# what runs on the machine that loses its power goes to the partner, live, while a client
# holds connections to it; and back when the power is. Ends by itself; what it makes is gone
# afterwards, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."

reservoir=${RESERVOIR:-build/reservoir}
appliance=${APPLIANCE:-.cache/images/appliance}
flags=(${DEV_FLAGS:-})
work=$(mktemp -d "${TMPDIR:-/tmp}/reservoir-demo.XXXXXX")
export RESERVOIR_CONFIG=$work/contexts.yaml
began=$SECONDS
clients=()

bold() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
say() { bold "== [$((SECONDS - began)) s] $*"; }
alpha() { "$reservoir" --context dev-alpha "$@"; }
beta() { "$reservoir" --context dev-beta "$@"; }
# show SITE COMMAND…: what is run, and what it prints.
show() { local site=$1; shift; printf '%s$ reservoir %s\n' "$site" "$*"; "$site" "$@"; }
# column NAME: of a listing on standard input, by its head.
column() { awk -v name="$1" 'NR == 1 {for (i = 1; i <= NF; i++) if ($i == name) c = i; next} c {print $c}'; }

clean_up() {
	local code=$?
	trap - EXIT INT TERM
	[ ${#clients[@]} -eq 0 ] || kill "${clients[@]}" 2>/dev/null || true
	if [ $code -ne 0 ]; then
		bold "The demonstration failed. The last lines of the logs:"
		tail -n 8 "$work"/sites/log/*.log 2>/dev/null || true
	fi
	"$reservoir" dev down --dir "$work/sites" >&2 || code=1
	rm -rf "$work"
	exit $code
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# move VEE HOST: inside alpha, unless it is there.
settle_at() {
	local at
	at=$(alpha vee list -o json | awk -v vee="\"$1\"," '/"name":/ && $2 == vee {found = 1} found && /"host":/ {gsub(/[",]/, "", $2); print $2; exit}')
	[ "$at" = "$2" ] || alpha vee migrate "$1" --to "$2" --wait >/dev/null 2>&1
}

# hold N ADDRESS: a client's connection to the front's access point, through which it reads
# from a worker over the private network for as long as the worker lives. Each line that comes
# is one more number; a break is noted, and so is the longest time without anything.
hold() {
	curl -sS -N --max-time 600 "$url/ask?seconds=600&url=http%3A%2F%2F$2%2Fdownload%3Fbytes%3D60000000%26seconds%3D500" 2>"$work/client$1.err" |
		perl -e '
			use Time::HiRes "time"; $| = 1;
			my ($last, $worst, $bytes) = (time, 0, 0);
			while (sysread STDIN, my $b, 65536) {
				my $gap = time - $last; $worst = $gap if $gap > $worst;
				$last = time; $bytes += length $b;
				open my $f, ">", $ARGV[0]; printf $f "%d %d\n", $worst * 1000, $bytes; close $f;
			}
			open my $f, ">", "$ARGV[0].ended"; close $f;' "$work/client$1"
}

say "Two sites that know nothing of each other: each with two machines"
"$reservoir" dev up --detach --sites 2 --hosts 2 --accounting-interval 2s --dir "$work/sites" "${flags[@]}" >/dev/null 2>&1
show alpha host list
show beta host list

say "They become partners: beta invites, alpha accepts, people compare the fingerprint"
token=$(beta federation invite alpha -o json | awk -F'"' '$2 == "token" {print $4}')
printf 'beta$ reservoir federation invite alpha\n'
show alpha federation accept "$token" | sed "s/$token/TOKEN/"
show alpha agreement propose beta examples/federation/agreement.yaml
agreement=$(alpha agreement list -o name)
for ((i = 0; i < 100; i++)); do beta agreement show "$agreement" >/dev/null 2>&1 && break; sleep 0.1; done
show beta agreement sign "$agreement"

say "A service at alpha: a front that clients reach, three workers behind it on a private network"
printf 'currency: EUR\nplaces: 2\nlists:\n  - {name: demo, from: 2026-01-01, prices: {vee: 3.6, vcpu: 36}}\n' >"$work/prices.yaml"
alpha account prices set "$work/prices.yaml" >/dev/null
alpha image push "$appliance" appliance >/dev/null 2>&1
alpha service deploy examples/federation/shop.yaml --wait >/dev/null 2>&1
settle_at front-1 h1
for w in worker-1 worker-2 worker-3; do settle_at $w h2; done
show alpha vee list

say "A client holds a connection to each worker"
url=$(alpha service show shop -o yaml | awk '($1 == "url:" || $2 == "url:") && !n++ {print $NF}')
n=0
for address in $(alpha vee list | awk '$2 ~ /^worker/ {print $7}'); do
	n=$((n + 1))
	hold $n "$address" &
	clients+=($!)
done
sleep 5
printf '%d connections through %s\n' "$n" "$url"

say "Power trouble: h2 has ten minutes. What runs there goes to beta"
show alpha host evacuate h2 --to beta --deadline 10m --plan
for ((i = 0; i < 100; i++)); do [ -n "$(alpha host list -o name | grep '^@beta$' || true)" ] && break; sleep 0.1; done
show alpha host evacuate h2 --to beta --deadline 10m --wait --timeout 4m
show alpha vee list
show beta vee list

say "h2 is dark; the service goes on"
sleep 5
show alpha vee migrations -o wide
wire=$(alpha vee migrations -o json | awk -F'[:,]' '$1 ~ /"(diskBytes|memoryBytes)"/ {n += $2} END {print n + 0}')
moved=$(alpha vee migrations -o json | awk '$1 == "\"to\":" && $2 ~ /@beta/ {n++} END {print n + 0}')

say "The power is back, and so are the workers"
alpha host on h2 >/dev/null
for w in worker-1 worker-2 worker-3; do show alpha vee migrate $w --to h2 --wait 2>/dev/null; done
show alpha vee list
sleep 5

say "What it came to"
lost=0 worst=0
for ((i = 1; i <= n; i++)); do
	[ ! -e "$work/client$i.ended" ] || lost=$((lost + 1))
	read -r stall bytes <"$work/client$i"
	printf 'connection %d: %d bytes so far, longest stall %d ms\n' "$i" "$bytes" "$stall"
	[ "$stall" -le "$worst" ] || worst=$stall
done
wire=$((wire + $(alpha vee migrations -o json | awk -F'[:,]' '$1 ~ /"(diskBytes|memoryBytes)"/ {n += $2} END {print n + 0}')))
printf '\nVEEs moved:        %d, and back\n' "$moved"
printf 'connections lost:  %d\n' "$lost"
printf 'longest stall:     %d ms\n' "$worst"
printf 'bytes over the wire: %d MiB\n' $((wire / 1048576))
bold "What alpha charges its customer"
for ((i = 0; i < 60; i++)); do alpha account invoice draft | grep -q vcpu && break; sleep 0.5; done
show alpha account invoice draft
bold "What alpha owes beta, by the book of each: both have watched the same VEEs"
show alpha account settlement beta
show beta account settlement alpha
agreed=$(for site in alpha beta; do $site account settlement -o json; done | grep -c '"agree": true' || true)
printf '\nall of it in %d s\n' $((SECONDS - began))
[ "$lost" -eq 0 ] && [ "$moved" -eq 3 ] && [ "$agreed" -eq 2 ]
