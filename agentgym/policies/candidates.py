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
from agentgym.policies.around import AroundPolicy, other_prompt
from agentgym.policies.base import Generation, Policy, Request, Session
from agentgym.renderer import Renderer
from agentgym.types import Candidate, Message

ANOTHER = "Now answer again, in the same form, with a strategy that differs from your answers so far."


class CandidatePolicy(AroundPolicy):
    """Another policy, with candidates for some of its decisions."""

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
        super().__init__(inner)
        self.candidates, self.when, self.prompted = candidates, when, prompted

    async def write(self, inner: Session, request: Request) -> Generation:
        """Write a turn; where it has candidates, all of them."""
        if not self.when(request.info):
            return await inner.generate(request)
        found: list[Generation] = []
        for _ in range(self.candidates):
            asked = _another(self.renderer, request, found) if self.prompted and found else request
            found.append(await inner.generate(asked))
        texts = [self.renderer.decode_reply(g.ids) for g in found]
        kept = [Candidate(g.ids, len(t.split()), sum(g.logps)) for g, t in zip(found, texts, strict=True)]
        return replace(found[int(request.rng.integers(len(found)))], candidates=kept)


def _another(renderer: Renderer, request: Request, found: Sequence[Generation]) -> Request:
    messages = list(request.messages)
    for generation in found:
        messages.append(Message(role="assistant", content=renderer.decode_reply(generation.ids)))
        messages.append(Message(role="user", content=ANOTHER))
    return other_prompt(renderer, request, messages)
