"""IGPO: the numbers of its spec, the gradient by hand, GRPO where nothing is gained, runs that resume bit by bit."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import helpers_search
import numpy as np
import pytest
import torch
from agentgym.trainers import grpo, igpo, sft
from helpers_policies import tiny_policy
from helpers_runs import assert_same_run, rows, run_until_killed
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from agentgym import cli, store
from agentgym.config import dump, load, overlay
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner.learner import Learner
from agentgym.learner.losses import clipped_surrogate, kl_k3, token_weights
from agentgym.policies.probe import make_probe
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.types import Group, Segment, Status, Trajectory, Turn

TEMPERATURE = 0.8
GAINS, OUTCOMES = [[0.5, -0.1], [1.2], [-0.4, 0.3, 0.0]], [1.0, 0.0, 0.5]
"""Spec A14-2: a group of three."""
ONE = ["q"] * 3


def flat(rows):
    return np.concatenate([np.asarray(row) for row in rows]).tolist()


def returns_of(gains, outcomes, groups=ONE, gamma=1.0, **settings):
    """A of every turn of each rollout."""
    rows = igpo.normalise(gains, outcomes, groups, **settings)
    return [igpo.turn_advantages(row, len(row), gamma) for row in rows]


def trajectory_of(group, scores, reward, lengths=(), status=Status.DONE, segments=1):
    """An episode whose turn k was probed with scores[k] and has lengths[k] sampled tokens (2)."""
    rows, turns = [Segment() for _ in range(segments)], []
    for k, score in enumerate(scores):
        row, n = rows[k % segments], lengths[k] if lengths else 2
        row.append_context([7, 7])
        row.append_sampled([8] * n, [-1.0] * n, 0)
        turns.append(Turn("o", k % segments, 0, len(row) - n, len(row), "t", "a", probe=score))
    turns[-1].reward = reward
    return Trajectory("e", 0, group, segments=rows, turns=turns, status=status)


def scored(gains, start=-3.0):
    """Scores with these differences."""
    return [start, *(start + np.cumsum(gains))]


def assigned(*trajectories, algo=None, **settings):
    """Largest |A|, metrics, and the advantage of every turn."""
    groups = {}
    for t in trajectories:
        groups.setdefault(t.group, Group(t.group, 0)).trajectories.append(t)
    cfg = igpo.make_config({"igpo": settings, "algo": algo or {}})
    largest, metrics = igpo.assign_advantages(cfg, list(groups.values()))
    return [[value_of(t, turn) for turn in t.turns] for t in trajectories], largest, metrics


def value_of(trajectory, turn):
    segment = trajectory.segments[turn.segment]
    (value,) = {
        a for a, m in zip(*(x[turn.start : turn.stop] for x in (segment.advantages, segment.mask)), strict=True)
    }
    return value


# ---- the numbers of the spec (A14) ----------------------------------------------------------------------------


def test_1_gains():
    tokens = [[-2, -1, -3], [-1, -0.5, -1.5], [-1.2, -0.6, -1.8]]
    scores = [float(np.mean(row)) for row in tokens]
    assert scores == pytest.approx([-2.0, -1.0, -1.2])
    assert igpo.information_gains(scores).tolist() == pytest.approx([1.0, -0.2])
    assert igpo.information_gains(scores).sum() == pytest.approx(scores[2] - scores[0])
    assert igpo.information_gains(scores, "prob").tolist() == pytest.approx([0.232544, -0.066685], abs=1e-6)


SEPARATE = [[0.487949, -0.683129, 1.224742], [1.854206, -1.224742], [-1.268668, 0.097590, -0.487949, 0.0]]
JOINT = [[0.337099, -0.876458, 1.348397], [1.752916, -0.674198], [-1.483237, -0.067420, -0.674198, 0.337099]]


@pytest.mark.parametrize(("norm", "expected"), [("separate", SEPARATE), ("joint", JOINT)])
def test_2_and_3_normalised_rewards(norm, expected):
    found = igpo.normalise(GAINS, OUTCOMES, ONE, norm)
    assert [len(row) for row in found] == [3, 2, 4]
    assert flat(found) == pytest.approx(flat(expected), abs=1e-6)
    if norm == "separate":
        assert sum(flat(row[:-1] for row in found)) == pytest.approx(0, abs=1e-12)
        assert sum(row[-1] for row in found) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("norm", "gamma", "expected"),
    [
        (
            "separate",
            1.0,
            [[1.029562, 0.541613, 1.224742], [0.629465, -1.224742], [-1.659027, -0.390359, -0.487949, 0.0]],
        ),
        (
            "separate",
            0.9,
            [[0.865174, 0.419139, 1.224742], [0.751939, -1.224742], [-1.576076, -0.341564, -0.487949, 0.0]],
        ),
        (
            "joint",
            1.0,
            [[0.809038, 0.471939, 1.348397], [1.078718, -0.674198], [-1.887756, -0.404519, -0.337099, 0.337099]],
        ),
    ],
)
def test_2_and_3_turn_returns(norm, gamma, expected):
    found = returns_of(GAINS, OUTCOMES, gamma=gamma, norm=norm)
    assert flat(found) == pytest.approx(flat(expected), abs=2e-6)
    for row, r in zip(found, igpo.normalise(GAINS, OUTCOMES, ONE, norm), strict=True):
        assert row[:-1] - gamma * row[1:] == pytest.approx(r[:-1])
    lengths = [[3, 2, 2], [2, 3], [2, 2, 1, 2]]
    played = [
        trajectory_of("q", scored(g), o, n, segments=s)
        for g, o, n, s in zip(GAINS, OUTCOMES, lengths, (1, 2, 3), strict=True)
    ]
    values, largest, _ = assigned(*played, gamma=gamma, norm=norm)
    assert flat(values) == pytest.approx(flat(expected), abs=2e-6)
    assert largest.tolist() == pytest.approx([max(map(abs, row)) for row in expected], abs=2e-6)
    first = expected[0]
    (segment,) = played[0].segments
    assert segment.advantages == pytest.approx(
        [0, 0, *[first[0]] * 3, 0, 0, *[first[1]] * 2, 0, 0, *[first[2]] * 2], abs=2e-6
    )


def test_5_a_group_that_failed_altogether_still_learns():
    expected = [[-0.195180, -0.683129, 0], [1.854206, 0], [-1.659027, -0.390359, -0.487949, 0]]
    found = returns_of(GAINS, [0.0, 0.0, 0.0])
    assert flat(found) == pytest.approx(flat(expected), abs=2e-6)
    assert all(row[-1] == 0 for row in found)
    played = [trajectory_of("q", scored(g), 0.0) for g in GAINS]
    assert np.all(grpo.assign_advantages(grpo.Algo(), [Group("q", 0, played)]) == 0)


@pytest.mark.parametrize(
    ("gamma", "expected"), [(0.5, [1.882987, 0.499999, 0.999998]), (1.0, [2.632986, 0.999998, 0.999998])]
)
def test_7_a_normalised_reward_of_zero_keeps_its_turn(gamma, expected):
    gains = [[1.0, 0.5], [0.25, 0.25]]
    assert igpo.normalise(gains, [1.0, 0.0], ["q"] * 2)[0][1] == 0.0
    found = returns_of(gains, [1.0, 0.0], ["q"] * 2, gamma)
    assert found[0].tolist() == pytest.approx(expected, abs=2e-6)
    values, _, _ = assigned(
        *(trajectory_of("q", scored(g), o) for g, o in zip(gains, (1.0, 0.0), strict=True)), gamma=gamma
    )
    assert values[0] == pytest.approx(expected, abs=2e-6)


def test_8_masked_tokens_inside_an_episode_move_nothing():
    played = [trajectory_of("q", scored(g), o, [3] * len(g) + [3]) for g, o in zip(GAINS, OUTCOMES, strict=True)]
    (segment,) = played[0].segments
    segment.mask[3] = segment.mask[4] = 0  # of the first turn, whose tokens are 2, 3 and 4
    cfg = igpo.make_config({})
    igpo.assign_advantages(cfg, [Group("q", 0, played)])
    a, b, c = 1.029562, 0.541613, 1.224742
    assert segment.advantages == pytest.approx([0, 0, a, 0, 0, 0, 0, b, b, b, 0, 0, c, c, c], abs=2e-6)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", 1 / 3), ("seq_mean_token_sum", 1.0), ("seq_mean_token_mean", 0.0)],
)
def test_9_aggregations(aggregation, expected):
    seq = torch.tensor([0, 0, 1, 1, 1, 1])
    loss = clipped_surrogate(torch.zeros(6), torch.zeros(6), torch.tensor([1.0, 1, -1, -1, -1, -1]), dual_clip=3.0)
    assert float((token_weights(seq, 2, aggregation) * loss).sum()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"), [(1, 1.5, -1.2), (1, 0.5, -0.5), (-1, 1.5, 1.5), (-1, 0.5, 0.8), (-1, 5, 3.0)]
)
def test_9_clipping(advantage, ratio, loss):
    found = clipped_surrogate(
        torch.tensor([ratio]).log(), torch.zeros(1), torch.tensor([float(advantage)]), 0.2, 0.2, dual_clip=3.0
    )
    assert float(found) == pytest.approx(loss)


@pytest.mark.parametrize(("d", "k3"), [(0.1, 0.00517092), (-0.1, 0.00483742), (0.5, 0.148721), (5.0, 10.0)])
def test_10_k3(d, k3):
    logp = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = kl_k3(logp, torch.tensor([d], dtype=torch.float64), 10.0)
    assert float(found.detach()) == pytest.approx(k3, rel=1e-5)
    found.backward()
    assert float(logp.grad) == pytest.approx(0.0 if d == 5.0 else 1 - math.exp(d))


def test_12_pools_of_one():
    ((a, b), (c,)) = igpo.normalise([[0.7], []], [1.0, 0.0], ["q"] * 2)
    assert a == 0
    assert (b, c) == pytest.approx((1.0, -1.0), abs=1e-5)
    ((a, b, c),) = igpo.normalise([[0.7, 0.1]], [1.0], ["q"])
    assert c == 0
    assert (a, b) == pytest.approx((1.0, -1.0), abs=1e-5)
    assert igpo.normalise([], [], []) == []


# ---- more of the rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["separate", "joint"])
def test_questions_are_normalised_among_themselves(norm):
    other = [[9.0, 1.0], [0.3]]
    both = igpo.normalise([*GAINS, *other], [*OUTCOMES, 5.0, 1.0], [*ONE, "r", "r"], norm)
    alone = igpo.normalise(GAINS, OUTCOMES, ONE, norm), igpo.normalise(other, [5.0, 1.0], ["r"] * 2, norm)
    assert flat(both) == pytest.approx(flat([*alone[0], *alone[1]]), abs=1e-12)


def test_gains_that_differ_by_rounding_are_not_blown_up():
    """Their σ is taken as 1e-4, as in IGPO's code: 0.01 instead of 1."""
    ((a, _), (b, _)) = igpo.normalise([[0.2 + 1e-6], [0.2 - 1e-6]], [0.0, 0.0], ["q"] * 2)
    assert (a, b) == pytest.approx((0.01, -0.01), rel=0.02)


