# Every verb does its own set-up first and can be repeated.
SHELL := /bin/bash
VENV := .venv/bin

.PHONY: help setup demo test lint bpf proto bench clean

help:
	@echo "make demo    a two-node lab with an application, Services, NetworkPolicies and live flows"
	@echo "make test    lint, types, import contracts and every test that can run here"
	@echo "make bench   latency, memory and start-up figures on this machine"
	@echo "make lint    ruff, mypy --strict, import contracts"
	@echo "make bpf     compile the eBPF objects into the cache"
	@echo "make proto   regenerate the gRPC code from nodenet/rpc/proto"
	@echo "make clean   remove everything that the other verbs made"

setup:
	@.ci/setup

demo: setup
	@$(VENV)/python examples/demo.py

lint: setup
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --check --quiet .
	@$(VENV)/mypy
	@$(VENV)/lint-imports --no-cache | tail -n 6

test: lint
	@$(VENV)/pytest

bpf: setup
	@$(VENV)/nodenet bpf build

proto: setup
	@$(VENV)/python nodenet/rpc/generate.py

bench: setup
	@$(VENV)/nodenet bench

clean:
	@if [ -x $(VENV)/nodenet ]; then $(VENV)/nodenet lab down --all; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
