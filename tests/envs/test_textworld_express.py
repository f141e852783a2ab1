import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import agentgym  # noqa: F401
from agentgym.errors import ConfigError, EnvError, MissingDependency

pytest.importorskip("textworld_express")
pytestmark = [
    pytest.mark.java,
    pytest.mark.skipif(not os.environ.get("JAVA_HOME") and not shutil.which("java"), reason="java is missing"),
]

from agentgym.envs import jvm  # noqa: E402
from agentgym.envs import textworld_express as twx  # noqa: E402
from agentgym.envs.textworld_express import FOLDS, PARAMS, TextWorldExpressEnv  # noqa: E402

GAMES = sorted(PARAMS)
EASY_MAP = {"numLocations": 5, "maxDistanceApart": 1, "maxDistractorItemsPerLocation": 0}


@pytest.fixture
def make():
    """Make environments that are closed when the test ends."""
    made = []

    def make(*args, **kwargs):
        made.append(TextWorldExpressEnv(*args, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def play(env, seed, steps=40, options=None):
    """What an agent sees that draws from the admissible commands."""
    rng = np.random.default_rng(seed)
    text, info = env.reset(seed=seed, options=options)
    seen = [(text, info)]
    for _ in range(steps):
        commands = info["admissible_commands"]
        text, reward, terminated, truncated, info = env.step(commands[rng.integers(len(commands))])
        seen.append((text, reward, terminated, truncated, info))
        if terminated or truncated:
            break
    return seen


def follow(env, seed, random_first=0, options=None):
    """Play the expert after some random commands; return the last info, the steps and whether it ended."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed, options=options)
    total, steps, over = 0.0, 0, False
    while not over:
        commands = info["admissible_commands"]
        action = commands[rng.integers(len(commands))] if steps < random_first else info["expert_action"]
        if action is None:
            break
        assert steps < random_first or action in commands
        _, reward, terminated, truncated, info = env.step(action)
        total, steps, over = total + reward, steps + 1, terminated or truncated
    assert total == pytest.approx(info["score"])
    return info, steps, over


@pytest.mark.parametrize("game", GAMES)
def test_gymnasium_checker(game):
    env = gym.make("agentgym/TextWorldExpress-v0", game=game, render_mode="ansi")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert not [str(w.message) for w in caught if "gymnasium" in str(w.filename)]
    text, info = env.reset(seed=1)
    assert env.render() == text
    assert env.observation_space.contains(text)
    assert set(info) == {"admissible_commands", "score", "max_score", "success", "task"}
    assert info["admissible_commands"] == sorted(set(info["admissible_commands"]))
    assert info["task"] in text
    assert env.unwrapped.instructions
    env.close()


def test_first_observation_and_moves(make):
    env = make("coin", "numLocations=5, includeDoors=0")
    text, info = env.reset(seed=4)
    task, _, room = text.partition("\n\n")
    assert (
        task
        == info["task"]
        == "Your task is to search the environment and find the coin.  Once you find the coin, take it."
    )
    assert room.startswith("You are in the ")
    move = next(command for command in info["admissible_commands"] if command.startswith("move"))
    text, reward, terminated, truncated, info = env.step(move)
    assert text.startswith("You are in the ")
    assert (reward, terminated, truncated) == (0.0, False, False)


@pytest.mark.parametrize("game", GAMES)
def test_same_seed_same_text(make, game):
    first, second = make(game, expert=True), make(game, expert=True)
    for seed in (0, 7):
        assert play(first, seed) == play(second, seed) == play(first, seed)
    assert play(first, 0)[0] != play(first, 7)[0]
    assert play(first, 3)[0] == play(first, 3 + 1000)[0]


def test_reset_without_seed_draws_from_np_random(make):
    one, other = make("mapreader"), make("mapreader")
    texts = []
    for env in (one, other):
        env.reset(seed=5)
        texts.append([env.reset()[0] for _ in range(6)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_other_process_same_text(make):
    code = (
        "import sys; from agentgym.envs.textworld_express import TextWorldExpressEnv as E\n"
        "for game in ('coin', 'twc', 'cookingworld'):\n"
        "    env = E(game, expert=True); text, info = env.reset(seed=11); over = False\n"
        "    while not over:\n"
        "        print(repr(text), info['expert_action']); text, _, over, _, info = env.step(info['expert_action'])\n"
        "    env.close()\n"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "123")
    ]
    assert out[0] == out[1]
    assert out[0].count("\n") > 20


@pytest.mark.parametrize(("game", "params"), [("mapreader", EASY_MAP), ("twc", None), ("simonsays", None)])
def test_splits_are_disjoint(make, game, params):
    env = make(game, params, expert=True)
    plays = {}
    for split in FOLDS:
        plays[split] = {repr(play(env, seed, 6, {"split": split})) for seed in range(40)}
    assert all(len(games) >= 38 for games in plays.values())
    assert not plays["train"] & plays["test"]
    assert not plays["train"] & plays["dev"]
    assert not plays["dev"] & plays["test"]


def test_options_hold_for_one_episode(make):
    env = make("coin")
    usual = env.reset(seed=3)
    other = env.reset(seed=3, options={"split": "test", "game_params": {"numLocations": 2}, "expert": True})
    assert other[0] != usual[0]
    assert other[1]["expert_action"]
    assert env.reset(seed=3) == usual
    assert "expert_action" not in usual[1]


def test_interleaved_instances_do_not_touch(make):
    alone = {game: play(make(game), 2) for game in ("coin", "cookingworld")}
    envs = {game: make(game) for game in alone}
    rngs = {game: np.random.default_rng(2) for game in alone}
    seen = {game: [env.reset(seed=2)] for game, env in envs.items()}
    for _ in range(40):
        for game, env in envs.items():
            if len(seen[game]) > 1 and (seen[game][-1][2] or seen[game][-1][3]):
                continue
            commands = seen[game][-1][-1]["admissible_commands"]
            seen[game].append(env.step(commands[rngs[game].integers(len(commands))]))
    assert seen == alone


def test_threads_equal_serial(make):
    jobs = [(game, seed) for game in GAMES for seed in range(2)]
    serial = {job: play(make(job[0], expert=True), job[1]) for job in jobs}
    threaded = {}

    def work(job):
        threaded[job] = play(make(job[0], expert=True), job[1])

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threaded == serial


@pytest.mark.parametrize("game", GAMES)
def test_expert_wins_from_the_start(make, game):
    env = make(game, expert=True, max_steps=60)
    for seed in range(15):
        info, steps, _ = follow(env, seed, options={"split": ("train", "test")[seed % 2]})
        assert info["success"]
        assert info["score"] == info["max_score"]
        assert info["expert_action"] is None
        assert steps < 60


@pytest.mark.parametrize(
    ("game", "params"),
    [
        ("coin", None),
        ("mapreader", "limitInventorySize=1,includeDoors=1"),
        ("twc", "limitInventorySize=1,includeDoors=1"),
        ("cookingworld", None),
        ("cookingworld", "numIngredients=5,numLocations=3"),
        ("sorting", None),
        ("arithmetic", None),
    ],
)
def test_expert_recovers(make, game, params):
    """After random commands it wins, unless those commands lost the game."""
    env = make(game, params, expert=True, max_steps=100)
    won = 0
    for seed in range(15):
        info, steps, over = follow(env, seed, random_first=6)
        assert over
        assert info["success"] or steps <= 6
        won += info["success"]
    assert won >= 5


@pytest.mark.parametrize("game", ["coin", "cookingworld", "mapreader", "sorting"])
def test_unknown_commands_do_nothing(make, game):
    env = make(game)
    env.reset(seed=1)
    odd = ["", " \n ", "dance", "\\", '"', "日本 \ud800", "x" * 100_000, "\x00", "take coin; take coin"]
    for action in odd:
        text, reward, terminated, truncated, info = env.step(action)
        assert "Unknown action" in text
        assert (reward, terminated, truncated, info["score"]) == (0.0, False, False, 0.0)


def test_a_loss_ends_the_game(make):
    env = make("simonsays")
    text, info = env.reset(seed=0)
    assert env.step("dance")[1:3] == (0.0, False)
    wrong = next(command for command in info["admissible_commands"] if command not in text)
    _, reward, terminated, _, info = env.step(wrong)
    assert (reward, terminated, info["success"], info["score"]) == (-1.0, True, False, -1.0)


def test_silent_games_answer_something(make):
    env = make("simonsays", "memorization=1,verbose=0", expert=True)
    _, info = env.reset(seed=0)
    text, reward, *_ = env.step(info["expert_action"])
    assert (text, reward) == ("(no answer)", 1.0)


def test_cap_and_reset_needed(make):
    env = make("mapreader", max_steps=3)
    with pytest.raises(ResetNeeded):
        env.step("look around")
    env.reset(seed=0)
    assert [env.step("look around")[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ResetNeeded):
        env.step("look around")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"game": "cooking"}, ["cooking", "cookingworld"]),
        ({"split": "tain"}, ["tain", "train"]),
        ({"game_params": {"numLocation": 3}}, ["numLocation", "numLocations", "includeDoors"]),
        ({"game_params": "numLocations"}, ["numLocations", "integer"]),
        ({"game_params": {"numLocations": "many"}}, ["numLocations", "many"]),
        ({"game_params": {"numLocations": 99}}, ["99"]),
        ({"game_params": {"includeDoors": 2}}, ["includeDoors"]),
        ({"game": "sorting", "game_params": {"n": 1}}, ["n", "none"]),
        ({"game": "mapreader", "game_params": {"numLocations": 49}}, ["48"]),
        ({"game": "twc", "game_params": {"numItemsToPutAway": 0}}, ["numItemsToPutAway"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"render_mode": "human"}, ["human"]),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ConfigError) as caught:
        TextWorldExpressEnv(**kwargs)
    assert all(word in str(caught.value) for word in words)


def test_bad_options(make):
    env = make()
    for options in ({"split": "x"}, {"foo": 1}, {"game_params": {"foo": 1}}, {"game_params": {"numLocations": 0}}):
        with pytest.raises(ConfigError):
            env.reset(seed=0, options=options)
    assert env.reset(seed=0)


def test_maps_that_cannot_be_laid_out(make):
    env = make("mapreader", {"numLocations": 5, "maxDistanceApart": 4})
    texts = [env.reset(seed=seed)[0] for seed in range(60)]  # the engine refuses about every sixth of these seeds
    assert texts == [env.reset(seed=seed)[0] for seed in range(60)]


def test_one_jvm_and_no_process_left():
    before = twx.ENGINE.current
    envs = [TextWorldExpressEnv(game) for game in GAMES for _ in range(4)]
    java = twx.ENGINE.current
    assert before is None
    assert java.users == 32
    for env in envs:
        env.reset(seed=0)
    for env in envs[1:]:
        env.close()
        env.close()
    assert not java.dead
    envs[0].step("look around")
    envs[0].close()
    assert java.dead
    assert twx.ENGINE.current is None
    with pytest.raises(EnvError, match="closed"):
        envs[0].reset(seed=0)


def thread_states(pid):
    states = set()
    with contextlib.suppress(FileNotFoundError):  # all of it ended meanwhile
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # a thread that ended meanwhile
                states.add(stat.read_text().rsplit(")", 1)[1].split()[0])
    return states


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_jvm_dies_or_hangs(make, fault, monkeypatch):
    monkeypatch.setattr(jvm, "ANSWER_S", 2.0)
    env, other = make("coin"), make("twc")
    env.reset(seed=0)
    other.reset(seed=0)
    pid = twx.ENGINE.current.process.pid
    os.kill(pid, fault)
    while thread_states(pid) - {"T", "Z"}:  # a signal takes effect later than kill returns: a thread may still answer
        time.sleep(0.001)
    for broken in (env, other):
        with pytest.raises(EnvError, match="died or hung"):
            broken.step("look around")
    with pytest.raises(EnvError):
        env.reset(seed=0)
    fresh = make("coin")
    assert fresh.reset(seed=0)
    env.close()
    other.close()
    assert fresh.step("look around")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


CHILD = """
import os, sys, time
from agentgym.errors import EnvError
from agentgym.envs.textworld_express import ENGINE, TextWorldExpressEnv
env = TextWorldExpressEnv(); env.reset(seed=0)
print(ENGINE.current.process.pid, flush=True)
if sys.argv[1] == "fork" and os.fork() == 0:
    try:
        env.step("look around")
    except EnvError as error:
        own = TextWorldExpressEnv(); own.reset(seed=0); own.close()
        print(error, flush=True)
    time.sleep(60)
if sys.argv[1] != "exit":
    time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("end", ["exit", "kill", "fork"])
def test_no_java_outlives_us(end):
    """Neither at exit, nor when we are killed, nor when we are killed and a forked child lives on."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, end], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        java = int(child.stdout.readline())
        if end == "fork":
            assert "before a fork" in child.stdout.readline()
        if end != "exit":
            assert alive(java)
            child.kill()
        child.wait(20)
        deadline = time.monotonic() + 10
        while alive(java) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(java)
    finally:
        child.stdout.close()
        os.killpg(child.pid, signal.SIGKILL) if end == "fork" else child.kill()
        child.wait()


def test_java_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MissingDependency, match="apt-get install default-jre-headless"):
        TextWorldExpressEnv()


def test_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld_express.constants", None)
    with pytest.raises(MissingDependency, match="textworld-express"):
        TextWorldExpressEnv()
