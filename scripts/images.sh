#!/bin/bash
# images.sh [NAME…]: build images (both) into .cache/images. What is up to date is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- appliance debian
for name; do
	scripts/step "image $name" build/reservoir image build "$name" --out .cache/images --cache .cache/build
done
