import os
import re
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
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, MissingDependency
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

pytest.importorskip("minigrid")

from agentgym.envs import babyai
from agentgym.envs.babyai import COMMANDS, FIRST_SEED, BabyAIEnv, levels, tell
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door, Wall, WorldObj
from minigrid.utils.baby_ai_bot import BabyAIBot

LEVELS = sorted(levels())
UNSOLVED = {  # by minigrid's bot in some or all missions
    "OpenDoorsOrderN2Debug",
    "OpenDoorsOrderN4Debug",
    "KeyInBox",
    "UnlockToUnlock",
    "PutNextS5N2Carrying",
    "PutNextS6N3Carrying",
    "PutNextS7N4Carrying",
}


def wander(env, seed, steps=25, options=None):
    """What an agent sees that draws from all commands."""
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=seed, options=options)]
    for _ in range(steps):
        seen.append(env.step(COMMANDS[rng.integers(len(COMMANDS) - 1)]))
        if seen[-1][2] or seen[-1][3]:
            break
    return seen


def follow(env, seed, noise=0.0, options=None):
    """Play the expert, with some random commands; the last info and the return."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed, options=options)
    total, over = 0.0, False
    while not over:
        commands = info["admissible_commands"]
        action = info["expert_action"]
        if action is None or rng.random() < noise:
            action = commands[rng.integers(len(commands))]
        _, reward, terminated, truncated, info = env.step(action)
        total, over = total + reward, terminated or truncated
    assert total == info["score"]
    return info, total


# ---- the text is the observation -------------------------------------------------------------------------


def read_place(words):
    """Column and row of '2 steps forward and 1 step left'."""
    place = {"forward": 0, "left": 0, "right": 0}
    for count, side in re.findall(r"(\d+) steps? (\w+)", words):
        place[side] = int(count)
    return 3 + place["right"] - place["left"], 6 - place["forward"]


def read_thing(words):
    """Minigrid's object of 'a locked red door'."""
    *state, colour, kind = words.split()[1:]
    if kind == "door":
        return Door(colour, state == ["open"], state == ["locked"])
    return WorldObj.decode(OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], 0)


def read_walls(words):
    """The cells of 'W; W; W', each a place, a line across or a line along."""
    for line in words.split("; "):
        if across := re.fullmatch(r"(.+) from (0|\d (?:left|right)) to (0|\d (?:left|right))", line):
            row = 6 if across[1] == "beside you" else read_place(across[1])[1]
            ends = [read_place(f"{end.replace(' ', ' steps ')}")[0] for end in across.groups()[1:]]
            yield from ((column, row) for column in range(ends[0], ends[1] + 1))
        elif along := re.fullmatch(r"(.+) from (\d) to (\d) forward", line):
            column = 3 if along[1] == "straight on" else read_place(along[1])[0]
            yield from ((column, 6 - forward) for forward in range(int(along[2]), int(along[3]) + 1))
        else:
            yield read_place(line)


def read(text):
    """The observation that the text tells, made by minigrid from the things and walls alone."""
    agent, things, walls = text.splitlines()
    facing, carried = re.fullmatch(r"You face (\w+) and carry (.+)\.", agent).groups()
    grid = Grid(7, 7)
    if walls != "You see no walls.":
        for cell in read_walls(re.fullmatch(r"Walls: (.+)\.", walls)[1]):
            grid.set(*cell, Wall())
    if things != "You see nothing but the rooms.":
        for thing in re.fullmatch(r"You see (.+)\.", things)[1].split(", "):
            name, place = re.fullmatch(r"(an? .*?(?:key|ball|box|door)) (.+)", thing).groups()
            assert grid.get(*read_place(place)) is None
            grid.set(*read_place(place), read_thing(name))
    seen = grid.process_vis((3, 6))
    grid.set(3, 6, None if carried == "nothing" else read_thing(carried))
    return grid.encode(seen), ["east", "south", "west", "north"].index(facing)


