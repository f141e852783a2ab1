"""The shortest plan in a small deterministic world, for its expert."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

State = TypeVar("State", bound=Hashable)


def shortest_plan(
    start: State, moves: Callable[[State], Mapping[str, tuple[State, int]]], solved: Callable[[State], bool]
) -> list[str] | None:
    """The actions of least cost, and of these the fewest, that lead to a solved state (Dijkstra's search).

    Args:
        start: Where to begin.
        moves: Action -> the state it leads to and its cost, 1 or more. The order of its keys decides between equals.
        solved: Whether a state is a goal.

    Returns:
        The actions, none if ``start`` is solved; or None if no solved state can be reached.
    """
    tie = itertools.count()
    heap: list[tuple[int, int, int, State]] = [(0, 0, next(tie), start)]
    best = {start: (0, 0)}
    came: dict[State, tuple[State, str]] = {}
    while heap:
        cost, length, _, state = heapq.heappop(heap)
        if best[state] < (cost, length):
            continue
        if solved(state):
            plan = []
            while state in came:
                state, action = came[state]
                plan.append(action)
            return plan[::-1]
        for action, (after, price) in moves(state).items():
            price_length = (cost + price, length + 1)
            if after not in best or price_length < best[after]:
                best[after], came[after] = price_length, (state, action)
                heapq.heappush(heap, (*price_length, next(tie), after))
    return None
