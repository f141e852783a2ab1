"""Intervals against known values; an evaluation that was killed goes on as if nothing had happened."""

from __future__ import annotations

import json
import math
import shutil
import threading

import helpers_envs
import numpy as np
import pytest
import torch
from helpers_policies import tiny_model, tiny_policy

from agentgym import seeding, store
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, TooManyFailures
from agentgym.evaluate import (
    Evaluation,
    compare,
    eval_tasks,
    evaluate,
    mean_interval,
    paired_difference,
    sampled_tokens,
    summarise,
    wilson,
)
from agentgym.learner.checkpoint import save_model
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy, RandomPolicy
from agentgym.policies.specs import fingerprint, make_policy
from agentgym.rollout import RolloutConfig
from agentgym.types import Segment, Status, Trajectory, Turn

QUICK = RolloutConfig(step_timeout=5.0, retries=0, concurrency=4)


@pytest.fixture(autouse=True)
def clean():
    helpers_envs.forget()
    yield
    helpers_envs.RELEASE.set()


@pytest.fixture
def echo():
    with EnvPool("test/Echo-v0", {"rounds": 2}) as pool:
        yield pool


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # R: binom::binom.confint(k, n, methods="wilson")
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_against_known_values(successes, n, low, high):
    found = wilson(successes, n)
    assert found.mean == successes / n
    assert found.ci95 == pytest.approx((low, high), abs=5e-5)


def test_intervals_of_nothing_and_of_means():
    assert math.isnan(wilson(0, 0).mean)
    assert math.isnan(mean_interval([]).mean)
    assert mean_interval([3.0]).ci95 == (3.0, 3.0)
    found = mean_interval([1.0, 2.0, 3.0, 4.0])  # sd 1.290994, standard error 0.645497
    assert found.mean == 2.5
    assert found.ci95 == pytest.approx((2.5 - 1.265152, 2.5 + 1.265152), abs=1e-5)


def episode(status, success, rewards, tokens):
    turns = [Turn("o", 0, 0, 0, 0, "t", "a", reward=r) for r in rewards]
    segment = Segment([7] * tokens, [1] * tokens, [0.0] * tokens, [0] * tokens)
    return Trajectory("e", 1, status=status, success=success, turns=turns, segments=[segment])


def test_failed_episodes_count_nowhere_but_as_failed():
    good = [episode(Status.DONE, True, [1.0, 1.0], 4), episode(Status.TRUNCATED, False, [0.0], 2)]
    bad = [episode(s, True, [100.0], 1000) for s in Status if s.failed]
    assert len(bad) == 4
    found = summarise("p", 3, [*good, *bad])
    assert (found.episodes, found.failed) == (2, 4)
    assert found.success == wilson(1, 2)
    assert (found.returns.mean, found.turns.mean, found.tokens.mean) == (1.0, 1.5, 3.0)
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.metrics()["eval/success"] == 0.5
    assert found.metrics()["eval/return"] == 1.0


def test_success_that_is_not_defined_is_not_zero():
    found = summarise("p", 0, [episode(Status.DONE, None, [1.0], 4), episode(Status.TRUNCATED, None, [3.0], 2)])
    assert math.isnan(found.success.mean)
    assert found.returns.mean == 2.0
    assert found.to_dict()["success"] is None
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    some = summarise("p", 0, [episode(Status.DONE, True, [1.0], 4), episode(Status.TRUNCATED, None, [3.0], 2)])
    assert some.success == wilson(1, 2)  # an environment may tell at the end only


def test_bytes_are_not_counted_as_tokens(echo):
    [written] = evaluate(echo, CannedPolicy(["red"]), QUICK, 1)[1]
    assert written.action_tokens == 8  # two turns of three bytes and an end
    assert sampled_tokens(written) is None
    assert summarise("p", 0, [written]).to_dict()["tokens"] is None
    written.info = {"completion_tokens": 7}
    assert sampled_tokens(written) == 7
    sampled = episode(Status.DONE, True, [1.0], 40)
    assert sampled_tokens(sampled) == 40
    assert summarise("p", 0, [written, episode(Status.DONE, True, [1.0], 5)]).tokens.mean == 6.0
    sampled.segments[0].versions = [-1] * 40  # a demonstration in the tokens of a model
    assert sampled_tokens(sampled) == 40


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # both won, only the first, only the second, neither
        # Fagerland, Lydersen, Laake (2014), Statistics in Medicine 33:2850: airway reactivity, Newcombe's interval
        ((1, 1, 7, 12), -0.507, -0.026),
        # Cavo et al. (2012), as the R package contingencytables gives it
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_paired_differences_against_published_intervals(table, low, high):
    n = sum(table)
    found = paired_difference(*table)
    assert found.mean == pytest.approx((table[1] - table[2]) / n)
    assert found.ci95 == pytest.approx((low, high), abs=5e-4 if n == 21 else 5e-5)


