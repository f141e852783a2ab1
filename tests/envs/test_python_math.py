"""PythonMath: every answer is computed by three methods; answers are read strictly; boxes that fail are retried."""

from __future__ import annotations

import ast
import datetime
import functools
import itertools
import json
import math
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs import python_math
from agentgym.envs.python_math import PythonMathEnv, is_answer, make_problem
from agentgym.envs.python_math_problems import TEMPLATES
from agentgym.sandboxes import Limits
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st

import agentgym  # noqa: F401
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, SandboxError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.tool_calls import Call, canonical

ID = "agentgym/PythonMath-v0"


@pytest.fixture(scope="module", params=["docker", "bubblewrap"])
def backend(request):
    """Every backend that can be had here."""
    request.getfixturevalue("docker_host" if request.param == "docker" else "bubblewrap")
    return request.param


@pytest.fixture(scope="module")
def env(backend):
    """One environment for all tests of a backend."""
    made = PythonMathEnv(backend=backend)
    yield made
    made.close()


@pytest.fixture
def quick(bubblewrap):
    """An environment of a test's own, where the backend does not matter."""
    made = PythonMathEnv(backend="bubblewrap")
    yield made
    made.close()


def python(code):
    return canonical([Call("python", {"code": code})])


def submit(answer):
    return canonical([Call("submit", {"answer": str(answer)})])


# ---- a third method for every answer ---------------------------------------------------------------------


def leibniz(matrix):
    """The determinant, by all permutations."""
    total = 0
    for order in itertools.permutations(range(len(matrix))):
        inversions = sum(a > b for a, b in itertools.combinations(order, 2))
        total += (-1) ** inversions * math.prod(row[column] for row, column in zip(matrix, order, strict=True))
    return total


def coprime_sum(n, m):
    primes = [p for p in range(2, m + 1) if m % p == 0 and all(p % q for q in range(2, p))]
    numbers = np.arange(1, n + 1)
    return int(numbers[np.all([numbers % p != 0 for p in primes], axis=0)].sum())


def power_tower(a, b, c, m):
    """Walk along the powers of a until they repeat, and find b**c in the cycle."""
    powers, power = [], 1 % m
    while power not in powers:
        powers.append(power)
        power = power * a % m
    start, e = powers.index(power), b**c
    return powers[e] if e < len(powers) else powers[start + (e - start) % (len(powers) - start)]


def congruences(moduli, rests):
    x = np.arange(1, math.prod(moduli) + 1)
    return int(x[np.all([x % m == r for m, r in zip(moduli, rests, strict=True)], axis=0)][0])


def blocked_paths(rows, columns, blocked):
    """From the number of all paths between two cells: those that meet the blocked cells for the first time at each."""

    def free(start, end):
        down, right = end[0] - start[0], end[1] - start[1]
        return math.comb(down + right, down) if down >= 0 and right >= 0 else 0

    first = {}
    for cell in sorted(blocked):
        first[cell] = free((0, 0), cell) - sum(count * free(other, cell) for other, count in first.items())
    goal = (rows - 1, columns - 1)
    return free((0, 0), goal) - sum(count * free(cell, goal) for cell, count in first.items())


def coin_ways(amount, coins):
    """Multiply the power series of the coins."""
    product = np.zeros(amount + 1, dtype=object)
    product[0] = 1
    for coin in coins:
        series = np.zeros(amount + 1, dtype=object)
        series[::coin] = 1
        product = np.convolve(product, series)[: amount + 1]
    return int(product[amount])


def dice_sum(faces, least):
    """Count the rolls of the first dice and of the others, and put them together."""

    def counts(dice):
        rolls = itertools.product(*(range(1, sides + 1) for sides in dice))
        return np.bincount(np.fromiter(map(sum, rolls), int))

    left, right = counts(faces[:2]), counts(faces[2:])
    good = sum(int(a) * int(b) for i, a in enumerate(left) for j, b in enumerate(right) if i + j >= least)
    return Fraction(good, math.prod(faces))


def spanning_trees(nodes, edges):
    """Delete an edge or contract it."""

    @functools.cache
    def count(edges, parts):
        if parts == 1:
            return 1
        if not edges:
            return 0
        (u, v), rest = edges[0], edges[1:]
        merged = tuple((u if a == v else a, u if b == v else b) for a, b in rest)
        return count(rest, parts) + count(tuple(e for e in merged if e[0] != e[1]), parts - 1)

    return count(tuple(edges), nodes)


def determinant(matrix):
    return leibniz(matrix)


def linear_system(matrix, right):
    """Solved in floating point, and the nearest fraction with the denominator that Cramer's rule gives."""
    whole = leibniz(matrix)
    return Fraction(round(float(np.linalg.solve(np.array(matrix, float), right).sum()) * whole), whole)


