"""Counterfactual regret minimisation: exact, CFR+ and external sampling; best responses and exploitability. Numpy only.

σ is a strategy ``[I, A]`` over the information sets of a `Tree`; one step of `CFR` goes over all histories at once.
External sampling never builds the tree: it plays the game's states and keeps what it met in a dictionary.

| equation | function |
|---|---|
| v_p(I) = Σ_{h∈I} Σ_z π_{-p}(h) π(h→z) u_p(z), and v_p(I, a) | `Tree.counterfactual_values` |
| r(I, a) = v_p(I, a) − v_p(I) | `regrets` |
| σ(I, a) = R⁺(I, a) / Σ_b R⁺(I, b) | `regret_matching` |
| R^T = Σ_t r^t; σ̄ = Σ_t w_t π_p σ_t / Σ_t w_t π_p, w_t = 1 or t | `CFR` |
| R^T = max(R^{T−1} + r^T, 0), seats in turn, w_t = t | `cfr_plus` |
| r̃(I, a) = ṽ(a) − Σ_b σ(I, b) ṽ(b), chance and opponents sampled | `ExternalSampling` |
| b_p = argmax_σ' u_p(σ', σ_{-p}) | `best_response` |
| NashConv(σ) = Σ_p u_p(b_p, σ_{-p}) − u_p(σ) | `nash_conv` |

Sources: Zinkevich et al. 2007 (CFR), Lanctot et al. 2009 (external sampling), Tammelin 2014 (CFR+), and the regret
minimisation of LSPO (2502.04686), whose rule where no regret is positive is the uniform one.

    tree = Tree(Kuhn())
    solver = CFR(tree)
    for _ in range(1000):
        solver.step()
    print(nash_conv(tree, solver.average()))
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from operator import mul

import numpy as np

from agentgym.errors import unknown
from agentgym.game_tree import Table, Tree
from agentgym.games import CHANCE, TERMINAL, State

RULES = ("uniform", "argmax")


def regret_matching(regrets: np.ndarray, mask: np.ndarray, rule: str = "uniform") -> np.ndarray:
    """Play actions in proportion to their positive regrets.

    Args:
        regrets: Cumulative regrets, up to a positive factor ``[..., A]``.
        mask: Which actions are legal, at least one of each row ``[..., A]``.
        rule: Where no regret is positive: ``uniform`` over the legal actions (Zinkevich et al. 2007), or ``argmax``,
            the one of the largest regret (Brown et al. 2019).

    Returns:
        Probabilities ``[..., A]``; illegal actions have 0.

    Raises:
        ConfigError: If the rule is unknown.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    positive = np.where(mask, np.maximum(regrets, 0.0), 0.0)
    total = positive.sum(-1, keepdims=True)
    if rule == "uniform":
        otherwise = mask / mask.sum(-1, keepdims=True)
    else:
        best = np.where(mask, regrets, -np.inf).argmax(-1)
        otherwise = (np.arange(mask.shape[-1]) == best[..., None]).astype(float)
    return np.where(total > 0, positive / np.where(total > 0, total, 1.0), otherwise)


def regrets(tree: Tree, sigma: Table) -> np.ndarray:
    """Instantaneous counterfactual regrets r(I, a) of a strategy ``[I, A]``; 0 for illegal actions."""
    value, _ = tree.counterfactual_values(sigma)
    return _advantage(tree, sigma, value)


def _advantage(tree: Tree, sigma: Table, value: np.ndarray) -> np.ndarray:
    return np.where(tree.mask, value - (sigma * value).sum(1, keepdims=True), 0.0)


class CFR:
    """Counterfactual regret minimisation over a whole tree.

    Attributes:
        regrets: Cumulative regrets R ``[I, A]``. Set them before the first step to start elsewhere.
        t: Steps made.
    """

    def __init__(self, tree: Tree, *, alternating: bool = False, plus: bool = False, linear: bool = False):
        """Start with no regret.

        Args:
            tree: The game.
            alternating: Whether seats are updated one after the other, each against what the others have become.
            plus: Whether cumulative regrets are cut off at 0.
            linear: Whether step t has weight t in the average, instead of 1.
        """
        self.tree, self.plus, self.linear = tree, plus, linear
        every = np.ones(len(tree.owner), bool)
        self._turns = [tree.owner == seat for seat in range(tree.seats)] if alternating else [every]
        self.regrets, self._sum = np.zeros(tree.mask.shape), np.zeros(tree.mask.shape)
        self.t = 0

    def strategy(self) -> Table:
        """The strategy of the next step, from regret matching ``[I, A]``."""
        return regret_matching(self.regrets, self.tree.mask)

    def average(self) -> Table:
        """The average strategy σ̄ ``[I, A]``, which converges to an equilibrium in two-player zero-sum games."""
        total = self._sum.sum(1, keepdims=True)
        return np.where(total > 0, self._sum / np.where(total > 0, total, 1.0), self.tree.uniform())

    def step(self) -> None:
        """One iteration."""
        self.t += 1
        for turn in self._turns:
            sigma = self.strategy()
            value, reach = self.tree.counterfactual_values(sigma)
            self.regrets[turn] += _advantage(self.tree, sigma, value)[turn]
            if self.plus:
                np.maximum(self.regrets, 0.0, out=self.regrets)
            self._sum[turn] += (self.t if self.linear else 1) * (reach[:, None] * sigma)[turn]