def test_a_paired_difference_by_hand():
    """Both won 30, only the first 12, only the second 2, neither 6: by hand with z = 1.96.

    p = 0.84, Wilson [0.71492, 0.91660]; q = 0.64, Wilson [0.50142, 0.75861]; 30·6 - 12·2 = 156, less n/2 = 131;
    φ = 131 / √(42·8·32·18) = 0.29778; lower: 0.12508, 0.11861; upper: 0.07660, 0.13858.
    """
    found = paired_difference(30, 12, 2, 6)
    below = math.sqrt(0.12508**2 - 2 * 0.29778 * 0.12508 * 0.11861 + 0.11861**2)
    above = math.sqrt(0.07660**2 - 2 * 0.29778 * 0.07660 * 0.13858 + 0.13858**2)
    assert found.mean == pytest.approx(0.2)
    assert found.ci95 == pytest.approx((0.2 - below, 0.2 + above), abs=1e-4)


def test_paired_differences_at_the_ends():
    assert math.isnan(paired_difference(0, 0, 0, 0).mean)
    assert paired_difference(0, 9, 0, 0).ci95[1] == 1.0
    assert paired_difference(0, 0, 9, 0).ci95[0] == -1.0
    same = paired_difference(9, 0, 0, 0)
    assert same.mean == 0.0
    assert same.ci95[0] < 0 < same.ci95[1]
    for both, first, second, neither in ((3, 4, 0, 0), (0, 1, 1, 0), (5, 0, 0, 5), (1, 0, 0, 0), (7, 1, 2, 40)):
        one, other = paired_difference(both, first, second, neither), paired_difference(both, second, first, neither)
        assert -1 <= one.ci95[0] <= one.mean <= one.ci95[1] <= 1
        assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))


def test_paired_intervals_cover_as_often_as_they_say():
    """4,000 evaluations of 60 episodes by two policies whose outcomes go together."""
    rng = np.random.default_rng(0)
    chances = [0.4, 0.2, 0.08, 0.32]  # both, first, second, neither: a true difference of 0.12
    tables = rng.multinomial(60, chances, size=4000).tolist()
    hits = [low <= 0.12 <= high for low, high in (paired_difference(*t).ci95 for t in tables)]
    assert 0.94 <= np.mean(hits) <= 0.97


def numbered(outcomes, base=100):
    """One episode an outcome, ``None`` for one that failed."""
    episodes = []
    for i, outcome in enumerate(outcomes):
        status, success, value = (Status.ENV_ERROR, None, 9.0) if outcome is None else (Status.DONE, *outcome)
        trajectory = episode(status, success, [value], 1)
        trajectory.group, trajectory.env_seed = f"eval-{i:05d}", base + i
        episodes.append(trajectory)
    return episodes


def test_policies_are_compared_on_the_episodes_that_both_finished():
    theirs = numbered([(True, 1.0), (False, 0.0), None, (True, 1.0), (False, 0.5)])
    ours = numbered([(True, 2.0), (True, 1.0), (True, 7.0), None, (False, 0.0)])
    found = compare("first", theirs, ours[::-1])
    assert (found.baseline, found.episodes, found.dropped) == ("first", 3, 2)
    assert found.success == paired_difference(1, 1, 0, 1)
    assert found.returns == mean_interval([-0.5, 1.0, 1.0])
    assert found.to_dict()["return"]["mean"] == pytest.approx(0.5)
    assert compare("first", theirs, ours[:3]).dropped == 1
    assert compare("first", theirs, numbered([(True, 1.0)], base=0)).episodes == 0
    nothing = compare("first", numbered([(None, 1.0)]), numbered([(None, 2.0)])).to_dict()
    assert nothing == {
        "baseline": "first",
        "episodes": 1,
        "dropped": 0,
        "success": None,
        "return": {"mean": 1.0, "ci95": [1.0, 1.0]},
    }


def test_pairing_takes_the_difficulty_of_the_episodes_out():
    """The returns of both policies vary with the episode far more than they differ."""
    level = np.random.default_rng(1).normal(0, 10, 50)
    theirs, ours = numbered([(None, x) for x in level]), numbered([(None, x + 1) for x in level])
    low, high = compare("first", theirs, ours).returns.ci95
    assert 0.99 < low <= high < 1.01
    apart = mean_interval([t.episode_return for t in theirs]).ci95
    assert apart[1] - apart[0] > 4


