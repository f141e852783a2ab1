"""Images all the way: what a model that sees is shown, samples and is trained on, beside transformers' own forward."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agentgym.trainers import grpo, sft
from helpers_policies import tiny_policy
from helpers_vision import FAMILIES, Square, seeing_model, seeing_policy
from test_exact_tokens import Wild

from agentgym import env_worker, pictures
from agentgym.config import load
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EngineError, TemplateError
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.logprobs import read, token_logprobs
from agentgym.learner.losses import clipped_surrogate, token_weights
from agentgym.learner.model import checkpoint_layers, prepare, renderer_of
from agentgym.learner.pack import pack, rows_of
from agentgym.learner.places import positions_of
from agentgym.learner.setup import ModelConfig, open_model
from agentgym.learner.vision import freeze, load_vision, vision_of
from agentgym.learner.vision_tokenizer import VisionTokenizer
from agentgym.pictures import observed, seen
from agentgym.policies.base import Request
from agentgym.policies.hf import HFPolicy
from agentgym.renderer import Renderer, Row
from agentgym.rollout import Rollout, RolloutConfig, Task, group_tasks
from agentgym.seeding import turn_rng
from agentgym.types import Message, Status

EXACT = 1e-5
"""Largest difference of a log-probability in float32, in nats."""
TILES = {"smolvlm": 2, "idefics3": 2}
WHOLE = 10**9

policy_of = functools.cache(lambda family: seeing_policy(family, tiles=TILES.get(family, 1)))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sight(text, height, width, seed=0):
    return observed({"text": text, "image": noise(height, width, seed)})


def talk(*contents):
    roles = ("system", *("user", "assistant") * len(contents))
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]


def play(policy, context="append", rounds=3, groups=2, size=3, seed=0, temperature=1.0, **env):
    settings = {"max_turns": rounds, "max_new_tokens": 6, "context_limit": 2000, "parse_limit": 99}
    with EnvPool("test/Square-v0", {"rounds": rounds, **env}) as pool:
        rollout = Rollout(pool, policy, RolloutConfig(context=context, temperature=temperature, **settings))
        return [t for g in rollout.collect(group_tasks(seed, 0, groups, size)) for t in g.trajectories]


def packed(trajectories, per_turn=False, share=True):
    (batch,) = pack([r for i, t in enumerate(trajectories) for r in rows_of(t, i, per_turn)], WHOLE, share)
    return batch


def by_the_processor(family, renderer, text, images):
    """Ids and pixel values as the family's own processor makes them of a prompt and its images."""
    import transformers.models as models

    vision, tokenizer = renderer.tokenizer.vision, renderer.tokenizer.tokenizer
    module = getattr(getattr(models, family), f"processing_{family}")
    kind = getattr(module, next(name for name in module.__all__ if name.endswith("Processor")))
    own = SimpleNamespace(
        image_processor=vision.processor,
        image_token=vision.image_token,
        image_seq_len=getattr(vision, "tile", 0),
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        global_image_tag="<global-img>",
    )
    nested = [images] if family in TILES else images
    more = {"return_row_col_info": True} if family in TILES else {}
    made = dict(vision.processor(images=nested, return_tensors="pt", **more))
    first, *rest = text.split(vision.image_token)
    for number, piece in enumerate(rest):
        first += kind.replace_image_token(own, made, image_idx=number) + piece
    ids = tokenizer(first, add_special_tokens=False)["input_ids"]
    return ids, {k: v for k, v in made.items() if k not in ("rows", "cols")}


SIZES = [(64, 96), (100, 60), (128, 128), (31, 200), (57, 57), (300, 130)]


