import functools
import gc
import http.server
import json
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.error import ResetNeeded

import agentgym  # noqa: F401
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EnvError, MissingDependency
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

pytest.importorskip("textworld")
pytest.importorskip("fast_downward")

import textworld
from agentgym.envs import alfworld_engine, alfworld_fetch, alfworld_games
from agentgym.envs.alfworld import ALFWorldEnv
from agentgym.envs.alfworld_games import SPLITS, TASK_TYPES, games, official_split, task_types
from agentgym.envs.alfworld_text import GOAL, Grammar
from textworld.envs.pddl import PddlEnv

SAMPLE = Path(__file__).parents[1] / "data" / "alfworld_sample.jsonl.xz"
EVERY = frozenset(TASK_TYPES.values())
LARGE = os.environ.get("AGENTGYM_TEST_ALFWORLD")
needs_large = pytest.mark.skipif(not LARGE, reason="AGENTGYM_TEST_ALFWORLD is not set to packed games of ALFWorld")


@pytest.fixture
def env():
    with ALFWorldEnv(data=str(SAMPLE), expert=True) as made:
        yield made


def content(game):
    """A ``game.tw-pddl``."""
    return {
        "pddl_domain": game.domain,
        "grammar": game.grammar.replace(GOAL, game.goal),
        "pddl_problem": game.problem,
        "walkthrough": list(game.walkthrough),
        "solvable": True,
    }


def seed_of(wanted, split="train"):
    """The seed that plays the first game of a kind."""
    return next(k for k, game in enumerate(games(SAMPLE, split, EVERY)) if game.task_type == wanted)


def stream(env, seed, steps=15, options=None):
    """All that comes back while drawing from the admissible commands."""
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=seed, options=options)]
    for _ in range(steps):
        commands = seen[-1][-1]["admissible_commands"]
        seen.append(env.step(commands[rng.integers(len(commands))]))
        if seen[-1][2] or seen[-1][3]:
            break
    return seen


def follow(env, seed, noise=0.0, options=None):
    """Play the expert, with some random commands."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed, options=options)
    total, over, turns = 0.0, False, 0
    while not over:
        commands, action = info["admissible_commands"], info["expert_action"]
        assert action in commands or (noise and action is None)
        if action is None or rng.random() < noise:
            action = commands[rng.integers(len(commands))]
        _, reward, terminated, truncated, info = env.step(action)
        total, over, turns = total + reward, terminated or truncated, turns + 1
    assert total == info["score"] == info["success"]
    return info, turns


# ---- the text is textworld's -----------------------------------------------------------------------------


class Stock(PddlEnv):
    """textworld's environment with the names that ALFWorld gives: numbers against the order of the ids."""

    def load(self, data):
        super().load(data)
        kinds = {}
        for name in sorted(self._entity_infos):
            if "_bar_" in name:
                kinds.setdefault(name.split("_bar_")[0] + ("basin" if "basin" in name else ""), []).append(name)
        for kind, names in kinds.items():
            for place, name in enumerate(names):
                self._entity_infos[name].name = f"{kind} {len(names) - place}"


