"""What a policy around another one passes on: everything but the writing of a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentgym.errors import ContextFull
from agentgym.policies.base import Generation, Policy, Request, Session
from agentgym.policies.engine import Engine
from agentgym.renderer import Renderer, Row
from agentgym.types import Message


class AroundPolicy:
    """Another policy, whose turns come about in another way: `write` is all that a class of this kind defines.

    Attributes:
        inner: The policy inside.
    """

    def __init__(self, inner: Policy):
        """Wrap a policy."""
        self.inner: Any = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def engine(self) -> Engine:
        """What computes the inner policy's turns."""
        found: Engine = self.inner.engine
        return found

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self.inner.engine = engine

    def open(self) -> AroundSession:
        """Open a place for episodes."""
        return AroundSession(self, self.inner.open())

    async def write(self, inner: Session, request: Request) -> Generation:
        """Write a turn with the help of a session of the inner policy."""
        raise NotImplementedError


def other_prompt(renderer: Renderer, request: Request, messages: Sequence[Message]) -> Request:
    """The same turn behind another conversation."""
    row = Row(renderer)
    row.prompt(messages, 0)
    return replace(request, ids=list(row.segment.ids), images=list(row.segment.images), messages=messages)


async def asked(inner: Session, renderer: Renderer, request: Request, limit: int | None, *said: str) -> Generation:
    """Ask for a turn with something said behind the prompt, by turns of the user and the model.

    Args:
        inner: Who writes.
        renderer: Its renderer.
        request: The turn.
        limit: Tokens that it can read, None if it does not read tokens.
        said: What the user says first (it goes into the last message), what the model answers, and so on, ending with
            the user.

    Returns:
        What was sampled; see `unscored`.

    Raises:
        ContextFull: If the prompt is too long.
    """
    messages = list(request.messages)
    for number, text in enumerate(said):
        if number == 0:
            messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{renderer.escape(text)}"}
        elif number % 2:
            messages.append(Message(role="assistant", content=text))
        else:
            messages.append(Message(role="user", content=renderer.escape(text)))
    changed = other_prompt(renderer, request, messages)
    if limit is not None and len(changed.ids) + request.max_new_tokens > limit:
        raise ContextFull(f"{len(changed.ids)} prompt tokens with what is asked in between; the limit is {limit}")
    return await inner.generate(changed)


def unscored(generation: Generation) -> Generation:
    """A turn whose log-probabilities belong to another prompt than the one that is recorded: nobody can train on it."""
    return replace(generation, logps=[math.nan] * len(generation.ids), version=-1)


class AroundSession:
    """A session of the inner policy."""

    def __init__(self, policy: AroundPolicy, inner: Session):
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
        return await self._policy.write(self._inner, request)

    def close(self) -> None:
        """Give the place back."""
        self._inner.close()


class RememberingPolicy(AroundPolicy):
    """Another policy, with something that a seat keeps in mind over an episode: `reply` takes the place of `write`."""

    def open(self) -> RememberingSession:
        """Open a place for episodes."""
        return RememberingSession(self, self.inner.open())

    def remember(self, key: tuple[int, ...], group: str) -> Any:
        """What a seat has in mind when an episode begins."""
        return None

    async def reply(self, inner: Session, request: Request, memory: Any) -> Generation:
        """Write a turn with the help of a session of the inner policy."""
        raise NotImplementedError


class RememberingSession(AroundSession):
    """A session with a memory of its episode."""

    def __init__(self, policy: RememberingPolicy, inner: Session):
        super().__init__(policy, inner)
        self._remembering, self._memory = policy, policy.remember((), "")

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode."""
        self._memory = self._remembering.remember(key, group)
        super().begin(key, group)

    async def generate(self, request: Request) -> Generation:
        """Write one turn."""
        return await self._remembering.reply(self._inner, request, self._memory)
