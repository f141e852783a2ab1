"""From the model's text to an environment action. A text that cannot be parsed is data, not an exception.

Every codec also writes an action the way a policy should (for demonstrations), says how in one sentence for the
system prompt, and may add to an observation what the policy needs to choose (the numbered list).
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentgym import gui_actions
from agentgym.errors import unknown
from agentgym.rounds import read_action, read_round, write_action, write_round
from agentgym.tool_calls import CallError, canonical, parse_calls, write_calls


@dataclass(frozen=True)
class Parsed:
    """An action, or what was wrong with the text; exactly one of the two is None."""

    action: str | None
    error: str | None = None


class ActionCodec(Protocol):
    """Both directions between a model's text and an environment's action."""

    instructions: str

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation as the policy reads it."""
        ...

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the action from a model's text."""
        ...

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Write an action as a policy should; ``parse`` reads it back (without space around it).

        Raises:
            ValueError: If the codec has no way to write it.
        """
        ...


def _written(codec: ActionCodec, action: str, text: str) -> str:
    """The text, if ``codec`` reads the action back from it."""
    if codec.parse(text, ()).action != action.strip():
        raise ValueError(f"{text!r} would not be read as {action!r}")
    return text


class Plain:
    """The whole text is the action; only its first non-empty line counts."""

    instructions = "Answer with one command and nothing else."

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Take the first non-empty line."""
        for line in text.splitlines():
            if line.strip():
                return Parsed(line.strip())
        return Parsed(None, "empty answer: write one command")

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Return the action itself."""
        return _written(self, action, action)


class Tagged:
    """The action stands between ``<action>`` and ``</action>``; thinking may precede it, the last one counts."""

    instructions = "You may think first. Then give one command as <action>command</action>."
    _pattern = re.compile(r"<action>((?:(?!</?action>).)*)</action>", re.DOTALL)

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Take the last tagged command."""
        found = [a.strip() for a in self._pattern.findall(text)]
        if not found:
            return Parsed(None, "no <action>command</action> in the answer")
        return Parsed(found[-1]) if found[-1] else Parsed(None, "the <action> is empty")

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Put the tags around the action."""
        return _written(self, action, f"<action>{action}</action>")


class ToolCall:
    """The action is the argument of a JSON call of the tool ``act``, in Hermes tags or bare."""

    instructions = (
        'Call the tool act with one command: <tool_call>{"name": "act", "arguments": {"command": "..."}}</tool_call>'
    )
    _pattern = re.compile(r"<tool_call>((?:(?!</?tool_call>).)*)</tool_call>", re.DOTALL)

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the last call."""
        found = self._pattern.findall(text)
        source = found[-1] if found else text
        try:
            call = json.loads(source.strip())
        except ValueError as error:  # not JSON, or a number of thousands of digits
            return Parsed(None, f"the tool call is not valid JSON: {error}")
        except RecursionError:
            return Parsed(None, "the tool call is nested too deeply")
        if not isinstance(call, dict) or call.get("name") != "act":
            return Parsed(None, 'the call must be {"name": "act", "arguments": {"command": "..."}}')
        arguments = call.get("arguments")
        command = arguments.get("command") if isinstance(arguments, dict) else None
        if not isinstance(command, str) or not command.strip():
            return Parsed(None, 'the call of act needs "command": a non-empty string')
        return Parsed(command.encode(errors="replace").decode().strip())

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Write the call in Hermes tags."""
        call = json.dumps({"name": "act", "arguments": {"command": action}}, ensure_ascii=False)
        if "tool_call>" in action:
            call = call.replace("<", "\\u003c")
        return _written(self, action, f"<tool_call>{call}</tool_call>")


class Code:
    """The action is a program: the last fenced block of the answer, or all of it where there is none."""

    instructions = "Answer with the code in one fenced block: ```python, the code, ```."
    _pattern = re.compile(r"^[ \t]*```[^`\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Take the last block, also one that was cut off, without the indentation that all of its lines have."""
        found = self._pattern.findall(text)
        code = found[-1] if found else text
        if code.lstrip("\n").startswith((" ", "\t")):
            code = textwrap.dedent(code)
        return Parsed(code.strip()) if code.strip() else Parsed(None, "there is no code in the answer")

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Put a fence around the program."""
        return _written(self, action, f"```python\n{action.strip()}\n```")


class Tools:
    """The action is one call or several of an environment's own tools, as JSON; `agentgym.tool_calls` reads them."""

    instructions = (
        "You may think first. Then call a tool, with a JSON object between tags:\n"
        '<tool_call>\n{"name": "name of the tool", "arguments": {"name of the argument": "value"}}\n</tool_call>\n'
        "You read what it gives and go on. Several calls in one answer are made in their order."
    )

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the calls; the action is `agentgym.tool_calls.canonical`."""
        try:
            return Parsed(canonical(parse_calls(text)))
        except CallError as error:
            return Parsed(None, " ".join(str(error).split())[:250])

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Write the calls of an action in Hermes tags."""
        return write_calls(parse_calls(action))


