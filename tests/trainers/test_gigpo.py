"""GiGPO: the numbers of the paper and of its code, anchors, the gradient by hand, and runs that resume bit by bit."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from agentgym.trainers import gigpo, grpo, sft
from helpers_policies import tiny_policy
from helpers_runs import assert_same_run, rows, run_until_killed
from transformers import LlamaForCausalLM

from agentgym import cli
from agentgym.config import overlay
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner.learner import Learner
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.types import Group, Segment, Trajectory, Turn

TEMPERATURE = 0.8


def trajectory_of(group, observations, rewards, errors=(), lengths=()):
    """An episode whose turn k has lengths[k] sampled tokens (2), laid down in two segments of alternating turns."""
    segments, turns = [Segment(), Segment()], []
    for k, (observation, reward) in enumerate(zip(observations, rewards, strict=True)):
        segment, n = segments[k % 2], lengths[k] if lengths else 2
        segment.append_context([7, 7])
        segment.append_sampled([8] * n, [-1.0] * n, 0)
        turn = Turn(observation, k % 2, 0, len(segment) - n, len(segment), "t", "a", reward=reward)
        turn.parse_error = "wrong" if k in errors else None
        turns.append(turn)
    return Trajectory("e", 0, group, segments=segments, turns=turns)


def advantages_of(groups):
    """The advantage of each turn, which must stand on all of its tokens and on no other."""
    out = []
    for t in (t for g in groups for t in g.trajectories):
        left = [list(s.advantages) for s in t.segments]
        for turn in t.turns:
            (value,) = set(left[turn.segment][turn.start : turn.stop])
            left[turn.segment][turn.start : turn.stop] = [0.0] * (turn.stop - turn.start)
            out.append(value)
        assert not any(any(row) for row in left)
        assert [len(row) for row in left] == [len(s) for s in t.segments]
    return out


def assigned(*trajectories, **settings):
    groups = {}
    for t in trajectories:
        groups.setdefault(t.group, Group(t.group, 0)).trajectories.append(t)
    largest, metrics = gigpo.assign_advantages(gigpo.Gigpo(**settings), list(groups.values()))
    return advantages_of(groups.values()), largest, metrics


# ---- advantages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("episode_mean", "expected"),
    [("trajectory", [0.975, 1.0, -0.975, -0.5, -1.0]), ("step", [1.075, 1.1, -0.875, -0.4, -0.9])],
)
def test_the_numbers_of_the_paper_and_of_its_code(episode_mean, expected):
    a = trajectory_of("g", ["s0", "s1"], [0.0, 1.0])
    b = trajectory_of("g", ["s0", "s2", "s1"], [0.0, 0.0, 0.0])
    found, largest, metrics = assigned(a, b, episode_mean=episode_mean)
    assert found == pytest.approx(expected)
    assert largest.tolist() == pytest.approx([max(map(abs, expected[:2])), max(map(abs, expected[2:]))])
    assert metrics["gigpo/anchored_frac"] == pytest.approx(4 / 5)
    assert metrics["gigpo/anchor_size"] == pytest.approx((4 + 4 + 1) / 5)
    step = [0.475, 0.5, 0.475, 0.0, 0.5]
    assert metrics["gigpo/step_abs"] == pytest.approx(sum(step) / 5)
    episode = [0.5] * 5 if episode_mean == "trajectory" else [0.6, 0.6, 0.4, 0.4, 0.4]
    assert metrics["gigpo/episode_abs"] == pytest.approx(sum(episode) / 5)


def test_both_parts_are_divided_by_their_deviation_if_asked():
    a = trajectory_of("g", ["s0", "s1"], [0.0, 1.0])
    b = trajectory_of("g", ["s0", "s2", "s1"], [0.0, 0.0, 0.0])
    half = 0.5**0.5  # two values lie this many deviations from their mean
    found, _, _ = assigned(a, b, norm="mean_std_norm")
    assert found == pytest.approx([2 * half, 2 * half, -2 * half, -half, -2 * half], abs=1e-5)


def test_an_anchor_stays_inside_its_task():
    a, b = trajectory_of("g", ["s"], [1.0]), trajectory_of("h", ["s"], [0.0])
    c, d = trajectory_of("g", ["t"], [0.0]), trajectory_of("h", ["s"], [4.0])
    found, _, metrics = assigned(a, c, b, d, step_weight=2.0)
    assert found == pytest.approx([0.5, -0.5, -2.0 - 4.0, 2.0 + 4.0])
    assert metrics["gigpo/anchored_frac"] == 0.5


def test_a_place_that_is_visited_twice_is_an_anchor_by_itself():
    found, _, _ = assigned(trajectory_of("g", ["s", "t", "s"], [0.0, 0.0, 1.0]), gamma=0.5)
    assert found == pytest.approx([(0.25 - 1) / 2, 0.0, (1 - 0.25) / 2])


def test_without_the_step_part_it_is_the_advantage_of_dr_grpo():
    groups = [
        Group("g", 0, [trajectory_of("g", ["s", "t"], [0.0, x], lengths=(3, 1)) for x in (1.0, 0.25, 0.0)]),
        Group("h", 0, [trajectory_of("h", ["s"], [x]) for x in (1.0, 2.0)]),
    ]
    gigpo.assign_advantages(gigpo.Gigpo(step_weight=0.0), groups)
    mine = [s.advantages for g in groups for t in g.trajectories for s in t.segments]
    grpo.assign_advantages(grpo.Algo(scale="none"), groups)
    assert mine == [s.advantages for g in groups for t in g.trajectories for s in t.segments]


def test_a_complaint_about_an_answer_is_no_place():
    """Two members in two rooms who both wrote nonsense read the same text, and are not in the same state."""
    a = trajectory_of("g", ["kitchen", "Invalid answer", "Invalid answer", "end"], [0, 0, 0, 1.0], errors=(0, 1))
    b = trajectory_of("g", ["attic", "Invalid answer", "end"], [0, 0, 0.0], errors=(0,))
    c = trajectory_of("g", ["kitchen", "Invalid answer", "pantry"], [0, 0, 0.5], errors=(0,))
    assert gigpo.anchors(a) == [
        ("kitchen",),
        ("kitchen", "Invalid answer"),
        ("kitchen", "Invalid answer", "Invalid answer"),
        ("end",),
    ]
    assert gigpo.anchors(b)[1] == ("attic", "Invalid answer")
    found, _, metrics = assigned(a, b, c, gamma=1.0)
    assert metrics["gigpo/anchored_frac"] == pytest.approx(6 / 10)
    episode = [0.5] * 4 + [-0.5] * 3 + [0.0] * 3
    step = [0.25, 0.25, 0, 0.5, 0, 0, -0.5, -0.25, -0.25, 0]
    assert found == pytest.approx([e + s for e, s in zip(episode, step, strict=True)])


def test_a_text_that_was_no_action_costs_what_is_asked():
    a = trajectory_of("g", ["s", "t"], [0.0, 1.0], errors=(0,))
    b = trajectory_of("g", ["s", "u"], [0.0, 1.0])
    assert assigned(a, b, gamma=0.5)[0] == [0.0] * 4
    found, _, _ = assigned(a, b, gamma=0.5, invalid_penalty=0.1)
    assert found == pytest.approx([-0.05 - 0.05, -0.05, 0.05 + 0.05, 0.05])


def test_nothing_to_learn_from_is_no_error():
    largest, metrics = gigpo.assign_advantages(gigpo.Gigpo(), [])
    assert (len(largest), metrics) == (0, {})


# ---- settings -------------------------------------------------------------------------------------------------


def test_the_presets():
    plain, scaled = gigpo.make_config({}), gigpo.make_config({"preset": "gigpo_std"})
    assert (plain.gigpo.norm, scaled.gigpo.norm) == ("mean_norm", "mean_std_norm")
    assert (plain.gigpo.gamma, plain.gigpo.step_weight, plain.algo.aggregation) == (0.95, 1.0, "token_mean")
    assert gigpo.make_config({"algo": {"aggregation": "const"}}).algo.aggregation == "const"


@pytest.mark.parametrize("context", ["append", "window:0", "window:2"])
def test_contexts_that_show_each_observation_as_it_was_are_taken(context):
    assert gigpo.make_config({"rollout": {"context": context}}).rollout.context == context


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rollout": {"context": "workspace"}},
            "rollout.context=workspace shows the policy a report of its own.*append",
        ),
        ({"preset": "dapo"}, "unknown preset 'dapo': choose from: gigpo, gigpo_std"),
        ({"preset": "gigpo_sdt"}, "did you mean gigpo_std"),
        ({"algo": {"scale": "none"}}, "algo.center and algo.scale are GRPO's: .*gigpo.norm"),
        ({"algo": {"center": "loo"}}, "algo.center and algo.scale are GRPO's"),
        ({"algo": {"overlong_length": 9, "overlong_buffer": 3}}, "algo.overlong_length"),
        ({"gigpo": {"gamma": 1.5}}, "gigpo.gamma is 1.5"),
        ({"gigpo": {"gamma": -0.1}}, "gigpo.gamma is -0.1"),
        ({"gigpo": {"step_weight": -1.0}}, "gigpo.step_weight is -1.0"),
        ({"gigpo": {"invalid_penalty": math.inf}}, "gigpo.invalid_penalty is inf"),
        ({"gigpo": {"norm": "std"}}, "unknown value of gigpo.norm 'std'"),
        ({"gigpo": {"episode_mean": "turn"}}, "unknown value of gigpo.episode_mean 'turn'"),
        ({"gigpo": {"weight": 1}}, "unknown config key 'gigpo.weight'"),
        ({"group_size": 1}, "group_size is 1"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        gigpo.make_config(values)


def test_a_context_that_does_not_fit_is_refused_before_anything_runs(tmp_path, capsys):
    settings = ["env.id=test/Echo-v0", "model.path=/no/such/model", "rollout.context=workspace"]
    code = cli.main(["train", "gigpo", "--out", str(tmp_path / "out"), "--set", *settings])
    out = capsys.readouterr()
    assert code == 2
    assert out.err.startswith("agentgym: error: rollout.context=workspace shows the policy a report of its own")
    assert out.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- the gradient ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """Two groups of two real episodes whose rows fork, the model that played, and transformers' own copy of it."""
    policy = tiny_policy(3)
    settings = RolloutConfig(
        max_turns=3, max_new_tokens=5, context_limit=300, temperature=TEMPERATURE, context="window:1", parse_limit=9
    )
    with EnvPool("test/Echo-v0", {"rounds": 3, "words": 2}) as pool:
        groups = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 2, 2))
    rng = np.random.default_rng(1)
    for trajectory in (t for g in groups for t in g.trajectories):
        for turn in trajectory.turns:
            turn.reward = float(rng.choice([0.0, 0.25, 1.0]))
        for segment in trajectory.segments:
            noise = rng.normal(0, 0.2, len(segment))
            segment.logps = [x + float(d) * m for x, d, m in zip(segment.logps, noise, segment.mask, strict=True)]
    assert all(len(t.segments) > 1 for g in groups for t in g.trajectories)
    stock = LlamaForCausalLM(copy.deepcopy(policy.model.config))
    stock.load_state_dict(policy.model.state_dict())
    stock.set_attn_implementation("sdpa")
    return groups, policy.model, stock.eval()


