"""AndroidControl as an environment: what is shown, what is drawn, how an action is taken and scored."""

from __future__ import annotations

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs import android_control_data as data
from agentgym.envs.android_control import HISTORIES, INSTRUCTIONS, AndroidControlEnv
from agentgym.envs.android_evaluators import EVALUATORS, summarize
from agentgym.envs.android_synthetic import Synthetic, synthetic
from gymnasium.error import ResetNeeded
from helpers_android import SMALL, example, folder_of

from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.gui_actions import GuiAction, read_action, resized, write_action, write_reply
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, Task

pytest.importorskip("PIL")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTGYM_CACHE", str(folder))
        yield folder


@pytest.fixture
def make():
    made = []

    def make(**kwargs):
        made.append(AndroidControlEnv(**{"data": SMALL, **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()


def episode_of(env, length):
    """An episode of so many actions."""
    return next(e for e in env._episodes.values() if len(e.actions) == length)


def at(env, number, step, **options):
    return env.reset(seed=0, options={"episode": number, "step": step, **options})


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_recorded_action_is_right_at_every_step(make, evaluator, split):
    env = make(evaluator=evaluator, split=split, max_pixels=28 * 28 * 40, expert=True)
    rows = []
    for number, step in env.pool:
        _, info = at(env, number, step)
        assert (info["episode"], info["step"], info["success"]) == (number, step, False)
        _, reward, terminated, truncated, info = env.step(info["expert_action"])
        assert (reward, terminated, truncated, info["success"], info["score"]) == (1.0, True, False, True, 1.0)
        assert (info["type_correct"], info["argument_score"], info["format_ok"], info["expert_action"]) == (
            1,
            1,
            True,
            None,
        )
        assert info["gui_r1_accuracy"] == 1
        assert info.get("grounding", 1) == 1
        assert ("grounding" in info) == (info["action_type"] in ("click", "long_press"))
        rows.append(info)
    figures = summarize(evaluator, env.test_set, rows)
    assert figures[f"{evaluator}/{split}-full-{len(rows)}/step_success"] == 1
    assert figures[f"{evaluator}/{split}-full-{len(rows)}/episode_success"] == 1


def test_the_pool_has_what_the_evaluator_counts(make):
    env, cpm = make(split="test"), make(split="test", evaluator="agentcpm")
    steps = {(e.id, k) for e in env._episodes.values() for k in range(len(e.actions))}
    assert set(env.pool) == steps
    assert env.test_set == "test-full-78"
    apps = {(n, k) for n, k in steps if env._episodes[n].actions[k].kind == "open_app"}
    ends = {(e.id, len(e.actions)) for e in env._episodes.values()}
    assert set(cpm.pool) == steps - apps | ends
    text, info = at(cpm, *max(ends))
    assert info["step"] == info["episode_steps"]
    assert cpm.step(write_action(GuiAction("wait")))[1] == 1
    assert text.startswith("Goal: ")


def test_the_listed_test_set_is_smaller(make):
    env = make(split="test", test_set="listed")
    assert set(env.pool) == data.listed(synthetic(Synthetic(**SMALL)))
    assert len(env.pool) == 70
    assert env.test_set == "test-listed-70"
    part = make(split="test", part="IDD", steps=[9, None])
    assert part.test_set == f"test-IDD-9up-full-{9 + 10 + 11 + 12}"
    with pytest.raises(ConfigError, match="there is no step in test-app_unseen-full-0"):
        make(split="test", part="app_unseen")
    with pytest.raises(ConfigError, match=r"unknown part of test_subsplits.json 'ID'"):
        make(split="test", part="ID")


def test_what_is_told(make):
    env = make()
    episode = episode_of(env, 5)
    found = {}
    for instruction, history in itertools.product(INSTRUCTIONS, HISTORIES):
        other = make(instruction=instruction, history=history)
        found[instruction, history] = at(other, episode.id, 2)[0].split("\n")
    first, second = episode.instructions[:2]
    told = [f"Goal: {episode.goal}", f"Done before: 1. {first}; 2. {second}"]
    assert found["high", "instructions"][:3] == [*told, "Screen: 135 x 240 pixels"]
    assert found["low", "instructions"][:3] == [*told, f"Now: {episode.instructions[2]}"]
    assert found["low_alone", "instructions"][:2] == [f"Now: {episode.instructions[2]}", "Screen: 135 x 240 pixels"]
    assert found["low_alone", "actions"] == found["low_alone", "instructions"]
    one, two = map(write_action, episode.actions[:2])
    assert found["high", "actions"][:2] == [told[0], f"Done before: 1. {one}; 2. {two}"]
    assert at(env, episode.id, 0)[0].split("\n")[1] == "Done before: nothing"
    assert env.instructions.startswith("You use a phone.")


def test_the_list_has_the_middle_of_every_element(make):
    env = make()
    text, _ = at(env, episode_of(env, 1).id, 0)
    listed = [line for line in text.split("\n") if line[0].isdigit()]
    assert [int(line.split(".")[0]) for line in listed] == list(range(1, len(listed) + 1))
    assert listed[0] == '1. TextView "9:41" [67, 4]'


def test_images(make):
    env = make(observation="both", render_mode="rgb_array")
    number = episode_of(env, 3).id
    seen, _ = at(env, number, 1)
    assert seen in env.observation_space
    assert (seen["image"].shape, seen["image"].dtype) == ((240, 135, 3), np.uint8)
    assert len(np.unique(seen["image"].reshape(-1, 3), axis=0)) > 10
    assert "\n1. " in seen["text"]
    assert np.array_equal(env.render(), seen["image"])
    after = env.step("hm")[0]
    assert after in env.observation_space
    assert after["text"].startswith("[error: ")
    only, _ = at(make(observation="image"), number, 1)
    assert np.array_equal(only["image"], seen["image"])
    assert only["text"] == seen["text"].partition("\n1. ")[0]


def test_points_are_in_pixels_of_the_screen_that_is_shown(make):
    size = resized(135, 240, 28 * 28 * 40)
    assert size == (112, 224)
    env, plain = make(observation="both", history="actions", max_pixels=28 * 28 * 40), make(history="actions")
    for number, step in env.pool[::7]:
        seen, info = at(env, number, step, expert=True)
        assert (info["width"], info["height"]) == size
        assert seen["image"].shape == (224, 112, 3)
        assert "Screen: 112 x 224 pixels" in seen["text"]
        _, other = at(plain, number, step, expert=True)
        hint, whole = (read_action(found["expert_action"]) for found in (info, other))
        if hint.point:
            assert hint.point == pytest.approx((whole.point[0] * 112 / 135, whole.point[1] * 224 / 240), abs=0.51)
            # A place that is right in pixels of this screen would be wrong in those of the recorded one.
            far = GuiAction(hint.kind, (hint.point[0], min(223, hint.point[1] + 60)))
            assert env.step(write_action(far))[4]["grounding"] == 0
    assert "[112, 224]" not in seen["text"]


def test_answers(make):
    env = make()
    number, step = next((n, k) for n, k in env.pool if env._episodes[n].actions[k].kind == "click")
    gold = env._episodes[number].actions[step]
    for action, reward, right_type, argument in (
        (write_action(gold), 1, 1, 1),
        (write_reply(gold, "There."), 1, 1, 1),
        (" " + write_action(gold).replace('"', "'"), 1, 1, 1),
        (write_action(GuiAction("long_press", gold.point)), 0, 0, 1),
        (write_action(GuiAction("click", (gold.point[0], gold.point[1] + 500))), 0, 1, 0),
        (write_action(GuiAction("wait")), 0, 0, 0),
    ):
        at(env, number, step)
        text, got, terminated, _, info = env.step(action)
        assert (got, terminated, info["type_correct"], info["argument_score"]) == (reward, True, right_type, argument)
        assert (text, info["format_ok"], info["action_type"]) == ("The action was taken.", True, "click")
    for action, message in (("click there", "exactly one <think>"), ("[]", "exactly one action"), ("", "<think>")):
        at(env, number, step)
        text, got, terminated, _, info = env.step(action)
        assert (got, terminated, info["format_ok"], info["type_correct"]) == (0, True, False, 0)
        assert text.startswith("[error: ")
        assert message in text


def test_nothing_tells_the_recorded_action_before_it_is_taken(make):
    env = make()
    for seed in range(20):
        _, info = env.reset(seed=seed)
        assert set(info) == {
            *("episode", "step", "episode_steps", "width", "height", "score", "max_score", "success"),
        }


def test_options(make):
    env = make()
    for low, high in ((1, 3), (4, 8), (9, None)):
        lengths = {env.reset(seed=k, options={"steps": [low, high]})[1]["episode_steps"] for k in range(30)}
        assert len(lengths) > 2
        assert min(lengths) >= low
        assert max(lengths) <= (high or 12)
    number = episode_of(env, 12).id
    assert {env.reset(seed=k, options={"episode": number})[1]["episode"] for k in range(5)} == {number}
    assert len({env.reset(seed=k, options={"episode": number})[1]["step"] for k in range(20)}) > 5
    one, other = (env.reset(seed=3, options={"split": split})[1]["episode"] for split in ("test", "train"))
    assert one in json.loads((synthetic(Synthetic(**SMALL)) / "splits.json").read_text())["test"]
    assert one != other
    assert env.reset(seed=3)[1]["episode"] == other
    for wrong, message in (
        ({"stage": 1}, "unknown reset option 'stage'"),
        ({"episode": 10**6}, "there is no step {'episode': 1000000} in train-full-78"),
        ({"episode": number, "step": 12}, "there is no step"),
        ({"steps": [0, 3]}, r"steps is \[0, 3\]: it must be the fewest actions"),
        ({"steps": [4, 3]}, "steps is"),
        ({"steps": 3}, "steps is 3"),
        ({"steps": [13, None]}, "there is no step in train-13up-full-0"),
        ({"split": "tst"}, "unknown split 'tst'"),
    ):
        with pytest.raises(ConfigError, match=message):
            env.reset(seed=0, options=wrong)
        with pytest.raises(ResetNeeded):
            env.step("[]")
    assert env.reset(seed=3)[1]["episode"] == other


def test_consecutive_seeds_go_once_through_the_pool(make):
    env = make(split="test")
    drawn = [env.reset(seed=k)[1] for k in range(1000, 1000 + len(env.pool))]
    assert sorted((info["episode"], info["step"]) for info in drawn) == sorted(env.pool)
    assert len({(info["episode"], info["step"]) for info in (env.reset()[1] for _ in range(20))}) > 5


def test_wrong_arguments(make, tmp_path):
    for wrong, message in (
        ({"split": "tst"}, "unknown split 'tst'"),
        ({"test_set": "listed"}, "test_set and part are for split=test, and split is 'train'"),
        ({"split": "test", "test_set": "short"}, "unknown test_set 'short'"),
        ({"instruction": "hi"}, "unknown instruction 'hi'"),
        ({"history": "action"}, "did you mean actions"),
        ({"observation": "screen"}, "unknown observation"),
        ({"evaluator": "qwen2"}, "did you mean qwen"),
        ({"render_mode": "human"}, "unknown render_mode"),
        ({"max_pixels": 100}, "max_pixels is 100"),
        ({"patch": 0}, "patch is 0"),
        ({"steps": [3]}, r"steps is \[3\]"),
        ({"data": str(tmp_path / "none")}, "there is no folder"),
        ({"data": {"episodes": 5}}, "data.episodes is 5"),
        ({"data": {"pages": 5}}, "it has episodes, width, height and seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**wrong)


def test_data_of_ones_own(make, tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "own", [example(5, [{"action_type": "wait"}] * 2)], [5])
    monkeypatch.setenv("AGENTGYM_ANDROID_CONTROL", str(folder))
    env = make(data=None, split="test")
    assert env.pool == [(5, 0), (5, 1)]
    assert at(env, 5, 1)[0] == "Goal: Wait.\nDone before: 1. Wait\nScreen: 100 x 200 pixels\n"
    with pytest.raises(ConfigError, match="the screenshot of episode 5, step 0 is broken"):
        at(make(data=folder, split="test", observation="image"), 5, 0)


def test_screens_of_several_sizes(make, tmp_path):
    folder = folder_of(
        tmp_path, [example(1), example(2, screenshot_widths=[300, 300], screenshot_heights=[400, 400])], [1, 2]
    )
    env = make(data=folder, split="test")
    assert [at(env, k, 0)[1]["width"] for k in (1, 2, 1)] == [100, 300, 100]


def test_a_rollout_with_the_codec_of_the_registry():
    with EnvPool("agentgym/AndroidControl-v0", {"data": SMALL}) as pool:
        rollout = Rollout(pool, ExpertPolicy(), RolloutConfig(), {"expert": True, "steps": [4, 8]})
        groups = rollout.collect([Task(seed, seed, f"g{seed}", 0, 0) for seed in range(3)])
    played = [t for group in groups for t in group.trajectories]
    assert summarize("qwen", "some", [t.info for t in played])["qwen/some/step_success"] == 1
    for trajectory in played:
        assert trajectory.success
        (turn,) = trajectory.turns
        assert read_action(turn.action)
        assert 4 <= trajectory.info["episode_steps"] <= 8
        assert (trajectory.info["type_correct"], trajectory.info["argument_score"]) == (1, 1.0)


def test_it_is_made_by_gymnasium():
    env = gym.make("agentgym/AndroidControl-v0", data=SMALL)
    assert env.reset(seed=1)[0] == env.reset(seed=1)[0]
    env.close()
    env.close()
