"""MiniWoB in a real browser: every page, the experts, what the agent may get wrong, and what may break."""

from __future__ import annotations

import os
import random
import signal
import threading

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs import chromium as browser
from agentgym.envs import miniwob
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

import agentgym  # noqa: F401  registers the ids
from agentgym.checks import CHECKS, check_agent_env
from agentgym.checks.bench import ODD
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EnvError
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, Task

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]
pytest.importorskip("miniwob")

PAGES = tuple(miniwob.pages())
QUICK = ("click-button", "click-checkboxes-large", "choose-list", "use-spinner", "email-inbox", "social-media-all")


@pytest.fixture(scope="module")
def env():
    made = miniwob.MiniWoBEnv("all", positions=True)
    yield made
    made.close()


def start(env, task, seed=0, **options):
    return env.reset(seed=seed, options={"task": task, **options})


def play(env, task, seed, count=5):
    """Some random commands; what came of them."""
    rng = random.Random(seed)
    text, info = start(env, task, seed)
    seen = [(text, 0.0)]
    for _ in range(count):
        command = rng.choice([*info["admissible_commands"], "press enter", "scroll down", "drag 80 100 90 150"])
        text, reward, terminated, _, info = env.step(command)
        seen.append((text, reward))
        if terminated:
            break
    return seen


def test_there_are_130_pages():
    assert len(PAGES) == 130
    assert set(miniwob.EXPERTS) <= set(PAGES)
    assert len(miniwob.EXPERTS) >= 60


@pytest.mark.parametrize("scripted", [True, False])
def test_every_page_keeps_every_promise(scripted):
    """With a seed that draws it for each page; experts take up to 13 steps."""
    tasks = [task for task in PAGES if (task in miniwob.EXPERTS) == scripted]
    drawn = {}
    for seed in range(5000):
        drawn.setdefault(int(seeding.np_random(seed)[0].integers(len(tasks))), seed)
    assert len(drawn) == len(tasks)
    report = check_agent_env(
        "agentgym/MiniWoB-v0",
        {"task": tasks, "max_steps": 15 if scripted else 3},
        seeds=sorted(drawn.values()),
        skip=() if scripted else ("expert",),
        timeout=1800,
    )
    assert report.passed, str(report)
    assert report.ran == [name for name in CHECKS if scripted or name != "expert"]


@pytest.mark.slow
@pytest.mark.parametrize("task", PAGES)
def test_episodes_repeat_in_a_fresh_page_and_after_other_episodes(env, task):
    other = miniwob.MiniWoBEnv(task, positions=True)
    try:
        expected = [play(other, task, seed) for seed in range(4)]
        assert [play(env, task, seed) for seed in reversed(range(4))] == expected[::-1]
    finally:
        other.close()


def solve(env, task, seed):
    """The last info when the expert is followed, and its commands."""
    _, info = start(env, task, seed, expert=True)
    planned, commands = info["episode_steps"], []
    while info["expert_action"] is not None:
        commands.append(info["expert_action"])
        _, _, terminated, truncated, info = env.step(commands[-1])
        assert (info["type_correct"], info["argument_score"]) == (1.0, 1.0)
        if terminated or truncated:
            break
    assert planned == len(commands)
    return info, commands


@pytest.mark.parametrize("task", QUICK)
def test_experts_succeed(env, task):
    for seed in range(2):
        info, commands = solve(env, task, seed)
        assert info["success"], (task, seed, commands)


@pytest.mark.parametrize(
    ("task", "seed", "steps"),
    [
        pytest.param("email-inbox-noscroll", 455116, 4, id="a name of two words"),
        pytest.param("drag-box", 28, 2, id="the box touches the edge from within"),
        pytest.param("drag-box", 47, 1, id="the box lies in the other from the start"),
    ],
)
def test_experts_succeed_in_rare_episodes(env, task, seed, steps):
    info, commands = solve(env, task, seed)
    assert (info["success"], len(commands)) == (True, steps)


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(miniwob.EXPERTS))
def test_every_expert_succeeds_on_twenty_seeds(env, task):
    failed = [seed for seed in range(20) if not solve(env, task, seed)[0]["success"]]
    assert not failed


@pytest.fixture(scope="module")
def screen():
    made = miniwob.MiniWoBEnv("all", observation="image")
    yield made
    made.close()


