"""Replies of a search agent in the two shapes of IGPO: a thought and a tool call, or a thought and an answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from agentgym.answers import first_answer
from agentgym.tool_calls import CallError, parse_calls, tagged

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Malformed:
    """A reply of neither shape; ``reason`` says why."""

    reason: str


@dataclass(frozen=True)
class Search:
    """A call of a tool.

    Attributes:
        queries: What is looked for; or a sentence, if the call was written well but cannot be made.
    """

    queries: list[str] | str


def read_reply(text: str, think: bool) -> str | Search | Malformed:
    """Read a reply.

    An answer goes before a call; of several calls, the first counts.

    Args:
        text: All of it.
        think: Whether it must have a think block.

    Returns:
        The answer, a call, or what is wrong.
    """
    thought, closed, rest = text.rpartition("</think>")
    if think and not (closed and "<think>" in thought):
        return Malformed("the reply has no <think> block")
    if "<answer>" in rest and "</answer>" in rest:
        return first_answer(rest)
    found = _CALL.search(rest)
    if found is None:
        return Malformed("the reply has neither a <tool_call> nor an <answer> block")
    try:
        call = json.loads(found[1])
        known = isinstance(call["name"], str) and isinstance(call["arguments"], dict)
        (read,) = parse_calls(found[0])
    except (ValueError, LookupError, TypeError, RecursionError, CallError):
        known = False
    if not known:
        return Malformed("the call is no JSON object with name and arguments")
    if read.name != "web_search":
        return Search(f"there is no tool {read.name[:40]!r}; the tool is web_search")
    queries = read.arguments.get("query")
    queries = [queries] if isinstance(queries, str) else queries
    if not isinstance(queries, list) or not queries or not all(isinstance(q, str) and q.strip() for q in queries):
        return Search('web_search needs the argument "query": a list of texts that are not empty')
    return Search(queries)


def write_search(thought: str, queries: list[str], think: str) -> str:
    """Write a search.

    Args:
        thought: What goes before it.
        queries: What is looked for.
        think: ``required``; ``opened``, where the opening tag is in the prompt; anything else for no thought.
    """
    return _thought(thought, think) + tagged("web_search", {"query": queries})


def write_answer(thought: str, answer: str, think: str) -> str:
    """Write an answer; see `write_search`."""
    return f"{_thought(thought, think)}<answer>\n{answer}\n</answer>"


def _thought(text: str, think: str) -> str:
    block = f"<think>\n{text}\n</think>\n"
    return {"required": block, "opened": block.removeprefix("<think>")}.get(think, "")
