"""EAPO: the numbers of the paper's formulas, rounds as samples, the gradient by hand, runs that resume bit by bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from agentgym.trainers import grpo, iterresearch, sft
from agentgym.trainers.iterresearch import advantages, downsample, round_rewards
from helpers_policies import tiny_policy
from helpers_runs import assert_same_run, rows, run_until_killed
from transformers import LlamaForCausalLM

from agentgym import cli, store
from agentgym.config import load, overlay
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner.learner import Learner
from agentgym.learner.losses import gspo_surrogate, sequence_ratio
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.types import Group, Segment, Status, Trajectory, Turn

TEMPERATURE = 0.8
GAMMA = 0.995


def trajectory_of(group, rounds, outcome, errors=(), lengths=(), status=Status.DONE):
    """An episode of the workspace: a segment a round, of 20 tokens that all share, one of its own, and its decision."""
    segments, turns = [], []
    for k in range(rounds):
        segment, n = Segment(), lengths[k] if lengths else 2
        segment.append_context([*range(30, 50), 60 + k])
        segment.append_sampled([8] * n, [-1.0] * n, 0)
        segments.append(segment)
        reward = outcome if k == rounds - 1 else 0.0
        turns.append(Turn("o", k, 0, len(segment) - n, len(segment), "t", "a", reward=reward))
        turns[-1].parse_error = "wrong" if k in errors else None
    return Trajectory("e", 0, group, segments=segments, turns=turns, status=status)


def groups_of(*trajectories):
    groups = {}
    for t in trajectories:
        groups.setdefault(t.group, Group(t.group, 0)).trajectories.append(t)
    return list(groups.values())


def of_question(rounds, outcomes, gamma=GAMMA, eps=0.0, **settings):
    """The numbers below are written out without what is added to σ."""
    rewards = [round_rewards(n, r, gamma) for n, r in zip(rounds, outcomes, strict=True)]
    return advantages(rewards, ["q"] * len(rounds), eps=eps, **settings)


def close(found, expected):
    assert [len(a) for a in found] == [len(a) for a in expected]
    assert np.concatenate(found) == pytest.approx(np.concatenate(expected), abs=2e-6)


# ---- rewards and advantages ------------------------------------------------------------------------------------


def test_the_reward_of_a_round():
    r = round_rewards(5, 1.0, GAMMA)
    assert r == pytest.approx([0.980150, 0.985075, 0.990025, 0.995, 1.0], abs=1e-6)
    assert r[-1] == 1.0
    assert r[:-1] == pytest.approx(GAMMA * r[1:])
    third = [round_rewards(n, 1.0, GAMMA)[2] for n in (5, 20)]
    assert third == pytest.approx([0.990025, 0.918316], abs=1e-6)
    assert third[0] / third[1] - 1 == pytest.approx(0.0781, abs=1e-4)
    firsts = [round_rewards(n, 1.0, GAMMA)[0] for n in (32, 256, 2048)]
    assert firsts == pytest.approx([0.856082, 0.278539, 3.4982e-5], rel=1e-4)
    assert not round_rewards(9, 0.0, GAMMA).any()
    assert round_rewards(4, 0.5, 1.0).tolist() == [0.5] * 4


def test_the_advantages_of_a_question():
    rounds, outcomes = [2, 3, 1], [1.0, 1.0, 0.0]
    found = of_question(rounds, outcomes)
    close(found, [[0.444487, 0.457957], [0.431085, 0.444487, 0.457957], [-2.235974]])
    assert sum(a.sum() for a in found) == pytest.approx(0, abs=1e-9)
    close(
        of_question(rounds, outcomes, deviation="sample", eps=1e-6),
        [[0.405759, 0.418055], [0.393524, 0.405759, 0.418055], [-2.041150]],
    )
    close(of_question(rounds, outcomes, gamma=1.0), [[0.447214] * 2, [0.447214] * 3, [-2.236068]])


def test_a_question_that_all_succeed_at_is_not_neutral():
    found = of_question([2, 6], [1.0, 1.0])
    close(found, [[0.575529, 1.158316], [-1.726624, -1.155406, -0.581317, -0.004344, 0.575529, 1.158316]])
    assert [a.mean() for a in found] == pytest.approx([0.8669, -0.2890], abs=1e-4)
    found = of_question([3, 3], [1.0, 1.0])
    close(found, [[-1.223720, -0.002046, 1.225767]] * 2)
    assert [a.mean() for a in found] == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("rounds", "outcomes", "gamma"),
    [([1, 1], [1.0, 1.0], GAMMA), ([4, 2], [0.0, 0.0], GAMMA), ([4, 2], [1.0, 1.0], 1.0), ([7, 3], [0.3, 0.3], 1.0)],
)
def test_rounds_that_earn_the_same_teach_nothing(rounds, outcomes, gamma):
    assert not np.concatenate(of_question(rounds, outcomes, gamma)).any()


def test_a_floor_under_the_deviation_keeps_the_discount_small():
    free, floored = of_question([2, 6], [1.0, 1.0]), of_question([2, 6], [1.0, 1.0], sigma_floor=0.1)
    sigma = np.concatenate([round_rewards(n, 1.0, GAMMA) for n in (2, 6)]).std()
    assert sigma == pytest.approx(0.008579, abs=1e-6)
    assert np.concatenate(floored) == pytest.approx(np.concatenate(free) * sigma / 0.1)
    mixed = [2, 3, 1], [1.0, 1.0, 0.0]
    close(of_question(*mixed, sigma_floor=0.1), of_question(*mixed))


def test_long_trajectories_set_the_baseline():
    success, failure = of_question([2, 8], [1.0, 0.0])
    assert success == pytest.approx([1.9937, 2.0063], abs=1e-4)
    assert failure == pytest.approx([-0.499998] * 8, abs=1e-6)
    success, failure = of_question([8, 2], [1.0, 0.0])
    assert [success[0], success[-1]] == pytest.approx([0.4562, 0.5439], abs=1e-4)
    assert failure == pytest.approx([-1.999341] * 2, abs=1e-6)


def test_a_group_is_a_question_and_not_the_batch():
    rounds, outcomes = [2, 3, 1, 4, 2], [1.0, 1.0, 0.0, 0.0, 1.0]
    rewards = [round_rewards(n, r, GAMMA) for n, r in zip(rounds, outcomes, strict=True)]
    found = advantages(rewards, ["easy", "easy", "easy", "hard", "hard"], eps=0.0)
    close(found[:3], of_question(rounds[:3], outcomes[:3]))
    close(found[3:], [[-0.707103] * 4, [1.408890, 1.419523]])
    pooled = advantages(rewards, ["q"] * 5, eps=0.0)
    assert np.concatenate([pooled[2], pooled[3]]) == pytest.approx([-1.183199] * 5, abs=1e-6)
    good = np.concatenate([pooled[0], pooled[1], pooled[4]])
    assert [good.min(), good.max()] == pytest.approx([0.832, 0.852], abs=1e-3)
    shuffled = advantages([rewards[i] for i in (3, 0, 4, 1, 2)], ["hard", "easy", "hard", "easy", "easy"], eps=0.0)
    close(shuffled, [found[i] for i in (3, 0, 4, 1, 2)])


def test_advantages_stand_on_the_tokens_of_their_round():
    a, b = trajectory_of("q", 3, 1.0, lengths=(3, 1, 2)), trajectory_of("q", 1, 0.0, lengths=(4,))
    metrics = iterresearch.assign_advantages(iterresearch.Eapo(), groups_of(a, b))
    expected = of_question([3, 1], [1.0, 0.0], eps=1e-6)
    for t, values in zip((a, b), expected, strict=True):
        for segment, turn, value in zip(t.segments, t.turns, values, strict=True):
            assert segment.advantages == [0.0] * turn.start + [value] * (turn.stop - turn.start)
    assert (metrics["eapo/rounds"], metrics["eapo/rounds_to_success"]) == (4, 3)
    assert metrics["eapo/advantage_abs"] == pytest.approx(np.abs(np.concatenate(expected)).mean())
    assert iterresearch.assign_advantages(iterresearch.Eapo(), []) == {}


def test_a_reply_that_cannot_be_read_is_counted_and_earns_nothing():
    ended = trajectory_of("q", 2, 1.0, errors=(1,), status=Status.PARSE_LIMIT)
    went_on, fine = trajectory_of("q", 3, 1.0, errors=(0,)), trajectory_of("q", 1, 1.0)
    metrics = iterresearch.assign_advantages(iterresearch.Eapo(), groups_of(ended, went_on, fine))
    assert (metrics["eapo/format_failures"], metrics["eapo/rounds_to_success"]) == (2, 2)
    rewards = [np.zeros(2), np.array([0.0, GAMMA, 1.0]), np.ones(1)]
    for t, values in zip((ended, went_on, fine), advantages(rewards, ["q"] * 3), strict=True):
        found = [t.segments[u.segment].advantages[u.start] for u in t.turns]
        assert found == pytest.approx(values.tolist())


def test_a_last_round_that_was_forced_is_a_sample_like_any_other():
    forced = trajectory_of("q", 4, 1.0)
    late = trajectory_of("q", 4, 0.0, status=Status.TRUNCATED)
    iterresearch.assign_advantages(iterresearch.Eapo(gamma=1.0), groups_of(forced, late))
    assert [s.advantages[-1] for s in forced.segments] == pytest.approx([1.0] * 4, abs=1e-5)
    assert [s.advantages[-1] for s in late.segments] == pytest.approx([-1.0] * 4, abs=1e-5)


# ---- samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "dp", "kept", "lost"),
    [(37, 8, 32, 0.135), (4600, 32, 4576, 0.0052), (4608, 64, 4608, 0.0), (5, 1, 5, 0)],
)
def test_a_multiple_is_kept_and_drawn_uniformly(rounds, dp, kept, lost):
    chosen, weights = downsample(rounds, dp, np.random.default_rng(0))
    assert len(chosen) == len(set(chosen.tolist())) == kept == weights.sum()
    assert set(chosen.tolist()) <= set(range(rounds))
    assert chosen.tolist() == sorted(chosen)
    assert 1 - kept / rounds == pytest.approx(lost, abs=5e-4)


def test_every_round_is_dropped_equally_often():
    rng, counts = np.random.default_rng(0), np.zeros(11)
    for _ in range(3000):
        counts[downsample(11, 4, rng)[0]] += 1
    assert counts / 3000 == pytest.approx([8 / 11] * 11, abs=0.04)


def test_too_few_rounds_are_padded_without_weight():
    chosen, weights = downsample(7, 8, np.random.default_rng(0))
    assert chosen.tolist() == [*range(7), 0]
    assert weights.tolist() == [1.0] * 7 + [0.0]
    chosen, weights = downsample(3, 8, np.random.default_rng(0))
    assert (chosen.tolist(), weights.sum()) == ([0, 1, 2, 0, 1, 2, 0, 1], 3)


def test_every_round_weighs_the_same_whatever_its_length():
    groups = groups_of(trajectory_of("q", 3, 1.0, lengths=(5, 1, 2)), trajectory_of("q", 1, 0.0, lengths=(9,)))
    cfg = iterresearch.make_config({})
    rows = iterresearch.samples_of(groups)
    assert len(rows) == 4
    [batch] = iterresearch.batches([*rows, rows[0]], np.array([1.0, 1, 1, 1, 0]), cfg)
    per_sample = torch.zeros(5).index_add(0, batch.trajectory, batch.weights)
    assert per_sample.tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.0])
    assert batch.weights[batch.trajectory == 0].tolist() == pytest.approx([0.05] * 5)


def test_a_step_holds_as_many_samples_as_rounds():
    rng = np.random.default_rng(0)
    rounds = rng.integers(12, 25, (16, 16))
    groups = groups_of(*(trajectory_of(f"q{i}", int(n), 1.0) for i, row in enumerate(rounds) for n in row))
    rows = iterresearch.samples_of(groups)
    assert 4096 < len(rows) == rounds.sum() < 5120
    assert len({row.trajectory for row in rows}) == 256


def test_rounds_of_a_question_share_their_prefix_when_packed():
    groups = groups_of(trajectory_of("q", 3, 1.0), trajectory_of("q", 2, 0.0))
    rows = iterresearch.samples_of(groups)
    cfg, ones = iterresearch.make_config({}), np.ones(len(rows))
    [shared] = iterresearch.batches(rows, ones, cfg)
    cfg.optim.share_prefixes = False
    [alone] = iterresearch.batches(rows, ones, cfg)
    assert len(alone.ids) == sum(len(row.ids) for row in rows) == 5 * 23
    assert len(shared.ids) == 20 + 5 * 3
    assert shared.weights.tolist() == alone.weights.tolist()
    assert shared.trajectory.tolist() == alone.trajectory.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# ---- the ratio ------------------------------------------------------------------------------------------------


def loss_of(delta, a, extra=0):
    delta = torch.tensor([*delta, *[0.0] * extra], dtype=torch.float64)
    seq = torch.zeros(len(delta), dtype=torch.long)
    old = torch.full_like(delta, -1.0)
    advantage = torch.full_like(delta, a)
    loss = gspo_surrogate(old + delta, old, advantage, seq, 4e-4, 4e-4)
    return float(loss.mean()), float(sequence_ratio(old + delta, old, seq)[0])


@pytest.mark.parametrize(
    ("delta", "ratio", "positive", "negative"),
    [
        ([0.001, 0.002, 0.0], 1.0010005, 1.0004, -1.0010005),
        ([-0.001, -0.002, 0.0], 0.9990005, 0.9990005, -0.9996),
        ([2e-4, 1e-4, 0.0], 1.000100005, 1.000100005, -1.000100005),
    ],
)
def test_the_clipped_ratio_of_a_round(delta, ratio, positive, negative):
    assert loss_of(delta, 1.0) == pytest.approx((-positive, ratio), abs=1e-9)
    assert loss_of(delta, -1.0) == pytest.approx((-negative, ratio), abs=1e-9)


def test_the_ratio_is_normalised_by_length():
    logs = [abs(math.log(loss_of([0.001, 0.002, 0.0], 1.0, extra)[1])) for extra in (0, 3, 30)]
    assert logs == sorted(logs, reverse=True)
    assert logs[1] == pytest.approx(logs[0] / 2)


# ---- settings -------------------------------------------------------------------------------------------------


def test_the_presets():
    eapo, gspo = iterresearch.make_config({}), iterresearch.make_config({"preset": "gspo"})
    assert (eapo.eapo.gamma, gspo.eapo.gamma) == (0.995, 1.0)
    for cfg in (eapo, gspo):
        assert (cfg.rollout.context, cfg.rollout.parse_limit) == ("workspace", 1)
        assert (cfg.algo.ratio, cfg.algo.clip_low, cfg.algo.clip_high) == ("sequence", 3e-4, 4e-4)
        assert (cfg.algo.kl_coef, cfg.algo.entropy_coef) == (0, 0)
    assert iterresearch.make_config({"preset": "gspo", "eapo": {"gamma": 0.9}}).eapo.gamma == 0.9
    assert iterresearch.Config() == eapo


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rollout": {"context": "append"}},
            "rollout.context=append shows a round what earlier rounds wrote.*workspace",
        ),
        ({"rollout": {"context": "window:3"}}, "rollout.context=window:3 shows a round what earlier rounds wrote"),
        ({"preset": "grpo"}, "unknown preset 'grpo': did you mean gspo or eapo"),
        ({"algo": {"scale": "none"}}, "algo.scale cannot be changed here: .*eapo.sigma_floor"),
        ({"algo": {"center": "loo"}}, "algo.center cannot be changed here"),
        ({"algo": {"aggregation": "token_mean"}}, "algo.aggregation cannot be changed here: EAPO weighs every round"),
        ({"algo": {"overlong_length": 9, "overlong_buffer": 3}}, "algo.overlong_length cannot be changed here"),
        ({"eapo": {"gamma": 0.0}}, "eapo.gamma is 0.0"),
        ({"eapo": {"gamma": 1.1}}, "eapo.gamma is 1.1"),
        ({"eapo": {"sigma_floor": -1.0}}, "eapo.sigma_floor is -1.0"),
        ({"eapo": {"dp": 0}}, "eapo.dp is 0"),
        ({"eapo": {"deviation": "both"}}, "unknown value of eapo.deviation 'both'"),
        ({"eapo": {"gama": 1}}, "unknown config key 'eapo.gama'"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        iterresearch.make_config(values)


def test_a_growing_context_is_refused_before_anything_runs(tmp_path, capsys):
    settings = ["env.id=test/Echo-v0", "model.path=/no/such/model", "rollout.context=append"]
    assert cli.main(["train", "iterresearch", "--out", str(tmp_path / "out"), "--set", *settings]) == 2
    said = capsys.readouterr().err
    assert said.startswith("agentgym: error: rollout.context=append shows a round what earlier rounds wrote")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_environment_that_ends_too_early_is_refused():
    cfg = iterresearch.make_config({"rollout": {"max_turns": 8}})
    with pytest.raises(ConfigError, match=r"rollout.max_turns is 8, but the environment ends after 7 rounds"):
        iterresearch.check_rounds(cfg, {"max_rounds": 7})
    for info in ({"max_rounds": 8}, {"max_rounds": 2048}, {}):
        iterresearch.check_rounds(cfg, info)


# ---- the gradient ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """Two questions of two real episodes each, the model that played, and transformers' own copy of it."""
    policy = tiny_policy(3)
    settings = RolloutConfig(
        max_turns=3, max_new_tokens=5, context_limit=900, temperature=TEMPERATURE, context="workspace", parse_limit=9
    )
    with EnvPool("test/Echo-v0", {"rounds": 3, "words": 2}) as pool:
        groups = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 2, 2))
    rng = np.random.default_rng(1)
    for trajectory, outcome in zip([t for g in groups for t in g.trajectories], (1.0, 0.25, 0.0, 1.0), strict=True):
        for turn in trajectory.turns:
            turn.reward, turn.parse_error = 0.0, None
        trajectory.turns[-1].reward = outcome
        for segment in trajectory.segments:
            noise = rng.normal(0, 0.2, len(segment))
            segment.logps = [x + float(d) * m for x, d, m in zip(segment.logps, noise, segment.mask, strict=True)]
    assert all(len(t.segments) == len(t.turns) for g in groups for t in g.trajectories)
    assert len(groups[0].trajectories[0].turns) > 1
    stock = LlamaForCausalLM(copy.deepcopy(policy.model.config))
    stock.load_state_dict(policy.model.state_dict())
    stock.set_attn_implementation("sdpa")
    return groups, policy.model, stock.eval()


