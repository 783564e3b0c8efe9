# Every verb does its own set-up first and can be repeated.
SHELL := /bin/bash
VENV := .venv/bin

.PHONY: help setup setup-full demo test lint bpf metrics-page proto bench fuzz fuzz-mutants differential switch tiers soak upgrade test-kernels clean

help:
	@echo "make demo    a two-node lab with an application, Services, NetworkPolicies and live flows"
	@echo "make test    lint, types, import contracts and every test that can run here"
	@echo "make bench   eBPF beside iptables and nftables on this machine; see perf/README.md"
	@echo "make test-kernels   load, attach and check the datapath on Linux 5.10 to the newest, in virtual machines"
	@echo "make fuzz    a million frames through the packet parser, beside what a real kernel delivers of them (FRAMES, SECONDS_AT_MOST)"
	@echo "make fuzz-mutants   take each fix of the datapath back and let the fuzzer find it"
	@echo "make differential   a thousand calls to Services with any fields, under kube-proxy's rules and under eBPF: the same answers (PROBES, SEED)"
	@echo "make switch  10,000 changes of policy under a million packets, with 50 killed agents: no packet meets a mixture"
	@echo "make tiers   CASES (300) generated sets of policies of all three tiers: engine, a second reading and real traffic agree"
	@echo "make soak    a lab of two nodes in trouble for an hour (MINUTES): nothing through, nothing lost, nothing grows"
	@echo "make upgrade FROM=COMMIT   replace a lab's agents by this version and back under load: nothing through, nothing lost"
	@echo "make image   the container images slim and full as OCI archives in dist/, without a daemon (ARCHES, IMAGE, TARGETS)"
	@echo "make manifests   the manifests of every overlay, rendered into dist/manifests/"
	@echo "make test-image   the images, and the tests in which containerd runs them on a node without Python"
	@echo "make lint    ruff, mypy --strict, import contracts"
	@echo "make bpf     compile the eBPF objects into the cache"
	@echo "make proto   regenerate the gRPC code from nodenet/rpc/proto"
	@echo "make clean   remove what the other verbs made: every lab of this machine, .venv, caches; name the packages that stay"

setup:
	@.ci/setup

setup-full:
	@.ci/setup full

setup-image:
	@.ci/setup image

# The exit code is the verb's own, and what stays is said whatever that is.
demo:
	@.ci/setup lab
	@$(VENV)/python examples/demo.py; code=$$?; echo; .ci/left; exit $$code

lint: setup
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --check --quiet .
	@$(VENV)/mypy
	@$(VENV)/lint-imports --no-cache | tail -n 6

test: setup-full lint
	@$(VENV)/pytest; code=$$?; .ci/left; exit $$code

test-kernels: setup-full
	@$(VENV)/python -m perf.kernels

bpf:
	@.ci/setup lab
	@$(VENV)/nodenet bpf build

metrics-page: setup
	@$(VENV)/python -m nodenet.metrics.page

proto: setup
	@$(VENV)/python nodenet/rpc/generate.py

bench: setup-full
	@$(VENV)/nodenet bench

image: setup-image
	@daemonset/build

manifests: setup
	@mkdir -p dist/manifests
	@for overlay in daemonset/overlays/*; do \
		$(VENV)/kubectl kustomize $$overlay >dist/manifests/$${overlay##*/}.yaml && \
		echo "dist/manifests/$${overlay##*/}.yaml" || exit; \
	done

test-image: setup-full image
	@tests/image/make-node-root
	@case "$(ARCHES)" in *arm64*) tests/image/make-arm64-kernel ;; esac
	@NODENET_TEST_IMAGE=1 $(VENV)/pytest tests/image; code=$$?; .ci/left; exit $$code

FRAMES ?= 1000000
SECONDS_AT_MOST ?= 900

fuzz: setup
	@$(VENV)/python -m perf.fuzz --frames $(FRAMES) --seconds $(SECONDS_AT_MOST)

fuzz-mutants: setup
	@$(VENV)/python -m perf.fuzz --mutant all --seconds 120

PROBES ?= 1000
SEED ?= 1

differential: setup-full
	@NODENET_DIFFERENTIAL=$(PROBES) NODENET_SEED=$(SEED) $(VENV)/pytest -q -s tests/differential

switch: setup
	@$(VENV)/python -m perf.switch

CASES ?= 300

MINUTES ?= 60

tiers: setup-full
	@NODENET_TIERS=$(CASES) $(VENV)/pytest tests/e2e/test_tiers.py

soak: setup
	@$(VENV)/python -m perf.soak --minutes $(MINUTES)

upgrade: setup
	@$(VENV)/python -m perf.upgrade $(or $(FROM),$(error FROM: expected a commit or a checkout of the older version))

clean:
	@.ci/left packages
	@if [ -x $(VENV)/nodenet ]; then $(VENV)/nodenet lab down --all; fi
	@rm -rf /var/cache/nodenet
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
