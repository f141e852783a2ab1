"""The two trainers on an environment that is learned in seconds: right gradients, and resume bit by bit."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import helpers_envs
import numpy as np
import pytest
import torch
from agentgym.trainers import grpo, ppo, sft
from helpers_policies import tiny_model, tiny_policy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from agentgym import cli, seeding, store
from agentgym.config import dump, overlay
from agentgym.env_worker import EnvPool
from agentgym.errors import AgentGymError, ConfigError, TooManyFailures
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.model import load_model
from agentgym.policies.hf import HFPolicy
from agentgym.rollout import Rollout, RolloutConfig, RolloutStats, group_tasks
from agentgym.run import Run, shielded
from agentgym.training import rollout_metrics
from agentgym.types import Group, Segment, Status, Trajectory, Turn

TESTS = Path(__file__).parents[1]
COMMON = {
    "env": {"id": "test/Echo-v0"},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300},
    "eval": {"final_episodes": 64},
}
SFT = {"demonstrations": 128, "epochs": 20, "noise": 0.5, "optim": {"lr": 3e-3}}
SHORT_SFT = {"demonstrations": 16, "epochs": 2, "batch_size": 8, "save_every": 1, "eval": {"final_episodes": 8}}
SHORT = {
    "preset": "dapo",
    "steps": 4,
    "groups": 4,
    "group_size": 4,
    "updates": 2,
    "minibatches": 2,
    "save_every": 1,
    "show_every": 1,
    "optim": {"lr": 1e-3, "warmup_steps": 3, "weight_decay": 0.1},
    "algo": {"kl_coef": 0.01, "entropy_coef": 0.001, "max_resample": 1},
    "eval": {"every": 1, "episodes": 4, "final_episodes": 4},
}
SHORT_PPO = {
    **{k: v for k, v in SHORT.items() if k not in ("preset", "groups", "group_size", "algo")},
    "episodes": 16,
    "algo": {"kl_coef": 0.01, "entropy_coef": 0.001, "lam": 0.9},
    "critic": {"widths": [16]},
}
ALL_PRESETS = ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "lite_ppo")


def sft_config(**values):
    return sft.make_config(overlay(COMMON, values))


def grpo_config(model, **values):
    return grpo.make_config(overlay({**COMMON, "model": {"path": str(model)}}, values))


def ppo_config(model, **values):
    return ppo.make_config(overlay({**COMMON, "model": {"path": str(model)}}, values))


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The folder of an SFT run, and what it returned."""
    out = tmp_path_factory.mktemp("warm") / "sft"
    return out, sft.main(sft_config(**SFT), out)


# ---- what is learned ------------------------------------------------------------------------------------


def test_sft_and_then_grpo_improve_success(warm, tmp_path):
    folder, results = warm
    assert results["after"].success.mean > 0.15  # chance: (1/4)^2 for one who knows the words already
    nll = [row["sft/nll"] for row in rows(folder) if "sft/nll" in row]
    assert nll[-1] < 0.5 * nll[0]
    out = tmp_path / "grpo"
    found = grpo.main(grpo_config(folder / "final", steps=30, groups=8, group_size=8, optim={"lr": 1e-3}), out)
    before, after = found["before"].success, found["after"].success
    assert after.mean > before.mean + 0.2
    assert after.ci95[0] > before.ci95[1]
    trained = rows(out)
    assert len([row for row in trained if "reward/mean" in row]) == 30
    assert {"learning_curve.png", "report.html", "config.yaml", "versions.json"} <= {p.name for p in out.iterdir()}
    final = AutoModelForCausalLM.from_pretrained(out / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "final")
    packed, _, renderer = load_model(str(out / "final"))
    (episode, *_) = store.read(out / "trajectories" / "eval_after.jsonl")
    ids = episode.segments[0].ids
    assert renderer.tokenizer.decode(ids) == tokenizer.decode(ids)
    with torch.no_grad():
        logits = final(input_ids=torch.tensor([ids])).logits[0]
    start = episode.turns[0].start
    expected = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    policy = HFPolicy(packed, renderer)
    got = asyncio.run(policy.score(ids, start))
    torch.testing.assert_close(torch.tensor(got), expected[start - 1 :], atol=1e-5, rtol=0)
    sampled = [x for x, m in zip(episode.segments[0].logps, episode.segments[0].mask, strict=True) if m]
    at = [i - 1 for i, m in enumerate(episode.segments[0].mask) if m]
    np.testing.assert_allclose(
        sampled, expected[at].numpy(), atol=1e-5
    )  # the model that was evaluated is the one saved


def test_demonstrations_are_tokenised_as_the_model_would_have_written_them(warm):
    folder, _ = warm
    _, tokenizer, renderer = load_model(str(folder / "final"))
    demos = store.read(folder / "demonstrations.jsonl")
    data = store.read(folder / "trajectories" / "demonstrations.jsonl")
    assert (len(demos), len(data)) == (128, 32)
    assert len({d.env_seed for d in demos}) == 128
    for demo, tokens in zip(demos, data, strict=False):
        (segment,) = tokens.segments
        text = tokenizer.apply_chat_template(demo.messages, tokenize=False)
        assert tokenizer.decode(segment.ids) == text
        spans = [segment.ids[t.start : t.stop] for t in tokens.turns]
        assert [renderer.decode_reply(s) for s in spans] == [t.text for t in demo.turns]
        assert all(s[-1] == renderer.close_id for s in spans)
        assert sum(segment.mask) == sum(map(len, spans))


