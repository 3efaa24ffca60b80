# Everything there is to do with this repository. `make` alone says what.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-stop test check fix soak bench fuzz

help: ## what there is to do
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## install what is missing on a Debian machine (PostgreSQL, a C compiler, cargo-nextest), and say what
	@scripts/setup.sh

build: setup ## build the program: target/release/replicator
	cargo build --release --workspace --locked

demo: build ## three regions on this machine: a row across, a switchover, a disaster; left running
	@scripts/demo.sh

demo-stop: ## stop what `make demo` left running
	target/release/replicator down

test: build ## every test: unit, property and end-to-end
	@scripts/test.sh

check: setup ## what a change must pass: format, lints, tests; changes nothing
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings
	$(MAKE) test

fix: ## format, and mend what clippy can
	cargo fmt --all
	cargo clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged

soak: build ## the simulation of the volume over SEEDS seeds (a million by default)
	target/release/replicator-sim volume 0 $(or $(SEEDS),1000000)

bench: build ## commit-to-visible lag, throughput and WAN bytes, beside stock PostgreSQL in the same run
	target/release/replicator-bench regions
	target/release/replicator-bench commit
	target/release/replicator-bench growth

fuzz: ## fuzz every decoder for a minute each (needs cargo-fuzz: cargo install cargo-fuzz)
	@scripts/fuzz.sh