def test_the_first_episodes_are_the_same_whatever_their_number(echo):
    assert eval_tasks(7, 100)[:10] == eval_tasks(7, 10)
    assert len({t.env_seed for t in eval_tasks(7, 1000)}) == 1000
    assert not {t.env_seed for t in eval_tasks(7, 1000)} & {t.env_seed for t in eval_tasks(8, 1000)}
    few = evaluate(echo, RandomPolicy(), QUICK, 5, seed=7)[1]
    many = evaluate(echo, RandomPolicy(), QUICK, 25, seed=7)[1]
    assert [strip(t) for t in many[:5]] == [strip(t) for t in few]


def test_the_first_episodes_of_a_model_are_the_same_whatever_their_number(echo):
    policy = tiny_policy()
    settings = RolloutConfig(max_new_tokens=6, parse_limit=9)
    few = evaluate(echo, policy, settings, 3, seed=7)[1]
    many = evaluate(echo, policy, settings, 12, seed=7)[1]
    assert [t.messages for t in many[:3]] == [t.messages for t in few]
    assert [s.ids for t in many[:3] for s in t.segments] == [s.ids for t in few for s in t.segments]


def test_training_never_sees_an_evaluation_seed():
    training = {seeding.env_seed(0, step, g) for step in range(300) for g in range(16)}
    assert not training & {t.env_seed for t in eval_tasks(0, 300)}


def strip(trajectory):
    """A trajectory without its times."""
    data = trajectory.to_dict()
    for turn in data["turns"]:
        turn["policy_s"] = turn["env_s"] = 0.0
    return data


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("kept", [0, 1, 7, 11, 12])
def test_an_evaluation_goes_on_after_a_kill_at_any_episode(echo, tmp_path, kept, cut):
    log = tmp_path / "out" / "random.jsonl"
    expected, _ = evaluate(echo, RandomPolicy(), QUICK, 12, seed=5, log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 13
    torn = lines[kept + 1][:-cut] if cut and kept < 12 else b""
    log.write_bytes(b"".join(lines[: kept + 1]) + torn)
    again = []
    with pytest.warns(UserWarning, match="was cut") if torn else no_warning():
        found, played = evaluate(echo, RandomPolicy(), QUICK, 12, seed=5, log=log, on_episode=again.append)
    assert found == expected
    assert len(again) == 12 - kept
    assert [t.group for t in played] == [f"eval-{i:05d}" for i in range(12)]
    assert len(store.read(log)) == 12


class no_warning:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None


def test_a_kill_in_the_middle_really_leaves_a_log_to_go_on_from(echo, tmp_path):
    log = tmp_path / "random.jsonl"
    seen = []

    def stop(trajectory):
        seen.append(trajectory.group)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(echo, RandomPolicy(), QUICK, 12, seed=5, log=log, on_episode=stop)
    assert len(store.read(log)) == 4
    again = []
    found, _ = evaluate(echo, RandomPolicy(), QUICK, 12, seed=5, log=log, on_episode=lambda t: again.append(t.group))
    assert sorted([*seen, *again]) == [f"eval-{i:05d}" for i in range(12)]
    assert found == evaluate(echo, RandomPolicy(), QUICK, 12, seed=5)[0]


def test_more_episodes_may_be_added(echo, tmp_path):
    log = tmp_path / "random.jsonl"
    evaluate(echo, RandomPolicy(), QUICK, 5, log=log)
    again = []
    found, _ = evaluate(echo, RandomPolicy(), QUICK, 8, log=log, on_episode=again.append)
    assert len(again) == 3
    assert found == evaluate(echo, RandomPolicy(), QUICK, 8)[0]
    assert evaluate(echo, RandomPolicy(), QUICK, 5, log=log)[0].episodes == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed: 5, not 6"),
        ({"policy": CannedPolicy(["red"])}, "policy: 'random', not 'canned'"),
        ({"options": {"split": "dev"}}, "env.eval_options: {'split': 'test'}, not {'split': 'dev'}"),
        ({"config": RolloutConfig(temperature=0.5)}, "rollout.temperature: 1.0, not 0.5"),
        ({"config": RolloutConfig(context="window:2")}, "rollout.context: 'append', not 'window:2'"),
        ({"kwargs": {"rounds": 3}}, "env.kwargs: {'rounds': 2}, not {'rounds': 3}"),
        ({"env": "test/Careless-v0"}, "env.id: 'test/Echo-v0', not 'test/Careless-v0'"),
    ],
)
def test_the_log_of_another_evaluation_is_refused(echo, tmp_path, change, named):
    log = tmp_path / "random.jsonl"
    evaluate(echo, RandomPolicy(), QUICK, 3, seed=5, log=log)
    before = log.read_bytes()
    with EnvPool(change.get("env", "test/Echo-v0"), change.get("kwargs", {"rounds": 2})) as pool:
        policy, settings = change.get("policy", RandomPolicy()), change.get("config", QUICK)
        with pytest.raises(ConfigError) as caught:
            evaluate(pool, policy, settings, 5, change.get("seed", 5), change.get("options"), log)
    assert named in str(caught.value)
    assert "another --out" in str(caught.value)
    assert log.read_bytes() == before


