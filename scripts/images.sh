#!/bin/bash
# images.sh [NAME…]: build images (those of the tests) into .cache/images. What is up to date is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- appliance debian debian-postgresql
for name; do
	recipe=("$name")
	[ "$name" != debian-postgresql ] || recipe=(debian --name "$name" --with postgresql,python3-psycopg2)
	[ "$name" != debian-slurm ] || recipe=(debian --name "$name" --with slurmctld,slurmd,slurm-client,munge)
	scripts/step "image $name" build/reservoir image build "${recipe[@]}" --out .cache/images --cache .cache/build
done
