"""The answers to the problems of `agentgym.envs.python_math`, computed here, not by the code that the expert runs."""

from __future__ import annotations

import datetime
import heapq
import itertools
import math
from collections import Counter
from fractions import Fraction

Matrix = list[list[int]]
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def coprime_sum(n: int, m: int) -> int:
    """Inclusion and exclusion over the primes of m."""
    primes = [p for p in range(2, m + 1) if m % p == 0 and all(p % q for q in range(2, p))]
    total = 0
    for size in range(len(primes) + 1):
        for chosen in itertools.combinations(primes, size):
            d = math.prod(chosen)
            total += (-1) ** size * d * (n // d) * (n // d + 1) // 2
    return total


def power_tower(a: int, b: int, c: int, m: int) -> int:
    """Raise to the power of b, c times."""
    for _ in range(c):
        a = pow(a, b, m)
    return a % m


def congruences(moduli: list[int], rests: list[int]) -> int:
    """The Chinese remainder theorem."""
    whole = math.prod(moduli)
    parts = (r * (whole // m) * pow(whole // m, -1, m) for m, r in zip(moduli, rests, strict=True))
    return sum(parts) % whole or whole


def blocked_paths(rows: int, columns: int, blocked: list[tuple[int, int]]) -> int:
    """Row by row: the paths to a cell are those to the cells above and to the left."""
    ways = [0] * columns
    for row in range(rows):
        for column in range(columns):
            left = ways[column - 1] if column else int(row == 0)
            ways[column] = 0 if (row, column) in blocked else ways[column] + left
    return ways[-1]


def coin_ways(amount: int, coins: list[int]) -> int:
    """Coin by coin over all amounts."""
    ways = [1] + [0] * amount
    for coin in coins:
        for total in range(coin, amount + 1):
            ways[total] += ways[total - coin]
    return ways[amount]


def dice_sum(faces: list[int], least: int) -> Fraction:
    """Sums of numbers of 1 and more, less those in which one is above its faces, and so on."""
    ways = 0
    for size in range(len(faces) + 1):
        for over in itertools.combinations(faces, size):
            for total in range(max(least, sum(over) + len(faces)), sum(faces) + 1):
                ways += (-1) ** size * math.comb(total - sum(over) - 1, len(faces) - 1)
    return Fraction(ways, math.prod(faces))


def spanning_trees(nodes: int, edges: list[tuple[int, int]]) -> int:
    """Kirchhoff's theorem: a cofactor of the Laplacian."""
    laplacian = [[0] * nodes for _ in range(nodes)]
    for u, v in edges:
        laplacian[u][u] += 1
        laplacian[v][v] += 1
        laplacian[u][v] -= 1
        laplacian[v][u] -= 1
    return determinant([row[1:] for row in laplacian[1:]])


def determinant(matrix: Matrix) -> int:
    """Bareiss (1968): elimination within the integers."""
    rows, sign, last = [list(row) for row in matrix], 1, 1
    for k in range(len(rows) - 1):
        pivot = next((i for i in range(k, len(rows)) if rows[i][k]), None)
        if pivot is None:
            return 0
        if pivot != k:
            rows[k], rows[pivot], sign = rows[pivot], rows[k], -sign
        for i in range(k + 1, len(rows)):
            for j in range(k + 1, len(rows)):
                rows[i][j] = (rows[i][j] * rows[k][k] - rows[i][k] * rows[k][j]) // last
        last = rows[k][k]
    return sign * rows[-1][-1]


def linear_system(matrix: Matrix, right: list[int]) -> Fraction:
    """Cramer's rule."""
    whole, total = determinant(matrix), 0
    for k in range(len(matrix)):
        total += determinant([[*row[:k], b, *row[k + 1 :]] for row, b in zip(matrix, right, strict=True)])
    return Fraction(total, whole)


def knapsack(weights: list[int], values: list[int], capacity: int) -> int:
    """Thing by thing over all capacities."""
    best = [0] * (capacity + 1)
    for weight, value in zip(weights, values, strict=True):
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]


def shortest_path(edges: list[tuple[int, int, int]], goal: int) -> int:
    """Dijkstra (1959)."""
    near: dict[int, list[tuple[int, int]]] = {}
    for u, v, length in edges:
        near.setdefault(u, []).append((v, length))
        near.setdefault(v, []).append((u, length))
    queue, known = [(0, 0)], set()
    while queue[0][1] != goal:
        far, node = heapq.heappop(queue)
        if node not in known:
            known.add(node)
            for other, length in near[node]:
                heapq.heappush(queue, (far + length, other))
    return queue[0][0]


def distinct_substrings(word: str) -> int:
    """Every suffix in order, less what it has in common with the one before it."""
    suffixes = sorted(word[i:] for i in range(len(word)))
    total = len(suffixes[0])
    for before, suffix in itertools.pairwise(suffixes):
        same = next((i for i, (a, b) in enumerate(zip(before, suffix, strict=False)) if a != b), len(before))
        total += len(suffix) - same
    return total


def josephus(people: int, step: int) -> int:
    """The place of the last one in a circle of n, from that in a circle of n - 1."""
    place = 0
    for n in range(2, people + 1):
        place = (place + step) % n
    return place + 1


def life(rows: int, columns: int, alive: list[tuple[int, int]], steps: int) -> int:
    """Conway's rules on the set of living cells."""
    around = [d for d in itertools.product((-1, 0, 1), repeat=2) if d != (0, 0)]
    cells = set(alive)
    for _ in range(steps):
        near = Counter(((r + dr) % rows, (c + dc) % columns) for r, c in cells for dr, dc in around)
        cells = {cell for cell, count in near.items() if count == 3 or (count == 2 and cell in cells)}
    return len(cells)


def weekdays(first: str, last: str, weekday: str, day: int) -> int:
    """Month by month."""
    start, end = datetime.date.fromisoformat(first), datetime.date.fromisoformat(last)
    count = 0
    for year, month in itertools.product(range(start.year, end.year + 1), range(1, 13)):
        try:
            date = datetime.date(year, month, day)
        except ValueError:  # no such day in this month
            continue
        count += start <= date <= end and DAYS[date.weekday()] == weekday
    return count


def recurrence(n: int, m: int, p: int, q: int, r: int) -> int:
    """The n-th power of the matrix that takes (a(k), a(k-1), 1) one further."""

    def times(x: Matrix, y: Matrix) -> Matrix:
        return [
            [sum(a * b for a, b in zip(row, column, strict=True)) % m for column in zip(*y, strict=True)] for row in x
        ]

    power, square = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[p, q, r], [1, 0, 0], [0, 0, 1]]
    for bit in reversed(f"{n:b}"):
        power = times(power, square) if bit == "1" else power
        square = times(square, square)
    return sum(a * b for a, b in zip(power[1], (1, 0, 1), strict=True)) % m


def cubic_root(a: int, b: int) -> float:
    """Newton's method; the polynomial rises everywhere and is convex above the root."""
    x = float(b)
    for _ in range(200):
        x -= (x**3 + a * x - b) / (3 * x * x + a)
    return x
