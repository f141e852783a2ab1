"""The problems of `agentgym.envs.python_math`: what each asks, and the Python with which the expert solves it.

The expert's code and `python_math_solutions` are two methods; the tests have a third one for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from agentgym.envs import python_math_numbers as numbers
from agentgym.envs import python_math_solutions as solutions


@dataclass(frozen=True)
class Template:
    """A kind of problem.

    Attributes:
        draw: Its numbers, for a level of 1 to 3.
        text: The question, with the numbers' names in braces.
        solve: The answer from the numbers.
        code: Python that prints the answer, where the numbers are variables.
        answer: What kind of number it is.
    """

    draw: Callable[[np.random.Generator, int], dict[str, Any]]
    text: str
    solve: Callable[..., int | Fraction | float]
    code: str
    answer: Literal["integer", "fraction", "decimal"] = "integer"


TEMPLATES: dict[str, Template] = {
    "coprime_sum": Template(
        numbers.coprime_sum,
        "What is the sum of all integers from 1 to {n} that have no prime factor in common with {m}?",
        solutions.coprime_sum,
        """\
import math
print(sum(k for k in range(1, n + 1) if math.gcd(k, m) == 1))
""",
    ),
    "power_tower": Template(
        numbers.power_tower,
        "What is the remainder of {a}^({b}^{c}) when it is divided by {m}?",
        solutions.power_tower,
        """\
print(pow(a, b**c, m))
""",
    ),
    "congruences": Template(
        numbers.congruences,
        "What is the smallest positive integer that leaves the remainders {rests}, in this order, when it is "
        "divided by {moduli}?",
        solutions.congruences,
        """\
x, step = rests[0], moduli[0]
for m, r in zip(moduli[1:], rests[1:]):
    while x % m != r:
        x += step
    step *= m
print(x)
""",
    ),
    "blocked_paths": Template(
        numbers.blocked_paths,
        "A grid has {rows} rows and {columns} columns, both numbered from 0. You start in row 0, column 0, "
        "and each step goes one row down or one column to the right. How many ways lead to the last "
        "column of the last row without the cells (row, column) {blocked}?",
        solutions.blocked_paths,
        """\
import functools

@functools.cache
def ways(r, c):
    if r < 0 or c < 0 or (r, c) in blocked:
        return 0
    return 1 if (r, c) == (0, 0) else ways(r - 1, c) + ways(r, c - 1)

print(ways(rows - 1, columns - 1))
""",
    ),
    "coin_ways": Template(
        numbers.coin_ways,
        "In how many ways can {amount} be paid with coins of {coins}? There are as many of each as you like; "
        "the order in which they are paid does not count.",
        solutions.coin_ways,
        """\
import functools

@functools.cache
def ways(left, kinds):
    if left == 0:
        return 1
    if left < 0 or kinds == 0:
        return 0
    return ways(left - coins[kinds - 1], kinds) + ways(left, kinds - 1)

print(ways(amount, len(coins)))
""",
    ),
    "dice_sum": Template(
        numbers.dice_sum,
        "You roll fair dice of different kinds, with {faces} faces, each numbered from 1 on. What is the probability "
        "that their numbers add up to {least} or more?",
        solutions.dice_sum,
        """\
import math
from collections import Counter
from fractions import Fraction
ways = Counter({0: 1})
for sides in faces:
    more = Counter()
    for total, count in ways.items():
        for face in range(1, sides + 1):
            more[total + face] += count
    ways = more
print(Fraction(sum(count for total, count in ways.items() if total >= least), math.prod(faces)))
""",
        "fraction",
    ),
    "spanning_trees": Template(
        numbers.spanning_trees,
        "A graph has {nodes} nodes, numbered from 0, and the edges {edges}. How many spanning trees does it have?",
        solutions.spanning_trees,
        """\
import itertools

def joins(chosen):
    part = list(range(nodes))
    for u, v in chosen:
        if part[u] == part[v]:
            return False
        old, new = part[u], part[v]
        part = [new if p == old else p for p in part]
    return True

print(sum(map(joins, itertools.combinations(edges, nodes - 1))))
""",
    ),
    "determinant": Template(
        numbers.determinant,
        "What is the determinant of the matrix with the rows {matrix}?",
        solutions.determinant,
        """\
def det(m):
    if len(m) == 1:
        return m[0][0]
    return sum((-1) ** j * m[0][j] * det([r[:j] + r[j + 1 :] for r in m[1:]]) for j in range(len(m)))

