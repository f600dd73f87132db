# make help says what there is. The recipes are pipelines/run with one file per model and one per scheme.

PREFIX ?= /usr/local
PROG_PREFIX ?= lrqat-
CARGO ?= cargo
CARGO_TARGET_DIR ?= target

programs := ptq-init lr-wrap shard qat-step fold eval
models := $(notdir $(wildcard pipelines/models/*))
schemes := $(notdir $(wildcard pipelines/schemes/*))
schemes += $(addsuffix s,$(filter-out %z,$(schemes)))
recipes := $(foreach model,$(models),$(addprefix $(model)-,$(schemes)))

.DEFAULT_GOAL := help
.PHONY: help build check test demo interop bench bench-peers bench-7b gpu-check aarch64-check ptx ptx-check ptx-report install $(recipes)

help:
	@echo 'make demo       a tiny model through all stages at w3pc, ending in a table; under a minute after the build'
	@echo 'make test       all tests'
	@echo 'make interop    folded models in the engines of PyPI, a table beside eval; downloads 10 GB, half an hour or more'
	@echo 'make bench      speed and memory beside PyTorch and llama.cpp, into BENCHMARKS.md; make bench-peers installs those'
	@echo 'make bench-7b   time and memory on a model of the shape of LLaMA-2-7B; 40 GB of disk'
	@echo 'make gpu-check  on a machine with a GPU: the tests of the GPU backend on it, and times; a table to paste into an issue'
	@echo 'make aarch64-check  the tools built for 64-bit ARM, and the same bytes from them (qemu)'
	@echo 'make ptx        the kernels compiled again, after a change of a .cu; ptx-check compares, ptx-report shows registers'
	@echo 'make build      the six tools, into $(CARGO_TARGET_DIR)/release/'
	@echo 'make check      formatting and lints'
	@echo 'make install    the tools into $(PREFIX)/bin, named $(PROG_PREFIX)fold and so on (PREFIX=, PROG_PREFIX=)'
	@echo
	@echo 'make MODEL-SCHEME [MODEL=path] [DATA="text..."] [EVAL="text..."] [TASKS=folder] ...    one recipe, into run/'
	@echo '    models      $(models)'
	@echo '    schemes     $(schemes)'
	@echo '    make smollm2-135m-w4pc fetches its model; the others need MODEL= or models/MODEL/'
	@echo '    all settings: pipelines/run --help'
	@echo
	@echo 'A recipe stopped early goes on when typed again. make exits 2 whatever the reason; where the status matters'
	@echo '(75: stopped early, run again), as in batch scripts, call pipelines/run MODEL-SCHEME instead.'

build:
	$(CARGO) build --release

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

test:
	$(CARGO) test --release --workspace
	tests/pipelines/run_test.sh

demo: demo-w3pc

interop: build
	tests/interop/run

bench: build
	$(CARGO) build --release -p lrqat-common --examples
	tests/bench/run

bench-peers:
	tests/bench/run --install

bench-7b: build
	tests/bench/run-7b

gpu-check:
	tests/gpu/check

aarch64-check:
	tests/aarch64/check

ptx:
	tests/ptx/compile

ptx-check:
	tests/ptx/compile --check

ptx-report:
	tests/ptx/report

# What is missing is said before the build, which takes minutes.
$(recipes):
	@pipelines/run --check $@
	@$(MAKE) --no-print-directory build
	@pipelines/run $@

install: build
	install -d '$(DESTDIR)$(PREFIX)/bin'
	for program in $(programs); do \
	    install -m 755 "$(CARGO_TARGET_DIR)/release/$$program" "$(DESTDIR)$(PREFIX)/bin/$(PROG_PREFIX)$$program" || exit 1; \
	done
