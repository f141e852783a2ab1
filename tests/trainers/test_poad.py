"""POAD: the numbers of its recursion and losses, gradients by hand, the restricted choice, resume, and it learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import helpers_envs  # noqa: F401
import numpy as np
import pytest
import torch
from agentgym.trainers import poad, ppo, sft
from helpers_by_hand import gae_by_hand, head_by_hand
from helpers_policies import tiny_policy
from transformers import LlamaForCausalLM

from agentgym.config import load, overlay
from agentgym.credit import gae
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner.choices import choice_logprobs, pack_choices
from agentgym.learner.critic import Critic
from agentgym.learner.learner import Learner
from agentgym.learner.losses import clipped_surrogate, clipped_value_loss, kl_k3
from agentgym.policies.base import Request
from agentgym.policies.restricted import RestrictedPolicy, choice_probabilities, scores, words_of
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.run import Run

COMMON = {
    "env": {"id": "test/Echo-v0"},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300},
    "eval": {"final_episodes": 64},
}


def advantages(method, rewards, values, last=0.0, gamma=0.9, **algo):
    """A of each turn, from the reward of each turn and the values of its tokens."""
    settings = poad.Algo(method=method, gamma=gamma, **algo)
    lengths = [len(v) for v in values]
    flat = np.zeros(sum(lengths))
    flat[np.cumsum(lengths) - 1] = rewards
    found, targets = poad.token_advantages(settings, flat, np.concatenate(values), lengths, last)
    np.testing.assert_allclose(targets, found + np.concatenate(values))
    return [part.tolist() for part in np.split(found, np.cumsum(lengths)[:-1])]


def close(found, wanted, digits=6):
    assert [pytest.approx(w, abs=0.6 * 10**-digits) for w in wanted] == list(found)


class TestNumbers:
    """The checks A-1 to A-11 of an independent implementation; γ_a = 0.9, λ = 0.95."""

    TWO = ([0.0, 1.0], [[0.1, 0.2], [0.4, 0.6, 0.7]])

    def test_a1_one_action(self):
        one = ([1.0], [[0.2, 0.3, 0.5]])
        close(advantages("poad", *one)[0], (0.741250, 0.675000, 0.500000))
        close(advantages("ntpo", *one)[0], (0.563762, 0.577500, 0.500000))
        close(advantages("poad", *one, lam=1.0)[0], (0.8, 0.7, 0.5))

    def test_a2_two_turns_of_different_length(self):
        for method, algo, first, second in (
            ("poad", {}, (0.711530, 0.643716), (0.565750, 0.385000, 0.300000)),
            ("ntpo", {}, (0.498214, 0.489139), (0.384958, 0.286500, 0.300000)),
            ("archer", {}, (0.729064, 0.759139), (0.384958, 0.286500, 0.300000)),
            ("poad", {"lam_token": 1.0}, (0.773, 0.673), (0.6, 0.4, 0.3)),
        ):
            found = advantages(method, *self.TWO, **algo)
            close(found[0], first)
            close(found[1], second)
        algo = poad.Algo(method="twosome", gamma=0.9)
        close(poad.action_advantages(algo, np.array([0.0, 1.0]), np.array([0.1, 0.4]))[0], (0.773, 0.6))

    def test_a3_actions_of_one_token_are_plain_gae(self):
        turns = ([0.1, -0.2, 1.0], [[0.5], [0.4], [0.3]])
        for method in ("poad", "ntpo"):
            found = advantages(method, *turns, last=0.25, gamma=0.99)
            close([a[0] for a in found], (0.549130, 0.588124, 0.947500))

    def test_a4_the_methods_are_one_function_of_gamma_token(self):
        assert advantages("ntpo", *self.TWO) == advantages("poad", *self.TWO, gamma_token=0.9)
        assert advantages("poad", *self.TWO) == advantages("ntpo", *self.TWO, gamma_token=1.0)

    def test_a5_nothing_leaks_over_the_end_of_an_episode(self):
        close(advantages("poad", [0.5], [[0.1, 0.2]])[0], (0.385, 0.3))
        close(advantages("poad", [0.0], [[0.4, 0.6]], last=0.8)[0], (0.314, 0.12))

    def test_a6_telescoping(self):
        rng = np.random.default_rng(0)
        lengths = [3, 1, 4]
        values = [rng.normal(size=n) for n in lengths]
        rewards = rng.normal(size=3)
        one_step = advantages("poad", rewards, values, lam=0.0)
        starts = [v[0] for v in values] + [0.0]
        close(
            [sum(d) for d in one_step], [r + 0.9 * b - a for r, a, b in zip(rewards, starts, starts[1:], strict=False)]
        )
        whole = gae(rewards, np.array(starts[:3]), None, 0.9, 0.95)[0]
        close([a[0] for a in advantages("poad", rewards, values, lam_token=1.0)], whole)
        for found, v in zip(advantages("poad", rewards, values, lam=1.0), values, strict=True):
            assert np.ptp(np.add(found, v)) < 1e-12  # every token of a turn has the turn's return
        ntpo = advantages("ntpo", rewards, values, lam=1.0)
        assert max(np.ptp(np.add(found, v)) for found, v in zip(ntpo, values, strict=True)) > 0.01
        close([x + v for x, v in zip(advantages("poad", *self.TWO, lam=1.0)[0], (0.1, 0.2), strict=True)], (0.9, 0.9))

    def test_a7_a_token_that_says_nothing_changes_nothing(self):
        longer = ([0.0, 1.0], [[0.1, 0.2], [0.4, 0.6, 0.6, 0.7]])
        for algo, same in (({"lam_token": 1.0}, True), ({"lam_token": 0.95}, False), ({"gamma_token": 0.9}, False)):
            short, long = (advantages("poad", *turns, **algo) for turns in (self.TWO, longer))
            kept = [*long[0], long[1][0], *long[1][2:]]
            assert np.allclose(kept, [*short[0], *short[1]], atol=1e-12) == same

    def test_a8_credit_on_a_tree_of_two_tokens(self):
        q = {"aa": 1.0, "ab": 0.0, "ba": 0.2, "bb": 0.6}
        wanted = {"aa": (0.05, 0.5), "ab": (0.05, -0.5), "ba": (-0.05, -0.2), "bb": (-0.05, 0.2)}
        values = {"": 0.45, "a": 0.5, "b": 0.4}
        for action, reward in q.items():
            found = advantages("poad", [reward], [[values[""], values[action[0]]]], lam=0.0)[0]
            close(found, wanted[action])
            assert sum(found) == pytest.approx(reward - values[""])

    def test_a9_how_much_of_a_final_reward_reaches_the_first_token(self):
        for n, bad, naive in ((5, 0.8145, 0.6634), (10, 0.6302, 0.3972), (128, 0.00148, 2.2e-6)):
            nothing = [np.zeros(n)]
            assert advantages("poad", [1.0], nothing, gamma=0.95)[0][0] == pytest.approx(bad, rel=5e-3)
            assert advantages("ntpo", [1.0], nothing, gamma=0.95)[0][0] == pytest.approx(naive, rel=2e-2)
            for gamma, lost in (
                (0.99, {5: 0.0394, 10: 0.0865, 128: 0.7210}),
                (0.95, {5: 0.1855, 10: 0.3698, 128: 0.9985}),
            ):
                left = advantages("ntpo", [1.0], nothing, gamma=gamma, lam=1.0)[0][0]
                assert 1 - left == pytest.approx(lost[n], abs=5e-5)

    def test_a10_losses(self):
        old = torch.tensor([-1, -0.5, -2, -0.7, -1.2])
        new = torch.tensor([-0.9, -0.9, -1.5, -0.7, -1.1])
        raw = torch.tensor([0.74125, 0.675, 0.5, -0.3, 0.2])
        entropy = torch.tensor([1, 0.8, 1.2, 0.9, 0.7])
        white = poad.normalise(raw)
        close([float(raw.mean()), float(raw.std(correction=0))], (0.363250, 0.380874))
        close(white.tolist(), (0.992455, 0.818513, 0.359043, -1.741391, -0.428620), 5)
        loss = clipped_surrogate(new, old, white)
        assert float(loss.mean()) == pytest.approx(0.0277479, abs=1e-6)
        assert float((loss - 1e-4 * entropy).mean()) == pytest.approx(0.0276559, abs=1e-6)
        kl = float(kl_k3(old, new).mean())
        assert kl == pytest.approx(0.0458766, abs=1e-6)
        assert poad.too_far(poad.Algo(), {"policy/approx_kl": kl})
        assert not poad.too_far(poad.Algo(kl_skip=None), {"policy/approx_kl": kl})
        v_old, v_new = torch.tensor([0.2, 0.3, 0.5, 0.1, 0.2]), torch.tensor([0.5, 0.35, 0.6, 0.05, 0.5])
        l_v = 0.5 * clipped_value_loss(v_new, v_old, raw + v_old, 0.2).mean()
        assert float(l_v) == pytest.approx(0.0458038, abs=1e-6)

    def test_a11_restricted_choice(self):
        logps = [-1.2 - 0.1 - 0.2 - 0.8, -2 - 0.1 - 0.9, -1.5 - 3]
        words = [words_of(a) for a in ("walk to the kitchen", "open the microwave", "grab it")]
        by_words = scores(logps, words, "words")
        close(by_words, (-0.575, -1.0, -2.25))
        close(choice_probabilities(by_words), (0.543160, 0.355102, 0.101738))
        close(choice_probabilities(scores(logps, words, "none")), (0.622127, 0.308939, 0.068934))
        logp, entropy = choice_logprobs(torch.from_numpy(by_words), torch.zeros(3, dtype=torch.long))
        close(logp.exp().tolist(), (0.543160, 0.355102, 0.101738))
        assert float(entropy[0]) == pytest.approx(0.931681, abs=1e-6)
        assert choice_probabilities(by_words, 0).tolist() == [1, 0, 0]


def test_one_step_targets():
    algo = poad.Algo(critic_target="one_step", gamma=0.9)
    rewards, values = np.array([0, 0.0, 0, 0, 1.0]), np.array([0.1, 0.2, 0.4, 0.6, 0.7])
    close(poad.one_step_targets(algo, rewards, values, [2, 3]), (0.2, 0.9 * 0.4, 0.6, 0.7, 1.0))
    ntpo = poad.Algo(method="ntpo", gamma=0.9)
    close(poad.one_step_targets(ntpo, rewards, values, [2, 3]), (0.18, 0.36, 0.54, 0.63, 1.0))


# ---- acting and gradients ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """Episodes of a restricted policy, its model, and transformers' own copy of it."""
    policy = RestrictedPolicy(tiny_policy(3))
    settings = RolloutConfig(max_turns=3, max_new_tokens=12, context_limit=300, context="window:1")
    with EnvPool("test/Fault-v0", {"length": 0}) as pool:
        groups = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 4, 1))
    trajectories = [t for g in groups for t in g.trajectories]
    rng = np.random.default_rng(0)
    for turn in (u for t in trajectories for u in t.turns):
        turn.reward = float(rng.choice([0.0, 0.25, 1.0]))
    model = policy.inner.model
    stock = LlamaForCausalLM(copy.deepcopy(model.config))
    stock.load_state_dict(model.state_dict())
    stock.set_attn_implementation("sdpa")
    return trajectories, model, stock.eval()


