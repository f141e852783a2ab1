"""EPO: the numbers of the paper and of its code, the gradient by hand, and runs that resume with their history."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from agentgym.trainers import epo, grpo, ppo, sft
from helpers_policies import tiny_policy
from helpers_runs import assert_same_run, rows, run_until_killed, state
from transformers import LlamaForCausalLM

from agentgym import store
from agentgym.config import build, dump, overlay
from agentgym.credit import group_advantage, turn_gae
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner.critic import Critic
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.losses import clipped_surrogate, kl_k3, turn_weights
from agentgym.learner.model import load_model
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.training import Training
from agentgym.types import Group, Segment, Trajectory, Turn

# ---- the worked numbers -----------------------------------------------------------------------------------

ENTROPY = torch.tensor([1.0, 0.5, 0.4, 0.4, 0.4, 0.4, 0.8, 0.6, 0.2])
PAST = [[0.5], [0.4], [0.45]]


def example(**settings):
    """Two trajectories: one of a turn, one of three turns; settings, and the micro-batch they lie in."""
    batch = SimpleNamespace(
        trajectory=torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1]),
        turns=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2]),
        batch_trajectories=2,
        batch_tokens=9,
    )
    return epo.Epo(**settings), batch


def entropy_loss(cfg, batch, past, step, beta=None, entropy=ENTROPY):
    """The part of the loss that EPO adds, and its metrics."""
    h = epo.reference(cfg, past, 3)
    beta = epo.phase_weight(cfg, step) if beta is None else beta
    loss = epo.make_loss(cfg, lambda out, batch: (torch.zeros(()), {}), h, beta, [])
    return loss(SimpleNamespace(entropy=entropy), batch)


@pytest.mark.parametrize(("aggregation", "expected"), [("traj_turn_token", 0.5916667), ("token", 0.5222222)])
def test_the_entropies_are_added_up_as_named(aggregation, expected):
    cfg, batch = example(aggregation=aggregation)
    u = epo.entropy_weights(cfg, batch)
    assert float((u * ENTROPY).sum()) == pytest.approx(expected, abs=1e-7)
    assert float(u.sum()) == pytest.approx(1.0)


def test_turn_weights_count_trajectories_and_turns_once():
    u = turn_weights(torch.tensor([2, 0, 0, 0]), torch.tensor([0, 0, 4, 4]), 4)
    torch.testing.assert_close(u, torch.tensor([1 / 4, 1 / 8, 1 / 16, 1 / 16]))


def test_a_decay_over_turns_keeps_the_mean():
    cfg, batch = example(turn_decay=True)
    plain = epo.entropy_weights(epo.Epo(), batch)
    factor = epo.entropy_weights(cfg, batch) / plain
    torch.testing.assert_close(factor, torch.tensor([1.0] * 2 + [1.5] * 4 + [1.0] * 2 + [0.5]))
    assert float(epo.entropy_weights(cfg, batch).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kappa", "hinge", "indicator", "token_hinge", "token_indicator", "inside"),
    [
        ((0.0, 2.0), (0.00125, 0.0025), (0.0125, 0.025), 0.0011111, 0.0111111, 8 / 9),
        ((0.5, 1.5), (0.0047917, 0.0095833), (0.025, 0.05), 0.0052778, 0.0333333, 6 / 9),
    ],
)
def test_the_penalty(kappa, hinge, indicator, token_hinge, token_indicator, inside):
    for penalty, means, token in (("hinge", hinge, token_hinge), ("indicator", indicator, token_indicator)):
        cases = [("traj_turn_token", 0.05, means[0]), ("traj_turn_token", 0.1, means[1]), ("token", 0.1, token)]
        for aggregation, alpha, expected in cases:
            settings = {"kappa_low": kappa[0], "kappa_high": kappa[1], "alpha": alpha}
            cfg, batch = example(**settings, penalty=penalty, aggregation=aggregation)
            _, metrics = entropy_loss(cfg, batch, PAST, 1)
            assert float(metrics["epo/smooth"].mean()) == pytest.approx(expected, abs=1e-7)
            assert float(metrics["epo/inside_frac"].mean()) == pytest.approx(inside)
    terms = epo.corridor_penalty(epo.Epo(kappa_low=kappa[0], kappa_high=kappa[1]), ENTROPY, torch.full((9,), 0.45))
    expected = {2.0: [0.1], 1.5: [0.325, 0.125, 0.025]}[kappa[1]]
    torch.testing.assert_close(terms[terms > 0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (
            {"kappa_low": 0.5, "kappa_high": 1.5, "horizon": 125},
            {0: -0.000572500, 31: -0.000579945, 62: -0.000581606, 124: -0.000582060},
        ),
        ({"alpha": 0.05, "horizon": 125}, {0: -0.000589167, 124: -0.000590414}),
        (
            {"penalty": "indicator", "aggregation": "token", "schedule": "code", "horizon": 150},
            {0: -0.000511111, 75: -0.000513033, 100: -0.000518952},
        ),
    ],
)
def test_the_entropy_part_of_the_loss(settings, values):
    cfg, batch = example(**settings)
    for step, expected in values.items():
        assert float(entropy_loss(cfg, batch, PAST, step)[0]) == pytest.approx(expected, abs=6e-10)


def test_the_schedules():
    def weights(steps, **settings):
        return [epo.phase_weight(epo.Epo(**settings), k) for k in steps]

    assert weights([0, 31, 62, 124], horizon=125) == pytest.approx([2.0, 1.223130, 1.049787, 1.002479], abs=1e-6)
    assert weights([0, 37, 75, 149], horizon=150) == pytest.approx([2.0, 1.227638, 1.049787, 1.002580], abs=1e-6)
    code = [1.0, 0.902683, 0.874563, 0.827067, 0.768632, 0.294304, 0.108268, 0.039830]
    steps = [0, 25, 37, 75, 76, 100, 125, 150]
    assert weights(steps, schedule="code", horizon=150) == pytest.approx(code, abs=1e-6)
    assert weights([0, 7], schedule="constant") == [1.0, 1.0]
    assert weights([0, 1], horizon=1) == pytest.approx([2.0, 1 + math.exp(-3)])


def gradient_of(logits, cfg, past, beta):
    z = torch.tensor(logits, requires_grad=True)
    logp = z.log_softmax(-1)
    batch = SimpleNamespace(trajectory=torch.tensor([0]), turns=torch.tensor([0]), batch_trajectories=1, batch_tokens=1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
    loss, _ = entropy_loss(cfg, batch, past, 1, beta, entropy)
    loss.backward()
    return z.grad, entropy.detach()


@pytest.mark.parametrize(
    ("kappa", "past", "beta", "ratio"),
    [
        ((0.0, 2.0), 0.5, 2.0, 0.8),
        ((0.0, 2.0), 0.5, 1.0, 0.9),
        ((0.5, 1.5), 1.2, 2.0, 1.0),
        ((0.5, 1.5), 3.0, 2.0, 1.2),
        ((0.5, 1.5), 3.0, 1.0, 1.1),
    ],
)
def test_the_hinge_has_a_gradient_outside_and_the_indicator_none_at_all(kappa, past, beta, ratio):
    logits, settings = [1.0, 0.2, -0.5, 0.0], {"kappa_low": kappa[0], "kappa_high": kappa[1], "coef": 1.0}
    bonus, entropy = gradient_of(logits, epo.Epo(coef=1.0, alpha=0.0), [[past]], beta)
    assert float(entropy) == pytest.approx(1.2336362, abs=1e-6)
    torch.testing.assert_close(-bonus, torch.tensor([-0.255115, 0.061548, 0.107115, 0.086452]), atol=1e-6, rtol=0)
    hinge, _ = gradient_of(logits, epo.Epo(**settings, penalty="hinge"), [[past]], beta)
    torch.testing.assert_close(hinge, ratio * bonus)
    indicator, _ = gradient_of(logits, epo.Epo(**settings, penalty="indicator"), [[past]], beta)
    assert torch.equal(indicator, bonus)
    assert (not torch.equal(hinge, bonus)) == (ratio != 1.0)


def test_an_entropy_of_zero_lies_inside_a_corridor_from_zero():
    entropy, h = torch.zeros(1), torch.ones(1)
    for penalty in ("hinge", "indicator"):
        for high in (2.0, math.inf):
            cfg = epo.Epo(penalty=penalty, kappa_high=high)
            assert float(epo.corridor_penalty(cfg, entropy, h)) == 0.0
            assert float(epo.corridor_penalty(cfg, entropy, torch.zeros(1))) == 0.0


def test_without_its_switches_it_is_the_plain_bonus():
    cfg, batch = example(alpha=0.0)
    plain = entropy_loss(cfg, batch, PAST, 1)[0]
    assert float(plain) == pytest.approx(-1e-3 * 0.5916667, abs=1e-10)
    for settings, past, beta in (
        ({"kappa_low": 0.5, "kappa_high": 1.5}, PAST, 0.0),
        ({"kappa_high": math.inf}, PAST, 2.0),
        ({"kappa_low": 0.5, "kappa_high": 1.5}, [], 2.0),
        ({"kappa_low": 0.5, "kappa_high": 1.5, "first_turn": 3}, PAST, 2.0),
    ):
        assert torch.equal(entropy_loss(example(**settings)[0], batch, past, 1, beta)[0], plain)
    cfg, batch = example(coef=0.0)
    loss, metrics = entropy_loss(cfg, batch, PAST, 1)
    assert (float(loss), metrics) == (0.0, {})


def test_the_gate_is_that_of_each_token():
    cfg, batch = example(kappa_low=0.5, kappa_high=1.5, first_turn=1)
    _, metrics = entropy_loss(cfg, batch, PAST, 1)
    assert (metrics["epo/smooth"] > 0).tolist() == [False] * 6 + [True, False, True]


def test_the_reference_is_the_mean_of_the_past_turn_by_turn_if_asked():
    history = [[0.7, 0.9, 0.8, 0.7, 0.6, 0.5], [0.4, 0.5, 0.4, 0.3]]

    def of(past, turns=5, **settings):
        return epo.reference(epo.Epo(**settings), past, turns).tolist()

    assert of(history, reference="turn") == pytest.approx([0.7, 0.6, 0.5, 0.6, 0.5])  # left zero-padding: .45, .4, .6
    assert of(history, 6, reference="turn")[:5] == pytest.approx([0.7, 0.6, 0.5, 0.6, 0.5])
    assert math.isnan(of(history, 6, reference="turn")[5])
    assert of(history) == pytest.approx([0.55] * 5)
    assert of([[0.6], [0.4]], 1) == pytest.approx([0.5])
    assert of([[0.6], [0.4], [0.1]], 1, window=2) == pytest.approx([0.25])
    assert of([[0.6], [0.4], [0.1]], 1, window=9) == pytest.approx([1.1 / 3])
    assert all(math.isnan(x) for x in of([]))


def test_entropies_are_kept_for_each_turn_number():
    seen = [(torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.5, 0.3])), (torch.tensor([2, 0]), torch.tensor([0.2, 0.0]))]
    assert epo.mean_entropies(seen) == pytest.approx([0.4, 0.5, 0.3, 0.2])
    assert epo.mean_entropies(seen, 3) == pytest.approx([0.6, 0.75, 0.3])


def test_a_turn_without_a_past_is_not_penalised():
    cfg, batch = example(kappa_low=0.5, kappa_high=1.5, reference="turn")
    _, metrics = entropy_loss(cfg, batch, [[0.45, 0.45, 0.45]], 1)
    assert (metrics["epo/smooth"] > 0).tolist() == [True, False, False, False, False, False, True, False, False]
    assert len(metrics["epo/inside_frac"]) == 8


# ---- the base algorithms ------------------------------------------------------------------------------------


def trajectory_of(name, rewards):
    segments = [Segment([1] + [2] * len(rewards), [0] + [1] * len(rewards), [0.0] * (1 + len(rewards)))]
    turns = [Turn("o", 0, 1 + k, 1 + k, 2 + k, "t", "a", reward=r) for k, r in enumerate(rewards)]
    return Trajectory("e", 0, name, segments=segments, turns=turns)


def test_long_episodes_do_not_weigh_more_in_a_group():
    group = Group("g", 0, [trajectory_of("g", [0.0, 0.0, 10.0]), trajectory_of("g", [0.0])])
    advantages = grpo.assign_advantages(grpo.Algo(), [group])
    assert advantages.tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)
    rows = group_advantage([10, 10, 10, 0], [0] * 4)  # the released code: every turn a row with the whole return
    assert rows.tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5], abs=1e-6)
    invalid = group_advantage([10, 9.9, 10, 0], [0] * 4)
    assert invalid.tolist() == pytest.approx([0.506666, 0.486600, 0.506666, -1.499933], abs=1e-6)


def test_dual_clip_and_k3():
    for a, ratio, expected in ((1, 1.5, -1.2), (1, 0.5, -0.5), (-1, 1.5, 1.5), (-1, 0.5, 0.8), (-1, 5, 3.0)):
        loss = clipped_surrogate(torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([float(a)]), dual_clip=3)
        assert float(loss) == pytest.approx(expected)
    k3 = kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -0.5]))
    assert k3.tolist() == pytest.approx([0.106531, 0.148721], abs=1e-6)


def test_the_learning_rate_of_the_released_code():
    settings = {"lr": 3e-6, "warmup_steps": 12, "decay_steps": 125, "decay": "cosine", "min_ratio": 0.2}
    learner = Learner(torch.nn.Linear(1, 1), OptimConfig(**settings))
    rates = {}
    for step in range(126):
        learner.updates = step
        rates[step] = 3e-6 * learner.schedule()
    expected = {0: 6.0e-7, 6: 1.8e-6, 12: 3.0e-6, 68: 1.81668e-6, 124: 6.0046e-7, 125: 6.0e-7}
    assert {step: rates[step] for step in expected} == pytest.approx(expected, rel=1e-5)


def test_no_value_after_the_end_is_read():
    for lam, expected in ((1.0, [9.8, 9.5, 9.0]), (0.95, [8.8975, 9.05, 9.0])):
        advantages, _ = turn_gae([0, 0, 10], [0.2, 0.5, 1.0], [1, 1, 1], 1.0, lam, 1.0, lam)
        assert advantages.tolist() == pytest.approx(expected)


# ---- the gradient -------------------------------------------------------------------------------------------

TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def played():
    """A group of two real episodes whose rows fork, the model that played, and transformers' own copy of it."""
    policy = tiny_policy(3)
    settings = RolloutConfig(
        max_turns=3, max_new_tokens=5, context_limit=300, temperature=TEMPERATURE, context="window:1", parse_limit=9
    )
    with EnvPool("test/Echo-v0", {"rounds": 3}) as pool:
        groups = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 1, 2))
    for trajectory, rewards in zip(groups[0].trajectories, ([0.0, 0.25, 1.0], [0.5, 0.0, 0.0]), strict=True):
        for turn, reward in zip(trajectory.turns, rewards, strict=True):
            turn.reward = reward
    assert all(len(t.segments) > 1 for t in groups[0].trajectories)
    rng = np.random.default_rng(1)
    for segment in (s for t in groups[0].trajectories for s in t.segments):
        noise = rng.normal(0, 0.2, len(segment))
        segment.logps = [x + float(d) * m for x, d, m in zip(segment.logps, noise, segment.mask, strict=True)]
    stock = LlamaForCausalLM(copy.deepcopy(policy.model.config))
    stock.load_state_dict(policy.model.state_dict())
    stock.set_attn_implementation("sdpa")
    return groups, policy.model, stock.eval()