def test_where_the_deviation_is_taken_over_n_less_one():
    a, b = (igpo.normalise(GAINS, OUTCOMES, ONE, ddof=d) for d in (0, 1))
    assert [row[-1] for row in b] == pytest.approx([row[-1] * math.sqrt(2 / 3) for row in a], rel=1e-5)


def test_a_score_that_is_no_number_counts_as_no_gain():
    a = trajectory_of("q", [-3.0, -math.inf, -2.0, -1.0], 1.0)
    b = trajectory_of("q", [-3.0, math.nan, -2.0, -2.5], 0.0)
    values, _, metrics = assigned(a, b)
    expected = returns_of([[0.0, 0.0, 1.0], [0.0, 0.0, -0.5]], [1.0, 0.0], ["q"] * 2)
    assert flat(values) == pytest.approx(flat(expected))
    assert metrics["igpo/not_finite"] == 4


def test_a_rollout_that_was_not_probed_has_its_outcome_in_every_turn():
    played = [trajectory_of("q", [-3.0, None, -1.0], 1.0), trajectory_of("q", scored([0.5, -0.1]), 0.0)]
    values, _, metrics = assigned(*played)
    assert metrics["igpo/fallback"] == 1
    assert metrics["igpo/gained_frac"] == 0.5
    assert values[0] == pytest.approx([1.0] * 3, abs=1e-5)
    assert values[1] == pytest.approx([-1.0, -2.0, -1.0], abs=1e-5)
    with pytest.raises(ValueError, match="2 rewards for 3 turns"):
        igpo.turn_advantages([1.0, 2.0], 3)