def forward(model, prompt, reply):
    """Log-probability and entropy of the tokens of a reply, and what stood before each, from a plain forward."""
    ids = torch.tensor([*prompt, *reply])
    out = model(input_ids=ids[None], output_hidden_states=True)
    logps = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(1, torch.tensor(reply)[:, None])[:, 0], entropy, out.hidden_states[-1][0, len(prompt) - 1 : -1]


def turns_of(trajectories):
    return [(t.segments[u.segment].ids[: u.start], u) for t in trajectories for u in t.turns]


def test_candidates_are_scored_as_a_plain_forward_scores_them(played):
    trajectories, _, stock = played
    for prompt, turn in turns_of(trajectories):
        assert [c.words for c in turn.candidates] == [1, 1, 2]
        for candidate in turn.candidates:
            with torch.no_grad():
                logp = forward(stock, prompt, candidate.ids)[0]
            assert candidate.logp == pytest.approx(float(logp.sum()), abs=2e-5)
        assert len({tuple(c.ids) for c in turn.candidates}) == 3
    chosen = [u.action for _, u in turns_of(trajectories)]
    assert len(set(chosen)) > 1


def test_the_choice_follows_its_probabilities():
    policy = RestrictedPolicy(tiny_policy(3))
    settings = RolloutConfig(max_turns=1, max_new_tokens=12, context_limit=300)
    with EnvPool("test/Fault-v0", {"length": 1}) as pool:
        tasks = [task for task in group_tasks(0, 0, 1, 400)]
        groups = Rollout(pool, policy, settings).collect(tasks)
    turns = [t.turns[0] for t in groups[0].trajectories]
    c = turns[0].candidates
    p = choice_probabilities(scores([x.logp for x in c], [x.words for x in c], "words"))
    seen = np.array([sum(u.action == a for u in turns) for a in ("go", "wait", "say 0")])
    assert np.abs(seen / 400 - p).max() < 4 * math.sqrt(0.25 / 400)


