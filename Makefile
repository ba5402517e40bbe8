# make music | test | test-slow | lint | bench      (each sets up .venv itself on its first run)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Small models run fastest on one thread, and a test that reaches for the network must fail.
ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST_ARGS ?=
SONG ?= mortm_hf/app/demo/schumann_wenn_ich_in_deine_augen_seh.mid
DATA ?= ../shared/data
BENCHMARKS ?= $(sort $(wildcard benchmarks/*.py))

.PHONY: music test test-slow lint format bench clean

# torch first: the rest then finds it installed and does not resolve another build of it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -q -e ".[dev]" -c constraints.txt
	touch $@

# Eight new bars for a song that the model has not heard, from where its first eight end.
music: $(STAMP)
	mkdir -p build/music
	$(ENV) $(BIN)/mortm info $(SONG)
	$(ENV) $(BIN)/mortm generate $(SONG) -o build/music/continued.mid --start 8 --bars 8 --seed 1 --wav --png
	@echo "Listen: build/music/continued.wav   Look: build/music/continued.png   Edit: build/music/continued.mid"

test: $(STAMP)
	$(ENV) $(BIN)/python -m pytest -q -m "not slow and not gpu" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(ENV) $(BIN)/python -m pytest -q -m "slow and not gpu" $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every figure of the README and the cards, reprinted. DATA is the folder of the corpora.
bench: $(STAMP)
	set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(ENV) $(BIN)/python $$script --data $(DATA); done

clean:
	rm -rf $(VENV) build