def round_by_hand(model, trajectory, turn):
    """Log-probability under the model and at sampling of the tokens of one round, from a plain forward."""
    segment = trajectory.segments[turn.segment]
    ids = torch.tensor(segment.ids[: turn.stop])
    logps = (model(input_ids=ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
    at = torch.arange(turn.start, turn.stop)
    return logps[at - 1, ids[at]], torch.tensor(segment.logps[turn.start : turn.stop])


@pytest.mark.parametrize(("budget", "dp"), [(60, 1), (100_000, 1), (100_000, 64)])
def test_the_gradient_is_that_of_the_formula(played, budget, dp):
    groups, model, stock = copy.deepcopy(played[0]), played[1], played[2]
    cfg = iterresearch.make_config(
        {
            "groups": 2,
            "group_size": 2,
            "algo": {"clip_low": 0.05, "clip_high": 0.08},
            "eapo": {"gamma": 0.9, "dp": dp},
            "optim": {"token_budget": budget, "grad_clip": 1e9},
            "rollout": {"temperature": TEMPERATURE},
        }
    )
    learner, gradient = Learner(model, cfg.optim), {}
    learner.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in model.named_parameters()})
    iterresearch.assign_advantages(cfg.eapo, groups)
    metrics = iterresearch.update(cfg, learner, groups, grpo.make_loss(cfg.algo, None, TEMPERATURE), 0)

    stock.zero_grad()
    expected, clipped, count = 0.0, 0, sum(len(t.turns) for g in groups for t in g.trajectories)
    for group in groups:
        rewards = [
            [t.turns[-1].reward * 0.9 ** (len(t.turns) - k) for k in range(1, len(t.turns) + 1)]
            for t in group.trajectories
        ]
        flat = [r for row in rewards for r in row]
        mean = sum(flat) / len(flat)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in flat) / len(flat))
        for trajectory, row in zip(group.trajectories, rewards, strict=True):
            for turn, r in zip(trajectory.turns, row, strict=True):
                logp, old = round_by_hand(stock, trajectory, turn)
                ratio, a = (logp - old).mean().exp(), (r - mean) / (deviation + 1e-6)
                clipped += bool(ratio * a > ratio.clamp(0.95, 1.08) * a)
                expected = expected - torch.minimum(ratio * a, ratio.clamp(0.95, 1.08) * a) / count
    assert 0 < clipped < count
    expected.backward()
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=2e-5 * norm)