POINTED = sorted(set(miniwob.EXPERTS) - {"choose-list", "click-scroll-list"})
"""The two others have lists that a browser draws outside the page."""


@pytest.mark.parametrize(
    "task", ["click-button", "enter-text-2", "copy-paste", "drag-box", "use-spinner", "email-inbox"]
)
def test_experts_succeed_by_pointing(screen, task):
    for seed in range(2):
        info, commands = solve(screen, task, seed)
        assert info["success"], (task, seed, commands)
        assert all(len(c.split()) == 3 for c in commands if c.startswith("click")), commands


@pytest.mark.slow
@pytest.mark.parametrize("task", POINTED)
def test_every_expert_succeeds_by_pointing_on_twenty_seeds(screen, task):
    failed = [seed for seed in range(20) if not solve(screen, task, seed)[0]["success"]]
    assert not failed


def test_who_sees_a_picture_only_points(screen):
    _, info = start(screen, "login-user", expert=True)
    field = info["expert_action"]
    assert all(len(c.split()) == 3 for c in info["admissible_commands"] if c.startswith("click"))
    assert info["episode_steps"] == 5, "clicks into both fields, two texts, the button"
    assert "element number" not in screen.instructions
    for command in ("click 2", "drag 1 2", "drag 1 20 30", "scroll 1 down"):
        seen, _, _, _, info = screen.step(command)
        assert seen["text"].startswith("Unknown command; the commands are: click X Y |"), command
        assert not info["format_ok"]
    screen.step(field)
    seen, _, _, _, info = screen.step("type 12 monkeys")
    assert info["format_ok"]
    assert [e.value for e in screen._elements if e.typed] == ["12 monkeys", ""]
    for task in set(miniwob.EXPERTS) - set(POINTED):
        _, info = start(screen, task, expert=True)
        assert not {"expert_action", "episode_steps"} & set(info)


def test_experts_take_one_to_nine_and_more_steps(env):
    lengths = {start(env, task, seed)[1]["episode_steps"] for task in QUICK for seed in range(3)}
    assert min(lengths) == 1
    assert max(lengths) >= 9


def test_what_an_agent_sees():
    env = miniwob.MiniWoBEnv("login-user")
    try:
        text, info = env.reset(seed=0)
        lines = text.split("\n")
        assert lines[0] == f"Task: {info['task']}"
        assert lines[1:] == [
            '1 text "Username"',
            '2 textbox #username value ""',
            '3 text "Password"',
            '4 password #password value ""',
            '5 button "Login"',
        ]
        assert info["admissible_commands"] == sorted(info["admissible_commands"])
        text, reward, terminated, *_ = env.step("type 2 bob")
        assert '2 textbox #username value "bob" focused' in text
        assert (reward, terminated) == (0.0, False)
        _, reward, terminated, _, info = env.step("click 5")
        assert (reward, terminated, info["success"], info["score"]) == (-1.0, True, False, -1.0)
    finally:
        env.close()


def test_mistakes_come_back_as_observations(env):
    start(env, "click-option")
    for command, answer in {
        "click 99": "There is no element 99.",
        "click 500 20": "(500, 20) is not on the screen, which is 160 wide and 210 high.",
        "click -3 20": "(-3, 20) is not on the screen, which is 160 wide and 210 high.",
        "type 1 hello": "Nothing can be typed into element 1.",
        "scroll up": "Nothing scrolls any further there.",
        "press hyper": "Unknown key; the keys are: a single character, enter,",
        "type": "Type needs a text.",
        "fly away": "Unknown command; the commands are: click N | click X Y |",
        "drag 1 99": "There is no element 99.",
    }.items():
        text, reward, terminated, truncated, info = env.step(command)
        assert text.startswith(answer), (command, text)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert {"type_correct", "argument_score"} < set(info)
    for action in ODD:
        start(env, "click-option")
        env.step(action)


def test_an_element_that_is_gone_is_no_other_one(env):
    start(env, "email-inbox-delete")
    env.step("click 3")  # opens a mail
    text, *_ = env.step("click 3")
    assert text.startswith("There is no element 3.")


def test_done_and_wait(env):
    start(env, "click-option")
    before = env.step("wait")[0]
    assert env.step("wait")[0] == before
    _, reward, terminated, _, info = env.step("done")
    assert (reward, terminated, info["success"]) == (0.0, True, False)
    with pytest.raises(ResetNeeded):
        env.step("wait")