def turn_by_hand(model, trajectory, turn):
    """Log-probability under the model and at sampling, and entropy, of the tokens of one turn, from a plain forward."""
    segment = trajectory.segments[turn.segment]
    ids = torch.tensor(segment.ids[: turn.stop])
    logps = (model(input_ids=ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
    at = torch.arange(turn.start, turn.stop)
    entropy = -(logps.exp() * logps).sum(-1)[at - 1]
    return logps[at - 1, ids[at]], torch.tensor(segment.logps[turn.start : turn.stop]), entropy


def advantages_by_hand(base, trajectories):
    """GRPO: of each trajectory; PPO with all discounts 1 and a critic that says 0: the reward to go, whitened."""
    if base == "grpo":
        a, b = (sum(u.reward for u in t.turns) for t in trajectories)
        deviation = abs(a - b) / 2**0.5
        return [
            [(r - (a + b) / 2) / (deviation + 1e-6)] * len(t.turns) for r, t in zip((a, b), trajectories, strict=True)
        ]
    to_go = [[sum(u.reward for u in t.turns[k:]) for k in range(len(t.turns))] for t in trajectories]
    tokens = [
        g
        for t, row in zip(trajectories, to_go, strict=True)
        for u, g in zip(t.turns, row, strict=True)
        for _ in range(u.stop - u.start)
    ]
    mean = sum(tokens) / len(tokens)
    deviation = (sum((x - mean) ** 2 for x in tokens) / (len(tokens) - 1)) ** 0.5
    return [[(g - mean) / (deviation + 1e-6) for g in row] for row in to_go]


def corridor_by_hand(settings, history):
    """Means of past entropies for turns 0, 1, 2."""
    if settings.get("reference") == "turn":
        return [sum(row[1 + t] for row in history) / len(history) for t in range(3)]
    return [sum(row[0] for row in history) / len(history)] * 3


SETTINGS = {
    "the paper's": {},
    "turns apart, indicator": {"reference": "turn", "penalty": "indicator", "schedule": "code"},
    "tokens alike, from turn 1 on": {"aggregation": "token", "first_turn": 1, "reference": "turn"},
    "falling from turn to turn": {"turn_decay": True, "schedule": "constant"},
}


@pytest.mark.parametrize("budget", [60, 10_000])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("base", ["grpo", "ppo"])
def test_the_gradient_is_that_of_the_formula(played, monkeypatch, base, name, budget):
    groups, model, stock = copy.deepcopy(played[0]), played[1], played[2]
    trajectories = groups[0].trajectories
    settings = {"coef": 0.3, "alpha": 0.4, "kappa_low": 0.9, "kappa_high": 1.05, "horizon": 10, **SETTINGS[name]}
    values = {"groups": 1, "group_size": 2} if base == "grpo" else {"episodes": 2, "critic": {"widths": [8]}}
    cfg = epo.make_config(
        {
            "base": base,
            "epo": settings,
            "algo": {"clip_high": 0.28, "aggregation": "token_mean"},
            "optim": {"token_budget": budget, "grad_clip": 1e9},
            "rollout": {"temperature": TEMPERATURE, "max_turns": 3},
            "minibatches": 1,
            **values,
        }
    )
    with torch.no_grad():
        measured = [[turn_by_hand(stock, t, u)[2] for u in t.turns] for t in trajectories]
    typical = float(torch.cat([e for row in measured for e in row]).mean())
    history = [[typical * f] + [typical * f * g for g in (0.9, 1.0, 1.1)] for f in (0.9, 1.1)]
    job = SimpleNamespace(state={"entropies": copy.deepcopy(history)}, step=2, model=model)
    critic = Critic(model, cfg.critic, 0) if base == "ppo" else None
    learner = Learner(model, cfg.optim, *((critic.head, 1e-3) if critic else ()))
    gradient = {}
    learner.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in model.named_parameters()})
    metrics = epo.learn(cfg, job, learner, critic, None, groups)
    assert learner.updates == 1

    h = corridor_by_hand(settings, history)
    beta = {"paper": 1 + math.exp(-3 * 2 / 5), "code": 1 - 0.2 * (1 - math.exp(-2 * 2 / 5)), "constant": 1.0}
    beta = beta[settings.get("schedule", "paper")]
    n = sum(t.action_tokens for t in trajectories)
    stock.zero_grad()
    policy, bonus, smooth, outside, entropies = 0.0, 0.0, 0.0, [0, 0], []
    for trajectory, advantages in zip(trajectories, advantages_by_hand(base, trajectories), strict=True):
        turns = len(trajectory.turns)
        for t, (turn, a) in enumerate(zip(trajectory.turns, advantages, strict=True)):
            logp, old, entropy = turn_by_hand(stock, trajectory, turn)
            entropies.append((t, entropy.detach()))
            for x, y, e in zip(logp, old, entropy, strict=True):
                ratio = (x - y).exp()
                policy = policy - torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a) / n
                below, above = 0.9 * h[t] - e, e - 1.05 * h[t]
                outside[0] += bool(below > 0)
                outside[1] += bool(above > 0)
                p = below.clamp(min=0) + above.clamp(min=0)
                if settings.get("penalty") == "indicator":
                    p = float(below > 0 or above > 0)
                u = 1 / n if settings.get("aggregation") == "token" else 1 / (2 * turns * len(entropy))
                u = u * (2 * (turns - t) / (turns + 1) if settings.get("turn_decay") else 1)
                bonus = bonus + u * e
                smooth = smooth + (0.0 if t < settings.get("first_turn", 0) else u * 0.4 * p)
    assert all(outside)
    assert sum(outside) < n
    expected = policy - 0.3 * (bonus - beta * smooth)
    expected.backward()
    value = 0.0
    if base == "ppo":
        to_go = [
            sum(u.reward for u in t.turns[k:])
            for t in trajectories
            for k, u in enumerate(t.turns)
            for _ in range(u.stop - u.start)
        ]
        value = 0.5 * sum(0.5 * g * g for g in to_go) / n
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()) + value, rel=1e-4, abs=1e-6)
    assert metrics["epo/entropy"] == pytest.approx(float(bonus.detach()), rel=1e-4)
    assert metrics["epo/smooth"] == pytest.approx(float(torch.as_tensor(smooth).detach()), rel=1e-3)
    assert metrics["epo/inside_frac"] == pytest.approx(1 - sum(outside) / n)
    assert (metrics["epo/beta"], metrics["epo/reference"]) == pytest.approx((beta, sum(h) / 3))
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    for parameter_name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[parameter_name], parameter.grad, rtol=2e-4, atol=2e-5 * norm)

    everything = torch.cat([e for _, e in entropies])
    by_turn = [torch.cat([e for t, e in entropies if t == k]).mean() for k in range(3)]
    assert job.state["entropies"][:2] == history
    assert job.state["entropies"][2] == pytest.approx([float(everything.mean()), *map(float, by_turn)], rel=1e-4)


