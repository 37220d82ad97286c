#!/bin/bash
# three-tier.sh: a site with three hosts on this machine, and on it examples/three-tier: four
# Debian guests, a database that only the application reaches. What it makes is gone
# afterwards, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."

reservoir=build/reservoir
work=$(mktemp -d "${TMPDIR:-/tmp}/reservoir-three-tier.XXXXXX")
export RESERVOIR_CONFIG=$work/contexts.yaml RESERVOIR_CONTEXT=dev-alpha

clean_up() {
	local code=$?
	trap - EXIT INT TERM
	"$reservoir" dev down --dir "$work/site" >&2 || code=1
	rm -rf "$work"
	exit $code
}
trap clean_up EXIT
trap 'exit 130' INT TERM

show() { printf '\n$ %s\n' "${*/#$reservoir/reservoir}"; "$@"; }

show "$reservoir" dev up --detach --hosts 3 --dir "$work/site"
for image in debian debian-postgresql; do show "$reservoir" image push ".cache/images/$image"; done
show "$reservoir" service deploy examples/three-tier/three-tier.yaml --wait --timeout 15m
show "$reservoir" service access three-tier
url=$("$reservoir" service show three-tier -o yaml | awk '($1 == "url:" || $2 == "url:") && !n++ {print $NF}')
for _ in 1 2 3 4; do show curl -fsS --max-time 20 "$url"; done
show "$reservoir" van list
show "$reservoir" van trace app-1 db-1 --port 5432
show "$reservoir" van trace web-1 db-1 --port 5432
