"""CRAFT-GUI's parts, without a model: rewards, stages, phases, what a group can teach, and a toy that learns."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from agentgym.envs.android_evaluators import Gold, gui_r1_accuracy
from agentgym.trainers.craft_curriculum import Curriculum, CurriculumConfig, signal
from agentgym.trainers.craft_rewards import (
    episode_reward,
    gui_r1_reward,
    operation_reward,
    understanding_reward,
)
from agentgym.trainers.craft_score import Craft, score_turn
from hypothesis import given
from hypothesis import strategies as st

from agentgym.credit import group_advantage
from agentgym.errors import ConfigError
from agentgym.gui_actions import GuiAction, rescaled, resized
from agentgym.learner.losses import clipped_surrogate, kl_k3
from agentgym.types import Turn

# ---- rewards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("valid", "right_type", "argument", "reward"),
    [(1, 1, 1, 1.0), (1, 1, 0, 0.4), (1, 0, 1, 0.1), (0, 1, 1, 0.0), (1, 1, 0.8, 0.88)],
)
def test_the_reward_of_an_action(valid, right_type, argument, reward):
    assert operation_reward(bool(valid), bool(right_type), argument) == pytest.approx(reward, abs=1e-12)


@pytest.mark.parametrize(("valid", "judged", "reward"), [(1, 1, 1.0), (1, 0.5, 0.55), (1, 0, 0.1), (0, 1, 0.0)])
def test_the_reward_of_an_answer(valid, judged, reward):
    assert understanding_reward(bool(valid), judged) == pytest.approx(reward, abs=1e-12)


@given(st.tuples(*[st.floats(0, 1)] * 3).filter(lambda w: sum(w) > 0), st.floats(0, 1), st.floats(0, 1))
def test_rewards_lie_between_0_and_1_and_grow_with_each_part(weights, low, high):
    weights = tuple(w / sum(weights) for w in weights)
    low, high = sorted((low, high))
    at = {
        p: operation_reward(bool(p[0]), bool(p[1]), p[2], weights)
        for p in itertools.product((0, 1), (0, 1), (low, high))
    }
    assert all(-1e-12 <= r <= 1 + 1e-12 for r in at.values())
    for a, b in itertools.product(at, repeat=2):
        if all(x <= y for x, y in zip(a, b, strict=True)):
            assert at[a] <= at[b] + 1e-12
    assert 0 <= understanding_reward(True, low) <= understanding_reward(True, high) <= 1
    assert understanding_reward(False, high) == 0


CLICK = ("click", (100, 100), None)


@pytest.mark.parametrize(
    ("done", "gold", "valid", "reward"),
    [
        (("click", (200, 197), None), CLICK, True, 1.0),
        (("click", (200, 198), None), CLICK, True, 0.2),
        (("click", (150, 150), None), CLICK, False, 0.8),
        (("long_press", (100, 100), None), CLICK, True, 0.2),
        (("open_app", None, "Maps"), ("open_app", None, "Chrome"), True, 1.0),  # the hole
        (("long_press", (0, 0), None), ("long_press", (500, 500), None), True, 1.0),
        (("type", None, "shanghai mall"), ("type", None, "shanghai shopping mall"), True, 1.0),
        (("type", None, "buy milk"), ("type", None, "order eggs now"), True, 0.2),
        (("scroll", None, "up"), ("scroll", None, "down"), True, 0.2),
        (("press_back", None, None), ("press_back", None, None), True, 1.0),
    ],
)
def test_the_reward_of_gui_r1(done, gold, valid, reward):
    assert gui_r1_reward(valid, gui_r1_accuracy(Gold(GuiAction(*gold), 1080, 2400), GuiAction(*done))) == reward


def test_an_episode_is_the_mean_of_its_replies_and_its_outcome():
    assert episode_reward([1.0, 0.4, 0.1], 1.0) == pytest.approx(0.5)
    assert episode_reward([1.0, 0.4, 0.1], 1.0, 0.5) == pytest.approx(0.75)
    assert episode_reward([1.0, 0.4, 0.1], -1.0, 1.0) == -1.0


def turn_of(action="a", **info):
    return Turn("o", 0, 0, 0, 1, "t", action, None if action else "wrong", info=info)


def test_a_reply_is_scored_by_what_the_environment_says():
    right = score_turn(Craft(), turn_of(type_correct=1, argument_score=0.8))
    assert (right.valid, right.right_type, right.argument, right.judged) == (True, True, 0.8, None)
    assert right.reward == pytest.approx(0.88)
    assert score_turn(Craft(binary_args=True), turn_of(type_correct=True, argument_score=0.8)).argument == 1.0
    assert score_turn(Craft(binary_args=True), turn_of(type_correct=True, argument_score=0.4)).reward == 0.4
    assert score_turn(Craft(), turn_of(None)).reward == 0.0
    assert score_turn(Craft(), turn_of(format_ok=False, type_correct=1, argument_score=1)).reward == 0.0
    other = Craft(format_weight=0.5, type_weight=0.25, argument_weight=0.25)
    assert score_turn(other, turn_of(type_correct=1, argument_score=1)).reward == 1.0
    assert score_turn(other, turn_of(type_correct=1, argument_score=0)).reward == 0.75
    asked = turn_of(reference="red", answer="blue", type_correct=1, argument_score=1)
    assert score_turn(Craft(), asked, 0.5).reward == pytest.approx(0.55)
    assert score_turn(Craft(), asked, None).reward == pytest.approx(0.1)
    assert score_turn(Craft(reward="gui_r1"), turn_of(gui_r1_accuracy=1)).reward == 1.0
    assert score_turn(Craft(reward="gui_r1"), turn_of(None)).reward == 0.0
    assert score_turn(Craft(reward="gui_r1"), turn_of(gui_r1_accuracy=1, reference="red", answer="blue")).reward == 1.0
    assert score_turn(Craft(reward="coarse"), asked).judged is None


# ---- advantages and loss --------------------------------------------------------------------------------------


def test_advantages_are_those_of_the_sample_deviation():
    rewards = [1, 0.2, 0.2, 0.6]
    assert group_advantage(rewards, [0] * 4) == pytest.approx([1.3056, -0.7833, -0.7833, 0.2611], abs=1e-4)
    assert group_advantage(rewards, [0] * 4, ddof=0) == pytest.approx([1.5076, -0.9045, -0.9045, 0.3015], abs=1e-4)
    assert group_advantage([0.4] * 5, [0] * 5).tolist() == [0.0] * 5


def test_clip_and_kl():
    ratio, a = torch.tensor([1.3, 0.7, 1.3]), torch.tensor([1.0, -1.0, -1.0])
    assert (-clipped_surrogate(ratio.log(), torch.zeros(3), a)).tolist() == pytest.approx([1.2, -0.8, -1.3])
    d = torch.tensor([0.1, -0.1, 0.0], dtype=torch.float64)
    assert kl_k3(torch.zeros(3, dtype=torch.float64), d).tolist() == pytest.approx([0.005171, 0.004837, 0], abs=5e-7)


SIGNAL = {
    5: (0.049, 0.226, 0.410, 0.830, 0.938, 0.410),
    8: (0.077, 0.337, 0.570, 0.942, 0.992, 0.570),
    16: (0.149, 0.560, 0.815, 0.997, 1.000, 0.815),
}


@pytest.mark.parametrize("size", SIGNAL)
def test_how_often_a_group_teaches(size):
    rng = np.random.default_rng(size)
    for p, expected in zip((0.01, 0.05, 0.1, 0.3, 0.5, 0.9), SIGNAL[size], strict=True):
        assert signal(p, size) == pytest.approx(expected, abs=0.0005 + 1e-9)
        won = rng.binomial(size, p, 1_000_000)
        assert ((won > 0) & (won < size)).mean() == pytest.approx(expected, abs=0.0025)
        rewards = (rng.random((20_000, size)) < p).astype(float)
        a = group_advantage(rewards.ravel(), np.repeat(np.arange(20_000), size)).reshape(-1, size)
        share = a.any(axis=1).mean()
        assert abs(share - signal(p, size)) <= 4 * math.sqrt(0.25 / 20_000)


# ---- stages ---------------------------------------------------------------------------------------------------


def test_the_stage_of_a_length():
    config = CurriculumConfig()
    assert [config.stage_of(n) for n in (1, 3, 4, 8, 9, 40)] == [1, 1, 2, 2, 3, 3]
    assert [config.stage_of(n) for n in (None, 0)] == [3, 3]  # a question
    assert [config.steps_of(s) for s in (1, 2, 3)] == [[1, 3], [4, 8], [9, None]]
    counted = CurriculumConfig(count_terminal_step=True)
    assert [counted.stage_of(n) for n in (2, 3, 7, 8)] == [1, 2, 2, 3]
    assert [counted.steps_of(s) for s in (1, 2, 3)] == [[1, 2], [3, 7], [8, None]]


@given(st.lists(st.integers(2, 30), unique=True, max_size=5).map(sorted), st.booleans(), st.integers(1, 60))
def test_stages_partition_the_lengths(boundaries, terminal, length):
    config = CurriculumConfig(boundaries=tuple(boundaries), count_terminal_step=terminal)
    ranges = [config.steps_of(stage) for stage in range(1, config.stages + 1)]
    inside = [i for i, (low, high) in enumerate(ranges, 1) if low <= length <= (high or math.inf)]
    assert inside == [config.stage_of(length)]


@pytest.mark.parametrize(
    ("order", "phases"),
    [
        ("easy_to_hard", [[1], [2], [3]]),
        ("hard_to_easy", [[3], [2], [1]]),
        ("mixed", [[1, 2, 3]]),
        ("hard_only", [[3]]),
    ],
)
def test_the_phases_of_an_order(order, phases):
    config = CurriculumConfig(order=order, replay_frac=0.3)
    assert config.phases == phases
    curriculum, met = Curriculum(config, 30), []
    for step in range(30):
        plan = curriculum.plan(0, step, 8)
        assert len(plan) == 8
        earlier = {s for p in phases[: curriculum.state["phase"]] for s in p}
        replayed = [s for s in plan if s not in curriculum.stages]
        assert set(replayed) <= earlier
        assert len(replayed) in ((2, 3) if earlier else (0,))
        met.append((curriculum.state["phase"], tuple(sorted(set(plan) & set(curriculum.stages)))))
        curriculum.record(0.5)
    assert [phase for phase, _ in met] == [i * len(phases) // 30 for i in range(30)]
    assert {s for _, stages in met for s in stages} == {s for p in phases for s in p}


def test_replay_is_as_often_as_asked_and_leaves_something_new():
    curriculum = Curriculum(CurriculumConfig(stage_steps=(1, 1), replay_frac=0.2), 1000)
    curriculum.record(0.0)
    shares = [sum(s == 1 for s in curriculum.plan(3, step, 8)) / 8 for step in range(2000)]
    assert set(shares) == {1 / 8, 2 / 8}
    assert np.mean(shares) == pytest.approx(0.2, abs=0.005)
    often = Curriculum(CurriculumConfig(stage_steps=(1, 1), replay_frac=0.9), 1000)
    often.record(0.0)
    assert all(2 in often.plan(3, step, 2) for step in range(50))
    curriculum.record(0.0)
    assert {s for step in range(50) for s in curriculum.plan(3, step, 8)} == {1, 2, 3}


def test_a_plan_depends_on_seed_and_step_alone():
    plans = [Curriculum(CurriculumConfig(order="mixed"), 9).plan(seed, 5, 16) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_promotion_needs_a_high_mean_for_many_updates_in_a_row():
    config = CurriculumConfig(promote_above=0.8, promote_updates=3, promote_decay=0.5)
    curriculum = Curriculum(config, 100)
    rewards = [1, 1, 1, 0, 1, 1, 1, 1]
    means, m = [], 0.0
    for r in rewards:
        m = 0.5 * m + 0.5 * r
        means.append(m)
    assert [x > 0.8 for x in means] == [False, False, True, False, False, True, True, True]
    assert [curriculum.record(r) for r in rewards] == [False] * 7 + [True]
    assert curriculum.state == {"phase": 1, "since": 0, "mean": 0.0, "above": 0}
    assert curriculum.stages == [2]


def test_a_phase_ends_at_its_limit_also_without_promotion():
    curriculum = Curriculum(CurriculumConfig(promote_above=0.8, stage_steps=(4, 2)), 100)
    assert [curriculum.record(0.0) for _ in range(7)] == [False] * 3 + [True, False, True, False]
    assert not any(curriculum.record(1.0) for _ in range(200))  # the last phase has no end


def test_the_state_is_all_that_a_curriculum_remembers():
    config = CurriculumConfig(promote_above=0.6, promote_updates=2)
    rng = np.random.default_rng(0)
    rewards = rng.uniform(0.4, 1, 60)
    straight = Curriculum(config, 60)
    events = [straight.record(r) for r in rewards]
    assert sum(events) == 2
    first = Curriculum(config, 60)
    half = [first.record(r) for r in rewards[:17]]
    state = dict(first.state)
    second = Curriculum(config, 60)
    second.state.update(state)
    assert half + [second.record(r) for r in rewards[17:]] == events
    assert second.state == straight.state


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"boundaries": (8, 3)}, r"curriculum.boundaries is \[8, 3\]"),
        ({"boundaries": (3, 3)}, "curriculum.boundaries"),
        ({"boundaries": (0, 3)}, "at least 1"),
        ({"boundaries": (1, 3), "count_terminal_step": True}, "at least 2"),
        ({"stage_steps": (3,)}, "curriculum.stage_steps has 1 numbers: there are 3 phases"),
        ({"stage_steps": (3,), "order": "mixed"}, "there are 1 phases"),
        ({"stage_steps": (0, 3)}, "curriculum.stage_steps is"),
        ({"replay_frac": 1.0}, "curriculum.replay_frac is 1.0"),
        ({"replay_frac": -0.1}, "curriculum.replay_frac is -0.1"),
        ({"promote_decay": 1.0}, "curriculum.promote_decay is 1.0"),
        ({"promote_updates": 0}, "curriculum.promote_updates is 0"),
        ({"promote_above": 1.0}, "curriculum.promote_above is 1.0"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        CurriculumConfig(**values)


@pytest.mark.parametrize(("steps", "values"), [(2, {}), (6, {"stage_steps": (3, 3)}), (5, {"stage_steps": (3, 3)})])
def test_a_run_too_short_for_its_phases_is_refused(steps, values):
    with pytest.raises(ConfigError, match=f"steps is {steps}: too few for the 3 phases"):
        Curriculum(CurriculumConfig(**values), steps)


# ---- screens --------------------------------------------------------------------------------------------------


def test_screens_are_resized_as_the_model_sees_them():
    assert resized(1080, 2400) == (728, 1652)
    assert resized(1080, 2400, 10**9) == (1092, 2408)
    assert (round(1080 / 728, 4), round(2400 / 1652, 4)) == (1.4835, 1.4528)
    for x, y in itertools.product(range(0, 1080, 7), range(0, 2400, 7)):
        there = rescaled((x, y), (1080, 2400), (728, 1652))
        assert max(abs(there[0] * 1080 / 728 - x), abs(there[1] * 2400 / 1652 - y)) <= 0.742
        back = rescaled(there, (728, 1652), (1080, 2400))
        assert max(abs(back[0] - x), abs(back[1] - y)) <= 1


# ---- a toy that learns ----------------------------------------------------------------------------------------

CHAINS = {1: 3, 2: 6, 3: 12}
"""Length of the chain of each stage."""


def updates_needed(order, seed):
    """Updates until the chain of 12 succeeds with 0.9: 12 states shared by all chains, 2 actions each, one reward."""
    rng, logits = np.random.default_rng(seed), np.zeros((12, 2))
    promotion = {"promote_above": 0.9, "promote_updates": 1, "promote_decay": 0.9}
    config = CurriculumConfig(boundaries=(3, 6), order=order, replay_frac=0.0, **promotion)
    curriculum = Curriculum(config, 2000)
    for update in range(1, 2000):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        lengths = [CHAINS[stage] for stage in curriculum.plan(seed, update, 16)]
        chosen = [(rng.random((8, n)) < p[:n, 1]).astype(int) for n in lengths]
        rewards = np.array([actions.all(axis=1) for actions in chosen], float)
        a = group_advantage(rewards.ravel(), np.repeat(np.arange(16), 8), ddof=0).reshape(16, 8)
        gradient = np.zeros_like(logits)
        for n, actions, mine in zip(lengths, chosen, a, strict=True):
            gradient[:n] += (mine[:, None, None] * (np.eye(2)[actions] - p[:n])).sum(0)
        logits += gradient / (8 * 16)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        if p[:, 1].prod() >= 0.9:
            return update
        curriculum.record(float(rewards.mean()))
    raise AssertionError("it did not learn")


@pytest.mark.parametrize("seed", range(5))
def test_a_toy_learns_faster_in_stages_than_mixed_than_from_the_hardest_alone(seed):
    staged, mixed, hard = (updates_needed(order, seed) for order in ("easy_to_hard", "mixed", "hard_only"))
    assert staged < mixed < hard
    assert 95 <= staged <= 115