@pytest.mark.parametrize("status", [Status.TRUNCATED, Status.CONTEXT_FULL, Status.PARSE_LIMIT])
def test_an_episode_without_an_answer_has_the_penalty_of_a_wrong_format(status):
    played = [trajectory_of("q", scored([0.5]), 0.25, status=status), trajectory_of("q", scored([0.5]), 0.25)]
    cfg = igpo.make_config({})
    assert igpo.outcome_rewards(cfg, played).tolist() == [-2.0, 0.25]
    assert igpo.outcome_rewards(igpo.make_config({"igpo": {"unfinished": None}}), played).tolist() == [0.25, 0.25]
    values, _, metrics = assigned(*played)
    assert values[0] == pytest.approx([-1.0, -1.0], abs=1e-5)
    assert metrics["igpo/unfinished_frac"] == 0.5


def test_metrics_of_the_gains():
    played = [trajectory_of("q", scored(g), o) for g, o in zip(GAINS, OUTCOMES, strict=True)]
    _, _, metrics = assigned(*played)
    gains = np.concatenate([np.array(g) for g in GAINS])
    assert metrics["igpo/gain_mean"] == pytest.approx(gains.mean())
    assert metrics["igpo/gain_std"] == pytest.approx(gains.std())
    assert metrics["igpo/gain_sum"] == pytest.approx((0.4 + 1.2 - 0.1) / 3)  # ΣIG = the last score less the first
    assert metrics["igpo/answer_logp"] == pytest.approx(-3 + (0.4 + 1.2 - 0.1) / 3)
    assert metrics["igpo/fallback"] == metrics["igpo/not_finite"] == metrics["igpo/unfinished_frac"] == 0