SCRIPTS = {
    "pick_heat_then_place_in_recep": ["look", "inventory", "go to microwave 1", "open microwave 1", "open microwave 1"],
    "pick_two_obj_and_place": ["help", "examine", "go to nowhere 1", "go to toilet 1", "look"],
    "look_at_obj_in_light": [],
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_texts_and_commands_are_those_of_textworld(kind, env):
    game = games(SAMPLE, "train", EVERY)[seed_of(kind)]
    stock = Stock(textworld.EnvInfos(won=True, admissible_commands=True))
    stock.load(content(game))
    state = stock.reset()
    text, info = env.reset(seed=seed_of(kind))
    assert text == state.feedback
    assert info["admissible_commands"] == state.admissible_commands
    rng = np.random.default_rng(0)
    plan, verbs = list(SCRIPTS[kind]), set()
    for turn in range(28):
        if turn == 16:
            plan = [info["expert_action"]]
        commands = info["admissible_commands"]
        calm = [c for c in commands if not c.startswith("go to")] if turn % 3 else commands
        command = plan.pop(0) if plan else calm[rng.integers(len(calm))]
        if turn > 16 and rng.random() < 0.7:
            command = info["expert_action"]
        state, _, _ = stock.step(command)
        text, _, terminated, _, info = env.step(command)
        assert (text, info["admissible_commands"], terminated) == (
            state.feedback,
            state.admissible_commands,
            state.won,
        ), command
        verbs.add(command.split()[0])
        if terminated:
            break
    assert {"go", "take", "examine"} <= verbs


def test_all_verbs_are_told_as_textworld_tells_them(env):
    """What hot, clean, cool, switched on and off things look like, which random play seldom sees."""
    seed = next(k for k, g in enumerate(games(SAMPLE, "train", EVERY)) if "heat" in g.name and "apple" in g.goal)
    game = games(SAMPLE, "train", EVERY)[seed]
    stock = Stock(textworld.EnvInfos(won=True, admissible_commands=True))
    stock.load(content(game))
    stock.reset()
    env.reset(seed=seed)
    place, thing = next((c, c.split(" from ")[0][5:]) for c in game.walkthrough if c.startswith("take"))
    said = []
    for command in [
        f"go to {place.split(' from ')[1]}",
        f"open {place.split(' from ')[1]}",
        place,
        "inventory",
        "go to microwave 1",
        f"heat {thing} with microwave 1",
        f"examine {thing}",
        "go to sinkbasin 1",
        f"clean {thing} with sinkbasin 1",
        f"examine {thing}",
        "go to fridge 1",
        "open fridge 1",
        f"cool {thing} with fridge 1",
        f"examine {thing}",
        "examine fridge 1",
        f"move {thing} to fridge 1",
        "close fridge 1",
        "close fridge 1",
        "look",
    ]:
        state, _, _ = stock.step(command)
        text, *_ = env.step(command)
        assert text == state.feedback, command
        said.append(text)
    assert f"This is a hot {thing}." in said
    assert f"This is a hot and clean {thing}." in said
    assert f"This is a cool and clean {thing}." in said


def test_using_a_lamp_twice(env):
    seed = seed_of("look_at_obj_in_light")
    game = games(SAMPLE, "train", EVERY)[seed]
    stock = Stock(textworld.EnvInfos(won=True, admissible_commands=True))
    stock.load(content(game))
    stock.reset()
    env.reset(seed=seed)
    lamp = next(c.removeprefix("use ") for c in game.walkthrough if c.startswith("use"))
    there = next(c for c in game.walkthrough if c.startswith("go to"))
    spoken = [*game.walkthrough[: game.walkthrough.index(f"use {lamp}")], f"use {lamp}", f"use {lamp}", there]
    for command in spoken:
        state, _, _ = stock.step(command)
        text, _, terminated, _, _ = env.step(command)
        assert (text, terminated) == (state.feedback, state.won), command
        if terminated:
            break
    assert "turn on" in text or "arrive" in text


# ---- games, splits, seeds --------------------------------------------------------------------------------


def test_every_walkthrough_wins(env):
    for split in SPLITS:
        for seed, game in enumerate(games(SAMPLE, official_split(split), EVERY)):
            info, turns = follow(env, seed, options={"split": split})
            assert info["success"], game.id
            assert turns <= len(game.walkthrough)
            assert info["game"] == game.id
            assert (info["task"], info["task_type"]) == (game.goal, game.task_type)


@pytest.mark.parametrize(("ours", "theirs"), SPLITS.items())
def test_splits_have_two_names(env, ours, theirs):
    first, info = env.reset(seed=3, options={"split": ours})
    assert (first, info) == env.reset(seed=3, options={"split": theirs})
    assert info["game"].startswith(f"{theirs}/")
    assert f"Your task is to: {info['task']}." in first


def test_a_seed_is_a_game(env):
    names = [env.reset(seed=seed)[1]["game"] for seed in range(24)]
    assert names[:12] == names[12:]
    assert len(set(names)) == 12
    assert env.reset(seed=2**63 + 5)[1]["game"] == names[(2**63 + 5) % 12]
    env.reset(seed=7)
    drawn = [env.reset()[1]["game"] for _ in range(20)]
    env.reset(seed=7)
    assert drawn == [env.reset()[1]["game"] for _ in range(20)]
    assert len(set(drawn)) > 5


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [
        (1, {1}),
        ("pick_two_obj_and_place", {6}),
        ([2, "pick_clean_then_place_in_recep"], {2, 3}),
        ((4, 5), {4, 5}),
        (None, set(TASK_TYPES)),
    ],
)
def test_task_types(chosen, kinds):
    with ALFWorldEnv(task_types=chosen, data=str(SAMPLE)) as env:
        seen = {env.reset(seed=seed)[1]["task_type"] for seed in range(2 * len(kinds))}
    assert seen == {TASK_TYPES[kind] for kind in kinds}