@pytest.mark.parametrize("level", LEVELS)
def test_text_holds_all_of_the_observation_and_no_more(level):
    """Minigrid's 7x7x3 view can be made again from the words, and the words are made from it alone."""
    env = BabyAIEnv(level)
    texts = {}
    for seed in range(3):
        first, info = env.reset(seed=seed)
        task, _, text = first.partition("\n\n")
        assert task == info["task"] == env._engine.mission
        rng = np.random.default_rng(seed)
        for _ in range(40):
            observation = env._engine.gen_obs()
            image, direction = read(text)
            assert np.array_equal(image, observation["image"])
            assert direction == observation["direction"]
            assert texts.setdefault(text, image.tobytes() + bytes([direction])) == image.tobytes() + bytes([direction])
            commands = info["admissible_commands"]
            text, _, terminated, truncated, info = env.step(commands[rng.integers(len(commands))])
            if terminated or truncated:
                break


def test_words():
    image = np.zeros((7, 7, 3), np.uint8)
    image[:, :, 0] = OBJECT_TO_IDX["empty"]
    image[3, 6] = OBJECT_TO_IDX["key"], COLOR_TO_IDX["green"], 0
    image[3, 5] = OBJECT_TO_IDX["ball"], COLOR_TO_IDX["red"], 0
    image[2, 4] = OBJECT_TO_IDX["door"], COLOR_TO_IDX["blue"], STATE_TO_IDX["open"]
    image[1:3, 0, 0] = image[5, 3:6, 0] = image[6, 6, 0] = OBJECT_TO_IDX["wall"]
    assert tell(image, 3) == (
        "You face north and carry a green key.\n"
        "You see a red ball 1 step forward, an open blue door 2 steps forward and 1 step left.\n"
        "Walls: 6 steps forward from 2 left to 1 left; 2 steps right from 1 to 3 forward; 3 steps right."
    )


@pytest.mark.parametrize("level", ["BossLevel", "KeyInBox", "PutNextS5N2Carrying", "UnlockPickupDist"])
def test_admissible_commands_are_those_that_do_something(level):
    """What minigrid's world and hands are after every command says which of them do."""
    env = BabyAIEnv(level)
    checked = 0
    for seed in range(4):
        seen = wander(env, seed, 40)
        for turn in range(len(seen)):
            info = seen[turn][-1]
            if turn == len(seen) - 1 and turn and (seen[turn][2] or seen[turn][3]):
                break
            useful = {"done"}
            for command in COMMANDS[:-1]:
                replay(env, seed, turn)
                before = state(env._engine)
                env.step(command)
                if state(env._engine) != before:
                    useful.add(command)
            assert info["admissible_commands"] == sorted(useful)
            checked += 1
            if turn == 12:
                break
    assert checked > 20


def replay(env, seed, turns):
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(turns):
        env.step(COMMANDS[rng.integers(len(COMMANDS) - 1)])


def state(engine):
    held = engine.carrying and engine.carrying.encode()
    return engine.grid.encode().tobytes(), tuple(engine.agent_pos), engine.agent_dir, held


# ---- levels, seeds, splits -------------------------------------------------------------------------------


def test_every_level_of_minigrid_is_there():
    assert len(LEVELS) == len([name for name in gym.registry if name.startswith("BabyAI-")]) >= 96
    assert {"GoToLocal", "GoToObjS6", "BossLevel"} <= set(LEVELS)


def test_gymnasium_checker():
    env = gym.make("agentgym/BabyAI-v0", level="PickupLoc", render_mode="ansi")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert not [str(w.message) for w in caught if "gymnasium" in str(w.filename)]
    text, info = env.reset(seed=1)
    assert env.render() == text
    assert env.observation_space.contains(text)
    assert set(info) == {"admissible_commands", "score", "max_score", "success", "task"}
    assert env.unwrapped.instructions
    env.close()


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_text(level):
    """In a new and in a used environment, and after another level."""
    used = BabyAIEnv(level)
    for seed in (0, 7):
        fresh = wander(BabyAIEnv(level), seed)
        assert wander(used, seed) == fresh
        used.reset(seed=seed, options={"level": "GoToObj"})
        assert wander(used, seed) == fresh
    assert used.reset(seed=3) == used.reset(seed=3 + 1_000_000)