def test_a_prompt_is_scored_once_until_the_weights_change(monkeypatch):
    policy, scored = RestrictedPolicy(tiny_policy(3)), []
    score = policy._logps
    monkeypatch.setattr(policy, "_logps", lambda prompt, ids: scored.append(len(prompt)) or score(prompt, ids))

    def choose(actions=("go", "go on"), prompt=(5, 6, 7)):
        info = {"admissible_commands": list(actions)}
        rng = np.random.default_rng(0)
        return policy.choose(Request(list(prompt), 12, rng, info=info, encode_action=lambda a: [8, len(a)]))

    first = choose()
    first.logps.append(0.0)
    assert choose().candidates == first.candidates
    assert len(scored) == 1
    assert choose().logps == first.logps[:-1]
    choose(("go", "stop"))
    choose(prompt=(5, 6))
    assert len(scored) == 3
    with torch.no_grad():
        policy.inner.model.lm_head.weight.mul_(2)
    policy.weights_changed(1)
    assert choose().candidates != first.candidates
    assert len(scored) == 4
    policy.load_weights(policy.inner.model.state_dict(), 2)
    choose()
    assert len(scored) == 5


def make(played, method, **algo):
    trajectories, model = copy.deepcopy(played[0]), played[1]
    cfg = poad.make_config(
        {
            "algo": {"method": method, "gamma": 0.9, "lam": 0.8, "entropy_coef": 0.01, "kl_skip": None, **algo},
            "critic": {"widths": [16, 8], "coef": 0.3, "clip": 0.05},
            "optim": {"token_budget": 150, "grad_clip": 1e9},
            "updates": 1,
            "minibatches": 1,
            "episodes": 4,
        }
    )
    critic = Critic(model, cfg.critic, 0)
    torch.nn.init.normal_(critic.head.layers[-1].weight, generator=torch.Generator().manual_seed(1))
    learner = Learner(model, cfg.optim, critic.head, 1e-3)
    gradient = {}

    def keep():
        gradient.update({n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()})
        gradient.update({f"head.{n}": p.grad.clone() for n, p in critic.head.named_parameters()})

    learner.optimizer.step = keep
    credit, _ = poad.assign_credit(cfg, critic, trajectories)
    return cfg, critic, learner, gradient, trajectories, credit


