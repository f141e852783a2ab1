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
from typing import Literal

import numpy as np
from agentgym.envs.werewolf_rules import ROLES, Rules
from agentgym.envs.werewolf_text import write_action
from agentgym.trainers.lspo_pairs import Ear, abstract, statement

from agentgym.deep_cfr import DeepCFR
from agentgym.errors import ConfigError
from agentgym.policies.around import AroundPolicy
from agentgym.policies.base import Generation, Policy, Request, Session

Mode = Literal["llm", "hybrid", "rerank"]


class StrategicPolicy(AroundPolicy):
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
        super().__init__(inner)
        self.solver, self.rules, self.ear, self.mode, self.candidates = solver, rules, ear, mode, candidates

    async def write(self, inner: Session, request: Request) -> Generation:
        """Write a turn, or let σ decide."""
        info = request.info
        speaks = info["phase"] == "discussion"
        if self.mode == "llm" or (speaks and self.mode == "hybrid"):
            return await inner.generate(request)
        state, _ = abstract(*info["record"], self.rules, self.ear)
        seat = state.player()
        mask = state.mask(seat).astype(bool)
        sigma = self.solver.average(state.tensor(seat)[None], mask[None])[0]
        if speaks:
            found = [await inner.generate(request) for _ in range(self.candidates)]
            return found[self._spoken(request, found, sigma)]
        legal = np.flatnonzero(mask)
        command = info["admissible_commands"][int(request.rng.choice(len(legal), p=_normed(sigma[legal])))]
        ids = request.encode_action(command if info["brief"] else write_action(command))
        return Generation(ids, [math.nan] * len(ids), -1, "stop")

    def _spoken(self, request: Request, found: list[Generation], sigma: np.ndarray) -> int:
        """Which candidate is said: its latent is drawn from σ among those present."""
        info, n = request.info, self.ear.players
        role = ROLES.index(str(info["role"]))
        texts = [statement(self.renderer.decode_reply(g.ids), info["brief"], 10**6) for g in found]
        of = [None if text is None else self.ear(info["view"].seat, role, text)[0] for text in texts]
        present = sorted({latent for latent in of if latent is not None})
        if not present:
            return 0
        chosen = present[int(request.rng.choice(len(present), p=_normed(sigma[[n + 1 + z for z in present]])))]
        members = [i for i, latent in enumerate(of) if latent == chosen]
        return members[int(request.rng.integers(len(members)))]


def _normed(weights: np.ndarray) -> np.ndarray:
    """Weights as probabilities; uniform where all are 0."""
    weights = np.asarray(weights, float)
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
