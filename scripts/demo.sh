#!/bin/bash
# demo.sh: one site with three hosts on this machine, a service on it, from the manifest to
# the last clean-up. Ends by itself; what it makes is gone afterwards, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."

reservoir=build/reservoir
work=$(mktemp -d "${TMPDIR:-/tmp}/reservoir-demo.XXXXXX")
export RESERVOIR_CONFIG=$work/contexts.yaml RESERVOIR_CONTEXT=dev-alpha
began=$SECONDS
summary=

bold() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }

# act TITLE COMMAND…: show both, run the command, note the time it took.
act() {
	local title=$1 from=$EPOCHREALTIME took; shift
	bold "== $title"
	[ "$(type -t "$1")" = function ] || printf '$ %s\n' "${*/#$reservoir/reservoir}"
	"$@"
	took=$(awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f", b - a}')
	summary+=$(printf '  %-44s %6s s' "$title" "$took")$'\n'
}

clean_up() {
	local code=$?
	trap - EXIT INT TERM
	if [ $code -ne 0 ]; then
		bold "The demonstration failed. The last lines of the logs:"
		tail -n 15 "$work"/site/log/*.log 2>/dev/null || true
	fi
	"$reservoir" dev down --dir "$work/site" >&2 || code=1
	rm -rf "$work"
	exit $code
}
trap clean_up EXIT
trap 'exit 130' INT TERM

url() { "$reservoir" service show web -o yaml | awk '($1 == "url:" || $2 == "url:") && !n++ {print $NF}'; }

# Whoever reads a pipe here reads all of it: with pipefail a writer that is cut off counts.

# who answers: eight requests, counted by replica.
answers() {
	local at; at=$(url)
	printf '$ curl %s   (8 times)\n' "$at"
	for _ in 1 2 3 4 5 6 7 8; do curl -fsS --max-time 10 "$at"; done | awk '/^hostname:/ {n[$2]++} END {for (h in n) printf "  %s answered %d times\n", h, n[h]}' | sort
}

# kill the first VEE's QEMU process from outside, and wait until it runs again.
kill_a_guest() {
	local id restarts
	id=$("$reservoir" vee list -o name | sed -n 1p)
	printf '$ kill -9 QEMU of %s\n' "$id"
	pkill -9 -f "^[^ ]*qemu-system[^ ]* -name [^ ]*$id" || { echo "no guest of $id runs here" >&2; return 1; }
	for ((i = 0; i < 600; i++)); do
		restarts=$("$reservoir" vee show "$id" -o yaml | awk '$1 == "restarts:" {print $2}')
		[ "${restarts:-0}" -gt 0 ] && break
		sleep 0.1
	done
	"$reservoir" service scale web web 4 --wait >/dev/null
	"$reservoir" event list --object "vee/$id" | tail -n 4
}

act "a site with three hosts" "$reservoir" dev up --detach --hosts 3 --dir "$work/site"
"$reservoir" host list
act "push the appliance" "$reservoir" image push .cache/images/appliance
act "what would be made?" "$reservoir" service plan examples/web/web.yaml
act "deploy examples/web" "$reservoir" service deploy examples/web/web.yaml --wait
act "it answers, by either replica" answers
act "scale it to four" "$reservoir" service scale web web 4 --wait
act "all four answer" answers
act "a guest is killed and comes back" kill_a_guest
bold "== the processes"
"$reservoir" dev status --dir "$work/site"
act "delete the service" "$reservoir" service delete web --wait
act "take everything down" "$reservoir" dev down --dir "$work/site"

left=$(ip netns list | grep -c '^rsv-' || true)
bold "Summary"
printf '%s' "$summary"
printf '  %-44s %6d s\n' "all of it" $((SECONDS - began))
printf '  namespaces left: %d\n' "$left"
[ "$left" -eq 0 ]
