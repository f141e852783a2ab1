"""Extensive-form games: the protocol that CFR plays, and the small games it is checked on.

A state is immutable and is one history h of the game. Kuhn and Leduc poker follow OpenSpiel's rules and number actions
as it does, so that trees can be compared node by node.

| notation | here |
|---|---|
| P(h), who moves | `State.player` |
| A(h) | `State.legal`, `State.chance` |
| ha | `State.child` |
| I_p(h), what p knows | `State.infoset` as a key, `State.tensor` as numbers |
| u(z) | `State.returns` |
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np

from agentgym.errors import ConfigError

CHANCE = -1
TERMINAL = -2


class State(Protocol):
    """One history of a game; never changed. Seats are numbered from 0, actions are small integers."""

    __slots__ = ()

    def player(self) -> int:
        """The seat to move, `CHANCE` or `TERMINAL`."""
        ...

    def legal(self) -> Sequence[int]:
        """Actions of the seat to move; the same, in the same order, for every state of an information set."""
        ...

    def chance(self) -> Sequence[tuple[int, float]]:
        """Actions of chance with their probabilities, which sum to 1."""
        ...

    def sample_chance(self, rng: np.random.Generator) -> int:
        """Draw an action of chance. Inherited, it draws from `chance`; a game with too many outcomes has its own."""
        outcomes = self.chance()
        left = rng.random()
        for action, probability in outcomes:
            left -= probability
            if left < 0:
                return action
        return outcomes[-1][0]

    def child(self, action: int) -> State:
        """The state after a legal action."""
        ...

    def returns(self) -> Sequence[float]:
        """Utility of every seat ``[seats]`` at the end."""
        ...

    def infoset(self, player: int) -> Hashable:
        """What a seat knows, as a key that no other seat has."""
        ...

    def tensor(self, player: int) -> np.ndarray:
        """What a seat knows, as float32 numbers ``[inputs]`` for a network."""
        ...


class Kuhn(State):
    """Kuhn poker: cards J, Q, K (0, 1, 2), ante 1, one bet of 1. Actions: 0 passes (check, fold), 1 bets or calls."""

    __slots__ = ("cards", "history")
    _ENDS = frozenset([(0, 0), (0, 1, 0), (0, 1, 1), (1, 0), (1, 1)])

    def __init__(self, cards: tuple[int, ...] = (), history: tuple[int, ...] = ()):
        self.cards, self.history = cards, history

    def player(self) -> int:
        """Chance deals two cards; then the seats move in turn."""
        if len(self.cards) < 2:
            return CHANCE
        return TERMINAL if self.history in self._ENDS else len(self.history) % 2

    def legal(self) -> Sequence[int]:
        """Pass and bet."""
        return (0, 1)

    def chance(self) -> Sequence[tuple[int, float]]:
        """The cards left, each as likely."""
        left = [card for card in range(3) if card not in self.cards]
        return [(card, 1 / len(left)) for card in left]

    def child(self, action: int) -> Kuhn:
        """Deal a card, pass or bet."""
        if len(self.cards) < 2:
            return Kuhn((*self.cards, action), self.history)
        return Kuhn(self.cards, (*self.history, action))

    def returns(self) -> Sequence[float]:
        """What each seat wins beyond what it paid: 1, or 2 after a call."""
        if self.history[-2:] == (1, 0):
            win = 1.0 if len(self.history) == 2 else -1.0
        else:
            stake = 1.0 + self.history[-1]
            win = stake if self.cards[0] > self.cards[1] else -stake
        return (win, -win)

    def infoset(self, player: int) -> Hashable:
        """Seat, its card, what was played."""
        return (player, self.cards[player], self.history)

    def tensor(self, player: int) -> np.ndarray:
        """One-hot: seat (2), card (3), every past action (3 × 2)."""
        x = np.zeros(11, np.float32)
        x[player] = x[2 + self.cards[player]] = 1
        for at, action in enumerate(self.history):
            x[5 + 2 * at + action] = 1
        return x


class Leduc(State):
    """Leduc poker: cards 0 to 5 of ranks 0, 0, 1, 1, 2, 2, ante 1, two rounds with a public card between them.

    Actions: 0 folds (only when facing a raise), 1 checks or calls, 2 raises by 2 in the first round and by 4 in the
    second, twice a round at most. A pair with the public card wins, then the higher rank; equal ranks share.
    """

    __slots__ = ("cards", "paid", "public", "rounds")

    def __init__(
        self,
        cards: tuple[int, ...] = (),
        public: int = -1,
        rounds: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
        paid: tuple[int, int] = (1, 1),
    ):
        self.cards, self.public, self.rounds, self.paid = cards, public, rounds, paid

    def player(self) -> int:
        """Chance deals to both seats and opens a card after the first round; seat 0 begins each round."""
        if len(self.cards) < 2:
            return CHANCE
        now = self.rounds[self.public >= 0]
        if now and now[-1] == 0:
            return TERMINAL
        if len(now) > 1 and now[-1] == 1:
            return TERMINAL if self.public >= 0 else CHANCE
        return len(now) % 2

    def legal(self) -> Sequence[int]:
        """Fold, call, raise, as far as they are allowed."""
        now = self.rounds[self.public >= 0]
        raises = (1, 2) if now.count(2) < 2 else (1,)
        return (0, *raises) if self.paid[0] != self.paid[1] else raises

    def chance(self) -> Sequence[tuple[int, float]]:
        """The cards left, each as likely."""
        left = [card for card in range(6) if card not in self.cards]
        return [(card, 1 / len(left)) for card in left]

    def child(self, action: int) -> Leduc:
        """Deal or open a card, fold, call or raise."""
        if len(self.cards) < 2:
            return Leduc((*self.cards, action))
        second = self.public >= 0
        now = self.rounds[second]
        if not second and len(now) > 1 and now[-1] == 1:
            return Leduc(self.cards, action, self.rounds, self.paid)
        paid = self.paid
        if action:
            stake = max(paid) + (0 if action == 1 else 4 if second else 2)
            paid = (paid[0], stake) if len(now) % 2 else (stake, paid[1])
        now = (*now, action)
        return Leduc(self.cards, self.public, (self.rounds[0], now) if second else (now, ()), paid)

    def returns(self) -> Sequence[float]:
        """What each seat wins beyond what it paid."""
        now = self.rounds[self.public >= 0]
        if now[-1] == 0:
            loser = (len(now) - 1) % 2
        else:
            ranks = [card // 2 for card in self.cards]
            if ranks[0] == ranks[1]:
                return (0.0, 0.0)
            open_rank = self.public // 2
            loser = ranks.index(min(ranks)) if open_rank not in ranks else 1 - ranks.index(open_rank)
        win = float(self.paid[loser])
        return (-win, win) if loser == 0 else (win, -win)

    def infoset(self, player: int) -> Hashable:
        """Seat, its card, the public card, what was played in each round."""
        return (player, self.cards[player], self.public, self.rounds)

    def tensor(self, player: int) -> np.ndarray:
        """One-hot: seat (2), card (6), public card (6), every call or raise of each round (2 × 4 × 2)."""
        x = np.zeros(30, np.float32)
        x[player] = x[2 + self.cards[player]] = 1
        if self.public >= 0:
            x[8 + self.public] = 1
        for number, actions in enumerate(self.rounds):
            for at, action in enumerate(actions):
                if action:
                    x[14 + 8 * number + 2 * at + action - 1] = 1
        return x


class NormalForm(State):
    """A game of one simultaneous move of two seats; the second moves without seeing the first.

    Args:
        payoffs: Utility of both seats for every pair of actions ``[2, n, m]``.
    """

    __slots__ = ("moves", "payoffs")

    def __init__(self, payoffs: np.ndarray, moves: tuple[int, ...] = ()):
        self.payoffs, self.moves = payoffs, moves

    def player(self) -> int:
        """Seat 0, seat 1, end."""
        return len(self.moves) if len(self.moves) < 2 else TERMINAL

    def legal(self) -> Sequence[int]:
        """All rows for seat 0, all columns for seat 1."""
        return range(self.payoffs.shape[1 + len(self.moves)])

    def chance(self) -> Sequence[tuple[int, float]]:
        """There is no chance."""
        return ()

    def child(self, action: int) -> NormalForm:
        """The state after a move."""
        return NormalForm(self.payoffs, (*self.moves, action))

    def returns(self) -> Sequence[float]:
        """The payoffs of the two moves."""
        return tuple(payoff.item(*self.moves) for payoff in self.payoffs)

    def infoset(self, player: int) -> Hashable:
        """The seat, which knows nothing else."""
        return player

    def tensor(self, player: int) -> np.ndarray:
        """One-hot seat."""
        return np.eye(2, dtype=np.float32)[player]


RPSSL_NAMES = ("rock", "paper", "scissors", "Spock", "lizard")
_BEATS = ((0, 2), (0, 4), (1, 0), (1, 3), (2, 1), (2, 4), (3, 0), (3, 2), (4, 1), (4, 3))


def rpssl(actions: int = 5) -> NormalForm:
    """Rock, paper, scissors, Spock, lizard, of which both seats may use the first ones; a win is worth 1.

    The proof of concept of LSPO (2502.04686): with 3, 4 and 5 actions the equilibria are uniform, (0, 1/3, 1/3, 1/3)
    and uniform.

    Raises:
        ConfigError: If the number of actions is not 2 to 5.
    """
    if not 2 <= actions <= 5:
        raise ConfigError(f"actions={actions}: rock-paper-scissors-Spock-lizard has 2 to 5")
    wins = np.zeros((5, 5))
    for winner, loser in _BEATS:
        wins[winner, loser], wins[loser, winner] = 1, -1
    wins = wins[:actions, :actions]
    return NormalForm(np.stack([wins, -wins]))