def test_a_prompt_and_its_logits_are_those_of_the_family(family):
    """Two images of different sizes; the ids by its processor, the logits by its own model with stock attention."""
    tiles = TILES.get(family, 1)
    model, tokenizer, vision = seeing_model(family, tiles=tiles)
    stock = copy.deepcopy(model)
    renderer = renderer_of(tokenizer, vision)
    model = prepare(model, vision)
    for one, other in zip(SIZES, [*SIZES[1:], SIZES[0]], strict=True):
        a, b = sight("red", *one), sight("blue", *other, seed=1)
        messages = talk("be good", seen(a), "click 1 2", f"again{seen(b)} {seen(a)}")
        row = Row(renderer)
        row.prompt(messages, 0)
        text = renderer.tokenizer.render(messages)
        images = [noise(*one), noise(*other, 1), noise(*one)]
        ids, inputs = by_the_processor(family, renderer, text, images)
        assert row.segment.ids == ids
        seen_tokens = sum(image.stop - image.start for image in row.segment.images)
        assert seen_tokens == ids.count(vision.image_id)
    expected = stock(input_ids=torch.tensor([ids]), **vision.stock(torch.tensor([ids]), inputs)).logits[0]
    row.segment.mask[-1] = 1
    trajectory = SimpleNamespace(
        segments=[row.segment], turns=[], policy="", pictures={s.picture.hash: s.picture for s in (a, b)}
    )
    batch = packed([trajectory])
    with torch.no_grad():
        got = model.get_output_embeddings()(read(model, batch))
    assert float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    blank = {name: pictures.Picture.of(np.zeros_like(p.pixels)) for name, p in batch.pictures.items()}
    with torch.no_grad():
        other = model.get_output_embeddings()(read(model, dataclasses.replace(batch, pictures=blank)))
    assert float((got - other).abs().max()) > 1e-2, "the test could not fail"


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_are_those_of_the_model(name):
    policy = policy_of(name)
    row = Row(policy.renderer)
    a, b = sight("red", 64, 200), sight("blue", 150, 60)
    row.prompt(talk("be good", seen(a), "yes", f"and {seen(b)}{seen(a)} or"), 0)
    ids = torch.tensor([row.segment.ids])
    vision = vision_of(policy.model)
    grids = vision.inputs([s.picture.pixels for s in (a, b, a)])["image_grid_thw"]
    expected, _ = policy.model.model.get_rope_index(ids, (ids == vision.image_id).int(), image_grid_thw=grids)
    assert positions_of(ids.shape[1], row.segment.images).tolist() == expected[:, 0].tolist()
    assert positions_of(5, []).tolist() == [list(range(5))] * 3


@pytest.mark.parametrize("context", ["append", "window:0", "window:1"])
def test_log_probabilities_are_the_trainers(family, context):
    policy = policy_of(family)
    trajectories = play(policy, context, rounds=4)
    for temperature in (1.0, 0.7) if context == "append" else (1.0,):
        if temperature != 1.0:
            trajectories = play(policy, context, temperature=temperature, seed=1)
        for share in (True, False):
            batch = packed(trajectories, share=share)
            assert len(batch.targets) == sum(t.action_tokens for t in trajectories) > 0
            with torch.no_grad():
                out = token_logprobs(policy.model, batch, temperature)
            assert float((out.logp - batch.old_logp).abs().max()) <= EXACT
    assert (len(trajectories[0].segments) > 1) == (context != "append")
    held = [len(s.images) for t in trajectories for s in t.segments]
    assert max(held) >= (3 if context == "append" else 2 if context == "window:1" else 1)
    fake = {name: pictures.Picture.of(255 - p.pixels) for name, p in batch.pictures.items()}
    with torch.no_grad():
        out = token_logprobs(policy.model, dataclasses.replace(batch, pictures=fake), temperature)
    assert float((out.logp - batch.old_logp).abs().max()) > 100 * EXACT, "the test could not fail"


def test_decoding_without_reuse_and_out_of_step_is_as_exact(family):
    policy = seeing_policy(family, deterministic=False, reuse=False, prefill_budget=40)
    trajectories = play(policy, "window:1")
    with torch.no_grad():
        out = token_logprobs(policy.model, (batch := packed(trajectories)))
    assert float((out.logp - batch.old_logp).abs().max()) <= EXACT
    assert policy.stats["reused"] == 0


def loss_and_gradient(model, batch, n):
    model.zero_grad(set_to_none=True)
    batch.weights = token_weights(batch.trajectory, n, "token_mean", 64)
    out = token_logprobs(model, batch)
    loss = (batch.weights * clipped_surrogate(out.logp, batch.old_logp, batch.advantages)).sum()
    loss.backward()
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    return float(loss.detach()), torch.cat(flat)


def with_advantages(trajectories):
    rng = np.random.default_rng(0)
    for segment in (s for t in trajectories for s in t.segments):
        segment.advantages = [float(rng.normal()) * m for m in segment.mask]
    return trajectories


@pytest.mark.parametrize("context", ["append", "window:1"])
def test_layouts_are_equivalent(family, context):
    policy = policy_of(family)
    long = "the same beginning for all of them, so that there is something to share: "
    trajectories = with_advantages(play(policy, context, say=long))
    one = loss_and_gradient(policy.model, packed(trajectories, per_turn=True, share=False), 6)
    merged = packed(trajectories, share=False)
    shared = packed(trajectories)
    assert len(shared.ids) < len(merged.ids)
    assert len(shared.images) < len(merged.images), "no image was shared"
    for batch in (merged, shared, packed(trajectories, per_turn=True)):
        other = loss_and_gradient(policy.model, batch, 6)
        assert abs(one[0] - other[0]) <= 1e-5
        assert float((one[1] - other[1]).norm()) <= 1e-4 * float(one[1].norm())
    tower = [p for n, p in policy.model.named_parameters() if "visual" in n or "vision_model" in n]
    assert tower
    assert any(float(p.grad.norm()) > 0 for p in tower if p.grad is not None)
    policy.model.zero_grad(set_to_none=True)


