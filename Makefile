# `make` alone lists the targets. `sudo make demo` and `sudo make test` need nothing but Debian 12, make and Go:
# they install what is missing from Debian.

export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOFLAGS := -buildvcs=false

VERSION     ?= 0.1.0-dev
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 20s
BENCHFLAGS  ?=
ENDPOINT    ?=
IMAGE       ?=
CRITEST     ?=
CONFORMFLAGS ?=
KUBELETFLAGS ?=
IMAGESFLAGS ?=
PREVIOUS    ?= $(shell git describe --tags --abbrev=0 2>/dev/null)

PREFIX  ?= /usr/local
DESTDIR ?=
BIN     ?= bin
DEBARCH ?= $(shell go env GOARCH)

BINARIES := davitd davit-monitor davit
# What several goroutines or processes share, and thus what the race detector looks at.
CORE     := $(wildcard internal/pod internal/monitor internal/monitor/server internal/monitor/stdio internal/keeper internal/image internal/registry internal/network)
GOTEST   := go run ./test/gotest -skips test/skips.txt

.DEFAULT_GOAL := help
.PHONY: help build install install-files deb check lint test test-root test-crash test-race fuzz bench bench-images e2e-stores trial-kills trial-power demo conform e2e-kubelet generate deps tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/davitd, bin/davit-monitor and bin/davit: static, no cgo
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(BINARIES))

install: build install-files ## programs, systemd services and completion for bash, below DESTDIR and PREFIX (/usr/local)

install-files: # what was built
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 755 $(addprefix $(BIN)/,$(BINARIES)) $(DESTDIR)$(PREFIX)/bin/
	for unit in davitd davit-keeper; do \
		sed 's,/usr/bin/davit,$(PREFIX)/bin/davit,' packaging/$$unit.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service; \
		chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service; \
	done
	@completion=$(DESTDIR)$(PREFIX)/share/bash-completion/completions/davit; \
	$(BIN)/davit completion bash >$$completion 2>/dev/null || GOARCH= go run ./cmd/davit completion bash >$$completion # of another architecture

deb: build ## a Debian package of it, in bin (VERSION=1.2.3; GOARCH=arm64 for the other architecture)
	packaging/deb.sh '$(VERSION)' $(DEBARCH) bin

check: lint ## format, vet, staticcheck, the rules of the layout, and all tests that need no root
	DAVIT_NOROOT=1 go test ./...

lint:
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...

test: tools lint build ## everything that is tested (as root): installs what it needs, checks, then all tests
	DAVIT_BIN=$(CURDIR)/bin $(GOTEST) \
		-- -timeout 8m -count 1 . ./cmd/... ./criclient/... ./internal/... \
		-- -timeout 10m -count 1 -p 1 ./test/... \
		-- -timeout 8m -count 1 -race -short $(addprefix ./,$(CORE))

test-root: build ## the tests that need root, scripts included, without the long ones
	DAVIT_BIN=$(CURDIR)/bin $(GOTEST) -- -timeout 10m -p 1 -short ./internal/... ./test/...

test-crash: build ## 100 pod life cycles under kill -9 of davitd and of the monitor, 200 pods, and 20,000 exited containers
	DAVIT_BIN=$(CURDIR)/bin DAVIT_CRASH_PODS=100 DAVIT_SCALE_PODS=200 DAVIT_SCALE_EXITED=20000 $(GOTEST) -- -timeout 20m -p 1 -v ./test/crash ./test/scale

test-race: ## the core's tests under the race detector (needs gcc)
	$(GOTEST) -- -timeout 10m -p 1 -race $(addprefix ./,$(CORE))

fuzz: ## each fuzz target for FUZZTIME (20s)
	@grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | while IFS=: read -r file f; do \
		echo "== $$(dirname $$file) $${f#func }"; \
		go test -run '^$$' -fuzz "^$${f#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s "$$(dirname $$file)" || exit 1; \
	done

bench: build ## start, exec and stop of pods, memory, log throughput: a table, and bin/bench.json (ENDPOINT= for another runtime)
	go build -o bin/davit-bench ./test/bench
	DAVIT_BIN=$(CURDIR)/bin bin/davit-bench -json bin/bench.json $(if $(ENDPOINT),-endpoint $(ENDPOINT)) $(BENCHFLAGS)

