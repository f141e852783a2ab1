"""Deep CFR (Brown et al. 2019), with external sampling or the truncated search of LSPO (2502.04686).

A network V for each role stands for the table of regrets, a network Π for the average strategy.

| equation | function |
|---|---|
| σ_t(I, ·) ∝ V⁺(x(I), ·) | `DeepCFR.strategy` |
| r̃(I, a) = ṽ(a) − Σ_b σ_t(I, b) ṽ(b); Search(h, p, d) | `cfr_search.Traversals` |
| L_V = E[ t'/t Σ_{a legal} (r̃(a) − V(x, a))² ] | `cfr_nets.advantage_loss` |
| L_Π = E[ t'/t Σ_a (σ(a) − Π(x, a))² ] | `cfr_nets.policy_loss` |

With ``depth=None`` this is Deep CFR and converges in two-player zero-sum games. The truncated search is a heuristic:
visits are in proportion to π_p π_{-p} instead of π_{-p}, which exploration softens, and games of many seats have no
guarantee anyway. Play the average strategy, not the last one.

    game = Game(Kuhn(), seats=2, actions=2, inputs=11, roles=2)
    solver = DeepCFR(game, DeepCFRConfig(hidden=(64, 64), steps=200, batch=512))
    for _ in range(50):
        solver.step()
        solver.save(folder)
    solver.fit_average()
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from agentgym.cfr import RULES, regret_matching
from agentgym.cfr_nets import evaluate, fit_advantage, fit_policy, masked_softmax, mlp
from agentgym.cfr_search import Decision, Game, Request, Traversals, play
from agentgym.errors import ConfigError, unknown
from agentgym.game_tree import Table, Tree
from agentgym.games import State
from agentgym.reservoir import Reservoir


@dataclass(frozen=True)
class DeepCFRConfig:
    """Settings of `DeepCFR`.

    Attributes:
        traversals: Traversals of each seat an iteration; sampled games, if the search is truncated.
        depth: Own decisions that a search tries all actions of (d_max); None for all, from the root.
        rollouts: Games played to the end below the last of them (M).
        explore: Probability of a random own move in the games that searches start from (ε).
        scale: Utilities are divided by it.
        rule: Regret matching where no advantage is positive: ``uniform`` or ``argmax``.
        capacity: Items of the reservoir of each role.
        policy_capacity: Items of the reservoir of the average strategy.
        hidden: Widths of the hidden layers.
        steps: Adam steps of a fit.
        batch: Items of a step.
        lr: Learning rate.
        concurrent: Traversals that are played at a time.
        device: Where the networks are.
    """

    traversals: int = 200
    depth: int | None = None
    rollouts: int = 1
    explore: float = 0.1
    scale: float = 1.0
    rule: str = "uniform"
    capacity: int = 500_000
    policy_capacity: int = 500_000
    hidden: tuple[int, ...] = (256, 256, 256)
    steps: int = 1500
    batch: int = 4096
    lr: float = 1e-3
    concurrent: int = 512
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        for name in ("traversals", "rollouts", "capacity", "policy_capacity", "steps", "batch", "concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"depth={self.depth}: must be at least 1, or None for the whole game")
        if not 0 <= self.explore <= 1:
            raise ConfigError(f"explore={self.explore}: must be between 0 and 1")
        if self.scale <= 0 or self.lr <= 0:
            raise ConfigError(f"scale={self.scale}, lr={self.lr}: must be positive")


class DeepCFR:
    """Regret minimisation with networks.

    Attributes:
        t: Iterations made.
        advantages: Reservoir of regrets of each role.
        policies: Reservoir of strategies, of all roles.
        decisions: Decisions answered so far.
    """

    def __init__(self, game: Game, config: DeepCFRConfig, seed: int = 0):
        """Start with the uniform strategy and empty reservoirs."""
        self.game, self.config = game, config
        self.rng = np.random.default_rng(seed)
        self.t = self.decisions = 0
        own = self.rng.spawn(game.roles + 1)
        sizes = (game.inputs, game.actions)
        self.advantages = [Reservoir(config.capacity, *sizes, rng) for rng in own[1:]]
        self.policies = Reservoir(config.policy_capacity, *sizes, own[0])
        self.nets: list[nn.Module | None] = [None] * game.roles
        self.average_net: nn.Module | None = None
        self._traversals = Traversals(game, self.rng, config.depth, config.rollouts, config.explore, config.scale)

    def step(self) -> dict[str, float]:
        """One iteration: traversals for every seat, then every role's network is fitted afresh.

        Returns:
            Loss of each role's fit.
        """
        self.t += 1
        self.traverse()
        self._store()
        losses = {}
        for role, memory in enumerate(self.advantages):
            if len(memory):
                self.nets[role], losses[f"cfr/advantage_loss_{role}"] = self._fit(memory, fit_advantage)
        return losses

    def traverse(self) -> None:
        """The traversals of an iteration, all seats together: from the root, or from each decision in sampled games."""
        seats = np.repeat(range(self.game.seats), self.config.traversals).tolist()
        find, many = self._traversals, self.config.concurrent
        starts = [(self.game.root, seat) for seat in seats]
        if self.config.depth is not None:
            games = play(map(find.sample_game, seats), self.decide, many)
            starts = [(state, seat) for seat, game in zip(seats, games, strict=True) for state in game]
        play((find.search(state, seat, 0) for state, seat in starts), self.decide, many)

    def fit_average(self, steps: int | None = None) -> float:
        """Fit the network of the average strategy; once, at the end.

        Args:
            steps: Adam steps, if not those of the configuration.

        Returns:
            The loss.
        """
        self.average_net, loss = self._fit(self.policies, fit_policy, steps)
        return loss

    def regrets(self, role: int, x: np.ndarray) -> np.ndarray:
        """V(x, ·) of a role ``[n, A]`` for inputs ``[n, inputs]``: regrets up to a positive factor; 0 before a fit."""
        net = self.nets[role]
        return np.zeros((len(x), self.game.actions)) if net is None else evaluate(net, x).astype(float)

    def strategy(self, role: int, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """σ of the last iteration ``[n, A]``; uniform before a fit."""
        if self.nets[role] is None:
            return mask / mask.sum(1, keepdims=True)
        return regret_matching(self.regrets(role, x), mask, self.config.rule)

    def average(self, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Π(x, ·), the average strategy ``[n, A]``, for inputs ``[n, inputs]`` and legal actions ``[n, A]``.

        Raises:
            ConfigError: If `fit_average` was not called.
        """
        if self.average_net is None:
            raise ConfigError("the average strategy has no network yet: call fit_average first")
        logits = torch.from_numpy(evaluate(self.average_net, x)).double()
        return masked_softmax(logits, torch.from_numpy(mask)).numpy()

    def observe(self, decisions: Sequence[tuple[State, int]]) -> tuple[np.ndarray, np.ndarray]:
        """What seats see ``[n, inputs]``, and their legal actions ``[n, A]``."""
        x = np.stack([state.tensor(seat) for state, seat in decisions])
        mask = np.zeros((len(x), self.game.actions), bool)
        for row, (state, _) in zip(mask, decisions, strict=True):
            row[list(state.legal())] = True
        return x, mask

    def table(self, tree: Tree, average: bool = True) -> Table:
        """The average or the last strategy in a small game ``[I, A]``, to measure its exploitability."""
        decisions = [(state, int(seat)) for state, seat in zip(tree.states, tree.owner, strict=True)]
        x, mask = self.observe(decisions)
        if average:
            sigma = self.average(x, mask)
        else:
            roles = [self.game.role(*decision) for decision in decisions]
            sigma = np.concatenate(
                [self.strategy(r, x[i : i + 1], mask[i : i + 1]) for i, r in enumerate(roles)],
            )
        table = np.zeros(tree.mask.shape)
        for row, probabilities, actions in zip(table, sigma, tree.actions, strict=True):
            row[: len(actions)] = probabilities[list(actions)]
        return table

    def decide(self, requests: Sequence[Request]) -> list[Decision]:
        """Answer decisions together: one forward for each role among them."""
        self.decisions += len(requests)
        x, mask = self.observe([request[:2] for request in requests])
        roles = np.array([self.game.role(state, seat) for state, seat, _ in requests])
        sigma = np.empty(mask.shape)
        for role in np.unique(roles):
            at = roles == role
            sigma[at] = self.strategy(int(role), x[at], mask[at])
        explore = np.array([request.explore for request in requests])[:, None]
        below = ((1 - explore) * sigma + explore * mask / mask.sum(1, keepdims=True)).cumsum(1)
        actions = (below / below[:, -1:] > self.rng.random((len(x), 1))).argmax(1)
        return list(map(Decision, x, mask, sigma, actions.tolist()))

    def save(self, folder: Path) -> None:
        """Write ``folder/save_N``, whole or not at all, then remove the ones before it."""
        folder.mkdir(parents=True, exist_ok=True)
        before = sorted(folder.glob("save_*"))
        done = folder / f"save_{int(before[-1].name[5:]) + 1 if before else 0:06d}"
        tmp = folder / f".{done.name}.tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        try:
            for name, memory in self._memories().items():
                memory.save(tmp / name)
            nets = [net and net.state_dict() for net in (*self.nets, self.average_net)]
            rng = json.dumps(self.rng.bit_generator.state)
            torch.save({"t": self.t, "decisions": self.decisions, "rng": rng, "nets": nets}, tmp / "solver.pt")
            tmp.rename(done)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        for old in before:
            shutil.rmtree(old)

    def resume(self, folder: Path) -> bool:
        """Go on from the last save in a folder, on a CPU bit by bit; False if there is none.

        Raises:
            ConfigError: If what is there is damaged, or of another game or configuration.
        """
        found = sorted(folder.glob("save_*"))
        if not found:
            return False
        memories = {name: Reservoir.load(found[-1] / name) for name in self._memories()}
        for name, memory in self._memories().items():
            sizes = [(m.capacity, m.x.shape[1], m.y.shape[1]) for m in (memories[name], memory)]
            if sizes[0] != sizes[1]:
                text = "{} items of {} inputs and {} actions"
                raise ConfigError(
                    f"{found[-1] / name} holds {text.format(*sizes[0])}, expected {text.format(*sizes[1])}"
                )
        try:
            saved = torch.load(found[-1] / "solver.pt", weights_only=True, map_location=self.config.device)
            nets = [state and self._net(0) for state in saved["nets"]]
            for net, state in zip(nets, saved["nets"], strict=True):
                if net is not None:
                    net.load_state_dict(state)
            *self.nets, self.average_net = nets
            self.t, self.decisions = saved["t"], saved["decisions"]
            self.rng.bit_generator.state = json.loads(saved["rng"])
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{found[-1] / 'solver.pt'} is damaged or of another config ({reason}): remove the folder to begin anew"
            ) from error
        self.policies, self.advantages = memories.pop("policy.npz"), list(memories.values())
        return True

    def _memories(self) -> dict[str, Reservoir]:
        return {
            **{f"advantage_{role}.npz": memory for role, memory in enumerate(self.advantages)},
            "policy.npz": self.policies,
        }

    def _store(self) -> None:
        found = self._traversals
        for items, memory in [(found.strategies, self.policies), *zip(found.regrets, self.advantages, strict=True)]:
            if items:
                x, mask, y = map(np.stack, zip(*items, strict=True))
                memory.add(x, mask, y, self.t)
                items.clear()

    def _net(self, seed: int) -> nn.Module:
        return mlp(self.game.inputs, self.game.actions, self.config.hidden, seed).to(self.config.device)

    def _fit(self, memory: Reservoir, fit: Callable[..., float], steps: int | None = None) -> tuple[nn.Module, float]:
        c, (seed, batches) = self.config, self.rng.integers(2**31, size=2).tolist()
        net = self._net(seed)
        return net, fit(net, memory, self.t, steps or c.steps, c.batch, c.lr, batches)
