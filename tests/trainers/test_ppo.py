"""PPO: its gradient is that of the formula, the critic reads what it should, runs resume bit by bit, and it learns."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from agentgym.trainers import ppo, sft
from helpers_by_hand import gae_by_hand, head_by_hand
from helpers_policies import tiny_policy
from transformers import LlamaForCausalLM

from agentgym.config import overlay
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner.critic import Critic, CriticConfig
from agentgym.learner.learner import Learner
from agentgym.learner.model import frozen_copy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks

COMMON = {
    "env": {"id": "test/Echo-v0"},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300},
    "eval": {"final_episodes": 64},
}
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    out = tmp_path_factory.mktemp("warm") / "sft"
    changes = {"demonstrations": 128, "epochs": 20, "noise": 0.5, "optim": {"lr": 3e-3}}
    sft.main(sft.make_config(overlay(COMMON, changes)), out)
    return out / "final"


@pytest.fixture(scope="module")
def played():
    """Trajectories with forks and rewards in every turn, the model that played, and transformers' own copy of it."""
    policy = tiny_policy(3)
    settings = RolloutConfig(
        max_turns=3, max_new_tokens=5, context_limit=300, temperature=TEMPERATURE, context="window:1", parse_limit=9
    )
    with EnvPool("test/Echo-v0", {"rounds": 3}) as pool:
        groups = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 6, 1))
    trajectories = [t for g in groups for t in g.trajectories]
    rng = np.random.default_rng(0)
    for turn in (u for t in trajectories for u in t.turns):
        turn.reward = float(rng.choice([0.0, 0.25, 1.0]))
    assert any(len(t.segments) > 1 for t in trajectories)
    stock = LlamaForCausalLM(copy.deepcopy(policy.model.config))
    stock.load_state_dict(policy.model.state_dict())
    stock.set_attn_implementation("sdpa")
    return trajectories, policy.model, stock.eval()


def plain(model, segment):
    """Log-probability, entropy and hidden state of every sampled token of one row, from a plain forward."""
    ids = torch.tensor(segment.ids)
    out = model(input_ids=ids[None], output_hidden_states=True)
    logps = (out.logits[0, :-1] / TEMPERATURE).log_softmax(-1)
    at = torch.tensor([i for i, m in enumerate(segment.mask) if m], dtype=torch.long)
    return logps[at - 1, ids[at]], -(logps.exp() * logps).sum(-1)[at - 1], out.hidden_states[-1][0][at - 1]


def join(model, trajectory):
    parts = [plain(model, s) for s in trajectory.segments if any(s.mask)]
    return tuple(torch.cat([p[k] for p in parts]) for k in range(3))