def cfr_plus(tree: Tree) -> CFR:
    """CFR+ (Tammelin 2014): regrets cut off at 0, seats in turn, weight t in the average."""
    return CFR(tree, alternating=True, plus=True, linear=True)


class _Node:
    """A history met by external sampling, with what its state says of it and the histories met below it."""

    __slots__ = ("actions", "chances", "children", "mover", "returns", "row", "state")

    def __init__(self, state: State, rows: dict[Hashable, tuple[list[float], list[float]]]):
        self.state, self.mover = state, state.player()
        self.actions: Sequence[int] = ()
        self.chances: Sequence[float] = ()
        self.returns: Sequence[float] = ()
        if self.mover == TERMINAL:
            self.returns = state.returns()
        elif self.mover == CHANCE:
            self.actions, self.chances = zip(*state.chance(), strict=True)
        else:
            self.actions = state.legal()
            zeros = [0.0] * len(self.actions)
            self.row = rows.setdefault(state.infoset(self.mover), (zeros, zeros.copy()))
        self.children: list[_Node | None] = [None] * len(self.actions)


class ExternalSampling:
    """Monte Carlo CFR that tries every action of one seat and samples chance and all other seats.

    Visits to an information set are proportional to π_{-p}, so sampled regrets need no importance weights. In games of
    more than two seats the average is weighted by all seats but the traverser, not by π_p alone. Histories are kept
    once met, about 0.5 kB each.

    Attributes:
        rows: Of every information set met: cumulative regrets and sum of strategies, a number for each legal action.
        t: Steps made.
    """

    def __init__(self, root: State, seats: int = 2, seed: int = 0, linear: bool = False):
        """Start with no regret.

        Args:
            root: The first state of the game.
            seats: Number of players.
            seed: Of the generator that samples.
            linear: Whether step t has weight t in the average, instead of 1.
        """
        self.seats, self.linear, self.t = seats, linear, 0
        self._uniform = _uniforms(np.random.default_rng(seed)).__next__
        self.rows: dict[Hashable, tuple[list[float], list[float]]] = {}
        self._root = _Node(root, self.rows)

    def strategy(self, regrets: list[float]) -> list[float]:
        """Regret matching with the uniform rule, on plain floats: few actions, many calls."""
        positive = [r if r > 0 else 0.0 for r in regrets]
        total = sum(positive)
        return [r / total for r in positive] if total > 0 else [1 / len(regrets)] * len(regrets)

    def average(self) -> dict[Hashable, np.ndarray]:
        """The average strategy of every information set in which a seat was seen as an opponent."""
        return {key: np.array(row[1]) / sum(row[1]) for key, row in self.rows.items() if sum(row[1]) > 0}

    def step(self) -> None:
        """One iteration: a traversal for each seat."""
        self.t += 1
        for seat in range(self.seats):
            self.traverse(seat)

    def traverse(self, seat: int) -> float:
        """Sample a traversal for a seat: update its regrets and the averages of the others; return its utility."""
        return self._visit(self._root, seat)

    def _visit(self, node: _Node, seat: int) -> float:
        mover = node.mover
        if mover == TERMINAL:
            return node.returns[seat]
        if mover == CHANCE:
            return self._visit(self._child(node, self._draw(node.chances)), seat)
        regrets, total = node.row
        sigma = self.strategy(regrets)
        if mover != seat:
            weight = self.t if self.linear else 1
            for i, probability in enumerate(sigma):
                total[i] += weight * probability
            return self._visit(self._child(node, self._draw(sigma)), seat)
        values = [self._visit(self._child(node, i), seat) for i in range(len(sigma))]
        value = sum(map(mul, sigma, values))
        for i, v in enumerate(values):
            regrets[i] += v - value
        return value

    def _child(self, node: _Node, i: int) -> _Node:
        child = node.children[i]
        if child is None:
            child = node.children[i] = _Node(node.state.child(node.actions[i]), self.rows)
        return child

    def _draw(self, probabilities: Sequence[float]) -> int:
        left = self._uniform()
        for i, probability in enumerate(probabilities):
            left -= probability
            if left < 0:
                return i
        return max(i for i, probability in enumerate(probabilities) if probability > 0)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()


def expected_values(tree: Tree, sigma: Table) -> np.ndarray:
    """u_p(σ), the expected utility of every seat ``[P]``."""
    return tree.values(sigma)[0]


def best_response(tree: Tree, sigma: Table, seat: int) -> tuple[Table, float]:
    """The best a seat can do against what the others play.

    Its decisions are settled from the last to the first, each by its counterfactual values given the later ones.

    Returns:
        The strategy with the seat's part replaced by pure choices ``[I, A]``, and the seat's expected utility with it.
    """
    best = sigma.copy()
    own = tree.owner == seat
    for depth in range(int(tree.depth[own].max(initial=-1)), -1, -1):
        now = own & (tree.depth == depth)
        value, _ = tree.counterfactual_values(best)
        choice = np.where(tree.mask, value, -np.inf).argmax(1)
        best[now] = np.eye(sigma.shape[1])[choice[now]]
    return best, float(expected_values(tree, best)[seat])


def nash_conv(tree: Tree, sigma: Table) -> float:
    """What all seats together could gain by each answering best; 0 in an equilibrium."""
    values = expected_values(tree, sigma)
    return sum(best_response(tree, sigma, seat)[1] - float(values[seat]) for seat in range(tree.seats))


def exploitability(tree: Tree, sigma: Table) -> float:
    """NashConv divided by the number of seats: what a best response wins on average."""
    return nash_conv(tree, sigma) / tree.seats
