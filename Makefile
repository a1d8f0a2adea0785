# The two commands of the README are `make demo` and `make test`. `make help` lists the rest.
SHELL        := /bin/bash
VERSION      := $(shell cat VERSION)
ENVOY        := 1.40.0
GO           ?= go
export CGO_ENABLED ?= 0
# Tests build as the programs do, so that both share one build cache, in any checkout.
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS) -trimpath)
GOFLAGS_BUILD := -trimpath -buildvcs=false
LDFLAGS      := -s -w -X main.version=$(VERSION)
CACHE        ?= $(HOME)/.cache/carrick
RUN_ID       ?= demo
LAB          := bin/lab --run-id $(RUN_ID)
# Without Kubernetes and CoreDNS, which have no tests here and take long to compile.
LAB_TESTS    = $$($(GO) list ./... | grep -vE '/(kube|coredns)$$')

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that building, the lab and the tests need (as root)
	@tools/deps.sh

.PHONY: build
build: ## Build bin/carrick, bin/carrick-proxy, bin/lab and the samples' programs
	@mkdir -p bin
	$(GO) build $(GOFLAGS_BUILD) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/carrick ./samples/app ./samples/grpc/grpcecho
	$(GO) build $(GOFLAGS_BUILD) -tags grpcnotrace -ldflags '$(LDFLAGS)' -o bin/ ./cmd/carrick-proxy
	cd lab && $(GO) build $(GOFLAGS_BUILD) -ldflags '-s -w' -o ../bin/lab .

.PHONY: lab
lab: deps build ## Build the lab's Kubernetes (cached; minutes the first time)
	bin/lab build

$(CACHE)/envoy-$(ENVOY)/envoy:
	@tools/envoy.sh $(ENVOY) $(dir $@)

.PHONY: envoy
envoy: $(CACHE)/envoy-$(ENVOY)/envoy ## Fetch the pinned genuine Envoy that tests compare with

.PHONY: image
image: build ## Write the container images to dist/images (no Docker needed)
	$(GO) run -buildvcs=false ./tools/image --version $(VERSION) --bin bin --out dist/images --made dist/images/made.json

.PHONY: image-envoy
image-envoy: build envoy ## The same, with the image that runs Envoy in the proxy's place
	$(GO) run -buildvcs=false ./tools/image --version $(VERSION) --bin bin --out dist/images --made dist/images/made.json --envoy $(CACHE)/envoy-$(ENVOY)/envoy

.PHONY: dist
dist: ## Write the release archives, their contents' lists and checksums to dist
	@tools/dist.sh $(VERSION)

.PHONY: demo
demo: lab ## Two clusters, one mesh, the curl loop; leaves it running
	@test/demo.sh $(RUN_ID)

.PHONY: demo-down
demo-down: ## Remove what make demo left running
	@test ! -x bin/lab || $(LAB) down

.PHONY: unit
unit: ## Unit and golden tests (under a minute when warm)
	$(GO) vet ./...
	$(GO) test -short ./...
	cd lab && $(GO) test -short $(LAB_TESTS)
	cd tools/helm && $(GO) test -short ./...
	cd tools/kube122 && $(GO) test ./...

.PHONY: integration
integration: lab envoy ## Tests against real API servers, Envoy, grpc-go, curl and openssl
	$(GO) vet ./...
	cd tools/kube122 && $(GO) test ./...
	cd tools/helm && CARRICK_TEST_KUBE=$$(../../bin/lab build)/bin/kube $(GO) test ./...
	cd lab && $(GO) test -short $(LAB_TESTS)
	CARRICK_TEST_KUBE=$$(bin/lab build)/bin/kube CARRICK_ENVOY=$(CACHE)/envoy-$(ENVOY)/envoy $(GO) test ./...

.PHONY: e2e
e2e: lab image-envoy ## The walkthrough, end to end in the lab
	test/e2e.sh

.PHONY: test
test: integration e2e ## Everything that CI runs

.PHONY: test-all
test-all: lab image-envoy ## The guide on other kinds of clusters (older, overlay, MetalLB...), or RUNS="dist helm"; writes docs/tested.md
	test/all.sh $(RUNS)

.PHONY: bench
bench: build envoy ## The proxy beside Envoy, nginx and haproxy: ratios in one run, three minutes (as root: installs them)
	@tools/deps.sh nginx haproxy
	$(GO) run ./test/bench --carrick bin/carrick-proxy --envoy $(CACHE)/envoy-$(ENVOY)/envoy $(BENCH)

.PHONY: bench-go
bench-go: ## Go benchmarks of the compiler, the xDS server and the proxy
	$(GO) test -run '^$$' -bench . -benchmem ./compile ./mesh ./xds ./proxy/...

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (10s)
	@tools/fuzz.sh $(or $(FUZZTIME),10s)

.PHONY: crds
crds: ## Generate the CRDs again from the modules that define them
	cd tools/crds && $(GO) run . -out ../../install/crds

.PHONY: golden
golden: ## Rewrite golden files; read the diff before you commit it
	$(GO) test ./agent ./agent/redirect ./compile ./inject ./install ./cli ./diagnose -update

.PHONY: readme
readme: ## Write the tables of kinds (READMEs) and fields (docs/fields.md) again from package schema
	$(GO) test -count=1 -run 'TestWhatWorks|TestFieldsDocument' . -update

.PHONY: lint
lint: ## golangci-lint, if it is installed, else go vet
	@if command -v golangci-lint >/dev/null; then golangci-lint run ./...; else $(GO) vet ./...; fi

.PHONY: clean
clean: ## Remove bin and dist (the caches stay)
	rm -rf bin dist
