"""A round of a research agent as text: a thought, a report, then one tool call or the answer.

    <think>...</think>
    <report>what is known, and what comes next</report>
    <tool_call>{"name": "search", "arguments": {"query": "..."}}</tool_call>    or    <answer>...</answer>

What stands outside the blocks counts as thought.

Source: IterResearch (2511.07327, section 3 and its prompts).
"""

from __future__ import annotations

import re

from agentgym.tool_calls import Call, CallError, parse_calls, write_calls

_REPORT = re.compile(r"<report>((?:(?!</?report>).)*)</report>", re.DOTALL)
_CALL = re.compile(r"<tool_call>(?:(?!<tool_call>).)*?(?:</tool_call>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_BLOCK = re.compile(r"<(tool_call|answer|action)>(?:(?!</?\1>).)*</\1>", re.DOTALL)


def after_thought(text: str) -> str:
    """What stands behind ``</think>``, or before a ``<think>`` that is never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def report_of(text: str) -> str | None:
    """The report in a reply (the last one, if there are several), or None."""
    found = _REPORT.findall(after_thought(text))
    return str(found[-1]).strip() if found else None


def action_of(text: str) -> str:
    """A reply without thought and report: its tagged calls or answer, or all that is left if nothing is tagged."""
    rest = _REPORT.sub("", after_thought(text))
    return "\n".join(match[0] for match in _BLOCK.finditer(rest)) or rest.strip()


def read_action(text: str) -> str | list[Call]:
    """What a reply does, whether or not it holds a report.

    Returns:
        The answer, or the tool calls.

    Raises:
        CallError: If it does neither or both, or a call cannot be read; the message is for the model.
    """
    rest = _REPORT.sub("", after_thought(text))
    answers = _ANSWER.findall(_CALL.sub("", rest))
    if not answers:
        return parse_calls(rest)
    if "<tool_call>" in rest:
        raise CallError("a tool call and an answer in one reply: give one of them")
    if len(answers) > 1 or not answers[0].strip():
        raise CallError("there are several answers: give one" if len(answers) > 1 else "the answer is empty")
    return str(answers[0]).strip()


def read_round(text: str) -> tuple[str, str | Call]:
    """Read a reply with exactly one report and, behind it, exactly one tool call or answer.

    Returns:
        The report, and the answer or the call.

    Raises:
        CallError: If it is anything else; the message is for the model.
    """
    text = after_thought(text)
    found = list(_REPORT.finditer(text))
    if len(found) != 1:
        raise CallError(f"a reply needs exactly one <report>...</report>, this one has {len(found) or 'none'}")
    if not (report := found[0][1].strip()):
        raise CallError("the report is empty")
    rest = text[found[0].end() :]
    if "<tool_call>" not in rest and "<answer>" not in rest:
        raise CallError("behind the report stands neither a <tool_call> nor an <answer>")
    action = read_action(rest)
    if isinstance(action, str):
        return report, action
    if len(action) > 1:
        raise CallError(f"{len(action)} tool calls in one reply: make one a round")
    return report, action[0]


def write_action(action: str | list[Call]) -> str:
    """An answer, or calls, in tags; `read_action` reads them back."""
    return f"<answer>{action}</answer>" if isinstance(action, str) else write_calls(action)


def write_round(report: str, action: str | Call) -> str:
    """A reply with a report and an answer or a call; `read_round` reads it back."""
    return f"<report>\n{report}\n</report>\n{write_action(action if isinstance(action, str) else [action])}"