def test_points_do_what_elements_do(env):
    _, info = start(env, "click-button", 3, expert=True)
    number = int(info["expert_action"].split()[1])
    x, y = next(e.box[:2] for e in env._elements if e.number == number)
    _, reward, terminated, _, info = env.step(f"click {x} {y}")
    assert (reward, terminated, info["type_correct"], info["argument_score"]) == (1.0, True, 1.0, 1.0)


def test_keys_and_the_clipboard(env):
    start(env, "copy-paste", 1)
    area, box, submit = (
        next(e for e in env._elements if e.id == name or e.text == name)
        for name in ("to-copy", "answer-input", "Submit")
    )
    commands = (
        f"click {area.number}",
        "press ctrl+a",
        "press ctrl+c",
        f"click {box.number}",
        "press ctrl+v",
        f"click {submit.number}",
    )
    assert [env.step(command)[1] for command in commands] == [0.0] * 5 + [1.0]
    start(env, "enter-text", 0)
    for command in ("click 1", "type abc", "press left", "press backspace", "type X", "press end", "press !"):
        text = env.step(command)[0]
    assert 'value "aXc!" focused' in text
    env.step("press tab")
    assert 'button "Submit" focused' in env.step("wait")[0]


def test_dragging_and_scrolling(env):
    _, info = start(env, "drag-box", 2, expert=True)
    assert env.step(info["expert_action"])[1] == 0.0
    assert env.step(env.step("wait")[4]["expert_action"])[1] == 1.0
    start(env, "highlight-text", 0)
    words = next(e for e in env._elements if e.kind == "text")
    x, y, width, height = words.box
    env.step(f"drag {x - width / 2 + 1} {y - height / 2 + 4} {x + width / 2 - 1} {y + height / 2 - 4}")
    assert env.step("click 1")[1] == 1.0


def test_tasks_are_drawn_by_the_seed_and_splits_differ():
    env = miniwob.MiniWoBEnv(["click-test", "click-button", "click-link"])
    try:
        names = [env.reset(seed=seed)[1]["task_name"] for seed in range(12)]
        assert set(names) == {"click-test", "click-button", "click-link"}
        assert [env.reset(seed=seed)[1]["task_name"] for seed in range(12)] == names
        texts = {split: start(env, "click-button", 5, split=split)[0] for split in miniwob.SPLITS}
        assert len(set(texts.values())) == 3
    finally:
        env.close()


def test_pictures_are_the_same_for_the_same_seed():
    env = gym.make("agentgym/MiniWoB-v0", task="click-shape", observation="both", render_mode="rgb_array")
    try:
        seen, info = env.reset(seed=1)
        assert seen in env.observation_space
        assert (seen["image"].shape, seen["image"].dtype) == ((210, 160, 3), np.uint8)
        assert len(np.unique(seen["image"].reshape(-1, 3), axis=0)) > 10
        assert seen["text"].startswith(f"Task: {info['task']}\n1 ")
        assert np.array_equal(env.render(), seen["image"])
        other, _ = env.reset(seed=2)
        assert not np.array_equal(other["image"], seen["image"])
        assert np.array_equal(env.reset(seed=1)[0]["image"], seen["image"])
    finally:
        env.close()
    env = miniwob.MiniWoBEnv("email-inbox", observation="image")
    try:
        first, info = env.reset(seed=0)
        assert first["text"] == f"Task: {info['task']}"
        assert np.array_equal(env.reset(seed=0)[0]["image"], first["image"])
        seen, info = start(env, "login-user", 0, expert=True)
        focused = env.step(info["expert_action"])[0]["image"]
        assert not np.array_equal(focused, seen["image"])
        _, info = start(env, "login-user", 0, expert=True)
        assert all(np.array_equal(env.step(info["expert_action"])[0]["image"], focused) for _ in range(20))  # no caret
    finally:
        env.close()


def test_pictures_are_there_whatever_other_pages_load(env):
    other = miniwob.MiniWoBEnv("order-food")
    try:
        expected = start(env, "order-food", 4)[0]
        assert 'image "vegan" at 12 122 size 20 20' in expected
        for task in ("order-food", "click-link") * 3:
            start(other, task, 4)
            assert start(env, "order-food", 4)[0] == expected
    finally:
        other.close()


