#!/bin/bash
# bench-report.sh: docs/benchmarks.md from what the benchmarks wrote into build/bench.
set -euo pipefail
cd "$(dirname "$0")/.."
{
	printf '# Benchmarks\n\nWritten by `make bench` on %s, %s CPUs, %s of memory, Go %s.\n' "$(date -u +%F)" "$(nproc)" \
		"$(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo)" "$(go env GOVERSION | sed s/^go//)"
	printf 'Each runs ours and what it is compared with in the same run.\n\n| figure | value | target |\n|---|---|---|\n'
	awk '$1 == "figure" {printf "| %s | %s %s | %s %s |\n", $2, $3, $4, $6, $7}' build/bench/*.txt
	for f in build/bench/*.txt; do
		printf '\n## %s\n\n```\n' "$(basename "$f" .txt)"
		grep -v '^figure ' "$f"
		printf '```\n'
	done
} > docs/benchmarks.md
