"""Models that see, decoded by a real vLLM on a CPU: what it says of images is what the trainer's module says."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from agentgym.trainers import grpo
from helpers_vision import TEXTS

from agentgym.errors import ConfigError, EngineError
from agentgym.learner import checkpoint
from agentgym.learner.logprobs import score
from agentgym.learner.lora import LoraConfig, add_adapter
from agentgym.learner.model import load_model, prepare
from agentgym.learner.tiny import train_tokenizer
from agentgym.learner.tiny_vision import add_images, build_model
from agentgym.pictures import Picture, Ref
from agentgym.policies.base import Request
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.probe import Probe
from agentgym.policies.vllm import VLLMPolicy
from agentgym.policies.vllm_images import Images
from agentgym.types import ImageSpan

EXACT = 2e-5
"""Largest difference of a log-probability in float32, in nats."""
LIMIT = 512
TILES = {"smolvlm": 2, "idefics3": 2}


def saved(family, folder):
    """A tiny model in a folder, of a width of heads that vLLM has kernels for."""
    tokenizer, tiles = train_tokenizer(TEXTS, 300), TILES.get(family, 1)
    add_images(tokenizer, family, tiles)
    model, vision = build_model(family, tokenizer, 0, 64, 2, 2, LIMIT, tiles, 32)
    model.get_input_embeddings().weight.data.mul_(6.0)
    checkpoint.save_model(folder, prepare(model.eval(), vision), tokenizer)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "qwen3_vl",
        "smolvlm",
        pytest.param("qwen2_5_vl", marks=pytest.mark.slow),
        pytest.param("idefics3", marks=pytest.mark.slow),
    ],
)
def served(request, vllm_install, tmp_path_factory):
    """A policy with a server of its own, and the folder of its model."""
    folder = saved(request.param, tmp_path_factory.mktemp("model") / "final")
    config = DecodeConfig(backend="vllm", python=vllm_install.python, kv_cache_gb=1)
    logs = tmp_path_factory.mktemp("vllm")
    with VLLMPolicy(*load_model(str(folder)), config, logs, LIMIT, 8) as policy:
        policy.weights_changed(0)
        policy.folder = folder
        yield policy


def looking(renderer, number, images=1, text="a screen"):
    """A prompt with images of different sizes, and a number that nothing depends on but what they show."""
    rng = np.random.default_rng(number)
    sizes = [(60 + 32 * (i % 2), 100 + 40 * i) for i in range(images)]
    pictures = [Picture.of(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    shown = "".join(f"{Ref(p.hash, *size).marker} {text} " for p, size in zip(pictures, sizes, strict=True))
    ids, spans = renderer.encode(*renderer.place([{"role": "user", "content": shown}]), False)
    return Request(ids, 12, rng, images=spans, pictures={p.hash: p for p in pictures})


def ask(policy, requests):
    async def run():
        return await asyncio.gather(*(policy.write(0, request) for request in requests))

    return asyncio.run(asyncio.wait_for(run(), 240))


def worst(model, requests, turns):
    """Largest difference between the log-probabilities of vLLM and those of the trainer."""
    return max(
        np.abs(np.array(score(model, [*r.ids, *t.ids], len(r.ids), r.images, r.pictures)) - t.logps).max()
        for r, t in zip(requests, turns, strict=True)
    )


@pytest.mark.vllm
def test_what_is_seen_is_what_the_trainer_sees(served):
    """One image and several, alike prompts with other images, and a prompt that goes on behind one that was read."""
    requests = [looking(served.renderer, number, 1 + number % 3) for number in range(6)]
    turns = ask(served, requests)
    assert worst(served.model, requests, turns) <= EXACT
    blind = score(served.model, [*requests[0].ids, *turns[0].ids], len(requests[0].ids))
    assert np.abs(np.array(blind) - turns[0].logps).max() > 100 * EXACT, "the test could not fail"
    for request, turn in zip(requests, turns, strict=True):
        request.ids += [*turn.ids, *range(20, 30)]
    before = served.stats["cached"]
    assert worst(served.model, requests, ask(served, requests)) <= EXACT
    assert served.stats["cached"] > before, "the second turns did not find their prompts again"


@pytest.mark.vllm
def test_a_gold_answer_behind_an_image(served):
    request = looking(served.renderer, 7)
    request.probe = Probe((7, 8, 9, 30, 31), 3)
    (turn,) = ask(served, [request])
    start = len(request.ids) + 3
    expected = score(served.model, [*request.ids, *request.probe.ids], start, request.images, request.pictures)
    assert turn.probe == pytest.approx(np.mean(expected), abs=EXACT)


@pytest.mark.vllm
def test_nothing_that_old_weights_saw_is_used_again(served):
    """The vision tower alone changes: whatever was kept of an image is wrong then."""
    requests = [looking(served.renderer, number) for number in range(3)]
    ask(served, requests)
    language = {id(p) for p in served.model.get_decoder().parameters()}
    for parameter in served.model.parameters():
        if id(parameter) not in language and parameter is not served.model.get_output_embeddings().weight:
            parameter.data.mul_(1.3)
    assert worst(served.model, requests, ask(served, requests)) > 10 * EXACT, "the test could not fail"
    served.weights_changed(served.version + 1)
    turns = ask(served, requests)
    assert worst(served.model, requests, turns) <= EXACT
    assert {v for t in turns for v in t.version} == {served.version}
    assert served.stats["restarts"] == 0


@pytest.mark.vllm
def test_a_trainer_of_a_model_that_sees(served, tmp_path):
    """The same YAML as with hf, but for ``decode``: what is sampled is on-policy for the trainer."""
    settings = {
        "env": {"id": "helpers_vision:test/Square-v0", "kwargs": {"rounds": 2}},
        "model": {"path": str(served.folder), "threads": 1},
        "rollout": {"max_turns": 2, "max_new_tokens": 8, "context_limit": LIMIT, "codec": "plain"},
        "decode": {"backend": "vllm", "urls": served.urls},
        "groups": 2,
        "group_size": 3,
        "steps": 2,
        "algo": {"scale": "none", "center": "none", "entropy_coef": 0.01},
        "optim": {"lr": 1e-3},
        "eval": {"final_episodes": 2},
    }
    grpo.main(grpo.make_config(settings), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "policy/mismatch_kl" in row]
    assert len(steps) == 2
    assert all(abs(row["policy/mismatch_kl"]) < 1e-8 and row["policy/mismatch_max"] < 1.0001 for row in steps)
    assert all(row["optim/grad_norm"] > 0 for row in steps)
    served.weights_changed(served.version + 10)


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_a_part_of_an_image_cannot_be_seen_alone(family, tmp_path):
    model, _, renderer = load_model(str(saved(family, tmp_path / "model")))
    images = Images(renderer.tokenizer.vision, model.dtype)
    request = looking(renderer, 0)
    whole = images.features(request.images, request.pictures, 3)
    (first, *_), (name, *_) = request.images, whole["mm_hashes"]["image"]
    assert name.endswith("-3")
    assert whole["mm_placeholders"]["image"][0] == {"offset": first.start, "length": first.stop - first.start}
    part = ImageSpan(first.hash, first.start + 1, first.stop, 1, first.columns)
    with pytest.raises(EngineError, match="can only see as a whole"):
        images.features([part], request.pictures, 3)
    assert images.features([], {}, 3) is None


def test_adapters_alone_are_for_text(tmp_path):
    model, tokenizer, renderer = load_model(str(saved("qwen3_vl", tmp_path / "model")))
    config = DecodeConfig(backend="vllm", lora="adapter", urls=("http://127.0.0.1:9",))
    with pytest.raises(ConfigError, match=r"model sees: send merged weights"):
        VLLMPolicy(add_adapter(model, LoraConfig(rank=2), 0), tokenizer, renderer, config, Path(), LIMIT)
