# The menu. `make help` prints it; every recipe says what it needs and installs what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PORT ?= 8080
KILLS ?= 20
STOPS ?= 1000
SEED ?= 1
SEEDS ?= 2
export CARGO_TERM_COLOR ?= never

.PHONY: help setup build demo test check unit sdk browser scenarios cluster stop-race bench sim proto lint

help: ## Show this menu
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## Install what is missing (compiler, libclang, npm packages, Chromium)
	@tools/setup build

build: setup ## Build the binary (debug)
	@tools/say-build
	@tools/cargo build -p everwire

demo: setup ## Build and run three nodes, two edges and an agent; prints one address (PORT=8080)
	@tools/setup sdk
	@tools/say-build
	@tools/cargo build -p everwire
	@PORT=$(PORT) EVERWIRE_BIN="$$(tools/target)/debug/everwire" exec node demo/supervisor.mjs

test: setup ## Run all tests
	@tools/setup sdk browser lint deploy cluster
	@tools/say-build
	@tools/test

check: setup ## Format, lints and house rules
	@tools/cargo fmt --all --check
	@tools/cargo clippy --workspace --all-targets --all-features -- -D warnings
	@RUSTDOCFLAGS="-D warnings" tools/cargo doc --workspace --all-features --no-deps --quiet
	@tools/cargo test --workspace --all-features --test floors --test sources

scenarios: setup ## Run the scenario files; the last line counts them
	@tools/say-build
	@tools/scenarios

cluster: setup ## The cluster tests alone, all of them, bounds taken at their word (KILLS=20)
	@tools/setup cluster
	@tools/cargo build --workspace --all-features
	@EVERWIRE_KILLS=$(KILLS) tools/cargo test --workspace --all-features --test cluster -- --nocapture

stop-race: setup ## Stops at random instants while leaders change and one surface is slow (STOPS=1000)
	@tools/setup cluster
	@tools/cargo build --workspace --all-features
	@EVERWIRE_STOPS=$(STOPS) tools/cargo test --workspace --all-features --test cluster stop_race -- --nocapture

bench: setup ## How fast it acks and delivers, release build (BENCH='--json --hold --seconds 10')
	@tools/say-build release
	@tools/cargo build --release -p everwire -p everwire-bench
	@"$$(tools/target)/release/everwire-bench" $(BENCH)

sim: setup ## The simulation: seeds SEED to SEED + SEEDS - 1, each twice (SEED=1 SEEDS=2)
	@EVERWIRE_SEED=$(SEED) EVERWIRE_SEEDS=$(SEEDS) tools/cargo test --workspace --all-features --test simulation -- --nocapture

proto: setup ## Write the generated code anew after a change in proto/
	@EVERWIRE_REGENERATE=1 tools/cargo test -p everwire-proto --test generated
