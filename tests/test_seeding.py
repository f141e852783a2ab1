"""The seed tree: every node its own, the same for ever, and nothing random outside it."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentgym import seeding
from agentgym.rollout import group_tasks

ROOT = Path(__file__).parents[1]
SOURCES = [
    file
    for folder in ("agentgym", "envs", "trainers", "sandboxes", "examples", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
SEED = st.integers(0, 2**31 - 1)
INDEX = st.integers(0, 1000)


def test_golden_values():
    """A run can be repeated with a later version only if these never change."""
    assert [seeding.env_seed(0, 0, 0), seeding.env_seed(0, 0, 1)] == [1839233791, 872880836]
    assert [seeding.env_seed(0, 1, 0), seeding.env_seed(7, 3, 2)] == [623452746, 1987535085]
    assert [seeding.member_seed(0, 0, 0, 0), seeding.member_seed(0, 0, 0, 1)] == [431171633, 393881241]
    assert [seeding.member_seed(7, 3, 2, 1), seeding.eval_seed(0, 0)] == [411396816, 980756183]
    assert seeding.eval_seed(12345, 255) == 1750706464
    assert [seeding.init_seed(0), seeding.init_seed(7)] == [1842996703, 1921100091]
    assert seeding.data_rng(0, 0).permutation(8).tolist() == [1, 4, 7, 2, 5, 6, 0, 3]
    assert seeding.data_rng(0, 1).permutation(8).tolist() == [1, 7, 5, 2, 4, 0, 3, 6]
    assert seeding.turn_rng(5, 0).random(2).tolist() == [0.7435838372455151, 0.5029325266184953]
    assert seeding.turn_rng(5, 1).integers(1000, size=3).tolist() == [775, 712, 871]


@given(SEED, INDEX, INDEX, INDEX)
def test_seeds_are_functions_of_their_path_and_fit_31_bits(run, step, group, member):
    def draw():
        return [
            seeding.env_seed(run, step, group),
            seeding.member_seed(run, step, group, member),
            seeding.eval_seed(run, step),
            seeding.init_seed(run),
        ]

    seeds = draw()
    np.random.default_rng(run).random(100)
    assert draw() == seeds
    assert all(isinstance(s, int) and 0 <= s < 2**31 for s in seeds)


def test_a_hundred_thousand_draws_collide_no_more_than_chance():
    """Two of n numbers of 31 bits are equal n² / 2³² times on average: 2.3 times here; ten is one run in 10⁴."""
    n = 100_000
    seeds = [seeding.env_seed(0, s, g) for s in range(200) for g in range(100)]
    seeds += [seeding.member_seed(0, s, g, m) for s in range(50) for g in range(100) for m in range(10)]
    seeds += [seeding.eval_seed(0, e) for e in range(20_000)]
    seeds += [seeding.init_seed(r) for r in range(n - len(seeds))]
    assert n - len(set(seeds)) < 10
    bits = np.unpackbits(np.array(seeds, dtype=">u4").view(np.uint8).reshape(-1, 4), axis=1)[:, 1:]
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / n**0.5


def test_branches_of_the_same_path_are_independent():
    """No branch is a shift or copy of another, nor of its own neighbour in run, step, group or member."""
    n = 4000
    columns = {
        "env": [seeding.env_seed(0, k, 0) for k in range(n)],
        "group": [seeding.env_seed(0, 0, k) for k in range(n)],
        "run": [seeding.env_seed(k, 0, 0) for k in range(n)],
        "member": [seeding.member_seed(0, k, 0, 0) for k in range(n)],
        "last": [seeding.member_seed(0, 0, 0, k) for k in range(n)],
        "eval": [seeding.eval_seed(0, k) for k in range(n)],
        "init": [seeding.init_seed(k) for k in range(n)],
        "turn": [int(seeding.turn_rng(0, k).integers(2**31)) for k in range(n)],
        "stream": [int(seeding.turn_rng(k, 0).integers(2**31)) for k in range(n)],
        "data": [int(seeding.data_rng(0, k).integers(2**31)) for k in range(n)],
    }
    table = np.array(list(columns.values()), dtype=float)
    shifted = np.concatenate([table[:, 1:], table[:, :-1]])
    correlation = np.corrcoef(shifted) - np.eye(len(shifted))
    assert np.abs(correlation).max() < 5 / n**0.5
    assert len(set(table[:, 1:].ravel())) > 0.999 * table[:, 1:].size
    # A path is not the path with a zero behind it, nor are step and group exchanged.
    assert seeding.member_seed(0, 1, 2, 0) != seeding.env_seed(0, 1, 2)
    assert seeding.env_seed(0, 1, 2) != seeding.env_seed(0, 2, 1)
    assert seeding.eval_seed(0, 0) != seeding.env_seed(0, 0, 0) != seeding.init_seed(0)


def test_streams_of_turns_do_not_overlap():
    drawn = [seeding.turn_rng(seed, turn).integers(2**63, size=8) for seed in range(200) for turn in range(10)]
    assert len(np.unique(drawn)) == 200 * 10 * 8


@given(SEED, st.integers(0, 50), st.integers(1, 5), st.integers(1, 64), st.integers(0, 20))
def test_a_group_shares_its_world_and_no_member_its_dice(run, step, groups, size, first):
    tasks = group_tasks(run, step, groups, size, first)
    for g in range(first, first + groups):
        members = [t for t in tasks if t.index == g]
        assert [t.member for t in members] == list(range(size))
        assert {t.env_seed for t in members} == {seeding.env_seed(run, step, g)}
        assert len({t.sampling_seed for t in members}) == size
        assert len({t.group for t in members}) == 1
    # Groups that are drawn later, in place of others, get the seeds they would have had.
    assert group_tasks(run, step, groups + first, size)[first * size :] == tasks


def test_nothing_here_touches_a_global_generator():
    before = pickle.dumps(np.random.mtrand._rand), torch.get_rng_state()
    for k in range(20):
        seeding.env_seed(k, 1, 2)
        seeding.data_rng(k, 0).random()
        seeding.turn_rng(k, 0).random()
    assert pickle.dumps(np.random.mtrand._rand) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


NUMPY = {"Generator", "SeedSequence", "Philox", "PCG64", "BitGenerator", "default_rng"}
TORCH = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "rand_like", "randn_like"}
TORCH |= {"manual_seed", "seed"}
IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "multinomial", "exponential_", "manual_seed_all"}


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def global_randomness(tree):
    """Lines that draw from, or seed, a generator that the whole process shares."""
    forked = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "fork_rng" in ast.unparse(n.items[0])]
    inside = {id(x) for n in forked for x in ast.walk(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            names = {a.name for a in node.names} - (NUMPY if node.module == "numpy.random" else {"Random"})
            yield from ((node.lineno, n) for n in names)
        if not isinstance(node, ast.Call) or id(node) in inside:
            continue
        name, last = dotted(node.func), dotted(node.func).split(".")[-1]
        own = any(k.arg == "generator" for k in node.keywords)
        if (
            (name.startswith("random.") and last != "Random")
            or (name.startswith(("np.random.", "numpy.random.")) and last not in NUMPY)
            or (last in ("default_rng", "SeedSequence", "Philox", "PCG64") and not node.args and not node.keywords)
            or (name.startswith("torch.") and last in TORCH and not own)
            or (last in IN_PLACE and not own)
        ):
            yield node.lineno, name


def test_the_search_finds_what_it_looks_for():
    bad = [
        "import random\nrandom.seed(0)",
        "random.shuffle(x)",
        "from random import choice",
        "np.random.seed(0)",
        "numpy.random.rand(3)",
        "from numpy.random import randint",
        "np.random.default_rng()",
        "torch.manual_seed(0)",
        "torch.rand(3)",
        "weight.normal_()",
        "probabilities.multinomial(1)",
    ]
    good = [
        "rng = random.Random(seed)\nrng.shuffle(x)",
        "np.random.default_rng(3).random()",
        "self.rng.random()",
        "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
        "torch.rand(3, generator=g)",
        "weight.normal_(generator=g)",
    ]
    assert all(list(global_randomness(ast.parse(code))) for code in bad)
    assert not any(list(global_randomness(ast.parse(code))) for code in good)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_file_uses_a_global_generator(file):
    if file == ROOT / "agentgym" / "checks" / "catalogue.py":
        return  # it looks whether an environment moves or reads one, and puts them back
    if file == ROOT / "benchmarks" / "cfr_openspiel.py":
        return  # the peer draws from one
    if file == ROOT / "agentgym" / "policies" / "vllm_local.py":
        return  # vLLM seeds two of them when it starts; they are put back
    assert list(global_randomness(ast.parse(file.read_text(encoding="utf-8")))) == []


def test_ruff_agrees():
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "NPY002", *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout
