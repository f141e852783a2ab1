"""A policy that writes several candidates for a decision and takes one of them at random.

LSPO (2502.04686) does so where a player speaks; all candidates are kept in the turn, to be compared later. The first
is sampled from the prompt as it is. With ``prompted`` each of the others is sampled behind the question for something
different from those before it; what is kept, and trained on, is always the answer to the prompt itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentgym.errors import ConfigError
from agentgym.policies.base import Generation, Policy, Request, Session
from agentgym.policies.engine import Engine
from agentgym.renderer import Renderer, Row
from agentgym.types import Candidate, Message

ANOTHER = "Now answer again, in the same form, with a strategy that differs from your answers so far."


class CandidatePolicy:
    """Another policy, with candidates for some of its decisions.

    Attributes:
        inner: Who writes.
    """

    def __init__(
        self, inner: Policy, candidates: int, when: Callable[[Mapping[str, Any]], bool], prompted: bool = False
    ):
        """Wrap a policy.

        Args:
            inner: Who writes.
            candidates: Answers that are sampled for a decision.
            when: Says from the environment's ``info`` whether a decision has candidates.
            prompted: Ask for answers that differ, which a pretrained model understands; else sample independently.

        Raises:
            ConfigError: If there are fewer than 2 candidates.
        """
        if candidates < 2:
            raise ConfigError(f"candidates is {candidates}: it must be at least 2")
        self.inner, self.candidates, self.when, self.prompted = inner, candidates, when, prompted

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

    def open(self) -> CandidateSession:
        """Open a place for episodes."""
        return CandidateSession(self, self.inner.open())


class CandidateSession:
    """A session of the inner policy."""

    def __init__(self, policy: CandidatePolicy, inner: Session):
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
        policy = self._policy
        if not policy.when(request.info):
            return await self._inner.generate(request)
        found: list[Generation] = []
        for _ in range(policy.candidates):
            asked = _another(policy.renderer, request, found) if policy.prompted and found else request
            found.append(await self._inner.generate(asked))
        texts = [policy.renderer.decode_reply(g.ids) for g in found]
        kept = [Candidate(g.ids, len(t.split()), sum(g.logps)) for g, t in zip(found, texts, strict=True)]
        return replace(found[int(request.rng.integers(len(found)))], candidates=kept)

    def close(self) -> None:
        """Give the place back."""
        self._inner.close()


def _another(renderer: Renderer, request: Request, found: Sequence[Generation]) -> Request:
    messages = list(request.messages)
    for generation in found:
        messages.append(Message(role="assistant", content=renderer.decode_reply(generation.ids)))
        messages.append(Message(role="user", content=ANOTHER))
    row = Row(renderer)
    row.prompt(messages, 0)
    return replace(request, ids=list(row.segment.ids), messages=messages)
