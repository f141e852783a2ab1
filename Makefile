.PHONY: setup test test-slow lint quickstart bench lock clean
SEED ?= 0
ALGO ?= grpo
OUT ?= runs/quickstart-$(SEED)

setup:  ## Create .venv with pinned packages (DEVICE=cuda for the CUDA build of torch)
	@scripts/setup.sh

quickstart: setup  ## Warm-start a small model and let it learn to win a text game (SEED=0 ALGO=grpo or ppo)
	@.venv/bin/python examples/01_quickstart.py --algorithm $(ALGO) --seed $(SEED) --out $(OUT)

test:  ## Lint, types, and all but the slow tests
	@scripts/setup.sh --test
	@$(MAKE) --no-print-directory lint
	@.venv/bin/pytest -m "not slow"

test-slow: setup  ## The slow tests
	@.venv/bin/pytest -m slow

lint: setup  ## ruff and mypy
	@.venv/bin/ruff check -q .
	@.venv/bin/ruff format -q --check .
	@.venv/bin/mypy

bench: setup  ## Every benchmark
	@for script in benchmarks/*.py; do .venv/bin/python $$script || exit 1; done

lock: setup  ## Pin what is installed now
	@.venv/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch|uv)==' > requirements.lock

clean:  ## Remove the environment and build outputs (not runs/)
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
