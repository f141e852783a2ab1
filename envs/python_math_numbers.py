"""What is drawn for a problem of `agentgym.envs.python_math`: its numbers, by the name of its template, for a level."""

from __future__ import annotations

import datetime
import itertools
import math
from typing import Any

import numpy as np
from agentgym.envs import python_math_solutions as solutions


def _int(rng: np.random.Generator, low: int, high: int) -> int:
    """A number from low to high, both included."""
    return int(rng.integers(low, high + 1))


def _ints(rng: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    return [_int(rng, low, high) for _ in range(count)]


def _pick(rng: np.random.Generator, values: Any, count: int) -> list[int]:
    """Different values, sorted."""
    return sorted(int(v) for v in rng.choice(list(values), count, replace=False))


def coprime_sum(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Up to 9 000, 90 000, 900 000; two, three, four primes."""
    primes = _pick(rng, (2, 3, 5, 7, 11, 13, 17, 19), level + 1)
    return {"n": _int(rng, 5 * 10 ** (level + 1), 9 * 10 ** (level + 2)), "m": math.prod(primes)}


def power_tower(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """The tower's exponent has up to 30, 60, 90 factors."""
    return {"a": _int(rng, 3, 60), "b": _int(rng, 3, 9), "c": _int(rng, 10, 30 * level), "m": _int(rng, 200, 10**4)}


def congruences(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Two, three, four moduli without a common factor."""
    moduli = _pick(rng, (7, 11, 13, 17, 19, 23, 25, 27, 29, 31, 32, 37, 41, 43, 47), level + 1)
    return {"moduli": moduli, "rests": [_int(rng, 1, m - 1) for m in moduli]}


def blocked_paths(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Up to 7, 10, 13 rows and columns."""
    rows, columns = _int(rng, 4, 4 + 3 * level), _int(rng, 4, 4 + 3 * level)
    cells = rng.choice(np.arange(1, rows * columns - 1), 3 + level, replace=False)
    return {"rows": rows, "columns": columns, "blocked": sorted((int(c) // columns, int(c) % columns) for c in cells)}


def coin_ways(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Three, four, five kinds of coins."""
    return {"amount": _int(rng, 60, 150) * level, "coins": _pick(rng, range(2, 26), 2 + level)}


def dice_sum(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Three, four, five dice."""
    faces = sorted(_ints(rng, 4, 30, 2 + level))
    return {"faces": faces, "least": _int(rng, (sum(faces) + len(faces)) // 2, sum(faces) - 1)}


def spanning_trees(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Seven, eight, nine nodes."""
    nodes = 6 + level
    return {"nodes": nodes, "edges": [e[:2] for e in _graph(rng, nodes, level + 2)]}


def determinant(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Four, five, six rows."""
    return {"matrix": [_ints(rng, -9, 9, level + 3) for _ in range(level + 3)]}


def linear_system(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Three, four, five unknowns."""
    size = level + 2
    while True:
        matrix = [_ints(rng, -9, 9, size) for _ in range(size)]
        if solutions.determinant(matrix):
            return {"matrix": matrix, "right": _ints(rng, -20, 20, size)}


def knapsack(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """8, 11, 14 things."""
    weights = _ints(rng, 3, 40, 5 + 3 * level)
    return {"weights": weights, "values": _ints(rng, 5, 99, len(weights)), "capacity": sum(weights) * 2 // 5}


def _graph(rng: np.random.Generator, nodes: int, more: int) -> list[tuple[int, int, int]]:
    """A connected graph: a random tree and more edges, with weights."""
    pairs = {(_int(rng, 0, v - 1), v) for v in range(1, nodes)}
    others = [p for p in itertools.combinations(range(nodes), 2) if p not in pairs]
    extra = rng.permutation(len(others))[:more]
    return [(u, v, _int(rng, 1, 60)) for u, v in sorted(pairs | {others[int(i)] for i in extra})]


def shortest_path(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """8, 12, 16 places."""
    nodes = 4 + 4 * level
    return {"edges": _graph(rng, nodes, 2 * nodes), "goal": nodes - 1}


def distinct_substrings(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """20, 40, 60 letters."""
    return {"word": "".join("abc"[i] for i in _ints(rng, 0, 2 if level > 1 else 1, 20 * level))}


def josephus(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Up to 300, 1200, 2700 people."""
    return {"people": _int(rng, 20, 300 * level**2), "step": _int(rng, 3, 300)}


def life(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Up to 6, 8, 10 rows and columns, and 4, 8, 12 steps."""
    rows, columns = _int(rng, 5, 4 + 2 * level), _int(rng, 5, 4 + 2 * level)
    cells = _pick(rng, range(rows * columns), rows * columns // 3)
    return {
        "rows": rows,
        "columns": columns,
        "alive": [divmod(c, columns) for c in cells],
        "steps": _int(rng, 2, 4 * level),
    }


def weekdays(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Up to 8 000, 16 000, 24 000 days."""
    first = datetime.date(_int(rng, 1900, 2020), _int(rng, 1, 12), _int(rng, 1, 28))
    last = first + datetime.timedelta(days=_int(rng, 2000, 8000) * level)
    return {"first": str(first), "last": str(last), "weekday": solutions.DAYS[_int(rng, 0, 6)], "day": _int(rng, 1, 31)}


def recurrence(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """An index of up to 9 000, 90 000, 900 000."""
    n, m = _int(rng, 100, 900) * 10**level, _int(rng, 10**3, 10**6)
    return {"n": n, "m": m, "p": _int(rng, 2, 9), "q": _int(rng, 2, 9), "r": _int(rng, 1, 99)}


def cubic_root(rng: np.random.Generator, level: int) -> dict[str, Any]:
    """Coefficients of up to 99 and 999, and ten and a hundred times as much."""
    return {"a": _int(rng, 1, 99 * 10 ** (level - 1)), "b": _int(rng, 1, 999 * 10 ** (level - 1))}