@pytest.mark.parametrize("budget", [60, 10_000])
@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("backbone", ["frozen", "shared"])
def test_the_gradient_is_that_of_the_formula(played, backbone, kl, budget):
    trajectories, model, stock = copy.deepcopy(played[0]), played[1], played[2]
    algo = {"gamma": 0.9, "lam": 0.8, "gamma_token": 0.95, "lam_token": 0.7, "entropy_coef": 0.01, "kl_coef": kl}
    cfg = ppo.make_config(
        {
            "algo": {**algo, "clip_high": 0.28},
            "critic": {"backbone": backbone, "widths": [16, 8], "coef": 0.3, "clip": 0.05},
            "optim": {"token_budget": budget, "grad_clip": 1e9},
            "rollout": {"temperature": TEMPERATURE},
            "minibatches": 1,
            "episodes": 6,
        }
    )
    critic = Critic(model, cfg.critic, 0)
    torch.nn.init.normal_(critic.head.layers[-1].weight, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(stock)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.02)
    reference = copy.deepcopy(model)
    reference.load_state_dict(other.state_dict())
    learner = Learner(model, cfg.optim, critic.head, 1e-3)
    gradient = {}

    def keep():
        gradient.update({n: p.grad.clone() for n, p in model.named_parameters()})
        gradient.update({f"head.{n}": p.grad.clone() for n, p in critic.head.named_parameters()})

    learner.optimizer.step = keep
    credit, _ = ppo.assign_credit(cfg, critic, reference if kl else None, trajectories)
    rng = np.random.default_rng(1)
    moved = []  # what was sampled, and valued, by another policy than the one that is trained
    for t, c in zip(trajectories, credit, strict=True):
        for s in t.segments:
            s.logps = [x + float(d) * m for x, d, m in zip(s.logps, rng.normal(0, 0.2, len(s)), s.mask, strict=True)]
        moved.append(c.old_values + rng.normal(0, 0.1, len(c.old_values)))
        c.old_values = moved[-1]
    metrics = ppo.update(cfg, learner, trajectories, credit, ppo.make_loss(cfg, critic.head), 0)

    weights = [w.detach().clone().requires_grad_() for w in critic.head.parameters()]
    stock.zero_grad()
    raw, policy, value, targets = [], [], [], []
    for t, (clean, *_), old_values in zip(trajectories, played_logps(played), moved, strict=True):
        logp, entropy, hidden = join(stock, t)
        hidden = hidden.detach() if backbone == "frozen" else hidden
        values = head_by_hand(weights, hidden)
        rewards, last = [0.0] * len(logp), [False] * len(logp)
        end = 0
        for turn in t.turns:
            end += turn.stop - turn.start
            rewards[end - 1], last[end - 1] = turn.reward, True
        if kl:
            with torch.no_grad():
                ref = join(other, t)[0]
            rewards = [r - kl * float(a - b) for r, a, b in zip(rewards, clean, ref, strict=True)]
        v = values.detach().tolist()
        a = gae_by_hand(rewards, v, last, 0.9, 0.8, 0.95, 0.7)
        raw += a
        targets.append(torch.tensor([x + y for x, y in zip(a, v, strict=True)]))
        old = torch.tensor([x for s in t.segments for x, m in zip(s.logps, s.mask, strict=True) if m])
        policy.append(((logp - old).exp(), entropy))
        value.append((values, torch.tensor(old_values, dtype=torch.float32)))
    raw = torch.tensor(raw)
    white = (raw - raw.mean()) / (raw.std() + 1e-6)
    ratio, entropy = (torch.cat([p[k] for p in policy]) for k in range(2))
    values, old_values = (torch.cat([p[k] for p in value]) for k in range(2))
    y = torch.cat(targets)
    l_policy = -torch.minimum(ratio * white, ratio.clamp(0.8, 1.28) * white)
    near = old_values + (values - old_values).clamp(-0.05, 0.05)
    l_value = 0.5 * torch.maximum((values - y) ** 2, (near - y) ** 2)
    assert bool(((values - y) ** 2 < (near - y) ** 2).any())
    assert bool(((ratio > 1.28) & (white > 0)).any())
    expected = (l_policy + 0.3 * l_value - 0.01 * entropy).mean()
    expected.backward()

    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=2e-5 * norm)
    for (name, _), w in zip(critic.head.named_parameters(), weights, strict=True):
        torch.testing.assert_close(gradient[f"head.{name}"], w.grad, rtol=2e-4, atol=1e-6)
    written = [a for t in trajectories for s in t.segments for a, m in zip(s.advantages, s.mask, strict=True) if m]
    np.testing.assert_allclose(written, white.numpy(), atol=2e-5)


def played_logps(played):
    """Behaviour log-probabilities as they were sampled."""
    for t in played[0]:
        yield ([x for s in t.segments for x, m in zip(s.logps, s.mask, strict=True) if m],)


def test_a_frozen_backbone_does_not_move_and_a_shared_one_does(played):
    trajectories, model = copy.deepcopy(played[0]), copy.deepcopy(played[1])
    for backbone, moves in (("frozen", False), ("shared", True)):
        cfg = ppo.make_config(
            {"critic": {"backbone": backbone}, "minibatches": 2, "updates": 2, "optim": {"lr": 1e-2}, "episodes": 6}
        )
        critic = Critic(model, cfg.critic, 0)
        batches = ppo.lay_out(trajectories, cfg)
        values, features = critic.evaluate(batches)
        assert not values.any()
        learner = Learner(model, cfg.optim, critic.head, 1e-2)
        credit, metrics = ppo.assign_credit(cfg, critic, None, trajectories)
        assert metrics["value/explained_var"] == pytest.approx(0.0)
        ppo.update(cfg, learner, trajectories, credit, ppo.make_loss(cfg, critic.head), 0)
        again, read = critic.evaluate(batches)
        assert np.abs(again).max() > 0.01
        assert (features is None) == (read is None) == moves
        if not moves:
            torch.testing.assert_close(features, read, rtol=0, atol=0)
    assert learner.updates == 4


