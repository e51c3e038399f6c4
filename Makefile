# Tandem. `make` tells what there is; each check has its repair (verify / fix).

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GO       ?= go
BIN      := $(CURDIR)/bin
# Tools pinned in deploy/tools/go.mod and deploy/tools/lint/go.mod are built from their Go modules, once: buf takes about two
# minutes on two cores and golangci-lint about four. They stay here until one of those files changes; `make clean` keeps them.
TOOLS    := $(CURDIR)/.cache/tools
PROTOS   := $(shell find . -name '*.proto' -not -path './.cache/*' 2>/dev/null)
# Every Go file of ours that a person wrote.
GOFILES   = $(shell git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$')
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -X main.version=$(VERSION)

KVDB     ?= raft
ROUNDS   ?= 4
CYCLES   ?= 200
FAILOVER ?= 50
FUZZTIME ?= 20s
PKG      ?= ./...

.PHONY: help
help: ## this list
	@echo "Tandem: metro-replicated block storage. Targets:"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

##@ build

.PHONY: build
build: ## bin/tandemd, bin/tandemctl and bin/etcd (the etcd server, from its Go module, for tests and the demo)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/tandemd ./cmd/tandemctl
	$(GO) -C deploy/etcd build -trimpath -o $(BIN)/etcd .

.PHONY: deps
deps: ## install the Debian packages that tests, demo and benchmark drive (needs root; says what is missing otherwise)
	@deploy/hack/deps.sh

.PHONY: clean
clean: ## remove what was built, except the pinned tools
	rm -rf $(BIN)
	$(GO) clean -testcache

##@ try it

.PHONY: demo
demo: build ## two sites, a witness, PostgreSQL, a killed site, nothing lost (KVDB=etcd: on a real etcd; DEMOFLAGS='-app sqlite', -failovers=20 or -moves=20: another database, again and again)
	@deploy/hack/deps.sh --optional demo
	@$(GO) build -trimpath -o $(BIN)/demo ./deploy/demo
	@$(BIN)/demo -bin $(BIN) -kvdb $(KVDB) $(DEMOFLAGS)

.PHONY: bench
bench: build ## latency and throughput beside the floor of this machine, into bench/results/
	@deploy/hack/deps.sh bench
	@$(GO) build -trimpath -o $(BIN)/ ./bench/harness ./deploy/demo
	@$(BIN)/harness -bin $(BIN) -jobs bench/fio -out bench/results $(BENCHFLAGS)

.PHONY: bench-pauses
bench-pauses: build ## how long a consumer waits in evictions, switchovers, failovers and cuts of a group, into bench/results/ (three quarters of an hour)
	@deploy/hack/deps.sh bench
	@$(GO) build -trimpath -o $(BIN)/ ./bench/pauses
	@$(BIN)/pauses -bin $(BIN) -out bench/results $(BENCHFLAGS)

.PHONY: bench-idle
bench-idle: build ## memory and processor time of daemons with 0, 100, 200 and 1,000 attached volumes that nobody uses, into bench/results/ (root; a quarter of an hour; BENCHFLAGS='-frontend nbd')
	@$(GO) build -trimpath -o $(BIN)/ ./bench/idle
	@$(BIN)/idle -bin $(BIN) -out bench/results $(BENCHFLAGS)

##@ test

# Nothing is taken from the cache: it does not know what the end-to-end tests build.
.PHONY: test
test: deps build ## everything but fuzzing and benchmarks (installs what it needs; some minutes)
	$(GO) test -count=1 -timeout 30m $(PKG)

.PHONY: test-race
test-race: deps build ## the same under the race detector
	$(GO) test -count=1 -race -timeout 40m $(PKG)

.PHONY: sim
sim: ## the replication core in a simulated world, 20,000 seeds, and two sites with their arbiters, 300 (SEED=s or METRO=s one seed, with all that happens; SEEDS=n so many)
	@METRO="$(METRO)" deploy/hack/sim.sh "$(SEED)" "$(SEEDS)" "$(KEEP)"

# Nothing is asked of the machine but root, for network devices: qemu does without virtualisation.
.PHONY: test-vm
test-vm: ## cut the power of two sites on a real kernel, in qemu (ROUNDS=4 SEED=another each time KERNEL=trixie; a quarter of an hour)
	@deploy/hack/deps.sh vm
	@[[ -w /dev/net/tun ]] || { echo "missing: /dev/net/tun, writable (root), for the network of the machines"; exit 1; }
	@kernel=$$(deploy/hack/kernel.sh $(CURDIR)/.cache/vm $(KERNEL)); \
	$(GO) test -count=1 -tags vm -v -timeout 4h -run 'TestPower|TestDisk$$|TestMapper|TestClocks' ./deploy/vm -kernel "$$kernel" -rounds $(ROUNDS) $(if $(SEED),-seed $(SEED)) $(VMFLAGS)

# The programs are built from Go modules, the rest is Debian's; no registry.
.PHONY: test-e2e
test-e2e: ## real Kubernetes clusters on this machine, with Kubernetes' own specs (root; two hours, ten minutes more the first time, for the programs; KUBEFLAGS='-run TestTandem' three minutes)
	@deploy/hack/deps.sh kube
	$(GO) test -count=1 -tags kube -vet=off -v -timeout 4h ./deploy/kube $(KUBEFLAGS)

# helm is built from its Go module, with the programs of test-e2e.
.PHONY: manifests
manifests: ## deploy/manifests/tandem.yaml, rendered from the chart (deploy/helm/tandem) with deploy/manifests/values.yaml
	$(GO) test -count=1 -tags kube -vet=off -timeout 1h -run TestManifests ./deploy/kube -update

.PHONY: test-nemesis
test-nemesis: KVDB = etcd
test-nemesis: deps ## break a living cluster again and again and check all answers (CYCLES=200 SEED=another each time KVDB=etcd|raft FAILOVER=50 per cent by arbiters; a quarter of an hour)
	$(GO) test -count=1 -v -timeout 24h -run TestNemesis ./deploy/nemesis -cycles $(CYCLES) -kvdb $(KVDB) -failover $(FAILOVER) $(if $(SEED),-seed $(SEED)) $(NEMESISFLAGS)

.PHONY: test-storm
test-storm: VOLUMES = 200
test-storm: deps ## create, attach, snapshot and delete many volumes at once while daemons are killed (VOLUMES=200 SEED=another each time; root; a quarter of an hour)
	TANDEM_SEED=$(or $(SEED),random) $(GO) test -count=1 -v -timeout 1h -run 'TestStorm$$' ./deploy/e2e -volumes $(VOLUMES) $(STORMFLAGS)

.PHONY: mutants
mutants: ## break one rule of the replication core at a time and see what catches it (a quarter of an hour; MUTANT=regexp for some)
	$(GO) test -tags mutants -run TestMutants -v -timeout 4h ./replication/core $(if $(MUTANT),-mutant.only='$(MUTANT)')

.PHONY: model
model: ## check the Promela model of the core with spin, and that each of its mutations fails (MODEL='name ...' for some)
	@deploy/hack/deps.sh model
	@deploy/hack/model.sh $(MODEL)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (default 20s)
	@deploy/hack/fuzz.sh $(FUZZTIME)

##@ check and repair

.PHONY: lint
lint: $(TOOLS)/golangci-lint $(TOOLS)/buf ## golangci-lint and buf lint
	$(TOOLS)/golangci-lint run ./...
	$(TOOLS)/buf lint

.PHONY: verify
verify: verify-format verify-mod verify-generate ## formatting, go vet, module files, generated files
	$(GO) vet ./...

.PHONY: verify-format
verify-format:
	@bad=$$(gofmt -l $(GOFILES)); [[ -z $$bad ]] || { echo "gofmt differs (make fix): $$bad"; exit 1; }

.PHONY: verify-mod
verify-mod:
	@$(GO) mod tidy -diff >/dev/null || { $(GO) mod tidy -diff | head -40; echo "go.mod or go.sum differs from what go mod tidy writes (make fix)"; exit 1; }
	@$(GO) mod verify

.PHONY: verify-generate
verify-generate: $(TOOLS)/buf ## generated code is what the generators write now (make test compares sample and references)
	@deploy/hack/verify-generate.sh $(MAKE)

.PHONY: generate generate-protos
generate: generate-protos ## Go from protos; configuration sample and references
	$(GO) test ./cmd/internal/config -run 'Sample|Reference' -update
	$(GO) test ./cmd/tandemctl -run 'TestReference$$' -update

generate-protos: $(TOOLS)/buf
	PATH="$(TOOLS):$$PATH" $(TOOLS)/buf generate

.PHONY: fix
fix: $(TOOLS)/golangci-lint generate ## repair what verify and lint complain about, as far as a machine can
	gofmt -w $(GOFILES)
	$(GO) mod tidy
	$(TOOLS)/golangci-lint run --fix ./... || true

$(TOOLS)/buf: deploy/tools/go.mod deploy/tools/go.sum
	@mkdir -p $(TOOLS)
	@echo "building buf and the protobuf generators (about two minutes, once)"
	@$(GO) -C deploy/tools build -o $(TOOLS)/ tool
	@touch $@

$(TOOLS)/golangci-lint: deploy/tools/lint/go.mod deploy/tools/lint/go.sum
	@mkdir -p $(TOOLS)
	@echo "building golangci-lint (about four minutes, once)"
	@$(GO) -C deploy/tools/lint build -o $(TOOLS)/ tool
	@touch $@