def turn_by_hand(model, trajectory, turn):
    """Log-probability under the model and at sampling of the tokens of one turn, from a plain forward."""
    segment = trajectory.segments[turn.segment]
    ids = torch.tensor(segment.ids[: turn.stop])
    logps = (model(input_ids=ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
    at = torch.arange(turn.start, turn.stop)
    return logps[at - 1, ids[at]], torch.tensor(segment.logps[turn.start : turn.stop])


def by_hand(groups, gamma, weight):
    """The advantage of each turn of each trajectory, written out; no turn of these follows a parse error."""
    out = []
    for group in groups:
        returns = [sum(u.reward for u in t.turns) for t in group.trajectories]
        to_go = {}
        for i, t in enumerate(group.trajectories):
            for k, turn in enumerate(t.turns):
                g = sum(gamma ** (j - k) * u.reward for j, u in enumerate(t.turns) if j >= k)
                to_go.setdefault(turn.observation, []).append((i, k, g))
        for i, t in enumerate(group.trajectories):
            row = []
            for k, turn in enumerate(t.turns):
                met = to_go[turn.observation]
                mine = next(g for a, b, g in met if (a, b) == (i, k))
                row.append(
                    returns[i] - sum(returns) / len(returns) + weight * (mine - sum(g for *_, g in met) / len(met))
                )
            out.append(row)
    return out


@pytest.mark.parametrize("budget", [60, 10_000])
def test_the_gradient_is_that_of_the_formula(played, budget):
    groups, model, stock = copy.deepcopy(played[0]), played[1], played[2]
    trajectories = [t for g in groups for t in g.trajectories]
    for turn in (u for t in trajectories for u in t.turns):
        turn.parse_error = None
    cfg = gigpo.make_config(
        {
            "groups": 2,
            "group_size": 2,
            "algo": {"clip_high": 0.28},
            "gigpo": {"gamma": 0.9, "step_weight": 0.7},
            "optim": {"token_budget": budget, "grad_clip": 1e9},
            "rollout": {"temperature": TEMPERATURE},
        }
    )
    learner, gradient = Learner(model, cfg.optim), {}
    learner.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in model.named_parameters()})
    largest, found = gigpo.assign_advantages(cfg.gigpo, groups)
    assert 0 < found["gigpo/anchored_frac"] <= 1
    metrics = grpo.update(cfg, learner, groups, largest, grpo.make_loss(cfg.algo, None, TEMPERATURE))

    stock.zero_grad()
    n, expected = sum(t.action_tokens for t in trajectories), 0.0
    rows = by_hand(groups, 0.9, 0.7)
    assert any(len(set(row)) > 1 for row in rows)
    for trajectory, row in zip(trajectories, rows, strict=True):
        for turn, a in zip(trajectory.turns, row, strict=True):
            logp, old = turn_by_hand(stock, trajectory, turn)
            ratio = (logp - old).exp()
            expected = expected - torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a).sum() / n
    expected.backward()
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=2e-5 * norm)


