import json
import os
import subprocess
import sys
import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import agentgym  # noqa: F401
from agentgym.errors import ConfigError, EnvError, MissingDependency

pytest.importorskip("textworld")
pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")

from agentgym.envs import textworld as tw  # noqa: E402
from agentgym.envs.textworld import DIFFICULTY, FIRST_GAME, TextWorldEnv, make_games  # noqa: E402

CHALLENGES = {"coin": {"level": 4}, "treasure": {"level": 4}, "cooking": {"go": 1}}
N = 2


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of this module's own, with two games of each challenge."""
    folder = tmp_path_factory.mktemp("cache")
    before, os.environ["AGENTGYM_CACHE"] = os.environ.get("AGENTGYM_CACHE"), str(folder)
    for challenge, difficulty in CHALLENGES.items():
        make_games(challenge, n_games=N, **difficulty)
    yield folder
    del os.environ["AGENTGYM_CACHE"]
    if before is not None:
        os.environ["AGENTGYM_CACHE"] = before


@pytest.fixture
def make():
    made = []

    def make(challenge="coin", **kwargs):
        made.append(TextWorldEnv(challenge, **{"n_games": N, **CHALLENGES.get(challenge, {}), **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def no_generator(monkeypatch):
    """Fail if a game has to be generated."""

    def refuse(*args):
        raise AssertionError("generated a game that is in the cache")

    monkeypatch.setattr(tw, "_run_generator", refuse)


def play(env, seed, steps=30):
    rng = np.random.default_rng(seed)
    text, info = env.reset(seed=seed)
    seen = [(text, info)]
    for _ in range(steps):
        commands = info["admissible_commands"]
        text, reward, terminated, truncated, info = env.step(commands[rng.integers(len(commands))])
        seen.append((text, reward, terminated, truncated, info))
        if terminated or truncated:
            break
    return seen


def follow(env, seed, random_first=0):
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        commands = info["admissible_commands"]
        action = commands[rng.integers(len(commands))] if steps < random_first else info["expert_action"]
        if action is None:
            break
        _, reward, terminated, truncated, info = env.step(action)
        total, steps, over = total + reward, steps + 1, terminated or truncated
    assert total == info["score"]
    return info, steps


@pytest.mark.parametrize("name", ["Coin", "Treasure", "Cooking"])
def test_gymnasium_checker(name, no_generator):
    difficulty = CHALLENGES[name.lower()]
    env = gym.make(f"agentgym/TextWorld-{name}-v0", n_games=N, render_mode="ansi", **difficulty)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert not [str(w.message) for w in caught if "gymnasium" in str(w.filename)]
    text, info = env.reset(seed=1)
    assert env.render() == text
    assert set(info) == {"admissible_commands", "score", "max_score", "success", "task"}
    assert info["admissible_commands"] == sorted(set(info["admissible_commands"]))
    assert text.startswith(info["task"].split(".")[0])
    assert env.unwrapped.instructions
    env.close()


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_text_is_clean(make, challenge):
    env = make(challenge, expert=True)
    for seed in range(N):
        text, info = env.reset(seed=seed)
        texts, over = [text], False
        while not over:
            text, _, over, _, info = env.step(info["expert_action"])
            texts.append(text)
        assert "The End" in texts[-1]
        for text in texts:
            assert text
            assert not any(junk in text for junk in ("$$", "\n\n", ">", "RESTART", "[", "<", "-=  "))
            assert env.observation_space.contains(text)


def test_directions(make):
    """The task names the goal; the way to it only on request."""
    _, plain = make("coin").reset(seed=0)
    _, spelled = make("coin", directions=1).reset(seed=0)
    assert "coin" in plain["task"]
    assert len(spelled["task"]) > 2 * len(plain["task"])


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_same_seed_same_text(make, challenge, no_generator):
    first, second = make(challenge, expert=True), make(challenge, expert=True)
    for seed in range(N):
        assert play(first, seed) == play(second, seed) == play(first, seed)
        assert first.reset(seed=seed) == second.reset(seed=seed + N)
    assert play(first, 0) != play(first, 1)


def test_generation_does_not_depend_on_the_hash_seed(cache, tmp_path):
    """Two processes with other hash seeds make the same bytes, alone or after another game."""
    code = (
        "import json; from agentgym.envs.textworld import make_games, _games, check_difficulty\n"
        "for c, d in (('treasure', {'level': 4}), ('cooking', {'go': 1})):\n"
        "    [folder] = _games(c, 'train', [1], check_difficulty(c, d))\n"
        "    print((folder / 'digest.json').read_text())\n"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "AGENTGYM_CACHE": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed, folder in (("7", cache), ("123", tmp_path))
    ]
    assert out[0] == out[1]
    assert "game.z8" in out[0]
    for game in tmp_path.rglob("game.z8"):
        assert game.read_bytes()[0x12:0x18] == b"000000"  # not the day of compilation


def test_splits_are_disjoint(make):
    ranges = [set(range(first, first + 1_000_000)) for first in FIRST_GAME.values()]
    assert len(set.union(*ranges)) == 3_000_000
    env = make("treasure", admissible=False)
    for split in FIRST_GAME:
        make_games("treasure", split, N, **CHALLENGES["treasure"])
    texts = {split: {env.reset(seed=seed, options={"split": split})[0] for seed in range(N)} for split in FIRST_GAME}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["dev"]
    assert not texts["dev"] & texts["test"]


def test_two_processes_generate_the_same_game_at_once(tmp_path):
    code = (
        "from agentgym.envs.textworld import TextWorldEnv\nprint(repr(TextWorldEnv('treasure', level=2).reset(seed=1)))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "AGENTGYM_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    out = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert out[0] == out[1]
    [folder] = (tmp_path / "textworld").iterdir()
    assert [path.name for path in folder.iterdir()] == ["1"]
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["digest.json", "game.json", "game.z8"]


def test_broken_cache_is_repaired(make, cache):
    [folder] = make_games("treasure", n_games=1, **CHALLENGES["treasure"])
    before = (folder / "digest.json").read_text()
    text = make("treasure").reset(seed=0)[0]
    game = folder / "game.z8"
    game.write_bytes(game.read_bytes()[:1000])
    assert make("treasure").reset(seed=0)[0] == text
    assert (folder / "digest.json").read_text() == before
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_expert_wins(make, challenge, no_generator):
    env = make(challenge, expert=True)
    for seed in range(N):
        info, _ = follow(env, seed)
        assert info["success"]
        assert info["score"] == info["max_score"]
        assert info["expert_action"] is None
        info, steps = follow(env, seed, random_first=4)
        assert info["success"] or steps <= 4


def test_expert_with_a_small_bag_keeps_to_the_walkthrough(make):
    env = make("cooking", go=1, drop=1, recipe=2, take=2, open=0, n_games=1, expert=True)
    info, _ = follow(env, 0)
    assert info["success"]
    _, info = env.reset(seed=0)
    assert env.step("look")[-1]["expert_action"] == info["expert_action"]
    other = next(c for c in info["admissible_commands"] if c.startswith("take") and c != info["expert_action"])
    assert env.step(other)[-1]["expert_action"] is None


def test_expert_for_one_episode(make):
    env = make("coin")
    assert "expert_action" not in env.reset(seed=0)[1]
    assert env.reset(seed=0, options={"expert": True})[1]["expert_action"]
    assert "expert_action" not in env.reset(seed=0)[1]
    assert "admissible_commands" not in make("coin", admissible=False).reset(seed=0)[1]


def test_interleaved_and_threaded_equal_alone(make, no_generator):
    jobs = [(challenge, seed) for challenge in CHALLENGES for seed in range(N)]
    alone = {job: play(make(job[0], expert=True), job[1]) for job in jobs}
    threaded = {}

    def work(job):
        threaded[job] = play(make(job[0], expert=True), job[1])

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threaded == alone


BACKSLASH = chr(92)


@pytest.mark.parametrize(
    "action",
    [
        "",
        "dance",
        BACKSLASH,
        f"{BACKSLASH}x",
        "\x00",
        "日本 \ud800",
        "x" * 10_000,
        "quit",
        "Restart.",
        "save",
        "restore",
        "script",
        "transcription",
        "undo",
        "again",
        "version",
        "superbrief",
        "tw-extra-infos score",
        "<score>1</score>",
        "*** The End ***",
        "[taking coin - succeeded]",
    ],
)
def test_odd_commands_do_nothing(make, action, tmp_path, monkeypatch):
    """Some of these hang, crash or cheat the bare interpreter."""
    monkeypatch.chdir(tmp_path)
    env = make("coin", expert=True)
    _, before = env.reset(seed=0)
    text, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == before
    assert "$$" not in text
    assert not list(tmp_path.iterdir())
    assert follow(env, 0)[0]["success"]


def test_one_command_a_step(make):
    env = make("coin", expert=True)
    _, info = env.reset(seed=0)
    first = info["expert_action"]
    _, _, _, _, after_one = env.step(first)
    second = after_one["expert_action"]
    for joint in (f"{first} then {second}", f"{first.upper()}!"):
        env.reset(seed=0)
        assert env.step(joint)[-1] == after_one
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(f"{first}. {second}")
    assert not terminated
    assert info["expert_action"] in (first, second)


def test_cap_and_reset_needed(make):
    env = make("treasure", max_steps=2)
    with pytest.raises(ResetNeeded):
        env.step("look")
    env.reset(seed=0)
    assert [env.step("look")[3] for _ in range(2)] == [False, True]
    with pytest.raises(ResetNeeded):
        env.step("look")
    env.close()
    env.close()
    assert env.reset(seed=0)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"challenge": "coins"}, ["coins", "coin"]),
        ({"challenge": "coin", "lvl": 3}, ["lvl", "level"]),
        ({"challenge": "coin", "go": 6}, ["go", "level", "directions"]),
        ({"challenge": "coin", "level": 0}, ["level", "1 to 300"]),
        ({"challenge": "coin", "level": 180}, ["160", "100"]),
        ({"challenge": "cooking", "go": 5}, ["go", "(1, 6, 9, 12)"]),
        ({"challenge": "cooking", "take": 3}, ["take=3", "recipe=1"]),
        ({"split": "eval"}, ["eval"]),
        ({"n_games": 0}, ["n_games"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"render_mode": "human"}, ["human"]),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ConfigError) as caught:
        TextWorldEnv(**kwargs)
    assert all(word in str(caught.value) for word in words)


def test_bad_options_and_cache(make, tmp_path, monkeypatch):
    env = make("coin")
    for options in ({"split": "x"}, {"foo": 1}, {"level": 1000}):
        with pytest.raises(ConfigError):
            env.reset(seed=0, options=options)
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="AGENTGYM_CACHE"):
        env.reset(seed=0)


def test_generator_fails(make, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))
    monkeypatch.setitem(tw._MAKERS, "coin", "no-such-challenge")
    order = {"challenge": "no", "split": "train", "difficulty": DIFFICULTY["coin"], "seeds": [0]}
    with pytest.raises(EnvError, match="failed to generate"):
        tw._run_generator(tmp_path, order)


def test_engine_fails(make, monkeypatch):
    env = make("coin")
    env.reset(seed=0)
    env._game.close()
    with pytest.raises(EnvError):
        env.step("look")
    assert env.reset(seed=0)


def test_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(MissingDependency, match="textworld"):
        TextWorldEnv()


def test_no_secrets_in_info(make):
    for challenge in CHALLENGES:
        _, info = make(challenge).reset(seed=0)
        assert not {"expert_action", "policy_commands", "walkthrough", "extra.walkthrough"} & set(info)
        json.dumps(info)