@pytest.mark.parametrize("base", ["grpo", "ppo"])
def test_without_its_coefficient_it_is_the_base_algorithm_bit_by_bit(played, base):
    values = {
        "rollout": {"temperature": TEMPERATURE, "max_turns": 3},
        "optim": {"lr": 1e-2},
        "updates": 2,
        "minibatches": 1,
    }
    values |= {"groups": 1, "group_size": 2} if base == "grpo" else {"episodes": 2, "critic": {"widths": [8]}}

    def train(cfg, algorithm):
        groups, model = copy.deepcopy(played[0]), copy.deepcopy(played[1])
        critic = Critic(model, cfg.critic, 0) if base == "ppo" else None
        learner = Learner(model, cfg.optim, *((critic.head, 1e-3) if critic else ()))
        algorithm(cfg, learner, critic, groups)
        return {
            **model.state_dict(),
            **({f"head.{k}": v for k, v in critic.head.state_dict().items()} if critic else {}),
        }

    def with_epo(cfg, learner, critic, groups):
        job = SimpleNamespace(state={"entropies": [[0.1], [0.1]]}, step=2, model=learner.model)
        epo.learn(cfg, job, learner, critic, None, groups)

    def without(cfg, learner, critic, groups):
        if base == "grpo":
            loss = grpo.make_loss(cfg.algo, None, TEMPERATURE)
            grpo.update(cfg, learner, groups, grpo.assign_advantages(cfg.algo, groups), loss)
        else:
            trajectories = groups[0].trajectories
            credit, _ = ppo.assign_credit(cfg, critic, None, trajectories)
            ppo.update(cfg, learner, trajectories, credit, ppo.make_loss(cfg, critic.head), 2)

    plain = train({"grpo": grpo, "ppo": ppo}[base].make_config(values), without)
    off = train(epo.make_config({**values, "base": base, "epo": {"coef": 0.0}}), with_epo)
    on = train(epo.make_config({**values, "base": base}), with_epo)
    assert plain.keys() == off.keys()
    assert all(torch.equal(plain[k], off[k]) for k in plain)
    assert not all(torch.equal(plain[k], on[k]) for k in plain)