print(det(matrix))
""",
    ),
    "linear_system": Template(
        numbers.linear_system,
        "A system of linear equations has the coefficients {matrix} (a row for each equation) and the right "
        "sides {right}. What is the sum of all its unknowns?",
        solutions.linear_system,
        """\
from fractions import Fraction
rows = [[Fraction(x) for x in [*row, b]] for row, b in zip(matrix, right)]
n = len(rows)
for k in range(n):
    p = next(i for i in range(k, n) if rows[i][k])
    rows[k], rows[p] = rows[p], rows[k]
    rows[k] = [x / rows[k][k] for x in rows[k]]
    for i in range(n):
        if i != k:
            rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k])]
print(sum(row[-1] for row in rows))
""",
        "fraction",
    ),
    "knapsack": Template(
        numbers.knapsack,
        "Things have the weights {weights} and, in the same order, the values {values}. What is the highest "
        "value of things that weigh at most {capacity} together? Each thing can be taken once.",
        solutions.knapsack,
        """\
import functools

@functools.cache
def best(i, room):
    if i == len(weights):
        return 0
    without = best(i + 1, room)
    if weights[i] > room:
        return without
    return max(without, values[i] + best(i + 1, room - weights[i]))

print(best(0, capacity))
""",
    ),
    "shortest_path": Template(
        numbers.shortest_path,
        "Roads join places; each is given as (place, place, length) and can be used both ways: {edges}. How "
        "long is the shortest way from place 0 to place {goal}?",
        solutions.shortest_path,
        """\
far = {0: 0}
for _ in range(goal + 1):
    for u, v, length in edges:
        for a, b in ((u, v), (v, u)):
            if a in far and far[a] + length < far.get(b, float('inf')):
                far[b] = far[a] + length
print(far[goal])
""",
    ),
    "distinct_substrings": Template(
        numbers.distinct_substrings,
        "How many different non-empty substrings does the word {word} have?",
        solutions.distinct_substrings,
        """\
n = len(word)
print(len({word[i:j] for i in range(n) for j in range(i + 1, n + 1)}))
""",
    ),
    "josephus": Template(
        numbers.josephus,
        "{people} people stand in a circle, numbered from 1 on. Counting begins with number 1 as one; "
        "everyone on whom the count of {step} falls leaves, and counting begins again at one with the next "
        "who is still there. What is the number of the last one?",
        solutions.josephus,
        """\
from collections import deque
circle = deque(range(1, people + 1))
while len(circle) > 1:
    circle.rotate(1 - step)
    circle.popleft()
print(circle[0])
""",
    ),
    "life": Template(
        numbers.life,
        "Conway's Game of Life is played on a torus (each edge joins the opposite one) of {rows} rows and "
        "{columns} columns, numbered from 0. At the start the cells (row, column) {alive} are alive. How many "
        "are alive after {steps} steps?",
        solutions.life,
        """\
grid = [[(r, c) in alive for c in range(columns)] for r in range(rows)]
for _ in range(steps):
    def near(r, c):
        square = [grid[(r + i) % rows][(c + j) % columns] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return sum(square) - grid[r][c]

    def lives(r, c):
        return near(r, c) == 3 or (near(r, c) == 2 and grid[r][c])

    grid = [[lives(r, c) for c in range(columns)] for r in range(rows)]
print(sum(map(sum, grid)))
""",
    ),
    "weekdays": Template(
        numbers.weekdays,
        "From {first} to {last} (both included, written as year-month-day), how often does a {weekday} fall "
        "on day {day} of a month?",
        solutions.weekdays,
        """\
import datetime
date, end, count = datetime.date.fromisoformat(first), datetime.date.fromisoformat(last), 0
while date <= end:
    count += date.day == day and date.strftime('%A') == weekday
    date += datetime.timedelta(days=1)
print(count)
""",
    ),
    "recurrence": Template(
        numbers.recurrence,
        "Let a(0) = 0, a(1) = 1 and a(k) = {p} a(k-1) + {q} a(k-2) + {r} for k of 2 and more. What is the "
        "remainder of a({n}) when it is divided by {m}?",
        solutions.recurrence,
        """\
x, y = 0, 1
for _ in range(n):
    x, y = y, (p * y + q * x + r) % m
print(x % m)
""",
    ),
    "cubic_root": Template(
        numbers.cubic_root,
        "What is the real number x with x^3 + {a} x = {b}?",
        solutions.cubic_root,
        """\
low, high = 0.0, float(b)
for _ in range(200):
    x = (low + high) / 2
    low, high = (x, high) if x**3 + a * x < b else (low, x)
print(f'{x:.9f}')
""",
        "decimal",
    ),
}
