#!/bin/sh
# model-check.sh: explore the large scenarios of the ownership protocol and print the states;
# then every mutant, and how it was caught. A counterexample is printed as a shortest trace,
# and makes it fail.
set -eu
cd "$(dirname "$0")/.."
${GO:-go} test ./ownership/ -run 'TestExhaustive|TestMutants' -large -v -timeout 60m |
	awk '/^(=== RUN|PASS)/ || /--- PASS/ {next}
	     /FAIL/ {bad = 1}
	     {sub(/^ *[a-z_]+\.go:[0-9]+: /, ""); print; fflush()}
	     END {exit bad}'