def test_entropy_is_learned_from_where_advantages_are_silent(played):
    groups, model = copy.deepcopy(played[0]), copy.deepcopy(played[1])
    for turn in (u for t in groups[0].trajectories for u in t.turns):
        turn.reward = 0.5
    for coef, expected in ((1e-3, 1), (0.0, 0)):
        cfg = epo.make_config({"groups": 1, "group_size": 2, "epo": {"coef": coef}, "rollout": {"max_turns": 3}})
        job = SimpleNamespace(state={"entropies": []}, step=0, model=model)
        learner = Learner(model, cfg.optim)
        epo.learn(cfg, job, learner, None, None, groups)
        assert learner.updates == len(job.state["entropies"]) == expected


def test_a_step_without_a_group_leaves_no_trace_in_the_history(played):
    for current in (False, True):
        cfg = epo.make_config({"epo": {"current": current}})
        job = SimpleNamespace(state={"entropies": [[0.5, 0.5]]}, step=1, model=played[1])
        metrics = epo.learn(cfg, job, Learner(played[1], cfg.optim), None, None, [])
        assert job.state["entropies"] == [[0.5, 0.5]]
        assert metrics["group/kept"] == 0.0


def test_the_present_step_counts_where_it_is_asked_for(played):
    values = {"groups": 1, "group_size": 2, "updates": 2, "minibatches": 1, "optim": {"lr": 1e-2}}
    values["rollout"] = {"temperature": TEMPERATURE, "max_turns": 3}
    found = {}
    for current in (False, True):
        groups, model = copy.deepcopy(played[0]), copy.deepcopy(played[1])
        cfg = epo.make_config({**values, "epo": {"current": current, "window": 2}})
        job = SimpleNamespace(state={"entropies": [[9.0], [0.5]]}, step=2, model=model)
        found[current] = epo.learn(cfg, job, Learner(model, cfg.optim), None, None, groups)
        with torch.no_grad():
            parts = [turn_by_hand(played[2], t, u)[2] for t in groups[0].trajectories for u in t.turns]
        mean = float(torch.cat(parts).mean())
        assert job.state["entropies"][2][0] == pytest.approx(mean, rel=1e-5)  # of the first pass, not of the second
        assert found[current]["epo/reference"] == pytest.approx((0.5 + mean) / 2 if current else 9.5 / 2, rel=1e-5)


