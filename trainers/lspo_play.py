"""How what LSPO learned is played: by the language model alone, or together with the strategy σ of the abstract game.

| mode     | speech                                                                              | night, vote        |
|----------|-------------------------------------------------------------------------------------|--------------------|
| `llm`    | the model's                                                                         | the model's        |
| `hybrid` | the model's                                                                         | drawn from σ(x)    |
| `rerank` | one of N candidates, their latent drawn from σ(x) among those that are present      | drawn from σ(x)    |

σ is the average strategy, the one that converges. LSPO (2502.04686) does not spell out how it plays.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from agentgym.envs.werewolf_rules import ROLES, Rules
from agentgym.envs.werewolf_text import write_action
from agentgym.trainers.lspo_pairs import Ear, abstract, statement

from agentgym.deep_cfr import DeepCFR
from agentgym.errors import ConfigError
from agentgym.policies.base import Generation, Policy, Request, Session
from agentgym.policies.engine import Engine

Mode = Literal["llm", "hybrid", "rerank"]


class StrategicPolicy:
    """A language model that lets a strategy of the abstract game decide; for evaluation, not to be trained on.

    It plays in `agentgym.envs.werewolf` in text: the game so far is played again as the abstract one, of which the
    strategy sees what its own seat may know.

    Attributes:
        inner: The language model.
        mode: See above.
    """

    def __init__(
        self, inner: Policy, solver: DeepCFR, rules: Rules, ear: Ear, mode: Mode = "hybrid", candidates: int = 3
    ):
        """Join a model and a strategy.

        Args:
            inner: The language model.
            solver: Its average strategy decides; `DeepCFR.fit_average` has been called.
            rules: Of the abstract game.
            ear: Hears what is said, and candidates.
            mode: llm, hybrid or rerank.
            candidates: N.

        Raises:
            ConfigError: If the solver has no average strategy.
        """
        if solver.average_net is None:
            raise ConfigError("the solver has no average strategy yet: call fit_average first")
        self.inner, self.solver, self.rules, self.ear = inner, solver, rules, ear
        self.mode, self.candidates = mode, candidates

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def engine(self) -> Engine:
        """What computes the inner policy's turns."""
        found: Engine = self.inner.engine  # type: ignore[attr-defined]
        return found

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self.inner.engine = engine  # type: ignore[attr-defined]

    def open(self) -> StrategicSession:
        """Open a place for episodes."""
        return StrategicSession(self, self.inner.open())


class StrategicSession:
    """A session of the model."""

    def __init__(self, policy: StrategicPolicy, inner: Session):
        self._policy, self._inner = policy, inner

    @property
    def live(self) -> bool:
        """Whether the engine waits for this session."""
        return self._inner.live

    @live.setter
    def live(self, value: bool) -> None:
        self._inner.live = value

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode."""
        self._inner.begin(key, group)

    async def generate(self, request: Request) -> Generation:
        """Write one turn."""
        policy, info = self._policy, request.info
        speaks = info["phase"] == "discussion"
        if policy.mode == "llm" or (speaks and policy.mode == "hybrid"):
            return await self._inner.generate(request)
        state, _ = abstract(*info["record"], policy.rules, policy.ear)
        seat = state.player()
        mask = state.mask(seat).astype(bool)
        sigma = policy.solver.average(state.tensor(seat)[None], mask[None])[0]
        if speaks:
            found = [await self._inner.generate(request) for _ in range(policy.candidates)]
            return found[self._spoken(request, found, sigma)]
        legal = np.flatnonzero(mask)
        command = info["admissible_commands"][int(request.rng.choice(len(legal), p=_normed(sigma[legal])))]
        ids = request.encode_action(command if info["brief"] else write_action(command))
        return Generation(ids, [math.nan] * len(ids), -1, "stop")

    def _spoken(self, request: Request, found: list[Generation], sigma: np.ndarray) -> int:
        """Which candidate is said: its latent is drawn from σ among those present."""
        policy, info = self._policy, request.info
        role, n = ROLES.index(str(info["role"])), policy.ear.players
        texts = [statement(policy.renderer.decode_reply(g.ids), info["brief"], 10**6) for g in found]
        of = [None if text is None else policy.ear(info["view"].seat, role, text)[0] for text in texts]
        present = sorted({latent for latent in of if latent is not None})
        if not present:
            return 0
        chosen = present[int(request.rng.choice(len(present), p=_normed(sigma[[n + 1 + z for z in present]])))]
        members = [i for i, latent in enumerate(of) if latent == chosen]
        return members[int(request.rng.integers(len(members)))]

    def close(self) -> None:
        """Give the place back."""
        self._inner.close()


def _normed(weights: np.ndarray) -> np.ndarray:
    """Weights as probabilities; uniform where all are 0."""
    weights = np.asarray(weights, float)
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
