"""How what LSPO learned is played: by the language model alone, or together with the strategy σ of the abstract game.

| mode     | speech                                                                              | night, vote        |
|----------|-------------------------------------------------------------------------------------|--------------------|
| `llm`    | the model's                                                                         | the model's        |
| `hybrid` | the model's                                                                         | drawn from σ(x)    |
| `rerank` | one of N candidates, their latent drawn from σ(x) among those that are present      | drawn from σ(x)    |
| `intent` | the model's, told a latent that is drawn from σ(x), by examples                     | drawn from σ(x)    |

σ is the average strategy, the one that converges. LSPO (2502.04686) does not spell out how it plays; `intent` is its
ablation without fine-tuning, and how a Cicero-like agent speaks (`lspo_acts`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from agentgym.envs.werewolf_game import State
from agentgym.envs.werewolf_prompts import EXAMPLES
from agentgym.envs.werewolf_rules import Rules
from agentgym.envs.werewolf_text import name, write_action
from agentgym.trainers.lspo_pairs import Hears, abstract, decisions, statement

from agentgym.deep_cfr import DeepCFR
from agentgym.errors import ConfigError, ContextFull
from agentgym.latents import Latents
from agentgym.policies.around import AroundPolicy, asked, unscored
from agentgym.policies.base import Generation, Policy, Request, Session

Mode = Literal["llm", "hybrid", "rerank", "intent"]
Intents = Callable[[int, int, int, int], str]
"""Role, latent strategy, seat that speaks and seat that it names (the number of seats if none) -> what to say."""
_SHOWN = 3


class Strategist:
    """The average strategy of the abstract game, in games of text.

    Attributes:
        solver: Whose strategy; `DeepCFR.fit_average` has been called.
        rules: Of the abstract game.
        ear: Hears what is said.
    """

    def __init__(self, solver: DeepCFR, rules: Rules, ear: Hears):
        """Join them.

        Raises:
            ConfigError: If the solver has no average strategy.
        """
        if solver.average_net is None:
            raise ConfigError("the solver has no average strategy yet: call fit_average first")
        self.solver, self.rules, self.ear = solver, rules, ear

    def state(self, record: Any) -> State:
        """The abstract game of what ``infos[agent]["record"]`` tells."""
        return abstract(*record, self.rules, self.ear)[0]

    def sigma(self, state: State) -> np.ndarray:
        """σ of the seat to move ``[A]``."""
        seat = state.player()
        mask = state.mask(seat).astype(bool)
        found: np.ndarray = self.solver.average(state.tensor(seat)[None], mask[None])[0]
        return found

    def draw(self, state: State, rng: np.random.Generator) -> int:
        """An action drawn from σ."""
        legal = state.legal()
        return legal[int(rng.choice(len(legal), p=normed(self.sigma(state)[legal])))]

    def speech(self, state: State, rng: np.random.Generator) -> tuple[int, int]:
        """A latent strategy drawn from σ, and whom it names (the number of seats if nobody)."""
        n = self.rules.n
        latent = self.draw(state, rng)
        named = state.child(latent)
        return latent - n - 1, self.draw(named, rng) if named.naming else n


class StrategicPolicy(AroundPolicy):
    """A language model that lets a strategy of the abstract game decide; for evaluation, not to be trained on.

    It plays in `agentgym.envs.werewolf` in text: the game so far is played again as the abstract one, of which the
    strategy sees what its own seat may know.

    Attributes:
        inner: The language model.
        mode: See above.
    """

    def __init__(
        self,
        inner: Policy,
        strategist: Strategist,
        mode: Mode = "hybrid",
        candidates: int = 3,
        intents: Intents | None = None,
    ):
        """Join a model and a strategy.

        Args:
            inner: The language model.
            strategist: The strategy.
            mode: llm, hybrid, rerank or intent.
            candidates: N.
            intents: Says in words what a latent strategy is, for the mode ``intent``.

        Raises:
            ConfigError: If intents are missing.
        """
        if mode == "intent" and intents is None:
            raise ConfigError("mode=intent needs intents: what the model is told to say")
        super().__init__(inner)
        self.strategist, self.mode, self.candidates, self.intents = strategist, mode, candidates, intents

    async def write(self, inner: Session, request: Request) -> Generation:
        """Write a turn, or let σ decide."""
        info = request.info
        speaks = info.get("phase") == "discussion"
        if self.mode == "llm" or "phase" not in info or (speaks and self.mode == "hybrid"):
            return await inner.generate(request)
        state = self.strategist.state(info["record"])
        if speaks and self.mode == "intent":
            return await self._intended(inner, request, state)
        if speaks:
            found = [await inner.generate(request) for _ in range(self.candidates)]
            return found[self._spoken(request, found, state)]
        decided = state.legal().index(self.strategist.draw(state, request.rng))
        command = info["admissible_commands"][decided]
        ids = request.encode_action(command if info["brief"] else write_action(command))
        return Generation(ids, [math.nan] * len(ids), -1, "stop")

    async def _intended(self, inner: Session, request: Request, state: State) -> Generation:
        assert self.intents is not None
        seat = state.player()
        latent, target = self.strategist.speech(state, request.rng)
        told = self.intents(state.roles[seat], latent, seat, target)
        try:
            return unscored(await asked(inner, self.renderer, request, self.context_limit, told))
        except ContextFull:
            plain = await inner.generate(request)
            return replace(plain, usage={**plain.usage, "intents_lost": 1})

    def _spoken(self, request: Request, found: Sequence[Generation], state: State) -> int:
        """Which candidate is said: what it is in the abstract game is drawn from σ among what is present."""
        seat, brief = state.player(), request.info["brief"]
        members: dict[tuple[int, ...], list[int]] = {}
        weights: dict[tuple[int, ...], float] = {}
        for number, generation in enumerate(found):
            text = statement(self.renderer.decode_reply(generation.ids), brief, 10**6)
            if text is None:
                continue
            made = decisions(state, self.strategist.ear(seat, state.roles[seat], text))
            key = tuple(action for _, action in made)
            members.setdefault(key, []).append(number)
            if key not in weights:
                weights[key] = math.prod(float(self.strategist.sigma(at)[action]) for at, action in made)
        if not members:
            return 0
        present = sorted(members)
        chosen = members[present[int(request.rng.choice(len(present), p=normed([weights[key] for key in present])))]]
        return chosen[int(request.rng.integers(len(chosen)))]


def examples(latents: Latents, n: int) -> Intents:
    """Latent strategies told by the speeches that are nearest to their centres, for ``n`` seats."""
    roles = [[latents.examples(role, z, _SHOWN) for z in range(k)] for role, k in enumerate(latents.counts)]

    def told(role: int, latent: int, seat: int, target: int) -> str:
        return EXAMPLES.format("\n".join(spoken(text, seat, target, n) for text in roles[role][latent]))

    return told


def spoken(text: str, seat: int, target: int, n: int) -> str:
    """A speech of `agentgym.latents.relative` said by a seat, about a seat (the number ``n`` of seats: nobody)."""
    text = re.sub(r"\bme\b", name(seat), text)
    return text if target == n else re.sub(r"\bsomeone\b", name(target), text)


def normed(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weights as probabilities; uniform where all are 0."""
    weights = np.asarray(weights, float)
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