# ---- settings -----------------------------------------------------------------------------------------------


def test_every_preset_is_the_row_of_the_table():
    def changed(preset):
        plain, got = epo.make_config({}).epo, epo.make_config({"preset": preset, "rollout": {"max_turns": 30}}).epo
        return {k: v for k, v in vars(got).items() if v != getattr(plain, k)}

    assert changed("epo") == {}
    assert changed("epo_base") == {"alpha": 0.0}
    assert changed("epo_no_dw") == {"schedule": "constant", "horizon": 0}
    assert changed("epo_decay") == {"alpha": 0.0, "turn_decay": True}
    assert changed("entropy_bonus") == {"alpha": 0.0, "aggregation": "token"}
    released = {"penalty": "indicator", "reference": "turn", "current": True, "aggregation": "token"}
    assert changed("released") == {**released, "schedule": "code", "horizon": 150, "first_turn": 25}
    assert epo.make_config({"preset": "epo_base", "epo": {"alpha": 0.2}}).epo.alpha == 0.2


def test_the_plain_bonus_is_the_base_algorithms_own(played):
    def gradient(cfg, learn):
        groups, model, found = copy.deepcopy(played[0]), played[1], {}
        learner = Learner(model, cfg.optim)
        learner.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in model.named_parameters()})
        learn(cfg, learner, groups)
        return found

    def with_epo(cfg, learner, groups):
        epo.learn(
            cfg, SimpleNamespace(state={"entropies": [[0.1]]}, step=1, model=played[1]), learner, None, None, groups
        )

    def with_grpo(cfg, learner, groups):
        loss = grpo.make_loss(cfg.algo, None, TEMPERATURE)
        grpo.update(cfg, learner, groups, grpo.assign_advantages(cfg.algo, groups), loss)

    values = {"groups": 1, "group_size": 2, "rollout": {"temperature": TEMPERATURE, "max_turns": 3}}
    values["algo"] = {"aggregation": "token_mean"}
    mine = gradient(epo.make_config({**values, "preset": "entropy_bonus", "epo": {"coef": 0.1}}), with_epo)
    values["algo"]["entropy_coef"] = 0.1
    theirs = gradient(grpo.make_config(values), with_grpo)
    for name, expected in theirs.items():
        torch.testing.assert_close(mine[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", ["grpo", "ppo"])
def test_a_config_can_be_read_back_and_says_how_long_the_schedule_is(base):
    cfg = epo.make_config({"base": base, "steps": 40})
    assert cfg.epo.horizon == 40
    assert build(type(cfg), yaml.safe_load(dump(cfg))) == cfg
    assert epo.make_config({"base": base, "steps": 40, "epo": {"horizon": 125}}).epo.horizon == 125


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "epo_bas"}, "unknown preset 'epo_bas': did you mean"),
        ({"preset": "dapo"}, "unknown preset 'dapo'"),
        ({"base": "gppo"}, "unknown base 'gppo': did you mean"),
        ({"epo": {"kappa_low": 1.5, "kappa_high": 0.5}}, r"epo.kappa_low \(1.5\) is above epo.kappa_high \(0.5\)"),
        ({"epo": {"kappa_low": -0.1}}, "epo.kappa_low is -0.1"),
        ({"epo": {"window": 0}}, "epo.window is 0: it must be at least 1, or null"),
        ({"epo": {"coef": -1e-3}}, "epo.coef is -0.001"),
        ({"epo": {"coef": math.inf}}, "epo.coef is inf"),
        ({"epo": {"alpha": -1.0}}, "epo.alpha is -1.0"),
        ({"epo": {"gamma": -1.0}}, "epo.gamma is -1.0"),
        ({"epo": {"horizon": -1}}, "epo.horizon is -1"),
        ({"epo": {"penalty": "square"}}, "unknown value of epo.penalty 'square'"),
        ({"epo": {"schedule": "cosine"}}, "unknown value of epo.schedule 'cosine'"),
        ({"epo": {"kappa": 1.0}}, "unknown config key 'epo.kappa'"),
        ({"epo": {"first_turn": 25}}, "epo.first_turn is 25, but rollout.max_turns is 20: no turn would"),
        ({"preset": "released"}, "epo.first_turn is 25, but rollout.max_turns is 20"),
        ({"algo": {"entropy_coef": 0.01}}, "algo.entropy_coef is 0.01: EPO's own bonus is epo.coef"),
        ({"base": "ppo", "algo": {"entropy_coef": 0.01}}, "algo.entropy_coef is 0.01"),
        ({"base": "ppo", "group_size": 8}, "unknown config key 'group_size'"),
        ({"optim": {"decay": "cosine"}}, "optim.decay is cosine, but optim.decay_steps is 0"),
        ({"optim": {"min_ratio": 1.0}}, "optim.min_ratio is 1.0"),
        ({"base": "grpo", "critic": {"lr": 1e-3}}, "unknown config key 'critic'"),
        ({"base": "ppo", "algo": {"gamma": 2.0}}, "algo.gamma is 2"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        epo.make_config(values)


# ---- runs ---------------------------------------------------------------------------------------------------

COMMON = {
    "env": {"id": "test/Echo-v0"},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300, "threads": 1},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300},
    "eval": {"final_episodes": 4},
}
SHORT = {"steps": 4, "save_every": 1, "show_every": 1, "optim": {"lr": 1e-3, "warmup_steps": 3}}
GRPO = {**SHORT, "groups": 4, "group_size": 4, "epo": {"coef": 0.1, "kappa_low": 0.9, "kappa_high": 1.1}}
PPO = {
    **SHORT,
    "base": "ppo",
    "episodes": 16,
    "minibatches": 2,
    "updates": 2,
    "critic": {"widths": [16]},
    "epo": {"coef": 0.1, "reference": "turn", "current": True, "window": 2, "kappa_low": 0.9, "kappa_high": 1.1},
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The folder of a model that has seen a few demonstrations."""
    out = tmp_path_factory.mktemp("warm") / "sft"
    sft.main(sft.make_config(overlay(COMMON, {"demonstrations": 64, "epochs": 10, "optim": {"lr": 3e-3}})), out)
    return out / "final"


def config(warm, values):
    return epo.make_config(overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, values))


@pytest.fixture(scope="module")
def straight(warm, tmp_path_factory):
    """Both bases, four steps without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    epo.main(config(warm, GRPO), folder / "grpo")
    epo.main(config(warm, PPO), folder / "ppo")
    return folder


def test_the_history_is_that_of_the_policies_that_sampled(warm, straight):
    history = state(straight / "grpo")["trainer"]["entropies"]
    lines = [row for row in rows(straight / "grpo") if "reward/mean" in row]
    assert len(history) == len(lines) == 4
    assert "epo/reference" not in lines[0]
    assert "epo/inside_frac" not in lines[0]
    assert lines[0]["epo/smooth"] == 0.0
    for k, row in enumerate(lines):
        assert row["policy/entropy"] == pytest.approx(history[k][0], rel=1e-4)
        assert row["epo/beta"] == pytest.approx(1 + math.exp(-3 * k / 2), rel=1e-4)
        if k:
            assert row["epo/reference"] == pytest.approx(np.mean([h[0] for h in history[:k]]), rel=1e-4)
            assert 0 < row["epo/inside_frac"] < 1
            assert row["epo/smooth"] > 0
    first = store.read(straight / "grpo" / "trajectories" / "step_00001.jsonl")
    assert len(first) == 16
    model, _, _ = load_model(str(warm))
    stock = LlamaForCausalLM(copy.deepcopy(model.config))
    stock.load_state_dict(model.state_dict())
    stock.set_attn_implementation("sdpa")
    parts = {}
    for trajectory in first:
        for t, turn in enumerate(trajectory.turns):
            segment = trajectory.segments[turn.segment]
            with torch.no_grad():
                logps = stock(input_ids=torch.tensor([segment.ids[: turn.stop]])).logits[0, :-1].log_softmax(-1)
            parts.setdefault(t, []).append(-(logps.exp() * logps).sum(-1)[turn.start - 1 :])
    by_turn = {t: float(torch.cat(p).mean()) for t, p in parts.items()}
    everything = float(torch.cat([x for p in parts.values() for x in p]).mean())
    assert history[0] == pytest.approx([everything, *(by_turn[t] for t in range(len(by_turn)))], rel=1e-4)


@pytest.mark.parametrize(("base", "values"), [("grpo", GRPO), ("ppo", PPO)])
def test_a_run_goes_on_bit_by_bit_with_its_history(warm, straight, tmp_path, base, values):
    horizon = {"epo": {**values["epo"], "horizon": 4}}
    out = tmp_path / base
    epo.main(config(warm, {**values, **horizon, "steps": 2}), out)
    assert len(state(out)["trainer"]["entropies"]) == 2
    epo.main(config(warm, {**values, **horizon}), out, resume=True)
    assert_same_run(straight / base, out)


@pytest.mark.parametrize(("base", "values"), [("grpo", GRPO), ("ppo", PPO)])
def test_a_run_that_is_killed_in_the_middle_goes_on_bit_by_bit(warm, straight, tmp_path, base, values):
    out = tmp_path / base
    run_until_killed("epo", config(warm, values), out)
    epo.main(config(warm, values), out, resume=True)
    assert_same_run(straight / base, out)


def test_the_length_of_the_schedule_does_not_change_in_mid_run(warm, straight):
    with pytest.raises(ConfigError, match=r"was started with epo.horizon: 4, not 6"):
        epo.main(config(warm, {**GRPO, "steps": 6}), straight / "grpo", resume=True)


def test_a_trainers_own_state_is_kept_with_tensors_and_all(warm, tmp_path):
    cfg = grpo.make_config(
        overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, {"steps": 2, "save_every": 1})
    )
    for last in (1, 2):
        cfg.steps = last
        with Training("grpo", cfg, tmp_path / "run", resume=last == 2) as job:
            learner = Learner(job.model, cfg.optim)
            job.state |= {"count": 0, "net": {"w": torch.zeros(2)}}
            for step in job.steps(learner):
                assert job.state["count"] == step
                assert torch.equal(job.state["net"]["w"], torch.full((2,), float(step)))
                groups = job.rollout.collect(group_tasks(0, step, 1, 2))
                with job.update([t for g in groups for t in g.trajectories]):
                    job.state["count"] += 1
                    job.state["net"]["w"] = job.state["net"]["w"] + 1
    assert job.state["count"] == 2