class React:
    """The action is tool calls or the answer, without the thought and without a report, if there is one."""

    instructions = (
        "You may think first. Then either make one tool call, or give the answer, which ends the task:\n"
        '<tool_call>\n{"name": "name of the tool", "arguments": {"name of the argument": "value"}}\n</tool_call>\n'
        "or\n<answer>the answer</answer>"
    )

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the calls or the answer; the action is `agentgym.rounds.write_action`."""
        try:
            return Parsed(write_action(read_action(text)).encode(errors="replace").decode())
        except CallError as error:
            return Parsed(None, " ".join(str(error).split())[:250])

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Write the calls or the answer of an action.

        Raises:
            ValueError: If it is neither.
        """
        text = write_action(read_action(action))
        return _written(self, text, text)


class Report:
    """The action is a report and one tool call or the answer, without the thought; `agentgym.rounds` reads them."""

    instructions = (
        "You may think first. Then reply with <report>all that is known and from where, what failed, what comes next"
        '</report> and one <tool_call>{"name": "the tool", "arguments": {"its argument": "value"}}</tool_call>, or '
        "with <report>...</report> and <answer>...</answer>. The next round sees your report, your call and its "
        "response only."
    )

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the round; the action is `agentgym.rounds.write_round`."""
        try:
            return Parsed(write_round(*read_round(text)).encode(errors="replace").decode())
        except CallError as error:
            return Parsed(None, " ".join(str(error).split())[:250])

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Return the action itself."""
        return _written(self, action, action)


class Gui:
    """The action is a list with one action on a screen, without the reasoning; `agentgym.gui_actions` reads it."""

    instructions = (
        "Reply with <think>your reasoning</think> and then a list with one action, in JSON: "
        '<answer>[{"action": "click", "point": [x, y], "input_text": "none"}]</answer>. An action is one of '
        f"{', '.join(gui_actions.KINDS)}. point is [-100, -100] where none is needed; input_text is the text to type, "
        'the name of the app, the direction to scroll (up, down, left, right) or the answer, else "none".'
    )

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the reply; the action is `agentgym.gui_actions.write_action`."""
        try:
            return Parsed(gui_actions.write_action(gui_actions.read_reply(text)[1]))
        except gui_actions.GuiActionError as error:
            return Parsed(None, str(error))

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Write the reply of an action, with an empty reasoning block.

        Raises:
            ValueError: If it is no action on a screen.
        """
        return gui_actions.write_reply(gui_actions.read_action(action))


class Verbatim:
    """The action is the whole text: the environment reads it, and a bad format is its to judge."""

    instructions = ""

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Return the observation unchanged."""
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Take all of it; an empty text becomes words that say so."""
        return Parsed(text.encode(errors="replace").decode().strip() or "(nothing)")

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Return the action itself."""
        return _written(self, action, action)


class Choice:
    """The admissible commands are shown as a numbered list; the last number in the answer is the choice."""

    instructions = "Answer with the number of one of the listed commands."

    def show(self, observation: str, admissible: Sequence[str]) -> str:
        """Append the numbered list."""
        lines = [f"{i}. {a}" for i, a in enumerate(admissible, 1)]
        return "\n".join([observation, "Commands:", *lines])

    def parse(self, text: str, admissible: Sequence[str]) -> Parsed:
        """Read the last number."""
        numbers = re.findall(r"\d+", text)
        if not numbers:
            return Parsed(None, f"no number in the answer: choose 1 to {len(admissible)}")
        last = numbers[-1]
        number = int(last) if len(last) < 10 else 0
        if not 1 <= number <= len(admissible):
            return Parsed(None, f"{last[:10]} is not on the list: choose 1 to {len(admissible)}")
        return Parsed(admissible[number - 1])

    def write(self, action: str, admissible: Sequence[str]) -> str:
        """Write the number of an admissible action."""
        if action not in admissible:
            raise ValueError(f"it is not among the {len(admissible)} admissible commands")
        return str(list(admissible).index(action) + 1)


CODECS: dict[str, type[ActionCodec]] = {
    "plain": Plain,
    "tagged": Tagged,
    "tool_call": ToolCall,
    "code": Code,
    "tools": Tools,
    "react": React,
    "report": Report,
    "gui": Gui,
    "verbatim": Verbatim,
    "choice": Choice,
}


def make_codec(name: str) -> ActionCodec:
    """Return the codec of that name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in CODECS:
        raise unknown("action codec", name, CODECS)
    return CODECS[name]()