def compare(metrics, gradient, expected, stock, critic, weights):
    stock.zero_grad()
    expected.backward()
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=2e-5 * norm)
    for (name, _), w in zip(critic.head.named_parameters(), weights, strict=True):
        torch.testing.assert_close(gradient[f"head.{name}"], w.grad, rtol=2e-4, atol=1e-6)


def by_hand(raw, ratio, entropy, values, old_values, y):
    white = (raw - raw.mean()) / (raw.std(correction=0) + 1e-8)
    l_policy = -torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white)
    near = old_values + (values - old_values).clamp(-0.05, 0.05)
    l_value = 0.5 * torch.maximum((values - y) ** 2, (near - y) ** 2)
    return (l_policy + 0.3 * l_value - 0.01 * entropy).mean()


@pytest.mark.parametrize("method", ["poad", "ntpo"])
def test_the_gradient_over_tokens_is_that_of_the_formula(played, method):
    cfg, critic, learner, gradient, trajectories, credit = make(played, method)
    stock = played[2]
    rng = np.random.default_rng(1)
    for t, c in zip(trajectories, credit, strict=True):
        for s in t.segments:
            s.logps = [x + float(d) * m for x, d, m in zip(s.logps, rng.normal(0, 0.2, len(s)), s.mask, strict=True)]
        c.old_values = c.old_values + rng.normal(0, 0.1, len(c.old_values))
    metrics = poad.update(cfg, learner, trajectories, credit, poad.make_loss(cfg, critic.head), 0)

    weights = [w.detach().clone().requires_grad_() for w in critic.head.parameters()]
    parts = []
    for t, c in zip(trajectories, credit, strict=True):
        found = [forward(stock, t.segments[u.segment].ids[: u.start], u_ids(t, u)) for u in t.turns]
        logp, entropy, hidden = (torch.cat([f[k] for f in found]) for k in range(3))
        values = head_by_hand(weights, hidden.detach())
        last = [j == len(f[0]) - 1 for f in found for j in range(len(f[0]))]
        rewards = [
            u.reward if e else 0.0
            for u, f in zip(t.turns, found, strict=True)
            for e in [*[False] * (len(f[0]) - 1), True]
        ]
        v = values.detach().tolist()
        gamma_token = 1.0 if method == "poad" else 0.9
        raw = torch.tensor(gae_by_hand(rewards, v, last, 0.9, 0.8, gamma_token, 0.8))
        old = torch.cat([torch.tensor(t.segments[u.segment].logps[u.start : u.stop]) for u in t.turns])
        parts.append(
            (raw, (logp - old).exp(), entropy, values, torch.tensor(c.old_values).float(), raw + values.detach())
        )
    compare(metrics, gradient, by_hand(*(torch.cat(p) for p in zip(*parts, strict=True))), stock, critic, weights)


