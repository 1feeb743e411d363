# Holdfast. "make help" lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Fuzzing time for each target, that of the long tests, and the packages that
# test and lint look at.
FUZZTIME ?= 1m
LONG ?= 1h
PACKAGES ?= ./...

# The product is built without cgo: one static file for every service node.
# Lint looks at the same build, so that nothing is compiled for it alone.
STATIC := CGO_ENABLED=0

# Tests that start the program start this one: built once, without the race
# detector. Without the variable they build their own.
export HOLDFAST_BINARY := $(CURDIR)/build/holdfast

# Test packages, print each line as it comes, and name those that failed once
# more at the end. A shell's read waits for no more than a line, where mawk waits
# for its buffer to be full.
gotest = echo "== go test -race $(if $(filter ./chaos%,$(1)),./chaos/...,$(PACKAGES) but ./chaos/...)" && \
	go test -race -vet=off -timeout 20m $(1) | { failed=; \
	while IFS= read -r line || [ "$$line" ]; do printf '%s\n' "$$line"; case $$line in FAIL[[:space:]]*) read -r _ package _ <<<"$$line"; failed+=" $$package";; esac; done; \
	if [ "$$failed" ]; then echo "== failed:$$failed"; fi; }

.PHONY: build demo run test test-quick lint deps fuzz chaos chaos-long locks-long ntp-long resolver-long scale bench-apt bench-dns bench-logs bench-ntp bench-vrrp clean help bench-lb chaos-store-long starve-long upgrade-long large-long power-long failovers-long bench-freelist bench-raft

build: ## build build/holdfast, one static binary
	@$(STATIC) go build -trimpath -o build/holdfast ./cmd/holdfast

demo: deps build ## the main job, told as a story: four service nodes elect, answer, lose one, go on
	@$(STATIC) go build -trimpath -o build/holdfast-demo ./lab/demo
	@build/holdfast-demo

run: deps build ## the demo's cluster, kept up to play with
	@$(STATIC) go build -trimpath -o build/holdfast-demo ./lab/demo
	@build/holdfast-demo -keep

test: deps lint build ## everything that CI runs: lint, then all tests with the race detector, on lab hosts too
	@# vet has looked at everything already; internal/archtest has the import directions.
	@# The destructive tests measure times: they run when nothing else does. The
	@# race detector has memory of its own: without it, what a service takes.
	@# They start the built program, of which go's cache of results knows nothing.
	@# The clock's simulator runs one seed under it, and all without.
	@# What fails first keeps the rest from nothing: one run tells all.
	@status=0; \
	$(call gotest,$$(go list $(PACKAGES) | grep -Ev '/chaos(/|$$)')) || status=1; \
	$(call gotest,-count 1 -p 1 ./chaos/...) || status=1; \
	go test -vet=off -run 'TakesLittleMemory|CostsNoMemory|WithoutMakingCoders' ./dns ./internal/state ./logrelay || status=1; \
	go test -vet=off ./ntpproxy/discipline || status=1; \
	exit $$status
	@echo "== all tests passed"

chaos: deps build ## the destructive tests alone, with what they measured
	@go test -v -vet=off -count 1 -p 1 -timeout 20m ./chaos/...

chaos-long: deps build ## virtual routers beside keepalived under random faults for LONG (default 1h)
	@VRRP_CHAOS=$(LONG) go test -v -vet=off -count 1 -timeout 0 -run RandomFaults ./chaos/vrrp

chaos-store-long: deps build ## five agents under kills, pauses, partitions, full and frozen disks for half an hour (STORE_CHAOS)
	@STORE_CHAOS=$${STORE_CHAOS:-30m} go test -v -vet=off -count 1 -timeout 0 -run StoreIsLinearizable ./chaos

starve-long: deps build ## three agents, and eight busy processes on each processor, for half an hour (STARVE): no election without a stall that was recorded
	@STARVE=$${STARVE:-30m} go test -v -vet=off -count 1 -timeout 0 -run NoElectionWithoutAStall ./chaos

upgrade-long: deps build ## a rolling upgrade of mixed versions, and the change of the authority, under load
	@UPGRADE=1 go test -v -vet=off -count 1 -timeout 20m -run 'RollingUpgradeWith|AuthorityIsRotated' ./chaos

large-long: ## 100,000 keys and a gigabyte of log: how soon it starts, its memory, how long snapshots hold writes up
	@HOLDFAST_LARGE=1 go test -v -vet=off -count 1 -timeout 10m -run LargeStore ./raftstore

