"""Tool calls in a model's text: three formats in, one format out. A text without a readable call is data.

Read are Hermes or Qwen tags, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; Llama 3,
``{"name": ..., "parameters": {...}}`` at the start of the text, after ``<|python_tag|>`` or in a fence of three
backticks; and OpenAI's ``{"tool_calls": [{"function": {"name": ..., "arguments": "{...}"}}]}`` or an item of that list.
What stands before ``</think>`` is no call. Several calls in one text are all meant, in their order, up to `MOST`; if
one of them cannot be read, none is made.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 8
"""Calls that one text may make."""

_OPENINGS = [
    re.compile(r"<tool_call>\s*(?:```(?:json)?\s*)?(?=[{\[])"),
    re.compile(r"<\|python_tag\|>\s*(?=[{\[])"),
    re.compile(r"\A\s*(?=[{\[])"),
    re.compile(r"```(?:json)?\s*(?=[{\[])"),
]
"""What stands before a call; the first pattern that is found decides."""
_TAGS = _OPENINGS[0]
_BETWEEN = re.compile(r"\s*[;,]?\s*(?=[{\[])")
_OPENINGS_READ = 64
_ESCAPED = ("<|", "tool_call>", "think>")


@dataclass(frozen=True)
class Call:
    """A call of a tool, with JSON values as arguments."""

    name: str
    arguments: dict[str, Any]


class CallError(ValueError):
    """A text without a readable call; the message is for the model."""


def parse_calls(text: str) -> list[Call]:
    """Read the calls in a model's text.

    Returns:
        1 to `MOST` calls.

    Raises:
        CallError: If there is no call, too many, or one that cannot be read.
    """
    text = text.rpartition("</think>")[2]
    complaint = "no tool call in the answer"
    for pattern in _OPENINGS:
        calls: list[Call] = []
        end = 0
        for opening in itertools.islice(pattern.finditer(text), _OPENINGS_READ):
            if opening.start() < end:
                continue  # inside an argument
            position = opening.end()
            try:
                for value, end in _values(text, position):  # noqa: B007
                    if pattern is _TAGS or _like_a_call(value):
                        calls += _calls_of(value)
                    if len(calls) > MOST:
                        raise CallError(f"at most {MOST} calls in one answer")
            except CallError:
                raise
            except RecursionError:
                raise CallError("the tool call is nested too deeply") from None
            except ValueError as error:
                complaint = f"the tool call is not valid JSON: {error}"
                if pattern is _TAGS:
                    raise CallError(complaint) from None
        if calls:
            return calls
    raise CallError(complaint)


def canonical(calls: Sequence[Call]) -> str:
    """The calls as JSON: an object, or a list of objects; `parse_calls` reads them back."""
    values = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return _dump(values[0] if len(values) == 1 else values)


def write_calls(calls: Sequence[Call]) -> str:
    """The calls in Hermes tags; `parse_calls` reads them back."""
    return "\n".join(tagged(call.name, call.arguments) for call in calls)


def tagged(name: str, arguments: Any) -> str:
    """A call in Hermes tags, its arguments as they are: a text that is no JSON stays one."""
    return f"<tool_call>\n{_dump({'name': name, 'arguments': arguments})}\n</tool_call>"


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # in JSON of calls, < stands in strings only
    return text.replace("<", "\\u003c") if any(mark in text for mark in _ESCAPED) else text


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return number


# strict=False: models write line breaks into strings as they are
_DECODER = json.JSONDecoder(strict=False, parse_constant=_constant, parse_float=_float)


def _values(text: str, position: int) -> Iterator[tuple[Any, int]]:
    """The JSON values that follow each other from a position on, each with its end."""
    between: re.Match[str] | None = _BETWEEN.match(text, position)
    while between:
        value, position = _DECODER.raw_decode(text, between.end())
        yield value, position
        between = _BETWEEN.match(text, position)


def _like_a_call(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_like_a_call, value))
    return isinstance(value, dict) and not {"name", "function", "tool_calls"}.isdisjoint(value)


def _calls_of(value: Any) -> list[Call]:
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list):
        if not value:
            raise CallError("the list of tool calls is empty")
        return [call for item in value[: MOST + 1] for call in _calls_of(item)]
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise CallError('a tool call must be {"name": "...", "arguments": {...}}')
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = _DECODER.decode(arguments)
        except ValueError as error:
            raise CallError(f"the arguments of {name[:40]} are not valid JSON: {error}") from None
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise CallError(f'the arguments of {name[:40]} must be an object like {{"name of argument": value}}')
    # halves of surrogate pairs, which no file and no tokenizer takes, become question marks
    whole = json.dumps([name.strip(), arguments], ensure_ascii=False).encode(errors="replace")
    return [Call(*json.loads(whole))]