def u_ids(trajectory, turn):
    return trajectory.segments[turn.segment].ids[turn.start : turn.stop]


def test_the_gradient_over_choices_is_that_of_the_formula(played):
    cfg, critic, learner, gradient, trajectories, credit = make(played, "twosome")
    stock = played[2]
    rng = np.random.default_rng(1)
    for t, c in zip(trajectories, credit, strict=True):
        for u in t.turns:
            for candidate in u.candidates:
                candidate.logp += float(rng.normal(0, 0.4))
        c.old_values = c.old_values + rng.normal(0, 0.1, len(c.old_values))
    metrics = poad.update(cfg, learner, trajectories, credit, poad.make_loss(cfg, critic.head), 0)

    weights = [w.detach().clone().requires_grad_() for w in critic.head.parameters()]
    parts = []
    for t, c in zip(trajectories, credit, strict=True):
        logps, entropies, olds, hidden = [], [], [], []
        for u in t.turns:
            prompt = t.segments[u.segment].ids[: u.start]
            found = [forward(stock, prompt, candidate.ids) for candidate in u.candidates]
            p = torch.stack([f[0].sum() / k.words for f, k in zip(found, u.candidates, strict=True)]).log_softmax(0)
            old = torch.tensor([k.logp / k.words for k in u.candidates]).log_softmax(0)
            k = next(i for i, x in enumerate(u.candidates) if x.ids == u_ids(t, u))
            logps.append(p[k])
            entropies.append(-(p.exp() * p).sum())
            olds.append(old[k])
            hidden.append(found[0][2][0])
        values = head_by_hand(weights, torch.stack(hidden).detach())
        v, rewards = values.detach().tolist(), [u.reward for u in t.turns]
        raw = torch.tensor(gae_by_hand(rewards, v, [True] * len(v), 0.9, 0.8, 1.0, 1.0))
        ratio = (torch.stack(logps) - torch.stack(olds)).exp()
        parts.append(
            (raw, ratio, torch.stack(entropies), values, torch.tensor(c.old_values).float(), raw + values.detach())
        )
    compare(metrics, gradient, by_hand(*(torch.cat(p) for p in zip(*parts, strict=True))), stock, critic, weights)


