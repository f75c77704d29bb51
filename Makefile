# A newcomer's two commands: `make demo` and `make test`. Both create .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench
.DEFAULT_GOAL := demo

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The clock starts before the installation, so the seconds reported include it.
demo: export DEMO_STARTED := $(shell date +%s)
demo: .venv/installed
	$(BIN)/python benchmarks/demo.py

test: .venv/installed-dev
	$(BIN)/python -m pytest -q

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The quick form of each, on synthetic faces; each file's docstring has the full command.
bench: .venv/installed-dev
	$(BIN)/python benchmarks/train_memory.py
	$(BIN)/python benchmarks/data_loading.py --num_workers 0
	$(BIN)/python benchmarks/train_step.py --batch_size 4 --rounds 2
	$(BIN)/python benchmarks/sampling.py --batch_size 2 --num_inference_steps 5 --rounds 2
	$(BIN)/python benchmarks/time_to_quality.py --minutes 0.5 --num_samples 64 --num_inference_steps 10 \
		--judge_epochs 1 --output_dir outputs/quick_time_to_quality
	$(BIN)/python benchmarks/latent_training.py --batch_size 2 --rounds 2
	$(BIN)/python benchmarks/synthetic_probe.py