def test_gradient_checkpointing_changes_nothing(family):
    policy = policy_of(family)
    batch = packed(with_advantages(play(policy)))
    plain = loss_and_gradient(policy.model, batch, 6)
    again = copy.deepcopy(policy.model)
    checkpoint_layers(again)
    found = loss_and_gradient(again, batch, 6)
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])
    policy.model.zero_grad(set_to_none=True)


def test_equal_tokens_with_other_images_are_not_shared(family):
    """The same ids throughout, another image in each row: neither training nor the cache may mix them up."""
    policy = seeing_policy(family)
    rows, requests = [], []
    for seed in (0, 1):
        a = sight("the same words, long enough to be shared by both of the rows", 64, 96, seed)
        row = Row(policy.renderer)
        row.prompt(talk("be good", seen(a)), 0)
        rows.append(row)
        found = {a.picture.hash: a.picture}
        requests.append(Request(row.segment.ids, 5, turn_rng(0, 0), images=row.segment.images, pictures=found))
    assert rows[0].segment.ids == rows[1].segment.ids

    async def one(session, number, request):
        session.begin((0, number), "g")
        try:
            return await session.generate(request)
        finally:
            session.close()

    async def run():
        sessions = [policy.open() for _ in requests]
        pairs = enumerate(zip(sessions, requests, strict=True))
        return await asyncio.wait_for(asyncio.gather(*(one(s, n, r) for n, (s, r) in pairs)), 60)

    made = asyncio.run(run())
    assert made[0].logps != made[1].logps
    trajectories = []
    for row, request, generation in zip(rows, requests, made, strict=True):
        row.sampled(generation.ids, generation.logps, 0)
        trajectories.append(SimpleNamespace(segments=row.segments, turns=[], policy="", pictures=request.pictures))
    batch = packed(trajectories)
    assert len({image.hash for image in batch.images}) == 2
    with torch.no_grad():
        out = token_logprobs(policy.model, batch)
    assert float((out.logp - batch.old_logp).abs().max()) <= EXACT


@pytest.mark.parametrize("family", ["smolvlm", "qwen3_vl"])
def test_neither_world_nor_policy_can_fake_an_image(family):
    """Whatever is said or sampled, the images are those that were shown; every sampled token is trained as it is."""
    renderer = policy_of(family).renderer
    token, image_id = renderer.tokenizer.vision.image_token, renderer.tokenizer.vision.image_id
    marker = sight("", 64, 96).ref.marker
    evil = f"{token}{token} {marker} <|vision_start|>"
    reply = [*renderer.encode_after("so")[:1], image_id, image_id, *renderer.encode_after("x"), renderer.close_id]
    spelled = [*renderer.encode_after(f"< {marker[1:]}"), renderer.close_id]
    spelled = [i for i in spelled if i != image_id]
    for context in ("append", "window:1", "window:0"):
        counts = []
        for said in ("harmless ", evil):
            policy = Wild(renderer, [reply, spelled, reply])
            (trajectory,) = play(policy, context, groups=1, size=1, say=said)
            assert trajectory.status is Status.DONE
            last = trajectory.segments[-1]
            counts.append([(len(s.images), len({i.hash for i in s.images})) for s in trajectory.segments])
            for turn, ids in zip(trajectory.turns, policy.replies, strict=True):
                segment = trajectory.segments[turn.segment]
                assert segment.ids[turn.start : turn.stop] == ids
                assert not any(i.start < turn.stop and turn.start < i.stop for i in segment.images)
            placeholders = {at for i in last.images for at in range(i.start, i.stop)}
            assert all(last.ids[at] == image_id for at in placeholders)
        assert counts[0] == counts[1]


def test_a_text_only_model_is_refused_before_anything_is_computed(models):
    with pytest.raises(ConfigError, match=r"test/Square-v0 shows images.*env\.kwargs\.observation=text"):
        play(tiny_policy())
    batch = packed(play(policy_of("qwen3_vl"), groups=1))
    with pytest.raises(ConfigError, match="reads text only"):
        token_logprobs(models("qwen3", 400), batch)
    with pytest.raises(ConfigError, match="train_vision"):
        freeze(models("qwen3", 400))


async def test_a_policy_that_reads_text_refuses_a_prompt_with_images():
    session = tiny_policy().open()
    session.begin((0, 0), "g")
    with pytest.raises(EngineError, match="reads text only"):
        await session.generate(Request([1], 1, turn_rng(0, 0), images=[SimpleNamespace()]))