def test_choices_are_packed_in_the_order_of_the_turns(played):
    trajectories = played[0]
    turns = [u for t in trajectories for u in t.turns]
    for budget in (60, 10_000):
        batches = pack_choices(trajectories, "words", budget)
        assert sum(len(b.chosen) for b in batches) == len(turns)
        taken = [(b, k) for b in batches for k in b.chosen.tolist()]
        for (batch, k), turn in zip(taken, turns, strict=True):
            ids = batch.targets[batch.candidate == k].tolist()
            assert ids in [c.ids for c in turn.candidates]
            assert len(ids) == turn.stop - turn.start
        wanted = [
            torch.tensor([c.logp / c.words for c in u.candidates]).log_softmax(0)[
                [c.ids for c in u.candidates].index(u_ids(t, u))
            ]
            for t in trajectories
            for u in t.turns
        ]
        torch.testing.assert_close(torch.cat([b.old_logp for b in batches]), torch.stack(wanted))
    assert len(pack_choices(trajectories, "words", 60)) > 1


def test_a_mini_batch_that_moved_too_far_moves_the_critic_alone(played):
    cfg, critic, learner, gradient, trajectories, credit = make(played, "poad", kl_skip=1e-6)
    for t in trajectories:
        for s in t.segments:
            s.logps = [x - 0.5 * m for x, m in zip(s.logps, s.mask, strict=True)]
    metrics = poad.update(cfg, learner, trajectories, credit, poad.make_loss(cfg, critic.head), 0)
    assert metrics["policy/skipped"] == 1
    assert all(g is None for n, g in gradient.items() if not n.startswith("head."))
    assert all(g.abs().sum() > 0 for n, g in gradient.items() if n.startswith("head."))


# ---- runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    out = tmp_path_factory.mktemp("warm") / "sft"
    changes = {"demonstrations": 64, "epochs": 4, "noise": 0.5, "optim": {"lr": 3e-3}}
    sft.main(sft.make_config(overlay(COMMON, changes)), out)
    return out / "final"


def config(model, **values):
    short = {"episodes": 8, "steps": 4, "updates": 2, "save_every": 1, "show_every": 2}
    rest = {"optim": {"lr": 1e-3}, "eval": {"final_episodes": 8}, "critic": {"widths": [16]}}
    return poad.make_config(overlay(overlay({**COMMON, "model": {"path": str(model)}}, {**short, **rest}), values))