def test_reset_without_seed_draws_from_np_random():
    texts = []
    for _ in range(2):
        env = BabyAIEnv()
        env.reset(seed=5)
        texts.append([env.reset()[0] for _ in range(6)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 6


def test_other_process_same_text():
    code = (
        "from agentgym.envs.babyai import BabyAIEnv\n"
        "env = BabyAIEnv('BossLevel', expert=True, max_steps=60); text, info = env.reset(seed=11); over = False\n"
        "while not over:\n"
        "    print(repr(text), info['expert_action']); text, _, a, b, info = env.step(info['expert_action'])\n"
        "    over = a or b\n"
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


@pytest.mark.parametrize("level", ["GoTo", "PutNextLocal", "BossLevel"])
def test_splits_are_disjoint(level):
    ranges = [set(range(first, first + 1_000_000)) for first in FIRST_SEED.values()]
    assert len(set.union(*ranges)) == 3_000_000
    env, worlds = BabyAIEnv(level), {}
    for split in FIRST_SEED:
        worlds[split] = set()
        for seed in range(60):
            text, _ = env.reset(seed=seed, options={"split": split})
            worlds[split].add((text, *state(env._engine)))
    assert not worlds["train"] & worlds["dev"]
    assert not worlds["train"] & worlds["test"]
    assert not worlds["dev"] & worlds["test"]


def test_options_hold_for_one_episode():
    env = BabyAIEnv("GoToLocal")
    usual = env.reset(seed=3)
    other = env.reset(seed=3, options={"level": "Unlock", "split": "test", "expert": True})
    assert other[1]["task"].startswith("open the ")
    assert other[1]["expert_action"] in COMMANDS
    assert env.reset(seed=3) == usual
    assert "expert_action" not in usual[1]


def test_threads_equal_serial_and_print_nothing(capfd):
    jobs = [(level, seed) for level in ("BossLevel", "PutNextLocal", "SynthLoc") for seed in range(4)]
    serial = {job: wander(BabyAIEnv(job[0], expert=True), job[1]) for job in jobs}
    threaded = {}

    def work(job):
        threaded[job] = wander(BabyAIEnv(job[0], expert=True), job[1])

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threaded == serial
    assert capfd.readouterr() == ("", "")


def test_rejected_layouts_are_logged_and_not_printed(caplog, capfd):
    """Import, construction and resets leave the standard streams alone, and print stays what it was."""
    caplog.set_level("DEBUG", logger=babyai.__name__)
    env = BabyAIEnv("BossLevel")
    for seed in range(60):
        env.reset(seed=seed)
    assert "Sampling rejected" in caplog.text
    assert capfd.readouterr() == ("", "")
    code = (
        "import agentgym.envs.babyai as b; e = b.BabyAIEnv('BossLevel'); [e.reset(seed=s) for s in range(60)]; print(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


# ---- expert ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", sorted(set(LEVELS) - UNSOLVED))
def test_expert_wins(level):
    env = BabyAIEnv(level, expert=True, max_steps=1200)
    for seed in range(4):
        info, total = follow(env, seed, options={"split": ("train", "test")[seed % 2]})
        assert info["success"]
        assert total == info["max_score"] == 1.0
        assert info["expert_action"] is None


@pytest.mark.parametrize("level", ["GoTo", "PutNextLocal", "Unlock", "KeyCorridorS3R2", "BossLevel"])
def test_expert_recovers(level):
    """With every fifth command a random one; minigrid's bot alone gives up in some of these missions."""
    env = BabyAIEnv(level, expert=True, max_steps=1200)
    assert sum(follow(env, seed, noise=0.2)[0]["success"] for seed in range(10)) >= 9


def test_the_experts_hint_is_the_bots():
    env = BabyAIEnv("Synth", expert=True)
    _, info = env.reset(seed=4)
    twin = gym.make(levels()["Synth"], disable_env_checker=True).unwrapped
    twin.reset(seed=4)
    bot, action, over = BabyAIBot(twin), None, False
    while not over:
        action = bot.replan(action)
        assert info["expert_action"] == COMMANDS[action]
        observation, reward, *_ = twin.step(action)
        text, mine, over, _, info = env.step(COMMANDS[action])
        assert text == tell(observation["image"], observation["direction"])
    assert reward > 0
    assert mine == 1.0


def test_a_plan_without_end_is_cut():
    """Minigrid's bot never returns in this mission."""
    env = BabyAIEnv("UnlockToUnlock", expert=True, max_steps=150)
    info, _ = follow(env, 4)
    assert "expert_action" in info


def test_expert_policy():
    with EnvPool("agentgym/BabyAI-v0", {"level": "PickupLoc"}) as pool:
        sure, _ = evaluate(pool, ExpertPolicy(), RolloutConfig(retries=0), 6)
        noisy, _ = evaluate(pool, ExpertPolicy(noise=0.3), RolloutConfig(retries=0), 6)
    assert sure.success.mean == sure.returns.mean == 1.0
    assert noisy.failed == 0
    assert noisy.success.mean > 0.5
    assert noisy.turns.mean > sure.turns.mean


# ---- rewards, ends, mistakes -----------------------------------------------------------------------------


def test_success_is_one_however_long_it_took():
    env = BabyAIEnv("GoToObj", expert=True)
    _, info = env.reset(seed=0)
    for _ in range(8):
        assert env.step("turn left")[1:4] == (0.0, False, False)
    reward = 0.0
    while not reward:
        _, reward, terminated, truncated, info = env.step(info["expert_action"])
    assert (reward, terminated, truncated, info["score"], info["success"]) == (1.0, True, False, 1.0, True)
    with pytest.raises(ResetNeeded):
        env.step("done")


def test_done_ends_a_mission_that_starts_at_its_goal():
    env = BabyAIEnv("GoToObjDoor", expert=True)
    found = 0
    for seed in range(100, 120):
        _, info = env.reset(seed=seed)
        if info["expert_action"] == "done":
            assert env.step("done")[1:3] == (1.0, True)
            found += 1
    assert found > 0


def test_a_strict_level_ends_with_a_mistake():
    env = BabyAIEnv("OpenDoorDebug", expert=True)
    ended = 0
    for seed in range(20):
        seen = wander(env, seed, 200)
        _, reward, terminated, _, info = seen[-1]
        if terminated and not reward:
            assert (info["success"], info["score"], info["expert_action"]) == (False, 0.0, None)
            ended += 1
    assert ended > 0


def test_cap():
    env = BabyAIEnv("GoToLocal", max_steps=3)
    env.reset(seed=0)
    assert [env.step(c)[3] for c in ("turn left", "dance", "turn left")] == [False, False, True]
    with pytest.raises(ResetNeeded):
        env.step("turn left")
    env.close()
    env.close()
    usual = BabyAIEnv("GoToLocal")
    usual.reset(seed=0)
    assert [usual.step("nothing")[3] for _ in range(64)] == [False] * 63 + [True]


def test_unknown_commands_do_nothing():
    env = BabyAIEnv("GoToLocal", expert=True)
    first, before = env.reset(seed=1)
    view = first.partition("\n\n")[2]
    for action in ("", "dance", "forward", "日本 \ud800", "x" * 100_000, "\x00", "go forward. go forward"):
        text, reward, terminated, truncated, info = env.step(action)
        assert text == f"Unknown command; the commands are: {', '.join(COMMANDS)}.\n{view}"
        assert (reward, terminated, truncated, info) == (0.0, False, False, before)
    left = env.step("turn left")
    env.reset(seed=1)
    assert env.step(" TURN\n left ")[0] == left[0]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"level": "GotoLocal"}, ["level", "GotoLocal", "GoToLocal"]),
        ({"level": "zzz"}, ["level", "zzz", *LEVELS]),
        ({"split": "tain"}, ["split", "tain", "train"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"render_mode": "human"}, ["human"]),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ConfigError) as caught:
        BabyAIEnv(**kwargs)
    assert all(word in str(caught.value) for word in words)


def test_bad_options():
    env = BabyAIEnv()
    for options, word in (({"split": "x"}, "split"), ({"level": "x"}, "level"), ({"foo": 1}, "foo")):
        with pytest.raises(ConfigError, match=word):
            env.reset(seed=0, options=options)
    assert env.reset(seed=0)


def test_package_missing():
    code = "import sys; sys.modules['minigrid'] = None\nfrom agentgym.envs.babyai import BabyAIEnv; BabyAIEnv()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"{MissingDependency.__name__}: minigrid is not installed" in done.stderr
    assert "agentgym-lab[babyai]" in done.stderr


def test_done_actions_are_refused():
    code = "from agentgym.envs.babyai import BabyAIEnv; BabyAIEnv()"
    environment = {**os.environ, "BABYAI_DONE_ACTIONS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "ConfigError: BABYAI_DONE_ACTIONS is set" in done.stderr
