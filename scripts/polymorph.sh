#!/bin/bash
# polymorph.sh: a site on this machine, and on it examples/polymorph-search: Slurm on Debian
# guests, whose execution nodes come and go with the length of its queue. A search is run from
# its first job to the last node's end. What it makes is gone afterwards, whatever happens.
#
#   PREFIX, SUBNET  of the stage, where another one is up
set -euo pipefail
cd "$(dirname "$0")/.."

reservoir=build/reservoir
work=$(mktemp -d "${TMPDIR:-/tmp}/reservoir-polymorph.XXXXXX")
export RESERVOIR_CONFIG=$work/contexts.yaml RESERVOIR_CONTEXT=dev-alpha
limit=$((SECONDS + 2400)) # for the search: emulated guests on a busy machine take their time

clean_up() {
	local code=$?
	trap - EXIT INT TERM
	if [ $code -ne 0 ]; then
		printf '\nThe search failed. The last lines of the logs:\n'
		tail -n 15 "$work"/site/log/*.log 2>/dev/null || true
	fi
	"$reservoir" dev down --dir "$work/site" >&2 || code=1
	rm -rf "$work"
	exit $code
}
trap clean_up EXIT
trap 'exit 130' INT TERM

show() { printf '\n$ %s\n' "${*/#$reservoir/reservoir}"; "$@"; }

# executors that are there, and how many of them are ready.
executors() {
	"$reservoir" vee list | awk '$2 ~ /^executor-/ {n++; if ($5 == "yes") r++} END {printf "%d of %d", r, n}'
}

# value NAME of the orchestration's report.
value() { awk -F': ' -v name="$1" '$1 == name {print $2}' <<<"$report"; }

# fetch the report; a request that meets a busy guest may fail.
fetch() { report=$(curl -fsS --max-time 20 "$url" 2>/dev/null) || true; }

# follow the search until it is done, then until the executors are gone that it needed.
follow() {
	local waits last= now
	printf '%6s  %-8s %-8s %-22s %-8s %s\n' second search batch 'jobs ended' waiting 'executors ready'
	while [ $SECONDS -lt $limit ]; do
		fetch
		waits=$("$reservoir" service rules list polymorph-search 2>/dev/null | awk '$1 == "queueSize" {print $2; exit}')
		now=$(printf '%-8s %-8s %-22s %-8s %s' "$(value search)" "$(value batch)" "$(value jobs)" "${waits:--}" "$(executors)")
		[ "$now" = "$last" ] || printf '%6s  %s\n' "$((SECONDS - began))" "$now"
		last=$now
		if [ "$(value search)" = done ] && [ "$(executors)" = "1 of 1" ]; then return; fi
		sleep 5
	done
	echo "the search has not ended in time" >&2
	return 1
}

show "$reservoir" dev up --detach --hosts 3 --prefix "${PREFIX:-pm}" --subnet "${SUBNET:-119}" --dir "$work/site"
show "$reservoir" image push .cache/images/debian-slurm
show "$reservoir" service deploy examples/polymorph-search/polymorph-search.yaml --wait --timeout 20m
show "$reservoir" service rules list polymorph-search
url=$("$reservoir" service show polymorph-search -o yaml | awk '($1 == "url:" || $2 == "url:") && !n++ {print $NF}')
printf '\n$ curl -X POST %s/search\n' "$url"
curl -fsS --max-time 30 --retry 5 --retry-all-errors -X POST "$url/search"
began=$SECONDS report=
follow
printf '\n$ curl %s\n%s\n' "$url" "$report"
show "$reservoir" event list --service polymorph-search
show "$reservoir" service usage polymorph-search
