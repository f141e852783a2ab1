"""Run by test_vllm_local.py with the Python of vLLM's environment: the engine in this very process."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from agentgym.trainers import grpo
from test_vllm import EXACT, LIMIT, ask, perturb, prompt, small_model, worst
from test_vllm_images import looking, saved
from test_vllm_images import worst as worst_seen

from agentgym.errors import EngineError
from agentgym.learner import checkpoint
from agentgym.learner.logprobs import score
from agentgym.learner.model import frozen_copy, load_model
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.probe import Probe
from agentgym.policies.vllm import VLLMPolicy
from agentgym.renderer import HFTokenizer, Renderer

CONFIG = DecodeConfig(backend="vllm", in_process=True, kv_cache_gb=1)


def children():
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.fixture(scope="module")
def local(tokenizers, tmp_path_factory):
    tokenizer = tokenizers()
    torch.manual_seed(5)
    before = children()
    model = small_model(tokenizer)
    with VLLMPolicy(model, tokenizer, Renderer(HFTokenizer(tokenizer)), CONFIG, Path(), LIMIT) as policy:
        policy.weights_changed(0)
        assert len(children() - before) == 1, "only the keeper of the folder was started"
        assert torch.initial_seed() == 5, "vLLM has seeded this process"
        yield policy
        folder = policy._folder.path
    assert not folder.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "vllm"]


def test_log_probabilities_are_the_trainers(local):
    prompts = [prompt(i, 40 + 7 * i) for i in range(6)]
    turns = ask(local, prompts)
    assert worst(local.model, prompts, turns) <= EXACT
    assert all(turn.version == [0] * len(turn.ids) for turn in turns)
    ask(local, [[*p, *t.ids, *p[:9]] for p, t in zip(prompts, turns, strict=True)])
    assert local.stats["cached"] > 6 * 32
    first, second = ask(local, [prompt(3)] * 2, temperature=0.0)
    assert first.ids == second.ids
    ids = [*prompt(3), *first.ids]
    np.testing.assert_allclose(asyncio.run(local.score(ids, 60)), first.logps, atol=EXACT)
    probe = Probe((7, 8, 9, 30, 31), 3)
    (turn,) = ask(local, [prompt(4)], probe=probe)
    assert turn.probe == pytest.approx(np.mean(score(local.model, [*prompt(4), *probe.ids], 63)), abs=EXACT)


def test_weights_change_while_turns_are_written(local):
    """What was written keeps its version; the rest is sampled by the new weights after it; nothing is saved."""
    prompts, old = [prompt(i) for i in range(12)], frozen_copy(local.model)
    folders = sorted(path.name for path in local._folder.path.iterdir())

    def change():
        time.sleep(0.4)
        perturb(local.model, 2)
        local.weights_changed(1)

    turns = ask(local, prompts, new=400, meanwhile=change)
    assert [0, 1] in [sorted(set(t.version)) for t in turns], "no turn was under way"
    for p, turn in zip(prompts, turns, strict=True):
        cut, ids = turn.version.count(0), [*p, *turn.ids]
        if cut:
            assert np.abs(np.array(score(old, ids, 60))[:cut] - turn.logps[:cut]).max() <= EXACT
        assert np.abs(np.array(score(local.model, ids, 60))[cut:] - turn.logps[cut:]).max(initial=0) <= EXACT
    assert sorted(path.name for path in local._folder.path.iterdir()) == folders


def test_it_sleeps(local, monkeypatch):
    monkeypatch.setattr(local.config, "sleep", True)
    local.rest()
    with pytest.raises(EngineError, match="sleep while the learner updates"):
        ask(local, [prompt(0)])
    perturb(local.model, 4)
    local.weights_changed(2)
    assert worst(local.model, [prompt(0)], ask(local, [prompt(0)])) <= EXACT


def test_what_it_refuses_is_said_and_an_engine_that_fails_ends_the_run(local, monkeypatch):
    with pytest.raises(EngineError, match="refused"):
        asyncio.run(local._clients[0].generate([1, 2], 0, 5, 1.0, 1.0, "1"))
    assert worst(local.model, [prompt(0)], ask(local, [prompt(0)])) <= EXACT

    def breaks():
        raise RuntimeError("the kernel is gone")

    monkeypatch.setattr(local._clients[0]._engine, "step", breaks)
    with pytest.raises(EngineError, match=r"vLLM failed in this process \(RuntimeError: the kernel is gone\): go on"):
        ask(local, [prompt(0)])


@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_a_model_that_sees(family, tmp_path):
    with VLLMPolicy(*load_model(str(saved(family, tmp_path / "model"))), CONFIG, tmp_path, LIMIT, 8) as policy:
        policy.weights_changed(0)
        requests = [looking(policy.renderer, number, 1 + number % 3) for number in range(4)]

        async def write():
            return await asyncio.gather(*(policy.write(0, request) for request in requests))

        assert worst_seen(policy.model, requests, asyncio.run(write())) <= EXACT


def test_a_trainer_decodes_with_it(tokenizers, tmp_path):
    tokenizer, start = tokenizers(), tmp_path / "start"
    checkpoint.save_model(start, small_model(tokenizer), tokenizer)
    settings = {
        "env": {"id": "agentgym/VirtualHome-Food-v0"},
        "model": {"path": str(start), "threads": 1},
        "rollout": {"max_turns": 3, "max_new_tokens": 8, "context_limit": LIMIT, "codec": "plain"},
        "decode": {"backend": "vllm", "in_process": True, "kv_cache_gb": 1},
        "groups": 2,
        "group_size": 3,
        "steps": 2,
        "algo": {"scale": "none", "center": "none", "entropy_coef": 0.01},
        "optim": {"lr": 1e-4},
        "eval": {"final_episodes": 2},
    }
    grpo.main(grpo.make_config(settings), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "policy/mismatch_kl" in row]
    assert len(steps) == 2
    assert all(abs(row["policy/mismatch_kl"]) < 1e-8 for row in steps)
