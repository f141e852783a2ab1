"""Prompted players of Werewolf around any model: ReAct and ReCon, with the prompts of `agentgym.envs.werewolf_prompts`.

They read the conversation alone, so they play in `agentgym.envs.werewolf` and in a seat of it, with a model of this
process or behind an endpoint. What is recorded of a turn is the prompt of the game and the tokens of the last answer,
as sampled; its log-probabilities belong to another prompt and are not known, so that nobody can train on them.

| player    | a turn                                                                      | source             |
|-----------|-----------------------------------------------------------------------------|--------------------|
| ``react`` | one prompt: reason, then act                                                | Yao et al. 2023    |
| ``recon`` | a thought about the others, a draft, how they would take it, the answer     | Wang et al. 2023   |
| ``sla``   | a deduction, several candidates, one of them                                | `werewolf_sla`     |

ReAct is arXiv 2210.03629, ReCon 2310.01320.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from agentgym.envs import werewolf_prompts as prompts

from agentgym.errors import ContextFull
from agentgym.policies.around import RememberingPolicy, asked, unscored
from agentgym.policies.base import Generation, Policy, Request, Session


class PromptedPolicy(RememberingPolicy):
    """Asks its model in a way of its own; where the context has no room for that, as the game asks.

    ``thoughts`` and ``thoughts_lost`` are summed in ``Trajectory.info``: questions in between, and turns without room.
    """

    kind = "prompted"
    version = -1

    def __init__(self, inner: Policy):
        """Wrap a model."""
        super().__init__(inner)
        self.name = f"{self.kind}:{inner.name}"

    async def ask(self, inner: Session, request: Request, *said: str) -> Generation:
        """See `agentgym.policies.around.asked`."""
        return await asked(inner, self.renderer, request, self.context_limit, *said)

    def text(self, generation: Generation) -> str:
        """What was written."""
        return str(self.renderer.decode_reply(generation.ids))

    async def reply(self, inner: Session, request: Request, memory: Any) -> Generation:
        """Write a turn."""
        try:
            return unscored(await self.think(inner, request, memory))
        except ContextFull:
            plain = await inner.generate(request)
            return unscored(replace(plain, usage=Counter(plain.usage) + Counter(thoughts_lost=1)))

    async def think(self, inner: Session, request: Request, memory: Any) -> Generation:
        """Write a turn with whatever it takes.

        Raises:
            ContextFull: There is no room.
        """
        raise NotImplementedError


class ReActPolicy(PromptedPolicy):
    """Reasons, then acts."""

    kind = "react"

    async def think(self, inner: Session, request: Request, memory: Any) -> Generation:
        """Ask once."""
        return await self.ask(inner, request, prompts.REACT)


class ReConPolicy(PromptedPolicy):
    """Recursive contemplation: formulation from its own perspective, refinement from that of the others."""

    kind = "recon"

    async def think(self, inner: Session, request: Request, memory: Any) -> Generation:
        """Thought, draft, thought about the draft, answer."""
        said: list[str] = []
        counted: Counter[str] = Counter(thoughts=3)
        for question in (prompts.RECON_OTHERS, prompts.RECON_DRAFT, prompts.RECON_SELF, prompts.RECON_FINAL):
            answer = await self.ask(inner, request, *said, question)
            counted.update(answer.usage)
            said += [question, self.text(answer)]
        return replace(answer, usage=counted)