def test_the_value_of_a_turn_is_read_at_the_last_token_of_its_prompt(played):
    trajectories, model, stock = played
    critic = Critic(model, CriticConfig(), 0)
    _, features = critic.evaluate(ppo.lay_out(trajectories, ppo.make_config({})))
    row = 0
    for t in trajectories:
        for turn in t.turns:
            ids = torch.tensor(t.segments[turn.segment].ids[: turn.start])
            hidden = stock(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(features[row], hidden, rtol=1e-4, atol=1e-5)
            row += turn.stop - turn.start
    assert row == len(features)


def test_the_critic_learns_to_tell_good_states_from_bad(played):
    trajectories, model = copy.deepcopy(played[0]), copy.deepcopy(played[1])
    cfg = ppo.make_config(
        {"minibatches": 1, "updates": 300, "optim": {"lr": 1e-12}, "episodes": 6, "critic": {"clip": None}}
    )
    critic = Critic(model, cfg.critic, 0)
    learner = Learner(model, cfg.optim, critic.head, 1e-3)
    credit, _ = ppo.assign_credit(cfg, critic, None, trajectories)
    ppo.update(cfg, learner, trajectories, credit, ppo.make_loss(cfg, critic.head), 0)
    _, metrics = ppo.assign_credit(cfg, critic, None, trajectories)
    assert metrics["value/explained_var"] > 0.5


def test_a_frozen_copy_shares_what_is_not_trained(played):
    model = copy.deepcopy(played[1])
    first, *others = model.parameters()
    first.requires_grad_(False)
    copied = frozen_copy(model)
    mine, *theirs = copied.parameters()
    assert mine is first
    assert all(a is not b and torch.equal(a, b) for a, b in zip(theirs, others, strict=True))
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in others)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algo": {"gamma": 1.5}}, "algo.gamma is 1.5"),
        ({"algo": {"lam_token": -0.1}}, "algo.lam_token is -0.1"),
        ({"algo": {"clip_low": 1.0}}, "algo.clip_low"),
        ({"critic": {"backbone": "own"}}, "critic.backbone"),
        ({"critic": {"lr": 0}}, "critic.lr is 0"),
        ({"critic": {"clip": 0}}, "critic.clip is 0"),
        ({"critic": {"widths": [8, 0]}}, "critic.widths"),
        ({"minibatches": 65}, "minibatches"),
        ({"rollout": {"temperature": 0}}, "temperature"),
        ({"group_size": 8}, "group_size"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        ppo.make_config(values)


def ppo_config(model, **values):
    return ppo.make_config(overlay({**COMMON, "model": {"path": str(model)}}, values))


def test_ppo_improves_success(warm, tmp_path):
    cfg = ppo_config(warm, steps=30, episodes=64, minibatches=2, optim={"lr": 1e-3}, algo={"lam": 0.95})
    found = ppo.main(cfg, tmp_path / "ppo")
    assert found["after"].success.ci95[0] > found["before"].success.ci95[1]


def test_without_a_notion_of_success_there_is_a_return(warm, tmp_path, capsys):
    values = {
        "env": {"id": "test/NoSuccess-v0"},
        "episodes": 8,
        "save_every": 1,
        "eval": {"final_episodes": 4, "every": 1},
    }
    ppo.main(ppo_config(warm, **values, steps=1), tmp_path / "ppo")
    found = ppo.main(ppo_config(warm, **values, steps=2), tmp_path / "ppo", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/return" in line] == [0, 1, 2]
    assert [line["step"] for line in lines if "reward/mean" in line] == [1, 2]
    assert not any("success" in name for line in lines for name in line)
    assert "NaN" not in (tmp_path / "ppo" / "metrics.jsonl").read_text()
    assert math.isnan(found["after"].success.mean)
    assert "nan" not in capsys.readouterr().err
