"""Worked numbers of the published estimators, and what must hold for any rewards."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from agentgym.credit import (
    anchor_advantage,
    discounted_returns,
    gae,
    gigpo,
    group_advantage,
    overlong_penalty,
    reinforce_pp,
    turn_gae,
    whiten,
)
from agentgym.errors import ConfigError

ONE = [0, 0, 0, 0]
TWO = [0, 0, 0, 0, 1, 1, 1, 1]
LITE = [1, 0, 0, 0, 1, 1, 1, 0]
MASK = [1, 1, 0, 1, 1]
VALUES = [0.2, 0.3, 9.9, 0.5, 0.4]
FINAL = [0, 0, 0, 0, 1]


def close(actual, expected, atol=1e-4):
    assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.5, -0.5, -0.5, -0.5]),
        ({"ddof": 0}, [1.732051, -0.57735, -0.57735, -0.57735]),
        ({"scale": "none"}, [0.75, -0.25, -0.25, -0.25]),
        ({"center": "loo", "scale": "none"}, [1, -1 / 3, -1 / 3, -1 / 3]),
        ({"center": "none", "scale": "none"}, [1, 0, 0, 0]),
        ({"center": "none"}, [2, 0, 0, 0]),
    ],
)
def test_one_group(options, expected):
    close(group_advantage([1, 0, 0, 0], ONE, **options), expected)


@pytest.mark.parametrize(
    ("options", "high", "low"),
    [
        ({"scale": "batch"}, 1.403122, -0.467707),
        ({"scale": "batch_centered"}, 1.620185, -0.540062),
        ({"scale": "group"}, 1.5, -0.5),
    ],
)
def test_lite_ppo_scales(options, high, low):
    expected = [high, low, low, low, -low, -low, -low, -high]
    close(group_advantage(LITE, TWO, **options), expected)


def test_lite_ppo_standard_deviations():
    close(np.std(LITE, ddof=1), 0.534522)
    close(np.std(group_advantage(LITE, TWO, scale="none"), ddof=1), 0.46291)


def test_lite_ppo_softens_the_lone_failure():
    returns, groups = [0] + [1] * 7 + [0] * 4 + [1] * 4, [0] * 8 + [1] * 8
    close(group_advantage(returns, groups, scale="batch")[0], -1.827815)
    close(group_advantage(returns, groups)[0], -2.474874)


def test_batch_centre():
    close(group_advantage([1, 0, 0, 3], [0, 0, 1, 1], "batch", "none"), [0, -1, -1, 2])


CENTERS, SCALES = ("group", "loo", "batch", "none"), ("group", "batch", "batch_centered", "none")


@pytest.mark.parametrize(("center", "scale"), [*itertools.product(CENTERS, SCALES)])
def test_degenerate_batches_are_finite(center, scale):
    assert len(group_advantage([], [], center, scale)) == 0
    for returns in ([0.7], [0.1] * 3):
        a = group_advantage(returns, [0] * len(returns), center, scale)
        if center == "none" and scale == "none":
            assert_array_equal(a, returns)
        else:
            assert_array_equal(a, 0)


def test_group_of_one_and_flat_group_inside_a_batch():
    returns, groups = [0.3, 0.1, 0.1, 0.1, 1, 0], ["alone", "flat", "flat", "flat", "x", "x"]
    for center, scale in itertools.product(("group", "loo"), SCALES):
        a = group_advantage(returns, groups, center, scale)
        assert_array_equal(a[:4], 0)
        assert a[4] > 0 > a[5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_return_names_the_trajectory(bad):
    with pytest.raises(ValueError, match="trajectory 2"):
        group_advantage([0, 1, bad, 0], ONE)
    with pytest.raises(ValueError, match="trajectory 1"):
        gigpo([[0.0], [0.0, bad]], [["a"], ["a", "b"]], [0, 0])
    with pytest.raises(ValueError, match="trajectory 1"):
        reinforce_pp([[0.0], [0.0, bad]], [[1], [1, 1]])
    with pytest.raises(ValueError, match="token 1"):
        gae([0, bad], [0, 0])
    with pytest.raises(ValueError, match="trained token 0"):
        gae([0, 0], [0, bad], [0, 1])


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="did you mean group"):
        group_advantage([0], [0], center="groups")
    with pytest.raises(ConfigError, match="scale"):
        group_advantage([0], [0], scale="std")
    with pytest.raises(ConfigError, match="norm"):
        anchor_advantage([0], [0], ["a"], norm="std")
    with pytest.raises(ConfigError, match="norm"):
        gigpo([[0]], [["a"]], [0], norm="std")
    with pytest.raises(ConfigError, match="episode_mean"):
        gigpo([[0]], [["a"]], [0], episode_mean="turn")
    with pytest.raises(ValueError, match="ddof"):
        group_advantage([0], [0], ddof=2)
    with pytest.raises(ValueError, match="2 group keys for 1 returns"):
        group_advantage([0], [0, 0])
    with pytest.raises(ValueError, match="one dimension"):
        group_advantage([[0]], [0])
    with pytest.raises(ValueError, match="values have shape"):
        gae([0, 1], [0])
    with pytest.raises(ValueError, match="mask has shape"):
        gae([0, 1], [0, 0], [1])
    with pytest.raises(ValueError, match="1 masks for 2"):
        reinforce_pp([[0], [0]], [[1]])
    with pytest.raises(ValueError, match="mask of trajectory 1"):
        reinforce_pp([[0], [0]], [[1], [1, 1]])
    with pytest.raises(ValueError, match="trajectory 1 has 1 rewards and 2 observations"):
        gigpo([[0], [0]], [["a"], ["a", "b"]], [0, 0])
    with pytest.raises(ValueError, match="1 observation sequences"):
        gigpo([[0], [0]], [["a"]], [0, 0])
    with pytest.raises(ValueError, match="2 group keys for 1 observations"):
        anchor_advantage([0, 0], [0, 0], ["a"])
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty([1], 10, 0)


def test_reinforce_pp():
    a = reinforce_pp([[0, 1], [0, 0, 0]], [[1, 1], [1, 1, 1]])
    close(a[0], 1.095445)
    close(a[1], -0.730297)


def test_reinforce_pp_skips_masked_tokens():
    a = reinforce_pp([[0, 0, 1], [0, 0, 0, 0]], [[1, 0, 1], [0, 1, 1, 1]])
    close(a[0], [1.095445, 0, 1.095445])
    close(a[1], [0, -0.730297, -0.730297, -0.730297])


def test_reinforce_pp_discounts_inside_the_return():
    a = reinforce_pp([[0, 1], [0]], [[1, 1], [1]], gamma=0.5)
    close(np.concatenate(a), whiten([0.5, 1, 0]))


def test_reinforce_pp_baseline_centres_in_the_group_first():
    # One group is easy, one hard: without the baseline the easy group's failure gets a positive advantage.
    rewards, masks = [[0, 1], [0.6], [0, 0.2, 0], [0]], [[1, 1], [1], [1, 1, 0], [1]]
    a = reinforce_pp(rewards, masks, groups=["easy", "easy", "hard", "hard"])
    expected = whiten([0.2, 0.2, -0.2, 0.1, 0.1, -0.1])
    close(np.concatenate(a), [*expected[:5], 0, expected[5]])
    assert reinforce_pp(rewards, masks)[1] > 0 > a[1]


def test_reinforce_pp_empty():
    assert reinforce_pp([], []) == []
    a = reinforce_pp([[], [0, 0], [1]], [[], [0, 0], [1]], groups=[0, 0, 0])
    assert [x.tolist() for x in a] == [[], [0, 0], [0]]


def test_reward_on_an_untrained_token_is_an_error():
    with pytest.raises(ValueError, match=r"token 1 .* not trained"):
        gae([0, 1, 0], [0, 0, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="trajectory 1: the reward at token 0"):
        reinforce_pp([[1], [1]], [[1], [0]])


def test_whiten():
    x, m = np.array([[1.0, np.nan], [2.0, 6.0]]), [[1, 0], [1, 1]]
    w = whiten(x, m)
    close(w, [[-2 / 7**0.5, 0], [-1 / 7**0.5, 3 / 7**0.5]])
    assert_array_equal(whiten([0.1, 0.1, 0.1]), 0)
    assert_array_equal(whiten([5.0, 1.0], [1, 0]), 0)
    assert whiten([]).shape == (0,)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1, 1, [0.8, 0.7, 0, 0.5, 0.6]),
        (1, 0.5, [0.25, 0.3, 0, 0.2, 0.6]),
        ([1, 0.5, 1, 1, 0.5], 1, [0.3, 0.2, 0, 0.5, 0.6]),  # POAD: actions are tokens {0,1} and {3,4}
        (0.5, 1, [-0.075, -0.05, 0, 0, 0.6]),
        (1, [0.5, 0.5, 0.9, 0.5, 0.5], [0.25, 0.3, 0, 0.2, 0.6]),
    ],
)
def test_gae(gamma, lam, expected):
    advantages, targets = gae(FINAL, VALUES, MASK, gamma, lam)
    close(advantages, expected)
    close(targets, np.where(MASK, np.add(expected, VALUES), 0))


def test_gae_bootstraps_a_truncated_episode():
    advantages, _ = gae([0, 0, 0], [0.1, 0.2, np.nan], [1, 1, 0], gamma=0.5, lam=1, last_value=2.0)
    close(advantages, [0.25 * 2 - 0.1, 0.5 * 2 - 0.2, 0])


def test_gae_without_trained_tokens():
    advantages, targets = gae([0, 0], [np.nan, np.nan], [0, 0])
    assert_array_equal(advantages, 0)
    assert_array_equal(targets, 0)
    assert gae([], [])[0].shape == (0,)


def test_discounted_returns():
    close(discounted_returns([0, 0, 0, 1], 0.95), [0.857375, 0.9025, 0.95, 1])
    close(discounted_returns([0.2, -0.05, 1]), [1.15, 0.95, 1])
    close(discounted_returns([0, 0, 0, 1], 0.5, [1, 0, 0, 1]), [0.5, 0, 0, 1])


@pytest.mark.parametrize(
    ("episode_mean", "a", "b"),
    [
        ("trajectory", [0.975, 1.0], [-0.975, -0.5, -1.0]),
        ("step", [1.075, 1.1], [-0.875, -0.4, -0.9]),
    ],
)
def test_gigpo(episode_mean, a, b):
    observations = [("s0", "s1"), ("s0", "s2", "s1")]
    got = gigpo([[0, 1], [0, 0, 0]], observations, [0, 0], episode_mean=episode_mean)
    close(got[0], a)
    close(got[1], b)


def test_gigpo_with_deviation():
    # Two values d apart lie 1/sqrt(2) deviations from their mean, whatever d.
    got = gigpo([[0, 1], [0, 0, 0]], [("s0", "s1"), ("s0", "s2", "s1")], [0, 0], norm="mean_std_norm")
    half = 0.5**0.5
    close(got[0], [2 * half, 2 * half])
    close(got[1], [-2 * half, -half, -2 * half])


def test_gigpo_anchors_stay_inside_their_task_and_singletons_get_nothing():
    got = gigpo([[1], [0], [5]], [("s",), ("t",), ("s",)], ["x", "x", "y"], step_weight=7)
    close(np.concatenate(got), [0.5, -0.5, 0])
    assert gigpo([], [], []) == []
    close(anchor_advantage([3, 1, 9], [0, 0, 1], ["s", "s", "s"]), [1, -1, 0])


def test_gigpo_step_mean_stays_inside_its_group():
    rewards, seen = [[0, 1], [0], [0, 5], [0]], [("a", "b"), ("c",), ("a", "b"), ("c",)]
    got = gigpo(rewards, seen, [0, 0, 1, 1], step_weight=0, episode_mean="step")
    close(np.concatenate(got), [1 / 3, 1 / 3, -2 / 3, 5 / 3, 5 / 3, -10 / 3])


def test_overlong_penalty():
    close(overlong_penalty([0, 16384, 18432, 20480, 30000], 20480, 4096), [0, 0, -0.5, -1, -1])


@st.composite
def batches(draw, min_size=1):
    """Returns on a grid (so that shifts are exact) and group keys, in any order."""
    n = draw(st.integers(min_size, 12))
    returns = draw(st.lists(st.integers(-64, 64), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return np.array(returns) / 8, groups


@settings(deadline=None)
@given(batches(), st.integers(-80, 80), st.sampled_from(("group", "loo", "batch")), st.sampled_from(SCALES))
def test_shifting_all_returns_changes_nothing(batch, shift, center, scale):
    returns, groups = batch
    shifted = group_advantage(returns + shift / 8, groups, center, scale)
    close(shifted, group_advantage(returns, groups, center, scale), 1e-6)


@settings(deadline=None)
@given(batches(), st.lists(st.integers(-80, 80), min_size=4, max_size=4), st.sampled_from(("group", "loo")))
def test_shifting_each_group_changes_nothing(batch, shifts, center):
    returns, groups = batch
    shifted = returns + np.array(shifts)[groups] / 8
    for scale in ("group", "batch_centered", "none"):
        close(
            group_advantage(shifted, groups, center, scale),
            group_advantage(returns, groups, center, scale),
            1e-6,
        )


@settings(deadline=None)
@given(batches())
def test_loo_is_rescaled_centring(batch):
    returns, groups = batch
    loo = group_advantage(returns, groups, "loo", "none")
    g = np.bincount(groups)[groups]
    close(loo, g / np.maximum(g - 1, 1) * group_advantage(returns, groups, scale="none"), 1e-9)
    for i, key in enumerate(groups):
        others = [r for j, r in enumerate(returns) if groups[j] == key and j != i]
        close(loo[i], returns[i] - np.mean(others) if others else 0, 1e-9)


@settings(deadline=None)
@given(batches(), st.randoms(use_true_random=False), st.sampled_from(CENTERS), st.sampled_from(SCALES))
def test_order_does_not_matter(batch, random, center, scale):
    returns, groups = batch
    order = random.sample(range(len(returns)), len(returns))
    permuted = group_advantage(returns[order], [groups[i] for i in order], center, scale)
    close(permuted, group_advantage(returns, groups, center, scale)[order], 1e-6)


@settings(deadline=None)
@given(batches(min_size=2))
def test_group_advantages_sum_to_zero_in_every_group(batch):
    returns, groups = batch
    close(np.bincount(groups, group_advantage(returns, groups)), 0, 1e-9)


tokens = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.booleans()), min_size=1, max_size=20)


@settings(deadline=None)
@given(tokens, st.floats(0, 1))
def test_gae_with_lambda_one_is_return_minus_value(rows, gamma):
    rewards, values, mask = (np.array(x) for x in zip(*rows, strict=True))
    rewards = np.where(mask, rewards, 0)
    advantages, targets = gae(rewards, values, mask, gamma, 1.0)
    returns = discounted_returns(rewards, gamma, mask)
    close(advantages, np.where(mask, returns - values, 0), 1e-9)
    close(targets, returns, 1e-9)


@settings(deadline=None)
@given(tokens, st.floats(0, 1), st.floats(0, 1))
def test_masked_tokens_are_as_if_absent(rows, gamma, lam):
    rewards, values, mask = (np.array(x) for x in zip(*rows, strict=True))
    rewards = np.where(mask, rewards, 0)
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    close(advantages[mask], gae(rewards[mask], values[mask], None, gamma, lam)[0], 1e-12)
    assert_array_equal(advantages[~mask], 0)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0, 1))
def test_discounted_return_is_the_sum(rewards, gamma):
    expected = [sum(gamma ** (s - t) * r for s, r in enumerate(rewards) if s >= t) for t in range(len(rewards))]
    close(discounted_returns(rewards, gamma), expected, 1e-9)


# ---- turns and tokens: the worked numbers of POAD (2405.15821) with gamma 0.9, lambda 0.95 ----------------

ONE_TURN = ([0, 0, 1], [0.2, 0.3, 0.5], [3])
TWO_TURNS = ([0, 0, 0, 0, 1], [0.1, 0.2, 0.4, 0.6, 0.7], [2, 3])


@pytest.mark.parametrize(
    ("case", "gamma_token", "lam", "lam_token", "expected"),
    [
        (ONE_TURN, 1.0, 0.95, 0.95, [0.741250, 0.675000, 0.500000]),
        (ONE_TURN, 0.9, 0.95, 0.95, [0.563762, 0.577500, 0.500000]),
        (ONE_TURN, 1.0, 1.0, 1.0, [0.8, 0.7, 0.5]),
        (TWO_TURNS, 1.0, 0.95, 0.95, [0.711530, 0.643716, 0.565750, 0.385000, 0.300000]),
        (TWO_TURNS, 0.9, 0.95, 0.95, [0.498214, 0.489139, 0.384958, 0.286500, 0.300000]),
        (TWO_TURNS, 1.0, 0.95, 1.0, [0.773, 0.673, 0.6, 0.4, 0.3]),
    ],
)
def test_turn_gae(case, gamma_token, lam, lam_token, expected):
    rewards, values, lengths = case
    advantages, targets = turn_gae(rewards, values, lengths, 0.9, lam, gamma_token, lam_token)
    assert_allclose(advantages, expected, atol=1e-6)
    assert_allclose(targets, advantages + values)


def test_turn_gae_of_one_token_turns_is_gae_over_turns():
    rewards, values = [0.1, -0.2, 1.0], [0.5, 0.4, 0.3]
    for gamma_token in (0.99, 1.0, 0.3):
        got, _ = turn_gae(rewards, values, [1, 1, 1], 0.99, 0.95, gamma_token, 0.95, last_value=0.25)
        assert_allclose(got, [0.549130, 0.588124, 0.947500], atol=1e-6)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_with_undiscounted_tokens_the_first_of_a_turn_has_the_advantage_of_the_turn(lengths, random):
    values = np.array([random.uniform(-1, 1) for _ in range(sum(lengths))])
    ends = np.cumsum(lengths) - 1
    rewards = np.zeros(len(values))
    rewards[ends] = [random.uniform(-1, 1) for _ in lengths]
    starts = ends - np.array(lengths) + 1
    tokens, _ = turn_gae(rewards, values, lengths, 0.9, 0.8, 1.0, 1.0)
    turns, _ = gae(rewards[ends], values[starts], None, 0.9, 0.8)
    assert_allclose(tokens[starts], turns, atol=1e-12)


@pytest.mark.parametrize("lengths", [[2], [3, 1], [3, 0], []])
def test_turn_lengths_that_do_not_make_up_the_tokens(lengths):
    with pytest.raises(ValueError, match="do not make up 3 values"):
        turn_gae([0, 0, 1], [0, 0, 0], lengths)
