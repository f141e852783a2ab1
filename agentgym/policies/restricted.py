"""A language model that chooses among the environment's admissible actions instead of writing freely.

The score of an action is the log-probability of its tokens, divided by its number of words so that long actions are
not at a disadvantage; the choice is drawn from the softmax of the scores (TWOSOME, 2401.14151; POAD's restricted
action sets, 2405.15821).

    s(a) = Σ_j log π(w_j | o, w_<j) / words(a),      P(a | o) = softmax_a s(a)

The closing token of the reply counts as a token of the action, since the row holds it; so no action is a prefix of
another. What was scored once is not scored again until the weights change: a small environment shows the same few
states over and over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from agentgym.errors import ConfigError, ContextFull, EngineError
from agentgym.learner.attention import Packed, hidden_states, logits_at
from agentgym.policies.base import Generation, Request
from agentgym.policies.hf import HFPolicy
from agentgym.types import Candidate

Normalise = Literal["words", "none"]
_KEPT = 4096
"""Prompts whose scores are kept."""


def scores(logps: Sequence[float], words: Sequence[int], normalise: Normalise) -> np.ndarray:
    """Scores s of the candidates ``[K]``, from the log-probabilities of their tokens together and their words."""
    divisor = np.asarray(words, float) if normalise == "words" else 1.0
    return np.asarray(np.asarray(logps, float) / divisor)


def choice_probabilities(score: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """P of the candidates ``[K]``: the softmax of their scores; at temperature 0 all on the first of the best."""
    if temperature == 0:
        return np.eye(len(score))[int(np.argmax(score))]
    weights = np.exp((score - score.max()) / temperature)
    return np.asarray(weights / weights.sum())


def require_choice(info: Mapping[str, Any]) -> list[str]:
    """The admissible actions.

    Raises:
        ConfigError: If the environment names none.
    """
    actions = info.get("admissible_commands")
    if not actions:
        raise ConfigError(
            "a restricted choice needs an environment whose info holds admissible_commands, and this one gives none: "
            "let the model write freely (algo.acting=free)"
        )
    return list(actions)


def words_of(action: str) -> int:
    """Words of an action, as white space parts them; at least 1."""
    return max(1, len(action.split()))


class RestrictedPolicy:
    """The policy protocol over a model that only chooses.

    Attributes:
        inner: The policy that holds the model.
        normalise: Divide the log-probability of an action by its ``words``, or by ``none``.
    """

    def __init__(self, inner: HFPolicy, normalise: Normalise = "words"):
        """Choose with the model of ``inner``."""
        self.inner, self.normalise, self.name = inner, normalise, inner.name
        self.renderer, self.context_limit, self.version = inner.renderer, inner.context_limit, inner.version
        self.env_options: dict[str, Any] = {}
        self._scored: dict[tuple[tuple[int, ...], ...], list[list[float]]] = {}

    def open(self) -> RestrictedSession:
        """Open a place for episodes."""
        return RestrictedSession(self)

    async def score(self, ids: list[int], start: int) -> list[float]:
        """Log-probabilities of ``ids[start:]``."""
        return await self.inner.score(ids, start)

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Take new weights."""
        self.inner.load_weights(state, version)
        self.version = version
        self._scored.clear()

    def weights_changed(self, version: int) -> None:
        """The model's weights were changed in place."""
        self.inner.weights_changed(version)
        self.version = version
        self._scored.clear()

    def choose(self, request: Request) -> Generation:
        """Score the admissible actions and draw one.

        Raises:
            ConfigError: If the environment names none.
            ContextFull: If the longest does not fit.
        """
        if request.images:
            raise ConfigError("a restricted choice reads text only: let the model write freely (algo.acting=free)")
        actions = require_choice(request.info)
        ids = [request.encode_action(action) for action in actions]
        longest = len(request.ids) + max(map(len, ids))
        if self.context_limit is not None and longest > self.context_limit:
            raise ContextFull(f"{longest} tokens of prompt and action exceed the model's {self.context_limit}")
        key = (tuple(request.ids), *map(tuple, ids))
        if key not in self._scored:
            if len(self._scored) == _KEPT:
                self._scored.clear()
            try:
                self._scored[key] = self._logps(request.ids, ids)
            except Exception as error:
                raise EngineError(f"scoring failed: {error!r}") from error
        logps = self._scored[key]
        found = [
            Candidate(tokens, words_of(action), float(sum(logp)))
            for action, tokens, logp in zip(actions, ids, logps, strict=True)
        ]
        score = scores([c.logp for c in found], [c.words for c in found], self.normalise)
        k = int(request.rng.choice(len(found), p=choice_probabilities(score, request.temperature)))
        return Generation(ids[k], list(logps[k]), self.version, "stop", candidates=found)

    @torch.inference_mode()
    def _logps(self, prompt: list[int], candidates: Sequence[list[int]]) -> list[list[float]]:
        """Log-probability of every token of every candidate, in one forward that computes the prompt once."""
        model, device = self.inner.model, self.inner.device
        flat, positions, cu, at = list(prompt), list(range(len(prompt))), [0, len(prompt)], []
        for ids in candidates:
            at += [len(prompt) - 1, *range(len(flat), len(flat) + len(ids) - 1)]
            flat += ids
            positions += range(len(prompt), len(prompt) + len(ids))
            cu.append(len(flat))
        layout = Packed(cu, [-1, *[0] * len(candidates)])
        hidden = hidden_states(model, torch.tensor(flat, device=device), torch.tensor(positions, device=device), layout)
        logp = logits_at(model, hidden[torch.tensor(at, device=device)]).float().log_softmax(-1)
        targets = torch.tensor([token for ids in candidates for token in ids], device=device)
        picked = logp.gather(1, targets[:, None])[:, 0].cpu()
        return [part.tolist() for part in picked.split([len(ids) for ids in candidates])]


class RestrictedSession:
    """Nothing is kept between turns."""

    live = True

    def __init__(self, policy: RestrictedPolicy):
        self.policy = policy

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode."""

    async def generate(self, request: Request) -> Generation:
        """Choose one turn's action."""
        return self.policy.choose(request)

    def close(self) -> None:
        """End."""