def test_task_types_by_option(env):
    info = env.reset(seed=0, options={"task_types": [6]})[1]
    assert info["task_type"] == TASK_TYPES[6]
    assert env.reset(seed=0)[1]["game"] == games(SAMPLE, "train", EVERY)[0].id


@needs_large
def test_the_evaluation_games():
    found = {split: games(LARGE, split, EVERY) for split in ("valid_seen", "valid_unseen")}
    assert {split: len(them) for split, them in found.items()} == {"valid_seen": 140, "valid_unseen": 134}
    assert Counter(g.task_type for g in found["valid_unseen"])[TASK_TYPES[1]] == 24
    with ALFWorldEnv("test", expert=True, data=LARGE) as env:
        assert all(follow(env, seed)[0]["success"] for seed in range(12))


@needs_large
@pytest.mark.slow
@pytest.mark.parametrize(("split", "noise"), [("dev", 0.0), ("test", 0.0), ("dev", 0.25), ("test", 0.25)])
def test_the_expert_wins_all_evaluation_games(split, noise):
    with ALFWorldEnv(split, expert=True, data=LARGE, max_steps=200) as env:
        count = len(games(LARGE, official_split(split), EVERY))
        assert all(follow(env, seed, noise)[0]["success"] for seed in range(count))


# ---- the expert ------------------------------------------------------------------------------------------


def test_the_expert_goes_on_after_deviations():
    with ALFWorldEnv("train", expert=True, data=str(SAMPLE), max_steps=200) as env:
        longer = 0
        for seed in range(12):
            info, turns = follow(env, seed, noise=0.5)
            assert info["success"]
            longer += turns > len(env._game.walkthrough)
    assert longer > 6


def test_the_expert_takes_back_what_was_done(env):
    seed = seed_of("pick_heat_then_place_in_recep")
    _, info = env.reset(seed=seed)
    while not info["expert_action"].startswith("heat"):
        held = info["expert_action"]
        _, _, _, _, info = env.step(held)
    thing = info["expert_action"].split(" with ")[0][5:]
    _, _, _, _, info = env.step("open microwave 1")
    _, _, _, _, info = env.step(f"move {thing} to microwave 1")
    assert info["expert_action"] == f"take {thing} from microwave 1"
    _, _, _, _, info = env.step("look")
    assert info["expert_action"] == f"take {thing} from microwave 1"
    _, _, _, _, info = env.step("close microwave 1")
    assert info["expert_action"] == "open microwave 1"


def test_a_hint_comes_only_when_asked_for():
    with ALFWorldEnv(data=str(SAMPLE)) as env:
        assert "expert_action" not in env.reset(seed=0)[1]
        assert "expert_action" not in env.step("look")[-1]
        assert "expert_action" in env.reset(seed=0, options={"expert": True})[1]
        assert "expert_action" not in env.reset(seed=0)[1]


def test_looking_for_a_plan_changes_nothing(env):
    with ALFWorldEnv(data=str(SAMPLE)) as plain:
        for seed in range(6):
            for mine, other in zip(stream(env, seed, 30), stream(plain, seed, 30), strict=True):
                assert mine[0] == other[0]
                assert {k: v for k, v in mine[-1].items() if k != "expert_action"} == other[-1]


def test_a_game_without_walkthrough_is_planned(tmp_path):
    game = games(SAMPLE, "train", frozenset({TASK_TYPES[1]}))[0]
    folder = tmp_path / "json_2.1.1" / "train" / game.name / game.trial
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(json.dumps({**content(game), "walkthrough": None}))
    with ALFWorldEnv(expert=True, data=str(tmp_path)) as env:
        info, turns = follow(env, 0)
    assert info["success"]
    assert turns <= len(game.walkthrough)