def knapsack(weights, values, capacity):
    chosen = np.array(list(itertools.product((0, 1), repeat=len(weights))))
    return int((chosen @ np.array(values))[chosen @ np.array(weights) <= capacity].max())


def shortest_path(edges, goal):
    """Floyd (1962) and Warshall (1962)."""
    far = np.full((goal + 1, goal + 1), np.inf)
    for u, v, length in edges:
        far[u, v] = far[v, u] = length
    for k in range(goal + 1):
        far = np.minimum(far, far[:, [k]] + far[[k], :])
    return int(far[0, goal])


def distinct_substrings(word):
    return sum(len({word[i : i + size] for i in range(len(word) - size + 1)}) for size in range(1, len(word) + 1))


def josephus(people, step):
    circle, place = list(range(1, people + 1)), 0
    while len(circle) > 1:
        place = (place + step - 1) % len(circle)
        del circle[place]
    return circle[0]


def life(rows, columns, alive, steps):
    grid = np.zeros((rows, columns), int)
    grid[tuple(zip(*alive, strict=True))] = 1
    around = [d for d in itertools.product((-1, 0, 1), repeat=2) if d != (0, 0)]
    for _ in range(steps):
        near = sum(np.roll(grid, d, (0, 1)) for d in around)
        grid = ((near == 3) | ((near == 2) & (grid == 1))).astype(int)
    return int(grid.sum())