class Stopped(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize(
    "algo",
    [{"critic_target": "one_step", "target_every": 2}, {"method": "twosome"}, {"acting": "free"}, {"method": "archer"}],
    ids=["one_step", "twosome", "free", "archer"],
)
def test_a_run_that_broke_off_goes_on_bit_by_bit(warm, tmp_path, monkeypatch, algo):
    poad.main(config(warm, algo=algo), tmp_path / "straight")
    log = Run.log

    def breaking(self, step, metrics):
        if step == 3:
            raise Stopped
        log(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", breaking)
        with pytest.raises(Stopped):
            poad.main(config(warm, algo=algo), tmp_path / "broken")
    poad.main(config(warm, algo=algo), tmp_path / "broken", resume=True)
    files = ("checkpoints/step_00004/trainer_state.pt", "final/model.safetensors")
    one, other = (tmp_path / name for name in ("straight", "broken"))
    assert (one / files[1]).read_bytes() == (other / files[1]).read_bytes()
    for name in ("optimizer", "head"):
        a, b = (torch.load(folder / files[0], weights_only=True)[name] for folder in (one, other))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_it_improves_success(warm, tmp_path):
    cfg = config(
        warm,
        algo={"kl_skip": None},
        steps=35,
        episodes=32,
        optim={"lr": 2e-3},
        critic={"lr": 1e-3},
        eval={"final_episodes": 64},
        save_every=35,
    )
    found = poad.main(cfg, tmp_path / "run")
    assert found["after"].success.ci95[0] > found["before"].success.ci95[1]


def test_an_environment_without_admissible_actions_is_refused_before_any_rollout(warm, tmp_path):
    cfg = config(warm, env={"id": "test/NoExpert-v0"})
    with pytest.raises(ConfigError, match="admissible_commands, and this one gives none"):
        poad.main(cfg, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algo": {"method": "sac"}}, "algo.method"),
        ({"algo": {"method": "twosome", "acting": "free"}}, "algo.method=twosome optimises a choice"),
        ({"algo": {"method": "twosome", "gamma_token": 1.0}}, "algo.method=twosome knows no tokens"),
        ({"algo": {"gamma_token": 1.5}}, "algo.gamma_token is 1.5"),
        ({"algo": {"kl_skip": 0}}, "algo.kl_skip is 0"),
        ({"algo": {"clip": 1}}, "algo.clip is 1"),
        ({"algo": {"target_every": 0}}, "algo.target_every is 0"),
        ({"algo": {"method": "twosome"}, "critic": {"backbone": "shared"}}, "critic.backbone=frozen"),
        ({"algo": {"critic_target": "one_step"}, "critic": {"backbone": "shared"}}, "critic.backbone=frozen"),
        ({"minibatches": 33}, "minibatches"),
        ({"rollout": {"temperature": 0.5}}, "rollout.temperature is 0.5"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        poad.make_config(values)


def test_ppo_with_poads_discounts_is_poad(played):
    """The trainers share one recursion."""
    rewards, values = np.array([0, 0, 1.0]), np.array([0.2, 0.3, 0.5])
    algo = ppo.Algo(gamma=0.9, lam=0.95, gamma_token=1.0, lam_token=0.95)
    from agentgym.credit import turn_gae

    theirs = turn_gae(rewards, values, [3], algo.gamma, algo.lam, algo.gamma_token, algo.lam_token)[0]
    close(theirs, poad.token_advantages(poad.Algo(gamma=0.9), rewards, values, [3])[0])


def test_the_examples_run_when_made_small(tmp_path):
    examples = Path(__file__).parents[2] / "examples" / "configs"
    small = {"model": {"hidden": 32, "layers": 1, "threads": 1}, "rollout": {"max_turns": 4}}
    few = {"demonstrations": 4, "epochs": 1, "eval": {"final_episodes": 2}}
    sft.main(sft.make_config(overlay(overlay(load(examples / "overcooked_sft.yaml"), small), few)), tmp_path / "sft")
    few = {"steps": 1, "episodes": 2, "eval": {"final_episodes": 2}, "rollout": {"max_turns": 4}}
    model = {"path": str(tmp_path / "sft" / "final"), "threads": 1}
    values = overlay(load(examples / "poad.yaml"), {"model": model, **few})
    assert set(poad.main(poad.make_config(values), tmp_path / "poad")) == {"before", "after"}