def test_expert_policy():
    with EnvPool("agentgym/ALFWorld-v0", {"split": "dev", "data": str(SAMPLE)}) as pool:
        sure, _ = evaluate(pool, ExpertPolicy(), RolloutConfig(retries=0), 6)
        noisy, _ = evaluate(pool, ExpertPolicy(noise=0.3), RolloutConfig(retries=0), 6)
    assert sure.success.mean == sure.returns.mean == noisy.success.mean == 1.0
    assert noisy.turns.mean > sure.turns.mean


# ---- ends, mistakes --------------------------------------------------------------------------------------


def test_what_cannot_be_done_costs_a_step():
    with ALFWorldEnv(data=str(SAMPLE), max_steps=3) as env:
        _, info = env.reset(seed=0)
        for action in ("dance", " ", "go to moon 1"):
            text, reward, terminated, truncated, after = env.step(action)
            assert (text, reward, terminated) == ("Nothing happens.", 0.0, False)
            assert after["admissible_commands"] == info["admissible_commands"]
        assert truncated
        with pytest.raises(ResetNeeded):
            env.step("look")


def test_success_at_the_last_step_is_no_truncation():
    game = games(SAMPLE, "train", EVERY)[0]
    with ALFWorldEnv(data=str(SAMPLE), max_steps=len(game.walkthrough)) as env:
        env.reset(seed=0)
        *_, last = [env.step(command) for command in game.walkthrough]
    assert last[1:4] == (1.0, True, False)


def test_white_space_round_a_command_is_dropped_as_in_the_package(env):
    env.reset(seed=0)
    assert env.step("  look\n")[0].startswith("You are")
    assert env.step("Look")[0] == "Nothing happens."


def test_it_can_be_used_after_close(env):
    first = env.reset(seed=1)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("look")
    assert env.reset(seed=1) == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "valid"}, r"unknown split 'valid': did you mean"),
        ({"split": None}, "unknown split"),
        ({"task_types": 7}, r"unknown task type 7: choose from 1 \(pick_and_place_simple\)"),
        ({"task_types": True}, "unknown task type True"),
        ({"task_types": []}, "task_types is empty"),
        ({"task_types": ["pick"]}, "unknown task type 'pick'"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"render_mode": "human"}, "unknown render_mode"),
        ({"data": "/nowhere"}, "data=/nowhere: neither a .jsonl.xz file nor a folder"),
        ({"data": __file__}, "cannot be read as packed games of ALFWorld"),
        ({"split": "valid_train", "data": str(SAMPLE)}, "has no games of split 'valid_train'"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ALFWorldEnv(**arguments)


@pytest.mark.parametrize("options", [{"splt": "dev"}, {"split": "x"}, {"task_types": "x"}, {"seed": 1}])
def test_wrong_options_leave_the_environment_usable(env, options):
    with pytest.raises(ConfigError, match="unknown"):
        env.reset(seed=0, options=options)
    assert env.reset(seed=0)


def test_no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("ALFWORLD_DATA")
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"python -m agentgym\.envs\.alfworld_fetch.*ALFWORLD_DATA"):
        ALFWorldEnv()
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="ALFWORLD_DATA="):
        ALFWorldEnv()


def test_package_missing():
    code = "import sys; sys.modules['fast_downward'] = None; from agentgym.envs import alfworld; alfworld.ALFWorldEnv()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"{MissingDependency.__name__}: fast_downward is not installed" in done.stderr
    assert "agentgym-lab[alfworld]" in done.stderr


@pytest.mark.parametrize("cut", [0, 1000, 20_000])
def test_a_cut_file(tmp_path, cut):
    path = tmp_path / "cut.jsonl.xz"
    path.write_bytes(SAMPLE.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="cannot be read as packed games"):
        ALFWorldEnv(data=str(path))


# ---- files -----------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path):
    """The layout of ALFWorld with the games of the sample, and with games that it leaves out."""
    for split in SPLITS.values():
        for game in games(SAMPLE, split, EVERY):
            write(tmp_path, split, game.name, game.trial, content(game))
    one = content(game)
    write(tmp_path, "train", "pick_and_place_with_movable_recep-Mug-Cup-Shelf-1", "trial_T1", one)
    write(tmp_path, "train", "pick_and_place_simple-AppleSliced-None-Shelf-1", "trial_T1", one)
    write(tmp_path, "train", "pick_and_place_simple-Mug-None-Shelf-1", "trial_T1", {**one, "solvable": False})
    return tmp_path


