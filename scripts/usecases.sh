#!/bin/bash
# usecases.sh [SECTION]: the nine use cases of the VMI white paper on real guests, or one of
# them alone (2.2.6), and a table with their times. What failed is shown in full.
set -euo pipefail
cd "$(dirname "$0")/.."
only=${1:-}
log=$(mktemp); trap 'rm -f "$log"' EXIT
run='^TestUseCases$'
[ -z "$only" ] || run="$run/^${only//./\\.} "
code=0
go test -count=1 -timeout 20m -v -run "$run" ./test/e2e >"$log" 2>&1 || code=$?
[ $code -eq 0 ] || cat "$log"
awk -v code=$code '
	/ --- (PASS|FAIL): TestUseCases\// {
		split($3, path, "/"); name = path[2]; gsub("_", " ", name); gsub(/[()]/, "", $4)
		n++; if ($2 == "PASS:") ok++
		printf "  %-52s %8s  %s\n", name, $4, $2 == "PASS:" ? "ok" : "FAILED"
	}
	END { printf "  %d of %d use cases\n", ok, n; exit code || n == 0 }' "$log"