def test_the_page_has_no_clock_but_the_steps():
    env = miniwob.MiniWoBEnv("click-test", timed=True)
    try:
        rewards = []
        for waits in (0, 0, 2, 4):
            env.reset(seed=0)
            for _ in range(waits):
                env.step("wait")
            rewards.append(env.step("click 1")[1])
        assert rewards == pytest.approx([0.9984, 0.9984, 0.5984, 0.1984])  # a frame passes before the first step
        env.reset(seed=0)
        ends = [env.step("wait")[1:3] for _ in range(5)]
        assert ends == [(0.0, False)] * 4 + [(-1.0, True)]
    finally:
        env.close()


def test_environments_on_threads_do_not_touch_each_other():
    expected, seen = {}, {}
    for task in QUICK[:4]:
        env = miniwob.MiniWoBEnv(task)
        expected[task] = play(env, task, 7)
        env.close()

    def run(task):
        env = miniwob.MiniWoBEnv(task)
        seen[task] = play(env, task, 7)
        env.close()

    threads = [threading.Thread(target=run, args=(task,)) for task in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == expected


def test_a_browser_with_windows_shows_the_same(monkeypatch, chromium, headless_shell):
    seen = []
    for program in (chromium, headless_shell):
        monkeypatch.setenv("AGENTGYM_CHROMIUM", program)
        with EnvPool("agentgym/MiniWoB-v0", {"task": "all", "expert": True}, processes=1) as pool:
            seen.append([pool.first_info(3, {"task": task}, *["wait"] * steps) for task in QUICK for steps in (0, 1)])
    assert seen[0] == seen[1]


class Murderer(ExpertPolicy):
    """The expert, which kills the browser before its third turn, once."""

    turns = 0

    async def generate(self, *args, **kwargs):
        self.turns += 1
        if self.turns == 3:
            os.killpg(browser._current._process.pid, signal.SIGKILL)
        return await super().generate(*args, **kwargs)


def test_a_browser_that_dies_costs_its_episodes_and_not_the_run():
    with EnvPool("agentgym/MiniWoB-v0", {"task": "login-user"}) as pool:
        config = RolloutConfig(max_turns=10, codec="verbatim", concurrency=2, retries=2, context_limit=10**9)
        rollout = Rollout(pool, Murderer(), config, {"expert": True})
        groups = rollout.collect([Task(seed, seed, str(seed), 0, 0) for seed in range(3)])
    assert [t.status for group in groups for t in group.trajectories] == ["done"] * 3
    assert all(t.turns[-1].reward == 1.0 for group in groups for t in group.trajectories)


def test_an_environment_can_be_reset_after_the_browser_died(env):
    expected = start(env, "click-link", 3)
    os.killpg(env._page.browser._process.pid, signal.SIGKILL)
    with pytest.raises(EnvError, match="died"):
        env.step("click 1")
    with pytest.raises(ResetNeeded):
        env.step("click 1")
    assert start(env, "click-link", 3) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "click-buton"}, "unknown task 'click-buton': did you mean .*click-button"),
        ({"task": 3}, "unknown task '3'"),
        ({"task": []}, "task is empty"),
        ({"observation": "html"}, "unknown observation 'html'"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"render_mode": "human"}, "unknown render_mode 'human'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        miniwob.MiniWoBEnv(**arguments)


def test_wrong_options_are_named(env):
    for options, message in (({"tasks": 1}, "reset option"), ({"split": "val"}, "split"), ({"task": "x"}, "task")):
        with pytest.raises(ConfigError, match=f"unknown {message}"):
            env.reset(seed=0, options=options)


def test_wrong_commands_score_lower_than_the_experts(env):
    _, info = start(env, "enter-text", 0)
    field, submit = (next(e.number for e in env._elements if e.kind == kind) for kind in ("textbox", "button"))
    info = env.step(f"click {submit + 50}")[4]
    assert (info["type_correct"], info["argument_score"]) == (0.0, 0.0)
    info = env.step(f"type {field} something else")[4]
    assert (info["type_correct"], info["argument_score"]) == (1.0, 0.5)
    start(env, "stock-market")
    assert "type_correct" not in env.step("wait")[4]
