"""What the model sees each turn, made from the whole conversation.

A conversation is ``[system, user, assistant, user, assistant, ..., user]``: the first user message holds the task
and the first observation, each later one an observation. A context picks and rebuilds; it never edits what it was
given. The renderer turns whatever comes out into an extension of the row or a fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentgym.errors import ConfigError
from agentgym.types import Message


class Context(Protocol):
    """A view on a conversation."""

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return what the policy sees."""
        ...


@dataclass(frozen=True)
class Append:
    """Everything, in order."""

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return all messages."""
        return list(messages)


@dataclass(frozen=True)
class Window:
    """The system message, the task, and the last ``turns`` turns before the current observation."""

    turns: int

    def __post_init__(self) -> None:
        if self.turns < 0:
            raise ConfigError(f"context window of {self.turns} turns: it must be 0 or more")

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return the head and the tail of the conversation."""
        head, tail = list(messages[:2]), list(messages[2:])
        keep = 2 * self.turns
        if len(tail) <= keep:
            return head + tail
        last = tail[-(keep + 1) :]
        first = last[0]["content"]
        task = Message(role="user", content=f"{head[1]['content']}\n\n[...]\n\n{first}")
        return [head[0], task, *last[1:]]


@dataclass(frozen=True)
class Workspace:
    """Rebuilt every round: the task, the report the policy wrote last, the latest observation.

    The report is the text between ``<report>`` and ``</report>`` of the last assistant message that has one. It moves
    from the policy's own message into a user message, where its special tokens would be read as such: ``escape``
    breaks them up (``Renderer.escape``).
    """

    escape: Callable[[str], str]

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return the system message and one user message."""
        if len(messages) <= 2:
            return list(messages)
        report = ""
        for message in reversed(messages):
            found = (
                re.findall(r"<report>((?:(?!</?report>).)*)</report>", message["content"], re.DOTALL)
                if message["role"] == "assistant"
                else []
            )
            if found:
                report = self.escape(found[-1].strip())
                break
        parts = [messages[1]["content"], f"Report so far:\n{report or '(none)'}", messages[-1]["content"]]
        return [messages[0], Message(role="user", content="\n\n".join(parts))]


def make_context(name: str, escape: Callable[[str], str]) -> Context:
    """Return the context written as ``append``, ``window:K`` or ``workspace``.

    Args:
        name: Which.
        escape: Breaks up the special tokens of the policy's tokenizer (``Renderer.escape``).

    Raises:
        ConfigError: If it is none of these.
    """
    if name == "append":
        return Append()
    if name == "workspace":
        return Workspace(escape)
    if match := re.fullmatch(r"window:(\d{1,9})", name):
        return Window(int(match[1]))
    raise ConfigError(f"unknown context {name!r}: use append, window:K (K turns) or workspace")