# ---- runs -----------------------------------------------------------------------------------------------------

COMMON = {
    "env": {"id": "test/Echo-v0", "kwargs": {"words": 2}},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300, "threads": 1},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300},
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
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The folder of a model that has seen a few demonstrations."""
    out = tmp_path_factory.mktemp("warm") / "sft"
    sft.main(sft.make_config(overlay(COMMON, {"demonstrations": 64, "epochs": 10, "optim": {"lr": 3e-3}})), out)
    return out / "final"


def config(warm, **values):
    return gigpo.make_config(overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, {**SHORT, **values}))


@pytest.fixture(scope="module")
def straight(warm, tmp_path_factory):
    """Four steps without interruption."""
    out = tmp_path_factory.mktemp("straight") / "gigpo"
    gigpo.main(config(warm), out)
    return out


def test_the_metrics_are_the_promised_ones(straight):
    lines = [row for row in rows(straight) if "reward/mean" in row]
    assert len(lines) == 4
    promised = {"anchored_frac", "anchor_size", "episode_abs", "step_abs"}
    for row in lines:
        assert {f"gigpo/{name}" for name in promised} <= row.keys()
        assert 0 < row["gigpo/anchored_frac"] <= 1
    assert lines[0]["optim/grad_norm"] > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_goes_on_bit_by_bit(warm, straight, tmp_path, steps):
    gigpo.main(config(warm, steps=steps), tmp_path / "run")
    gigpo.main(config(warm), tmp_path / "run", resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_run_that_is_killed_in_the_middle_goes_on_bit_by_bit(warm, straight, tmp_path):
    out = tmp_path / "run"
    run_until_killed("gigpo", config(warm), out)
    gigpo.main(config(warm), out, resume=True)
    assert_same_run(straight, out)
