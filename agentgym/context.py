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
from agentgym.rounds import action_of, report_of
from agentgym.types import Message

INITIAL = "This is the first round. Write the <report>: what is asked, how to find it out. Then make one <tool_call>."
REGULAR = "Write the <report> anew: what you know, what comes next. Then make one <tool_call>, or give the <answer>."
LAST = "This is the last round. Write the <report> anew, then give the <answer>. There are no tools any more."
LIMIT = 24_000
"""Characters of a report, and of an action, that the next round sees: about 6000 tokens."""
_TOOLS = re.compile(r"\n*<tools>\n.*?\n</tools>", re.DOTALL)


class Context(Protocol):
    """A view on a conversation."""

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return what the policy sees."""
        ...

    def offers_tools(self, messages: Sequence[Message]) -> bool:
        """Whether the policy may call the environment's tools, if it has any, in this turn."""
        ...


@dataclass(frozen=True)
class Append:
    """Everything, in order."""

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return all messages."""
        return list(messages)

    def offers_tools(self, messages: Sequence[Message]) -> bool:
        """Always."""
        return True


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

    def offers_tools(self, messages: Sequence[Message]) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Workspace:
    """Rebuilt every round from the question, the report M, the last action a and its response TR; nothing else is left.

    M is the text between ``<report>`` and ``</report>`` of the last reply that has one, outside its thought; a is the
    last reply without thought and report. Both move from the policy's own message into a user message, where special
    tokens would be read as such: ``escape`` breaks them up. So the prompt is a function of (system message, question,
    M, a, TR) and of the variant: `INITIAL`, `REGULAR`, or `LAST`, which also takes the ``<tools>`` out of the system
    message. Its length does not grow with the number of rounds.

    Attributes:
        escape: Breaks up the special tokens of the policy's tokenizer (``Renderer.escape``).
        rounds: T_max, the number of rounds after which an episode is over.
        limit: Most characters of M and of a; the rest is cut.

    Source: IterResearch (2511.07327, section 3).
    """

    escape: Callable[[str], str]
    rounds: int
    limit: int = LIMIT

    def view(self, messages: Sequence[Message]) -> list[Message]:
        """Return the system message and one user message."""
        system, question = messages[0], messages[1]["content"]
        last = not self.offers_tools(messages)
        if last:
            system = Message(role="system", content=_TOOLS.sub("", system["content"]))
        if len(messages) <= 2:
            parts = [question, LAST if last else INITIAL]
        else:
            replies = [m["content"] for m in messages if m["role"] == "assistant"]
            report = next(filter(None, map(report_of, reversed(replies))), "(none)")
            response = messages[-1]["content"].replace("</tool_response>", "< /tool_response>")
            parts = [
                question,
                f"<report>\n{self._taken(report)}\n</report>",
                self._taken(action_of(replies[-1])),
                f"<tool_response>\n{response}\n</tool_response>",
                LAST if last else REGULAR,
            ]
        return [system, Message(role="user", content="\n\n".join(parts))]

    def offers_tools(self, messages: Sequence[Message]) -> bool:
        """Not in the last round."""
        return len(messages) // 2 < self.rounds

    def _taken(self, text: str) -> str:
        return self.escape(text if len(text) <= self.limit else f"{text[: self.limit]} [cut]")


def make_context(name: str, escape: Callable[[str], str], rounds: int) -> Context:
    """Return the context written as ``append``, ``window:K`` or ``workspace``.

    Args:
        name: Which.
        escape: Breaks up the special tokens of the policy's tokenizer (``Renderer.escape``).
        rounds: Turns after which an episode is over (``rollout.max_turns``).

    Raises:
        ConfigError: If it is none of these.
    """
    if name == "append":
        return Append()
    if name == "workspace":
        return Workspace(escape, rounds)
    if match := re.fullmatch(r"window:(\d{1,9})", name):
        return Window(int(match[1]))
    raise ConfigError(f"unknown context {name!r}: use append, window:K (K turns) or workspace")