def test_nothing_to_learn_from_is_no_error():
    largest, metrics = igpo.assign_advantages(igpo.make_config({}), [])
    assert (len(largest), metrics) == (0, {})


# ---- settings -------------------------------------------------------------------------------------------------


def test_the_presets():
    paper, code, first, outcome = (igpo.make_config({"preset": p}) for p in ("igpo", "igpo_code", "igpo_v1", "outcome"))
    assert (paper.igpo.gain, paper.igpo.norm, paper.igpo.gamma, paper.igpo.unfinished) == ("log", "separate", 1.0, -2.0)
    assert (paper.algo.aggregation, paper.algo.kl_coef, paper.algo.clip_low) == ("seq_mean_token_mean", 0.001, 0.2)
    assert (paper.algo.dual_clip, paper.algo.entropy_coef, paper.algo.kl_max) == (None, 0.0, None)
    assert (code.algo.aggregation, code.algo.kl_coef) == ("seq_mean_token_sum", 0.001)
    assert (code.algo.dual_clip, code.algo.entropy_coef, code.algo.kl_max) == (3.0, 0.001, 10.0)
    assert code.igpo == paper.igpo
    assert (first.igpo.gain, first.igpo.norm) == ("prob", "joint")
    assert (outcome.igpo.gain, outcome.igpo.ddof, outcome.algo) == ("none", 1, paper.algo)
    assert igpo.make_config({"preset": "igpo_code", "algo": {"dual_clip": None}}).algo.dual_clip is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "sft"}, "unknown preset 'sft': choose from: igpo, igpo_code, igpo_v1, outcome"),
        ({"algo": {"scale": "none"}}, r"algo.center and algo.scale are GRPO's: .*igpo.norm"),
        ({"algo": {"resample": True}}, "algo.resample throws away groups with equal outcomes"),
        ({"decode": {"backend": "vllm", "lora": "adapter"}}, "decode.lora is adapter"),
        ({"algo": {"kl_max": 0.0}}, "algo.kl_max is 0.0"),
        ({"igpo": {"gain": "logit"}}, "unknown value of igpo.gain 'logit'"),
        ({"igpo": {"norm": "none"}}, "unknown value of igpo.norm 'none'"),
        ({"igpo": {"gamma": 1.5}}, "igpo.gamma is 1.5"),
        ({"igpo": {"gamma": -0.5}}, "igpo.gamma is -0.5"),
        ({"igpo": {"ddof": 2}}, "igpo.ddof is 2"),
        ({"igpo": {"unfinished": -math.inf}}, "igpo.unfinished is -inf"),
        ({"igpo": {"wrapper": "<answer></answer>"}}, r"igpo.wrapper is .* exactly once"),
        ({"igpo": {"weight": 1}}, "unknown config key 'igpo.weight'"),
        ({"group_size": 1}, "group_size is 1"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        igpo.make_config(values)


# ---- the gradient ---------------------------------------------------------------------------------------------


def stock_of(model):
    stock = LlamaForCausalLM(copy.deepcopy(model.config))
    stock.load_state_dict(model.state_dict())
    stock.set_attn_implementation("sdpa")
    return stock.eval()


@pytest.fixture(scope="module")
def played():
    """Two questions with two probed episodes each, a reference model, and transformers' own copies of both models."""
    policy, reference = tiny_policy(4), tiny_policy(5)
    settings = RolloutConfig(max_turns=4, max_new_tokens=5, context_limit=400, temperature=TEMPERATURE, parse_limit=9)
    with EnvPool("test/Lookup-v0", {"patient": True}) as pool:
        rollout = Rollout(pool, policy, settings)
        rollout.wrapper = helpers_search.WRAPPER
        groups = rollout.collect(group_tasks(0, 0, 2, 2))
    rng = np.random.default_rng(1)
    for k, trajectory in enumerate(t for g in groups for t in g.trajectories):
        trajectory.status = Status.DONE if k % 3 else Status.TRUNCATED
        trajectory.turns[-1].reward = float(rng.choice([0.25, 1.0]))
        for segment in trajectory.segments:
            noise = rng.normal(0, 0.2, len(segment))
            segment.logps = [x + float(d) * m for x, d, m in zip(segment.logps, noise, segment.mask, strict=True)]
    return groups, policy, reference.model, stock_of(policy.model), stock_of(reference.model)


def logps_by_hand(model, ids, start):
    """Log-probabilities of ids[start:] from a plain forward."""
    ids = torch.tensor(ids)
    logps = (model(input_ids=ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
    at = torch.arange(start, len(ids))
    return logps[at - 1, ids[at]]


def advantages_by_hand(groups, renderer, stock, kind, gamma):
    """The advantage of each turn of each trajectory, written out, the probes scored by the stock model."""
    out = []
    for group in groups:
        answer = helpers_search.Lookup().reset(seed=group.env_seed)[1]["answers"][0]
        probe = make_probe(renderer, answer, helpers_search.WRAPPER)
        gains = []
        for t in group.trajectories:
            with torch.no_grad():
                scores = [
                    float(
                        logps_by_hand(
                            stock,
                            [*t.segments[u.segment].ids[: u.start], *probe.ids],
                            u.start + probe.start,
                        ).mean()
                    )
                    for u in t.turns
                ]
            if kind == "prob":
                scores = [math.exp(s) for s in scores]
            gains.append([b - a for a, b in itertools.pairwise(scores)])
        pool = [g for row in gains for g in row]
        mean = sum(pool) / len(pool)
        std = math.sqrt(sum((g - mean) ** 2 for g in pool) / len(pool) + 1e-8)
        ends = [t.turns[-1].reward if t.status is Status.DONE else -2.0 for t in group.trajectories]
        middle = sum(ends) / len(ends)
        spread = math.sqrt(sum((e - middle) ** 2 for e in ends) / len(ends))
        for row, end in zip(gains, ends, strict=True):
            r = [*((g - mean) / (std + 1e-6) for g in row), (end - middle) / (spread + 1e-6)]
            out.append([sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))])
    return out


@pytest.mark.parametrize("budget", [60, 10_000])
@pytest.mark.parametrize(("preset", "kind"), [("igpo", "log"), ("igpo_code", "prob")])
def test_the_gradient_is_that_of_the_formula(played, budget, preset, kind):
    groups, policy, reference, stock, stock_reference = copy.deepcopy(played[0]), *played[1:]
    model = policy.model
    cfg = igpo.make_config(
        {
            "preset": preset,
            "groups": 2,
            "group_size": 2,
            "igpo": {"gain": kind, "gamma": 0.9},
            "algo": {"kl_coef": 0.3, "entropy_coef": 0.0},
            "optim": {"token_budget": budget, "grad_clip": 1e9},
            "rollout": {"temperature": TEMPERATURE},
        }
    )
    learner, gradient = Learner(model, cfg.optim), {}
    learner.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in model.named_parameters()})
    largest, found = igpo.assign_advantages(cfg, groups)
    assert found["igpo/gained_frac"] == 1
    assert found["igpo/fallback"] == 0
    metrics = grpo.update(cfg, learner, groups, largest, grpo.make_loss(cfg.algo, reference, TEMPERATURE))

    stock.zero_grad()
    rows, expected = advantages_by_hand(groups, policy.renderer, stock, kind, 0.9), 0.0
    trajectories = [t for g in groups for t in g.trajectories]
    assert all(len(set(np.round(row, 4))) == len(row) > 2 for row in rows)
    for trajectory, row in zip(trajectories, rows, strict=True):
        weight = 1 / (4 * trajectory.action_tokens) if preset == "igpo" else 1 / 4
        for turn, a in zip(trajectory.turns, row, strict=True):
            segment = trajectory.segments[turn.segment]
            ids, old = segment.ids[: turn.stop], torch.tensor(segment.logps[turn.start : turn.stop])
            logp = logps_by_hand(stock, ids, turn.start)
            ratio = (logp - old).exp()
            loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            if preset == "igpo_code" and a < 0:
                loss = torch.minimum(loss, torch.tensor(-3.0 * a))
            with torch.no_grad():
                d = logps_by_hand(stock_reference, ids, turn.start)
            k3 = (d - logp).exp() - (d - logp) - 1
            if preset == "igpo_code":
                k3 = k3.clamp(max=10.0)
            expected = expected + weight * (loss + 0.3 * k3).sum()
    expected.backward()
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-5)
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-3, atol=1e-4 * norm)


