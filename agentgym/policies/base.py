"""The protocol between an episode and whatever writes its actions: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from agentgym.errors import EngineError
from agentgym.pictures import Picture
from agentgym.policies.probe import Probe
from agentgym.renderer import Renderer
from agentgym.types import Candidate, ImageSpan, Message


@dataclass
class Request:
    """One turn to be written.

    Attributes:
        ids: The whole prompt.
        max_new_tokens: Most tokens to sample, the closing token included.
        rng: Generator of this turn.
        temperature: Sampling temperature; 0 takes the most likely token.
        top_p: Nucleus; 1 samples from the whole distribution.
        info: What the environment told beside the observation. For scripted policies only: a language model
            sees ``ids`` and nothing else.
        encode_action: Turns an action into the ids of a reply that the episode's codec will read back.
        messages: The conversation that ``ids`` render, for a policy that takes text.
        tools: JSON schemas of the environment's tools, for a policy that passes them on in a way of its own; the first
            message holds them too.
        probe: What to score before the turn is written; a policy that cannot gives no score.
        images: Where in ``ids`` images stand.
        pictures: The images by hash, those of ``messages`` too.
    """

    ids: list[int]
    max_new_tokens: int
    rng: np.random.Generator
    temperature: float = 1.0
    top_p: float = 1.0
    info: Mapping[str, Any] = field(default_factory=dict)
    encode_action: Callable[[str], list[int]] = field(default=lambda action: list(action.encode()))
    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    probe: Probe | None = None
    images: Sequence[ImageSpan] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)


def check_request(request: Request, vocab_size: int) -> None:
    """Refuse a turn that a model with ``vocab_size`` tokens cannot write.

    Raises:
        EngineError: If so.
    """
    if not request.ids or request.max_new_tokens < 1:
        raise EngineError("a turn needs a prompt of one token and room for one new token")
    read = [*request.ids, *(request.probe.ids if request.probe else ())]
    if not 0 <= min(read) <= max(read) < vocab_size:
        raise EngineError(f"the prompt holds a token that the model does not know (it has {vocab_size})")


@dataclass
class Generation:
    """What was sampled.

    Attributes:
        ids: Sampled tokens; the closing token is the last one if the policy ended its turn.
        logps: Log-probability of each under the distribution it was drawn from (at temperature 0: under the
            model's own distribution); NaN where it is not known, which cannot be trained on.
        version: Version of the weights that sampled it, -1 for a policy without weights; of each token where they
            changed meanwhile.
        finish: ``stop`` or ``length``.
        usage: Counts to sum over the episode into ``Trajectory.info``, such as the tokens an endpoint bills.
        candidates: What a policy with a restricted choice chose from.
        probe: Mean log-probability of the tokens of the probe's answer after the prompt, at the request's temperature.
    """

    ids: list[int]
    logps: list[float]
    version: int | list[int]
    finish: Literal["stop", "length"]
    usage: Mapping[str, int] = field(default_factory=dict)
    candidates: Sequence[Candidate] = ()
    probe: float | None = None


class Session(Protocol):
    """A place for one episode at a time; a policy may keep state (a KV cache) for it between turns.

    Attributes:
        live: Whether a policy that computes in batches should wait for its next turn; True at first. A player whose
            turn it is not is parked by setting it False.
    """

    live: bool

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode. ``key`` orders it among the live ones, ``group`` names those that share a prompt."""
        ...

    async def generate(self, request: Request) -> Generation:
        """Write one turn.

        Raises:
            EngineError: If the engine failed.
        """
        ...

    def close(self) -> None:
        """Give the place back."""
        ...


class Policy(Protocol):
    """Something that writes actions.

    Attributes:
        name: Recorded in trajectories.
        renderer: Renderer of its tokenizer.
        version: Version of its weights, -1 without weights.
        context_limit: Tokens of prompt and answer that it can read, None for a policy that does not read tokens.
        env_options: Options an environment must be reset with for this policy (the expert wants hints).
    """

    name: str
    renderer: Renderer
    version: int
    context_limit: int | None
    env_options: dict[str, Any]

    def open(self) -> Session:
        """Open a place for episodes."""
        ...

    async def score(self, ids: list[int], start: int) -> list[float]:
        """Log-probabilities (temperature 1) of ``ids[start:]``, each given all ids before it."""
        ...

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Take new weights (a state dict) and their version; nothing cached from old ones survives."""
        ...
