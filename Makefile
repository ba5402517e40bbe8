# make music | test | test-slow | test-oldest | lint | bench | media      (each sets up .venv itself on its first run)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
# Small models run fastest on one thread, and a test that reaches for the network must fail.
ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST_ARGS ?=
SONG ?= mortm_hf/app/demo/schumann_wenn_ich_in_deine_augen_seh.mid
DATA ?= ../shared/data
ROBUSTNESS ?= ../shared/robustness/robustness-shared.tar.xz
DATA_BENCHMARKS := roundtrip tokenizer key_estimation bits_per_note decode dataset chord_recognition chord_estimation \
  bertm_mlm audio live control sampling
OTHER_BENCHMARKS := grammar model long_context support_matrix

.PHONY: music media test test-slow test-oldest lint format bench clean

# torch first: the rest then finds it installed and does not resolve another build of it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -q -e ".[dev]" -c constraints.txt
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q -e ".[bench]" -c constraints.txt
	touch $@

# The oldest versions that the package promises to work with (torch 2.11, transformers 5.17, trl 1.12.0).
$(OLDEST_STAMP): setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q torch==2.11.0 -c constraints-oldest.txt
	$(OLDEST)/bin/python -m pip install -q -e ".[dev,rlmf]" -c constraints-oldest.txt
	touch $@

# Eight new bars for a song that the model has not heard, from where its first eight end.
music: $(STAMP)
	mkdir -p build/music
	$(ENV) $(BIN)/mortm info $(SONG)
	$(ENV) $(BIN)/mortm generate $(SONG) -o build/music/continued.mid --start 8 --bars 8 --seed 1 --wav --png
	@echo "Listen: build/music/continued.wav   Look: build/music/continued.png   Edit: build/music/continued.mid"

# The README's picture and sound: the same music, in small files.
media: $(STAMP)
	$(ENV) $(BIN)/python docs/make_media.py

test: $(STAMP)
	$(ENV) $(BIN)/python -m pytest -q -m "not slow and not gpu" $(PYTEST_ARGS)

# The slow tests, then the fast ones once more on the oldest versions.
test-slow: $(STAMP)
	$(ENV) $(BIN)/python -m pytest -q -m "slow and not gpu" $(PYTEST_ARGS)
	$(MAKE) test-oldest

test-oldest: $(OLDEST_STAMP)
	$(ENV) $(OLDEST)/bin/python -m pytest -q -m "not slow and not gpu" -o cache_dir=.pytest_cache/oldest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every figure of benchmarks/README.md and the cards, reprinted; one of them: `make bench-roundtrip`. Results: build/bench/*.json
bench: $(addprefix bench-,$(DATA_BENCHMARKS) robustness $(OTHER_BENCHMARKS) import_time rlmf compare)

$(addprefix bench-,$(DATA_BENCHMARKS)): bench-%: $(BENCH_STAMP)
	mkdir -p build/bench
	$(ENV) $(BIN)/python benchmarks/$*.py --data $(DATA) --json build/bench/$*.json

bench-robustness: $(BENCH_STAMP)
	mkdir -p build/bench
	$(ENV) $(BIN)/python benchmarks/robustness.py --data $(ROBUSTNESS) --json build/bench/robustness.json

bench-import_time: $(STAMP)
	$(ENV) $(BIN)/python benchmarks/import_time.py

# the tables of the five runs that the card reports, from its file (training them anew takes hours)
bench-rlmf: $(BENCH_STAMP)
	$(ENV) $(BIN)/python benchmarks/rlmf.py --reports model_cards/mortm-aligned.json

# the same of the architectures and token languages, from the results of their runs
bench-compare: $(BENCH_STAMP)
	$(ENV) $(BIN)/python benchmarks/compare.py report --out benchmarks/results/compare

$(addprefix bench-,$(OTHER_BENCHMARKS)): bench-%: $(BENCH_STAMP)
	mkdir -p build/bench
	$(ENV) $(BIN)/python benchmarks/$*.py --json build/bench/$*.json

clean:
	rm -rf $(VENV) $(OLDEST) build