# ---- runs -----------------------------------------------------------------------------------------------------

COMMON = {
    "env": {"id": "test/Lookup-v0"},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 330, "threads": 1},
    "rollout": {"max_turns": 4, "max_new_tokens": 10, "context_limit": 400},
    "eval": {"final_episodes": 4},
}
SHORT = {
    "steps": 4,
    "groups": 4,
    "group_size": 4,
    "updates": 2,
    "minibatches": 2,
    "save_every": 1,
    "optim": {"lr": 1e-3, "warmup_steps": 3},
    "algo": {"kl_coef": 0.01},
    "igpo": {"wrapper": helpers_search.WRAPPER},
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The folder of a model that has seen a few demonstrations."""
    out = tmp_path_factory.mktemp("warm") / "sft"
    values = {"demonstrations": 96, "noise": 0.2, "epochs": 16, "optim": {"lr": 3e-3}}
    sft.main(sft.make_config(overlay(COMMON, values)), out)
    return out / "final"


def config(warm, **values):
    base = overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, SHORT)
    return igpo.make_config(overlay(base, values))


@pytest.fixture(scope="module")
def straight(warm, tmp_path_factory):
    """Four steps without interruption."""
    out = tmp_path_factory.mktemp("straight") / "igpo"
    igpo.main(config(warm), out)
    return out


def test_the_metrics_are_the_promised_ones(straight):
    lines = [row for row in rows(straight) if "reward/mean" in row]
    assert len(lines) == 4
    names = "gain_mean gain_std gain_positive_frac gain_sum gained_frac answer_logp fallback not_finite unfinished_frac"
    for row in lines:
        assert {f"igpo/{name}" for name in names.split()} <= row.keys()
        assert row["igpo/fallback"] == row["igpo/not_finite"] == 0
        assert row["igpo/gained_frac"] > 0.5
        assert row["igpo/gain_std"] > 0
    assert lines[0]["optim/grad_norm"] > 0


@pytest.mark.parametrize("norm", ["separate", "joint"])
def test_without_gains_a_whole_run_is_that_of_grpo_bit_by_bit(warm, tmp_path, norm):
    values = {"steps": 2, "igpo": {"norm": norm, "unfinished": None}}
    igpo.main(config(warm, preset="outcome", **values), tmp_path / "igpo")
    plain = overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, {**SHORT, "steps": 2})
    del plain["igpo"]
    grpo.main(grpo.make_config(plain), tmp_path / "grpo")
    weights = [load_file(tmp_path / f / "final" / "model.safetensors") for f in ("igpo", "grpo")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    mine = [{k: v for k, v in row.items() if not k.startswith("igpo/")} for row in rows(tmp_path / "igpo")]
    assert mine == rows(tmp_path / "grpo")
    assert any(row.get("optim/grad_norm", 0) > 0 for row in mine)


@pytest.mark.parametrize("norm", ["separate", "joint"])
def test_an_empty_list_of_gains_gives_the_advantages_of_grpo_bit_by_bit(norm):
    """Turns that were not probed under log gains are the same path as ``gain: none``."""
    groups = [
        Group(g, 0, [trajectory_of(g, [None] * n, r, segments=2) for n, r in zip((1, 3, 2, 4), values, strict=True)])
        for g, values in (("g", (1.0, 0.1, 0.7, 0.0)), ("h", (0.3, 0.3, 0.3, -2.0)), ("i", (0.1, 0.1, 0.1, 0.1)))
    ]
    igpo.assign_advantages(igpo.make_config({"igpo": {"ddof": 1, "norm": norm}}), groups)
    mine = [s.advantages for g in groups for t in g.trajectories for s in t.segments]
    grpo.assign_advantages(grpo.Algo(), groups)
    assert mine == [s.advantages for g in groups for t in g.trajectories for s in t.segments]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_goes_on_bit_by_bit(warm, straight, tmp_path, steps):
    igpo.main(config(warm, steps=steps), tmp_path / "run")
    igpo.main(config(warm), tmp_path / "run", resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_run_that_is_killed_in_the_middle_goes_on_bit_by_bit(warm, straight, tmp_path):
    out = tmp_path / "run"
    run_until_killed("igpo", config(warm), out)
    igpo.main(config(warm), out, resume=True)
    assert_same_run(straight, out)


# ---- refused before any rollout -------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["test/Echo-v0", "test/Lookup-v0"])
def test_an_environment_without_gold_answers_is_refused_before_any_rollout(warm, tmp_path, capsys, env):
    out = tmp_path / "out"
    file = tmp_path / "config.yaml"
    file.write_text(dump(config(warm)))
    told = ["env.kwargs.answers=false"] if "Lookup" in env else []
    code = cli.main(["train", "igpo", "--config", str(file), "--out", str(out), "--set", f"env.id={env}", *told])
    said = capsys.readouterr().err
    assert code == 2
    assert f"agentgym: error: {env} gives no gold answer to probe: its info holds no list `answers` at reset" in said
    assert said.strip().count("\n") == 0
    assert not list(out.glob("trajectories/*"))
    assert not (out / "evaluation.json").exists()


def test_without_gains_no_gold_answer_is_needed(warm, tmp_path):
    values = {"env": {"id": "test/Lookup-v0", "kwargs": {"answers": False}}, "steps": 1}
    results = igpo.main(config(warm, preset="outcome", **values), tmp_path / "run")
    assert set(results) == {"before", "after"}


# ---- the examples ---------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "configs"


def test_the_examples_run_when_made_small(tmp_path):
    small = {"model": {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 600, "threads": 1}}
    few = {"demonstrations": 48, "epochs": 1, "eval": {"final_episodes": 2}}
    values = overlay(load(str(EXAMPLES / "search_sft.yaml")), {**small, **few})
    sft.main(sft.make_config(values), tmp_path / "sft")
    few = {"steps": 1, "groups": 2, "group_size": 2, "eval": {"final_episodes": 2}}
    model = {"path": str(tmp_path / "sft" / "final"), "threads": 1}
    values = overlay(load(str(EXAMPLES / "igpo.yaml")), {"model": model, **few})
    igpo.main(igpo.make_config(values), tmp_path / "igpo")
    played = store.read(tmp_path / "igpo" / "trajectories" / "step_00001.jsonl")
    assert len(played) == 4
    assert all(u.probe is not None and u.probe < 0 for t in played for u in t.turns)
