# A newcomer's two commands: `make demo` and `make test`. Both create .venv and install what they need.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: demo test quick test-oldest lint bench latent
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

# In two processes of one thread each. The tests of a file stay together: they share what they train.
test: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Without what takes long.
quick: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# The suite's fast part in the oldest versions that requirements.txt allows.
OLDEST := .venv/oldest
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -q -m "not slow"

$(OLDEST)/installed: requirements.txt requirements-dev.txt
	python3.10 -m venv $(OLDEST)
	sed -n 's/>=/==/p' requirements.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements-dev.txt -c $(OLDEST)/constraints.txt
	touch $@

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The quick form of most benchmarks, on synthetic faces; each file's docstring has the full command.
bench: .venv/installed-dev
	$(BIN)/python benchmarks/train_memory.py
	$(BIN)/python benchmarks/train_step.py --batch_size 4 --rounds 2
	$(BIN)/python benchmarks/sampling.py --batch_size 2 --num_inference_steps 5 --rounds 2
	$(BIN)/python benchmarks/time_to_quality.py --minutes 0.5 --num_samples 64 --num_inference_steps 10 \
		--judge_epochs 1 --output_dir outputs/quick_time_to_quality
	$(BIN)/python benchmarks/probe.py

# A whole workflow: `make latent DATA=/path/to/celeba`. The same command goes on where it was stopped. RUN is
# the folder of all that it writes; FLAGS go to each training. Each file in configs/ says what it needs.
RUN ?= outputs/$@
SIZE ?= 128
ifneq ($(filter latent,$(MAKECMDGOALS)),)
$(if $(DATA),,$(error no DATA: make latent DATA=/path/to/celeba))
endif

# A training: its folder in RUN, and its flags.
train = $(BIN)/python train.py $(2) --save_dir "$(RUN)/$(1)" --log_dir "$(RUN)/$(1)/logs" \
	$(if $(wildcard $(RUN)/$(1)/*last.pth),--resume) $(FLAGS)

# Faces at 128 pixels in the latents of a first stage of our own: judge, first stage, encoding, diffusion.
latent: .venv/installed
	test -f "$(RUN)/judge.pth" || $(BIN)/python evaluate.py judge --judge "$(RUN)/judge.pth" \
		--data_root "$(DATA)"
	$(call train,vae,--config configs/celeba128-vae.yaml --image_size $(SIZE) --data_root "$(DATA)" \
		--judge "$(RUN)/judge.pth")
	$(BIN)/python encode_latents.py --data_root "$(DATA)" --image_size $(SIZE) \
		--first_stage "$(RUN)/vae/first_stage.pth" --output_dir "$(RUN)/latents"
	$(call train,diffusion,--config configs/celeba128-latent.yaml --data_root "$(RUN)/latents")