bench-images: build ## (as root) pulls of a large image beside containerd 2.4, built from source, and cold starts: tables; fails if a limit is exceeded
	@test/install.sh images
	test/images/build.sh bin/rival
	go build -o bin/davit-bench-images ./test/images
	DAVIT_BIN=$(CURDIR)/bin bin/davit-bench-images -containerd bin/rival/containerd -json bin/bench-images.json $(IMAGESFLAGS)

e2e-stores: ## (as root) images imported from the stores of containerd and containers/storage, both built from source
	@test/install.sh images
	test/stores/build.sh bin/rival
	DAVIT_STORES=$(CURDIR)/bin/rival $(GOTEST) -- -timeout 10m -count 1 -v ./test/stores

trial-kills: tools build ## (as root) davitd killed 200 times in the middle of pulls
	DAVIT_BIN=$(CURDIR)/bin DAVIT_TRIAL_KILLS=$${DAVIT_TRIAL_KILLS:-200} $(GOTEST) -- -timeout 60m -count 1 -v -run TestKillWhilePulling ./test/trial

trial-power: build ## (as root) 50 power cuts while davitd pulls in a virtual machine (amd64; DAVIT_TRIAL_ACCEL=kvm where that works)
	@test/install.sh power
	test/trial/kernel.sh bin/kernel
	DAVIT_BIN=$(CURDIR)/bin DAVIT_TRIAL_KERNEL=$(CURDIR)/bin/kernel $(GOTEST) -- -timeout 120m -count 1 -v -run TestPowerCuts ./test/trial

demo: ## (as root) a pod from its manifest to its end, on a registry and a davitd of its own
	@test/install.sh demo
	@$(MAKE) --no-print-directory build
	@go build -o bin/davit-demo ./test/demo
	@DAVIT_BIN=$(CURDIR)/bin bin/davit-demo

conform: ## a runtime held to the contract: ENDPOINT=unix:///…, any runtime's; or davit to the CRI's own suite: CRITEST=/path/of/critest
	@test -n "$(ENDPOINT)$(CRITEST)" || { echo "set ENDPOINT to a runtime's CRI socket (and IMAGE to one with busybox, if it cannot pull from loopback without TLS), or CRITEST to a critest program (kubernetes-sigs/cri-tools)"; exit 2; }
ifneq ($(ENDPOINT),)
	CGO_ENABLED=0 go test -c -o bin/davit-contract ./test/contract
	bin/davit-contract -test.timeout 20m -endpoint $(ENDPOINT) $(if $(IMAGE),-image $(IMAGE)) $(CONFORMFLAGS)
endif
ifneq ($(CRITEST),)
	@$(MAKE) --no-print-directory build
	go build -o bin/davit-conform ./test/conform
	DAVIT_BIN=$(CURDIR)/bin bin/davit-conform -critest $(CRITEST)
endif

e2e-kubelet: build ## (as root) real kubelets, 1.37 and 1.22, built from source: pods of all kinds, kill -9, upgrades from PREVIOUS, times (ENDPOINT= for another runtime)
	@test/install.sh kubelet
	test/kubelet/build.sh bin/kubelet $(PREVIOUS)
	DAVIT_BIN=$(CURDIR)/bin $(GOTEST) -- -timeout 60m -count 1 ./test/kubelet -args -kubelets $(CURDIR)/bin/kubelet \
		-previous $(CURDIR)/bin/kubelet/previous $(if $(ENDPOINT),-endpoint $(ENDPOINT)) $(KUBELETFLAGS)

generate: ## Go code of davit's own gRPC services, from their .proto (needs Go modules only)
	go run -C api/generate . .. image/v1/image.proto
	go run -C api/generate . .. call/v1/call.proto

deps: ## write down what the programs depend on, in docs/deps; a change there is a decision
	@mkdir -p docs/deps
	@for b in $(BINARIES); do \
		go list -deps -f '{{with .Module}}{{.Path}}{{end}}' ./cmd/$$b | LC_ALL=C sort -u >docs/deps/$$b.txt; \
	done; wc -l docs/deps/*.txt

tools: # what the tests need from Debian
	@test/install.sh test

clean: ## remove what was built
	rm -rf bin