def test_families_and_templates_that_are_not_supported():
    with pytest.raises(ConfigError, match=r"llava.*not supported: use one of qwen2_5_vl"):
        load_vision("nowhere", SimpleNamespace(vision_config=1, model_type="llava"))
    _, tokenizer, vision = seeing_model("smolvlm")
    with pytest.raises(TemplateError, match="but not in its tokenizer"):
        VisionTokenizer(tokenizer, SimpleNamespace(image_token="<image>", image_id=1))
    tokenizer.chat_template = tokenizer.chat_template.replace("<image>", "")
    renderer = Renderer(VisionTokenizer(tokenizer, vision))
    with pytest.raises(TemplateError, match="shows 0 images of 1"):
        Row(renderer).prompt(talk("be good", seen(sight("red", 64, 96))), 0)


def test_a_frozen_tower_is_left_alone(family):
    policy = seeing_policy(family)
    freeze(policy.model)
    trajectories = with_advantages(play(policy))
    batch = packed(trajectories)
    batch.weights = torch.ones(len(batch.targets)) / len(batch.targets)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    learner = Learner(policy.model, OptimConfig(lr=1e-2))
    learner.step([batch], lambda out, b: (-(b.weights * out.logp).sum(), {}))
    changed = {name for name, p in policy.model.named_parameters() if not torch.equal(before[name], p)}
    assert any("layers" in name for name in changed)
    assert not any(part in name for name in changed for part in ("visual", "vision_model", "connector"))


def test_a_checkpoint_goes_on_bit_by_bit_and_loads_as_a_model(family, tmp_path):
    def learner_of(seed):
        policy = seeing_policy(family, seed=seed)
        return policy, Learner(policy.model, OptimConfig(lr=1e-3))

    def step(policy, learner, number):
        policy.weights_changed(number)
        batch = packed(with_advantages(play(policy, seed=number)))
        batch.weights = torch.ones(len(batch.targets)) / len(batch.targets)
        loss = clipped_surrogate
        learner.step([batch], lambda out, b: ((b.weights * loss(out.logp, b.old_logp, b.advantages)).sum(), {}))

    policy, learner = learner_of(0)
    step(policy, learner, 0)
    tokenizer = policy.renderer.tokenizer.tokenizer
    checkpoint.save(tmp_path / "step_00001", policy.model, tokenizer, {**learner.state(), "step": 1})
    step(policy, learner, 1)
    other, resumed = learner_of(1)
    assert checkpoint.resume(tmp_path, resumed) == 1
    step(other, resumed, 1)
    for a, b in zip(policy.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    checkpoint.save_model(tmp_path / "final", policy.model, tokenizer)
    model, _, renderer = open_model(ModelConfig(path=str(tmp_path / "final"), train_vision=False), 0, None)
    policy.weights_changed(0)
    again = [play(one, groups=1) for one in (policy, HFPolicy(model, renderer, "tiny"))]
    for a, b in zip(*([s for t in played for s in t.segments] for played in again), strict=True):
        assert (a.ids, a.images) == (b.ids, b.images)
        assert np.abs(np.subtract(a.logps, b.logps)).max() <= EXACT
    assert not all(p.requires_grad for p in model.parameters())


def test_members_of_a_group_must_see_the_same_beginning(monkeypatch):
    """Two screens that differ in one pixel are two beginnings."""
    original, count = Square._observation, iter(range(100))

    def flicker(self):
        found = original(self)
        found["image"][0, 0, 0] = next(count)
        return found

    monkeypatch.setattr(Square, "_observation", flicker)
    with pytest.raises(ConfigError, match="start differently"):
        play(policy_of("qwen3_vl"), groups=1)


@pytest.mark.parametrize("processes", [0, 1])
def test_images_come_from_threads_and_processes(processes):
    with EnvPool("helpers_vision:test/Square-v0", {}, processes) as pool:
        rollout = Rollout(pool, policy_of("qwen3_vl"), RolloutConfig(max_turns=2, max_new_tokens=4, context_limit=512))
        [group] = rollout.collect([Task(1, 1, "g", 0, 0)])
    (trajectory,) = group.trajectories
    env = Square()
    screens = [env.reset(seed=1)[0]["image"], *(env.step("wait")[0]["image"] for _ in range(2))]
    texts = [*(t.observation for t in trajectory.turns), trajectory.final_observation]
    for screen, text in zip(screens, texts, strict=True):
        ref = next(pictures.split(text))
        assert (trajectory.pictures[ref.hash].pixels == screen).all()
    assert env_worker.make_env("test/Square-v0").observation_space.contains(env.reset(seed=1)[0])


def test_the_examples_are_configs():
    configs = Path(__file__).parents[1] / "examples" / "configs"
    warm = sft.make_config(load(configs / "miniwob_pictures_sft.yaml"))
    cfg = grpo.make_config(load(configs / "miniwob_pictures.yaml"))
    assert warm.env.kwargs == {**cfg.env.kwargs, "expert": True}
    assert warm.rollout == cfg.rollout
    assert warm.model.family in FAMILIES