# ---- runs -----------------------------------------------------------------------------------------------------

COMMON = {
    "env": {"id": "test/Echo-v0", "kwargs": {"words": 2}},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300, "threads": 1},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 900, "context": "workspace"},
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
    "eapo": {"dp": 3},
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The folder of a model that has seen a few demonstrations."""
    out = tmp_path_factory.mktemp("warm") / "sft"
    sft.main(sft.make_config(overlay(COMMON, {"demonstrations": 64, "epochs": 10, "optim": {"lr": 3e-3}})), out)
    return out / "final"


def config(warm, **values):
    settings = overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, {**SHORT, **values})
    return iterresearch.make_config(settings)


@pytest.fixture(scope="module")
def straight(warm, tmp_path_factory):
    """Four steps without interruption."""
    out = tmp_path_factory.mktemp("straight") / "iterresearch"
    iterresearch.main(config(warm), out)
    return out


def test_the_metrics_are_the_promised_ones(straight):
    lines = [row for row in rows(straight) if "reward/mean" in row]
    assert len(lines) == 4
    for row in lines:
        assert {"eapo/rounds", "eapo/advantage_abs", "eapo/format_failures", "eapo/dropped_frac"} <= row.keys()
        assert row["eapo/rounds"] == 16 * row["episode/turns"]
    assert lines[0]["optim/grad_norm"] > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_goes_on_bit_by_bit(warm, straight, tmp_path, steps):
    iterresearch.main(config(warm, steps=steps), tmp_path / "run")
    iterresearch.main(config(warm), tmp_path / "run", resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_run_that_is_killed_in_the_middle_goes_on_bit_by_bit(warm, straight, tmp_path):
    out = tmp_path / "run"
    run_until_killed("iterresearch", config(warm), out)
    iterresearch.main(config(warm), out, resume=True)
    assert_same_run(straight, out)


# ---- the examples ---------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "configs"


def test_the_examples_run_when_made_small(tmp_path):
    small = {"model": {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 600, "threads": 1}}
    few = {"demonstrations": 48, "epochs": 1, "eval": {"final_episodes": 2}}
    values = overlay(load(str(EXAMPLES / "iterresearch_sft.yaml")), {**small, **few})
    sft.main(sft.make_config(values), tmp_path / "sft")
    demonstrated = store.read(tmp_path / "sft" / "trajectories" / "demonstrations.jsonl")
    assert all(t.success and len(t.segments) == len(t.turns) > 1 for t in demonstrated)

    few = {"steps": 1, "groups": 2, "group_size": 2, "eval": {"final_episodes": 2}}
    model = {"path": str(tmp_path / "sft" / "final"), "threads": 1}
    values = overlay(load(str(EXAMPLES / "iterresearch.yaml")), {"model": model, **few})
    iterresearch.main(iterresearch.make_config(values), tmp_path / "eapo")
    played = store.read(tmp_path / "eapo" / "trajectories" / "step_00001.jsonl")
    assert len(played) == 4
    [row] = [row for row in rows(tmp_path / "eapo") if "eapo/rounds" in row]
    assert row["eapo/rounds"] == sum(len(t.turns) for t in played)
    assert row["eapo/format_failures"] == sum(t.status is Status.PARSE_LIMIT for t in played)