def test_other_weights_in_the_same_folder_are_another_model(tmp_path, echo):
    folder, log = tmp_path / "model", tmp_path / "log.jsonl"
    spec = f"hf:{folder}"
    assert fingerprint("expert") == fingerprint("hf:org/name") == fingerprint("openai:m@http://127.0.0.1:1/v1") == ""
    model, tokenizer = tiny_model(seed=0)
    save_model(folder, model, tokenizer)
    first = fingerprint(spec)
    settings = RolloutConfig(max_new_tokens=4, parse_limit=9)

    def play(episodes):
        return evaluate(echo, make_policy(spec, 1), settings, episodes, log=log, fingerprint=fingerprint(spec))

    play(2)
    before = log.read_bytes()
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(f"hf:{tmp_path / 'copy'}") == first
    (folder / "trainer_state.pt").write_bytes(b"no part of the model")
    assert fingerprint(spec) == first
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    save_model(folder, model, tokenizer)
    assert fingerprint(spec) != first
    with pytest.raises(ConfigError, match=r"other weights: the files of the model .* use another --out"):
        play(4)
    assert log.read_bytes() == before
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    assert play(3)[0].episodes == 3
    (folder / "chat_template.jinja").write_text("{# changed #}" + (folder / "chat_template.jinja").read_text())
    with pytest.raises(ConfigError, match="other weights"):
        play(3)


def test_what_does_not_change_an_episode_may_change(echo, tmp_path):
    log = tmp_path / "random.jsonl"
    evaluate(echo, RandomPolicy(), QUICK, 3, log=log)
    other = RolloutConfig(concurrency=1, retries=3, step_timeout=9.0, episode_timeout=9.0, max_failure_rate=0.5)
    assert evaluate(echo, RandomPolicy(), other, 5, log=log)[0].episodes == 5


def test_a_strange_file_in_the_place_of_the_log_is_refused(echo, tmp_path):
    (tmp_path / "random.jsonl").write_text("this is no log\n")
    with pytest.raises(ConfigError, match=r"random\.json"):
        evaluate(echo, RandomPolicy(), QUICK, 3, log=tmp_path / "random.jsonl")
    (tmp_path / "other.json").write_text("{ damaged")
    with pytest.raises(ConfigError, match=r"other\.json is damaged"):
        evaluate(echo, RandomPolicy(), QUICK, 3, log=tmp_path / "other.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep an evaluation in"):
        evaluate(echo, RandomPolicy(), QUICK, 3, log=tmp_path / "file" / "log.jsonl")


def test_failed_episodes_are_counted_logged_and_tried_again_on_resume(tmp_path):
    log = tmp_path / "expert.jsonl"
    bad = tuple(seeding.eval_seed(0, i) for i in (2, 5))
    settings = RolloutConfig(retries=0, max_failure_rate=0.5)
    faults = {"fault": "raise", "at": 1, "times": 1, "seeds": bad}
    with EnvPool("test/Fault-v0", faults) as pool:
        found, played = evaluate(pool, ExpertPolicy(), settings, 10, log=log)
        assert (found.episodes, found.failed, found.success.mean) == (8, 2, 1.0)
        assert [t.group for t in played if t.status.failed] == ["eval-00002", "eval-00005"]
        again = []
        found, played = evaluate(pool, ExpertPolicy(), settings, 10, log=log, on_episode=again.append)
    assert (found.episodes, found.failed) == (10, 0)
    assert sorted(t.group for t in again) == ["eval-00002", "eval-00005"]
    assert len(store.read(log)) == 12


def test_an_evaluation_of_which_nothing_is_left_is_an_error(tmp_path):
    with (
        EnvPool("test/Fault-v0", {"fault": "raise", "at": 1}) as pool,
        pytest.raises(
            TooManyFailures, match="all 4 episodes of expert on test/Fault-v0 failed: step raised RuntimeError"
        ),
    ):
        evaluate(pool, ExpertPolicy(), RolloutConfig(retries=0), 4)


def test_an_evaluation_leaves_no_thread():
    before = threading.active_count()
    with EnvPool("test/Echo-v0") as pool:
        for _ in range(5):
            evaluate(pool, RandomPolicy(), QUICK, 6)
    assert threading.active_count() == before


def test_options_default_to_the_test_split():
    with EnvPool("test/Fault-v0") as pool:
        evaluate(pool, RandomPolicy(), QUICK, 1)
        evaluate(pool, RandomPolicy(), QUICK, 1, options={})
    assert helpers_envs.RESETS == [{"split": "test"}, {}]
