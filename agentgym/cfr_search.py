"""Traversals of Deep CFR and of LSPO's truncated search, as generators that share forwards.

A traversal yields the decisions for which it needs a strategy. `play` keeps hundreds of traversals going and has all
that wait answered together, which is what makes networks fast.

| pseudocode | here |
|---|---|
| Search(h, p, d): all actions at d_max layers of own decisions, then M rollouts | `Traversals.search` |
| external sampling: all own actions to the end | `Traversals.search`, ``depth=None`` |
| start nodes: p's decisions in games sampled from σ_t, own moves explored with ε | `Traversals.sample_game` |

A decision with one legal action is none: it is made without a strategy, and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from agentgym.games import CHANCE, TERMINAL, State

T = TypeVar("T")


@dataclass(frozen=True)
class Game:
    """A game and the sizes that networks need.

    Attributes:
        root: The first state.
        seats: Number of players.
        actions: One more than the largest action.
        inputs: Numbers of `State.tensor`.
        roles: Number of advantage networks.
        role: From a state and the seat to move, the number of the network; the seat itself by default.
    """

    root: State
    seats: int
    actions: int
    inputs: int
    roles: int
    role: Callable[[State, int], int] = lambda state, seat: seat


class Request(NamedTuple):
    """A decision that a traversal waits for."""

    state: State
    seat: int
    explore: float = 0.0


class Decision(NamedTuple):
    """The answer: what the seat sees ``[inputs]``, legal actions ``[A]``, σ ``[A]``, and an action drawn."""

    x: np.ndarray
    mask: np.ndarray
    sigma: np.ndarray
    action: int


Traversal = Generator[Request, Decision, T]
Item = tuple[np.ndarray, np.ndarray, np.ndarray]


def play(
    jobs: Iterable[Traversal[T]], decide: Callable[[Sequence[Request]], Sequence[Decision]], concurrent: int
) -> list[T]:
    """Run traversals, many at a time; all that wait are answered together.

    Returns:
        What each of them returned, in the order of the jobs.
    """
    waiting, results, left = [], {}, enumerate(jobs)

    def go_on(number: int, job: Traversal[T], answer: Decision | None) -> None:
        try:
            waiting.append((number, job, job.send(answer)))  # type: ignore[arg-type]
        except StopIteration as end:
            results[number] = end.value

    while True:
        while len(waiting) < concurrent and (job := next(left, None)) is not None:
            go_on(*job, None)
        if not waiting:
            return [results[number] for number in range(len(results))]
        now, waiting = waiting, []
        for (number, running, _), answer in zip(now, decide([request for *_, request in now]), strict=True):
            go_on(number, running, answer)


class Traversals:
    """Plays a game for the regrets of one seat, and notes what it finds.

    Attributes:
        regrets: Of each role, (x, mask, r̃) of its decisions since they were last taken.
        strategies: (x, mask, σ_t) of the decisions of the seats that were sampled.
    """

    def __init__(
        self,
        game: Game,
        rng: np.random.Generator,
        depth: int | None = None,
        rollouts: int = 1,
        explore: float = 0.1,
        scale: float = 1.0,
    ):
        """Say how to search; see `DeepCFRConfig` for the settings."""
        self.game, self.rng = game, rng
        self.depth, self.rollouts, self.explore, self.scale = depth, rollouts, explore, scale
        self.regrets: list[list[Item]] = [[] for _ in range(game.roles)]
        self.strategies: list[Item] = []

    def search(self, state: State, seat: int, depth: int) -> Traversal[float]:
        """Estimate the utility of a seat below a state, and store its regrets and the strategies of the others."""
        while (mover := state.player()) != seat or len(state.legal()) == 1:
            if mover == TERMINAL:
                return state.returns()[seat] / self.scale
            if mover == CHANCE:
                state = state.child(state.sample_chance(self.rng))
            elif len(legal := state.legal()) == 1:
                state = state.child(legal[0])
            else:
                seen = yield Request(state, mover)
                self.strategies.append((seen.x, seen.mask, seen.sigma))
                state = state.child(seen.action)
        if depth == self.depth:
            total = 0.0
            for _ in range(self.rollouts):
                total += yield from self.rollout(state, seat)
            return total / self.rollouts
        seen = yield Request(state, seat)
        values = np.zeros(self.game.actions)
        for action in state.legal():
            values[action] = yield from self.search(state.child(action), seat, depth + 1)
        value = float(seen.sigma @ values)
        regrets = np.where(seen.mask, values - value, 0.0)
        self.regrets[self.game.role(state, seat)].append((seen.x, seen.mask, regrets))
        return value

    def rollout(self, state: State, seat: int) -> Traversal[float]:
        """The utility of a seat at the end of a game in which all play σ_t from a state on."""
        while (mover := state.player()) != TERMINAL:
            if mover == CHANCE:
                state = state.child(state.sample_chance(self.rng))
            else:
                state = state.child((yield Request(state, mover)).action)
        return state.returns()[seat] / self.scale

    def sample_game(self, seat: int) -> Traversal[list[State]]:
        """The states in which a seat had a choice, in a game in which it explores and the others play σ_t."""
        state, found = self.game.root, []
        while (mover := state.player()) != TERMINAL:
            if mover == CHANCE:
                state = state.child(state.sample_chance(self.rng))
                continue
            if mover == seat and len(state.legal()) > 1:
                found.append(state)
            seen = yield Request(state, mover, self.explore if mover == seat else 0.0)
            state = state.child(seen.action)
        return found