def test_demonstrations_stop_where_the_context_is_full():
    _, _, renderer = policy_parts()
    demo = store.Trajectory("e", 0, turns=[Turn("o", 0, 0, 0, 0, "go", "go") for _ in range(4)])
    demo.messages = [{"role": "system", "content": "s"}]
    for k in range(4):
        demo.messages += [{"role": "user", "content": f"Step {k}"}, {"role": "assistant", "content": "go"}]
    whole = sft.tokenise(demo, renderer, RolloutConfig(max_new_tokens=4, context_limit=500))
    assert len(whole.turns) == 4
    limit = whole.turns[2].start + 4
    cut = sft.tokenise(demo, renderer, RolloutConfig(max_new_tokens=4, context_limit=limit))
    assert [t.stop for t in cut.turns] == [t.stop for t in whole.turns[:3]]
    assert cut.segments[0].ids == whole.segments[0].ids[: whole.turns[2].stop]
    with pytest.raises(ConfigError, match="first prompt does not fit"):
        sft.tokenise(demo, renderer, RolloutConfig(max_new_tokens=4, context_limit=10))
    demo.messages[2]["content"] = "walk a long way to the north"
    with pytest.raises(ConfigError, match=r"'walk a long way.*rollout.max_new_tokens is 4"):
        sft.tokenise(demo, renderer, RolloutConfig(max_new_tokens=4, context_limit=500))


def policy_parts():
    policy = tiny_policy()
    return policy, policy.model, policy.renderer


# ---- the gradient ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """Groups of real episodes whose rows fork, with returns that differ, and a stock model with the same weights."""
    policy = tiny_policy()
    settings = RolloutConfig(max_new_tokens=6, parse_limit=9, context="window:0", max_turns=3, temperature=0.8)
    with EnvPool("test/Echo-v0", {"rounds": 3}) as pool:
        groups = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 3, 4))
    rng = np.random.default_rng(0)
    for trajectory in (t for g in groups for t in g.trajectories):
        for turn in trajectory.turns:
            turn.reward = float(rng.choice([0.0, 0.25, 1.0]))
    assert any(len(t.segments) > 1 for g in groups for t in g.trajectories)
    stock = LlamaForCausalLM(copy.deepcopy(policy.model.config))
    stock.load_state_dict(policy.model.state_dict())
    stock.set_attn_implementation("sdpa")
    return groups, policy.model, stock.eval()


def row_logps(model, segment, temperature):
    """Log-probability of every sampled token of one row, from a plain forward."""
    ids = torch.tensor(segment.ids)
    logits = model(input_ids=ids[None]).logits[0, :-1] / temperature
    logps = logits.log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    at = torch.tensor([i for i, m in enumerate(segment.mask) if m], dtype=torch.long)
    return logps[at - 1, ids[at]], entropy[at - 1]


def advantage_by_hand(preset, returns):
    """A_i for returns [groups][members], written out for each preset."""
    everything = [r for group in returns for r in group]
    out = []
    for group in returns:
        mean = sum(group) / len(group)
        if preset in ("grpo", "dapo", "gspo"):
            deviation = (sum((r - mean) ** 2 for r in group) / (len(group) - 1)) ** 0.5
            out += [(r - mean) / (deviation + 1e-6) for r in group]
        elif preset == "dr_grpo":
            out += [r - mean for r in group]
        elif preset == "rloo":
            out += [r - (sum(group) - r) / (len(group) - 1) for r in group]
        else:
            middle = sum(everything) / len(everything)
            deviation = (sum((r - middle) ** 2 for r in everything) / (len(everything) - 1)) ** 0.5
            out += [(r - mean) / (deviation + 1e-6) for r in group]
    return out


def loss_by_hand(preset, groups, model, reference, kl, bonus, temperature):
    """The loss of one optimizer step, one row at a time, without any of the package's code."""
    trajectories = [t for g in groups for t in g.trajectories]
    returns = [[sum(u.reward for u in t.turns) for t in g.trajectories] for g in groups]
    tokens = sum(sum(s.mask) for t in trajectories for s in t.segments)
    total, clipped, free = 0.0, 0, 0
    for t, a in zip(trajectories, advantage_by_hand(preset, returns), strict=True):
        parts = [row_logps(model, s, temperature) for s in t.segments if any(s.mask)]
        logp, entropy = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        old = torch.tensor([x for s in t.segments for x, m in zip(s.logps, s.mask, strict=True) if m])
        low, high = {"gspo": (3e-4, 4e-4), "dapo": (0.2, 0.28)}.get(preset, (0.2, 0.2))
        ratio = (logp - old).exp() if preset != "gspo" else (logp - old).mean().exp()
        surrogate = -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
        outside = ((ratio > 1 + high) & (a > 0)) | ((ratio < 1 - low) & (a < 0))
        clipped, free = clipped + int(outside.sum()), free + int((~outside).sum())
        extra = -bonus * entropy
        if kl:
            with torch.no_grad():
                ref = torch.cat([row_logps(reference, s, temperature)[0] for s in t.segments if any(s.mask)])
            x = ref - logp
            extra = extra + kl * (x.exp() - x - 1)
        if preset in ("grpo", "gspo"):
            total = total + (surrogate + extra).mean() / len(trajectories)
        elif preset == "dr_grpo":
            total = total + (surrogate + extra).sum() / (len(trajectories) * 256)
        else:
            total = total + (surrogate + extra).sum() / tokens
    assert clipped > 0
    assert free > 0
    return total


