#!/bin/sh
# model-check.sh: explore the large scenarios of the ownership protocol, print the states.
# A counterexample is printed as a shortest trace, and makes it fail.
set -eu
cd "$(dirname "$0")/.."
${GO:-go} test ./ownership/ -run 'TestExhaustive|TestMutants' -large -v -timeout 60m |
	awk '/ states |states$|caught|counterexample/ {sub(/^ *[a-z_]+\.go:[0-9]+: /, ""); print; fflush(); next}
	     /--- FAIL|^FAIL|runs twice|nobody runs|t=/ {print; bad = 1}
	     END {exit bad}'