def write(root, split, name, trial, game):
    folder = root / "json_2.1.1" / split / name / trial
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(json.dumps(game))
    (folder / "traj_data.json").write_text("{}")


def test_official_layout_and_packed_file_are_the_same_games(official):
    for split in SPLITS.values():
        packed = games(SAMPLE, split, EVERY)
        assert games(official, split, EVERY) == games(official / "json_2.1.1", split, EVERY) == packed
    with ALFWorldEnv(data=str(SAMPLE)) as packed, ALFWorldEnv(data=str(official)) as folder:
        assert stream(packed, 3) == stream(folder, 3)


def test_a_broken_file_of_the_official_layout_is_named(official):
    path = next((official / "json_2.1.1" / "train").glob("pick_two*/*/game.tw-pddl"))
    path.write_text('{"solvable": true}')
    with pytest.raises(ConfigError, match=rf"{path.parent.name}/game.tw-pddl is not a game of ALFWorld"):
        ALFWorldEnv(data=str(official))


def archive_of(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*.*"):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_download(official, tmp_path, monkeypatch):
    """The command fetches, packs and puts the games where the environment looks."""
    served = tmp_path / "served"
    served.mkdir()
    archive_of(official, served / "games.zip")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cache = tmp_path / "cache"
        monkeypatch.setenv("AGENTGYM_CACHE", str(cache))
        monkeypatch.delenv("ALFWORLD_DATA")
        target = alfworld_games.cache_file()
        url = f"http://127.0.0.1:{server.server_port}/games.zip"
        assert alfworld_fetch.fetch(target, url) == {"train": 12, "valid_seen": 6, "valid_unseen": 6}
        with pytest.raises(ConfigError, match=r"cannot download .*404.*ALFWORLD_DATA"):
            alfworld_fetch.fetch(target, url + "x")
        server.shutdown()
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert games(None, "train", EVERY) == games(SAMPLE, "train", EVERY)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_packing_what_is_at_hand(official, tmp_path, kind):
    source = official if kind == "folder" else archive_of(official, tmp_path / "games.zip")
    target = tmp_path / "out" / "games.jsonl.xz"
    command = [sys.executable, "-m", "agentgym.envs.alfworld_fetch", "--from", str(source), "--to", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{target}: train 12, valid_seen 6, valid_unseen 6\n"
    assert sorted(game.id for game in alfworld_games.from_file(target)) == sorted(
        game.id for game in alfworld_games.from_file(SAMPLE)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pddl_domain": "(define (domain other))"}, "another domain or grammar"),
        ({"pddl_problem": None}, "lacks pddl_problem"),
    ],
)
def test_packing_broken_games_leaves_nothing(official, tmp_path, change, words):
    path = next((official / "json_2.1.1" / "train").glob("pick_two*/*/game.tw-pddl"))
    broken = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
    path.write_text(json.dumps(broken))
    target = tmp_path / "out" / "games.jsonl.xz"
    command = [sys.executable, "-m", "agentgym.envs.alfworld_fetch", "--from", str(official), "--to", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert path.parent.name in done.stderr
    assert words in done.stderr
    assert list(target.parent.iterdir()) == []


def test_nothing_to_pack(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"PK")
    for source in (tmp_path / "no.zip", tmp_path / "gone.zip"):
        with pytest.raises(ConfigError, match="neither a folder nor a zip file"):
            alfworld_fetch.pack(source, tmp_path / "out.xz")


# ---- engine ----------------------------------------------------------------------------------------------


def test_threads_play_as_one_does():
    seeds = [(seed, split) for seed in range(4) for split in ("train", "dev", "test")]
    with ALFWorldEnv(data=str(SAMPLE), expert=True) as env:
        alone = [stream(env, seed, 25, {"split": split}) for seed, split in seeds]
    alfworld_engine.forget()

    def play(order):
        with ALFWorldEnv(data=str(SAMPLE), expert=True) as env:
            return stream(env, order[0], 25, {"split": order[1]})

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(play, seeds * 3)) == alone * 3


def test_an_instance_takes_no_more_with_every_game():
    """All games of the sample, again and again, with deviations and hints."""
    process = psutil.Process()
    with ALFWorldEnv(data=str(SAMPLE), expert=True) as env:

        def play(resets):
            for seed in range(resets):
                stream(env, seed, 3)
            gc.collect()
            return process.memory_info().rss

        play(800)  # what is remembered of games has been seen then
        maps, files = len(process.memory_maps()), process.num_fds()  # takes megabytes itself
        before = play(800)
        grown = (play(800) - before) / 800
        assert grown < 1024, f"{grown:.0f} bytes a reset"
        assert (len(process.memory_maps()), process.num_fds()) <= (maps + 5, files)


def test_closed_instances_leave_their_library_to_the_next():
    idle = len(alfworld_engine._idle)
    for _ in range(50):
        made = [ALFWorldEnv(data=str(SAMPLE)) for _ in range(3)]
        made[0].reset(seed=0)
        made[1].close()
        del made
    assert len(alfworld_engine._idle) == max(idle, 3)


def test_a_process_with_several_instances_ends_well():
    """An engine that unloads its library takes the process down at its end."""
    code = (
        "import sys; sys.argv = ['mine', 'x']\n"
        "from agentgym.envs.alfworld import ALFWorldEnv\n"
        "made = [ALFWorldEnv() for _ in range(3)]\n"
        "for env in made: env.reset(seed=0); env.step('look')\n"
        "made[1].close()\n"
        "print(sys.argv, made[0].step('look')[0][:3])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "['mine', 'x'] You\n"), done.stderr


def test_a_game_is_translated_once(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))
    alfworld_engine.forget()
    count = Counter()
    translate = alfworld_engine._translate

    def counted(*arguments, **settings):
        count["translations"] += 1
        return translate(*arguments, **settings)

    monkeypatch.setattr(alfworld_engine, "_translate", counted)
    made = [ALFWorldEnv(data=str(SAMPLE)) for _ in range(4)]
    for env in made:
        env.reset(seed=0)
    made[0].step(made[0]._commands[0])
    assert made[0]._text != made[1]._text
    assert count["translations"] == 1
    (kept,) = (tmp_path / "alfworld" / "translated").iterdir()
    for broken in (kept.read_bytes()[:-9], b"", b'{"types": 3}\n' + kept.read_bytes().split(b"\n", 1)[1]):
        kept.write_bytes(broken)
        alfworld_engine.forget()
        assert made[0].reset(seed=0)[0] == made[1].reset(seed=0)[0]
    assert count["translations"] == 4
    alfworld_engine.forget()
    for command in ("look", *made[1]._commands[:3]):
        assert len({env.reset(seed=0)[0] + env.step(command)[0] for env in made}) == 1
    assert count["translations"] == 4
    for env in made:
        env.close()


def test_a_grammar_may_not_compute_at_will():
    game = games(SAMPLE, "train", EVERY)[0]
    for trick in ("__import__('os').system('true')", "o.__class__", "o.name * 9", "(lambda: o)()"):
        bad = game.grammar.replace("{o.indefinite + ' ' + o.name | holds", "{" + trick + " | holds")
        assert bad != game.grammar
        with pytest.raises(ConfigError, match="grammar of a game"):
            Grammar(bad)


def test_a_problem_that_is_no_pddl_is_an_error_of_the_environment(tmp_path):
    with lzma.open(SAMPLE, "rt") as file:
        head, line = file.readline().strip(), file.readline()
    row = json.loads(line) | {"problem": "(define (problem x"}
    path = tmp_path / "bad.jsonl.xz"
    with lzma.open(path, "wt") as file:
        file.write(f"{head}\n{json.dumps(row)}\n")
    with ALFWorldEnv(data=str(path)) as env, pytest.raises(EnvError, match=row["trial"]):
        env.reset(seed=0)
    with ALFWorldEnv(data=str(SAMPLE)) as env:
        assert env.reset(seed=0)


def test_it_is_registered():
    with gym.make("agentgym/ALFWorld-v0", split="dev") as env:
        assert env.reset(seed=0)[1]["game"].startswith("valid_seen/")
    assert task_types("pick_and_place_simple") == {TASK_TYPES[1]}
