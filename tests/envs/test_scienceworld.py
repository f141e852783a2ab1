import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import agentgym  # noqa: F401
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EnvError, MissingDependency
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

pytest.importorskip("scienceworld")
pytestmark = [
    pytest.mark.java,
    pytest.mark.skipif(not os.environ.get("JAVA_HOME") and not shutil.which("java"), reason="java is missing"),
]

from agentgym.envs import jvm  # noqa: E402
from agentgym.envs.scienceworld import ENGINE, JAVA_OPTIONS, SIMPLIFICATIONS, SPLITS, ScienceWorldEnv  # noqa: E402
from scienceworld.constants import ID2TASK  # noqa: E402

TASKS = list(ID2TASK.values())
LONG = {  # the engine's own solution of these takes more than 100 steps
    "inclined-plane-friction-unnamed-surfaces",
    "mendelian-genetics-known-plant",
    "mendelian-genetics-unknown-plant",
}
SAMPLE = ["boil", "find-animal", "power-component", "lifespan-shortest-lived", "grow-plant"]


@pytest.fixture
def make():
    """Make environments that are closed when the test ends."""
    made = []

    def make(*args, **kwargs):
        made.append(ScienceWorldEnv(*args, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="module", autouse=True)
def one_jvm():
    """A simulator that lives as long as this module, so that not every test starts Java."""
    env = ScienceWorldEnv()
    yield env
    env.close()


def follow(env, **reset):
    """Play the expert; what an agent sees of it, and the return."""
    text, info = env.reset(**reset)
    seen, total, over = [(text, info)], 0.0, False
    while not over and info["expert_action"] is not None:
        text, reward, terminated, truncated, info = env.step(info["expert_action"])
        seen.append((text, reward, terminated, truncated, info))
        total, over = total + reward, terminated or truncated
    assert total == pytest.approx(info["score"])
    return seen


def wander(env, seed, steps, options=None):
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


def test_gymnasium_checker():
    env = gym.make("agentgym/ScienceWorld-v0", task="find-plant", render_mode="ansi")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert not [str(w.message) for w in caught if "gymnasium" in str(w.filename)]
    text, info = env.reset(seed=1)
    assert env.render() == text
    assert env.observation_space.contains(text)
    assert set(info) == {"score", "max_score", "success", "task", "task_name", "variation"}
    assert (info["score"], info["max_score"], info["success"]) == (0.0, 1.0, False)
    assert text.startswith(info["task"] + "\n\nThis room is called the ")
    assert env.unwrapped.instructions
    env.close()


def test_every_task_loads_and_splits_are_disjoint(make):
    env = make()
    names = set()
    for number, task in enumerate(TASKS):
        text, info = env.reset(seed=number)
        assert info["task_name"] == task
        assert info["variation"] in env._globals.variations[task]["train"]
        assert text.startswith("Your task is to ")
        names.add(info["task"])
        splits = [set(env._globals.variations[task][split]) for split in SPLITS]
        assert all(splits)
        assert sum(map(len, splits)) == len(set.union(*splits)) <= env._globals.counts[task]
    assert len(names) > 25


def test_seeds_draw_variations_of_the_split(make):
    env = make("find-plant")
    for split in SPLITS:
        numbers = env._globals.variations["find-plant"][split]
        for seed in (0, 3, len(numbers) + 3):
            _, info = env.reset(seed=seed, options={"split": split})
            assert info["variation"] == numbers[seed % len(numbers)]
    anywhere = make()
    _, info = anywhere.reset(seed=30 * 7 + 4)
    assert (info["task_name"], info["variation"]) == (TASKS[4], env._globals.variations[TASKS[4]]["train"][7])
    draws = []
    for _ in range(2):
        anywhere.reset(seed=5)
        infos = [anywhere.reset()[1] for _ in range(4)]
        draws.append([(info["task_name"], info["variation"]) for info in infos])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 4


def test_options_hold_for_one_episode(make):
    env = make("find-animal", variation=3)
    usual = env.reset(seed=0)
    options = {"task": "boil", "variation": 1, "simplification": "openDoors", "expert": True}
    text, info = env.reset(seed=0, options=options)
    assert (info["task_name"], info["variation"]) == ("boil", 1)
    assert "(that is open)" in text
    assert "(that is closed)" not in text
    assert info["expert_action"]
    assert env.reset(seed=0) == usual
    assert usual[1]["variation"] == 3
    assert "(that is open)" not in usual[0]


def test_simplifications_are_those_of_the_engine(make):
    env = make("boil")
    assert set(env._server.getPossibleSimplifications().split(", ")) | {"easy"} == set(SIMPLIFICATIONS)
    env.reset(seed=0, options={"simplification": "easy"})
    text, *_ = env.step("teleport to kitchen")
    assert text == "You teleport to the kitchen."
    env.reset(seed=0)
    assert env.step("teleport to kitchen")[0] == "No known action matches that input."


# ---- the same as the package's own environment -----------------------------------------------------------

STOCK = """
import json, os, sys
os.environ["JAVA_TOOL_OPTIONS"] = sys.argv[1]
from scienceworld import ScienceWorldEnv
env = ScienceWorldEnv("", envStepLimit=10**6)
for line in sys.stdin:
    task, variation, simplification, actions = json.loads(line)
    env.load(task, variation, simplification)
    text, info = env.reset()
    seen = [[env.get_task_description(), text, sorted(set(info["valid"]))]]
    for action in actions:
        text, reward, done, info = env.step(action)
        seen.append([text, info["score"], done, sorted(set(info["valid"]))])
        if done:
            break
    print(json.dumps(seen), flush=True)
env.close()
"""


def test_transcripts_equal_the_stock_environment(make):
    """Texts, scores, ends and valid commands, with another simulator at work between the steps."""
    jobs = []
    env = make(expert=True, admissible=True, max_steps=1000)
    other = make("mendelian-genetics-known-plant", variation=2, simplification="easy")
    plan = [("grow-fruit", 5, ""), ("melt", 1, "easy"), ("find-animal", 7, "openContainers")]
    for task, variation, simplification in plan:
        options = {"task": task, "variation": variation, "simplification": simplification}
        for seed in (None, 1):
            rng = np.random.default_rng(seed)
            other.reset(seed=0)
            text, info = env.reset(seed=0, options=options)
            seen, actions, over = [[text, info["admissible_commands"]]], [], False
            while not over and len(actions) < (1000 if seed is None else 8):
                commands = info["admissible_commands"]
                action = info["expert_action"] if seed is None else commands[rng.integers(len(commands))]
                other.step("wait1")
                text, _, terminated, truncated, info = env.step(action)
                over = terminated or truncated
                actions.append(action)
                seen.append([text, info["score"], over, info["admissible_commands"]])
            jobs.append(([task, variation, simplification, actions], seen))
    done = subprocess.run(
        [sys.executable, "-c", STOCK, " ".join(JAVA_OPTIONS)],
        input="\n".join(json.dumps(job) for job, _ in jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    stock = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(stock) == len(jobs)
    for (_, mine), theirs in zip(jobs, stock, strict=True):
        task, look, valid = theirs[0]
        assert mine[0] == [f"{task.strip()}\n\n{look.strip()}", valid]
        assert mine[1:] == [[text.strip(), score / 100, over, valid] for text, score, over, valid in theirs[1:]]
    assert sum(seen[-1][1:3] == [1.0, True] for _, seen in jobs) >= len(plan)


def test_other_process_same_text(make):
    env = make(expert=True, max_steps=30)
    code = (
        "from agentgym.envs.scienceworld import ScienceWorldEnv\n"
        "env = ScienceWorldEnv(expert=True, max_steps=30)\n"
        "for seed in (0, 22):\n"
        "    text, info = env.reset(seed=seed); over = False\n"
        "    while not over:\n"
        "        print(repr(text), info)\n"
        "        text, _, end, cut, info = env.step(info['expert_action']); over = end or cut\n"
        "env.close()\n"
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
    here = [f"{seen[0]!r} {seen[-1]}" for s in (0, 22) for seen in follow(env, seed=s)[:-1]]
    assert out[0].splitlines() == here
    assert len(here) > 30


# ---- several at once -------------------------------------------------------------------------------------


def test_interleaved_instances_do_not_touch(make):
    """Random numbers, object numbers and simplifications are global in the engine, and not here."""
    jobs = [("grow-fruit", 0, ""), ("grow-fruit", 1, "easy"), ("grow-fruit", 0, "openDoors")]
    options = [{"task": t, "variation": v, "simplification": s} for t, v, s in jobs]
    envs = [make(expert=True, max_steps=60) for _ in jobs]
    alone = [follow(env, options=o, seed=0) for env, o in zip(envs, options, strict=True)]
    seen = [[env.reset(seed=0, options=o)] for env, o in zip(envs, options, strict=True)]
    for _ in range(60):
        for env, so_far in zip(envs, seen, strict=True):
            if len(so_far) == 1 or not (so_far[-1][2] or so_far[-1][3]):
                so_far.append(env.step(so_far[-1][-1]["expert_action"]))
    assert seen == alone
    assert [len(s) for s in seen] == [61, 61, 61]


def test_threads_equal_serial(make):
    jobs = [(task, simplification) for task in ("find-animal", "boil") for simplification in ("", "easy")]
    serial, threaded = {}, {}

    def work(results, job, env):
        options = {"task": job[0], "simplification": job[1]}
        results[job] = wander(env, 3, 8, options)

    for job in jobs:
        work(serial, job, make(admissible=True))
    threads = [threading.Thread(target=work, args=(threaded, job, make(admissible=True))) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threaded == serial


# ---- expert ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SAMPLE)
def test_the_engines_solution_scores_one(make, task):
    env = make(task, expert=True, max_steps=400)
    for split in ("train", "test"):
        seen = follow(env, seed=1, options={"split": split})
        assert seen[-1][2]
        assert seen[-1][-1]["success"]
        assert seen[-1][-1]["score"] == 1.0
        assert seen[-1][-1]["expert_action"] is None
        assert "admissible_commands" not in seen[-1][-1]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_engines_solution_of_every_task(make, task):
    """One variation of each split; three tasks always take more than 100 steps."""
    env = make(task, expert=True, max_steps=1000)
    for split in SPLITS:
        seen = follow(env, seed=1, options={"split": split})
        assert seen[-1][-1]["success"], split
        assert len(seen) - 1 > 100 or task not in LONG


def test_hints_end_where_the_agent_leaves_the_solution(make):
    env = make("find-animal", expert=True)
    _, info = env.reset(seed=0)
    hint = info["expert_action"]
    for free in ("task", "help", "objects", "dance", ""):
        assert env.step(free)[-1]["expert_action"] == hint
    text, *_, info = env.step(hint.upper() + "  ")
    assert text == "The door is now open."
    assert info["expert_action"] not in (None, hint)
    assert "admissible_commands" not in info
    *_, info = env.step("look around")
    assert info["expert_action"] is None
    assert "look around" in info["admissible_commands"]
    *_, info = env.step("look around")
    assert info["expert_action"] is None


@pytest.mark.parametrize("task", ["freeze", "grow-fruit"])
def test_commands_that_keep_the_hint_leave_the_world_alone(make, task):
    env = make(task, expert=True, max_steps=1000)
    alone = follow(env, seed=0)
    free, rng = ("task", "help", "objects", "open xyzzy"), np.random.default_rng(0)
    _, info = env.reset(seed=0)
    seen, over, asides = [], False, 0
    while not over:
        while not info["expert_action"].isdigit() and rng.random() < 0.3:
            *_, info = env.step(free[rng.integers(len(free))])
            asides += 1
        seen.append(env.step(info["expert_action"]))
        over, info = seen[-1][2] or seen[-1][3], seen[-1][-1]
    assert [step[:3] for step in seen] == [step[:3] for step in alone[1:]]
    assert asides > 5


def test_expert_policy():
    """Through the rollout; with noise it goes astray, and plays at random from there."""
    config = RolloutConfig(retries=0)
    with EnvPool("agentgym/ScienceWorld-v0", {"task": "find-animal", "max_steps": 30}) as pool:
        found, _ = evaluate(pool, ExpertPolicy(), config, 3, options={"split": "train"})
    assert found.success.mean == 1.0
    assert found.returns.mean == pytest.approx(1.0)
    kwargs = {"task": "find-animal", "max_steps": 12, "admissible": True}
    with EnvPool("agentgym/ScienceWorld-v0", kwargs) as pool:
        noisy, games = evaluate(pool, ExpertPolicy(noise=0.5), config, 3, options={"split": "train"})
    assert noisy.failed == 0
    assert noisy.success.mean < 1
    assert all(game.turns for game in games)


# ---- rewards, ends, mistakes -----------------------------------------------------------------------------


def test_a_wrong_focus_loses(make):
    env = make("boil", variation=0)
    env.reset(seed=0)
    text, reward, terminated, truncated, info = env.step("focus on agent")
    assert text == "You focus on the agent."
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert (info["score"], info["success"]) == (-1.0, False)
    with pytest.raises(ResetNeeded):
        env.step("look around")


def test_reset_task_takes_the_score_back(make):
    env = make("boil", variation=0, expert=True)
    _, info = env.reset(seed=0)
    total = 0.0
    while info["score"] == 0:
        _, reward, *_, info = env.step(info["expert_action"])
        total += reward
    assert total > 0
    text, reward, *_, info = env.step("reset task")
    total += reward
    assert "reset" in text
    assert total == pytest.approx(info["score"])


def test_cap_and_reset_needed(make):
    env = make("boil", max_steps=2)
    with pytest.raises(ResetNeeded):
        env.step("look around")
    env.reset(seed=0)
    assert [env.step("look around")[2:4] for _ in range(2)] == [(False, False), (False, True)]
    with pytest.raises(ResetNeeded):
        env.step("look around")


def test_unknown_commands_do_nothing(make):
    env = make("find-plant")
    first, _ = env.reset(seed=1)
    odd = ["", " \n ", "dance", "\\", '"', "日本 \ud800", "x" * 20_000, "\x00", "look around; look around"]
    for action in odd:
        text, reward, terminated, truncated, info = env.step(action)
        assert text == "No known action matches that input."
        assert (reward, terminated, truncated, info["score"]) == (0.0, False, False, 0.0)
    assert first.endswith(env.step("  look\taround ")[0])


def test_admissible_commands_only_on_request(make):
    _, info = make("find-plant", admissible=True).reset(seed=1)
    assert info["admissible_commands"] == sorted(set(info["admissible_commands"]))
    assert {"look around", "open cupboard", "task"} <= set(info["admissible_commands"])
    assert "admissible_commands" not in make("find-plant").reset(seed=1)[1]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"task": "boli"}, ["task", "boli", "boil"]),
        ({"task": "zzz"}, ["task", "zzz", *TASKS]),
        ({"split": "tain"}, ["split", "tain", "train"]),
        ({"variation": 3}, ["variation", "task", "boil"]),
        ({"task": "boil", "variation": 30}, ["variation of boil", "0 to 29", "30"]),
        ({"task": "boil", "variation": -1}, ["variation", "-1"]),
        ({"task": "boil", "variation": "two"}, ["variation", "two", "integer"]),
        ({"simplification": "opendoors"}, ["simplification", "opendoors", "openDoors"]),
        ({"simplification": "easy,openDoors"}, ["easy", "alone"]),
        (
            {"task": "power-component", "simplification": "noElectricalAction"},
            ["noElectricalAction", "power-component"],
        ),
        ({"simplification": "noElectricalAction"}, ["noElectricalAction", "drawn"]),
        ({"simplification": None}, ["simplification", "None"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"render_mode": "human"}, ["human"]),
    ],
)
def test_bad_arguments(make, kwargs, words):
    with pytest.raises(ConfigError) as caught:
        make(**kwargs)
    assert all(word in str(caught.value) for word in words)
    if not {"max_steps", "render_mode"} & set(kwargs):
        with pytest.raises(ConfigError):
            make().reset(seed=0, options=kwargs)


def test_bad_options(make):
    env = make("boil")
    with pytest.raises(ConfigError, match="reset option 'max_step'"):
        env.reset(seed=0, options={"max_step": 1})
    assert env.reset(seed=0)


# ---- Java ------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
from agentgym.errors import EnvError
from agentgym.envs.scienceworld import ENGINE, ScienceWorldEnv
first, second = ScienceWorldEnv("boil"), ScienceWorldEnv("boil")
first.reset(seed=0)
print(ENGINE.current.process.pid, flush=True)
if sys.argv[1] == "close":
    java = ENGINE.current
    first.close()
    first.close()
    second.reset(seed=0)
    second.step("wait1")
    assert not java.dead
    second.close()
    assert java.dead and ENGINE.current is None
    try:
        second.reset(seed=0)
    except EnvError as error:
        print(error, flush=True)
if sys.argv[1] == "fork" and os.fork() == 0:
    try:
        first.step("look around")
    except EnvError as error:
        print(error, flush=True)
    time.sleep(60)
if sys.argv[1] != "exit":
    time.sleep(60)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("end", ["close", "exit", "kill", "fork"])
def test_no_java_outlives_us(end):
    """Neither the last close, nor an exit, nor when we are killed, nor when we are killed and a child lives on."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, end], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        java = int(child.stdout.readline())
        if end == "close":
            assert "closed" in child.stdout.readline()
        if end == "fork":
            assert "before a fork" in child.stdout.readline()
        if end in ("kill", "fork"):
            assert alive(java)
            child.kill()
        if end != "close":
            child.wait(20)
        deadline = time.monotonic() + 10
        while alive(java) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(java)
    finally:
        child.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_sixty_four_simulators_fit(make):
    """Each needs about 2 MB, because the table of all tasks is let go after a load."""
    envs = [make() for _ in range(64)]
    for number, env in enumerate(envs):
        env.reset(seed=number)
    for env in envs:
        assert env.step("inventory")[0].startswith("In your inventory, you see:")


def test_java_dies(make, monkeypatch):
    monkeypatch.setattr(jvm, "ANSWER_S", 5.0)
    env, other = make("boil"), make("boil")
    env.reset(seed=0)
    other.reset(seed=0)
    pid = ENGINE.current.process.pid
    os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.001)
    for broken in (env, other):
        with pytest.raises(EnvError, match="died or hung"):
            broken.step("look around")
        with pytest.raises(EnvError):
            broken.reset(seed=0)
    assert make("boil").reset(seed=0)


def test_java_missing():
    code = (
        "import os; os.environ['PATH'] = '/nonexistent'; os.environ.pop('JAVA_HOME', None)\n"
        "from agentgym.envs.scienceworld import ScienceWorldEnv; ScienceWorldEnv()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(r"MissingDependency: java is not installed \(ScienceWorld .*apt-get install", done.stderr)


def test_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "scienceworld.constants", None)
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[scienceworld\]"):
        ScienceWorldEnv()
