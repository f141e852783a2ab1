"""A whole game as arrays, level by level, for exact values and CFR over every history at once. Numpy only."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from agentgym.errors import ConfigError
from agentgym.games import CHANCE, TERMINAL, State

Table = np.ndarray
"""A strategy of every information set ``[I, A]``: column a is the a-th legal action, 0 beyond the last one."""


class Tree:
    """Every history of a game (N of them, in breadth-first order) and every information set (I) of its seats (P).

    Attributes:
        player: Who moves ``[N]``: a seat, `CHANCE` or `TERMINAL`.
        parent: The history before ``[N]``; -1 at the root.
        row: Information set of the parent ``[N]``, -1 after chance and at the root.
        column: Number of the action among the legal ones of the parent ``[N]``.
        chance: Probability of the action if chance made it ``[N]``, else 1.
        payoffs: Utilities ``[N, P]``, zero where the game goes on.
        levels: The slice of histories of every length.
        keys, actions, states: Of every information set: its key, legal actions, a state in it.
        owner, depth, member: Of every information set ``[I]``: seat, number of own decisions before, a history in it.
        mask: Which columns are actions ``[I, A]``.
    """

    def __init__(self, root: State, limit: int = 2_000_000):
        """Walk through the game.

        Raises:
            ConfigError: If there are more histories than ``limit``, the states of an information set differ in their
                legal actions, or a seat forgets what it knew or did (CFR needs perfect recall).
        """
        self.keys: list[Hashable] = []
        self.actions: list[tuple[int, ...]] = []
        self.states: list[State] = []
        self.levels: list[slice] = []
        index: dict[Hashable, int] = {}
        past: list[tuple[int, int]] = []
        owner: list[int] = []
        depth: list[int] = []
        member: list[int] = []
        player: list[int] = []
        states, parent, row, column, chance = [root], [-1], [-1], [0], [1.0]
        payoffs: dict[int, Sequence[float]] = {}

        def last_decision(history: int, seat: int) -> tuple[int, int]:
            while history:
                if player[parent[history]] == seat:
                    return row[history], column[history]
                history = parent[history]
            return -1, 0

        start = 0
        while start < len(states):
            self.levels.append(slice(start, len(states)))
            for n in range(start, len(states)):
                state = states[n]
                seat = state.player()
                player.append(seat)
                if seat == TERMINAL:
                    payoffs[n] = state.returns()
                    continue
                if seat == CHANCE:
                    edges, i = list(state.chance()), -1
                else:
                    actions, key, before = tuple(state.legal()), state.infoset(seat), last_decision(n, seat)
                    i = index.setdefault(key, len(index))
                    if i == len(past):
                        self.keys.append(key)
                        self.actions.append(actions)
                        self.states.append(state)
                        past.append(before)
                        owner.append(seat)
                        depth.append(depth[before[0]] + 1 if before[0] >= 0 else 0)
                        member.append(n)
                    elif (actions, before, seat) != (self.actions[i], past[i], owner[i]):
                        raise ConfigError(
                            f"information set {key!r} holds histories with different seats, legal actions or own past "
                            "moves: State.infoset must tell them apart (CFR needs perfect recall)"
                        )
                    edges = [(action, 1.0) for action in actions]
                for number, (action, probability) in enumerate(edges):
                    states.append(state.child(action))
                    parent.append(n)
                    row.append(i)
                    column.append(number)
                    chance.append(probability)
                if len(states) > limit:
                    raise ConfigError(f"the game has more than {limit} histories: too many for a tree, sample it")
            start = self.levels[-1].stop

        self.player, self.parent, self.row, self.column = map(np.array, (player, parent, row, column))
        self.chance, self.owner, self.depth, self.member = map(np.array, (chance, owner, depth, member))
        self.payoffs = np.zeros((len(states), len(next(iter(payoffs.values())))))
        self.payoffs[list(payoffs)] = list(payoffs.values())
        widths = np.array([len(actions) for actions in self.actions])
        self.mask = np.arange(widths.max()) < widths[:, None]
        self._moves = np.flatnonzero(self.row >= 0)
        self._cells = np.ravel_multi_index((self.row[self._moves], self.column[self._moves]), self.mask.shape)
        self._movers = self.player[self.parent[self._moves]]
        self._siblings = [np.flatnonzero(np.diff(self.parent[level], prepend=-2)) for level in self.levels]
        self._index = index

    @property
    def seats(self) -> int:
        """Number of seats P."""
        return self.payoffs.shape[1]

    def uniform(self) -> Table:
        """The strategy that plays all legal actions alike ``[I, A]``."""
        return self.mask / self.mask.sum(1, keepdims=True)

    def table(self, policy: Mapping[Hashable, Sequence[float] | np.ndarray]) -> Table:
        """A strategy ``[I, A]`` from the probabilities of legal actions by key; uniform where there are none.

        Raises:
            ConfigError: If a key is unknown, or the probabilities of a key are no distribution over its actions.
        """
        sigma = self.uniform()
        for key, probabilities in policy.items():
            if key not in self._index:
                raise ConfigError(f"policy: the game has no information set {key!r}")
            i = self._index[key]
            given = np.asarray(probabilities, float)
            if given.shape != (len(self.actions[i]),) or not (given >= 0).all() or abs(given.sum() - 1) > 1e-6:
                raise ConfigError(
                    f"policy[{key!r}] = {given.tolist()}: expected {len(self.actions[i])} probabilities that sum to 1"
                )
            sigma[i, : len(given)] = given
        return sigma

    def policy(self, sigma: Table) -> dict[Hashable, np.ndarray]:
        """The probabilities of every key, from a strategy ``[I, A]``."""
        return {key: sigma[i, : len(self.actions[i])] for i, key in enumerate(self.keys)}

    def probabilities(self, sigma: Table) -> np.ndarray:
        """Probability of every history given the one before ``[N]``."""
        given = self.chance.copy()
        given[self._moves] = sigma.ravel()[self._cells]
        return given

    def reach(self, sigma: Table) -> np.ndarray:
        """π_p^σ(h), what each seat contributes to reaching a history ``[N, P + 1]``; the last column is chance."""
        given = self.probabilities(sigma)
        pi = np.ones((len(self.player), self.seats + 1))
        for level in self.levels[1:]:
            up = self.parent[level]
            pi[level] = pi[up]
            pi[np.arange(level.start, level.stop), self.player[up]] *= given[level]
        return pi

    def values(self, sigma: Table) -> np.ndarray:
        """Σ_z π^σ(h→z) u(z), the expected utilities from every history on ``[N, P]``."""
        given = self.probabilities(sigma)
        value = self.payoffs.copy()
        for level, first in zip(self.levels[:0:-1], self._siblings[:0:-1], strict=True):
            up = self.parent[level.start + first]
            value[up] = np.add.reduceat(given[level, None] * value[level], first)
        return value

    def counterfactual_values(self, sigma: Table) -> tuple[np.ndarray, np.ndarray]:
        """v_p(I, a) of the owner p of every information set ``[I, A]``, and its own reach π_p(I) ``[I]``."""
        pi, value = self.reach(sigma), self.values(sigma)
        up = self.parent[self._moves]
        others = pi[up]
        others[np.arange(len(up)), self._movers] = 1
        weighted = others.prod(1) * value[self._moves, self._movers]
        total = np.bincount(self._cells, weighted, self.mask.size).reshape(self.mask.shape)
        return total, pi[self.member, self.owner]
