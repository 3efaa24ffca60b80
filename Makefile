# Everything there is to do with this repository. `make` alone says what.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build image demo demo-stop test drills check fix soak bench fuzz

help: ## what there is to do
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## install what is missing on a Debian machine (PostgreSQL, a C compiler, cargo-nextest), and say what
	@scripts/setup.sh

build: setup ## build the program: target/release/replicator
	cargo build --release --workspace --locked

image: build ## the container image `replicator` (BASE=postgres:16-bookworm for another base)
	@scripts/image.sh

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

drills: build ## disasters of regions in containers, all of them; prints recovery times and points
	@scripts/drills.sh

soak: build ## both simulations over SEEDS seeds (100,000 by default), from seed FROM on
	target/release/replicator-sim volume $(or $(FROM),0) $(or $(SEEDS),100000)
	target/release/replicator-sim coordination $(or $(FROM),0) $(or $(SEEDS),100000)

bench: build ## commit-to-visible lag, throughput and WAN bytes, beside stock PostgreSQL in the same run
	target/release/replicator-bench regions
	target/release/replicator-bench commit
	target/release/replicator-bench growth
	target/release/replicator-bench drill
	target/release/replicator-bench rejoin

fuzz: ## fuzz every decoder for a minute each (needs cargo-fuzz: cargo install cargo-fuzz)
	@scripts/fuzz.sh