def weekdays(first, last, weekday, day):
    """Zeller's congruence for every month that has the day."""
    names = ("Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    count = 0
    for year, month in itertools.product(range(int(first[:4]), int(last[:4]) + 1), range(1, 13)):
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        days = 28 + leap if month == 2 else 30 if month in (4, 6, 9, 11) else 31
        if day > days or not first <= f"{year}-{month:02d}-{day:02d}" <= last:
            continue
        m, y = (month + 12, year - 1) if month < 3 else (month, year)
        count += names[(day + 13 * (m + 1) // 5 + y + y // 4 - y // 100 + y // 400) % 7] == weekday
    return count


def recurrence(n, m, p, q, r):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, (p * b + q * a + r) % m
    return a % m


def cubic_root(a, b):
    """Cardano's formula."""
    root = math.sqrt(b * b / 4 + a**3 / 27)
    u = (b / 2 + root) ** (1 / 3)
    return u - a / (3 * u)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_by_another_method(name, level):
    for seed in range(12):
        problem = make_problem(name, np.random.default_rng(seed), level)
        again = globals()[name](**problem.numbers)
        if isinstance(problem.answer, float):
            assert abs(again - problem.answer) < 1e-7
        else:
            assert again == problem.answer, problem
            assert type(problem.answer) in (int, Fraction)


def test_there_is_a_third_method_for_every_template():
    assert len(TEMPLATES) >= 12
    assert all(callable(globals().get(name)) for name in TEMPLATES)
    assert weekdays("2000-02-01", "2000-03-01", "Tuesday", 29) == 1  # the leap day of 2000
    assert weekdays("1900-01-01", "1900-12-31", "Thursday", 29) == 2  # and none in 1900


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_question_says_all_that_was_drawn(name):
    for seed in range(5):
        problem = make_problem(name, np.random.default_rng(seed), 2)
        for value in problem.numbers.values():
            assert str(value) in problem.text
        ast.parse(problem.plan[0].arguments["code"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_levels_and_seeds_make_other_problems(name):
    texts = {make_problem(name, np.random.default_rng(seed), level).text for seed in range(50) for level in (1, 2, 3)}
    assert len(texts) > 140


def test_the_splits_have_their_own_problems(quick):
    seen = {
        split: {quick.reset(seed=seed, options={"split": split})[0] for seed in range(300)}
        for split in ("train", "dev", "test")
    }
    assert all(len(texts) >= 299 for texts in seen.values())
    for one, other in itertools.combinations(seen.values(), 2):
        assert len(one & other) <= 1  # the small problems of level 1 can be drawn twice


# ---- episodes in the box ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_expert_solves_it_in_the_box(env, name):
    for level in (1, 2, 3):
        _, info = env.reset(seed=level, options={"task": name, "level": level, "expert": True, "split": "dev"})
        assert (info["task"], info["level"]) == (name, level)
        _, reward, terminated, _, info = env.step(info["expert_action"])
        assert (reward, terminated, info["success"]) == (0.0, False, False)
        text, reward, terminated, truncated, info = env.step(info["expert_action"])
        assert (text, reward, terminated, truncated) == ("[submitted]\nRight.", 1.0, True, False)
        assert (info["success"], info["score"], info["expert_action"]) == (True, 1.0, None)


def test_a_wrong_answer_ends_the_episode_with_nothing(env):
    for answer in ("-1234567", "", "I do not know", "1/0"):
        env.reset(seed=1)
        text, reward, terminated, _, info = env.step(submit(answer))
        assert (text, reward, terminated, info["success"]) == ("[submitted]\nWrong.", 0.0, True, False)
        with pytest.raises(ResetNeeded):
            env.step(submit(answer))


def test_what_is_no_call_costs_a_step_and_nothing_else(env):
    env.max_steps = 4
    try:
        env.reset(seed=1)
        assert "no tool call" in env.step("The answer is 3.")[0]
        assert "there is no tool 'bash'" in env.step('{"name": "bash", "arguments": {"command": "ls"}}')[0]
        assert env.step('<tool_call>\n{"name": "python", "arguments": {"code": "1+1"}}\n</tool_call>')[0] == "2"
        text, reward, terminated, truncated, info = env.step("hm")
        assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
        assert "no tool call" in text
    finally:
        env.max_steps = 12


def test_several_calls_in_one_answer_are_made_in_order_until_the_submission(env):
    env.reset(seed=3, options={"task": "josephus", "level": 1})
    calls = [Call("python", {"code": "x = 20"}), Call("python", {"code": "print(x + 1)"}), Call("nope", {})]
    text, *_, info = env.step(canonical(calls))
    assert text.startswith(
        "[call 1 of 3: python]\n[no output]\n[call 2 of 3: python]\n21\n[call 3 of 3: nope]\n[error: "
    )
    answer = env._problem.answer
    calls = [Call("submit", {"answer": str(answer)}), Call("submit", {"answer": "0"})]
    text, reward, terminated, *_, info = env.step(canonical(calls))
    assert (text, reward, terminated, info["success"]) == (
        "[call 1 of 2: submit]\n[submitted]\nRight.",
        1.0,
        True,
        True,
    )


def test_one_episode_leaves_nothing_to_the_next(env):
    env.reset(seed=1)
    env.step(python("x = 1\nopen('f', 'w').write('a')\nimport os\nos.environ['A'] = 'b'"))
    env.reset(seed=1)
    assert "NameError" in env.step(python("x"))[0]
    assert env.step(python("import os\nprint(os.listdir(), os.environ.get('A'))"))[0] == "[] None"


def test_neither_answer_nor_code_is_where_the_agent_can_look(env):
    observation, info = env.reset(seed=7, options={"task": "determinant", "level": 3})
    answer, code = str(env._problem.answer), env._problem.plan[0].arguments["code"]
    assert "expert_action" not in info
    for told in (observation, env.instructions, json.dumps(info), json.dumps(env.tools)):
        assert answer not in told
        assert code not in told


def test_an_environment_goes_on_after_its_box_was_lost(env):
    env.reset(seed=1)
    env._box.close()
    with pytest.raises(SandboxError):
        env.step(python("1"))
    with pytest.raises(ResetNeeded):
        env.step(python("1"))
    env.reset(seed=1)
    env._box.close()
    env.reset(seed=1)
    assert env.step(python("1 + 1"))[0] == "2"


class Breaks(PythonMathEnv):
    """Loses its box in an episode, as often as is left."""

    left = 0

    def step(self, action):
        if Breaks.left > 0 and self._steps == 0:
            Breaks.left -= 1
            self._box.close()
        return super().step(action)


@pytest.fixture
def breaking(bubblewrap):
    gym.register("test/Breaks-v0", entry_point=Breaks, disable_env_checker=True)
    yield "test/Breaks-v0"
    del gym.registry["test/Breaks-v0"]


def test_a_box_that_is_lost_is_a_sandbox_error_and_the_episode_is_tried_again(breaking):
    config = RolloutConfig(codec="tools", concurrency=2, retries=1)
    with EnvPool(breaking, {"backend": "bubblewrap"}) as pool:
        Breaks.left = 2
        rollout = Rollout(pool, ExpertPolicy(), config)
        groups = rollout.collect(group_tasks(0, 0, 3, 2))
        assert len(groups) == 3
        assert all(t.success and t.episode_return == 1 for g in groups for t in g.trajectories)
        assert rollout.stats.errors == {"sandbox_error": 2}
        assert rollout.stats.retries == 2
        assert "sandbox is lost" in rollout.stats.messages["sandbox_error"]
        Breaks.left = 2
        rollout = Rollout(pool, ExpertPolicy(), RolloutConfig(codec="tools", concurrency=1, retries=0))
        groups = rollout.collect(group_tasks(0, 0, 3, 2))  # both episodes of the first group fail
        assert (len(groups), rollout.stats.dropped_groups) == (2, 1)
        assert all(t.episode_return == 1 for g in groups for t in g.trajectories)


def test_a_lost_box_in_another_process_is_a_sandbox_error_too(bubblewrap, monkeypatch):
    """The class of the error is one of the sandboxes' own, which the core knows by the class it derives from."""
    with EnvPool(ID, {"backend": "docker"}, processes=1) as pool:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        rollout = Rollout(pool, ExpertPolicy(), RolloutConfig(retries=0))
        assert rollout.collect(group_tasks(0, 0, 1, 1)) == []
        assert list(rollout.stats.errors) == ["sandbox_error"], rollout.stats.messages


def test_the_codec_of_the_registry_is_used(backend):
    with EnvPool(ID, {"backend": backend, "task": "knapsack"}) as pool:
        result, played = evaluate(pool, ExpertPolicy(), RolloutConfig(), 4)
        assert result.success.mean == 1.0
        first = played[0].turns[0]
        assert first.text.startswith('<tool_call>\n{"name": "python", "arguments": {"code": "')
        assert json.loads(first.action)["name"] == "python"
        assert "<tools>" in played[0].messages[0]["content"]
        assert "<tool_call>" in played[0].messages[0]["content"]
        wrong, played = evaluate(pool, CannedPolicy([submit("0")]), RolloutConfig(), 4)
        assert (wrong.success.mean, wrong.episodes, wrong.failed) == (0.0, 4, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "determinat"}, "unknown task 'determinat': did you mean determinant"),
        ({"level": 4}, "level is 4"),
        ({"split": "tset"}, "unknown split 'tset'"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"backend": "dokcer"}, "unknown sandbox backend 'dokcer': did you mean docker"),
        ({"limits": {"memory": 3}}, "unknown sandbox limit 'memory': did you mean memory_mb"),
        ({"limits": {"memory_mb": 3}}, "sandbox limit memory_mb is 3"),
        ({"timeout": 0}, "timeout is 0"),
        ({"max_output": 1}, "max_output is 1"),
        ({"render_mode": "human"}, "unknown render_mode 'human'"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ConfigError, match=message):
        PythonMathEnv(**{"backend": "bubblewrap", **changes})


def test_wrong_options(quick):
    for options, message in (
        ({"tsk": "life"}, "unknown reset option 'tsk': did you mean task"),
        ({"task": "live"}, "unknown task 'live': did you mean life"),
        ({"level": 0}, "level is 0"),
        ({"split": ""}, "unknown split ''"),
    ):
        with pytest.raises(ConfigError, match=message):
            quick.reset(seed=0, options=options)


def test_limits_reach_the_box(bubblewrap):
    for limits in ({"memory_mb": 128, "pids": 20}, Limits(memory_mb=128, pids=20)):
        env = PythonMathEnv(backend="bubblewrap", limits=limits, timeout=0.3)
        env.reset(seed=0)
        assert (env._box.limits.memory_mb, env._box.limits.pids) == (128, 20)
        assert "[ended after 0.3 seconds: the time limit]" in env.step(python("while True: pass"))[0]
        env.close()
        env.close()


# ---- reading answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (
            42,
            ["42", " 42\n", "+42", "042", "42.0", "84/2"],
            ["41", "", "42 apples", "4 2", "42.5", "4e1", "٤٢", "0x2a"],
        ),
        (-7, ["-7"], ["7", "--7", "- 7"]),
        (Fraction(3, 7), ["3/7", "6/14"], ["0.428571428571", "3 / 7", "3/0", "1/0", "/7"]),
        (Fraction(1, 4), ["1/4", "0.25", "0.250"], ["0.2500001"]),
        (2.5, ["2.5", "2.500009", "2.49999", "25e-1", "2.5E0"], ["2.50002", "nan", "inf", "5/2", "1e9999", ""]),
        (1234567.0, ["1234567", "1234567."], ["1234567.1", "1e999", "-1e999"]),
    ],
)
def test_answers_are_read_strictly(expected, right, wrong):
    assert [text for text in right if not is_answer(expected, text)] == []
    assert [text for text in wrong if is_answer(expected, text)] == []


@given(
    st.text(st.characters(codec="utf-8"))
    | st.sampled_from(["9" * 10**6, "1e" + "9" * 400, "1/" + "0" * 300, "9" * 301])
)
def test_no_answer_raises_or_takes_long(text):
    for expected in (3, Fraction(1, 3), 0.5):
        is_answer(expected, text)


def test_decimal_answers_are_not_integers_by_accident():
    answers = [make_problem("cubic_root", np.random.default_rng(s), 1).answer for s in range(40)]
    assert sum(abs(a - round(a)) < python_math.TOLERANCE for a in answers) < 4


def test_dates_are_days_of_the_calendar():
    for seed in range(40):
        numbers = make_problem("weekdays", np.random.default_rng(seed), 3).numbers
        assert datetime.date.fromisoformat(numbers["first"]) < datetime.date.fromisoformat(numbers["last"])
