# Reservoir. `make help` says what there is.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X $(shell $(GO) list -m)/cli.version=$(VERSION)
BENCHES := $(patsubst bench/%/main.go,bench-%,$(wildcard bench/*/main.go))

# Packages whose tests need root, network namespaces or QEMU. They fail, and do not skip,
# where those are missing: `make test` runs everything, `make check` everything but these.
NEED_ROOT := cli/doctor dev hypervisor/libvirt hypervisor/qemu image/build test van

##@ See it run

.PHONY: demo
demo: packages build ## A site with three hosts, a service deployed, scaled, hurt and deleted (root)
	@scripts/images.sh appliance
	@scripts/demo.sh

.PHONY: demo-federation
demo-federation: packages build ## Power trouble at a site: its VEEs go to a partner, live, and back (root)
	@scripts/images.sh appliance
	@scripts/demo-federation.sh

.PHONY: three-tier
three-tier: packages build ## Web, application and PostgreSQL on Debian guests, three networks (root, minutes)
	@scripts/images.sh debian debian-postgresql
	@scripts/three-tier.sh

.PHONY: polymorph
polymorph: packages build ## A search on an elastic batch system, Slurm on Debian guests (root, minutes)
	@scripts/images.sh debian-slurm
	@scripts/polymorph.sh

##@ Build

.PHONY: build
build: ## build/reservoir, the one binary
	@scripts/step "build reservoir $(VERSION)" $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o build/reservoir ./cmd/reservoir

.PHONY: images
images: packages build ## The images of the tests; kept in .cache/images between runs (root)
	@scripts/images.sh

.PHONY: packages
packages: ## What Debian packages are missing, installed (root)
	@scripts/packages.sh

.PHONY: test-packages
test-packages:
	@scripts/packages.sh test

##@ Verify

.PHONY: test
test: test-packages build images ## Everything: what continuous integration runs (root)
	@scripts/step "go vet" $(GO) vet ./...
	$(GO) test -timeout 45m ./...
	@$(MAKE) --no-print-directory lint

.PHONY: check
check: ## What needs no root and no QEMU, in under two minutes
	@scripts/step "gofmt" scripts/gofmt-check
	@scripts/step "go vet" $(GO) vet ./...
	$(GO) test -timeout 2m $$($(GO) list ./... | grep -vE '^[^/]+/[^/]+/[^/]+/($(subst $() ,|,$(NEED_ROOT)))(/|$$)')

.PHONY: usecases
usecases: packages images ## The nine use cases of the VMI white paper on real guests, with their times (root)
	@scripts/usecases.sh

.PHONY: usecase
usecase: packages images ## One of them: make usecase N=2.2.6 (root)
	@scripts/usecases.sh $(or $(N),$(error say which: make usecase N=2.2.6))

.PHONY: model-check
model-check: ## Explore the ownership protocol exhaustively, large scenarios (some minutes)
	@scripts/model-check.sh

.PHONY: sim-check
sim-check: ## 1,000 seeds of random faults, the peers' ordeals, and deliberate bugs that must be found (minutes)
	$(GO) test ./sim/site -run 'Chaos|Mutants' -count 1 -timeout 20m -v -args -seeds $(or $(SEEDS),1000) | grep -vE '^=== '
	$(GO) test ./dvms -run 'Ordeal|Mutants' -count 1 -timeout 20m -v -args -seeds $(or $(SEEDS),1000) | grep -vE '^=== '

.PHONY: fuzz-placement
fuzz-placement: ## Random sites and what befalls them, for some hours (FUZZ_CHECKS=100000 of each test)
	$(GO) test ./placement/solve ./placement/reassign ./veem/rebalance -run 'Agrees|Events|Relieve$$|Holds|Delay|Exact|IsOne|Improve$$|Counts|Applied|Settles' -rapid.checks=$(or $(FUZZ_CHECKS),100000) -timeout 0 -v

.PHONY: lint
lint: .cache/bin/golangci-lint ## golangci-lint with .golangci.yml (builds it the first time: some minutes)
	@scripts/step "golangci-lint" .cache/bin/golangci-lint run ./...

.cache/bin/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	@scripts/step "build golangci-lint" $(GO) -C tools/lint build -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: fmt
fmt: ## gofmt every file
	gofmt -w $$(git ls-files '*.go')

##@ Measure

.PHONY: bench $(BENCHES)
bench: $(BENCHES) ## All benchmarks, and docs/benchmarks.md anew
	@scripts/bench-report.sh $(BENCHES)

$(BENCHES): bench-%: packages build
	@scripts/images.sh appliance
	@mkdir -p build/bench
	$(GO) run ./bench/$* | tee build/bench/$*.txt

bench-placement: placement-packages

.PHONY: placement-packages
placement-packages:
	@scripts/packages.sh placement

##@ Tidy up

.PHONY: clean
clean: ## Delete what was built; images and tools in .cache stay
	rm -rf build

.PHONY: distclean
distclean: clean ## Delete the caches too
	rm -rf .cache

.PHONY: help
help: ## This
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@printf '  make %-12s %s\n' bench-NAME "one benchmark: $(patsubst bench-%,%,$(BENCHES))"