power-long: deps ## 30 power cuts of a virtual machine with three servers under load, in the middle of flushes: nothing acknowledged is lost
	@RAFTSTORE_CUTS=30 go test -v -vet=off -count 1 -timeout 0 -run PowerCuts ./raftstore
	@CAS_CUTS=30 go test -v -vet=off -count 1 -timeout 0 -run PowerCut ./aptproxy/cas
	@LOGS_CUTS=20 go test -v -vet=off -count 1 -timeout 0 -run PowerCut ./chaos/logs

failovers-long: ## 20 failovers between two log relays under 5,000 lines/s of 50 clients: nothing acknowledged is lost
	@LOGRELAY_FAILOVERS=20 go test -v -vet=off -count 1 -timeout 20m -run FailoversLoseNothing ./logrelay

bench-freelist: ## a write of the log after a burst of 1.6 GB, with bolt's defaults and ours
	@HOLDFAST_BURST_MB=1600 go test -vet=off -run NONE -bench AfterABurst -benchtime 1000x -timeout 20m ./raftstore

ntp-long: deps ## a virtual machine's own clock kept for 200 seconds, then no source for 67; then the same with chronyd (10 minutes)
	@HOLDFAST_NTP_VM=$${HOLDFAST_NTP_VM:-3m20s} go test -v -vet=off -count 1 -timeout 15m -run OwnClock ./chaos/ntp

locks-long: ## 1000 holders of a lock killed, stopped and cut off: no two hold it at a time (an hour or two)
	@HOLDFAST_LOCK_ROUNDS=1000 go test -v -vet=off -count 1 -timeout 0 -run TwoNeverHoldALock ./cmd/holdfast

resolver-long: deps build ## 50 processes look names up through two virtual addresses while servers are killed, 10 minutes
	@RESOLVER_CHAOS=10m go test -v -vet=off -count 1 -timeout 30m -run EitherServerOfResolvConf ./chaos

scale: ## 5000 instances and 10000 idle queries in one agent: time, memory, wakes
	@HOLDFAST_SCALE=1 go test -v -vet=off -count 1 -timeout 10m -run AThousandNodesFit ./cmd/holdfast

bench-vrrp: deps build ## pairs of keepalived and of Holdfast fail over in turns (BENCH="-rows move" selects; an hour in full)
	@$(STATIC) go build -trimpath -o build/bench-vrrp ./bench/vrrp
	@build/bench-vrrp $(BENCH)

bench-lb: deps build ## the load balancer beside keepalived in one virtual machine; writes build/bench/lb.json
	@$(STATIC) go build -trimpath -o build/bench-lb ./bench/lb
	@build/bench-lb $(BENCH)

test-quick: ## all tests that need no lab hosts, without lint and the race detector
	@LAB=off go test -vet=off -timeout 2m $(PACKAGES)

lint: deps ## gofmt, go vet, staticcheck, and govulncheck where its database can be reached
	@hack/lint $(PACKAGES)

deps: ## install the Debian packages that are missing (needs root only then), unpack the peers of tests
	@hack/deps
	@hack/peers

bench-ntp: deps ## answers per CPU-second, accuracy and memory of the NTP server, beside chronyd
	@go run ./bench/ntp

bench-apt: ## the package proxy beside apt-cacher-ng and nginx (both must be installed)
	@$(STATIC) go build -trimpath -o build/bench-apt ./bench/apt
	@build/bench-apt $(BENCH)

bench-raft: deps build ## the replicated store beside etcd: writes, reads, failover, transfer; writes build/bench/raft.json
	@$(STATIC) go build -trimpath -o build/bench-raft ./bench/raft
	@build/bench-raft $(BENCHFLAGS)

bench-logs: deps ## durable RELP lines per second into per-host files, beside rsyslogd; writes build/bench/logs.json
	@$(STATIC) go build -trimpath -o build/bench-logs ./bench/logs
	@build/bench-logs $(BENCHFLAGS)

fuzz: ## fuzz each target for FUZZTIME (default 1m)
	@hack/fuzz $(FUZZTIME)

bench-dns: build ## DNS beside BIND, Unbound, Knot, NSD and a bare echo; writes build/bench/dns.json
	@$(STATIC) go build -trimpath -o build/bench-dns ./bench/dns
	@build/bench-dns $(BENCHFLAGS)

clean: ## remove what was built
	@rm -rf build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