@pytest.mark.parametrize("budget", [60, 10_000])
@pytest.mark.parametrize(("kl", "bonus"), [(0.0, 0.0), (0.05, 0.01)])
@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_the_gradient_is_that_of_the_formula(played, preset, kl, bonus, budget):
    groups, model, stock = copy.deepcopy(played[0]), played[1], played[2]
    rng = np.random.default_rng(1)
    for segment in (s for g in groups for t in g.trajectories for s in t.segments):
        noise = rng.normal(0, 2e-3 if preset == "gspo" else 0.2, len(segment))
        segment.logps = [x + float(d) * m for x, d, m in zip(segment.logps, noise, segment.mask, strict=True)]
    other = copy.deepcopy(stock)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.02)
    reference = copy.deepcopy(model)
    reference.load_state_dict(other.state_dict())
    cfg = grpo.make_config(
        {
            "preset": preset,
            "algo": {"kl_coef": kl, "entropy_coef": bonus},
            "optim": {"token_budget": budget, "grad_clip": 1e9},
            "rollout": {"temperature": 0.8},
        }
    )
    learner = Learner(model, cfg.optim)
    gradient = {}
    learner.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in model.named_parameters()})
    advantages = grpo.assign_advantages(cfg.algo, groups)
    loss = grpo.make_loss(cfg.algo, reference if kl else None, 0.8)
    metrics = grpo.update(cfg, learner, groups, advantages, loss)
    assert learner.updates == 1

    stock.zero_grad()
    expected = loss_by_hand(preset, groups, stock, other, kl, bonus, 0.8)
    expected.backward()
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    norm = torch.stack([p.grad.norm() for p in stock.parameters()]).norm()
    assert metrics["optim/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=2e-5 * float(norm))


@pytest.mark.parametrize(("dual", "expected"), [(None, 2 / 6), (3.0, 3 / 6)])
def test_what_dual_clip_cuts_off_is_counted(dual, expected):
    algo = grpo.make_config({"algo": {"dual_clip": dual}}).algo
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 4.0, 1.0])
    batch = SimpleNamespace(
        advantages=torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0]),
        old_logp=torch.zeros(6),
        trajectory=torch.zeros(6, dtype=torch.long),
        weights=torch.ones(6),
    )
    loss, metrics = grpo.make_loss(algo, None, 1.0)(SimpleNamespace(logp=ratio.log(), entropy=torch.zeros(6)), batch)
    assert float(metrics["policy/clip_frac"].mean()) == pytest.approx(expected)
    assert float(loss) == pytest.approx(-1.2 + 1.5 - 0.5 + 0.8 + (dual or 4.0) - 1.0)


def test_every_preset_is_the_row_of_the_table():
    def row(preset):
        a = grpo.make_config({"preset": preset}).algo
        return a.center, a.scale, a.ratio, a.clip_low, a.clip_high, a.aggregation, a.resample, a.kl_coef

    assert set(grpo.PRESETS) == set(ALL_PRESETS)
    assert row("grpo") == ("group", "group", "token", 0.2, 0.2, "seq_mean_token_mean", False, 0.0)
    assert row("dr_grpo") == ("group", "none", "token", 0.2, 0.2, "const", False, 0.0)
    assert row("dapo") == ("group", "group", "token", 0.2, 0.28, "token_mean", True, 0.0)
    assert row("gspo") == ("group", "group", "sequence", 3e-4, 4e-4, "seq_mean_token_mean", False, 0.0)
    assert row("rloo") == ("loo", "none", "token", 0.2, 0.2, "token_mean", False, 0.0)
    assert row("lite_ppo") == ("group", "batch", "token", 0.2, 0.2, "token_mean", False, 0.0)
    assert grpo.make_config({"preset": "dapo", "algo": {"clip_high": 0.3}}).algo.clip_high == 0.3


def test_the_gradient_of_sft_is_that_of_the_formula(played):
    groups, model, stock = copy.deepcopy(played[0]), played[1], played[2]
    demos = [t for g in groups for t in g.trajectories]
    for weight in (0.0, 0.3):
        cfg = sft_config(text_weight=weight, optim={"grad_clip": 1e9, "token_budget": 100})
        learner = Learner(model, cfg.optim)
        gradient = {}
        learner.optimizer.step = lambda g=gradient: g.update({n: p.grad.clone() for n, p in model.named_parameters()})
        learner.step(sft.batches(demos, cfg), sft.loss_fn)
        stock.zero_grad()
        total, weights = 0.0, 0.0
        for segment in (s for d in demos for s in d.segments):
            last = max(i for i, m in enumerate(segment.mask) if m)
            ids = torch.tensor(segment.ids[: last + 1])
            logps = stock(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            w = torch.tensor([1.0 if m else weight for m in segment.mask[1 : last + 1]])
            total, weights = total - (w * logps).sum(), weights + float(w.sum())
        (total / weights).backward()
        for name, parameter in stock.named_parameters():
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0, 6])
def test_an_optimizer_step_is_clipped_adamw_with_warm_up_and_decay(played, decay):
    model, stock = copy.deepcopy(played[1]), copy.deepcopy(played[2])
    groups = played[0]
    optim = {"lr": 1e-2, "warmup_steps": 4, "decay_steps": decay, "grad_clip": 0.05, "weight_decay": 0.1}
    cfg = sft_config(optim=optim)
    learner = Learner(model, cfg.optim)
    optimizer = torch.optim.AdamW(stock.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    batches = sft.batches([t for g in groups for t in g.trajectories], cfg)
    rates = [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0] if decay else [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    for rate in rates:
        captured = {}
        real = learner.optimizer.step
        learner.optimizer.step = lambda c=captured, r=real: (
            c.update({n: p.grad.clone() for n, p in model.named_parameters()}),
            r(),
        )
        metrics = learner.step(batches, sft.loss_fn)
        learner.optimizer.step = real
        assert metrics["optim/lr"] == pytest.approx(1e-2 * rate)
        norm = torch.stack([g.norm() for g in captured.values()]).norm()
        assert float(norm) <= 0.0501 < metrics["optim/grad_norm"]
        optimizer.param_groups[0]["lr"] = metrics["optim/lr"]
        for name, parameter in stock.named_parameters():
            parameter.grad = captured[name]
        optimizer.step()
        for (name, a), b in zip(model.named_parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
    assert all(p.grad is None for p in model.parameters())


def test_dropout_never_runs_in_training(played):
    model = copy.deepcopy(played[1])
    model.model.layers[0].mlp.register_module("drop", torch.nn.Dropout(0.9))
    inner = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: model.model.layers[0].mlp.drop(inner(x))
    cfg = grpo.make_config({"rollout": {"temperature": 0.8}})
    learner = Learner(model.train(), cfg.optim)
    groups = copy.deepcopy(played[0])
    metrics = grpo.update(
        cfg, learner, groups, grpo.assign_advantages(cfg.algo, groups), grpo.make_loss(cfg.algo, None, 0.8)
    )
    assert abs(metrics["policy/mismatch_kl"]) < 1e-6


def test_a_step_that_was_broken_off_leaves_no_gradient_for_the_next(played):
    demos = [t for g in played[0] for t in g.trajectories]
    batches = sft.batches(demos, sft_config())

    def norm(break_off):
        learner = Learner(copy.deepcopy(played[1]), OptimConfig())

        def broken(out, batch):
            loss, _ = sft.loss_fn(out, batch)
            loss.backward(retain_graph=True)
            raise MemoryError

        if break_off:
            with pytest.raises(MemoryError):
                learner.step(batches, broken)
        return learner.step(batches, sft.loss_fn)["optim/grad_norm"]

    assert norm(True) == norm(False)


def test_a_gradient_that_is_not_finite_changes_nothing(played):
    model = copy.deepcopy(played[1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner = Learner(model, OptimConfig(lr=0.5))
    batches = sft.batches([t for g in played[0] for t in g.trajectories], sft_config())
    with pytest.raises(AgentGymError, match=r"gradient of update 0 is not finite: lower optim.lr \(0.5\)"):
        learner.step(batches, lambda out, batch: ((out.logp * float("nan")).sum(), {}))
    assert learner.updates == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# ---- advantages and updates -----------------------------------------------------------------------------


def test_advantages_stand_on_exactly_the_sampled_tokens(played):
    groups = copy.deepcopy(played[0])
    cfg = grpo.make_config({"algo": {"overlong_length": 20, "overlong_buffer": 15}})
    advantages = grpo.assign_advantages(cfg.algo, groups)
    trajectories = [t for g in groups for t in g.trajectories]
    assert len(set(advantages.tolist())) > 4
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        for segment in trajectory.segments:
            assert segment.advantages == [float(advantage) if m else 0.0 for m in segment.mask]
    micro = grpo.batches(trajectories, cfg)
    sampled = [(i, x) for i, t in enumerate(trajectories) for s in t.segments for x in s.advantages if x]
    packed = [(int(i), float(a)) for b in micro for i, a in zip(b.trajectory, b.advantages, strict=True) if a]
    assert [i for i, _ in packed] == [i for i, _ in sampled]
    np.testing.assert_allclose([a for _, a in packed], [a for _, a in sampled], rtol=1e-6)
    assert sum(len(b.targets) for b in micro) == sum(t.action_tokens for t in trajectories)
    assert float(sum(b.weights.sum() for b in micro)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("updates", "minibatches"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_each_pass_trains_every_token_once(played, updates, minibatches):
    groups = copy.deepcopy(played[0])
    cfg = grpo.make_config({"updates": updates, "minibatches": minibatches, "rollout": {"temperature": 0.8}})
    learner = Learner(copy.deepcopy(played[1]), OptimConfig(lr=1e-2))
    seen, ratios = [], []
    plain = grpo.make_loss(cfg.algo, None, 0.8)

    def watched(out, batch):
        seen.append([(float(o), int(t)) for o, t in zip(batch.old_logp, batch.targets, strict=True)])
        ratios.append(float((out.logp.detach() - batch.old_logp).abs().max()))
        return plain(out, batch)

    metrics = grpo.update(cfg, learner, groups, grpo.assign_advantages(cfg.algo, groups), watched)
    assert learner.updates == updates * minibatches
    every = sorted(pair for part in seen for pair in part)
    once = sorted(
        (float(np.float32(x)), i)
        for g in groups
        for t in g.trajectories
        for s in t.segments
        for x, i, m in zip(s.logps, s.ids, s.mask, strict=True)
        if m
    )
    assert every == sorted(once * updates)
    assert ratios[0] < 1e-5  # the first step is on policy
    assert updates * minibatches == 1 or ratios[-1] > 1e-3
    assert abs(metrics["policy/mismatch_kl"]) < 1e-6


def test_a_batch_without_signal_is_not_trained_on(played):
    groups = copy.deepcopy(played[0])
    for trajectory in (t for g in groups for t in g.trajectories):
        for turn in trajectory.turns:
            turn.reward = 0.5
    for kl, expected in ((0.0, 0), (0.1, 1)):
        cfg = grpo.make_config({"algo": {"kl_coef": kl}, "rollout": {"temperature": 0.8}})
        learner = Learner(copy.deepcopy(played[1]), OptimConfig())
        loss = grpo.make_loss(cfg.algo, copy.deepcopy(played[1]) if kl else None, 0.8)
        grpo.update(cfg, learner, groups, grpo.assign_advantages(cfg.algo, groups), loss)
        assert learner.updates == expected


def test_fewer_trajectories_than_minibatches_are_enough(played):
    groups = copy.deepcopy(played[0][:1])
    groups[0].trajectories = groups[0].trajectories[:2]
    cfg = grpo.make_config(
        {"groups": 8, "minibatches": 8, "algo": {"entropy_coef": 0.1}, "rollout": {"temperature": 0.8}}
    )
    learner = Learner(copy.deepcopy(played[1]), OptimConfig())
    advantages = grpo.assign_advantages(cfg.algo, groups)
    grpo.update(cfg, learner, groups, advantages, grpo.make_loss(cfg.algo, None, 0.8))
    assert learner.updates == 2
    assert (
        grpo.update(cfg, learner, [], grpo.assign_advantages(cfg.algo, []), grpo.make_loss(cfg.algo, None, 0.8)) == {}
    )


# ---- groups ---------------------------------------------------------------------------------------------


class Scripted:
    """A rollout whose groups have the returns one wants; it records the tasks it was given."""

    def __init__(self, spread):
        self.spread = spread
        self.rounds = []
        self.stats = type("Stats", (), {"messages": {"env_error": "it broke"}})()

    def collect(self, tasks):
        self.rounds.append(tasks)
        groups = {}
        for task in tasks:
            group = groups.setdefault(task.group, Group(task.group, task.env_seed))
            reward = float(task.member) if self.spread(task.index) else 1.0
            turn = Turn("o", 0, 0, 1, 2, "t", "a", reward=reward)
            segment = Segment([1, 2], [0, 1], [0.0, -1.0], [-1, 0])
            trajectory = Trajectory("e", task.env_seed, task.group, task.member, status=Status.DONE)
            trajectory.turns, trajectory.segments = [turn], [segment]
            group.trajectories.append(trajectory)
        return [g for g in groups.values() if self.spread(int(g.id[-3:])) is not None]


def test_resampling_draws_groups_whose_seeds_were_never_used():
    cfg = grpo.make_config({"preset": "dapo", "groups": 6, "group_size": 3})
    rollout = Scripted(lambda index: index % 3 == 0)
    kept, drawn = grpo.collect(cfg, rollout, 5)
    assert [len(r) // 3 for r in rollout.rounds] == [6, 4, 2, 2, 1]
    assert [g.id for g in kept] == ["00005-000", "00005-003", "00005-006", "00005-009", "00005-012"]
    assert len(drawn) == 15
    tasks = [t for r in rollout.rounds for t in r]
    assert len({t.group for t in tasks}) == len({t.env_seed for t in tasks}) == 15
    assert len({t.sampling_seed for t in tasks}) == 45
    assert tasks == group_tasks(0, 5, 15, 3)
    used = {t.env_seed for t in tasks}
    grpo.collect(cfg, rollout, 6)
    assert not used & {t.env_seed for r in rollout.rounds[5:] for t in r}


def test_resampling_ends_and_a_task_that_is_solved_is_no_error():
    cfg = grpo.make_config({"preset": "dapo", "groups": 4, "group_size": 2, "algo": {"max_resample": 2}})
    rollout = Scripted(lambda index: False)
    kept, drawn = grpo.collect(cfg, rollout, 0)
    assert (kept, len(drawn), len(rollout.rounds)) == ([], 12, 3)
    metrics = rollout_metrics([t for g in drawn for t in g.trajectories], RolloutStats(), 1.0)
    assert (metrics["reward/mean"], metrics["group/zero_std_frac"]) == (1.0, 1.0)


def test_without_resampling_nothing_is_replaced():
    cfg = grpo.make_config({"groups": 4, "group_size": 2})
    rollout = Scripted(lambda index: index == 0)
    kept, drawn = grpo.collect(cfg, rollout, 0)
    assert len(kept) == len(drawn) == 4
    assert len(rollout.rounds) == 1


def test_a_step_of_which_every_group_failed_says_why():
    cfg = grpo.make_config({"groups": 4, "group_size": 2})
    with pytest.raises(TooManyFailures, match="all 4 groups of step 3 failed for reasons outside the policy: it broke"):
        grpo.collect(cfg, Scripted(lambda index: None), 3)


# ---- resume ---------------------------------------------------------------------------------------------


def rows(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "perf/"))} for line in lines if line
    ]


def plain(trajectory):
    data = trajectory.to_dict()
    data["env_id"] = trajectory.env_id.rpartition(":")[2]
    for turn in data["turns"]:
        turn["policy_s"] = turn["env_s"] = 0.0
    return data


def samples(folder):
    return {p.name: [plain(t) for t in store.read(p)] for p in sorted((Path(folder) / "trajectories").glob("*.jsonl"))}


def assert_equal_state(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_state(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(a, b):
    """Weights, optimizer, metrics, evaluations and trajectories, bit by bit."""
    a, b = Path(a), Path(b)
    assert_equal_state(load_file(a / "final" / "model.safetensors"), load_file(b / "final" / "model.safetensors"))
    last, other = checkpoint.latest(a / "checkpoints"), checkpoint.latest(b / "checkpoints")
    assert last.name == other.name
    states = [torch.load(p / "trainer_state.pt", weights_only=True) for p in (last, other)]
    assert_equal_state(*states)
    assert states[0]["optimizer"]["state"]
    assert_equal_state(load_file(last / "model.safetensors"), load_file(other / "model.safetensors"))
    assert rows(a) == rows(b)
    assert json.loads((a / "evaluation.json").read_text()) == json.loads((b / "evaluation.json").read_text())
    assert samples(a) == samples(b)


@pytest.fixture(scope="session")
def straight(warm, tmp_path_factory):
    """Every trainer, four steps without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    sft.main(sft_config(**SHORT_SFT), folder / "sft")
    grpo.main(grpo_config(warm[0] / "final", **SHORT), folder / "grpo")
    ppo.main(ppo_config(warm[0] / "final", **SHORT_PPO), folder / "ppo")
    assert len(rows(folder / "sft")) == 5
    assert len([row for row in rows(folder / "grpo") if "reward/mean" in row]) == 4
    assert len([row for row in rows(folder / "grpo") if "eval/success" in row]) == 5
    learned = [row for row in rows(folder / "grpo") if "optim/loss" in row]
    assert learned[0]["policy/kl_ref"] < 1e-6 < learned[-1]["policy/kl_ref"]  # the reference stays what it was
    return folder


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(warm, straight, tmp_path):
    grpo.main(grpo_config(warm[0] / "final", **SHORT), tmp_path / "again")
    assert_same_run(straight / "grpo", tmp_path / "again")
    grpo.main(grpo_config(warm[0] / "final", **SHORT, seed=1), tmp_path / "other")
    assert rows(straight / "grpo") != rows(tmp_path / "other")


def test_sft_goes_on_bit_by_bit(straight, tmp_path):
    out = tmp_path / "sft"
    sft.main(sft_config(**{**SHORT_SFT, "epochs": 1}), out)
    assert len(rows(out)) == 3
    sft.main(sft_config(**SHORT_SFT), out, resume=True)
    assert_same_run(straight / "sft", out)


def test_every_epoch_of_sft_sees_every_demonstration_once_in_another_order(tmp_path, monkeypatch):
    seen, real = [], sft.batches

    def watched(demos, cfg):
        seen.append([d.env_seed for d in demos])
        return real(demos, cfg)

    monkeypatch.setattr(sft, "batches", watched)
    sft.main(sft_config(**{**SHORT_SFT, "demonstrations": 11, "batch_size": 4, "epochs": 3}), tmp_path / "sft")
    assert [len(part) for part in seen] == [4, 4, 3] * 3
    epochs = [[*seen[k], *seen[k + 1], *seen[k + 2]] for k in (0, 3, 6)]
    assert [sorted(e) for e in epochs] == [sorted(seeding.env_seed(0, 0, g) for g in range(11))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_grpo_goes_on_bit_by_bit(warm, straight, tmp_path, steps):
    out = tmp_path / "grpo"
    grpo.main(grpo_config(warm[0] / "final", **{**SHORT, "steps": steps}), out)
    grpo.main(grpo_config(warm[0] / "final", **SHORT), out, resume=True)
    assert_same_run(straight / "grpo", out)


@pytest.mark.parametrize("backbone", ["frozen", "shared"])
def test_ppo_goes_on_bit_by_bit(warm, straight, tmp_path, backbone):
    settings = overlay(SHORT_PPO, {"critic": {"backbone": backbone}})
    whole = straight / "ppo"
    if backbone == "shared":
        whole = tmp_path / "whole"
        ppo.main(ppo_config(warm[0] / "final", **settings), whole)
    ppo.main(ppo_config(warm[0] / "final", **{**settings, "steps": 2}), tmp_path / "ppo")
    ppo.main(ppo_config(warm[0] / "final", **settings), tmp_path / "ppo", resume=True)
    assert_same_run(whole, tmp_path / "ppo")


def test_resuming_a_finished_run_changes_nothing(warm, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "copy")
    grpo.main(grpo_config(warm[0] / "final", **SHORT), tmp_path / "copy" / "grpo", resume=True)
    sft.main(sft_config(**SHORT_SFT), tmp_path / "copy" / "sft", resume=True)
    assert_same_run(straight / "grpo", tmp_path / "copy" / "grpo")
    assert_same_run(straight / "sft", tmp_path / "copy" / "sft")


def command(algorithm, warm, out, settings, resume):
    """The same run as a command line."""
    make = {"grpo": grpo_config, "ppo": ppo_config}
    config = sft_config(**settings) if algorithm == "sft" else make[algorithm](warm[0] / "final", **settings)
    file = out.with_suffix(".yaml")
    file.write_text(dump(config))
    return ["train", algorithm, "--config", str(file), "--out", str(out), *(["--resume"] if resume else [])]


def fork(arguments):
    """Run the command line in a process of its own, without importing torch anew."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = cli.main(arguments)
        finally:
            os._exit(code)
    return child


@pytest.mark.parametrize("algorithm", ["sft", "grpo", "ppo"])
def test_a_run_that_is_killed_again_and_again_ends_bit_by_bit_the_same(warm, straight, tmp_path, algorithm):
    out, settings = tmp_path / algorithm, {"sft": SHORT_SFT, "grpo": SHORT, "ppo": SHORT_PPO}[algorithm]
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"the moments were drawn with seed {seed}")
    rng, killed, finished = random.Random(seed), 0, 0
    started = time.monotonic()
    os.waitpid(fork(command(algorithm, warm, tmp_path / "measure", settings, False)), 0)
    duration = time.monotonic() - started
    while killed < 5 and finished < 3:
        child = fork(command(algorithm, warm, out, settings, (out / "config.yaml").exists()))
        time.sleep(rng.uniform(0.1, 0.7) * duration)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        finished += os.WIFEXITED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    _, status = os.waitpid(fork(command(algorithm, warm, out, settings, (out / "config.yaml").exists())), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert_same_run(straight / algorithm, out)
    assert not list((out / "checkpoints").glob(".*"))


def wait_for_step(out, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        lines = (out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else ""
        if f'{{"step": {step}, "reward/mean"' in lines:
            return
        time.sleep(0.002)
    raise AssertionError("the run does not get there")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on_bit_by_bit(warm, straight, tmp_path, kind):
    out, settings = tmp_path / "grpo", {**SHORT, "save_every": 1000}
    arguments = command("grpo", warm, out, settings, False)
    arguments += ["--set", "env.id=helpers_envs:test/Echo-v0"]
    run = [sys.executable, "-m", "agentgym.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 1, process)
    process.send_signal(kind)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "agentgym: interrupted" in error
    assert "Traceback" not in error
    assert not children(process.pid)
    saved = checkpoint.latest(out / "checkpoints")
    step = int(saved.name[5:])
    assert 1 <= step <= 4
    assert rows(out)[-1]["step"] == step
    cfg = grpo_config(warm[0] / "final", **settings, env={"id": "helpers_envs:test/Echo-v0"})
    grpo.main(cfg, out, resume=True)
    assert_equal_state(
        load_file(straight / "grpo" / "final" / "model.safetensors"), load_file(out / "final" / "model.safetensors")
    )
    assert rows(out) == rows(straight / "grpo")
    assert samples(out) == samples(straight / "grpo")


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(stat.parent.name)
    return found


def test_a_run_that_stops_for_failures_keeps_what_it_learned(warm, tmp_path):
    out = tmp_path / "grpo"
    values = {**SHORT, "preset": "grpo", "eval": {"final_episodes": 4}, "save_every": 1000, "minibatches": 1}
    step_two = tuple(seeding.env_seed(0, 2, g) for g in range(4))
    settings = {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300, "retries": 0, "parse_limit": 9}
    settings["max_failure_rate"] = 0.9
    values |= {"rollout": settings, "env": {"id": "test/Fault-v0", "kwargs": {"fault": "raise", "seeds": step_two}}}
    helpers_envs.forget()
    with pytest.raises(TooManyFailures, match=r"all 4 groups of step 2 failed.*it broke"):
        grpo.main(grpo_config(warm[0] / "final", **values), out)
    assert checkpoint.latest(out / "checkpoints").name == "step_00002"
    assert [row["step"] for row in rows(out)] == [0, 1, 2]
    helpers_envs.forget()
    helpers_envs.BROKEN.update(dict.fromkeys(step_two, 10**9))  # the environment works again
    grpo.main(grpo_config(warm[0] / "final", **values), out, resume=True)
    assert checkpoint.latest(out / "checkpoints").name == "step_00004"


# ---- checkpoints and settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_as_good(warm, straight, tmp_path, name, damage):
    shutil.copytree(straight / "grpo", tmp_path / "grpo")
    out = tmp_path / "grpo"
    newest = checkpoint.latest(out / "checkpoints")
    file = newest / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"\x00\xff" * 5000}[damage])
    cfg = grpo_config(warm[0] / "final", **SHORT)
    if (name, damage) == ("trainer_state.pt", "gone"):  # as if it had never been finished
        grpo.main(cfg, out, resume=True)
    else:
        with pytest.warns(UserWarning, match="is damaged .*going on from step_"):
            grpo.main(cfg, out, resume=True)
        assert newest.with_name(f"damaged_{newest.name}").is_dir()
    assert checkpoint.latest(out / "checkpoints") == newest
    assert_same_run(straight / "grpo", out)


def test_a_run_whose_only_checkpoint_is_damaged_stops(warm, straight, tmp_path):
    shutil.copytree(straight / "grpo", tmp_path / "grpo")
    for file in (tmp_path / "grpo" / "checkpoints").glob("step_*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"step_\d+ is damaged") as caught, pytest.warns(UserWarning, match="damaged"):
        grpo.main(grpo_config(warm[0] / "final", **SHORT), tmp_path / "grpo", resume=True)
    assert "\n" not in str(caught.value)


def test_checkpoints_are_kept_in_the_order_of_their_numbers(tmp_path):
    model, tokenizer = tiny_model()
    for step in (99_998, 99_999, 100_000, 100_001):
        checkpoint.save(tmp_path / f"step_{step:05d}", model, tokenizer, {"step": step})
    (tmp_path / "step_best").mkdir()
    (tmp_path / "step_best" / "trainer_state.pt").touch()
    (tmp_path / ".step_100002.tmp-1").mkdir()
    assert checkpoint.latest(tmp_path).name == "step_100001"
    assert {p.name for p in tmp_path.glob("step_[0-9]*")} == {"step_100000", "step_100001"}
    assert not checkpoint.latest(tmp_path / "nowhere")


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    model, tokenizer = tiny_model()
    real, seen = Path.rename, []

    def rename(path, target):
        seen.append({p.name for p in path.iterdir()})
        assert not Path(target).exists()
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    checkpoint.save(tmp_path / "step_00001", model, tokenizer, {**Learner(model, OptimConfig()).state(), "step": 1})
    assert len(seen) == 1
    assert {"model.safetensors", "trainer_state.pt", "tokenizer.json", "config.json"} <= seen[0]
    (tmp_path / ".step_00002.tmp-123").mkdir()
    (tmp_path / ".step_00002.tmp-123" / "model.safetensors").write_bytes(b"half of it")
    assert checkpoint.resume(tmp_path, Learner(model, OptimConfig())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00001"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    model, tokenizer = tiny_model()
    checkpoint.save(tmp_path / "step_00001", model, tokenizer, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "step_00002", model, tokenizer, {"step": lambda: 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00001"]


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    small, tokenizer = tiny_model(hidden=16)
    large, _ = tiny_model()
    checkpoint.save(tmp_path / "step_00001", small, tokenizer, {"step": 1})
    with pytest.raises(ConfigError, match="step_00001"):
        checkpoint.resume(tmp_path, Learner(large, OptimConfig()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0, not 1"),
        ({"groups": 5}, "groups: 4, not 5"),
        ({"algo": {"kl_coef": 0.5}}, "algo.kl_coef: 0.01, not 0.5"),
        ({"optim": {"betas": [0.9, 0.99]}}, r"optim.betas: \[0.9, 0.95\], not \[0.9, 0.99\]"),
        ({"rollout": {"temperature": 0.9}}, "rollout.temperature: 1.0, not 0.9"),
        ({"env": {"kwargs": {"rounds": 3}}}, "env.kwargs"),
        ({"eval": {"seed": 1}}, "eval.seed: 12345, not 1"),
        ({"eval": {"final_episodes": 9}}, "eval.final_episodes: 4, not 9"),
        ({"preset": "grpo"}, "algo.aggregation|algo.clip_high|preset"),
    ],
)
def test_a_run_goes_on_only_with_its_own_settings(warm, straight, change, named):
    before = {p: p.stat().st_mtime_ns for p in (straight / "grpo").rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(ConfigError, match=named):
        grpo.main(grpo_config(warm[0] / "final", **overlay(SHORT, change)), straight / "grpo", resume=True)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_what_does_not_change_what_is_learned_may_change(warm, straight, tmp_path):
    shutil.copytree(straight / "grpo", tmp_path / "grpo")
    free = {"save_every": 3, "show_every": 2, "eval": {"every": 0, "episodes": 9}, "optim": {"lr": 1e-4}, "steps": 5}
    free["rollout"] = {"concurrency": 3, "retries": 9, "step_timeout": 9.0, "max_failure_rate": 0.5}
    grpo.main(grpo_config(warm[0] / "final", **overlay(SHORT, free)), tmp_path / "grpo", resume=True)
    trained = [row for row in rows(tmp_path / "grpo") if "reward/mean" in row]
    assert trained[:4] == [row for row in rows(straight / "grpo") if "reward/mean" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5]


def test_a_run_of_another_algorithm_is_not_gone_on_with(straight):
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        sft.main(sft_config(**SHORT_SFT), straight / "grpo", resume=True)


def test_a_run_is_never_overwritten_and_nothing_is_nothing_to_resume(warm, straight, tmp_path):
    with pytest.raises(ConfigError, match="holds a run already: use --resume, or another --out"):
        grpo.main(grpo_config(warm[0] / "final", **SHORT), straight / "grpo")
    with pytest.raises(ConfigError, match="nothing to resume"):
        grpo.main(grpo_config(warm[0] / "final", **SHORT), tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_run_that_failed_before_it_began_may_start_anew(warm, tmp_path):
    too_long = overlay(SHORT, {"rollout": {"context_limit": 10, "max_new_tokens": 6}})
    for trainer, bad, good in (
        (grpo, grpo_config(warm[0] / "final", **too_long), grpo_config(warm[0] / "final", **{**SHORT, "steps": 1})),
        (
            sft,
            sft_config(**SHORT_SFT, rollout={"max_new_tokens": 1}),
            sft_config(**{**SHORT_SFT, "epochs": 1, "seed": 3}),
        ),
    ):
        out = tmp_path / trainer.__name__
        with pytest.raises(ConfigError):
            trainer.main(bad, out)
        trainer.main(good, out)
        assert (out / "final" / "config.json").is_file()
    demos = store.read(tmp_path / sft.__name__ / "demonstrations.jsonl")
    assert demos[0].env_seed == seeding.env_seed(3, 0, 0)


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        run = Run(tmp_path / "run", sft_config())
        os.write(told, b"x")
        time.sleep(60)
        os._exit(run is None)
    try:
        os.read(ready, 1)
        with pytest.raises(ConfigError, match="another process works in"):
            Run(tmp_path / "run", sft_config(), resume=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
    Run(tmp_path / "run", sft_config(), resume=True)
    Run(tmp_path / "run", sft_config(), resume=True)  # the same process may, as a notebook does


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_shielded_block_is_done_before_it_is_interrupted(kind):
    done = []

    def work():
        with shielded():
            os.kill(os.getpid(), kind)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rewinding_drops_what_came_later_and_a_line_that_was_cut(tmp_path):
    run = Run(tmp_path, sft_config())
    for step in range(1, 6):
        run.log(step, {"x": float(step)})
        run.trajectories(f"step_{step:05d}", [])
    run.trajectories("eval_step_00005", [])
    run.trajectories("demonstrations", [])
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 3, "x"')
    run.rewind(3)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    names = sorted(p.stem for p in (tmp_path / "trajectories").iterdir())
    assert names == ["demonstrations", "step_00001", "step_00002", "step_00003"]
    run.rewind(0)
    assert rows(tmp_path) == []


def test_sft_without_a_demonstration_says_why(tmp_path):
    with pytest.raises(ConfigError, match="the environment has no expert"):
        sft.main(sft_config(**SHORT_SFT, env={"id": "test/NoExpert-v0"}), tmp_path / "a")
    helpers_envs.forget()
    broken = {"id": "test/Fault-v0", "kwargs": {"fault": "raise"}}
    with pytest.raises(TooManyFailures, match="no demonstration succeeded: reset raised RuntimeError: it broke"):
        sft.main(sft_config(**{**SHORT_SFT, "demonstrations": 3}, env=broken), tmp_path / "b")
    with pytest.raises(TooManyFailures, match=r"of the last 8 groups failed.*it broke"):
        sft.main(sft_config(**SHORT_SFT, env=broken), tmp_path / "c")


@pytest.mark.parametrize(
    ("trainer", "values", "named"),
    [
        *((sft, {k: v}, k) for k in ("demonstrations", "epochs", "batch_size", "save_every") for v in (0, -1)),
        *((grpo, {k: v}, k) for k in ("steps", "groups", "updates", "minibatches", "save_every") for v in (0, -1)),
        (grpo, {"show_every": 0}, "show_every"),
        (grpo, {"group_size": 1}, "group_size is 1"),
        (grpo, {"minibatches": 9, "groups": 8}, "minibatches"),
        (grpo, {"seed": -1}, "seed is -1"),
        (sft, {"seed": -1}, "seed is -1"),
        (sft, {"noise": 1.5}, "noise is 1.5"),
        (sft, {"noise": float("nan")}, "noise"),
        (sft, {"text_weight": -0.1}, "text_weight"),
        (sft, {"rollout": {"context_limit": 5000}}, "the tiny model reads 4096"),
        (sft, {"model": {"hidden": 30, "heads": 4}}, "model.hidden"),
        (sft, {"model": {"layers": 0}}, "model.layers"),
        (sft, {"model": {"heads": 0}}, "model.heads"),
        (sft, {"model": {"vocab_size": 100}}, "model.vocab_size"),
        (sft, {"model": {"threads": -1}}, "model.threads"),
        (sft, {"model": {"dtype": "float8"}}, "model.dtype"),
        *((sft, {"eval": {k: -1}}, f"eval.{k}") for k in ("every", "episodes", "final_episodes", "seed")),
        (sft, {"eval": {"final_episodes": 0}}, "eval.final_episodes"),
        *((sft, {"optim": {k: v}}, f"optim.{k}") for k in ("lr", "grad_clip") for v in (0.0, -1.0, float("nan"))),
        (sft, {"optim": {"token_budget": 0}}, "optim.token_budget"),
        (sft, {"optim": {"warmup_steps": -1}}, "optim.warmup_steps"),
        (sft, {"optim": {"decay_steps": -1}}, "optim.decay_steps"),
        (sft, {"optim": {"warmup_steps": 9, "decay_steps": 9}}, "optim.decay_steps"),
        (sft, {"optim": {"weight_decay": -0.1}}, "optim.weight_decay"),
        (sft, {"optim": {"betas": [0.9, 1.0]}}, "optim.betas"),
        (sft, {"optim": {"betas": [0.9]}}, "optim.betas"),
        (grpo, {"rollout": {"temperature": 0.0}}, "rollout.temperature|temperature above 0"),
        (grpo, {"rollout": {"top_p": 0.9}}, "rollout.top_p"),
        (grpo, {"algo": {"dual_clip": 0.5}}, "algo.dual_clip"),
        (grpo, {"algo": {"const_length": 0}}, "algo.const_length"),
        (grpo, {"algo": {"clip_low": -0.1}}, "algo.clip_low"),
        (grpo, {"algo": {"clip_low": 1.0}}, "algo.clip_low"),
        (grpo, {"algo": {"clip_high": -0.1}}, "algo.clip_high"),
        *(
            (grpo, {"algo": {k: -1}}, f"algo.{k}")
            for k in ("kl_coef", "entropy_coef", "max_resample", "overlong_length")
        ),
        (grpo, {"algo": {"overlong_length": 5, "overlong_buffer": 6}}, "algo.overlong_buffer"),
        (grpo, {"algo": {"center": "mean"}}, "algo.center"),
        (grpo, {"preset": "ppo"}, "unknown preset 'ppo'"),
        (grpo, {"preset": ["grpo"]}, "unknown preset"),
        (grpo, {"preset": None}, "unknown preset"),
        (grpo, {"algo": 3}, "algo"),
        (grpo, {"algo": None}, "algo"),
    ],
)
def test_wrong_settings_are_refused_by_name(trainer, values, named):
    with pytest.raises(ConfigError, match=named):
        trainer.make_config(values)
